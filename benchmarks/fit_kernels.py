"""Fits the GEMM curve of each chip and precision on measured kernels; writes src/colossus/catalog/measured/gemm.toml.

    .venv/bin/python benchmarks/fit_kernels.py --traces ../shared/traces

Data: calibration_aiconfigurator/gemm_latency.csv.gz (TensorRT-LLM GEMMs; its NOTICE names repository and commit). Model:
2 m n k / R (1 + m_half/m + n_half/n + k_half/k) + launch, over shapes of at least 512 x 256 x 256; least squares of the
logarithm with a robust loss. The launch is the measurement's own and is not kept: a training step launches ahead.
"""

from __future__ import annotations

import argparse
import csv
import gzip
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from scipy.optimize import least_squares

TARGET = Path(__file__).resolve().parent.parent / "src" / "colossus" / "catalog" / "measured" / "gemm.toml"
CHIPS = {"a100_sxm": "a100-80", "h100_sxm": "h100-sxm", "h200_sxm": "h200-sxm", "b200_sxm": "b200", "b300_sxm": "b300", "gb200": "gb200", "gb300": "gb300"}
# MXFP8 is measured here as block-wise float8, its nearest kin among the kernels.
PRECISIONS = {"bfloat16": "bfloat16", "fp8": "float8", "fp8_block": "mxfp8", "nvfp4": "nvfp4"}


def read(path: Path) -> dict[tuple[str, str], dict[tuple[int, int, int], float]]:
    """Least latency in seconds of each shape, by chip and precision."""
    found: dict[tuple[str, str], dict[tuple[int, int, int], float]] = defaultdict(dict)
    with gzip.open(path, "rt") as lines:
        for row in csv.DictReader(lines):
            shape = (int(row["m"]), int(row["n"]), int(row["k"]))
            key = (CHIPS.get(row["system"], ""), PRECISIONS.get(row["dtype"], ""))
            if all(key) and shape[0] >= 512 and min(shape[1:]) >= 256:
                found[key][shape] = min(float(row["latency_ms"]) / 1e3, found[key].get(shape, np.inf))
    return found


def fit(latency_s: dict[tuple[int, int, int], float]) -> dict[str, Any]:
    m, n, k = np.array(list(latency_s), float).T
    seconds = np.array(list(latency_s.values()))
    flop = 2 * m * n * k

    def model(log: np.ndarray) -> np.ndarray:
        rate, m_half, n_half, k_half, launch = np.exp(log)
        return flop / rate * (1 + m_half / m + n_half / n + k_half / k) + launch

    start = np.log([np.percentile(flop / seconds, 98), 64, 64, 64, 3e-6])
    found = least_squares(lambda log: np.clip(np.log(model(log) / seconds), -2, 2), start, loss="soft_l1", f_scale=0.1).x
    error = np.abs(model(found) / seconds - 1)
    rate, m_half, n_half, k_half, _ = np.exp(found)
    return {
        "flop_per_s": float(f"{rate:.4g}"),
        "m_half": round(float(m_half), 1),
        "n_half": round(float(n_half), 1),
        "k_half": round(float(k_half), 1),
        "num_shapes": len(seconds),
        "median_error_fraction": round(float(np.median(error)), 4),
        "p90_error_fraction": round(float(np.percentile(error, 90)), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--traces", type=Path, required=True)
    a = parser.parse_args()
    data = read(a.traces / "calibration_aiconfigurator" / "gemm_latency.csv.gz")
    curves = {f"{chip} {precision}": fit(latency_s) for (chip, precision), latency_s in sorted(data.items())}
    head = {
        "schema": 1,
        "source": "github.com/ai-dynamo/aiconfigurator @ 095f58a51c4c, TensorRT-LLM GEMM latencies (Apache-2.0), fitted by benchmarks/fit_kernels.py",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    TARGET.write_text(tomli_w.dumps(head | {"curves": curves}))
    for name, curve in curves.items():
        print(
            f"{name:20} {curve['flop_per_s'] / 1e12:7.0f} TFLOP/s  halves {curve['m_half']:.0f} {curve['n_half']:.0f} {curve['k_half']:.0f}  median error {curve['median_error_fraction']:.1%}"
        )


if __name__ == "__main__":
    main()
