"""Simulations in words, pictures, on a page and played: whole, for any screen, sums that hold, and nothing that a reader must know the code for."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulations import quiet, scenario, simulation
from test_pages import Page, plain

from colossus.report import simulation_words as words
from colossus.report.picture import flat, style
from colossus.report.simulation_live import Player, line, picture
from colossus.report.simulation_page import page
from colossus.report.simulation_plots import SHEETS, plots
from colossus.spec.causes import LABELS, Cause
from colossus.spec.faults import Duration, FaultClass, FaultProfile
from colossus.spec.simulation import NodeState

MOST_BYTES = 400_000


@pytest.fixture(scope="module")
def many():
    return simulation(num_replicas=40)


@pytest.mark.parametrize("made", [simulation(num_replicas=40), simulation(), quiet()], ids=["many", "one", "quiet"])
def test_the_page_is_whole_and_asks_for_nothing(made):
    text = page(made)
    parsed = Page(text)
    assert parsed.references == [] and "@import" not in text and "url(" not in text
    assert len(parsed.ids) == len(set(parsed.ids))
    assert len(text.encode()) < MOST_BYTES
    assert words.verdict(made) in parsed.text
    assert not re.search(r"\b(nan|inf|None)\b", text)


def test_the_page_explains_itself(many):
    text = Page(re.sub("<style>.*?</style>", "", page(many), flags=re.DOTALL)).text
    for told in (
        *("Useful work and losses over time", "The losses alone", "What interrupted the job", "Power of the site", "What the nodes do", "What it costs"),
        *("The costliest interruptions", "Goodput over replicas", "Time to train over replicas", "What was assumed", "HBM3 memory", "in 1,000 node-days"),
        *("Goodput: the share of the time", "9 in 10", "in repair", "spread over their life", "Every figure here is simulated"),
    ):
        assert told in text, told
    assert "hbm3_memory" not in text and "init_start" not in text
    assert len(re.findall('class="soft told"', page(many))) >= len(plots(many))


def test_a_quiet_simulation_says_so_and_shows_no_losses():
    text = Page(page(quiet())).text
    assert "without an interruption" in text and "The losses alone" not in text and "Power of the site" not in text and "none of which stopped the job" in text


def test_names_are_only_text():
    text = page(simulation(name="<script>alert(1)</script>", machine='"&<b>', notes=["<i>note</i>"], chosen={"<u>": "<s>"}))
    assert "<script" not in text and "<b>" not in text and "<i>" not in text and "<u>" not in text
    Page(text)


def test_pictures_stand_alone_and_can_be_drawn_without_variables(many):
    found = plots(many)
    assert [plot.name for plot in found] == ["timeline", "losses", "causes", "power", "nodes", "money", "goodput", "time-to-train", "interruptions"]
    for plot in found:
        alone = plot.picture().alone("somewhere")
        ElementTree.fromstring(alone)
        assert "var(--" not in flat(alone), plot.name
        for size in ("wide", "narrow"):
            ElementTree.fromstring(plot.inline(size))


@pytest.mark.parametrize("size", ["wide", "narrow"])
def test_nothing_is_drawn_outside(many, size):
    for plot in plots(many):
        root = ElementTree.fromstring(plot.inline(size))
        _, _, wide, high = map(float, root.get("viewBox", "").split())
        for text in root.iter("text"):
            at = float(text.get("x", 0))
            reach = 6.6 * len(text.text or "")
            left = at - reach if text.get("text-anchor") == "end" else at - reach / 2 if text.get("text-anchor") == "middle" else at
            if text.get("class") != "name" or text.get("text-anchor"):
                assert left > -8 and left + reach < wide + 16, (plot.name, text.text)
            assert 0 <= float(text.get("y", 0)) <= high + 1 or "transform" in ElementTree.tostring(root).decode(), plot.name


def test_every_cause_and_state_has_its_colour():
    rules = style(SHEETS)
    for css in (*(f"c-{cause.value}" for cause in Cause), *(f"n-{state.value}" for state in NodeState)):
        assert f".{css}{{fill:var(--{css})}}" in rules and rules.count(f"--{css}:") == 2, css
    assert set(words.STATES) == set(NodeState)


def test_the_stack_of_times_is_the_wall_time():
    one = simulation()
    assert sum(seconds for _, _, seconds, _, _ in words.time_rows(one)) == pytest.approx(words.time_total(one)[0])
    assert sum(row.number for row in words.cause_rows(one)) == one.first.num_interruptions
    assert sum(fraction for _, _, fraction, _ in words.money_rows(one)) == pytest.approx(1)
    assert sum(mean for _, _, mean, _ in words.node_rows(one)) == pytest.approx(one.num_nodes, rel=1e-3)


def test_tables_over_replicas_are_medians_within_their_own_interval(many):
    for cause, _, seconds, fraction, over in words.time_rows(many):
        good = cause is Cause.PRODUCTIVE
        spent = [one.goodput_s if good else one.badput_s[cause] for one in many.tallies]
        assert (seconds, fraction) == (pytest.approx(np.median(spent)), pytest.approx(np.median(spent) / many.first.wall_s))
        assert over == f"{words.percent(np.quantile(spent, 0.05) / many.first.wall_s)} to {words.percent(np.quantile(spent, 0.95) / many.first.wall_s)}"
    for row in words.cause_rows(many):
        times = [one.interruptions.get(row.cause, 0) for one in many.tallies]
        low, high = (float(end) for end in row.over.split(" to "))
        assert row.number == round(np.median(times)) and low <= row.number <= high
    costs = {name: usd for name, usd, _, _ in words.money_rows(many)}
    assert Page(page(many)).text.count("9 in 10") >= 6 and " to " in words.node_over(many, NodeState.SPARE) and words.money_over(many, "energy")
    assert costs["energy"] == np.median([one.bill.parts_usd["energy"] for one in many.tallies])


def test_verdict_figure_and_picture_tell_one_number_of_interruptions(many):
    """Not the median here and the first replica there: that has 400."""
    number = round(float(np.median([one.num_interruptions for one in many.tallies])))
    every = words.duration(54 * 86400 / number)
    told = {name: (value, remark) for name, value, remark in words.figures(many)}["interruptions"]
    drawn = next(plot.remark for plot in plots(many) if plot.name == "causes")
    assert number != many.first.num_interruptions and told[0] == f"{number:,}"
    for text in (words.verdict(many), told[1], drawn):
        assert f"one every {every}" in text
    assert f"{number:,} interruptions" in words.verdict(many) and f"{number:,} times" in drawn


def test_what_is_of_the_first_replica_says_so(many):
    titles = {plot.name: plot.title for plot in plots(many)}
    assert {name for name, title in titles.items() if title.endswith(", of the first replica")} == {"timeline", "losses", "power", "nodes"}
    assert {name for name, title in titles.items() if title.endswith(", median of 40 replicas")} == {"causes", "money"}
    text = Page(page(many)).text
    for told in (
        "The costliest interruptions, of the first replica",
        "lost work, of the first replica",
        "Nodes, median of 40 replicas",
        "Where the time went, median of 40",
    ):
        assert told in text, told
    assert "replica" not in Page(page(simulation())).text


def test_stops_on_purpose_and_by_the_grid_are_no_faults():
    made = simulation()
    stops = {"gpu": 5, "reboot": 14, "grid": 3}
    one = made.first.model_copy(update={"interruptions": stops, "faults": {"gpu": 7, "reboot": 14}})
    told = [made.incidents[0].model_copy(update={"cause": "reboot", "effect": "planned"})]
    made = made.model_copy(update={"tallies": [one], "incidents": told})
    assert words.fault_counts(made) == (17, 7)
    remark = {name: remark for name, _, remark in words.figures(made)}["interruptions"]
    assert "17 of them ordered or by the grid; 7 faults of hardware and software" in remark
    assert {row.cause: row.num_faults for row in words.cause_rows(made)} == {"gpu": 7, "reboot": None, "grid": None}


def test_a_horizon_within_the_first_step_has_no_goodput():
    one = simulation().first.model_copy(update={"time_to_train_s": None, "steps": 0, "wall_s": 1.0, "goodput_s": 0.992, "badput_s": {}})
    made = simulation(tallies=[one], scenario=scenario(horizon_s=1.0))
    name, value, remark = words.figures(made)[0]
    assert (name, value) == ("goodput", "none") and "99.2 % of the time went into one that was not done at the end" in remark
    assert "no step done, simulated</title>" in page(made) and "useful work" not in words.verdict(made)


@pytest.mark.parametrize(("left", "told"), [(0, "All 1,200,000 steps done"), (7, "All but 7 steps of 1,200,000"), (60_000, "95.0 % of the training done")])
def test_what_is_nearly_done_is_not_told_as_done(left, told):
    one = simulation().first.model_copy(update={"steps": 1_200_000 - left})
    text = words.verdict(simulation(tallies=[one]))
    assert told in text and "100 % of the training" not in text and ("at this pace" in text) == (left > 7)


def test_the_reason_of_a_costly_standstill_is_shown():
    made = simulation()
    costly = made.incidents[0].model_copy(update={"cause": "silent_data_corruption", "lost_s": 1e5, "reason": "wrong for 1 d 3 h"})
    assert "wrong for 1 d 3 h" in Page(page(made.model_copy(update={"incidents": [costly, *made.incidents[1:]]}))).text


def test_times_beyond_a_thousand_years_are_not_counted_in_days():
    assert words.duration(1e27) == words.duration(float("inf")) == "> 1,000 years"
    assert words.duration(999 * 365.25 * 86400) == "364884 d 18 h"


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.floats(0, 1))
def test_quantiles_are_numpys(values, fraction):
    assert words.quantile(values, fraction) == pytest.approx(float(np.quantile(values, fraction)), abs=1e-6)


def test_figures_are_medians_with_their_spread(many):
    told = {name: (value, remark) for name, value, remark in words.figures(many)}
    middle = float(np.median([one.goodput_fraction for one in many.tallies]))
    assert told["goodput"][0] == words.percent(middle) and "9 in 10 within" in told["goodput"][1]
    assert "9 in 10" not in {name: remark for name, _, remark in words.figures(simulation())}["goodput"]


def test_a_scenario_with_faults_of_its_own_is_told_in_full():
    nothing = Duration(mean_s=0.0)
    profile = FaultProfile(name="mine", classes=[FaultClass(cause="gpu", component="gpu", mtbf_s=1e9)], detect=nothing, diagnose=nothing, repair=nothing)
    assert "cause = &quot;gpu&quot;" in page(simulation(scenario=scenario(faults=profile)))


def test_interruptions_within_a_standstill_are_explained():
    made = simulation()
    few = made.model_copy(update={"incidents": made.incidents[:30]})
    assert words.standstills(made) == "" and words.standstills(few) in Page(page(few)).text
    assert "30 standstills" in line(Player(few).at(1e9))


def test_most_replicas_done_are_counted():
    made = simulation(num_replicas=3)
    tallies = [one.model_copy(update={"done": number > 0}) for number, one in enumerate(made.tallies)]
    assert "2 of them within 54 d" in words.verdict(simulation(tallies=tallies))
    assert "of the training done in" in words.verdict(made)


def test_no_progress_is_said_in_words():
    one = simulation().first.model_copy(update={"time_to_train_s": None, "steps": 0})
    assert "No lasting progress" in words.verdict(simulation(tallies=[one]))
    page(simulation(tallies=[one]))


def test_a_step_longer_than_the_time_is_no_useful_work():
    one = simulation().first.model_copy(update={"time_to_train_s": None, "steps": 0, "tokens": 0.0, "goodput_s": 54 * 86400.0, "badput_s": {}})
    made = simulation(tallies=[one], step_s=60 * 86400.0)
    told = words.verdict(made)
    assert "No step was done: one takes 60 d, and 54 d were simulated" in told and "useful work" not in told
    assert "not done at the end" in {name: remark for name, _, remark in words.figures(made)}["goodput"]


@given(st.sets(st.sampled_from(list(Cause)), max_size=6), st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_page_bears_any_shares(causes, is_dark):
    """Without useful work, without anything: a course has only the causes that occurred."""
    made = simulation()
    course = made.course
    shares = {cause: [1 / len(causes)] * 360 for cause in causes}
    site_w = [0.0] * 360 if is_dark else course.site_w
    text = page(made.model_copy(update={"course": course.model_copy(update={"shares": shares, "site_w": site_w})}))
    assert not re.search(r"\b(nan|inf)\b", text)
    line(Player(made).at(1e6))


def test_the_end_of_the_show_is_the_simulation(many):
    player = Player(many)
    end = player.at(10 * player.length_s)
    first = many.first
    assert end.step == first.steps and end.fraction == 1 and end.num_incidents == len(many.incidents)
    assert end.shares[Cause.PRODUCTIVE] == pytest.approx(np.mean(many.course.shares[Cause.PRODUCTIVE]))
    told = plain(picture(end, many), width=120)
    assert "last interruptions" in told and "in repair" in told and LABELS[Cause.LOST_WORK] in told and "400 standstills" in told


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1.2))
def test_every_moment_can_be_shown(share):
    for made in (simulation(), quiet()):
        player = Player(made)
        moment = player.at(share * player.length_s)
        assert 0 <= moment.fraction <= 1 and (moment.at_s < 1 or sum(moment.shares.values()) == pytest.approx(1))
        assert line(moment).startswith("day ") and "\n" not in line(moment)
        assert "nodes now" in plain(picture(moment, made))


def test_time_only_goes_forward():
    player = Player(simulation())
    moments = [player.at(player.length_s * index / 50) for index in range(51)]
    assert all(one.step <= other.step and one.num_incidents <= other.num_incidents for one, other in pairwise(moments))
