"""Which point of a sweep is best, and when that may be chance."""

from __future__ import annotations

import random
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_pages import Page

from colossus.report.simulation_sweep import OBJECTIVES, Outcome, Point, cells, header, ranked, standings, summary, verdict
from colossus.report.simulation_sweep_page import page, plot

GOODPUT, TIME, COST = (OBJECTIVES[name] for name in ("goodput", "time", "cost"))


def outcome(goodput: float, *, usd: float | None = 0.3) -> Outcome:
    return Outcome(goodput_fraction=goodput, time_to_train_s=5e6 / goodput if goodput else None, usd_per_million_tokens=usd, num_interruptions=400)


def point(name: str, goodputs: list[float]) -> Point:
    return Point(values=(name,), outcomes=tuple(map(outcome, goodputs)))


def noisy(mean: float, *, num: int = 8, noise: float = 0.01, seed: int = 1) -> list[float]:
    draw = random.Random(seed)
    return [mean + draw.gauss(0, noise) for _ in range(num)]


def test_a_paired_difference_is_seen_through_noise_that_both_share():
    shared = noisy(0, noise=0.05)
    points = [point("16", [0.80 + each for each in shared]), point("64", [0.82 + each for each in shared])]
    assert ranked(points, GOODPUT)[0].values == ("64",)
    assert standings(points, GOODPUT)[0].is_told_apart
    assert "Told apart from all others" in verdict(["spares"], points, GOODPUT)


def test_noise_of_ones_own_is_not_told_apart():
    points = [point("16", noisy(0.80, seed=1, noise=0.05)), point("64", noisy(0.805, seed=2, noise=0.05))]
    assert not standings(points, GOODPUT)[0].is_told_apart
    assert "Not to be told apart from it with 8 replicas: spares" in verdict(["spares"], points, GOODPUT)


def test_equal_points_are_never_told_apart():
    points = [point(name, [0.8, 0.8, 0.8]) for name in ("a", "b", "c")]
    assert not any(each.is_told_apart for each in standings(points, GOODPUT))


def test_one_replica_cannot_tell():
    told = verdict(["spares"], [point("0", [0.8]), point("16", [0.9])], GOODPUT)
    assert "spares 16, at 90.00 %" in told and "--replicas" in told


def test_less_time_and_money_are_better_and_none_is_worst():
    points = [point("0", [0.0, 0.0]), point("16", [0.9, 0.9]), point("64", [0.8, 0.8])]
    assert [each.values[0] for each in ranked(points, TIME)] == ["16", "64", "0"]
    assert summary(points[0], TIME) is None
    assert [each.is_told_apart for each in standings(points, TIME)] == [True, True]
    dear = Point(values=("x",), outcomes=(outcome(0.9, usd=0.5),))
    cheap = Point(values=("y",), outcomes=(outcome(0.7, usd=0.2),))
    assert ranked([dear, cheap], COST)[0] is cheap
    assert "No point has a cost" in verdict(["v"], [Point(values=("x",), outcomes=(outcome(0.9, usd=None),))], COST)


@given(st.integers(0, 1000), st.integers(2, 12))
def test_false_alarms_are_rare_by_construction(seed, num):
    """The interval is at least as wide as one comparison's, and shifts of everything change nothing."""
    one, other = noisy(0.8, num=num, seed=seed), noisy(0.8, num=num, seed=seed + 5000)
    told = standings([point("a", one), point("b", other)], GOODPUT)[0]
    moved = standings([point("a", [each + 0.1 for each in one]), point("b", [each + 0.1 for each in other])], GOODPUT)[0]
    assert told.half_width == pytest.approx(moved.half_width, rel=1e-6) and told.worse == pytest.approx(moved.worse, abs=1e-12)


@pytest.mark.parametrize("dims", [["spares"], ["spares", "interval"]])
def test_pictures_and_page(dims):
    values = [("0", "10 min"), ("0", "1 h"), ("16", "10 min"), ("16", "1 h")] if len(dims) == 2 else [("0",), ("16",), ("<64>",)]
    points = [Point(values=each, outcomes=tuple(map(outcome, noisy(0.7 + 0.05 * number)))) for number, each in enumerate(values)]
    drawn = plot(dims, points, GOODPUT)
    assert drawn is not None
    for size in ("wide", "narrow"):
        ElementTree.fromstring(drawn.inline(size))
    ElementTree.fromstring(drawn.picture().alone("x"))
    text = page("a job on a machine", "terms", dims, points, GOODPUT)
    parsed = Page(text)
    assert "Best goodput" in parsed.text and parsed.references == [] and len(parsed.ids) == len(set(parsed.ids))


def test_table_verdict_and_picture_tell_the_mean_that_points_are_ranked_by():
    """A skewed point: its median is 0.90, its mean 0.84."""
    skewed, steady = point("0", [0.9, 0.9, 0.9, 0.9, 0.6]), point("16", [0.85, 0.85, 0.85, 0.85, 0.85])
    points = [skewed, steady]
    told = {each.point: each for each in standings(points, GOODPUT)}
    assert header(["spares"], points, GOODPUT)[1] == "mean goodput"
    assert [cells(each, points, GOODPUT, told.get(each))[1] for each in ranked(points, GOODPUT)] == ["85.00 %", "84.00 %"]
    assert cells(skewed, points, GOODPUT, told[skewed])[3].startswith("1.00 points worse")
    assert "spares 16, at 85.00 % on average" in verdict(["spares"], points, GOODPUT)
    drawn = plot(["spares"], points, GOODPUT)
    assert drawn is not None and "mean goodput" in drawn.remark and "84.00 % on average" in drawn.inline("wide") and "90.00 %" not in drawn.description


@pytest.mark.parametrize("dims", [["interval"], ["spares", "interval"]])
def test_every_value_is_named_on_a_narrow_screen(dims):
    names = ["1 min", "3 min", "8 min 57 s", "26 min 48 s", "1 h 20 min", "4 h"]
    values = [(name,) for name in names] if len(dims) == 1 else [(spares, name) for spares in ("8", "16") for name in names]
    drawn = plot(dims, [Point(values=each, outcomes=tuple(map(outcome, noisy(0.7)))) for each in values], GOODPUT)
    assert drawn is not None
    root = ElementTree.fromstring(drawn.inline("narrow"))
    places = {text.text: (float(text.get("x", 0)), float(text.get("y", 0))) for text in root.iter("text") if text.text in names}
    assert list(places) == names and len({y for _, y in places.values()}) == 2
    high = float(root.get("viewBox", "").split()[3])
    assert all(y < high for _, y in places.values())


def test_a_long_name_can_be_broken_on_a_narrow_screen():
    text = page("t", "", ["checkpoint.interval"], [point("1 h", [0.5, 0.6])], GOODPUT)
    assert 'data-name="checkpoint.\u200binterval"' in text and "overflow-wrap:anywhere}.rows td:first-child" in text


def test_three_dims_are_a_table_only():
    points = [Point(values=("0", "1", "2"), outcomes=(outcome(0.8),)), Point(values=("1", "1", "2"), outcomes=(outcome(0.9),))]
    assert plot(["a", "b", "c"], points, GOODPUT) is None
    assert "a 1, b 1, c 2" in Page(page("t", "", ["a", "b", "c"], points, GOODPUT)).text


def test_rows_have_as_many_cells_as_the_header():
    for points in ([point("0", [0.5, 0.6]), point("1", [0.6, 0.7])], [point("0", [0.5])]):
        told = {each.point: each for each in standings(points, GOODPUT)}
        rows = [cells(each, points, GOODPUT, told.get(each)) for each in points]
        assert {len(row) for row in rows} == {len(header(["v"], points, GOODPUT))}


def test_where_no_point_gets_there_none_is_the_best():
    points = [point(name, [0.0, 0.0]) for name in ("0", "16")]
    told = {each.point: each for each in standings(points, TIME)}
    assert [cells(each, points, TIME, told.get(each))[3] for each in points] == ["never gets there"] * 2
    assert "the best" not in page("t", "", ["spares"], points, TIME).replace("Against the best", "").replace("against the best", "")
