"""How estimates do on what the fit has not seen: models, sources and chips of published runs left out in turn, and estimated by a fit on the rest.

    .venv/bin/python benchmarks/holdout.py

Writes benchmarks/results/holdout.json, and with --write the interval for unseen chips, catalog/measured/unseen.toml. About four minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import tomli_w
from common import record

from colossus.catalog.measured import load_coefficients
from colossus.catalog.published import read_published
from colossus.plan.calibrate import estimate_cases, fit
from colossus.plan.published import Case, case_of
from colossus.spec.errors import ColossusError

TARGET = Path(__file__).resolve().parent.parent / "src" / "colossus" / "catalog" / "measured" / "unseen.toml"
# What is left out, and in how many folds; None: one at a time. A source is a repository's file or table.
KINDS: dict[str, tuple[Callable[[Case], str], int | None]] = {
    "model": (lambda case: case.run.text("model"), 6),
    "source": (lambda case: case.run.text("source")[:75], 8),
    "chip": (lambda case: case.chip, None),
}


def published_cases() -> list[Case]:
    """Tiers A and B, what can be estimated."""
    found = []
    for run in read_published():
        if run.text("tier") in "AB":
            try:
                found.append(case_of(run))
            except ColossusError:
                continue
    return found


def folds(cases: list[Case], key: Callable[[Case], str], count: int | None) -> Iterator[set[str]]:
    names = sorted({key(case) for case in cases})
    np.random.default_rng(0).shuffle(names)
    for number in range(count or len(names)):
        yield set(names[number :: count or len(names)])


def left_out(cases: list[Case], key: Callable[[Case], str], count: int | None) -> np.ndarray:
    """Estimated over measured, less one, of every tier A run, by a fit that had not seen its like."""
    nothing = replace(load_coefficients(), factors={}, spread={}, seen={})
    errors: list[float] = []
    for unseen in folds(cases, key, count):
        tried = [case for case in cases if key(case) in unseen and not case.is_incomplete]
        if tried:
            estimated = estimate_cases(tried, fit([case for case in cases if key(case) not in unseen], nothing).coefficients).step_s
            errors += list(estimated / np.array([case.step_s for case in tried]) - 1)
    return np.array(errors)


def summary(errors: np.ndarray) -> dict[str, float | int | list[float]]:
    return {
        "num_runs": len(errors),
        "median_error_fraction": float(np.median(np.abs(errors))),
        "mean_error_fraction": float(np.mean(np.abs(errors))),
        "p90_error_fraction": float(np.percentile(np.abs(errors), 90)),
        "bias_fraction": float(np.median(errors)),
        "measured_over_estimated_p5_p95": [float(value) for value in np.percentile(1 / (1 + errors), [5, 95])],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    cases = published_cases()
    figures = {name: summary(left_out(cases, key, count)) for name, (key, count) in KINDS.items()}
    print(record("holdout", figures).read_text())
    if write:
        head = {
            "schema": 1,
            "source": "benchmarks/results/holdout.json, chips left out: 5th and 95th percentile of measured over estimated step time",
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        }
        note = "# How far estimates are off on chips that a fit has not seen; stated as the interval where a chip was not seen.\n"
        TARGET.write_text(
            note + tomli_w.dumps(head | {"measured_over_estimated": [round(end, 3) for end in figures["chip"]["measured_over_estimated_p5_p95"]]})
        )


if __name__ == "__main__":
    main()
