"""The page, the pictures, the terminal and the follower: what a reader gets to see."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import renew
from hypothesis import given
from hypothesis import strategies as st
from stream import START_S, Stream

from colossus.report import Report, summarize, svg
from colossus.report.charts import loss_chart, loss_svg
from colossus.report.compare import Comparison, compare, curves_words
from colossus.report.compare import render as render_comparison
from colossus.report.html import page
from colossus.report.live import Follower, PlainLines, progress, status_line
from colossus.report.record import Curve
from colossus.report.schema import COMMAND, events_markdown
from colossus.report.terminal import render
from colossus.report.words import verdict
from colossus.spec.machine import Chip, Figure, How, Machine, Node
from colossus.spec.run import Run

PEAK = Figure(value=1.7e11, how=How.MEASURED, source="a GEMM")
MACHINE = Machine(
    name="here", node=Node(chip=Chip(name="some CPU", kind="cpu", peak_flop_per_s={"float32": PEAK}), num_chips=1, num_cores=2, memory_bytes=2**33)
)
VOID = {"meta", "link", "br", "img", "hr", "input"}


@pytest.fixture(scope="module")
def killed() -> Report:
    return summarize(Stream(num_steps=120, kill_after=(57,)).run())


class Page(HTMLParser):
    """Checks that tags close, and gathers text, ids and whatever would ask for a resource."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.ids: list[str] = []
        self.references: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [found["id"]] if found.get("id") else []
        self.references += [found[name] for name in ("src", "href", "action", "srcset") if found.get(name)]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data.replace("\u00a0", " ")


def plain(renderable: Any, width: int = 100) -> str:
    from rich.console import Console

    console = Console(width=width, force_terminal=False, no_color=True, record=True, file=StringIO())
    console.print(renderable)
    return console.export_text()


def test_the_page_is_whole_and_asks_for_nothing(killed: Report, tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.job.write_text('name = "<demo>"')
    run.machine.write_text(MACHINE.to_json())
    text = page(killed, run)
    parsed = Page(text)
    assert parsed.references == []
    assert "url(" not in text and "@import" not in text
    assert len(parsed.ids) == len(set(parsed.ids))
    for words in (
        verdict(killed),
        "worker 0 killed",
        "lost work",
        "restore 200 ms",
        str(tmp_path),
        '"<demo>"',
        "170 GFLOP/s (measured, a GEMM)",
        "dp 2 x fsdp 1",
    ):
        assert words in parsed.text


def test_the_pictures_are_xml_with_title_and_description(killed: Report) -> None:
    for text in [*re.findall(r"<svg.*?</svg>", page(killed), re.DOTALL), loss_svg(killed)]:
        root = ElementTree.fromstring(text if "xmlns" in text else text.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1))
        if root.get("aria-hidden") is None:
            assert [child.tag.split("}")[1] for child in root][:2] == ["title", "desc"]


def test_names_cannot_inject_markup() -> None:
    stream = Stream(num_steps=5)
    events = stream.run()
    events[0].payload["name"] = "<script>alert(1)</script>"
    text = page(summarize(events))
    assert "<script>alert" not in text
    Page(text)


@pytest.mark.parametrize("length", [0, 1, 2, 5, 11, 12, 60])
def test_every_prefix_can_be_shown(length: int) -> None:
    report = summarize(Stream(num_steps=30, kill_after=(17,)).run()[:length])
    Page(page(report))
    assert plain(render(report))
    assert loss_svg(report).startswith("<svg")


def test_a_million_steps_make_a_page_below_two_megabytes(killed: Report) -> None:
    steps = list(range(1, 1_000_001))
    curve = Curve(steps=steps, values=[2 + (step * 7919 % 1000) / 1e3 for step in steps])
    incidents = [killed.incidents[0].model_copy(update={"from_step": step}) for step in range(0, 1_000_000, 1000)]
    record = killed.checkpoints.model_copy(update={"saved_steps": steps[::100]})
    long = killed.model_copy(update={"loss": curve, "validation": curve, "steps": 1_000_000, "incidents": incidents, "checkpoints": record})
    assert len(page(long)) < 2_000_000


def test_a_kill_is_marked_at_its_step(killed: Report) -> None:
    assert loss_chart(killed).marks == [(57, "worker 0 killed")]
    assert "worker 0 killed" in loss_svg(killed)


def test_crowded_marks_are_numbered() -> None:
    report = summarize(Stream(num_steps=60, kill_after=tuple(range(5, 60, 2))).run())
    drawn = svg.draw(loss_chart(report), width=400, height=300, key="k")
    labels = re.findall(r'class="marked"[^>]*>([^<]*)<', drawn)
    assert labels[0] == "1" and all(label.isdigit() for label in labels)


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 12))
def test_ticks_are_round_and_within(low: float, span: float, num_ticks: int) -> None:
    high = low + span
    if high > low and span > abs(low) * 1e-6:
        ticks = svg.nice_ticks(low, high, num_ticks)
        slack = span * 1e-6
        assert all(low - slack <= tick <= high + slack for tick in ticks)
        assert 1 <= len(ticks) <= 2.6 * num_ticks + 1


def test_log_ticks_and_scale() -> None:
    assert svg.log_ticks(0.9, 120) == [1, 2, 5, 10, 20, 50, 100]
    scale = svg.Scale(low=1, high=100, start=0, end=10, log=True)
    assert (scale(1), scale(10), scale(100)) == (0, 5, 10)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400), st.integers(4, 50))
def test_downsampling_is_bounded_and_keeps_the_extremes(values: list[float], limit: int) -> None:
    points = [(float(index), value) for index, value in enumerate(values)]
    kept = svg.downsample(points, limit)
    assert len(kept) <= limit
    assert kept[0] == points[0] and kept[-1] == points[-1]
    assert kept == sorted(kept)
    assert max(values) in {value for _, value in kept} and min(values) in {value for _, value in kept}


def test_the_terminal_says_it_without_colour(killed: Report) -> None:
    text = plain(render(killed, paths={"report": "runs/demo-1/report.html"}))
    for words in ("goodput", "lost work", "wall time", "worker 0 killed by SIGKILL on purpose", "lost 7 steps (50 → 57)", "bit for bit", "report.html"):
        assert words in text
    assert "\x1b" not in text


def test_a_narrow_terminal_holds_the_plot(killed: Report) -> None:
    assert max(map(len, plain(render(killed, width=60), width=60).splitlines())) <= 60


def test_two_reports_side_by_side(killed: Report) -> None:
    quiet = summarize(Stream(num_steps=120).run(), how=How.SIMULATED)
    found = compare(killed, quiet)
    assert (found.num_common_steps, found.num_equal_losses, found.first_difference) == (120, 120, None)
    assert Comparison.from_data(found.to_data(), origin="test") == found
    ratios = {row.name: row.ratio for row in found.figures}
    assert ratios["wall time"] is not None and ratios["wall time"] < 1
    text = plain(render_comparison(found))
    assert "demo (simulated)" in text and "bit for bit" in text


def test_the_first_different_step_is_named() -> None:
    events = Stream(num_steps=12).run()
    other = Stream(num_steps=12).run()
    next(event for event in other if event.payload.get("step") == 7 and event.kind == "step").payload["loss"] += 0.5
    found = compare(summarize(events), summarize(other))
    assert (found.first_difference, found.num_equal_losses, found.largest_difference) == (7, 11, pytest.approx(0.5))
    assert "differ from step 7" in curves_words(found)


def test_the_follower_waits_for_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    follower, events = Follower(path), Stream(num_steps=40, kill_after=(27,)).run()
    assert follower.poll().step == 0
    with path.open("w") as file:
        for event in events:
            line = event.to_line() + "\n"
            for part in (line[:25], line[25:]):
                file.write(part)
                file.flush()
                follower.poll()
        file.write("not json\n")
    state = follower.poll()
    assert (state.step, state.num_faults, state.num_recovered, state.ended) == (40, 1, 1, "done")
    assert state.loss == events[-2].payload["loss"] or state.losses
    assert follower.new_events() == []


def test_the_follower_shows_speed_and_time_to_go(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events = [event for event in Stream(num_steps=40).run() if event.time_s < START_S + 8]
    path.write_text("".join(event.to_line() + "\n" for event in events))
    state = Follower(path).poll()
    assert state.remaining_s == pytest.approx((40 - state.step) * 0.125, rel=0.1)
    assert state.tokens_per_s == pytest.approx(4096 / 0.125, rel=0.1)
    line = status_line(state, now_s=START_S + 8)
    assert f"step {state.step}/40" in line and "tokens/s" in line and "to go" in line
    assert "step" in plain(progress(state, now_s=START_S + 8))


def test_plain_lines_come_every_few_seconds_and_notes_at_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    follower, lines, told = Follower(path), PlainLines(every_s=5), []
    with path.open("w") as file:
        for event in Stream(num_steps=100, kill_after=(57,)).run():
            file.write(event.to_line() + "\n")
            file.flush()
            told += lines.take(follower.poll(), now_s=event.time_s)
    assert 3 <= sum("to go" in line or "starting" in line for line in told) <= 6
    for words in (
        "SIGKILL sent to worker 0",
        "fault: worker 0 killed",
        "decision: restart with 2 workers",
        "recovered: training goes on from step 50",
        "done at step 100",
    ):
        assert sum(words in line for line in told) == 1


def test_the_follower_says_what_the_slowest_worker_does(tmp_path: Path) -> None:
    path, told = tmp_path / "events.jsonl", []
    follower = Follower(path)
    with path.open("w") as file:
        for event in Stream(num_steps=1).run():
            file.write(event.to_line() + "\n")
            file.flush()
            told.append((event.payload.get("phase"), follower.poll().phase))
    after = [phase for done, phase in told if done]  # each phase is done by rank 0, then by rank 1
    assert after == ["starting workers", "compiling", "compiling", "preparing the state", "preparing the state", "first step"]


def test_the_page_of_events_is_fresh() -> None:
    assert renew.EVENTS_PAGE.read_text(encoding="utf-8") == events_markdown(), f"{COMMAND} renews it"


def test_importing_report_is_light() -> None:
    code = "import sys, colossus.report, colossus.report.live, colossus.report.terminal; sys.exit('rich' in sys.modules or 'jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
