"""The pictures of a load test: latency and throughput by load, how latencies are spread, and requests on their way over time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from colossus.report import svg
from colossus.report.load_words import KINDS, latency_of, number
from colossus.report.picture import style
from colossus.report.words import duration
from colossus.spec.load import LoadPoint, LoadTest

SHEETS = ("page.svg.css", "page.scatter.css")
SIZES = {"wide": (900, 300), "narrow": (400, 270)}
_SHARES = ("p50", "p90", "p99")
_NUM_COLOURS = 8
Named = tuple[str, svg.Chart]  # a file's name, a chart


def charts(test: LoadTest) -> list[Named]:
    """All that there is data for: over loads where there are several, else of the one."""
    found: list[Named] = []
    if len(test.points) > 1:
        found.append(("throughput", throughput(test)))
        found += [(f"{kind}-by-load", by_load(test, kind)) for kind in ("ttft", "itl", "tpot") if any(latency_of(point, kind) for point in test.points)]
    found += [(f"{kind}-spread", spread(test.points, kind)) for kind in ("ttft", "itl") if any(latency_of(point, kind) for point in test.points)]
    return [*found, ("in-flight", flight(test.points))]


def svgs(found: Sequence[Named]) -> list[tuple[str, str]]:
    """Each as a file of its own."""
    width, height = SIZES["wide"]
    return [(name, svg.draw(chart, width=width, height=height, key=name, style=style(SHEETS)) + "\n") for name, chart in found]


def beside(tests: Mapping[str, LoadTest]) -> list[Named]:
    """Several servers under the same kind of loads as the first: a line each."""
    clients = _are_clients(next(iter(tests.values())).points)
    tests = {name: test for name, test in tests.items() if _are_clients(test.points) == clients}
    every = [point for test in tests.values() for point in test.points]
    draw = lambda title, y_name, value, tell: side_by_side(
        title,
        y_name,
        {name: [(load_of(point), found) for point in test.points if (found := value(point)) is not None] for name, test in tests.items()},
        tell,
        x_name=load_name(every),
        log_x=_are_clients(every),
    )
    found = [("throughput-beside", draw("Throughput by load", "output tokens/s", lambda point: point.output_tokens_per_s, number))]
    for kind in ("ttft", "itl"):
        for share in ("p50", "p99"):
            value = partial(_share_of, kind=kind, share=share)
            if any(value(point) is not None for point in every):
                words = f"{KINDS[kind]} {share}"
                found.append((f"{kind}-{share}-beside", draw(f"{words} by load", words, value, duration)))
    return found


def _share_of(point: LoadPoint, kind: str, share: str) -> float | None:
    latency = latency_of(point, kind)
    return None if latency is None else float(getattr(latency, f"{share}_s"))


def side_by_side(
    title: str, y_name: str, lines: Mapping[str, Sequence[svg.Point]], tell: Callable[[float], str], *, x_name: str = "clients at once", log_x: bool = True
) -> svg.Chart:
    """One figure of several servers by load."""
    told = "; ".join(f"{name}: {', '.join(f'{tell(height)} at {load:g}' for load, height in sorted(line))}" for name, line in lines.items())
    series = [svg.Series(name=name, points=sorted(line), css=f"k{place % _NUM_COLOURS}", dots=True) for place, (name, line) in enumerate(lines.items()) if line]
    return _over_loads(title, told, series, y_name, tell, x_name=x_name, log_x=log_x)


def load_of(point: LoadPoint) -> float:
    """Where a load lies along an axis."""
    return float(point.num_clients) if point.num_clients is not None else point.offered_requests_per_s or point.requests_per_s


def load_name(points: Sequence[LoadPoint]) -> str:
    return "clients at once" if _are_clients(points) else "offered requests/s"


def _are_clients(points: Sequence[LoadPoint]) -> bool:
    return all(point.num_clients is not None for point in points)


def throughput(test: LoadTest) -> svg.Chart:
    """Output tokens a second by load."""
    points = [(load_of(point), point.output_tokens_per_s) for point in test.points]
    told = "; ".join(f"{number(point.output_tokens_per_s)} tokens/s at {point.label}" for point in test.points)
    series = [svg.Series(name="output tokens/s", points=sorted(points), css="k0", dots=True)]
    return _over_loads("Throughput by load", told, series, "output tokens/s", number, x_name=load_name(test.points), log_x=_are_clients(test.points))


def by_load(test: LoadTest, kind: str) -> svg.Chart:
    """Percentiles of one latency by load."""
    series = []
    for place, share in enumerate(_SHARES):
        points = [(load_of(point), getattr(found, f"{share}_s")) for point in test.points if (found := latency_of(point, kind)) is not None]
        series.append(svg.Series(name=share, points=sorted(points), css=f"k{place}", dots=True))
    told = "; ".join(f"{found.p50_s:.4g} s at {point.label} in the median" for point in test.points if (found := latency_of(point, kind)))
    return _over_loads(f"{KINDS[kind]} by load", told, series, KINDS[kind], duration, x_name=load_name(test.points), log_x=_are_clients(test.points))


def _over_loads(title: str, told: str, series: list[svg.Series], y_name: str, tell: Callable[[float], str], *, x_name: str, log_x: bool) -> svg.Chart:
    return svg.Chart(
        title=title,
        description=told,
        series=series,
        x_name=x_name,
        y_name=y_name,
        log_x=log_x,  # 1, 8, 32: straight, the small ones would crowd
        from_zero=True,
        x_ticks=lambda low, high, num_ticks: sorted({load for one in series for load, _ in one.points}),
        format_x=lambda value: f"{value:g}",
        format_y=tell,
    )


def spread(points: Sequence[LoadPoint], kind: str) -> svg.Chart:
    """Which share of values is at most so long, one line a load."""
    series = []
    for place, point in enumerate(points):
        if (found := latency_of(point, kind)) is not None:
            line = [(value, share / 100) for share, value in enumerate(found.curve_s)]
            series.append(svg.Series(name=point.label, points=line, css=f"k{place % _NUM_COLOURS}"))
    return svg.Chart(
        title=f"How {KINDS[kind]} is spread",
        description=f"Share of values that are at most so long, of {len(series)} loads.",
        series=series,
        x_name=KINDS[kind],
        y_name="share",
        from_zero=True,
        format_x=duration,
        format_y=lambda value: f"{value * 100:.0f} %",
    )


def flight(points: Sequence[LoadPoint]) -> svg.Chart:
    """Requests on their way over time, one line a load."""
    series = [
        svg.Series(name=point.label, points=_stairs(point.in_flight), css=f"k{place % _NUM_COLOURS}", area=len(points) == 1)
        for place, point in enumerate(points)
    ]
    return svg.Chart(
        title="Requests on their way",
        description="Requests that have arrived and are not answered in full, over the test.",
        series=series,
        x_name="time of the test",
        y_name="requests",
        from_zero=True,
        x_ticks=lambda low, high, num_ticks: svg.time_ticks(high, num_ticks),
        format_x=duration,
    )


def _stairs(steps: Sequence[tuple[float, int]]) -> list[svg.Point]:
    """A number holds until the next one."""
    points: list[svg.Point] = []
    for at_s, value in steps:
        if points:
            points.append((at_s, points[-1][1]))
        points.append((at_s, float(value)))
    return points
