"""What a site does when it needs more power than it may draw: live on the battery, slow the chips, or stop them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Action(StrEnum):
    """RUN at full speed; BRIDGE the shortfall from the battery; SLOW chips until their draw fits; STOP what a job needs."""

    RUN = "run"
    BRIDGE = "bridge"
    SLOW = "slow"
    STOP = "stop"


@dataclass(frozen=True, kw_only=True)
class PowerState:
    """What a controller reads off its meters. ``demand_w``: at full speed; ``least_w``: with every chip at its lowest clock; both at the grid, cooling included.

    ``battery_w`` is what the battery gives at most, ``battery_j`` what it holds. How long a shortfall lasts nobody knows.
    """

    available_w: float
    demand_w: float
    least_w: float
    battery_w: float = 0.0
    battery_j: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PowerDecision:
    """``draw_w``: what chips, network and cooling may draw together; ``battery_w``: of it from the battery; below 0 it is charged."""

    action: Action
    draw_w: float
    battery_w: float
    reason: str


def decide(state: PowerState) -> PowerDecision:
    """Most shortfalls are short, so a battery that covers one is used before any chip is slowed; chips are slowed before a job is stopped."""
    short_w = state.demand_w - state.available_w
    if short_w <= 0:
        return PowerDecision(action=Action.RUN, draw_w=state.demand_w, battery_w=-min(-short_w, state.battery_w), reason="the supply covers the demand")
    given_w = state.battery_w if state.battery_j > 0 else 0.0
    if given_w >= short_w:
        return PowerDecision(action=Action.BRIDGE, draw_w=state.demand_w, battery_w=short_w, reason="the battery covers the shortfall")
    if state.available_w >= state.least_w:
        return PowerDecision(action=Action.SLOW, draw_w=state.available_w, battery_w=0.0, reason="chips are slowed until their draw fits the supply")
    if state.available_w + given_w >= state.least_w:
        needed_w = state.least_w - state.available_w
        return PowerDecision(action=Action.SLOW, draw_w=state.least_w, battery_w=needed_w, reason="chips at their lowest clock, the battery covers the rest")
    return PowerDecision(action=Action.STOP, draw_w=state.available_w, battery_w=0.0, reason="not even the lowest clock fits supply and battery")
