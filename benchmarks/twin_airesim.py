"""The twin beside AIReSim (K. Pattabiraman and others; SimPy), one job and one set of assumptions, in turns on one core: effective time and CPU time.

    git clone https://github.com/karthikp-ubc/airesim /tmp/airesim      # 7b139c7
    python -m venv /tmp/airesim/venv && /tmp/airesim/venv/bin/pip install simpy==4.1.2
    python benchmarks/twin_airesim.py --airesim /tmp/airesim --python /tmp/airesim/venv/bin/python

Its default job: 256 days of work on 4,096 of 4,360 servers, of which 15 % are bad. Ours is scenario and fault profile ``airesim``, which also tell what is left
out of it. Its 512-server variant: 576 servers to work on and 25 spares. CPU time is that of the simulation alone, imports apart, of both;
ours a replica's share of a call that plays 30.

Writes benchmarks/results/twin_airesim.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from common import record, spread

from colossus.catalog.machines import load_machine
from colossus.catalog.scenarios import load_scenario
from colossus.spec.machine import Machine
from colossus.twin import Workload, simulate

WORK_S = 256 * 86400
# AIReSim's own default is 30 replications, one after the other; ours plays as many in one call, the first of them with its course over time.
REPLICAS = 30
# name: (servers of the job, all servers, AIReSim's parameters, seeds)
JOBS: dict[str, tuple[int, int, dict[str, int], int]] = {
    "default, 4,096 servers": (4096, 4360, {}, 4),
    "512 servers": (512, 601, {"job_size": 512, "working_pool_size": 576, "spare_pool_size": 25}, 12),
}
CHILD = """
import json, sys, time
from airesim.params import Params
from airesim.simulator import Simulator
for seed in json.loads(sys.argv[2]):
    begin = time.process_time()
    told = Simulator(Params(**json.loads(sys.argv[1])), seed=seed).run()
    print(json.dumps([told.total_compute_time / told.total_training_time, told.total_failures, time.process_time() - begin]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--airesim", type=Path, required=True, help="a clone of github.com/karthikp-ubc/airesim")
    parser.add_argument("--python", default="python", help="an interpreter that has simpy")
    given = parser.parse_args()
    if not (given.airesim / "airesim" / "simulator.py").exists():
        raise SystemExit(f"{given.airesim} holds no AIReSim: git clone https://github.com/karthikp-ubc/airesim {given.airesim}")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    figures = {name: compared(given, *job) for name, job in JOBS.items()}
    record("twin_airesim", {"jobs": figures})
    for name, told in figures.items():
        theirs, ours = told["airesim"], told["colossus"]
        print(
            f"{name}: AIReSim {theirs['effective_fraction']:.4f} +- {theirs['standard_error']:.4f}, {theirs['failures']:,.0f} failures, {theirs['cpu_s']['median']:.3f} s"
        )
        print(
            f"{'':>{len(name)}}  Colossus {ours['effective_fraction']:.4f} +- {ours['standard_error']:.4f}, {ours['failures']:,.0f} failures, {ours['cpu_s']['median']:.4f} s"
        )
        print(f"{'':>{len(name)}}  {told['standard_errors_apart']:.1f} standard errors apart, {told['times_as_fast']:.0f} times as fast")


def compared(given: argparse.Namespace, num_job: int, num_servers: int, parameters: dict[str, int], seeds: int) -> dict[str, Any]:
    """Seed by seed in turns, so that both meet the same machine."""
    job, machine = workload(num_job), load_machine(f"hgx-h100*{8 * num_servers}")
    rows: dict[str, list[tuple[float, float, float]]] = {"airesim": [], "colossus": []}
    ours(job, machine, 0)  # modules and caches
    for seed in range(1, seeds + 1):
        rows["airesim"].append(theirs(given, parameters, seed))
        rows["colossus"] += ours(job, machine, REPLICAS * seed)
    told = {name: summary(found) for name, found in rows.items()}
    apart = abs(told["airesim"]["effective_fraction"] - told["colossus"]["effective_fraction"])
    error = sqrt(sum(each["standard_error"] ** 2 for each in told.values()))
    faster = told["airesim"]["cpu_s"]["median"] / told["colossus"]["cpu_s"]["median"]
    return told | {"standard_errors_apart": apart / error, "times_as_fast": faster}


def workload(num_servers: int) -> Workload:
    """Steps of 1 s, so that the one that a failure cuts short is nothing."""
    return Workload(
        name="AIReSim's job",
        chip="",
        num_job_chips=8 * num_servers,
        num_chips_per_replica=8,
        layout="",
        step_s=1.0,
        parts_s={"compute": 1.0},
        tokens_per_step=1,
        num_steps=WORK_S,
        num_parameters=1.0,
    )


def ours(job: Workload, machine: Machine, seed: int) -> list[tuple[float, float, float]]:
    """Replicas as one call plays them; each is given its share of the time."""
    scenario = load_scenario("airesim", (f"seed={seed}",))
    begin = time.process_time()
    simulated = simulate(job, machine, scenario, num_replicas=REPLICAS, num_incidents=0)
    took_s = (time.process_time() - begin) / REPLICAS
    assert all(tally.done for tally in simulated.tallies), "the horizon is too short"
    return [(tally.goodput_fraction, tally.num_interruptions, took_s) for tally in simulated.tallies]


def theirs(given: argparse.Namespace, parameters: dict[str, int], seed: int) -> tuple[float, float, float]:
    command = [given.python, "-c", CHILD, json.dumps(parameters), json.dumps([seed])]
    told = subprocess.run(command, cwd=given.airesim, capture_output=True, text=True, check=True).stdout
    fraction, failures, cpu_s = json.loads(told)
    return fraction, failures, cpu_s


def summary(rows: list[tuple[float, float, float]]) -> dict[str, Any]:
    fractions, failures, cpu_s = zip(*rows, strict=True)
    return {
        "effective_fraction": mean(fractions),
        "standard_error": stdev(fractions) / sqrt(len(fractions)),
        "failures": mean(failures),
        "cpu_s": spread(cpu_s),
    }


if __name__ == "__main__":
    main()
