"""Fits the coefficients of training programs and chips on measured runs.

Least squares of the logarithm of estimated over measured step time, with a robust loss, and every coefficient held to its
prior by its plausible factor: what the runs do not tell stays where it was. No coefficient belongs to a row or a model. What was fitted before is where a new fit begins and what holds it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from colossus.catalog.measured import Coefficients, priors
from colossus.estimate.footprint import Holding, footprint
from colossus.estimate.profile import Profile
from colossus.estimate.shape import Cut, Device, Shape
from colossus.estimate.step import StepParts, step_parts
from colossus.plan.published import Case

# A residual of 5 % weighs as much as a coefficient two prior factors away; larger residuals weigh linearly.
_RESIDUAL, _PRIOR_WEIGHT = 0.05, 0.7
_ROUNDS = 60

Values = dict[str, dict[str, dict[str, float]]]  # scope -> key -> coefficient -> value


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


def estimate_cases(cases: Sequence[Case], coefficients: Coefficients) -> StepParts:
    """The parts of every case's step, as arrays."""
    tables = Tables.of(cases)
    return step_parts(tables.shape, tables.cut, tables.device, Profile.stack([case.profile(coefficients) for case in cases]))


def fit(cases: Sequence[Case], start: Coefficients) -> Fit:
    """Coefficients for the chips, precisions and programs of ``cases``; all others keep what ``start`` says."""
    tables, measured_s = Tables.of(cases), np.array([case.step_s for case in cases])
    unfused = np.array([not case.program.flash_attention for case in cases])

    def estimated_s(values: dict[str, np.ndarray]) -> np.ndarray:
        fused = values | {"score_passes": values["score_passes"] * unfused}
        return step_parts(tables.shape, tables.cut, tables.device, Profile(**fused)).step_s

    values, estimate_s = _solve(cases, start, [field.name for field in fields(Profile)], estimated_s, measured_s)
    error = estimate_s / measured_s - 1
    merged = _merged(_merged(start.values, values), _fit_memory(cases, start))
    spread = dict(start.spread) | spread_by_program(cases, error)
    return Fit(coefficients=replace(start, values=merged, spread=spread), error_fraction=error)


def _fit_memory(cases: Sequence[Case], start: Coefficients) -> Values:
    """What programs hold beyond the formulas, from the runs whose peak is known."""
    known = [case for case in cases if case.memory_bytes is not None]
    if not known:
        return {}
    tables, measured = Tables.of(known), np.array([case.memory_bytes for case in known], float)
    total = lambda values: footprint(tables.shape, tables.cut, Holding(**values)).total_bytes
    return _solve(known, start, [field.name for field in fields(Holding)], total, measured)[0]


def _solve(
    cases: Sequence[Case], start: Coefficients, names: Sequence[str], estimate: Callable[[dict[str, np.ndarray]], np.ndarray], measured: np.ndarray
) -> tuple[Values, np.ndarray]:
    """Values of the named coefficients that bring ``estimate`` nearest to ``measured``, and what it then gives."""
    from scipy.optimize import least_squares

    slots = sorted({(name, priors()[name].scope, _key(case, priors()[name].scope)) for name in names for case in cases})
    index = {slot: number for number, slot in enumerate(slots)}
    where = {name: np.array([index[(name, priors()[name].scope, _key(case, priors()[name].scope))] for case in cases]) for name in names}
    prior = np.log([start.values.get(scope, {}).get(key, {}).get(name, priors()[name].value) for name, scope, key in slots])
    most = np.log([priors()[name].most for name, _, _ in slots])
    sigma = np.log([priors()[name].factor for name, _, _ in slots])

    def at(logs: np.ndarray) -> np.ndarray:
        return estimate({name: np.exp(logs[places]) for name, places in where.items()})

    def residuals(logs: np.ndarray) -> np.ndarray:
        return np.concatenate([np.log(at(logs) / measured) / _RESIDUAL, _PRIOR_WEIGHT * (logs - prior) / sigma])

    begin = np.minimum(prior, most - 1e-6)
    found = least_squares(residuals, begin, bounds=(-np.inf, most), loss="soft_l1", max_nfev=_ROUNDS).x
    values: Values = defaultdict(lambda: defaultdict(dict))
    for (name, scope, key), value in zip(slots, np.exp(found), strict=True):
        values[scope][key][name] = float(f"{value:.4g}")
    return values, at(found)


def spread_by_program(cases: Sequence[Case], error_fraction: np.ndarray) -> dict[str, tuple[float, float]]:
    """5th and 95th percentile of measured over estimated, by program; few runs are widened towards all of them together."""
    ratio = 1 / (1 + error_fraction)
    names = np.array([case.program.name for case in cases])
    whole = np.percentile(ratio, [5, 95])
    found = {}
    for name in sorted(set(names)):
        own = ratio[names == name]
        trust = len(own) / (len(own) + 10)
        low, high = trust * np.percentile(own, [5, 95]) + (1 - trust) * whole
        found[name] = (round(float(low), 3), round(float(high), 3))
    return found


def _key(case: Case, scope: str) -> str:
    keys = {"all": "all", "precision": case.precision, "chip": case.chip, "program": case.program.name}
    return keys.get(scope) or f"{case.chip} {case.precision}"


def _merged(old: Any, new: Any) -> Values:
    merged: Values = {scope: {key: dict(named) for key, named in entries.items()} for scope, entries in old.items()}
    for scope, entries in new.items():
        for key, named in entries.items():
            merged.setdefault(scope, {}).setdefault(key, {}).update(named)
    return merged
