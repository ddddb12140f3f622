"""Plans for named machines beside what was published of such jobs: every figure, its ratio, and a comment for a reader's eye.

    .venv/bin/python benchmarks/named_machines.py

Reads benchmarks/named_machines.toml; writes benchmarks/results/named_machines.json and docs/machines-by-eye.md.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from common import ROOT, record

from colossus.cli.machines import site_power_w
from colossus.cli.planning import _layout
from colossus.estimate.flop import train_flop
from colossus.plan.answer import _cut_of, answer, choice_at
from colossus.plan.explain import filled
from colossus.plan.question import Asked, ask
from colossus.plan.search import estimate
from colossus.report.plan_words import rows
from colossus.spec.answer import Answer, Choice

PAGE = ROOT / "docs" / "machines-by-eye.md"
HEAD = """# Named machines, looked at by eye

Written by `benchmarks/named_machines.py` from `benchmarks/named_machines.toml`; rerun it after every fit. Planned figures are those of
`colossus plan`: the best layout that was found, without failures, with the coefficients in `catalog/measured`. "Their layout": the
layout that was published, estimated as it is. MFU here counts attention as causal; where the source counts it as full, the planned
MFU is restated so. A ratio is planned over published.
"""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A case as it was planned: the best layout, and theirs where it is known."""

    asked: Asked
    found: Answer
    theirs: Choice | None

    @property
    def best(self) -> Choice:
        return self.found.best

    @property
    def chip_hours(self) -> float:
        return self.found.num_chips * self.best.time_to_train_s / 3600

    @property
    def it_w(self) -> float:
        """While training, of nodes alone."""
        machine = self.asked.question.machine
        network_w = machine.site.network_w_per_chip.value if machine.site.network_w_per_chip else 0.0
        return self.best.power_w / machine.site.pue.value - network_w * self.found.num_chips

    def counted(self, choice: Choice, source: str) -> float:
        """MFU in per cent, with attention counted as the source does."""
        question = self.asked.question
        step = train_flop(question.card, question.num_sequences, question.sequence_tokens)
        return 100 * choice.mfu_fraction * (full_flop(question) / step.model_flop if "attention as full" in source else 1.0)


def full_flop(question: Any) -> float:
    """Model FLOP of a step with attention over the whole square: as much again as causal attention."""
    card, tokens = question.card, question.num_sequences * question.sequence_tokens
    causal = 6 * tokens * question.sequence_tokens * card.num_layers * card.num_heads * card.head_dim
    return train_flop(card, question.num_sequences, question.sequence_tokens).model_flop + causal


FIGURES: Mapping[str, Callable[[Planned, str], float]] = {
    "TFLOP/s a chip": lambda plan, _: plan.best.model_flop_per_s_per_chip / 1e12,
    "TFLOP/s a chip, their layout": lambda plan, _: plan.theirs.model_flop_per_s_per_chip / 1e12,
    "MFU, %": lambda plan, source: plan.counted(plan.best, source),
    "MFU, their layout, %": lambda plan, source: plan.counted(plan.theirs, source),
    "step, s": lambda plan, _: plan.best.step_s,
    "step, their layout, s": lambda plan, _: plan.theirs.step_s,
    "days": lambda plan, _: plan.best.time_to_train_s / 86400,
    "M chip-hours": lambda plan, _: plan.chip_hours / 1e6,
    "M$ of rent": lambda plan, _: plan.best.cost_usd / 1e6,
    "G$ to buy the machine": lambda plan, _: plan.asked.question.machine.site.purchase_usd_per_chip.value * plan.asked.question.machine.num_chips / 1e9,
    "site at full load, MW": lambda plan, _: site_power_w(plan.asked.question.machine) / 1e6,
    "nodes at full load, kW": lambda plan, _: plan.asked.question.machine.num_nodes * plan.asked.question.machine.node.power_w.value / 1e3,
    "nodes while training, kW": lambda plan, _: plan.it_w / 1e3,
    "kWh a chip-hour": lambda plan, _: plan.best.energy_j / 3.6e6 / plan.chip_hours,
}


def main() -> None:
    cases = tomllib.loads((ROOT / "benchmarks" / "named_machines.toml").read_text())["cases"]
    found = [case | worked_out(case) for case in cases]
    record("named_machines", {"cases": found})
    PAGE.write_text(page(found))
    print(PAGE.read_text())


def worked_out(case: Mapping[str, Any]) -> dict[str, Any]:
    """What is planned, in words, and every published figure with its planned one."""
    plan = planned(case)
    compared = [given | {"planned": FIGURES[given["figure"]](plan, given["source"])} for given in case["published"]]
    return {
        "machine_name": plan.found.machine,
        "program": plan.found.program,
        "num_chips": plan.found.num_chips,
        "words": dict(rows(plan.found)),
        "parts_s": plan.best.parts_s,
        "notes": plan.found.notes,
        "published": [one | {"ratio": one["planned"] / one["value"]} for one in compared],
    }


def planned(case: Mapping[str, Any]) -> Planned:
    options = dict(case["options"])
    name = options.pop("job")
    local = ROOT / name
    asked = ask(str(local) if local.is_dir() else name, case["machine"], **options)
    found = answer(asked.question, name=asked.model, total_tokens=asked.total_tokens, top=1)
    assert isinstance(found, Answer), f"{case['job']}: {found}"
    return Planned(asked=asked, found=found, theirs=as_published(asked, case["layout"]) if "layout" in case else None)


def as_published(asked: Asked, text: str) -> Choice:
    question = asked.question
    candidates = estimate(question, _cut_of(question, filled(question, _layout(text))))
    return choice_at(question, candidates, 0, asked.total_tokens)


def page(found: list[dict[str, Any]]) -> str:
    head = "| machine | job | figure | planned | published | ratio | comment |\n|---|---|---|---|---|---|---|\n"
    lines = [
        f"| {case['machine']} | {case['job']} | {one['figure']} | {one['planned']:,.4g} | {one['value']:,.4g} | {one['ratio']:.2f} | {one['source']}. {told} |"
        for case in found
        for one, told in zip(case["published"], [case["comment"]] + [""] * len(case["published"]), strict=False)
    ]
    return f"{HEAD}\n## Against what was published\n\n{head}" + "\n".join(lines) + "\n\n## Every plan\n\n" + "\n".join(map(section, found))


def section(case: dict[str, Any]) -> str:
    words = case["words"]
    kept = [f"{name} {words[name]}" for name in ("step", "MFU", "memory", "time to train", "power", "energy", "rent", "to buy") if name in words]
    shares = sorted(case["parts_s"].items(), key=lambda item: -item[1])[:4]
    whole = sum(case["parts_s"].values())
    told = ", ".join(f"{name} {seconds / whole:.0%}" for name, seconds in shares)
    return (
        f"**{case['machine']}: {case['job']}** ({case['num_chips']:,} chips, {case['program']})  \n{words['layout']}; {'; '.join(kept)}.  \n"
        f"Of the step: {told}.\n"
    )


if __name__ == "__main__":
    main()
