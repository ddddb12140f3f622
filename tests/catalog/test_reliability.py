"""Fault profiles: counts add up, rates give the counts back, every figure has a source."""

from __future__ import annotations

from math import inf

import pytest

from colossus.catalog.reliability import CauseEntry, ReliabilityEntry, load_profile, load_reliability, node_mtbf_s, reliability_names
from colossus.spec.errors import CatalogError, SpecError
from colossus.spec.faults import Effect, FaultProfile

DAY_S = 86400.0


@pytest.mark.parametrize("name", reliability_names())
def test_every_profile_loads_with_sources(name: str) -> None:
    entry, profile = load_reliability(name), load_profile(name)
    assert profile.classes and entry.times_source
    assert all(each.source.split(": ", 1)[1].strip() for each in profile.classes)
    assert FaultProfile.from_data(profile.to_data(), origin=name) == profile
    assert ReliabilityEntry.from_data(entry.to_data(), origin=name) == entry
    assert entry.lemon_fraction == 0 or entry.lemons_source or "0.01 times" in (entry.notes or "")


def expected_faults(entry: ReliabilityEntry, cause: str) -> float:
    """Of a class over the run it was counted in: the hazard's integral over all units."""
    found = next(each for each in entry.profile().classes if each.cause == cause)
    ages = ((entry.age_s + entry.duration_s) / found.mtbf_s) ** found.shape - (entry.age_s / found.mtbf_s) ** found.shape
    return ages * entry.num_units(found.per)


@pytest.mark.parametrize("name", reliability_names())
def test_rates_give_the_counts_back(name: str) -> None:
    entry = load_reliability(name)
    for cause in entry.causes:
        if cause.num_interruptions is not None:
            assert expected_faults(entry, cause.cause) == pytest.approx(cause.num_interruptions)


def test_llama_3_has_its_nineteen_causes() -> None:
    entry = load_reliability("llama-3")
    planned = [each for each in entry.causes if each.effect is Effect.PLANNED]
    assert len(entry.causes) == 19
    assert sum(each.num_interruptions or 0 for each in planned) == 47
    assert sum(each.num_interruptions or 0 for each in entry.causes) == 466
    gpu = next(each for each in load_profile("llama-3").classes if each.cause == "faulty_gpu")
    assert gpu.mtbf_s == pytest.approx(54 * DAY_S * 16384 / 148)
    assert node_mtbf_s() == entry.node_mtbf_s


def test_the_full_profile_keeps_llamas_counts() -> None:
    full = load_reliability("llama-3-full")
    assert sum(each.num_interruptions or 0 for each in full.causes) == 466
    assert "network_switch_or_cable" not in {each.cause for each in full.causes}
    components = {each.component for each in full.causes}
    assert {"optics", "switch", "cooling", "power_supply", "operator", "storage", "software", "gpu", "hbm", "nic", "host"} <= components
    assert {each.effect for each in full.causes} == set(Effect)


def test_rates_as_published() -> None:
    assert load_reliability("rsc-1").node_mtbf_s == pytest.approx(1000 / 6.5 * DAY_S)
    assert load_reliability("kill-storm").node_mtbf_s > 1e6 * 365 * DAY_S
    lemons = load_reliability("airesim")  # 0.01 a day, 15 % of them six times as often: 0.0175 on average
    assert lemons.node_mtbf_s == pytest.approx(DAY_S / 0.0175)
    assert lemons.profile().classes[0].mtbf_s == pytest.approx(DAY_S / 0.0175)
    nothing = ReliabilityEntry.from_data(load_reliability("kill-storm").to_data() | {"causes": []}, origin="x")
    assert nothing.node_mtbf_s == inf


def test_infant_mortality_is_faster_in_a_new_machine() -> None:
    full = load_reliability("llama-3-full")
    gpu = next(each for each in full.profile().classes if each.cause == "faulty_gpu")
    rate = [gpu.shape / gpu.mtbf_s * (age_s / gpu.mtbf_s) ** (gpu.shape - 1) for age_s in (DAY_S, full.age_s)]
    assert rate[0] > 3 * rate[1]


def test_unknown_names_show_the_valid_ones() -> None:
    with pytest.raises(CatalogError, match="no fault profile 'lama-3'") as error:
        load_reliability("lama-3")
    assert "llama-3" in str(error.value.hint)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"num_interruptions": 420}, "add up to 419"),
        ({"num_racks": None, "causes": [{"cause": "x", "component": "switch", "per": "rack", "mtbf_s": "1 d"}]}, "num_racks must say"),
        ({"causes": [{"cause": "x", "component": "gpu"}]}, "exactly one of"),
        ({"causes": [{"cause": "x", "component": "gpu", "mtbf_s": "1 d", "num_interruptions": 3}]}, "exactly one of"),
        ({"causes": [{"cause": "x", "component": "gpu", "mtbf_s": "0 d"}]}, "greater than 0"),
        ({"causes": [{"cause": "x", "component": "gppu", "mtbf_s": "1 d"}]}, "'gpu'"),
        ({"causes": [{"cause": "x", "component": "gpu", "per": "none", "mtbf_s": "1 d"}]}, "a rate is of chips"),
        ({"source": ""}, "at least 1 character"),
    ],
)
def test_bad_profiles_are_refused(change: dict[str, object], rule: str) -> None:
    data = {key: value for key, value in (load_reliability("llama-3").to_data() | change).items() if value is not None}
    with pytest.raises(SpecError, match=rule):
        ReliabilityEntry.from_data(data, origin="x.toml")


def test_observations_are_found_by_name_and_size() -> None:
    assert load_reliability("rsc-1").observation("job_mttf_s", 131072).value == pytest.approx(828)
    with pytest.raises(KeyError, match="nothing observed"):
        load_reliability("rsc-1").observation("job_mttf_s", 7)
    assert CauseEntry.model_fields["shape"].default == 1.0
