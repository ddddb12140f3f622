"""Fits the coefficients of training programs and chips on measured runs.

A coefficient is a value times factors: for all runs, for a chip, a precision, a family of programs, a program. The factors are
fitted together, the logarithm of estimated over measured time with a robust loss, each factor's logarithm held to zero by what it
may plausibly be (catalog/measured/priors.toml): a hierarchical model with crossed effects (Gelman and Hill 2007, chapters 11 to 13),
at its most probable point. What all programs have in common is thus learned from all, and serves a program, chip or precision that no
run was on. No factor belongs to a row or a model. What was fitted before is where a new fit begins and what holds it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from colossus.catalog.measured import Coefficients, keys_of, usable_memory_fraction
from colossus.estimate.footprint import Holding, footprint
from colossus.estimate.profile import Profile
from colossus.estimate.shape import Cut, Device, Shape
from colossus.estimate.step import StepParts, step_parts
from colossus.plan.published import Case

# A residual of this size weighs as much as a factor one plausible deviation away; larger residuals weigh linearly.
_RESIDUAL, _MEMORY_RESIDUAL = 0.05, 0.025
# Percentiles of the runs fitted on that make an interval of 90 %: wider than 5 and 95, since a fit flatters itself on its own runs.
_ENDS = (3.0, 97.0)
_ROUNDS = 40
_STEP = 1e-5
# What a run weighs whose table leaves something out (tier B).
_INCOMPLETE_WEIGHT = 0.3

Factors = dict[str, dict[str, dict[str, float]]]  # scope -> key -> coefficient -> factor
Estimator = Callable[[dict[str, np.ndarray]], np.ndarray]  # values of coefficients by run -> what is measured


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Many cases as arrays."""

    shape: Shape
    cut: Cut
    device: Device

    @classmethod
    def of(cls, cases: Sequence[Case]) -> Tables:
        return cls(
            shape=Shape.stack([case.shape for case in cases]),
            cut=Cut.stack([case.cut for case in cases]),
            device=Device.stack([case.device for case in cases]),
        )


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What came out: coefficients, and how well they do on the runs they were fitted on."""

    coefficients: Coefficients
    error_fraction: np.ndarray  # estimated over measured, less one, by case
    num_effective: float  # coefficients that the runs decide, less those that their priors do (trace of the hat matrix)


def estimate_cases(cases: Sequence[Case], coefficients: Coefficients) -> StepParts:
    """The parts of every case's step, as arrays."""
    tables = Tables.of(cases)
    return step_parts(tables.shape, tables.cut, tables.device, Profile.stack([case.profile(coefficients) for case in cases]))


def fit(cases: Sequence[Case], start: Coefficients) -> Fit:
    """Factors for the chips, precisions and programs of ``cases``; all others keep what ``start`` says."""
    tables, measured_s = Tables.of(cases), np.array([case.step_s for case in cases])
    unfused = np.array([not case.program.flash_attention for case in cases])

    def estimated_s(values: dict[str, np.ndarray]) -> np.ndarray:
        fused = values | {"score_passes": values["score_passes"] * unfused}
        return step_parts(tables.shape, tables.cut, tables.device, Profile(**fused)).step_s

    found = _Problem(cases=cases, start=start, names=_names(Profile), estimate=estimated_s, measured=measured_s).solve()
    error = found.estimated / measured_s - 1
    factors = _merged(_merged(start.factors, found.factors), _fit_memory(cases, start))
    spread = dict(start.spread) | spread_by_program(cases, error)
    return Fit(coefficients=replace(start, factors=factors, spread=spread, seen=_seen(cases, start)), error_fraction=error, num_effective=found.num_effective)


def _seen(cases: Sequence[Case], start: Coefficients) -> dict[str, tuple[str, ...]]:
    """Chips by family of programs, those of ``start`` among them."""
    found = {family: set(chips) for family, chips in start.seen.items()}
    for case in cases:
        keys = keys_of(chip=case.chip, precision=case.precision, program=case.program.name)
        found.setdefault(keys["family"], set()).add(case.chip)
    return {family: tuple(sorted(chips)) for family, chips in sorted(found.items())}


def _fit_memory(cases: Sequence[Case], start: Coefficients) -> Factors:
    """What programs hold beyond the formulas: from runs whose peak is known, and from the chip's room for runs that say what they recompute."""
    told = [case for case in cases if not case.is_incomplete and (case.memory_bytes is not None or case.says_recompute)]
    if not told:
        return {}
    tables = Tables.of(told)
    peak = np.array([np.nan if case.memory_bytes is None else case.memory_bytes for case in told], float)
    room = np.array([(usable_memory_fraction() - _MEMORY_RESIDUAL) * case.device.memory_bytes for case in told])
    total = lambda values: footprint(tables.shape, tables.cut, Holding(**values)).total_bytes
    measured, at_most = np.where(np.isnan(peak), room, peak), np.isnan(peak)
    problem = _Problem(cases=told, start=start, names=_names(Holding), estimate=total, measured=measured, residual=_MEMORY_RESIDUAL, at_most=at_most)
    return problem.solve().factors


def _names(table: Any) -> list[str]:
    return [field.name for field in fields(table)]


@dataclass(frozen=True, kw_only=True)
class _Solution:
    factors: Factors
    estimated: np.ndarray
    num_effective: float


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """One least-squares problem. ``at_most``: runs for which ``measured`` is a bound."""

    cases: Sequence[Case]
    start: Coefficients
    names: Sequence[str]
    estimate: Estimator
    measured: np.ndarray
    residual: float = _RESIDUAL
    at_most: np.ndarray | None = None

    @cached_property
    def slots(self) -> list[tuple[str, str, str]]:
        """(scope, key, coefficient) of every factor."""
        return sorted({slot for name in self.names for column in self._columns(name) for slot in column})

    def _columns(self, name: str) -> list[list[tuple[str, str, str]]]:
        """For each scope of a coefficient, the slot of every run."""
        return [[(scope, keys[scope], name) for keys in self._keys] for scope in self.start.priors[name].vary]

    @cached_property
    def _keys(self) -> list[dict[str, str]]:
        return [keys_of(chip=case.chip, precision=case.precision, program=case.program.name) for case in self.cases]

    @cached_property
    def _uses(self) -> dict[str, list[np.ndarray]]:
        index = {slot: number for number, slot in enumerate(self.slots)}
        return {name: [np.array([index[slot] for slot in column]) for column in self._columns(name)] for name in self.names}

    @cached_property
    def _sigma(self) -> np.ndarray:
        return np.log([self.start.priors[name].vary[scope] for scope, _, name in self.slots])

    @cached_property
    def _begin(self) -> np.ndarray:
        return np.log([self.start.factors.get(scope, {}).get(key, {}).get(name, 1.0) for scope, key, name in self.slots])

    @cached_property
    def _root_weight(self) -> np.ndarray:
        return np.sqrt([_INCOMPLETE_WEIGHT if case.is_incomplete else 1.0 for case in self.cases])

    def solve(self) -> _Solution:
        from scipy.optimize import least_squares

        with np.errstate(divide="ignore", invalid="ignore"):
            found = least_squares(self._residuals, self._begin, jac=self._jacobian, max_nfev=_ROUNDS, tr_solver="lsmr").x
            estimated = self.estimate(self._values(found))
            matrix = self._jacobian(found)
        factors: Factors = defaultdict(lambda: defaultdict(dict))
        for (scope, key, name), value in zip(self.slots, np.exp(found), strict=True):
            factors[scope][key][name] = float(f"{value:.4g}")
        by_priors = np.trace(np.linalg.solve(matrix.T @ matrix, np.diag(self._sigma**-2.0)))
        return _Solution(factors=factors, estimated=estimated, num_effective=len(found) - float(by_priors))

    def _values(self, logs: np.ndarray) -> dict[str, np.ndarray]:
        priors = self.start.priors
        free = {name: priors[name].value * np.exp(sum(logs[use] for use in uses)) for name, uses in self._uses.items()}
        return {name: np.clip(value, priors[name].least, priors[name].most) for name, value in free.items()}

    def _distance(self, values: dict[str, np.ndarray]) -> np.ndarray:
        """In units of a usual residual; none where a bound holds."""
        distance = np.log(self.estimate(values) / self.measured) / self.residual
        return distance if self.at_most is None else np.where(self.at_most, np.maximum(distance, 0.0), distance)

    def _residuals(self, logs: np.ndarray) -> np.ndarray:
        return np.concatenate([self._root_weight * _soft(self._distance(self._values(logs))), (logs - self._begin) / self._sigma])

    def _jacobian(self, logs: np.ndarray) -> np.ndarray:
        """A run depends on its own values only: one step of a coefficient for all runs at once gives its column in every scope."""
        values = self._values(logs)
        soft = _soft(self._distance(values))
        rows, num_runs = np.arange(len(self.cases)), len(self.cases)
        matrix = np.zeros((num_runs + len(logs), len(logs)))
        for name, uses in self._uses.items():
            prior, value = self.start.priors[name], values[name]
            moved = _soft(self._distance(values | {name: value * np.exp(_STEP)}))
            slope = np.where((value > prior.least) & (value < prior.most), self._root_weight * (moved - soft) / _STEP, 0.0)
            for use in uses:
                matrix[rows, use] += slope
        matrix[num_runs + np.arange(len(logs)), np.arange(len(logs))] = 1 / self._sigma
        return matrix


def _soft(residual: np.ndarray) -> np.ndarray:
    """A residual whose square grows linearly beyond one (pseudo-Huber)."""
    return np.sign(residual) * np.sqrt(2 * (np.sqrt(1 + residual**2) - 1))


def spread_by_program(cases: Sequence[Case], error_fraction: np.ndarray) -> dict[str, tuple[float, float]]:
    """Ends of measured over estimated between which runs lie, by program; few runs are widened towards all of them together."""
    ratio = 1 / (1 + error_fraction)
    names = np.array([case.program.name for case in cases])
    whole = np.percentile(ratio, _ENDS)
    found = {}
    for name in sorted(set(names)):
        own = ratio[names == name]
        trust = len(own) / (len(own) + 10)
        low, high = trust * np.percentile(own, _ENDS) + (1 - trust) * whole
        found[name] = (round(float(low), 3), round(float(high), 3))
    return found


def _merged(old: Any, new: Any) -> Factors:
    merged: Factors = {scope: {key: dict(named) for key, named in entries.items()} for scope, entries in old.items()}
    for scope, entries in new.items():
        for key, named in entries.items():
            merged.setdefault(scope, {}).setdefault(key, {}).update(named)
    return merged
