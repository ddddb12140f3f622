"""Random numbers: one stream for each seed and name, so that what one cause draws never moves another's."""

from __future__ import annotations

from functools import cache
from math import exp, sqrt
from typing import Any
from zlib import crc32

import numpy as np

from colossus.spec.faults import Duration


@cache
def _number(name: str) -> int:
    return crc32(name.encode())


class Streams:
    """Streams by name, one at a time: a generator that is set anew costs a fifth of a new one."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._bits = np.random.Philox(key=0)
        self._state: Any = self._bits.state
        self._start = np.zeros(4, dtype=np.uint64)
        self._generator = np.random.Generator(self._bits)

    def at(self, name: str) -> np.random.Generator:
        """The stream called ``name``, from its beginning; good until another is asked for."""
        state = self._state
        state["state"] = {"counter": self._start, "key": np.array([self._seed, _number(name)], dtype=np.uint64)}
        state["buffer_pos"], state["has_uint32"], state["uinteger"] = 4, 0, 0
        self._bits.state = state
        return self._generator


def stream(seed: int, name: str) -> np.random.Generator:
    """The stream called ``name`` of a replica's seed: Philox 4x64 with both as its key (J. K. Salmon et al., SC 2011), so that no two streams are alike."""
    return Streams(seed).at(name)


def draw(duration: Duration, rng: np.random.Generator, number: int) -> np.ndarray:
    """``number`` times of that mean and spread, s.

    A lognormal of sigma s and median m has the mean m exp(s^2 / 2).
    """
    mean_s, spread = duration.mean_s, duration.spread
    if duration.kind == "exponential":
        return rng.exponential(mean_s, number)
    if duration.kind == "lognormal" and spread:
        return mean_s * exp(-spread * spread / 2) * np.exp(spread * rng.standard_normal(number))
    if duration.kind == "uniform" and spread:
        return mean_s * (1 + spread * (2 * rng.random(number) - 1))
    return np.full(number, mean_s)


def draw_each(durations: tuple[Duration, ...], rng: np.random.Generator, number: int) -> list[np.ndarray]:
    """``number`` times of each, drawn together where all are lognormal or constant."""
    if any(each.kind in ("exponential", "uniform") for each in durations):
        return [draw(each, rng, number) for each in durations]
    spreads = np.array([[each.spread if each.kind == "lognormal" else 0.0] for each in durations])
    means_s = np.array([[each.mean_s] for each in durations])
    return list(means_s * np.exp(spreads * rng.standard_normal((len(durations), number)) - spreads * spreads / 2))


def slowest_of(number: int, deviation_fraction: float) -> float:
    """Expected largest of ``number`` normal step times, over their mean: 1 + deviation x E[max].

    E[max] to second order of extreme value theory: b - (ln ln n + ln 4 pi) / 2b + gamma / b with b = sqrt(2 ln n) (H. Cramer, Mathematical
    Methods of Statistics, 1946, 28.6.13); exact at 1, never below 0.
    """
    if number <= 1 or not deviation_fraction:
        return 1.0
    root = sqrt(2 * np.log(number))
    most = root - (np.log(max(np.log(number), 1e-9)) + np.log(4 * np.pi)) / (2 * root) + np.euler_gamma / root
    return 1.0 + deviation_fraction * max(float(most), 0.0)
