"""Planning for a machine of the catalog: the question from options, the answer as tables, JSON or a page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from colossus.cli.common import paper, print_json, talk
from colossus.plan.answer import answer, explain, scaling
from colossus.plan.question import Asked
from colossus.plan.question import ask as ask_question
from colossus.plan.whatif import Swing, changed, parse_change, tornado
from colossus.report.plan_page import PART_WORDS
from colossus.spec.answer import Answer, Choice, PlannedLayout
from colossus.spec.errors import InfeasibleError, Problem, SpecError
from colossus.spec.plan import Infeasible
from colossus.spec.units import format_quantity

_NAMES = ("chips", "precision", "program", "sequences", "sequence_tokens", "tokens")


def ask(job: str, machine: str, assignments: tuple[str, ...], runs: Path, options: dict[str, Any]) -> Asked:
    own = runs / ".cache" / "coefficients.toml"  # as colossus calibrate writes it
    asked = ask_question(job, machine, assignments=assignments, coefficients=own if own.exists() else None, **{name: options[name] for name in _NAMES})
    changes = tuple(parse_change(text) for text in options["what_if"])
    return Asked(question=changed(asked.question, changes), model=asked.model, total_tokens=asked.total_tokens)


def show(asked: Asked, options: dict[str, Any], *, as_json: bool) -> None:
    """Answers and prints; what else was asked for (why, tornado, scaling, a page) beside it."""
    found = answer(asked.question, name=asked.model, total_tokens=asked.total_tokens, top=options["top"], objective=options["objective"])
    if isinstance(found, Infeasible):
        raise InfeasibleError(found.reason, hint=found.fit)
    question = replace(asked.question, num_chips=found.num_chips)  # cost and energy choose the chips
    why = explain(question, _layout(options["why"])) if options["why"] else None
    swings = tornado(question) if options["tornado"] or options["page"] else []
    scales = scaling(asked.question, asked.total_tokens) if options["scaling"] or options["page"] else []
    if options["page"]:
        _write_page(options["page"], found, swings, scales)
    if as_json:
        extra = {"why": why, "tornado": [vars(swing) for swing in swings], "scaling": [choice.to_data() for choice in scales]}
        print_json(found.to_data() | {name: value for name, value in extra.items() if value})
        return
    _print_answer(found)
    if why:
        paper().print(f"\n{options['why']}: {why}")
    if options["tornado"]:
        _print_tornado(found.best, swings)
    if options["scaling"]:
        _print_scaling(scales)


def _write_page(path: Path, found: Answer, swings: list[Swing], scales: list[Choice]) -> None:
    from colossus.report.plan_page import page
    from colossus.spec.run import write_atomic

    path.parent.mkdir(parents=True, exist_ok=True)
    bars = [(swing.figure, swing.low_s, swing.high_s) for swing in swings]
    write_atomic(path, page(found, tornado=bars, scaling=scales))
    talk().print(f"page: {path}")


def _layout(text: str) -> PlannedLayout:
    """``tp=8,pp=4`` as a layout."""
    data: dict[str, Any] = {}
    for pair in text.split(","):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            raise SpecError("--why", [Problem(path="--why", value=repr(text), rule="must look like tp=8,pp=4,dp=16")])
        data[name] = int(value) if value.isdecimal() else value
    return PlannedLayout.from_data(data, origin="--why")


def _print_answer(found: Answer) -> None:
    from rich.table import Table

    best = found.best
    console = paper()
    tokens = f"{found.num_sequences:,} x {found.sequence_tokens:,} tokens a step"
    console.print(
        f"{found.model} ({format_quantity(found.num_parameters, '').strip()} parameters) on {found.num_chips:,} chips of {found.machine}, {found.precision}; {tokens}"
    )
    console.print(f"{found.num_fitting:,} of {found.num_layouts:,} layouts fit\n")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for row in _rows(found, best):
        table.add_row(*row)
    console.print(table)
    console.print("\nwhere a step goes")
    console.print(_parts_table(best))
    for number, other in enumerate(found.choices[1:], 2):
        console.print(f"\n{number}. {other.layout.describe()}: {format_quantity(other.step_s, 's')} a step; {other.why_not_first}")
    for note in found.notes:
        console.print(f"note: {note}")


def _rows(found: Answer, best: Choice) -> list[tuple[str, str]]:
    rows = [
        ("layout", best.layout.describe()),
        (
            "step",
            f"{format_quantity(best.step_s, 's')}  ({format_quantity(best.lower_step_s, 's')} to {format_quantity(best.upper_step_s, 's')} holds 9 runs in 10)",
        ),
        ("throughput", f"{best.throughput_tokens_per_s:,.0f} tokens/s, {best.throughput_tokens_per_s / found.num_chips:,.0f} a chip"),
        ("MFU", f"{best.mfu_fraction:.1%}  {format_quantity(best.model_flop_per_s_per_chip, 'FLOP/s')} a chip"),
        ("memory", f"{format_quantity(best.memory_bytes_per_chip, 'B', binary=True)} a chip"),
        ("limited by", best.limited_by),
        ("time to train", f"{format_quantity(best.time_to_train_s, 's')} for {format_quantity(found.total_tokens, '').strip()} tokens, without failures"),
    ]
    if best.power_w is not None:
        rows.append(("power", f"{format_quantity(best.power_w, 'W')} at the site, mean"))
    if best.energy_j is not None:
        rows.append(("energy", f"{best.energy_j / 3.6e9:,.0f} MWh"))
    if best.cost_usd is not None:
        rows.append(("rent", f"${best.cost_usd:,.0f}"))
    if best.carbon_kg_co2e is not None:
        rows.append(("carbon", f"{best.carbon_kg_co2e / 1e3:,.0f} t CO2e"))
    return rows


def _parts_table(best: Choice) -> Any:
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, seconds in sorted(best.parts_s.items(), key=lambda item: -item[1]):
        if seconds > 0.0005 * best.step_s:
            table.add_row(f"  {PART_WORDS[name]}", format_quantity(seconds, "s"), f"{seconds / best.step_s:.1%}", "#" * round(40 * seconds / best.step_s))
    return table


def _print_tornado(best: Choice, swings: list[Swing]) -> None:
    from rich.table import Table

    table = Table("figure", "20 % less", "20 % more", box=None, padding=(0, 2, 0, 0), title="best step time with one figure changed", title_justify="left")
    for swing in swings:
        table.add_row(swing.figure, _change(swing.low_s, best.step_s), _change(swing.high_s, best.step_s))
    paper().print()
    paper().print(table)


def _change(step_s: float | None, base_s: float) -> str:
    return "does not fit" if step_s is None else f"{format_quantity(step_s, 's')}  {step_s / base_s - 1:+.1%}"


def _print_scaling(scales: list[Choice]) -> None:
    from rich.table import Table

    table = Table("chips", "step", "MFU", "time to train", "rent", "layout", box=None, padding=(0, 2, 0, 0))
    for choice in scales:
        layout = choice.layout
        chips = layout.pp * layout.dp * layout.cp * layout.tp
        rent = "" if choice.cost_usd is None else f"${choice.cost_usd:,.0f}"
        table.add_row(
            f"{chips:,}",
            format_quantity(choice.step_s, "s"),
            f"{choice.mfu_fraction:.1%}",
            format_quantity(choice.time_to_train_s, "s"),
            rent,
            layout.describe(),
        )
    paper().print()
    paper().print(table)
