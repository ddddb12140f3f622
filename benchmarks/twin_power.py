"""Power against what was measured and published: rows for the truth table, and benchmarks/results/twin_power.json.

.venv/bin/python benchmarks/twin_power.py
"""

from __future__ import annotations

from typing import Any

from common import record

from colossus.catalog.machines import load_machine
from colossus.catalog.scenarios import load_scenario
from colossus.catalog.sites import load_site
from colossus.estimate.power import StepShares, chip_watts, network_w, node_watts
from colossus.plan.answer import answer
from colossus.plan.question import ask
from colossus.spec.answer import Answer, Choice
from colossus.spec.simulation import NodeState
from colossus.twin import Workload
from colossus.twin.build_out import play
from colossus.twin.power import PowerModel

_KWH_J = 3.6e6
# MLPerf v4.0, Supermicro's GPT-3 on 64 nodes: the run's length, and of it 24 evaluations of 13.0 s (its events). Its job: batches of 2,048 x 2,048 in float8.
RUN_S, EVALUATION_S = 3412.7, 24 * 13.0
GPT_3 = {"job": "gpt-3-175b", "machine": "dgx-h100*512", "sequences": 2048, "sequence_tokens": 2048, "precision": "float8", "program": "nemo-2024"}
OLMO = {
    "OLMo 3 7B": ({"job": "llama-2-7b", "machine": "h100-sxm*1024", "sequences": 1024, "sequence_tokens": 8192}, 0.62, "fact-251, fact-252"),
    "OLMo 3 32B": ({"job": "qwen3-32b", "machine": "h100-sxm*1024", "sequences": 1024, "sequence_tokens": 8192}, 0.65, "fact-253, fact-254"),
}
_LOGS = "watts by phase on this run's 2 s samples; time by phase is the planner's; the mean is not fitted"


def row(what: str, published: float, simulated: float, unit: str, tolerance: float, *, fitted_on: str, source: str) -> dict[str, Any]:
    """One line of the truth table, with the keys of twin_truth.py; ``tolerance`` is a fraction of ``published``."""
    ratio = simulated / published
    return {
        "name": "power", "what": what, "published": published, "bound": "equal", "unit": unit, "tolerance": tolerance, "fitted_on": fitted_on,
        "checked_on": source, "simulated": simulated, "standard_error": 0.0, "num_interruptions": 0.0, "ratio": ratio, "passes": abs(ratio - 1) <= tolerance,
        "took_s": 0.0,
    }  # fmt: skip


def planned(job: str, machine: str, tokens: float = 1.2e9, **options: Any) -> Choice:
    asked = ask(job, machine, tokens=tokens, **options)
    found = answer(asked.question, name=asked.model, total_tokens=asked.total_tokens, top=1)
    assert isinstance(found, Answer), found
    return found.best


def gpt_3_rows() -> list[dict[str, Any]]:
    """64 nodes: as the twin bills them, and with the run's evaluations, which the twin does not simulate."""
    machine, best = load_machine(GPT_3["machine"]), planned(**GPT_3)
    steps_w = nodes_w(best)
    watts = node_watts(machine.node)
    assert watts is not None
    evaluated = EVALUATION_S / RUN_S
    mean_w = (1 - evaluated) * steps_w + evaluated * watts.evaluation_w * machine.num_nodes
    return [
        row("GPT-3 175B on 512 H100, 64 nodes, mean", 438.2, mean_w / 1e3, "kW", 0.05, fitted_on=_LOGS, source="fact-069"),
        row("the same, steps alone", 438.2, steps_w / 1e3, "kW", 0.05, fitted_on=_LOGS, source="fact-069"),
        row("GPT-3 175B on 512 H100, energy of the run", 415.2, mean_w * RUN_S / _KWH_J, "kWh", 0.05, fitted_on=_LOGS, source="fact-070"),
    ]


def nodes_w(best: Choice) -> float:
    """Of all nodes, by the bill of a twin that steps all the time."""
    machine = load_machine(GPT_3["machine"])
    workload = Workload(
        name="gpt-3", chip="h100-sxm", num_job_chips=512, num_chips_per_replica=32, layout="", step_s=best.step_s, parts_s=best.parts_s,
        tokens_per_step=2048 * 2048, num_steps=300, num_parameters=175e9,
    )  # fmt: skip
    model = PowerModel.of(machine, workload, load_scenario())
    assert model is not None
    bill = model.bill(wall_s=RUN_S, tokens=1e9, goodput_s=RUN_S, node_s={NodeState.WORKING: 64 * RUN_S}, stepping_s=RUN_S, saving_s=0.0)
    return bill.it_j / RUN_S - network_w(machine)


def other_nodes_rows() -> list[dict[str, Any]]:
    """Nodes of other makers and another job, on whose mean nothing was fitted."""
    alone = planned(job="llama-2-70b", machine="dgx-h100*8", sequences=8, sequence_tokens=8192, precision="float8", program="nemo-2024")
    h100, b200 = node_watts(load_machine("dgx-h100*8").node), node_watts(load_machine("dgx-b200*8").node)
    assert h100 is not None and b200 is not None
    lora, busy = "Llama 2 70B on one node of 8 H100 (published: LoRA), mean", "8 B200 of Lenovo, busy in training"
    alone_w = StepShares.of(alone.parts_s).mean_w(h100)
    return [
        row(lora, 7150, alone_w, "W", 0.05, fitted_on="GPT-3's run on 64 nodes", source="fact-074"),
        row(busy, 10044, b200.compute_w, "W", 0.05, fitted_on="8 H100 of Supermicro, by rated power", source="fact-079"),
    ]


def olmo_rows() -> list[dict[str, Any]]:
    """Energy of chips alone by chip-hour, as their sensors count it; planned as models of like size. Their hours hold restarts and network trouble, ours none."""
    fitted_on = "chips at large products (fact-235); utilisation of phases on Supermicro's nodes"
    return [
        row(f"{name}, energy of an H100-hour", published, chip_hour_kwh(options), "kWh", 0.1, fitted_on=fitted_on, source=source)
        for name, (options, published, source) in OLMO.items()
    ]


def chip_hour_kwh(options: dict[str, Any]) -> float:
    watts = chip_watts(load_machine(options["machine"]).node.chip)
    assert watts is not None
    return StepShares.of(planned(**options).parts_s).mean_w(watts) * 3600 / _KWH_J


def site_rows() -> list[dict[str, Any]]:
    """Facility power by date: capacity, not draw."""
    fitted_on = "rated power of nodes; the design day's PUE of 1.30 was chosen knowing 45 MW"
    points = [(name, one) for name in ("colossus-1", "colossus-2") for one in play(load_site(name), load_scenario()).compared if one.published_w]
    return [
        row(f"{name}, facility power on {one.date}", one.published / 1e6, one.ours / 1e6, "MW", 0.1, fitted_on=fitted_on, source=one.source)
        for name, one in points
    ]


def rows() -> list[dict[str, Any]]:
    """All of them, as twin_truth.py takes them."""
    return [*gpt_3_rows(), *other_nodes_rows(), *olmo_rows(), *site_rows()]


def main() -> None:
    found = rows()
    record("twin_power", {"rows": found})
    for one in found:
        mark = "" if one["passes"] else "MISSES"
        print(f"{one['what']:60} {one['published']:9.4g} {one['simulated']:9.4g} {one['unit']:4} {one['ratio']:.3f} {mark}")


if __name__ == "__main__":
    main()
