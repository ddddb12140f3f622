"""A plan as one self-contained page: what it takes, where a step goes, memory, what to buy next, and how it scales."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files

from colossus.report import svg
from colossus.spec.answer import Answer, Choice
from colossus.spec.units import format_quantity

Bar = tuple[str, float, str]  # name, value, words
Swing = tuple[str, float | None, float | None]  # figure, best step with it lowered, and raised
_WIDTH, _ROW, _NAMES = 900, 26, 300
# What each part of a step is called when it is what limits it.
PART_WORDS = {
    "gemm": "matrix products",
    "attention": "attention",
    "elementwise": "memory traffic of norms, activations and routing",
    "recompute": "recomputing activations",
    "head": "the vocabulary head and loss",
    "host": "launching kernels from the host",
    "tp": "tensor-parallel communication",
    "cp": "passing keys and values between context ranks",
    "ep": "the experts' all-to-all",
    "pp": "messages between pipeline stages",
    "bubble": "the pipeline's bubble",
    "dp": "reducing gradients and gathering weights",
    "offload": "moving state and activations to the host and back",
    "optimizer": "the optimizer",
    "overhead": "overheads of a step",
    "jitter": "waiting for the slowest rank",
}
_STYLE = ".bar-a{fill:var(--training,#2f6fde)}.bar-b{fill:var(--validation,#d9822b)}.bar-soft{fill:var(--grid,#ccc)}"


def page(answer: Answer, *, tornado: Sequence[Swing] = (), scaling: Sequence[Choice] = ()) -> str:
    """The whole page; sections without data are left out."""
    best = answer.best
    sections = [
        f'<header><div class="head"><h1>{escape(answer.model)} on {answer.num_chips:,} chips</h1><span class="pill done">estimated</span></div>'
        f'<p class="verdict">{escape(verdict(answer))}</p><p class="when">{escape(answer.machine)}, {escape(answer.precision)}</p></header>',
        _section("What it takes", _figures(answer)),
        _section("Where a step goes", waterfall(best) + f'<p class="soft">Limited by {escape(best.limited_by)}.</p>'),
        _section("Memory of a chip", bars(_memory_rows(best), key="memory")),
        _section("What to buy next", tornado_chart(best.step_s, tornado) + '<p class="soft">Best step time with one figure 20 % lower and 20 % higher.</p>')
        if tornado
        else "",
        _section("How it scales", _scaling(scaling)) if len(scaling) > 1 else "",
        _section("The best layouts", _layouts(answer)),
        f"<footer>{escape(' '.join(note[0].upper() + note[1:] + '.' for note in answer.notes))} Every figure is estimated in closed form.</footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(answer.model)} on {escape(answer.machine)}</title>'
        f"<style>\n{_asset('page.svg.css')}{_asset('page.css')}{_STYLE}</style></head>\n<body><main>\n{chr(10).join(filter(None, sections))}\n</main></body></html>\n"
    )


def answer_section(answer: Answer) -> str:
    """For a notebook: the verdict and the picture of a step."""
    return f"<style>{_asset('page.svg.css')}{_STYLE}</style><p><b>{escape(verdict(answer))}</b></p>{waterfall(answer.best)}"


def verdict(answer: Answer) -> str:
    best = answer.best
    return (
        f"{format_quantity(best.step_s, 's')} a step, MFU {best.mfu_fraction:.1%}, {best.throughput_tokens_per_s:,.0f} tokens/s: "
        f"{format_quantity(best.time_to_train_s, 's')} for {format_quantity(answer.total_tokens, '').strip()} tokens, as {best.layout.describe()}."
    )


def waterfall(choice: Choice) -> str:
    """Parts of a step one after the other, from left to right, as they add up to the whole."""
    parts = [(name, seconds) for name, seconds in choice.parts_s.items() if seconds > 0.0005 * choice.step_s]
    scale = svg.Scale(low=0.0, high=choice.step_s, start=_NAMES, end=_WIDTH - 120)
    rows, at = [], 0.0
    for number, (name, seconds) in enumerate(parts):
        y = number * _ROW
        words = f"{format_quantity(seconds, 's')}  {seconds / choice.step_s:.1%}"
        rows.append(_row(PART_WORDS[name], y, scale(at), max(1.0, scale(at + seconds) - scale(at)), words, "bar-a"))
        at += seconds
    y = len(parts) * _ROW
    rows.append(_row("step", y, scale(0), scale(choice.step_s) - scale(0), format_quantity(choice.step_s, "s"), "bar-b"))
    whiskers = f'<path class="axis" d="M{scale(choice.lower_step_s):.1f} {y + 24}H{min(_WIDTH - 4, scale(choice.upper_step_s)):.1f}"/>'
    return _picture(
        "".join(rows) + whiskers, y + _ROW, "waterfall", f"Parts of a step: {', '.join(f'{name} {seconds / choice.step_s:.0%}' for name, seconds in parts)}"
    )


def bars(rows: Sequence[Bar], *, key: str) -> str:
    """Horizontal bars from zero."""
    most = max((value for _, value, _ in rows), default=1.0) or 1.0
    scale = svg.Scale(low=0.0, high=most, start=_NAMES, end=_WIDTH - 160)
    drawn = "".join(_row(name, number * _ROW, scale(0), max(1.0, scale(value) - scale(0)), words, "bar-a") for number, (name, value, words) in enumerate(rows))
    return _picture(drawn, len(rows) * _ROW, key, "; ".join(f"{name} {words}" for name, _, words in rows))


def tornado_chart(base_s: float, swings: Sequence[Swing]) -> str:
    """For each figure the best step time lowered (orange) and raised (blue), around the base."""
    known = [value for _, low, high in swings for value in (low, high) if value is not None]
    span = max((abs(value - base_s) for value in known), default=1.0) or base_s * 0.01
    scale = svg.Scale(low=base_s - span, high=base_s + span, start=_NAMES, end=_WIDTH - 160)
    rows = []
    for number, (figure, low, high) in enumerate(swings):
        y = number * _ROW
        words = " / ".join("does not fit" if value is None else f"{value / base_s - 1:+.1%}" for value in (low, high))
        pieces = [(value, css) for value, css in ((low, "bar-b"), (high, "bar-a")) if value is not None]
        rects = "".join(
            f'<rect class="{css}" x="{min(scale(value), scale(base_s)):.1f}" y="{y + 4}" width="{abs(scale(value) - scale(base_s)):.1f}" height="18"/>'
            for value, css in pieces
        )
        rows.append(
            f'<text class="name" x="0" y="{y + 17}">{escape(figure)}</text>{rects}<text class="num" x="{_WIDTH - 150}" y="{y + 17}">{escape(words)}</text>'
        )
    axis = f'<path class="axis" d="M{scale(base_s):.1f} 0V{len(swings) * _ROW}"/>'
    return _picture("".join(rows) + axis, len(swings) * _ROW, "tornado", "; ".join(figure for figure, _, _ in swings))


def _row(name: str, y: float, x: float, width: float, words: str, css: str) -> str:
    return (
        f'<text class="name" x="0" y="{y + 17}">{escape(name)}</text><rect class="{css}" x="{x:.1f}" y="{y + 4}" width="{width:.1f}" height="18" rx="2"/>'
        f'<text class="num" x="{x + width + 8:.1f}" y="{y + 17}">{escape(words)}</text>'
    )


def _picture(body: str, height: float, key: str, description: str) -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" aria-labelledby="{key}-t"><title id="{key}-t">{escape(description)}</title>{body}</svg>'


def _memory_rows(choice: Choice) -> list[Bar]:
    parts = sorted(choice.memory_parts_bytes.items(), key=lambda item: -item[1])
    rows = [(name, num_bytes, format_quantity(num_bytes, "B", binary=True)) for name, num_bytes in parts if num_bytes > 0]
    return [*rows, ("together", choice.memory_bytes_per_chip, format_quantity(choice.memory_bytes_per_chip, "B", binary=True))]


def _figures(answer: Answer) -> str:
    best = answer.best
    rows = [
        (
            "step",
            f"{format_quantity(best.step_s, 's')}, nine runs in ten between {format_quantity(best.lower_step_s, 's')} and {format_quantity(best.upper_step_s, 's')}",
        ),
        ("tokens/s", f"{best.throughput_tokens_per_s:,.0f}; {best.throughput_tokens_per_s / answer.num_chips:,.0f} a chip"),
        ("MFU", f"{best.mfu_fraction:.1%}, {format_quantity(best.model_flop_per_s_per_chip, 'FLOP/s')} a chip"),
        ("time to train", f"{format_quantity(best.time_to_train_s, 's')}, without failures"),
        ("power", None if best.power_w is None else format_quantity(best.power_w, "W")),
        ("energy", None if best.energy_j is None else f"{best.energy_j / 3.6e9:,.0f} MWh"),
        ("rent", None if best.cost_usd is None else f"${best.cost_usd:,.0f}"),
        ("carbon", None if best.carbon_kg_co2e is None else f"{best.carbon_kg_co2e / 1e3:,.0f} t CO2e"),
    ]
    return _table((), [(name, value) for name, value in rows if value is not None])


def _scaling(scales: Sequence[Choice]) -> str:
    points = sorted((float(_chips(choice)), choice.throughput_tokens_per_s) for choice in scales)
    most = max(rate / chips for chips, rate in points)
    chart = svg.Chart(
        title="Tokens per second by chips",
        description="The best layout on halves of the machine",
        series=[
            svg.Series(name="estimated", points=points, css="s-training", dots=True),
            svg.Series(name="as the best per chip", points=[(chips, most * chips) for chips, _ in points], css="s-validation"),
        ],
        x_name="chips",
        y_name="tokens/s",
        from_zero=True,
        format_x=lambda value: format_quantity(value, "").strip(),
        format_y=lambda value: format_quantity(value, "").strip(),
    )
    header = ("chips", "step", "MFU", "time to train", "rent", "layout")
    rows = [
        (
            f"{_chips(choice):,}",
            format_quantity(choice.step_s, "s"),
            f"{choice.mfu_fraction:.1%}",
            format_quantity(choice.time_to_train_s, "s"),
            "" if choice.cost_usd is None else f"${choice.cost_usd:,.0f}",
            choice.layout.describe(),
        )
        for choice in scales
    ]
    return svg.draw(chart, width=_WIDTH, height=320, key="scaling") + _table(header, rows)


def _chips(choice: Choice) -> int:
    layout = choice.layout
    return layout.pp * layout.dp * layout.cp * layout.tp


def _layouts(answer: Answer) -> str:
    header = ("", "layout", "step", "MFU", "memory", "against the first")
    rows = [
        (
            str(number),
            choice.layout.describe(),
            format_quantity(choice.step_s, "s"),
            f"{choice.mfu_fraction:.1%}",
            format_quantity(choice.memory_bytes_per_chip, "B", binary=True),
            choice.why_not_first or "",
        )
        for number, choice in enumerate(answer.choices, 1)
    ]
    return f'<p class="soft">{answer.num_fitting:,} of {answer.num_layouts:,} layouts fit.</p>' + _table(header, rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = f"<thead><tr>{''.join(f'<th>{escape(name)}</th>' for name in header)}</tr></thead>" if header else ""
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table class="rows">{head}<tbody>{body}</tbody></table></div>'


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _asset(name: str) -> str:
    return files("colossus.report").joinpath(name).read_text(encoding="utf-8")
