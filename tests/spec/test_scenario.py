"""What a scenario may say: values that cannot be played are refused by path, with the rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossus.catalog.scenarios import load_scenario
from colossus.spec.errors import SpecError
from colossus.spec.faults import RESERVED, FaultProfile
from colossus.spec.scenario import Scenario


def refused(*assignments: str) -> str:
    with pytest.raises(SpecError) as error:
        load_scenario(assignments=assignments)
    return str(error.value)


@pytest.mark.parametrize("value", ["inf", "nan"])
@pytest.mark.parametrize(
    "path",
    [
        *("fault_factor", "age_s", "horizon_s", "checkpoint.interval_s", "checkpoint.memory_interval_s", "checkpoint.state_bytes_per_parameter"),
        *("power.outside_swing_c", "power.limit_w", "power.battery_j", "power.random_events_per_year", "recovery.start", "money.depreciation_s"),
    ],
)
def test_infinity_is_no_value(path, value):
    told = refused(f"{path}={value}")
    assert "must be a finite number" in told and f"  {path}" in told and "function-" not in told


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("horizon_s=1e10", "horizon_s = 10000000000.0: must be at most 100 years"),
        ("age_s=1e300", "age_s = 1e+300: must be at most 100 years"),
        ("checkpoint.interval_s=1e308", "checkpoint.interval_s = 1e+308: must be at most 100 years"),
        ("checkpoint.memory_bytes_per_s_per_node=1e-300", "must be at least 1 B/s"),
        ("checkpoint.storage_bytes_per_s=1e-300", "must be at least 1 B/s"),
        ("checkpoint.state_bytes_per_parameter=1e300", "must be at most 1,024 bytes"),
        ("power.outside_swing_c=1e9", "must be at most 60 degrees"),
        ("seed=9223372036854775808", "must be at most 2^63 - 1"),
        ('injections=[{every="0 s", cause="hbm"}]', "injections.0"),
        ('injections=[{every="0 s", cause="hbm"}]', "write a time above zero"),
        ('injections=[{every="1 ms", cause="hbm"}]', "more than the 3,000,000 that one replica plays"),
        ('power={random_events_per_year=1e9, random_event="5 min", outside_swing_c=1.0, outside_season_c=1.0}', "more than the 3,000,000"),
        ("power.random_events_per_year=500", "needs random_event"),
        ("power.outside_mean_c=17.0", "is not a value of a scenario"),
    ],
)
def test_what_cannot_be_played_is_refused_with_its_rule(assignment, told):
    assert told in refused(assignment)


@pytest.mark.parametrize("assignment", ["horizon_s=36525d", "seed=9223372036854775807", "power.outside_season_c=60", "checkpoint.interval_s=off"])
def test_the_bounds_themselves_are_allowed(assignment):
    assert load_scenario(assignments=(assignment,))


@pytest.mark.parametrize("cause", RESERVED)
def test_a_fault_cannot_be_called_what_a_simulation_calls_its_own(cause):
    data = {"name": "mine", "classes": [{"cause": cause, "component": "gpu", "mtbf_s": "1 d"}], "detect": "0 s", "diagnose": "0 s", "repair": "0 s"}
    with pytest.raises(SpecError, match=f"classes.0.cause = '{cause}': is a name that simulations use themselves.*e.g. {cause}_fault"):
        FaultProfile.from_data(data, origin="mine.toml")


@given(st.floats(1.0, 3e9), st.integers(0, 2**63 - 1))
def test_what_is_allowed_is_dumped_and_loaded(horizon_s, seed):
    made = load_scenario(assignments=(f"horizon_s={horizon_s!r}", f"seed={seed}"))
    assert Scenario.from_data(made.to_data(), origin="again") == made
