"""How fast the planner estimates: layouts a second, and the whole search for three jobs.

    .venv/bin/python benchmarks/plan_speed.py

Writes benchmarks/results/plan_speed.json.
"""

from __future__ import annotations

import time
from typing import Any

from common import record, spread

from colossus.plan.question import ask
from colossus.plan.search import search

JOBS: dict[str, dict[str, Any]] = {
    "llama-3.1-405b on 16,384 H100": {"job": "llama-3.1-405b", "machine": "llama-3-24k", "chips": 16384, "sequences": 2048},
    "kimi-k2 on 1,000,000 GB300": {"job": "kimi-k2", "machine": "colossus-2-1m", "sequences": 65536},
    "llama-3-8b on 8 H100": {"job": "llama-3-8b", "machine": "dgx-h100", "sequences": 128},
}
ROUNDS = 7


def main() -> None:
    found = {}
    for name, options in JOBS.items():
        question = ask(**options).question
        times = []
        for _ in range(ROUNDS + 1):
            begin = time.perf_counter()
            candidates = search(question)
            times.append(time.perf_counter() - begin)
        median_s = spread(times[1:])["median"]
        found[name] = {
            "num_layouts": len(candidates),
            "search_s": spread(times[1:]),
            "layouts_per_s": len(candidates) / median_s,
            "s_per_layout": median_s / len(candidates),
        }
    print(record("plan_speed", found).read_text())


if __name__ == "__main__":
    main()
