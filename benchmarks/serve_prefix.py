"""Time to the first token with a shared prefix of 1,000 tokens: found in the prefix cache, and not.

    python benchmarks/serve_prefix.py [--model llama125m] [--rounds 10] [--serve-option=--weights=int8 ...]

Each round has a prefix of its own: its first request computes it (a miss), the next ones find it (hits), each with 32 tokens of its own behind it.
One client, our server, our load generator. Writes benchmarks/results/serve_prefix.json.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from common import ROOT, record, spread
from serve_models import SHAPES, make
from serving import Served, ours_command

from colossus.serve.load.run import Load, Order, run
from colossus.serve.load.sample import Sample
from colossus.serve.load.workload import Lengths, make_asks

PREFIX, OWN, OUTPUT = 1000, 32, 4


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="llama125m", choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--hits", type=int, default=3, help="requests after the first of each round")
    parser.add_argument("--serve-option", action="append", default=[])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "serve_models")
    a = parser.parse_args()
    home = make(SHAPES[a.model], a.folder)
    server = Served("colossus", lambda port: ours_command(home, port, *a.serve_option))
    try:
        misses, hits, cached = list[float](), list[float](), list[int]()
        for number in range(a.rounds + 1):
            first, *others = burst(server.url, 1 + a.hits, seed=number)
            if number:  # the first round warms up
                misses.append(first.ttft_s)
                hits += [sample.ttft_s for sample in others]
                cached += [sample.num_cached_tokens for sample in others]
                assert first.num_cached_tokens == 0, first
    finally:
        server.child.end()
    ratio = median(misses) / median(hits)
    figures = {"model": a.model, "prefix_tokens": PREFIX, "own_tokens": OWN, "serve_options": a.serve_option}
    path = record("serve_prefix", figures | {"miss_ttft_s": spread(misses), "hit_ttft_s": spread(hits), "cached_tokens": spread(cached), "times_lower": ratio})
    print(f"{a.model}: TTFT {median(misses) * 1e3:.1f} ms without, {median(hits) * 1e3:.1f} ms with the prefix cached: {ratio:.1f} times lower; {path}")


def burst(url: str, num_requests: int, seed: int) -> list[Sample]:
    """One after another, in order."""
    asks = make_asks(Lengths(prompt_tokens=PREFIX + OWN, output_tokens=OUTPUT, shared_tokens=PREFIX), num_requests, 0)
    kept: list[Sample] = []

    def keep(label: str, samples: Sequence[Sample]) -> None:
        kept.extend(samples)

    order = Order(url=url, loads=[Load(label="prefix", asks=asks, num_clients=1)], workload="", seed=seed, num_warmup_requests=0)
    asyncio.run(run(order, lambda label, ended, total: None, keep))
    assert all(sample.error is None for sample in kept), kept
    return sorted(kept, key=lambda sample: sample.ask.number)


if __name__ == "__main__":
    main()
