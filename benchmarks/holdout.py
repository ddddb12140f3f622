"""How estimates do on models that the fit has not seen: four fits, each without a quarter of the models, tried on those.

    .venv/bin/python benchmarks/holdout.py

Writes benchmarks/results/holdout.json.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from common import record

from colossus.catalog.measured import load_coefficients
from colossus.catalog.published import read_published
from colossus.plan.calibrate import estimate_cases, fit
from colossus.plan.published import Case, case_of

FOLDS = 4


def model_of(case: Case) -> str:
    return case.run.text("model")


def main() -> None:
    cases = [case_of(run) for run in read_published() if run.text("tier") == "A"]
    nothing = replace(load_coefficients(), factors={}, spread={})
    names = sorted({model_of(case) for case in cases})
    np.random.default_rng(0).shuffle(names)
    errors: list[float] = []
    for number in range(FOLDS):
        unseen = set(names[number::FOLDS])
        seen, held_out = ([case for case in cases if (model_of(case) in unseen) is wanted] for wanted in (False, True))
        estimated = estimate_cases(held_out, fit(seen, nothing).coefficients).step_s
        errors += list(estimated / np.array([case.step_s for case in held_out]) - 1)
    size = np.abs(errors)
    figures = {
        "num_runs": len(errors),
        "num_models": len(names),
        "folds": FOLDS,
        "median_error_fraction": float(np.median(size)),
        "p90_error_fraction": float(np.percentile(size, 90)),
        "bias_fraction": float(np.median(errors)),
        "measured_over_estimated_p5_p95": [float(value) for value in np.percentile(1 / (1 + np.array(errors)), [5, 95])],
    }
    print(record("holdout", figures).read_text())


if __name__ == "__main__":
    main()
