"""What a simulation costs by size: 90 days of one job on 1,000 to 1,000,000 GB200 with every incident, and 1,000 replicas of the Llama 3 run.

    python benchmarks/twin_scale.py        # a few minutes; each size in a process of its own, on one core

Time and peak memory are of the whole process (imports, the machine, the course and the report's data), and of simulate() alone. The job takes 98 % of
the chips; the rest are spares. Faults: llama-3-full at the machine's size. Cost should be linear in incidents: exponent and seconds an incident are fitted.

Writes benchmarks/results/twin_scale.json and benchmarks/results/twin_scale.svg.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

from common import RESULTS, record, spread

SIZES = (1_008, 4_032, 10_080, 40_032, 100_080, 400_032, 1_000_080)
ROUNDS = 3
NUM_REPLICAS = 1_000
MODEL_PARAMETERS = 405e9
STEP_S = 6.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, help="simulates this one here and prints its figures")
    parser.add_argument("--llama", action="store_true", help="plays the replicas here and prints their figures")
    parser.add_argument("--faults", default="llama-3-full")
    given = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if given.size:
        print(json.dumps(one(given.size, given.faults)))
    elif given.llama:
        print(json.dumps(llama()))
    else:
        measure(given.faults)


def measure(faults: str) -> None:
    rows = [median_of([child("--size", str(size), "--faults", faults) for _ in range(ROUNDS)]) for size in SIZES]
    replicas = median_of([child("--llama") for _ in range(ROUNDS)])
    fit = exponent([row["incidents"] for row in rows[2:]], [row["simulate_cpu_s"]["median"] for row in rows[2:]])
    record("twin_scale", {"faults": faults, "sizes": rows, "llama_replicas": replicas, "exponent_of_incidents": fit})
    (RESULTS / "twin_scale.svg").write_text(svg(rows))
    print("| GB200 | incidents | faults | simulate | process | peak memory |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        took = [row[name]["median"] for name in ("simulate_cpu_s", "process_cpu_s", "peak_bytes")]
        print(f"| {row['num_chips']:,} | {row['incidents']:,} | {row['faults']:,} | {took[0]:.2f} s | {took[1]:.2f} s | {took[2] / 1e6:.0f} MB |")
    print(f"time goes as incidents ^ {fit:.2f}")
    print(f"{NUM_REPLICAS:,} replicas of Llama 3: {replicas['simulate_cpu_s']['median']:.1f} s, {replicas['peak_bytes']['median'] / 1e6:.0f} MB")


def one(num_chips: int, faults: str) -> dict[str, Any]:
    from colossus.catalog.machines import load_machine
    from colossus.catalog.scenarios import load_scenario
    from colossus.twin import Workload, simulate

    machine = load_machine(f"gb200-nvl72*{num_chips}")
    job_chips = int(num_chips * 0.98) // 72 * 72
    job = Workload(
        name="405B",
        chip="gb200",
        num_job_chips=job_chips,
        num_chips_per_replica=72,
        layout="",
        step_s=STEP_S,
        parts_s={"compute": STEP_S},
        tokens_per_step=16_777_216,
        num_steps=10**9,
        num_parameters=MODEL_PARAMETERS,
    )
    scenario = load_scenario("default", (f'faults="{faults}"',))
    begin = time.process_time()
    simulated = simulate(job, machine, scenario)
    took_s = time.process_time() - begin
    simulated.to_json()
    told = simulated.first
    return usage(took_s) | {
        "num_chips": num_chips,
        "incidents": told.num_interruptions,
        "faults": sum(told.faults.values()),
        "goodput_fraction": told.goodput_fraction,
    }


def llama() -> dict[str, Any]:
    from twin_truth import LLAMA

    from colossus.catalog.machines import load_machine
    from colossus.catalog.scenarios import load_scenario
    from colossus.twin import simulate

    begin = time.process_time()
    simulated = simulate(LLAMA, load_machine("llama-3-24k"), load_scenario("default", ('horizon_s="54 d"',)), num_replicas=NUM_REPLICAS)
    took_s = time.process_time() - begin
    return usage(took_s) | {"replicas": NUM_REPLICAS, "incidents": sum(tally.num_interruptions for tally in simulated.tallies)}


def usage(simulate_s: float) -> dict[str, Any]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"simulate_cpu_s": simulate_s, "process_cpu_s": used.ru_utime + used.ru_stime, "peak_bytes": used.ru_maxrss * 1024}


def child(*arguments: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True).stdout)
    return told


def median_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Times and memory with their spread; the rest is the same in all runs, or the twin's seeds would not hold."""
    measured = ("simulate_cpu_s", "process_cpu_s", "peak_bytes")
    rest = [{name: value for name, value in run.items() if name not in measured} for run in runs]
    assert all(each == rest[0] for each in rest), "equal seeds gave different simulations"
    return rest[0] | {name: spread([run[name] for run in runs]) for name in measured}


def exponent(sizes: list[float], times_s: list[float]) -> float:
    import numpy as np

    return float(np.polyfit(np.log(sizes), np.log(times_s), 1)[0])


def svg(rows: list[dict[str, Any]]) -> str:
    """CPU time of simulate() against incidents, both axes logarithmic, with a line of slope one."""
    from math import log10

    points = [(row["incidents"], row["simulate_cpu_s"]["median"], row["num_chips"]) for row in rows]
    low_x, high_x = log10(points[0][0]) - 0.2, log10(points[-1][0]) + 0.4
    low_y, high_y = log10(min(point[1] for point in points)) - 0.3, log10(max(point[1] for point in points)) + 0.4

    def at(incidents: float, seconds: float) -> tuple[float, float]:
        x = 70 + 540 * (log10(incidents) - low_x) / (high_x - low_x)
        return x, 330 - 290 * (log10(seconds) - low_y) / (high_y - low_y)

    dots = []
    for incidents, seconds, chips in points:
        x, y = at(incidents, seconds)
        dots.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#1668a8"/><text x="{x + 6:.1f}" y="{y + 14:.1f}">{chips:,}</text>')
    middle_x, middle_s = points[len(points) // 2][:2]
    begin, end = (at(10**power, middle_s * 10**power / middle_x) for power in (low_x, high_x))
    ticks = []
    for power in range(int(low_x) + 1, int(high_x) + 1):
        x, _ = at(10**power, 1.0)
        ticks.append(f'<text x="{x:.1f}" y="350" text-anchor="middle">{10**power:,}</text><line x1="{x:.1f}" y1="40" x2="{x:.1f}" y2="330" stroke="#ddd"/>')
    for power in range(-3, 3):
        if low_y < power < high_y:
            _, y = at(points[0][0], 10.0**power)
            ticks.append(
                f'<text x="62" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g} s</text><line x1="70" y1="{y:.1f}" x2="610" y2="{y:.1f}" stroke="#ddd"/>'
            )
    head = '<svg xmlns="http://www.w3.org/2000/svg" width="660" height="390" font-family="sans-serif" font-size="12">'
    title = '<rect width="660" height="390" fill="white"/><text x="70" y="24" font-size="14">90 days of one job, every incident: CPU time by incidents</text>'
    clip = '<clipPath id="plot"><rect x="70" y="40" width="540" height="290"/></clipPath>'
    line = (
        f'{clip}<line clip-path="url(#plot)" x1="{begin[0]:.1f}" y1="{begin[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" stroke="#999" stroke-dasharray="4 4"/>'
    )
    axis = '<text x="340" y="375" text-anchor="middle">interruptions of the job (beside each point: GB200; dashed: linear)</text>'
    return "\n".join([head, title, *ticks, line, *dots, axis, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
