"""What a replica would draw, held against what one can play, before anything is drawn."""

from __future__ import annotations

from colossus.spec.errors import Problem, SpecError
from colossus.spec.faults import FaultProfile
from colossus.spec.scenario import MOST_EVENTS, Scenario
from colossus.spec.units import format_duration
from colossus.twin.faults import Grounds, rate_per_s


def check_faults(profile: FaultProfile, grounds: Grounds, scenario: Scenario) -> None:
    """A SpecError where the machine's faults within the horizon are too many."""
    rates = {each.cause: rate_per_s(each, grounds, scenario) for each in profile.classes}
    expected = sum(rates.values()) * scenario.horizon_s
    if expected <= MOST_EVENTS:
        return
    most = max(rates, key=lambda cause: rates[cause])
    rule = f"gives about {expected:,.3g} faults in {format_duration(scenario.horizon_s)}, most of them {most}, more than the {MOST_EVENTS:,} that one replica plays"
    hint = f"simulate a shorter time, or fault_factor={scenario.fault_factor * MOST_EVENTS / expected:.1g} or less"
    raise SpecError("scenario", [Problem(path="fault_factor", value=f"{scenario.fault_factor:g}", rule=rule, hint=hint)])
