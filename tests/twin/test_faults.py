"""Faults as they are drawn: how many, of which units, and that one chance says nothing about another."""

from __future__ import annotations

from statistics import mean

import numpy as np
import pytest

from colossus.catalog.machines import load_machine
from colossus.catalog.reliability import load_profile
from colossus.catalog.scenarios import load_scenario
from colossus.spec.faults import Duration, FaultProfile
from colossus.spec.scenario import Injection, Scenario
from colossus.twin.faults import Faults, Grounds, draw_faults, lemon_nodes, rate_per_s
from colossus.twin.streams import draw, stream
from tests.twin.jobs import DAY_S, failing, machine


def profile_in(scenario: Scenario) -> FaultProfile:
    assert isinstance(scenario.faults, FaultProfile)
    return scenario.faults


def grounds_of(scenario: Scenario, num_nodes: int = 140) -> Grounds:
    return Grounds.of(machine(), scenario, profile_in(scenario), num_nodes=num_nodes, num_gang_nodes=min(num_nodes, 128))


def drawn(scenario: Scenario, seed: int, num_nodes: int = 140) -> Faults:
    return draw_faults(profile_in(scenario), scenario, grounds_of(scenario, num_nodes), seed=seed)


@pytest.mark.parametrize(
    ("name", "assignments", "per_rack", "per_pod"),
    [
        ("llama-3-24k", (), 2, 384),  # pods are of its network
        ("colossus-100k", (), 2, 341),
        ("colossus-100k", ("num_nodes_per_rack=8", "num_nodes_per_pod=512"), 8, 512),
        ("colossus-2-1m", (), 18, 341),  # its racks are its domains
    ],
)
def test_racks_and_pods_are_those_that_were_counted(name: str, assignments: tuple[str, ...], per_rack: int, per_pod: int) -> None:
    there, scenario = load_machine(name), load_scenario("default", assignments)
    grounds = Grounds.of(there, scenario, load_profile("llama-3-full"), num_nodes=there.num_nodes, num_gang_nodes=1024)
    assert (grounds.num_nodes_per_rack, grounds.num_nodes_per_pod) == (per_rack, per_pod)


def test_a_profile_without_racks_leaves_them_to_the_machine() -> None:
    grounds = grounds_of(failing({"mtbf_s": DAY_S}))
    assert (grounds.num_nodes_per_rack, grounds.num_nodes_per_pod) == (1, 144)


@pytest.mark.parametrize("age_s", [0.0, 100 * DAY_S])
@pytest.mark.parametrize("shape", [0.5, 1.0, 3.0])
def test_the_rate_that_policy_knows_is_the_one_that_comes(shape: float, age_s: float) -> None:
    scenario = failing({"mtbf_s": 50 * DAY_S, "shape": shape}, assignments=(f"age_s={age_s}",))
    expected = rate_per_s(profile_in(scenario).classes[0], grounds_of(scenario), scenario) * scenario.horizon_s
    assert mean(len(drawn(scenario, seed)) for seed in range(100)) == pytest.approx(expected, abs=4 * (expected / 100) ** 0.5)


def test_few_nodes_have_no_lemons_or_some() -> None:
    """The rate goes with how many there are: 9 nodes with 5 % lemons, ten times as bad, average 9 faults, and 6.2 where all are good."""
    scenario = failing({"mtbf_s": 10 * DAY_S}, lemon_fraction=0.05, lemon_factor=10)
    lemons = [len(lemon_nodes(profile_in(scenario), grounds_of(scenario, 9), seed=seed)) for seed in range(600)]
    counts = np.array([len(drawn(scenario, seed, 9)) for seed in range(600)])
    assert mean(lemons) == pytest.approx(0.45, abs=0.11)
    assert counts.mean() == pytest.approx(9.0, rel=0.1)
    for number in (0, 1):
        assert counts[np.array(lemons) == number].mean() == pytest.approx((9 + 9 * number) / 1.45, rel=0.07)


def test_lemons_have_their_share() -> None:
    scenario = failing({"mtbf_s": DAY_S}, lemon_fraction=0.05, lemon_factor=10)
    hits, all_faults = 0, 0
    for seed in range(60):
        lemons, faults = set(lemon_nodes(profile_in(scenario), grounds_of(scenario), seed=seed).tolist()), drawn(scenario, seed)
        hits, all_faults = hits + sum(fault.node in lemons for fault in faults), all_faults + len(faults)
    assert hits / all_faults == pytest.approx(0.5 / 1.45, rel=0.1)


def test_one_chance_says_nothing_about_another() -> None:
    """Whether a spare has the fault at all, whether its repair fails, how soon a check finds it: of any tenth of one, a tenth of another."""
    faults = list(drawn(failing({"mtbf_s": DAY_S / 50}), seed=3))
    lucks = np.array([(fault.idle_luck, fault.repair_luck, fault.check_luck) for fault in faults])
    assert len(faults) > 50_000
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (lucks[lucks[:, one] < 0.1, other] < 0.1).mean() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_injections_come_until_the_end(spread: float) -> None:
    every = Duration(mean_s=3600, kind="lognormal", spread=spread)
    scenario = failing({"mtbf_s": 1e15}).model_copy(update={"injections": [Injection(every=every, cause="cause_0")]})
    for seed in range(40):
        times_s = np.cumsum(draw(every, stream(seed, "injection 0"), 200_000))
        assert drawn(scenario, seed).times_s == pytest.approx(times_s[times_s < scenario.horizon_s])
