"""What of the engine's own throughput survives the way through HTTP: bursts of 32 requests, in turns, the other one standing still.

    python benchmarks/serve_http.py [--models llama15m llama125m] [--concurrency 32] [--rounds 5]

Offline: ``peers/serve_ours.py``. HTTP: ``colossus serve`` with the same options, streamed to the client of ``colossus bench`` on the same cores.
Writes benchmarks/results/serve_http.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median
from typing import Any

from common import ROOT, record, spread
from serve_models import SHAPES, make
from serve_peers import OURS, PEERS
from serving import Offline, Served, ours_command

PROMPT, OUTPUT = 128, 128


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--precisions", nargs="+", default=list(OURS), choices=list(OURS))
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "serve_models")
    a = parser.parse_args()
    figures: dict[str, Any] = {}
    for name in a.models:
        for kind in a.precisions:
            figures[f"{name} {kind}"] = told = compare(make(SHAPES[name], a.folder), kind, a)
            rates = [told[way]["median"] for way in ("offline_tokens_per_s", "http_tokens_per_s")]
            print(f"{name} {kind}: {rates[0]:.0f} tokens/s offline, {rates[1]:.0f} by HTTP: {told['survives_fraction']:.1%}")
    print(record("serve_http", {"concurrency": a.concurrency, "prompt_tokens": PROMPT, "output_tokens": OUTPUT, "models": figures}))


def compare(model: Path, kind: str, a: argparse.Namespace) -> dict[str, Any]:
    weights, cache = OURS[kind]
    shared = ["--weights", weights, "--cache", cache, "--max-running", str(a.concurrency)]
    offline = Offline("engine", [sys.executable, str(PEERS / "serve_ours.py"), str(model), *shared])
    offline.child.pause()
    served = None
    try:
        served = Served("colossus", lambda port: ours_command(model, port, *shared, "--max-sequence-tokens", "512", "--no-prefix-caching"))
        rates, points = list[float](), list[Any]()
        for number in range(a.rounds + 1):
            rates.append(offline.play(a.concurrency, PROMPT, OUTPUT, number + 1))
            points.append(served.play(a.concurrency, PROMPT, OUTPUT, number + 1))
            assert not points[-1].errors, points[-1].errors
    finally:
        for engine in (offline, served):
            if engine is not None:
                engine.child.end()
    http = [point.output_tokens_per_s for point in points]
    return {
        "offline_tokens_per_s": spread(rates[1:]),  # the first round warms up
        "http_tokens_per_s": spread(http[1:]),
        "survives_fraction": median(http[1:]) / median(rates[1:]),
        "client_cpu_fraction": spread([point.client.cpu_fraction for point in points[1:]]),
    }


if __name__ == "__main__":
    main()
