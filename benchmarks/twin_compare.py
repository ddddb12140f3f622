"""A real run with a kill beside its twin: calibrated on one run, checked on others. Writes results/twin_compare.json.

    flock -x /tmp/cpu.lock python benchmarks/twin_compare.py --runs DIR [--num-checks 2]

Each run is `colossus train recipes/shakespeare.toml --workers 2 --kill 1@100`, about two minutes on two cores. The first one fills caches and counts for
nothing, the second calibrates, each of the others is compared with the twin as it was calibrated on the second. ``load``: processes that wanted a core
over the run's last five minutes; two are the run's own, and what is above the number of cores makes steps longer than the twin can know.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RECIPE = HERE.parent / "recipes" / "shakespeare.toml"
DEMO = ["--workers", "2", "--kill", "1@100"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--num-checks", type=int, default=2)
    asked = parser.parse_args()
    colossus("machine", "--measure", "--runs", asked.runs)
    folders, loads = [], []
    for _ in range(2 + asked.num_checks):
        report = json.loads(colossus("train", RECIPE, *DEMO, "--runs", asked.runs, "--json"))
        folders.append(Path(report["run"]))
        loads.append(os.getloadavg()[1])
        print(f"{report['run']}: {report['wall_s']:.1f} s, median step {report['median_step_s']:.3f} s, load {loads[-1]:.1f}", file=sys.stderr)
    told = json.loads(colossus("calibrate", folders[1], "--runs", asked.runs, "--json"))
    result = {
        "machine": told["times"]["machine"],
        "date": told["times"]["date"],
        "command": f"colossus train recipes/shakespeare.toml {' '.join(DEMO)}",
        "calibrated_on": compared(folders[1]) | {"load": loads[1]},
        "checked_on": [compared(folder) | {"load": load} for folder, load in zip(folders[2:], loads[2:], strict=True)],
    }
    (HERE / "results" / "twin_compare.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def compared(folder: Path) -> dict[str, Any]:
    """Wall times, kinds that only one of both has, and what is off by most."""
    told = json.loads(colossus("compare", folder, "--json"))
    figures = {row["name"]: row for row in told["figures"]}
    counts = [row for row in told["kinds"] if row["unit"] == "count"]
    return {
        "run": folder.name,
        "measured_wall_s": figures["wall time"]["first"],
        "simulated_wall_s": figures["wall time"]["second"],
        "off_fraction": figures["wall time"]["ratio"] - 1,
        "measured_step_s": figures["median step"]["first"],
        "simulated_step_s": figures["median step"]["second"],
        "num_kinds": len(counts),
        "kinds_of_one_alone": [row["name"] for row in counts if not row["first"] or not row["second"]],
        "off": told["recalibrate"],
    }


def colossus(*arguments: Any) -> str:
    command = [sys.executable, "-m", "colossus.cli", *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, stderr=subprocess.DEVNULL).stdout


if __name__ == "__main__":
    main()
