"""The real supervisor against simulated workers: thousands of faults in seconds, and no process started."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossus.engine.supervisor import Kill, Supervisor, Task
from colossus.policy import checkpoint as policy
from colossus.report import summarize
from colossus.spec.errors import EngineError
from colossus.spec.event import Event
from colossus.spec.job import RecoverySpec
from colossus.spec.layout import Layout
from colossus.spec.run import Run
from colossus.spec.times import RunTimes
from colossus.twin.engine import Strike, TwinEngine
from colossus.twin.script import FAULTS, Script

STEP_S = 0.5
TIMES = RunTimes(
    machine="test",
    source="made up",
    import_s=2.0,
    standby_s=3.0,
    join_s=0.1,
    reform_s=0.3,
    compile_s=2.5,
    kept_s=0.1,
    init_s=0.4,
    restore_ram_s=0.02,
    restore_disk_s=0.3,
    first_step_s=0.6,
    evaluation_s=1.0,
    first_evaluation_s=1.5,
    copy_s=0.01,
    save_s=1.2,
    blocked_s=0.1,
    last_save_s=0.3,
    last_blocked_s=0.05,
    save_bytes=1000,
)
PATIENT = RecoverySpec(max_restarts_without_progress=10**9, allow_fewer_workers=False)
MENDABLE = tuple(cause for cause in FAULTS if cause != "permanent")


@dataclass
class Driven:
    """What became of a job: ``status`` is None where the supervisor gave up, ``why`` then its words."""

    status: str | None
    why: str
    engine: TwinEngine
    events: list[Event]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event.payload for event in self.events if event.kind == kind]


def drive(
    faults: tuple[Strike, ...] | list[Strike] = (),
    *,
    num_steps: int = 200,
    num_workers: int = 2,
    recovery: RecoverySpec = PATIENT,
    kills: tuple[Kill, ...] = (),
    tick_s: float = 0.5,
    **script: Any,
) -> Driven:
    """Trains a made-up job to its end. Nobody is left behind, however it ends."""
    script = {"evaluates": True, "evaluation_steps": 50, "halt_steps": tuple(kill.step for kill in kills)} | script
    events: list[Event] = []
    engine = TwinEngine(Script(num_steps=num_steps, step_s=STEP_S, times=TIMES, **script), events.append, faults=faults, tick_s=tick_s)
    layouts = {size: Layout(dp=size) for size in range(1, num_workers + 1)} if num_workers < 100 else {num_workers: Layout(dp=num_workers)}
    task = Task(run=Run(Path("nowhere")), recovery=recovery, num_workers=num_workers, num_steps=num_steps, layouts=layouts, prior_mtbf_s=1e6, kills=kills)
    status, why = None, ""
    try:
        status = Supervisor(task, engine, on_event=events.append).run()
    except EngineError as error:
        why = str(error)
        assert "stands still" not in why, why
    assert not engine.living and engine.num_started == engine.num_dismissed
    return Driven(status, why, engine, events)


def check_steps(driven: Driven, *, num_steps: int, most_lost: int) -> None:
    """Every step was done, each from the one before; what was done twice is within what the checkpoints promise."""
    at = furthest = 0
    for event in driven.events:
        if event.kind == "worker_phase" and event.payload["phase"] == "restored":
            restored = event.payload["step"]
            assert restored <= at or restored <= furthest
            at = restored
        if event.kind in ("step", "steps"):
            first = event.payload["from_step"] if event.kind == "steps" else event.payload["step"] - 1
            assert first == at, event
            at = event.payload["to_step"] if event.kind == "steps" else first + 1
            furthest = max(furthest, at)
    assert at == num_steps
    assert all(payload["lost_steps"] <= most_lost for payload in driven.of("recovered"))


def ram_steps() -> int:
    """A copy may be under way, so that the one before counts."""
    return 2 * policy.ram_interval_steps(copy_s=TIMES.copy_s, step_s=STEP_S)


def storm(number: int, *, seed: int, mean_s: float, causes: tuple[str, ...] = MENDABLE, num_ranks: int = 4) -> list[Strike]:
    """Faults at random, one in ten of them together with the one before, of all ranks and standbys."""
    rng, at_s, found = random.Random(seed), 0.0, []
    for _ in range(number):
        at_s += 0.0 if rng.random() < 0.1 else rng.expovariate(1 / mean_s)
        found.append((at_s, rng.randrange(num_ranks), rng.choice(causes)))
    return found


def test_a_quiet_run_writes_what_a_real_one_does() -> None:
    driven = drive()
    assert driven.status == "done" and len(driven.of("step")) == 200 and len(driven.of("evaluation")) == 4
    kinds = {event.kind for event in driven.events}
    assert kinds == {"attempt_started", "worker_phase", "step", "checkpoint_started", "checkpoint_saved", "interval_chosen", "evaluation", "standby_ready"}
    report = summarize(driven.events)
    assert report.steps == 200 and report.goodput_s == pytest.approx(200 * STEP_S + 0.1, abs=1e-3)


def test_a_kill_is_survived_in_process_as_for_real() -> None:
    driven = drive(kills=(Kill(rank=1, step=100),))
    assert [payload["how"] for payload in driven.of("attempt_started")] == ["start", "reform"]
    assert driven.of("recovery")[0]["action"] == "reform"
    (back,) = driven.of("recovered")
    assert back["from_step"] == 100 and back["lost_steps"] <= ram_steps()
    told = {name: back[name] for name in ("detect_s", "start_s", "compile_s", "restore_s", "first_step_s")}
    wanted = {
        "detect_s": TIMES.exit_s,
        "start_s": TIMES.reform_s,
        "compile_s": TIMES.kept_s,
        "restore_s": TIMES.restore_ram_s,
        "first_step_s": TIMES.first_step_s,
    }
    assert told == pytest.approx(wanted)
    check_steps(driven, num_steps=200, most_lost=ram_steps())


@pytest.mark.parametrize("cause", MENDABLE)
@pytest.mark.parametrize("at_s", [1.0, 2.05, 3.0, 5.0, 5.3, 40.0, 64.2])
def test_each_kind_of_fault_at_each_point_of_a_runs_life(cause: str, at_s: float) -> None:
    """While importing, joining, compiling, restoring, before the first step, in the middle, while evaluating."""
    for rank in (0, 1):
        driven = drive([(at_s, rank, cause)])
        assert driven.status == "done"
        assert len(driven.of("fault")) >= 1
        check_steps(driven, num_steps=200, most_lost=ram_steps())


@pytest.mark.slow
def test_ten_thousand_faults() -> None:
    """All kinds, on both ranks and two standbys, some together, many while the last one is being mended."""
    faults = storm(10_000, seed=1, mean_s=12.0)
    recovery = PATIENT.model_copy(update={"num_standbys": 2, "heartbeat_timeout_s": 2.0, "startup_timeout_s": 20.0})
    driven = drive(faults, num_steps=180_000, recovery=recovery, tick_s=1.0, evaluation_steps=None, span_steps=1000)
    assert driven.status == "done" and driven.engine.num_faults > 8_000
    check_steps(driven, num_steps=180_000, most_lost=ram_steps())
    assert driven.engine.num_rounds < 60 * len(faults)
    assert {payload["cause"] for payload in driven.of("fault")} == {"killed", "exited", "hung", "peer"}


@pytest.mark.parametrize("span_steps", [1, 7, 1000])
def test_what_takes_a_nodes_memory_loses_no_more_than_the_disks_interval(span_steps: int) -> None:
    faults = storm(300, seed=2, mean_s=15.0, causes=("kill", "exit"), num_ranks=2)
    driven = drive(faults, num_steps=4000, disk_steps=20, ram_lost_by=frozenset({"kill", "exit"}), span_steps=span_steps)
    assert driven.status == "done" and len(driven.of("recovered")) > 100
    late = 1 + round(TIMES.save_s / STEP_S)  # a save begun, but not committed
    check_steps(driven, num_steps=4000, most_lost=20 + late)
    assert {payload["source"] for payload in driven.of("worker_phase") if payload["phase"] == "restored"} == {"init", "disk"}


@pytest.mark.parametrize("span_steps", [1, 1000])
def test_a_standbys_death_takes_no_copy_along(span_steps: int) -> None:
    faults = [(89.9, 2, "kill"), (90.0, 1, "exit")]
    driven = drive(faults, disk_steps=150, evaluation_steps=None, ram_lost_by=frozenset({"kill"}), span_steps=span_steps)
    assert driven.engine.num_faults == 2
    assert [payload["source"] for payload in driven.of("worker_phase") if payload["phase"] == "restored"] == ["init"] * 2 + ["ram"] * 2


@pytest.mark.parametrize("span_steps", [1, 1000])
def test_faults_that_memory_heals_put_no_save_off(span_steps: int) -> None:
    """A given interval counts from the newest save on disk, not from where a gang went on."""
    faults = [(40.0 + 9.0 * number, number % 2, "kill") for number in range(6)]
    driven = drive(faults, num_steps=300, disk_steps=40, evaluation_steps=None, span_steps=span_steps)
    assert {payload["source"] for payload in driven.of("worker_phase") if payload["phase"] == "restored"} == {"init", "ram"}
    assert [payload["step"] for payload in driven.of("checkpoint_saved")] == [*range(40, 300, 40), 300]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 150), st.integers(0, 5), st.sampled_from(FAULTS)), max_size=12),
    st.integers(1, 4),
    st.integers(0, 2),
    st.sampled_from([1, 40]),
)
def test_any_schedule_ends_with_the_job_done_or_given_up(faults: list[Strike], num_workers: int, num_standbys: int, span_steps: int) -> None:
    recovery = RecoverySpec(num_standbys=num_standbys, allow_fewer_workers=True)
    driven = drive(sorted(faults), num_workers=num_workers, recovery=recovery, tick_s=2.0, span_steps=span_steps)
    if driven.status is None:
        assert driven.of("recovery")[-1]["action"] == "give_up" and driven.why == driven.of("recovery")[-1]["reason"]
    else:
        assert driven.status == "done"
        check_steps(driven, num_steps=200, most_lost=200)
    report = summarize(driven.events)
    assert round(report.goodput_s + sum(report.badput_s.values()), 6) == report.wall_s


def test_spans_and_single_steps_take_the_same_time() -> None:
    """Both are the same run; a span's own copies are told with it."""
    one, many = (summarize(drive(span_steps=span, kills=(Kill(rank=1, step=90),)).events) for span in (1000, 1))
    assert one.wall_s == pytest.approx(many.wall_s, rel=0.01)
    assert one.goodput_s == pytest.approx(many.goodput_s, rel=0.005) and one.steps == many.steps
    assert one.kinds["steps"].num_events < 20 < many.kinds["step"].num_events


def test_who_looks_in_the_middle_of_a_long_span_takes_nobody_for_stalled() -> None:
    """A standby dies and the next one comes while thousands of steps are told as one."""
    driven = drive([(2000.0, 2, "kill"), (4000.0, 2, "hang")], num_steps=20_000, span_steps=10**6, disk_steps=10_000, evaluation_steps=None)
    assert driven.status == "done" and not driven.of("fault") and len(driven.of("standby_ready")) == 3


def test_equal_faults_give_equal_bytes() -> None:
    lines = lambda: [event.to_line() for event in drive(storm(200, seed=3, mean_s=10.0), num_steps=1000).events]
    assert lines() == lines()


def test_no_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", never)
    monkeypatch.setattr("os.kill", never)
    assert drive([(10.0, 0, "kill"), (40.0, 1, "hang")]).status == "done"


def test_it_gives_up_where_the_policy_says_so() -> None:
    driven = drive([(10.0, 1, "permanent")])
    assert driven.status is None and "no restart can mend it" in driven.why
    again = list(itertools.chain.from_iterable([(float(at), 0, "exit"), (float(at), 1, "exit")] for at in range(3, 60)))
    driven = drive(again, recovery=RecoverySpec())
    assert driven.status is None and "3 recoveries in a row brought no new step" in driven.why
    driven = drive(storm(20, seed=4, mean_s=12.0, causes=("kill",), num_ranks=2), num_steps=1000, recovery=RecoverySpec(max_restarts=5))
    assert driven.status is None and "5 recoveries reached recovery.max_restarts" in driven.why


def test_a_bad_place_is_left_out() -> None:
    faults = [(float(at), 1, "kill") for at in range(4, 100, 2)]
    driven = drive(faults, recovery=RecoverySpec())
    assert "shrink" in [payload["action"] for payload in driven.of("recovery")]
    assert driven.status == "done" and driven.of("attempt_started")[-1]["num_workers"] == 1


def test_a_standby_that_hangs_is_replaced_and_never_takes_a_place() -> None:
    driven = drive([(12.0, 2, "hang"), (40.0, 1, "kill")])
    assert len(driven.of("standby_ready")) == 3
    assert [payload["action"] for payload in driven.of("recovery")] == ["reform"]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_standby_that_dies_with_a_worker_never_takes_its_place(num_workers: int) -> None:
    driven = drive([(30.0, 0, "kill"), (30.0, num_workers, "kill")], num_workers=num_workers)
    assert driven.status == "done" and len(driven.of("fault")) == 1 and driven.of("attempt_started")[-1]["how"] == "start"


def test_a_gang_of_thousands_costs_little_more_than_one_of_two() -> None:
    """Rounds of the supervisor and events written do not grow with the number of workers."""
    recovery = PATIENT.model_copy(update={"num_standbys": 8})
    faults = [(60.0 * number, number, "kill") for number in range(1, 9)]
    few, many = (drive(faults, num_workers=size, num_steps=2000, span_steps=10**6, disk_steps=400, recovery=recovery) for size in (80, 8_000))
    assert few.status == many.status == "done"
    assert len(many.events) == len(few.events) < 200
    assert many.engine.num_rounds < few.engine.num_rounds + 100
