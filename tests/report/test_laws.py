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


@st.composite
def lives(draw: st.DrawFn) -> list[tuple[int, int, float]]:
    """Stretches of a run: from a step, up to a step, at a pace; each begins where the last one ended, or was thrown back to."""
    at, found = 0, []
    for _ in range(draw(st.integers(1, 8))):
        to = at + draw(st.integers(1, 12))
        found.append((at, to, draw(st.sampled_from([0.5, 1.0, 2.5]))))
        at = draw(st.integers(0, to)) if draw(st.booleans()) else to
    return found


def told(stretches: list[tuple[int, int, float]], *, as_spans: bool) -> list[Event]:
    """The same life step by step, or a stretch at a time; a rewind is a fault, two seconds of waiting, and a restored state."""
    now_s, last, events = 10.0, 0, [Event(time_s=0.0, kind="waiting", payload={"duration_s": 0.0, "reason": ""})]
    for first, to, step_s in stretches:
        if first != last:
            now_s += 1
            events.append(Event(time_s=now_s, kind="fault", payload={"cause": "hbm", "detail": "", "detected_s": 1.0, "node": 3}))
            now_s += 2
            events.append(Event(time_s=now_s, kind="waiting", payload={"duration_s": 2.0, "reason": "no node"}))
            now_s += 1
            events.append(Event(time_s=now_s, kind="worker_phase", payload={"phase": "restored", "duration_s": 1.0, "step": first, "source": "disk"}))
        for begin, end in [(first, to)] if as_spans else [(step, step + 1) for step in range(first, to)]:
            duration_s = (end - begin) * step_s
            now_s += duration_s
            if as_spans:
                parts = {"productive_s": duration_s, "blocked_s": 0.0, "straggler_s": 0.0, "power_cap_s": 0.0, "fewer_nodes_s": 0.0, "num_saves": 0}
                events.append(Event(time_s=now_s, kind="steps", payload={"from_step": begin, "to_step": end, "duration_s": duration_s} | parts))
            else:
                payload = example("step") | {"step": end, "loss": None, "duration_s": duration_s, "data_s": 0.0, "blocked_s": 0.0}
                events.append(Event(time_s=now_s, kind="step", payload=payload))
        last = to
    return events


@settings(max_examples=150, deadline=None)
@given(lives())
def test_spans_of_steps_come_to_what_their_single_steps_do(stretches: list[tuple[int, int, float]]) -> None:
    """To the microsecond, through any rewinds, also those that cut a span in two."""
    alone, spans = (summarize(told(stretches, as_spans=as_spans)) for as_spans in (False, True))
    check_conserved(spans)
    for name in ("wall_s", "goodput_s", "badput_s", "steps", "replayed_steps", "lost_steps", "num_faults"):
        assert getattr(alone, name) == getattr(spans, name), name
    assert [(each.lost_steps, each.lost_s, each.downtime_s, each.wait_s) for each in alone.incidents] == [
        (each.lost_steps, each.lost_s, each.downtime_s, each.wait_s) for each in spans.incidents
    ]
