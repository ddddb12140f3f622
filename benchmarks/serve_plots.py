"""Draws docs/img/serve-peers-MODEL-*.svg from benchmarks/results/serve_peers_MODEL.json: engines behind HTTP, beside each other.

python benchmarks/serve_plots.py
"""

from __future__ import annotations

import json
from typing import Any

from common import ROOT

from colossus.report.load_plots import side_by_side, svgs
from colossus.report.load_words import number
from colossus.report.words import duration

FIGURES = {
    "throughput": ("output_tokens_per_s", "Output tokens a second", "output tokens/s", number),
    "ttft-p99": ("ttft_p99_s", "Time to the first token, p99", "TTFT p99", duration),
    "itl-p99": ("itl_p99_s", "Time between two pieces of an answer, p99", "ITL p99", duration),
}


def main() -> None:
    for path in sorted((ROOT / "benchmarks" / "results").glob("serve_peers_*.json")):
        told = json.loads(path.read_text())
        if "http" not in told:
            continue
        charts = [
            (f"serve-peers-{told['model']}-{name}", side_by_side(f"{told['model']}: {title}", y_name, lines(told["http"], figure), tell))
            for name, (figure, title, y_name, tell) in FIGURES.items()
        ]
        for name, drawn in svgs(charts):
            file = ROOT / "docs" / "img" / f"{name}.svg"
            file.write_text(drawn)
            print(file)


def lines(engines: dict[str, Any], figure: str) -> dict[str, list[tuple[float, float]]]:
    return {name: [(float(load), told[figure]["median"]) for load, told in loads.items() if figure in told] for name, loads in engines.items()}


if __name__ == "__main__":
    main()
