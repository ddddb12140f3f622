"""What happens to a job, case by case: faults and orders at given times, on a clock without chance."""

from __future__ import annotations

from typing import Any

import pytest

from colossus.spec.causes import Cause
from colossus.spec.scenario import Scenario
from colossus.twin.faults import Fault
from colossus.twin.power import Limit
from colossus.twin.setting import Setting
from colossus.twin.simulate import profile_of
from colossus.twin.training import Job
from tests.twin.jobs import DAY_S, failing, machine, workload

NEVER = {"mtbf_s": 1e13}
EXACT = (
    "recovery.swap=100 s",
    "recovery.start=1000 s",
    "recovery.compile=500 s",
    "checkpoint.blocked_fraction=0.0",
    "recovery.num_spares=16",
    "checkpoint.interval_s=600.0",
)
STEP_S = 5.0


def play(
    classes: list[dict[str, Any]],
    struck: list[tuple[float, int, int]],
    *assignments: str,
    limits: tuple[Limit, ...] = (),
    repair_s: float = 7200.0,
    detect_s: float = 60.0,
) -> Job:
    """A job with faults of these classes at (time, class, node), each known after ``detect_s``."""
    chosen: Scenario = failing(*({**NEVER, **each} for each in classes), assignments=(*EXACT, *assignments))
    setting = Setting.of(workload(num_steps=10**6), machine(), chosen, profile_of(chosen))
    job = Job(setting, seed=0, limits=limits, is_kept=True)
    given = [Fault(time_s, place, node, detect_s, repair_s, False, *[0.5] * (len(Fault._fields) - 6)) for time_s, place, node in struck]
    job.faults._columns = [list(column) for column in zip(*given, strict=True)] if given else [[]] * len(Fault._fields)
    job.faults.times_s = [fault.time_s for fault in given]
    job.faults.lucks = job._lucks = [0.5] * len(given)
    job.run()
    return job


def test_a_crash_goes_back_to_the_newest_copy_whatever_its_tier() -> None:
    soft = {"takes": "none", "component": "software"}
    (row,) = play([soft], [(80_000.0, 0, 3)], "checkpoint.memory_interval_s=86400.0").incidents
    assert (row.source, row.to_step) == ("disk", 80_000 // 600 * 600 / STEP_S)
    (row,) = play([soft], [(80_000.0, 0, 3)], "checkpoint.memory_interval_s=50.0").incidents
    assert row.source == "ram"
    assert row.from_step - row.to_step < 10


def test_a_stop_in_good_order_is_on_disk_when_it_is_saved() -> None:
    planned = {"effect": "planned", "takes": "none", "component": "operator"}
    job = play([planned, {}], [(20_123.0, 0, 0), (21_650.0, 1, 3)], "checkpoint.interval_s=40000.0", repair_s=1000.0)
    stop, crash = job.incidents
    assert stop.lost_s < STEP_S
    assert crash.to_step == stop.to_step  # what was saved for the stop, not the start
    assert crash.source == "disk"


def test_a_blackout_does_not_shorten_what_the_gang_waits_for() -> None:
    planned = {"effect": "planned", "takes": "none", "component": "operator"}
    blackout = Limit(start_s=21_000.0, end_s=21_060.0, speed_fraction=1.0, is_outage=True)
    (row,) = play([planned], [(20_000.0, 0, 0)], limits=(blackout,), repair_s=14_400.0).incidents
    assert sum(row.parts_s[:2]) == pytest.approx(14_400.0, abs=5.0)


@pytest.mark.parametrize(("recovery", "memory", "is_saved"), [("hot", "peer", False), ("cold", "peer", True), ("hot", "none", True)])
def test_an_order_keeps_only_state_that_is_somewhere(recovery: str, memory: str, is_saved: bool) -> None:
    slow = {"effect": "slow", "slowdown_fraction": 0.5, "repair": "20 d"}
    settings = (f"recovery.kind={recovery}", f"checkpoint.memory={memory}", "recovery.evict_detect=600 s", "checkpoint.interval_s=100000.0")
    job = play([slow], [(20_000.0, 0, 3)], *settings, repair_s=20 * DAY_S)
    (row,) = job.incidents
    assert row.name == "evicted"
    assert (job.progress.disk >= row.to_step) == is_saved
    assert row.parts_s[1] == pytest.approx(job.setting.save_s if is_saved else 0.0)


def test_a_gang_that_shrank_grows_when_it_comes_back_to_more_nodes() -> None:
    job = play([{}], [(20_000.0, 0, 3)], "recovery.kind=elastic", "recovery.num_spares=0", "checkpoint.memory=peer", repair_s=100.0)
    assert job.nodes.gang == job.setting.num_gang
    assert [row.name for row in job.incidents] == ["cause_0", "grown"]
    assert dict(zip(_causes(), job.book, strict=True))[Cause.FEWER_NODES] < 100.0


def test_saves_are_counted_from_the_last_on_disk_not_from_the_last_recovery() -> None:
    soft = {"takes": "none", "component": "software"}
    often = [(1500.0 * number, 0, 0) for number in range(1, 100)]
    job = play(
        [soft, {"takes": "pod"}], [*often, (150_500.0, 1, 3)], "checkpoint.memory=peer", "checkpoint.interval_s=1800.0", "checkpoint.memory_interval_s=50.0"
    )
    last = job.incidents[-1]
    assert last.source == "disk"
    assert (last.from_step - last.to_step) * STEP_S < 2 * 1800.0


def test_corruption_costs_the_tries_that_find_the_good_state() -> None:
    job = play([{"effect": "corrupt"}], [(20_100.0, 0, 3)], "recovery.sdc_check_s=120.0", detect_s=4000.0)
    (row,) = job.incidents
    assert row.source == "disk"
    assert row.to_step * STEP_S == pytest.approx(19_800.0, abs=300.0)  # saved last before it; copies take their time too
    assert row.parts_s[0] == pytest.approx(4 * (120.0 + job.setting.restore_disk_s))  # eight saves in question
    assert not job.num_corrupt


def test_a_restore_from_before_the_corruption_heals_it() -> None:
    job = play([{"effect": "corrupt"}, {"takes": "none"}], [(20_100.0, 0, 3), (20_101.0, 1, 0)], "checkpoint.memory_interval_s=50.0", detect_s=4000.0)
    assert [row.name for row in job.incidents] == ["cause_1"]


def test_after_a_blackout_all_start_anew_even_a_smaller_gang() -> None:
    blackout = Limit(start_s=20_030.0, end_s=20_090.0, speed_fraction=1.0, is_outage=True)
    job = play([{}], [(20_000.0, 0, 3)], "recovery.kind=elastic", "recovery.num_spares=0", limits=(blackout,), repair_s=20 * DAY_S)
    row = job.incidents[0]
    assert row.action == "shrink"
    assert row.parts_s[2] == pytest.approx(1000.0)
    assert row.parts_s[4] == pytest.approx(500.0)
    assert job.num_disk_losses == 1


def test_two_slow_faults_of_one_node_last_as_long_as_the_longer() -> None:
    slow = {"effect": "slow", "slowdown_fraction": 0.5}
    job = play([slow], [(20_000.0, 0, 3), (23_600.0, 0, 3)], "recovery.evict_slow=false", "checkpoint.interval_s=off", repair_s=7200.0)
    assert dict(zip(_causes(), job.book, strict=True))[Cause.STRAGGLER] == pytest.approx((3600.0 + 7200.0) / 2, rel=0.01)


def _causes() -> tuple[Cause, ...]:
    from colossus.twin.book import BOOK

    return BOOK
