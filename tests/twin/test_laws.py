"""What holds for every simulation: nothing lost equals the estimate, books balance, seeds reproduce, more trouble is never better."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from math import sqrt
from statistics import mean, variance

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossus.plan.answer import answer
from colossus.plan.fewer import step_s_on_fewer
from colossus.plan.question import ask
from colossus.report import summarize
from colossus.spec.causes import Cause
from colossus.spec.machine import How
from colossus.spec.scenario import Scenario
from colossus.spec.simulation import Simulation, Tally
from colossus.twin import simulate, simulated_events
from colossus.twin.setting import Setting
from colossus.twin.simulate import profile_of
from tests.twin.jobs import DAY_S, calm, failing, machine, scenario, workload

CRASHES = {"mtbf_s": 20 * DAY_S}
MIXED = (
    {"mtbf_s": 40 * DAY_S},
    {"mtbf_s": 60 * DAY_S, "takes": "none", "component": "software"},
    {"mtbf_s": 90 * DAY_S, "effect": "hang", "detect": "10 min"},
    {"mtbf_s": 60 * DAY_S, "effect": "slow", "slowdown_fraction": 0.2, "repair": "6 h"},
    {"mtbf_s": 200 * DAY_S, "effect": "corrupt", "detect": "5 h"},
    {"mtbf_s": 200 * DAY_S, "effect": "planned", "repair": "20 min", "takes": "none"},
    {"mtbf_s": 30 * DAY_S, "per": "rack", "takes": "rack", "component": "power_supply"},
    {"mtbf_s": 40 * DAY_S, "shape": 0.6},
)
RECOVERIES = st.sampled_from(["hot", "cold", "wait", "elastic"])
MEMORIES = st.sampled_from(["none", "own", "peer"])


def first(chosen: Scenario, **sizes: int) -> Tally:
    return simulate(workload(**sizes), machine(), chosen).first


def test_without_faults_the_twin_is_the_estimate_exactly() -> None:
    job = workload(step_s=0.1234567, num_steps=123_457)
    told = simulate(job, machine(), calm()).first
    assert told.wall_s == told.goodput_s == job.plan_s == told.time_to_train_s
    assert told.done
    assert told.steps == job.num_steps
    assert not any(told.badput_s.values())


@given(st.floats(0.01, 20.0), st.integers(1, 3000))
@settings(max_examples=40)
def test_without_faults_it_is_exact_for_any_step(step_s: float, num_steps: int) -> None:
    job = workload(step_s=step_s, num_steps=num_steps)
    told = simulate(job, machine(), calm()).first
    assert (told.wall_s, told.goodput_s, told.steps) == (job.plan_s, job.plan_s, num_steps)


def test_saves_alone_cost_their_blocked_time() -> None:
    job = workload(num_steps=1000, step_s=2.0)
    chosen = scenario(
        "faults=none", "stragglers.diurnal_fraction=0.0", "checkpoint.memory=none", "checkpoint.interval_s=200.0", "checkpoint.blocked_fraction=0.5"
    )
    simulation = simulate(job, machine(), chosen)
    told, save_s = simulation.first, 14 * 70e9 / 1.6e12
    assert told.num_checkpoints == 9  # the tenth would come with the end
    assert told.wall_s == pytest.approx(2000.0 + 9 * 0.5 * save_s)
    assert told.badput_s[Cause.CHECKPOINT] == pytest.approx(9 * 0.5 * save_s)


@given(st.integers(0, 10_000), RECOVERIES, MEMORIES, st.sampled_from(["daly", "adaptive", 1800.0, 3e7, "off"]), st.integers(0, 16), st.floats(0.2, 4.0))
@settings(max_examples=60, deadline=None)
def test_books_balance(seed: int, recovery: str, memory: str, interval: object, spares: int, factor: float) -> None:
    assignments = (
        f"seed={seed}",
        f"recovery.kind={recovery}",
        f"checkpoint.memory={memory}",
        f"checkpoint.interval_s={interval}",
        f"recovery.num_spares={spares}",
    )
    chosen = failing(
        *MIXED,
        assignments=(*assignments, f"fault_factor={factor}", "recovery.drain_after_faults=2", "recovery.sdc_check_interval_s=40000.0"),
        lemon_fraction=0.05,
        lemon_factor=8,
    )
    told = first(chosen)
    assert told.goodput_s + sum(told.badput_s.values()) == pytest.approx(told.wall_s, rel=1e-9)
    assert all(seconds >= -1e-6 for seconds in told.badput_s.values())
    assert told.goodput_s == pytest.approx(told.steps * 5.0, abs=5.0)  # a step may be under way at the end
    assert sum(told.node_s.values()) == pytest.approx(machine().num_nodes * told.wall_s, rel=1e-9)
    assert told.steps <= 20_000


@given(st.integers(0, 10_000), RECOVERIES, MEMORIES)
@settings(max_examples=12, deadline=None)
def test_the_log_read_like_a_real_runs_says_the_same(seed: int, recovery: str, memory: str) -> None:
    chosen = failing(*MIXED, assignments=(f"seed={seed}", f"recovery.kind={recovery}", f"checkpoint.memory={memory}", "recovery.num_spares=8"))
    told = first(chosen)
    report = summarize(simulated_events(workload(), machine(), chosen), how=How.SIMULATED)
    slack_s = 10.0 * (1 + told.num_interruptions)  # the step that a fault cuts short is lost in both, what made it longer is not
    assert report.wall_s == pytest.approx(told.wall_s, abs=1e-3)
    assert report.steps == told.steps
    assert report.goodput_s == pytest.approx(told.goodput_s, abs=slack_s)
    assert report.goodput_s + sum(report.badput_s.values()) == pytest.approx(report.wall_s, abs=1e-3)
    for cause in (Cause.DETECT, Cause.WAIT_NODES, Cause.RESTART, Cause.RESTORE, Cause.RECOMPILE, Cause.LOST_WORK, Cause.STRAGGLER):
        assert report.badput_s.get(cause, 0.0) == pytest.approx(told.badput_s.get(cause, 0.0), abs=slack_s), cause


def test_equal_seeds_give_equal_bytes_and_others_do_not() -> None:
    chosen = failing(*MIXED)
    once, again = (simulate(workload(), machine(), chosen, num_replicas=3) for _ in range(2))
    assert once.to_json() == again.to_json()
    assert Simulation.from_data(once.to_data(), origin="test") == once
    other = simulate(workload(), machine(), chosen.model_copy(update={"seed": 1}), num_replicas=2)
    assert other.tallies[0] == once.tallies[1]  # a replica alone is what it is among others
    assert other.tallies[0] != once.tallies[0]
    assert [event.to_line() for event in simulated_events(workload(), machine(), chosen)] == [
        event.to_line() for event in simulated_events(workload(), machine(), chosen)
    ]


def goodput_gain(before: Scenario, after: Scenario, num_replicas: int = 24) -> tuple[float, float]:
    """What ``after`` has more of goodput on average, and the standard error of that."""
    told = [
        [tally.goodput_fraction for tally in simulate(workload(num_steps=10**7), machine(), chosen, num_replicas=num_replicas).tallies]
        for chosen in (before, after)
    ]
    return mean(told[1]) - mean(told[0]), sqrt((variance(told[0]) + variance(told[1])) / num_replicas)


@pytest.mark.slow
@given(RECOVERIES, MEMORIES, st.floats(0.5, 2.0), st.floats(1.3, 3.0))
@settings(max_examples=8, deadline=None)
def test_more_faults_never_raise_expected_goodput(recovery: str, memory: str, factor: float, more: float) -> None:
    told = (f"recovery.kind={recovery}", f"checkpoint.memory={memory}", "checkpoint.interval_s=1800.0", "recovery.num_spares=16")
    gain, error = goodput_gain(*(failing(*MIXED, assignments=(*told, f"fault_factor={times}")) for times in (factor, factor * more)))
    assert gain <= 3 * error


@given(st.sampled_from(["hot", "cold", "elastic"]), st.integers(0, 6), st.integers(1, 10))
@settings(max_examples=8, deadline=None)
def test_more_spares_never_lower_expected_goodput(recovery: str, spares: int, more: int) -> None:
    told = (f"recovery.kind={recovery}", "fault_factor=0.3", "checkpoint.interval_s=1800.0")
    gain, error = goodput_gain(*(failing(*MIXED, assignments=(*told, f"recovery.num_spares={number}")) for number in (spares, spares + more)))
    assert gain >= -3 * error


def test_the_laws_of_faults_and_spares_can_fail() -> None:
    few, many = (failing(*MIXED, assignments=(f"fault_factor={times}",)) for times in (0.3, 2.0))
    gain, error = goodput_gain(few, many)
    assert gain < -10 * error


def test_the_course_is_the_tally_in_bins() -> None:
    simulation = simulate(workload(), machine(), failing(*MIXED))
    told, course = simulation.first, simulation.course
    for cause, shares in course.shares.items():
        total_s = told.goodput_s if cause is Cause.PRODUCTIVE else told.badput_s.get(cause, 0.0)
        assert sum(shares) * course.bin_s == pytest.approx(total_s, rel=0.02, abs=60.0), cause
    for state, counts in course.nodes.items():
        assert sum(counts) * course.bin_s == pytest.approx(told.node_s[state], rel=0.02, abs=DAY_S / 4), state


def test_incidents_add_up_to_the_standstills() -> None:
    simulation = simulate(workload(), machine(), failing(CRASHES), num_incidents=10**6)
    told = simulation.first
    assert sum(incident.detect_s for incident in simulation.incidents) == pytest.approx(told.badput_s[Cause.DETECT], rel=0.02)
    assert sum(incident.lost_steps for incident in simulation.incidents) == pytest.approx(told.lost_steps, abs=20)
    assert {incident.cause for incident in simulation.incidents} == {"cause_0"}


def test_jumping_to_what_is_next_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = failing(*MIXED)
    jumped = simulate(workload(), machine(), chosen, num_replicas=2)
    monkeypatch.setattr("colossus.twin.kernel.Kernel.jump", lambda self, time_s: False)
    assert simulate(workload(), machine(), chosen, num_replicas=2) == jumped


def test_an_elastic_gang_runs_only_in_sizes_that_were_planned_for_it() -> None:
    sizes = {896: 6.5, 832: 7.0}  # 128 and 192 of 1,024 chips gone; with 64 gone it does not fit
    job = replace(workload(num_steps=10**7), step_s_by_chips=sizes)
    chosen = failing({"mtbf_s": 60 * DAY_S, "repair": "1 d"}, assignments=("recovery.kind=elastic", "recovery.num_spares=0", "checkpoint.memory=peer"))
    twin = Setting.of(job, machine(), chosen, profile_of(chosen))
    assert [twin.smaller(nodes) for nodes in (127, 112, 111, 104, 103, 1)] == [112, 112, 104, 104, 0, 0]
    assert twin.pace(112).fewer_s == pytest.approx(1.5)
    told = simulate(job, machine(), chosen).first
    assert told.badput_s[Cause.FEWER_NODES] > 0


def test_fewer_replicas_take_the_same_batch() -> None:
    asked = ask("llama-3-70b", "h100-sxm*1024", sequences=512)
    best = answer(asked.question, name="70b", total_tokens=asked.total_tokens).best
    planned = step_s_on_fewer(asked.question, best.layout)
    assert planned
    per_replica = best.layout.num_chips // best.layout.dp
    for chips, step_s in planned.items():
        assert chips % per_replica == 0
        assert step_s >= 0.999 * best.step_s
        assert step_s <= 1.3 * best.step_s * best.layout.num_chips / chips


@given(st.integers(0, 1000))
@settings(max_examples=6, deadline=None)
def test_what_is_kept_and_logged_changes_nothing(seed: int) -> None:
    """The first replica leaves marks and a log; the same seed without them comes to the same."""
    grid = ("power.events=[{at_s=90000, duration_s=7200, available_fraction=0.5}, {at_s=400000, duration_s=600, available_fraction=0.0}]",)
    chosen = failing(*MIXED, assignments=(f"seed={seed}", "recovery.num_spares=8", *grid))
    later = simulate(workload(), machine(), chosen.model_copy(update={"seed": seed - 1}), num_replicas=2).tallies[1] if seed else None
    told = first(chosen)
    assert later is None or later == told
    report = summarize(simulated_events(workload(), machine(), chosen), how=How.SIMULATED)
    assert report.steps == told.steps
    assert report.wall_s == pytest.approx(told.wall_s, abs=1e-3)


def test_a_slow_node_that_is_known_is_swapped_out_when_it_can_be() -> None:
    slow = {"mtbf_s": 20 * DAY_S, "effect": "slow", "slowdown_fraction": 0.3, "repair": "1 d"}
    kept, gone = (
        simulate(workload(num_steps=10**7), machine(1280), failing(slow, CRASHES, assignments=(f"recovery.evict_slow={evicts}",))).first
        for evicts in ("false", "true")
    )
    assert gone.interruptions["evicted"] == pytest.approx(
        gone.faults["cause_0"], rel=0.35
    )  # of all nodes, a fifth of them spare; and some go with a standstill
    assert gone.badput_s[Cause.STRAGGLER] < 0.1 * kept.badput_s[Cause.STRAGGLER]


def test_a_scenario_with_faults_of_its_own_is_dumped_and_loaded() -> None:
    chosen = failing(*MIXED)
    assert Scenario.from_data(tomllib.loads(chosen.to_toml()), origin="test") == chosen
