"""Estimates against measured runs as tables, picture and page: nothing is lost, nothing is asked for, nothing can be injected."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_pages import Page, plain

from colossus.report.scatter import Axis, Cloud, Dot, Scatter, draw
from colossus.report.validation import ErrorsData, RowData, ValidationData, render, tables, verdict
from colossus.report.validation_page import against_measured, page, picture, ratios

SVG = "{http://www.w3.org/2000/svg}"


def row(name: str, measured_s: float | None = 2.0, estimated_s: float | None = 2.1, **changes: Any) -> RowData:
    data: RowData = {
        "id": name,
        "group": "sc21",
        "model": "gpt-3.6B",
        "accelerator": "A100",
        "num_chips": 64.0,
        "program": "megatron-2021",
        "measured_step_s": measured_s,
        "estimated_step_s": estimated_s,
        "lower_step_s": None if estimated_s is None else 0.9 * estimated_s,
        "upper_step_s": None if estimated_s is None else 1.1 * estimated_s,
        "error_fraction": None if estimated_s is None or not measured_s else estimated_s / measured_s - 1,
        "is_inside": estimated_s is not None,
        "measured_memory_bytes": None,
        "estimated_memory_bytes": 2.0**35,
        "memory_error_fraction": None,
        "reason": None,
    }
    return {**data, **changes}  # type: ignore[typeddict-item]


def errors(name: str, num_rows: int) -> ErrorsData:
    shares = {"median_error_fraction": 0.05, "p90_error_fraction": 0.123, "bias_fraction": -0.011, "inside_fraction": 0.9}
    return {"name": name, "num_rows": num_rows, **shares}  # type: ignore[typeddict-item]


SWEEP = {"name": "sc21: gpt-3.6B on 64 A100", "num_rows": 5, "rank_correlation": 0.97, "chosen_over_best_fraction": 0.02}


def validation(*rows: RowData, problems: list[str] | None = None) -> ValidationData:
    known = [one for one in rows if one["error_fraction"] is not None]
    memory = [one for one in rows if one["memory_error_fraction"] is not None]
    return {
        "about": "tier A",
        "whole": errors("all", len(known)),
        "by_group": [errors("sc21", len(known))] if known else [],
        "by_accelerator": [errors("A100", len(known))] if known else [],
        "sweeps": [SWEEP] if known else [],
        "memory": {"num_rows": len(memory), "median_error_fraction": 0.04 if memory else None, "worst_error_fraction": 0.1 if memory else None},
        "problems": problems or [],
        "rows": list(rows),
    }


FULL = validation(
    row("a-1"),
    row("a-2", 20.0, 15.0, accelerator="H100", measured_memory_bytes=2.0**36, memory_error_fraction=-0.5),
    row("a-3", 0.3, 0.31, accelerator="H100"),
    row("a-4", None, None, reason="row a-4: accelerator 'Wafer' is not in the catalog"),
    problems=["median error is 7.0%, more than 6%"],
)


def test_the_terminal_says_it_all():
    text = plain(render(FULL), width=120)
    told = (
        "3 runs (tier A)",
        "5.0 %",
        "12.3 %",
        "-1.1 %",
        "90.0 %",
        "0.97",
        "64.0 GiB",
        "32.0 GiB",
        "-50.0 %",
        "-25.0 %",
        "20 s",
        "'Wafer' is not in the catalog",
    )
    for words in told:
        assert words in text
    assert "\x1b" not in text


def test_tables_without_rows_are_left_out():
    assert [table.title for table in tables(validation(row("a-1")))] == [
        "by group",
        "by accelerator",
        "rank correlation within sweeps",
        "step time, the worst first",
    ]
    nothing = validation(row("a-4", None, None, reason="no"))
    assert [table.title for table in tables(nothing)] == ["left out"]
    assert verdict(nothing) == "None of 1 run could be estimated."


def test_the_worst_come_first():
    worst = next(table for table in tables(FULL) if table.title.startswith("step time"))
    assert [cells[0] for cells in worst.rows] == ["a-2", "a-1", "a-3"]


def test_the_page_is_whole_and_asks_for_nothing():
    text = page(FULL)
    parsed = Page(text)
    assert parsed.references == []
    assert "@import" not in text and set(re.findall(r"url\((.)", text)) <= {"#"}
    assert len(parsed.ids) == len(set(parsed.ids))
    for words in ("thresholds missed", "median error is 7.0%", "By accelerator", "a-2: gpt-3.6B on 64 H100", "'Wafer' is not in the catalog", "H100 (2)"):
        assert words in parsed.text
    assert "holds</span>" in page(validation(row("a-1")))
    Page(page(validation(row("a-4", None, None, reason="no"))))


def test_names_cannot_inject_markup():
    text = page(validation(row("<script>alert(1)</script>", accelerator="<b>", group="<i>"), row("b", reason="<script>x</script>")))
    assert "<script>" not in text and "<b>" not in text and "<i>" not in text
    Page(text)


def drawn(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def spots(root: ElementTree.Element) -> list[str]:
    """What is said of every dot."""
    return [title.text or "" for group in root.iter(f"{SVG}g") if "spot" in group.get("class", "") for title in group.iter(f"{SVG}title")]


def test_the_picture_stands_alone_with_every_run_once():
    root = drawn(picture(FULL))
    assert [child.tag for child in root][:2] == [f"{SVG}title", f"{SVG}desc"]
    assert sorted(told.split(":")[0] for told in spots(root)) == ["a-1", "a-2", "a-3"]
    assert "measured 20 s, estimated 15 s, -25.0 %" in "".join(spots(root))
    style = next(root.iter(f"{SVG}style")).text or ""
    assert "prefers-color-scheme:dark" in style
    names = {text.text for text in root.iter(f"{SVG}text")}
    assert {"H100 (2)", "A100 (1)", "measured step, s", "estimated step, s", "equal, and 10 % off"} <= names


def place(root: ElementTree.Element, css: str) -> list[tuple[float, float]]:
    """Corners of the first path of a class."""
    path = next(path for path in root.iter(f"{SVG}path") if path.get("class") == css)
    return [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path.get("d", ""))]


def dots(text: str) -> list[tuple[float, float]]:
    """Where the dots of a picture are, in their order."""
    return [(float(x), float(y)) for x, y in re.findall(r'd="M(-?[\d.]+) (-?[\d.]+)m[^"]*"><title>', text)]


def above_line(text: str) -> list[float]:
    """How many pixels every dot lies above the line."""
    (x0, y0), (x1, y1) = place(drawn(text), "reference")
    return [y0 + (x - x0) / (x1 - x0) * (y1 - y0) - y for x, y in dots(text)]


def test_an_exact_estimate_lies_on_the_line():
    exact, low, high = above_line(picture(validation(row("exact", 3.0, 3.0), row("low", 0.1, 0.05), row("high", 100.0, 180.0))))
    assert exact == pytest.approx(0, abs=0.2)
    assert low < -10 and high > 10


def test_the_band_is_ten_percent_wide():
    scatter = Scatter(
        title="t",
        description="d",
        x=Axis(name="x", low=1, high=100, ticks=[(1, "1"), (10, "10")]),
        y=Axis(name="y", low=1, high=100, ticks=[(1, "1"), (10, "10")]),
        clouds=[Cloud(name="c", dots=[Dot(x=11, y=10, words="under"), Dot(x=10, y=11, words="over")])],
        line=((1, 1), (100, 100)),
        band=(1 / 1.1, 1.1),
        line_name="equal",
    )
    text = draw(scatter, width=400, height=400, key="k")
    (_, below), _, _, (_, above) = place(drawn(text), "band")
    (_, line), _ = place(drawn(text), "reference")
    assert above_line(text) == pytest.approx([line - below, line - above], abs=0.25)


@given(st.lists(st.tuples(st.floats(1e-3, 1e5), st.floats(1e-3, 1e5)), min_size=1, max_size=30), st.sampled_from([400, 900]))
def test_every_dot_lies_in_the_plot(times: list[tuple[float, float]], width: int):
    data = validation(*(row(f"r-{number}", *pair) for number, pair in enumerate(times)))
    for scatter in (against_measured(data), ratios(data)):
        text = draw(scatter, width=width, height=400, key="k")
        root = drawn(text)
        box = next(root.iter(f"{SVG}clipPath"))[0].attrib
        left, top = float(box["x"]), float(box["y"])
        right, bottom = left + float(box["width"]), top + float(box["height"])
        places = dots(text)
        assert len(places) == len(times)
        assert all(left <= x <= right and top <= y <= bottom for x, y in places)


def test_clouds_differ_in_colour_or_shape():
    data = validation(*(row(f"r-{number}", accelerator=f"chip {number}") for number in range(40)))
    text = draw(against_measured(data), width=900, height=400, key="k")
    assert len(set(re.findall(r'class="spot (k\d)"><path d="M[\d.]+ [\d.]+(m[^"]*)"', text))) == 40
