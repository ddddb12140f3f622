"""How hot it is outside, hour by hour, and what cooling takes for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from colossus.estimate.power import pue_at
from colossus.spec.scenario import PowerScenario

HOUR_S, DAY_S, YEAR_S = 3600.0, 86400.0, 365.25 * 86400.0
_HOTTEST_HOUR_S = 15 * HOUR_S


@dataclass(frozen=True, kw_only=True)
class Climate:
    """Degrees outside above the year's mean, by time since midnight at the spring equinox; tables by the hour of what cooling makes of it."""

    pue: float
    hour_pue: np.ndarray
    summed: np.ndarray  # PUE times seconds, from 0 to the beginning of each hour
    highest: np.ndarray  # up to each hour

    @classmethod
    def of(cls, power: PowerScenario, pue: float, horizon_s: float) -> Climate:
        hours = np.arange(math.ceil(horizon_s / HOUR_S) + 1)
        hour_pue = pue_at(pue, _degrees(power, (hours + 0.5) * HOUR_S))
        summed = np.concatenate([[0.0], np.cumsum(hour_pue) * HOUR_S])
        return cls(pue=pue, hour_pue=hour_pue, summed=summed, highest=np.maximum.accumulate(hour_pue))

    def until(self, time_s: np.ndarray | float) -> np.ndarray:
        """PUE times seconds, from 0 to ``time_s``."""
        hour = np.clip(np.asarray(time_s) // HOUR_S, 0, len(self.hour_pue) - 1).astype(int)
        return self.summed[hour] + (time_s - hour * HOUR_S) * self.hour_pue[hour]

    def mean(self, start_s: np.ndarray | float, end_s: np.ndarray | float) -> np.ndarray:
        return (self.until(end_s) - self.until(start_s)) / (np.asarray(end_s) - start_s)

    def at(self, time_s: float) -> float:
        return float(self.hour_pue[self._hour(time_s)])

    def hottest(self, until_s: float) -> float:
        return float(self.highest[self._hour(until_s)])

    def _hour(self, time_s: float) -> int:
        return min(int(time_s // HOUR_S), len(self.hour_pue) - 1)


def _degrees(power: PowerScenario, time_s: np.ndarray) -> np.ndarray:
    season = power.outside_season_c * np.sin(2 * np.pi * time_s / YEAR_S)
    return season + power.outside_swing_c * np.cos(2 * np.pi * (time_s - _HOTTEST_HOUR_S) / DAY_S)
