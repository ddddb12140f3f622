"""Laws of summarize, over random event streams."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from stream import Stream, example

from colossus.report import Cause, Report, summarize
from colossus.spec.causes import BADPUT
from colossus.spec.event import KINDS, Event

PHASES = ("joined", "compiled", "restored", "of another version")
DURATION = st.floats(0, 5, allow_nan=False)


@st.composite
def any_event(draw: st.DrawFn) -> Event:
    """An event of any kind, of plausible values, at any time of ten seconds."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    payload = example(kind)
    for name in payload:
        if name.endswith("_s"):
            payload[name] = draw(DURATION)
        elif name in ("step", "from_step", "to_step"):
            payload[name] = draw(st.integers(0, 8))
    if kind == "worker_phase":
        payload |= {"phase": draw(st.sampled_from(PHASES)), "source": draw(st.sampled_from(["init", "disk", "ram"]))}
    if kind == "step":
        payload |= {"applied": draw(st.booleans()), "loss": draw(st.none() | st.floats(-1, 9))}
    return Event(time_s=draw(st.floats(1e9, 1e9 + 10)), kind=kind, payload=payload)


STREAMS = st.lists(any_event(), max_size=40)


def check_conserved(report: Report) -> None:
    assert set(report.badput_s) == set(BADPUT)
    assert min(report.badput_s.values()) >= 0 <= report.goodput_s
    assert round(report.goodput_s + sum(report.badput_s.values()), 6) == report.wall_s


@settings(max_examples=150, deadline=None)
@given(STREAMS)
def test_goodput_and_badput_sum_to_the_wall_time(events: list[Event]) -> None:
    report = summarize(events)
    check_conserved(report)
    assert len(report.loss.steps) == len(set(report.loss.steps))
    assert report.loss.steps == sorted(report.loss.steps)


@settings(max_examples=60, deadline=None)
@given(STREAMS)
def test_a_report_survives_dump_and_load(events: list[Event]) -> None:
    report = summarize(events)
    assert Report.from_data(json.loads(report.to_json()), origin="test") == report


@settings(max_examples=60, deadline=None)
@given(STREAMS, st.randoms())
def test_the_order_of_lines_does_not_matter(events: list[Event], random: object) -> None:
    """Times differ, as two events of one writer always do."""
    unique = list({event.time_s: event for event in events}.values())
    shuffled = list(unique)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert summarize(shuffled) == summarize(unique)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 200), st.integers(5, 40))
def test_every_prefix_of_a_run_gives_a_report(length: int, kill_after: int) -> None:
    events = Stream(num_steps=45, kill_after=(kill_after,)).run()[:length]
    report = summarize(events)
    check_conserved(report)
    assert report.wall_s == (round(events[-1].time_s - events[0].time_s, 6) if events else 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 44), max_size=4, unique=True))
def test_kills_cost_time_but_change_no_step(kills: list[int]) -> None:
    """The curve of a run with kills is the undisturbed run's; each counted step is productive once."""
    quiet, killed = summarize(Stream(num_steps=45).run()), summarize(Stream(num_steps=45, kill_after=tuple(kills)).run())
    assert killed.loss == quiet.loss
    assert killed.validation == quiet.validation
    assert killed.tokens == quiet.tokens
    assert killed.replay_mismatches == []
    assert abs(killed.goodput_s - quiet.goodput_s) < 1e-3
    assert len(killed.incidents) == len(kills)
    assert killed.wall_s >= quiet.wall_s
    lost_s = sum(incident.lost_s for incident in killed.incidents)
    assert killed.badput_s[Cause.LOST_WORK] <= lost_s + len(kills) * 0.2
