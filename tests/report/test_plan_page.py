"""Pictures of a plan: whole, standing alone, in the plot, without words on words, and safe to put anywhere."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pages import Page

from colossus.report.labelled import Labelled, Line, Spot, draw
from colossus.report.picture import flat
from colossus.report.plan_page import answer_section, page
from colossus.report.plan_plots import pictures, waterfall
from colossus.report.plan_words import MEMORY_WORDS, PART_WORDS
from colossus.report.roofline import Kind, Roofline
from colossus.spec.answer import Answer, Choice, PlannedLayout

SVG = "{http://www.w3.org/2000/svg}"
SWINGS = [("chip.peak", 6.0, 4.0), ("chip.memory", None, 5.0), ("scale_up.latency", 5.0, 5.0)]
ROOFLINE = Roofline(
    memory_bytes_per_s=3e12,
    peak_flop_per_s=[("bfloat16", 1e15), ("float8", 2e15)],
    kinds=[
        Kind(name="feed-forward", flop_per_byte=900.0, flop_per_s=1.2e15, peak_flop_per_s=2e15, step_fraction=0.6),
        Kind(name="attention", flop_per_byte=2000.0, flop_per_s=4e14, peak_flop_per_s=1e15, step_fraction=0.1),
        Kind(name="norms and activations", flop_per_byte=0.5, flop_per_s=1.2e12, peak_flop_per_s=2e15, step_fraction=0.05),
    ],
)


def choice(dp: int = 2, *, cost_usd: float | None = 1000.0, **changes: Any) -> Choice:
    parts_s = dict.fromkeys(PART_WORDS, 0.0) | {"gemm": 3.0, "attention": 1.0, "tp": 0.5, "jitter": 0.5}
    memory = dict.fromkeys(MEMORY_WORDS, 0.0) | {"weights": 30e9, "activations": 20e9}
    return Choice(
        layout=PlannedLayout(dp=dp, tp=8),
        step_s=5.0,
        lower_step_s=4.5,
        upper_step_s=6.5,
        parts_s=parts_s,
        memory_bytes_per_chip=50e9,
        memory_parts_bytes=memory,
        model_flop_per_s_per_chip=4e14,
        mfu_fraction=0.4,
        throughput_tokens_per_s=1e4 * dp**0.9,
        time_to_train_s=1e7 / dp**0.9,
        power_w=1e5,
        energy_j=1e12,
        cost_usd=cost_usd,
        carbon_kg_co2e=1e5,
        limited_by="matrix products",
    ).model_copy(update=changes)


def answer(name: str = "a model", **changes: Any) -> Answer:
    return Answer(
        model=name, machine="h100-sxm*16", num_chips=16, precision="bfloat16", program="x", num_sequences=64, sequence_tokens=8192, total_tokens=1e12,
        chip="h100-sxm", chip_memory_bytes=80e9, num_parameters=10**10, num_layouts=100, num_fitting=50, choices=[choice()], notes=["a note"],
    ).model_copy(update=changes)  # fmt: skip


FRONT = [choice(dp, cost_usd=1000 * dp**0.1) for dp in (8, 4, 2, 1)]
FULL = {"tornado": SWINGS, "scaling": FRONT, "front": FRONT, "roofline": ROOFLINE}


def test_the_page_is_whole_and_asks_for_nothing():
    text = page(answer(), **FULL)
    parsed = Page(text)
    assert parsed.references == [] and "@import" not in text and "url(" not in text
    assert len(parsed.ids) == len(set(parsed.ids)) == 12
    for words in ("Where a step goes", "tensor-parallel communication", "does not fit", "A note.", "$1,231", "of the roof"):
        assert words in parsed.text


def test_what_there_is_no_data_for_is_left_out():
    assert [picture.name for picture in pictures(answer())] == ["waterfall", "memory"]
    Page(page(answer(chip_memory_bytes=None, chip=None)))


@pytest.mark.parametrize("picture", pictures(answer(), **FULL), ids=lambda picture: picture.name)
def test_every_picture_stands_alone(picture):
    text = picture.alone("a model & its machine")
    root = ElementTree.fromstring(text)
    assert root.find(f"{SVG}title").text == picture.title and root.find(f"{SVG}desc").text
    assert "prefers-color-scheme:dark" in text and root.find(f"{SVG}rect").get("class") == "paper"
    left, top, wide, high = map(float, root.get("viewBox").split())
    for words in root.iter(f"{SVG}text"):
        x, y, long = float(words.get("x")), float(words.get("y")), 6.3 * len(words.text or "")
        start = x - {"end": long, "middle": long / 2}.get(words.get("text-anchor", "start"), 0)
        assert left <= start + 0.15 * long and start + 0.85 * long <= left + wide and top <= y <= top + high, words.text


@pytest.mark.parametrize("picture", pictures(answer(), **FULL), ids=lambda picture: picture.name)
def test_a_flat_picture_needs_no_variables(picture):
    text = flat(picture.alone("x"))
    ElementTree.fromstring(text)
    assert "var(" not in text and "--" not in text and "@media" not in text and "DejaVu Sans" in text


def test_parts_of_a_step_join_without_gaps():
    body = waterfall(choice()).body
    bars = [(float(x), float(width)) for x, width in re.findall(r'class="bar-a" x="([\d.]+)" y="\d+" width="([\d.]+)"', body)]
    assert len(bars) == 4
    for (x, width), (following, _) in pairwise(bars):
        assert x + width == pytest.approx(following, abs=0.15)
    assert "nine runs in ten between 4.5 s and 6.5 s" in body


def test_names_cannot_inject_markup():
    bad = "<script>alert(1)</script>"
    found = answer(bad, machine=bad, notes=[bad])
    for text in (page(found, **FULL), answer_section(found), pictures(found)[0].alone(bad)):
        assert "<script>" not in text


def test_a_notebook_keeps_its_own_looks():
    text = answer_section(answer())
    assert re.match(r"<style>\.colossus-plan\{", text) and text.count("<svg") == 2
    Page(text)


def boxes(text: str) -> list[tuple[float, float, float, float]]:
    """Of every label, as the browser draws it."""
    found = re.findall(r'<text class="label" x="(-?[\d.]+)" y="(-?[\d.]+)">([^<]*)<', text)
    return [(float(x), float(y) - 10, float(x) + 6.3 * len(words), float(y) + 3) for x, y, words in found]


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(st.floats(0.1, 1e6), st.floats(0.1, 1e6)), min_size=1, max_size=14, unique=True))
def test_labels_lie_in_the_plot_and_not_on_each_other(points):
    spots = [Spot(x=x, y=y, label=f"{number:,} chips", words="w") for number, (x, y) in enumerate(points, 1000)]
    text = draw(
        Labelled(x_name="x", y_name="y", spots=spots, lines=[Line(points=sorted(points), css="front")] if len(points) > 1 else []), width=900, height=380
    )
    found = boxes(text)
    assert text.count("<circle") == len(points) and len(found) >= min(len(points), 5)
    assert all(left >= 0 and right <= 900 and top >= 0 and bottom <= 380 for left, top, right, bottom in found)
    assert not any(one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3] for n, one in enumerate(found) for other in found[:n])


def test_dearer_choices_on_fewer_chips_are_grey():
    dear = choice(1, cost_usd=5000.0, time_to_train_s=9e7)
    text = next(picture for picture in pictures(answer(), front=[*FRONT[:3], dear]) if picture.name == "front").body
    assert text.count('class="pick-soft"') == 1 and text.count('class="pick"') == 3
