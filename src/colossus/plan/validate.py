"""Estimates every published run and says how far off it is: by group, by chip, and whether the thresholds hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from colossus.catalog.measured import Coefficients, usable_memory_fraction
from colossus.catalog.published import PublishedRun
from colossus.estimate.footprint import Holding, footprint
from colossus.plan.calibrate import Tables, estimate_cases
from colossus.plan.published import Case, case_of
from colossus.spec.errors import ColossusError


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run: measured and estimated, or why it was not run. Seconds and bytes; None where nothing was published.

    ``is_called_infeasible``: by the estimate it would not fit its chips, whatever it recomputes where it does not say.
    """

    id: str
    group: str
    model: str
    accelerator: str
    num_chips: float | None
    program: str | None = None
    measured_step_s: float | None = None
    step_s: float | None = None
    tokens_per_step: float | None = None
    lower_step_s: float | None = None
    upper_step_s: float | None = None
    measured_memory_bytes: float | None = None
    memory_bytes: float | None = None
    is_called_infeasible: bool = False
    reason: str | None = None

    @property
    def error_fraction(self) -> float | None:
        return None if self.step_s is None or self.measured_step_s is None else self.step_s / self.measured_step_s - 1

    @property
    def memory_error_fraction(self) -> float | None:
        return None if self.memory_bytes is None or self.measured_memory_bytes is None else self.memory_bytes / self.measured_memory_bytes - 1

    @property
    def is_inside(self) -> bool | None:
        """Whether the measured time lies in the stated interval."""
        if self.lower_step_s is None or self.upper_step_s is None or self.measured_step_s is None:
            return None
        return self.lower_step_s <= self.measured_step_s <= self.upper_step_s


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Errors of a set of rows; fractions."""

    name: str
    num_rows: int
    median_error_fraction: float
    p90_error_fraction: float
    bias_fraction: float
    inside_fraction: float


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Layouts of one model on one machine under one program. ``chosen_over_best_fraction``: measured time of the layout estimated
    fastest over the least measured, less one."""

    name: str
    num_rows: int
    rank_correlation: float
    chosen_over_best_fraction: float


@dataclass(frozen=True, kw_only=True)
class Validation:
    """All rows, and their summaries: whole, by group, by accelerator, by sweep."""

    rows: list[Row]
    whole: Summary
    by_group: list[Summary]
    by_accelerator: list[Summary]
    sweeps: list[Sweep]
    memory_median_error_fraction: float | None
    memory_worst_error_fraction: float | None

    @property
    def left_out(self) -> list[Row]:
        return [row for row in self.rows if row.reason is not None]

    def problems(self) -> list[str]:
        """Thresholds that do not hold, in words."""
        return [f"{name} is {value:.1%}, more than {limit:.0%}" for name, value, limit in self._figures() if not value <= limit]

    def _figures(self) -> list[tuple[str, float, float]]:
        groups = [(f"median error of group {summary.name}", summary.median_error_fraction, _GROUP_MEDIAN) for summary in self.by_group]
        memory = [
            ("median error of memory", self.memory_median_error_fraction or 0.0, _MEMORY_MEDIAN),
            ("worst error of memory", self.memory_worst_error_fraction or 0.0, _MEMORY_WORST),
        ]
        badly = sum(sweep.rank_correlation < _RANK for sweep in self.sweeps), sum(sweep.chosen_over_best_fraction > _CHOICE for sweep in self.sweeps)
        ranking = [
            (f"share of sweeps ranked with less than {_RANK}", badly[0] / max(1, len(self.sweeps)), _BADLY_RANKED),
            (f"share of sweeps whose choice is more than {_CHOICE:.0%} slower than the best", badly[1] / max(1, len(self.sweeps)), _BADLY_CHOSEN),
        ]
        return [
            ("median error", self.whole.median_error_fraction, _MEDIAN),
            ("90th percentile of the error", self.whole.p90_error_fraction, _P90),
            ("bias", abs(self.whole.bias_fraction), _BIAS),
            ("share of rows left out", len(self.left_out) / max(1, len(self.rows)), _LEFT_OUT),
            ("share of layouts that ran and are called infeasible", sum(row.is_called_infeasible for row in self.rows) / max(1, len(self.rows)), 0.0),
            ("share of runs outside the stated interval", 1 - self.whole.inside_fraction, _OUTSIDE),
            *groups,
            *memory,
            *ranking,
        ]


# What the validation must not exceed in CI.
_MEDIAN, _P90, _GROUP_MEDIAN, _BIAS, _LEFT_OUT, _MEMORY_MEDIAN, _MEMORY_WORST = 0.06, 0.15, 0.10, 0.02, 0.03, 0.05, 0.15
_OUTSIDE = 0.15
# The aim is every sweep; these are what holds now (docs/validation.md names the sweeps that miss).
_RANK, _CHOICE, _BADLY_RANKED, _BADLY_CHOSEN = 0.95, 0.03, 0.30, 0.12
_LEAST_SWEEP = 5


def validate(runs: Sequence[PublishedRun], coefficients: Coefficients) -> Validation:
    """Runs every row that can be run."""
    cases: list[Case] = []
    rows: dict[str, Row] = {}
    for run in runs:
        try:
            cases.append(case_of(run))
        except ColossusError as error:
            rows[run.id] = Row(**_heading(run), reason=str(error))
    rows |= {row.id: row for row in estimate_rows(cases, coefficients)}
    return summarize([rows[run.id] for run in runs])


def estimate_rows(cases: Sequence[Case], coefficients: Coefficients) -> list[Row]:
    if not cases:
        return []
    step_s = estimate_cases(cases, coefficients).step_s
    tables = Tables.of(cases)
    holding = Holding.stack([case.holding(coefficients) for case in cases])
    memory = footprint(tables.shape, tables.cut, holding).total_bytes
    silent = np.array([not case.says_recompute for case in cases])
    thrifty = replace(tables.cut, recompute=np.maximum(tables.cut.recompute, silent), selective=tables.cut.selective * ~silent)
    needed = footprint(tables.shape, thrifty, holding).total_bytes
    refused = needed > usable_memory_fraction() * tables.device.memory_bytes
    rows = []
    for case, seconds, num_bytes, is_refused in zip(cases, step_s, memory, refused, strict=True):
        low, high = coefficients.interval(case.program.name, chip=case.chip, precision=case.precision)
        rows.append(
            Row(
                **_heading(case.run),
                program=case.program.name,
                measured_step_s=case.step_s,
                step_s=float(seconds),
                tokens_per_step=float(case.cut.tokens_per_step),
                lower_step_s=float(seconds * low),
                upper_step_s=float(seconds * high),
                measured_memory_bytes=case.memory_bytes,
                memory_bytes=float(num_bytes),
                is_called_infeasible=bool(is_refused),
            )
        )
    return rows


def _heading(run: PublishedRun) -> dict:
    return {"id": run.id, "group": run.group, "model": run.text("model"), "accelerator": run.text("accelerator"), "num_chips": run.get("n_accel")}


def summarize(rows: list[Row]) -> Validation:
    estimated = [row for row in rows if row.error_fraction is not None]
    memory = [abs(error) for row in rows if (error := row.memory_error_fraction) is not None]
    return Validation(
        rows=rows,
        whole=_summary("all", estimated),
        by_group=_grouped(estimated, lambda row: row.group),
        by_accelerator=_grouped(estimated, lambda row: row.accelerator),
        sweeps=_sweeps(estimated),
        memory_median_error_fraction=float(np.median(memory)) if memory else None,
        memory_worst_error_fraction=max(memory) if memory else None,
    )


def _summary(name: str, rows: list[Row]) -> Summary:
    errors = np.array([row.error_fraction for row in rows], float)
    if not len(errors):
        return Summary(name=name, num_rows=0, median_error_fraction=0.0, p90_error_fraction=0.0, bias_fraction=0.0, inside_fraction=1.0)
    return Summary(
        name=name,
        num_rows=len(rows),
        median_error_fraction=float(np.median(np.abs(errors))),
        p90_error_fraction=float(np.percentile(np.abs(errors), 90)),
        bias_fraction=float(np.median(errors)),
        inside_fraction=float(np.mean([row.is_inside for row in rows])),
    )


def _grouped(rows: list[Row], key: Callable[[Row], str]) -> list[Summary]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return [_summary(name, members) for name, members in sorted(groups.items())]


def _sweeps(rows: list[Row]) -> list[Sweep]:
    """Every set of enough layouts that differ by nothing else: published tables mix versions of a program, which have sweeps of their own."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[f"{row.group}: {row.model} on {row.num_chips:.0f} {row.accelerator}, {row.program}"].append(row)
    return [_sweep(name, members) for name, members in sorted(groups.items()) if len(members) >= _LEAST_SWEEP]


def _sweep(name: str, rows: list[Row]) -> Sweep:
    estimated, measured = (np.array([getattr(row, field) for row in rows], float) for field in ("step_s", "measured_step_s"))
    tokens = np.array([1.0 if row.tokens_per_step is None else row.tokens_per_step for row in rows])
    estimated, measured = estimated / tokens, measured / tokens
    return Sweep(
        name=name,
        num_rows=len(rows),
        rank_correlation=_rank_correlation(estimated, measured),
        chosen_over_best_fraction=float(measured[np.argmin(estimated)] / np.min(measured) - 1),
    )


def _rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's."""
    ranks = [_ranks(one), _ranks(other)]
    return float(np.corrcoef(ranks)[0, 1]) if min(np.std(ranks, axis=1)) > 0 else 1.0


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks with ties at their mean."""
    return np.array([(np.sum(values < value) + np.sum(values <= value) - 1) / 2 for value in values])
