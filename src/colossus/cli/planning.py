"""Planning for a machine of the catalog: the question from options, the answer as tables, JSON or a page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from colossus.cli.common import paper, print_json, talk
from colossus.cli.files import write_file
from colossus.plan.answer import answer
from colossus.plan.explain import completed, explain
from colossus.plan.plots import Extras, extras
from colossus.plan.question import Asked
from colossus.plan.question import ask as ask_question
from colossus.plan.search import Question
from colossus.plan.whatif import Swing, changed, parse_change
from colossus.report.plan_words import OPTION_HEADER, count, heading, option_cells, part_name, rows
from colossus.spec.answer import Answer, Choice, PlannedLayout
from colossus.spec.errors import InfeasibleError, Problem, SpecError
from colossus.spec.plan import Infeasible
from colossus.spec.units import format_quantity

_NAMES = ("chips", "precision", "program", "sequences", "sequence_tokens", "tokens", "deadline")
# Flag -> the parts of ``Extras`` that it asks for; pages and folders of plots ask for all.
_EXTRAS = {"tornado": "tornado", "scaling": "scaling", "pareto": "front"}


def ask(job: str, machine: str, assignments: tuple[str, ...], runs: Path, options: dict[str, Any]) -> Asked:
    own = runs / ".cache" / "coefficients.toml"  # as colossus calibrate writes it
    asked = ask_question(job, machine, assignments=assignments, coefficients=own if own.exists() else None, **{name: options[name] for name in _NAMES})
    changes = tuple(parse_change(text) for text in options["what_if"])
    return replace(asked, question=changed(asked.question, changes))


def show(asked: Asked, options: dict[str, Any], *, as_json: bool) -> None:
    """Answers and prints; what else was asked for (why, tornado, scaling, the front, a page, plots) beside it."""
    found = answer(
        asked.question,
        name=asked.model,
        total_tokens=asked.total_tokens,
        top=options["top"],
        objective=options["objective"],
        deadline_s=asked.deadline_s,
        said=asked.notes,
    )
    question = asked.question if isinstance(found, Infeasible) else replace(asked.question, num_chips=found.num_chips)  # the answer chooses the chips
    why = _why(question, options["why"]) if options["why"] is not None else None
    if isinstance(found, Infeasible):
        raise InfeasibleError(found.reason + (f"\n{options['why']}: {why}" if why else ""), hint=found.fit)
    more = _extras(asked, found, options)
    if options["page"]:
        write_file(options["page"], more.page(found), what="page")
    if options["plots"]:
        from colossus.cli.plots import write_plots

        write_plots(options["plots"], [(picture.name, picture.alone(heading(found))) for picture in more.pictures(found)])
    if as_json:
        print_json(found.to_data() | _told(more, why, options))
        return
    _print_answer(found)
    if why:
        paper().print("\n  ".join([f"\n{options['why']}:", *why.split("; ")]))
    if options["tornado"]:
        _print_tornado(found.best, more.tornado)
    for flag, choices, title in (("scaling", more.scaling, "on halves of the machine"), ("pareto", more.front, _FRONT_TITLE)):
        if options[flag]:
            _print_options(choices, title)


_FRONT_TITLE = "time, chips and money: choices that no other beats in all three"


def _extras(asked: Asked, found: Answer, options: dict[str, Any]) -> Extras:
    if options["page"] or options["plots"] or any(options[flag] for flag in _EXTRAS):
        talk().print("searching other chips and machines for what was asked beside the plan ...")
    if options["page"] or options["plots"]:
        return extras(asked.question, found)
    return extras(asked.question, found, names=frozenset(name for flag, name in _EXTRAS.items() if options[flag]))


def _told(more: Extras, why: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """What flags asked for, as data."""
    data = {
        "why": why,
        "tornado": [vars(swing) for swing in more.tornado],
        "scaling": _options(more.scaling),
        "pareto": _options(more.front),
    }
    return {name: value for name, value in data.items() if options[name]}


def _options(choices: list[Choice]) -> list[dict[str, Any]]:
    return [{"num_chips": choice.num_chips} | choice.to_data() for choice in choices]


def _why(question: Question, text: str) -> str:
    """What stands against the best layout with what was named, which is said in full."""
    layout = completed(question, _layout(text))
    return f"{layout.describe()}; {explain(question, layout)}"


def _layout(text: str, flag: str = "--why") -> PlannedLayout:
    """``tp=8,pp=4`` as a layout."""
    data: dict[str, Any] = {}
    for pair in text.split(","):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            raise SpecError(flag, [Problem(path=flag, value=repr(text), rule="must look like tp=8,pp=4,dp=16")])
        if name in data:
            raise SpecError(flag, [Problem(path=flag, value=repr(text), rule=f"names {name} twice")])
        data[name] = int(value) if value.lstrip("-").isdecimal() else value
    return PlannedLayout.from_data(data, origin=flag)


def _print_answer(found: Answer) -> None:
    best = found.best
    console = paper()
    tokens = f"{found.num_sequences:,} x {found.sequence_tokens:,} tokens a step"
    console.print(
        f"{found.model} ({format_quantity(found.num_parameters, '').strip()} parameters) on {count(found.num_chips, 'chip')} of {found.machine}, {found.precision}; {tokens}"
    )
    console.print(f"{found.num_fitting:,} of {found.num_layouts:,} layouts fit\n")
    console.print(_table(rows(found)))
    console.print("\nwhere a step goes")
    console.print(_parts_table(best))
    for number, other in enumerate(found.choices[1:], 2):
        console.print(f"\n{number}. {other.layout.describe()}: {format_quantity(other.step_s, 's')} a step; {other.why_not_first}")
    for note in found.notes:
        console.print(f"note: {note}")


def _table(lines: list[tuple[str, str]]) -> Any:
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for line in lines:
        table.add_row(*line)
    return table


def _parts_table(best: Choice) -> Any:
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, seconds in sorted(best.parts_s.items(), key=lambda item: -item[1]):
        if seconds > 0.0005 * best.step_s:
            table.add_row(f"  {part_name(name)}", format_quantity(seconds, "s"), f"{seconds / best.step_s:.1%}", "#" * round(40 * seconds / best.step_s))
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


def _print_options(choices: list[Choice], title: str) -> None:
    from rich.table import Table

    table = Table(*OPTION_HEADER, box=None, padding=(0, 2, 0, 0), title=title, title_justify="left")
    for choice in choices:
        table.add_row(*option_cells(choice))
    paper().print()
    paper().print(table)
