"""Fits a node's watts by phase of the step to measured logs; writes [node] and [utilisation] of src/colossus/catalog/measured/power.toml.

    .venv/bin/python benchmarks/fit_power.py --traces ../shared/traces

Data: mlperf_power (its NOTICE names repositories and commits). Supermicro, 64 nodes of 8 H100, GPT-3, 2 s samples: folded over the step's own period,
the plateau is compute, the lowest place the communication between steps; a tail of 4 s into an evaluation is left out. Dell, 8 nodes of 8 H100, and
Lenovo, 8 B200: the 5th percentile outside the run is idle, the lowest twentieth within it are
processes that stand still. The run's mean is not fitted.
"""

from __future__ import annotations

import argparse
import csv
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

TARGET = Path(__file__).resolve().parent.parent / "src" / "colossus" / "catalog" / "measured" / "power.toml"
SMC = "github.com/mlcommons/training_results_v4.0 smc-ac-power 64xSMC gpt3"
OTHERS = "github.com/mlcommons/training_results_v4.1 Dell 8xXE9680, training_results_v5.0 Lenovo SR780a 8xB200"
# Full load as makers say it, W: DGX H100 (fact-061), whose board the Supermicro and Dell nodes have, and DGX B200 (fact-062).
RATED_H100_W, RATED_B200_W = 10200.0, 14300.0
STEP_RANGE_S, BIN_S = (5.0, 20.0), 0.5


@dataclass(frozen=True, kw_only=True)
class Samples:
    time_s: np.ndarray
    watts: np.ndarray
    group: np.ndarray
    duration_s: np.ndarray | None = None

    @property
    def inside(self) -> np.ndarray:
        assert self.duration_s is not None
        return (self.time_s > 0) & (self.time_s < self.duration_s)


def read(path: Path, groups: Sequence[str]) -> Samples:
    rows = list(csv.DictReader(path.open()))
    column = lambda name: np.array([float(row[name]) for row in rows])
    durations = column("run_duration_s") if "run_duration_s" in rows[0] else None
    group = np.array([" ".join(row[name] for name in groups) for row in rows])
    return Samples(time_s=column("t_s_from_run_start"), watts=column("watts"), group=group, duration_s=durations)


def evaluations(path: Path) -> list[tuple[float, float]]:
    rows = [(float(row["t_s_from_run_start"]), row["event"]) for row in csv.DictReader(path.open())]
    starts = [at for at, event in rows if event == "eval_start"]
    return list(zip(starts, [at for at, event in rows if event == "eval_stop"], strict=True))


def between(samples: Samples, spans: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """(seconds since the span began, watts) of every sample within one."""
    found = [(samples.time_s - low, samples.watts, (samples.time_s >= low) & (samples.time_s < high)) for low, high in spans]
    return np.concatenate([since[mask] for since, _, mask in found]), np.concatenate([watts[mask] for _, watts, mask in found])


def period_s(since_s: np.ndarray, watts: np.ndarray) -> float:
    """The period with the largest first harmonic."""
    tried = np.arange(*STEP_RANGE_S, 0.01)
    strength = [abs(np.mean(np.exp(2j * np.pi * since_s / period) * (watts - watts.mean()))) for period in tried]
    return float(tried[int(np.argmax(strength))])


def phases(folder: Path) -> dict[str, float]:
    samples = read(folder / "smc_gpt3_64node_ac_power.csv", ["node"])
    evals = evaluations(folder / "smc_gpt3_64node_events.csv")
    since_s, watts = between(samples, [(end + 5, start - 1) for (_, end), (start, _) in pairwise(evals)])
    period = period_s(since_s, watts)
    place = (since_s + 5) % period
    medians = np.array([np.median(watts[(place >= low) & (place < low + BIN_S)]) for low in np.arange(0, period - BIN_S / 2, BIN_S)])
    _, evaluating = between(samples, [(start + 4, end) for start, end in evals])
    return {
        "period_s": period,
        "compute": float(np.median(medians[medians > np.median(medians)])),
        "communication": float(medians.min()),
        "evaluation": float(np.median(evaluating)),
        "full": float(np.percentile(samples.watts, 99)),
        "mean": float(np.mean([samples.watts[samples.group == node].mean() for node in np.unique(samples.group)])),
    }


def levels(path: Path, groups: Sequence[str], runs: Sequence[str] | None = None) -> dict[str, float]:
    """Watts idle (the 5th percentile outside the run), standing (the lowest twentieth within it) and busy (the 90th percentile within it)."""
    samples = read(path, groups)
    chosen = np.isin(samples.group, runs) if runs else np.ones(len(samples.watts), bool)
    inside, watts = samples.inside & chosen, samples.watts
    standing = watts[inside & (watts < np.percentile(watts[inside], 5))]
    return {
        "idle": float(np.percentile(watts[~samples.inside & chosen], 5)),
        "standing": float(np.median(standing)),
        "busy": float(np.percentile(watts[inside], 90)),
    }


def fit(folder: Path) -> dict[str, Any]:
    gpt = phases(folder)
    dell = levels(folder / "dell_xe9680_8node_llama2_70b_lora_power_1hz.csv", ["run"])
    lenovo = levels(folder / "lenovo_sr780a_8xb200_power_1hz.csv", ["benchmark"], ["bert", "llama2_70b_lora", "retinanet"])
    idle = float(np.mean([dell["idle"] / dell["busy"], lenovo["idle"] / lenovo["busy"]]))
    share = lambda watts: (watts / gpt["compute"] - idle) / (1 - idle)
    waiting = np.mean([(one["standing"] - one["idle"]) / (one["busy"] - one["idle"]) for one in (dell, lenovo)])
    print(f"Supermicro: {gpt}\nDell: {dell}\nLenovo: {lenovo}")
    print(f"compute over rated: Supermicro {gpt['compute'] / RATED_H100_W:.3f}, not fitted: Lenovo {lenovo['busy'] / RATED_B200_W:.3f}")
    print(f"not fitted: Dell, air-cooled {dell['busy'] / RATED_H100_W:.3f}")
    return {
        "node": {
            "source": f"{SMC}: the plateau of the folded step over 10.2 kW of DGX H100 (fact-061), and over the 99th percentile; idle: {OTHERS}",
            "date": "2025-06",
            "how": "measured",
            "busy_fraction_of_datasheet": round(gpt["compute"] / RATED_H100_W, 4),
            "busy_fraction_of_measured": round(gpt["compute"] / gpt["full"], 4),
            "idle_fraction_of_busy": round(idle, 4),
        },
        "utilisation": {
            "source": f"{SMC}, folded over the step of {gpt['period_s']:.2f} s; waiting: {OTHERS}",
            "date": "2025-06",
            "how": "measured",
            "compute": 1.0,
            "communication": round(share(gpt["communication"]), 4),
            "evaluation": round(share(gpt["evaluation"]), 4),
            "waiting": round(float(waiting), 4),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--traces", type=Path, required=True)
    found = fit(parser.parse_args().traces / "mlperf_power")
    data = tomllib.loads(TARGET.read_text()) | found | {"date": datetime.now(UTC).strftime("%Y-%m-%d")}
    TARGET.write_text(tomli_w.dumps(data))
    print(tomli_w.dumps(found))


if __name__ == "__main__":
    main()
