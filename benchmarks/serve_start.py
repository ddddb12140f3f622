"""How long ``colossus serve smollm2`` takes from its start to its first answer, with compiled programs kept from a start before.

    python benchmarks/serve_start.py [--rounds 5]

Writes benchmarks/results/serve_start.json.
"""

from __future__ import annotations

import argparse
from typing import Any

from common import record, spread
from serve_peers import OURS
from serving import Served, ours_command


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    figures: dict[str, Any] = {}
    for kind, (weights, cache) in OURS.items():
        first_s, *warm_s = [start_s("--weights", weights, "--cache", cache) for _ in range(a.rounds + 1)]
        figures[kind] = {"first_s": first_s, "warm_s": spread(warm_s)}
        print(f"smollm2 {kind}: first start {first_s:.1f} s, then {figures[kind]['warm_s']['median']:.1f} s")
    print(record("serve_start", {"model": "smollm2", "weights": figures}))


def start_s(*options: str) -> float:
    server = Served("colossus", lambda port: ours_command("smollm2", port, *options))
    server.child.end()
    return server.start_s


if __name__ == "__main__":
    main()
