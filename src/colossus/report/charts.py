"""The pictures of a report: loss by step, speed over time, and where the time went."""

from __future__ import annotations

from html import escape
from importlib.resources import files

from colossus.report import svg, words
from colossus.report.record import Curve, Incident, Report
from colossus.spec.causes import LABELS
from colossus.spec.units import format_quantity

_LOG_FROM = 20.0
SIZES = {"wide": (900, 320), "narrow": (400, 300)}


def loss_svg(report: Report) -> str:
    """The loss curve with its kills as a picture on its own, for a README; follows the viewer's light or dark."""
    return svg.draw(loss_chart(report), width=900, height=330, key="loss", style=_own_style()) + "\n"


def loss_chart(report: Report) -> svg.Chart:
    """Training and validation loss by step; incidents as labelled lines, checkpoints as ticks on the axis."""
    training, validation = _points(report.loss), _points(report.validation)
    values = [loss for _, loss in training + validation]
    series = [svg.Series(name="training", points=training, css="s-training")]
    if validation:
        series.append(svg.Series(name="validation", points=validation, css="s-validation", dots=True))
    return svg.Chart(
        title="Loss by step",
        description=words.verdict(report) + _marks_words(report),
        series=series,
        x_name="step",
        y_name="loss, nats per token" if report.tokens_per_step else "loss",
        marks=[(incident.from_step, mark_label(incident)) for incident in report.incidents],
        ticks=report.checkpoints.saved_steps[:2000],
        log_y=bool(values) and min(values) > 0 and max(values) / min(values) > _LOG_FROM,
        x_range=(0, max(report.steps, 1)),
        format_x=lambda step: f"{step:,.0f}",
    )


def speed_chart(report: Report) -> svg.Chart:
    """Tokens (else steps) per second over run time; incidents as labelled lines."""
    per_step = report.tokens_per_step or 1
    unit = "tokens/s" if report.tokens_per_step else "steps/s"
    width_s = report.timeline.bin_s
    points = [((index + 0.5) * width_s, rate * per_step) for index, rate in enumerate(report.timeline.steps_per_s)]
    return svg.Chart(
        title=f"Speed over time, {unit}",
        description=f"{unit} in {len(points)} equal parts of {words.duration(report.wall_s)}; it falls to zero while no step runs.",
        series=[svg.Series(name=unit, points=points, css="s-speed", area=True)],
        x_name="run time",
        y_name=unit,
        marks=[(incident.time_s, mark_label(incident)) for incident in report.incidents],
        ticks=report.checkpoints.saved_times_s[:2000],
        from_zero=True,
        x_range=(0.0, report.wall_s or 1.0),
        x_ticks=lambda low, high, number: svg.time_ticks(high, number),
        format_x=words.duration,
        format_y=lambda value: format_quantity(value, "").strip(),
    )


def time_bar(report: Report, *, width: int = 1000, key: str = "time") -> str:
    """Run time from left to right; at every moment the shares of what it went to, productive time at the bottom."""
    rows = [(LABELS[cause], f"c-{cause.value}", shares) for cause, shares in report.timeline.shares.items()]
    ticks = svg.time_ticks(report.wall_s, max(3, width // 90)) if report.wall_s else []
    scale = svg.Scale(low=0, high=report.wall_s or 1, start=0, end=width)
    labels = "".join(_time_label(scale(at), words.duration(at), width) for at in ticks)
    marks = "".join(f'<path class="mark" d="M{scale(incident.time_s):.1f} 0V60"/>' for incident in report.incidents[:400])
    description = "; ".join(f"{label} {words.percent(fraction)}" for _, label, _, fraction in words.time_rows(report))
    return (
        f'<svg viewBox="0 0 {width} 80" role="img" aria-labelledby="{key}-t {key}-d"><title id="{key}-t">Where the time went, from start to end</title>'
        f'<desc id="{key}-d">{escape(description)}</desc><g transform="translate(0 4)">{svg.stacked(rows, width=width, height=52)}</g>{marks}{labels}</svg>'
    )


def mark_label(incident: Incident) -> str:
    """``worker 1 killed``."""
    root = incident.root
    return f"worker {root.rank} {root.cause}" if root.rank is not None else root.cause


def _time_label(pixel: float, text: str, width: int) -> str:
    anchor = "start" if pixel < 20 else "end" if pixel > width - 20 else "middle"
    return f'<text class="num" x="{pixel:.1f}" y="74" text-anchor="{anchor}">{escape(text)}</text>'


def _marks_words(report: Report) -> str:
    told = [f"{mark_label(incident)} at step {incident.from_step}" for incident in report.incidents[:20]]
    return " Marked: " + "; ".join(told) + "." if told else ""


def _points(curve: Curve) -> list[svg.Point]:
    return svg.downsample([(float(step), value) for step, value in zip(curve.steps, curve.values, strict=True) if value is not None])


def _own_style() -> str:
    """The page's chart rules, for a picture without a page."""
    return files("colossus.report").joinpath("page.svg.css").read_text(encoding="utf-8")
