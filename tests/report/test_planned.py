"""Planned against measured: the rows, what they say, and runs of before."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from stream import Stream
from test_pages import Page, plain

from colossus.estimate.local import Work, local_step
from colossus.report import Report, summarize
from colossus.report.html import page
from colossus.report.planned import PART_NAMES
from colossus.report.terminal import render
from colossus.report.words import planned_advice
from colossus.spec.event import Event
from colossus.spec.layout import Layout
from colossus.spec.machine import How
from colossus.spec.model import ModelCard
from tests.plan.rates import RATES

CARD = ModelCard(vocab_size=512, num_layers=4, model_dim=64, num_heads=4, num_kv_heads=2, head_dim=16, ffn_dim=192)
STEP = {
    "step_s": 0.1,
    "lower_step_s": 0.09,
    "upper_step_s": 0.15,
    "parts_s": {"gemm": 0.07, "dp": 0.02, "overhead": 0.01},
    "how": "measured",
    "source": "kernels <here>",
}
PLANNED: dict[str, Any] = {"num_workers": 2, "step": STEP, "memory_bytes": 400_000_000, "save_bytes": 50_000_000, "compile_s": 2.0}


def report(planned: Any = PLANNED, *, parts: bool = True, num_workers: int = 2) -> Report:
    events = Stream(num_steps=40).run()
    events[0].payload["planned"] = planned
    for event in events:
        if event.kind == "attempt_started":
            event.payload["num_workers"] = num_workers
    if parts:
        at = next(index for index, event in enumerate(events) if event.kind == "step") + 5
        shares = {"gemm": 0.08, "communication": 0.03, "elementwise": 0.01}
        events.insert(at, Event(time_s=events[at].time_s, kind="step_parts", payload={"step": 6, "parts_s": shares}))
    return summarize(events)


def row(found: Report, name: str) -> Any:
    return next(row for row in found.planned if row.name == name)


def test_every_figure_stands_beside_its_plan():
    found = report()
    assert row(found, "step").ratio == pytest.approx(1.24, abs=0.1)
    assert row(found, "tokens/s").planned == pytest.approx(4096 / 0.1)
    assert row(found, "MFU").ratio == pytest.approx(1 / row(found, "step").ratio)
    assert row(found, "checkpoint").ratio == pytest.approx(56 / 50)
    assert row(found, "checkpoint, begun to committed").planned is None
    assert row(found, "compiling the step").ratio == pytest.approx(1.1)
    assert (row(found, "matrix products").planned, row(found, "matrix products").measured) == (0.07, 0.08)
    assert (row(found, "communication").planned, row(found, "communication").measured) == (0.02, 0.03)
    assert Report.from_data(found.to_data(), origin="test") == found


@pytest.mark.parametrize("remat", ["selective", "full"])
def test_recomputing_is_planned_where_a_profile_sees_it(remat):
    work = Work.of(CARD, Layout(dp=2, remat=remat), 16, 128)
    parts_s = local_step(work, RATES)
    once_s = local_step(dataclasses.replace(work, layout=Layout(dp=2)), RATES)
    found = report(PLANNED | {"remat": remat, "step": STEP | {"parts_s": parts_s, "step_s": sum(parts_s.values())}})
    planned = lambda name: row(found, PART_NAMES[name]).planned
    grown = {"selective": {"elementwise": 1.4}, "full": {"gemm": 4 / 3, "attention": 9 / 7, "elementwise": 1.4}}[remat]
    for name in ("gemm", "attention", "elementwise"):
        assert planned(name) == pytest.approx(grown.get(name, 1.0) * once_s[name])
    assert sum(row.planned for row in found.planned if row.is_part) == pytest.approx(sum(parts_s.values()))


def test_terminal_and_page_show_the_table():
    found = report()
    for text in (plain(render(found)), Page(page(found)).text):
        assert "lanned against measured" in text and "matrix products" in text and "expected" in text
    assert "kernels <here>" in Page(page(found)).text


def test_a_simulated_run_is_not_told_as_measured():
    found = report(PLANNED | {"step": STEP | {"step_s": 0.05, "lower_step_s": 0.04, "upper_step_s": 0.06}}).model_copy(update={"how": How.SIMULATED})
    terminal, drawn = plain(render(found), width=200), page(found)
    assert terminal.startswith("Simulated: ") and "planned against simulated" in terminal and "Every figure here is simulated" in terminal
    assert (
        "Planned against simulated" in drawn
        and f'<span class="pill {found.status.value}">simulated' in drawn
        and "Every figure here is simulated" in Page(drawn).text
    )
    assert ">simulated</th>" in drawn and ">measured</th>" not in drawn and "against measured" not in terminal + drawn
    assert "colossus calibrate" not in terminal + drawn and not page(report()).count("imulated")


def test_a_step_outside_its_interval_says_what_to_do():
    assert planned_advice(report()) is None
    slow = report(PLANNED | {"step": STEP | {"step_s": 0.05, "lower_step_s": 0.04, "upper_step_s": 0.06}})
    advice = planned_advice(slow)
    assert advice is not None and "colossus calibrate" in advice and "colossus machine --measure" in advice
    assert advice in plain(render(slow), width=400)


def test_steps_of_a_gang_of_another_size_do_not_count():
    assert not [found for found in report(num_workers=1).planned if found.name == "step"]


@pytest.mark.parametrize("planned", [None, {"num_workers": 2}, {"from": "the future"}, 7])
def test_runs_that_planned_less_or_otherwise_are_still_read(planned):
    found = report(planned, parts=False)
    assert found.steps == 40 and not found.planned
    assert "lanned against" not in plain(render(found))
