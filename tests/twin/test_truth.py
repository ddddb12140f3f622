"""The twin against published runs: benchmarks/twin_truth.py's rows with fewer replicas. What a row's rates were fitted on is not what it is held against."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from colossus.catalog.reliability import load_reliability
from colossus.catalog.scenarios import load_scenario, scenario_names
from colossus.spec.simulation import Simulation

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from twin_truth import LLAMA, OURS, ROWS, SCOUT, Row, catch_up, kill_storm, llama, mttf, workload

from colossus.catalog.machines import load_machine
from colossus.twin import simulate

# Of the README's replicas; enough that the mean is sharper than the tolerance.
EFFORT = {"llama-3-count": 0.1, "rsc-1-mttf-1024": 0.4, "rsc-1-mttf-16384": 1.0, "rsc-1-mttf-131072": 1.0, "megascale-catch-up": 0.02}
FEW = 0.05


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_published(row: Row) -> None:
    found = row.measure(EFFORT.get(row.name, FEW))
    told = f"{row.what}: published {row.bound} {row.published}, simulated {found.value:.4g} +- {found.standard_error:.2g}"
    assert row.passes(found.value), told
    for far in (-2, 2):
        assert row.passes(found.value + far * found.standard_error), f"too few replicas to tell: {told}"


def test_rows_can_fail() -> None:
    above, equal = (next(row for row in ROWS if row.bound == bound) for bound in ("above", "equal"))
    assert not above.passes(above.published * 0.99) and above.passes(above.published * 1.5)
    assert not equal.passes(equal.published * (1 + 2 * equal.tolerance)) and not equal.passes(equal.published * (1 - 2 * equal.tolerance))


@pytest.fixture(scope="module")
def llama_runs() -> Simulation:
    return llama(0.2)


def test_llama_3s_causes_keep_their_shares(llama_runs: Simulation) -> None:
    """Fitted, so nothing but a check that every cause comes through: each count within four standard errors of its mean."""
    number = len(llama_runs.tallies)
    for cause in load_reliability("llama-3").causes:
        assert cause.num_interruptions is not None
        seen = sum(tally.interruptions.get(cause.cause, 0) for tally in llama_runs.tallies) / number
        assert abs(seen - cause.num_interruptions) <= 4 * (cause.num_interruptions / number) ** 0.5 + 0.12 * cause.num_interruptions


def test_slower_detection_or_no_memory_costs_llama_3_its_ninety_percent() -> None:
    """The 90 % is no foregone conclusion: with every fault found by a half-hour timeout and 3 h between checkpoints it is missed."""
    scenario = load_scenario("default", ('horizon_s="54 d"', 'checkpoint.interval_s="3 h"', 'checkpoint.memory="none"'))
    slow = load_reliability("llama-3").model_copy(update={"detect": load_reliability("kill-storm").detect}).profile()
    simulated = simulate(LLAMA, load_machine("llama-3-24k"), scenario.model_copy(update={"faults": slow}), num_replicas=4, num_incidents=0)
    assert max(tally.goodput_fraction for tally in simulated.tallies) < 0.75


def test_time_between_failures_halves_with_the_size() -> None:
    few, many = mttf("rsc-1", 2048)(0.2), mttf("rsc-1", 4096)(0.2)
    assert few.value / many.value == pytest.approx(2, rel=0.1)


def test_the_kill_storm_is_survived_far_better_by_our_policies() -> None:
    name, _, measure = OURS[0]
    ours, restarts = measure(FEW).value, kill_storm("kill-storm")(FEW).value
    assert name == "kill-storm-ours"
    assert SCOUT.plan_s < ours < 1.1 * SCOUT.plan_s
    assert ours < 0.6 * restarts


def test_catching_up_takes_longer_with_rarer_checkpoints() -> None:
    assert catch_up(0.02).value < 900


def test_draining_lemons_leaves_the_rate_of_good_nodes() -> None:
    """RSC-1 with lemons that no repair mends: drained, the job has what good nodes bring, 27 % of the rate; else each comes back, as a spare, and fails again."""
    lemons = load_reliability("rsc-1-lemons").model_copy(update={"failed_repair_fraction": 1.0}).profile()
    job, machine = workload("lemons", chips=4096, replica_chips=8, step_s=10.0, parameters=1e9), load_machine("dgx-a100*4352")
    counts = []
    for drain in ("recovery.drain_after_faults=2", 'recovery.drain_after_faults="off"'):
        scenario = load_scenario("default", ('horizon_s="335 d"', "stragglers.diurnal_fraction=0.0", drain)).model_copy(update={"faults": lemons})
        counts.append(simulate(job, machine, scenario, num_incidents=0).first.num_interruptions)
    good = 335 * 512 * 6.5e-3 / (1 + 0.012 * 219)
    assert counts[0] == pytest.approx(good, abs=4 * good**0.5)
    assert counts[1] > 1.6 * counts[0]


@pytest.mark.parametrize("name", scenario_names())
def test_every_scenario_loads_and_names_faults_that_exist(name: str) -> None:
    scenario = load_scenario(name)
    profile = load_reliability(scenario.faults).profile() if isinstance(scenario.faults, str) else scenario.faults
    assert {injection.cause for injection in scenario.injections} <= {each.cause for each in profile.classes}
