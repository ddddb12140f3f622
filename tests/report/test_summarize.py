"""What summarize says of logs made by hand, where every second is known."""

from __future__ import annotations

from typing import Any

import pytest
import renew
from stream import Stream

from colossus.report import Cause, Status, summarize, summarize_run
from colossus.spec.errors import RunError
from colossus.spec.event import Event, append_events
from colossus.spec.run import Run, create_simulation

T = 1_790_000_000.0


def step(at_s: float, number: int, *, loss: float | None = 2.0, duration_s: float = 1.0, **changes: Any) -> Event:
    payload = {
        "step": number,
        "loss": loss,
        "grad_norm": 1.0,
        "learning_rate": 1e-3,
        "duration_s": duration_s,
        "data_s": 0.0,
        "blocked_s": 0.0,
        "memory_bytes": 1,
        "applied": True,
    }
    return Event(time_s=T + at_s, kind="step", payload=payload | changes)


def event(at_s: float, kind: str, **payload: Any) -> Event:
    return Event(time_s=T + at_s, kind=kind, payload=payload)


def started(at_s: float, **changes: Any) -> Event:
    return event(at_s, "run_started", **({"name": "x", "num_workers": 2, "num_steps": 4, "layout": {"dp": 2}, "platform": "cpu"} | changes))


def fault(at_s: float, *, detected_s: float = 0.0, cause: str = "killed", rank: int | None = 1) -> Event:
    return event(at_s, "fault", cause=cause, detail="", detected_s=detected_s, rank=rank)


def test_the_golden_report_of_a_killed_run() -> None:
    assert renew.golden() == renew.GOLDEN.read_text(encoding="utf-8"), "python tests/report/renew.py renews it; look at the difference"


def test_no_events_give_an_empty_report() -> None:
    report = summarize([])
    assert (report.status, report.wall_s, report.steps, report.goodput_fraction) == (Status.EMPTY, 0, 0, 0)


def test_a_run_without_a_log_gives_an_empty_report(tmp_path: Any) -> None:
    assert summarize_run(Run(tmp_path)).status is Status.EMPTY


@pytest.mark.parametrize("text", [None, ""])
def test_a_simulation_without_its_events_is_an_error_that_names_the_file(tmp_path: Any, text: str | None) -> None:
    run = create_simulation(tmp_path, "x")
    if text is not None:
        run.events.write_text(text)
    with pytest.raises(RunError, match=r"x-twin-1/events\.jsonl (does not exist|is empty)"):
        summarize_run(run)


def test_data_readied_before_the_run_was_told_is_part_of_it() -> None:
    """The corpus is prepared before the run's folder, and so its log, exists."""
    ready = event(0.0, "data_ready", num_tokens=1, num_validation_tokens=1, vocab_size=2, cached=False, duration_s=8.0)
    report = summarize([started(0), ready, step(2, 1)])
    assert (report.wall_s, report.badput_s[Cause.INIT_DATA], report.badput_s[Cause.INIT_START]) == (10, 8, 1)
    assert report.started_at_s == T - 8


def test_a_run_killed_with_its_supervisor_is_unfinished() -> None:
    report = summarize([started(0), step(2, 1), step(3, 2)])
    assert (report.status, report.steps, report.wall_s, report.goodput_s) == (Status.UNFINISHED, 2, 3, 2)


def test_waits_inside_a_step_are_named() -> None:
    report = summarize([started(0), step(2, 1, duration_s=2.0, data_s=0.25, blocked_s=0.5)])
    assert (report.goodput_s, report.badput_s[Cause.DATA_WAIT], report.badput_s[Cause.CHECKPOINT]) == (1.25, 0.25, 0.5)


@pytest.mark.parametrize("inside", [False, True])
def test_blocked_time_told_twice_counts_once(inside: bool) -> None:
    """The loop tells it as an event when it happens, and again with the next step."""
    blocked = event(1.5, "checkpoint_started", step=1, tier="disk", blocked_s=0.5)
    second = step(2.5, 2, duration_s=1.5 if inside else 1.0, blocked_s=0.5)
    report = summarize([started(0), step(1, 1), blocked, second])
    assert (report.goodput_s, report.badput_s[Cause.CHECKPOINT], report.badput_s[Cause.OTHER]) == (2.0, 0.5, 0.0)


def test_a_replay_with_another_loss_is_told() -> None:
    events = [started(0), step(1, 1), step(2, 2, loss=1.5), fault(2.5), step(4, 2, loss=1.5 + 2**-30), step(5, 3)]
    report = summarize(events)
    assert (report.replayed_steps, report.replay_mismatches) == (1, [2])
    assert report.loss.values == [2.0, 1.5 + 2**-30, 2.0]


def test_another_gang_need_not_give_the_same_bits() -> None:
    shrunk = event(2.6, "attempt_started", attempt=2, num_workers=1, how="start", pids=[1])
    report = summarize([started(0), step(1, 1), step(2, 2, loss=1.5), fault(2.5), shrunk, step(4, 2, loss=1.25)])
    assert (report.replayed_steps, report.replay_mismatches) == (1, [])


def test_steps_not_yet_done_again_are_lost_as_soon_as_the_state_went_back() -> None:
    restored = event(4, "worker_phase", phase="restored", duration_s=1.0, step=1, source="disk")
    report = summarize([started(0), step(1, 1), step(2, 2), step(3, 3), fault(3), restored])
    assert (report.steps, report.goodput_s, report.badput_s[Cause.LOST_WORK]) == (1, 1.0, 2.0)
    incident = report.incidents[0]
    assert (incident.lost_steps, incident.lost_s, incident.to_step, incident.finished) == (2, 2.0, 1, False)


def test_the_death_of_a_standby_costs_nothing() -> None:
    report = summarize([started(0), step(1, 1), fault(1.5, detected_s=0.1, rank=None), step(2, 2), step(3, 3)])
    assert (report.goodput_s, report.wall_s) == (3, 3)
    assert len(report.incidents) == 1


def test_time_before_an_unknown_moment_of_death_is_lost_for_one_step_at_most() -> None:
    report = summarize([started(0), step(1, 1), fault(4), step(6, 2)])
    assert (report.badput_s[Cause.LOST_WORK], report.badput_s[Cause.DETECT], report.badput_s[Cause.RESTART]) == (1, 2, 1)


def test_faults_before_the_next_step_are_one_incident() -> None:
    report = summarize([started(0), step(1, 1), fault(1.5), fault(2, cause="exited"), step(4, 2)])
    assert [len(incident.faults) for incident in report.incidents] == [2]
    assert report.incidents[0].downtime_s == 2.0
    assert report.num_faults == 2


def phase(at_s: float, name: str, **extra: Any) -> Event:
    return event(at_s, "worker_phase", phase=name, duration_s=1.0, **extra)


def test_the_parts_of_a_downtime_cover_every_fault_in_it() -> None:
    """The second fault strikes while the gang compiles."""
    first = [fault(1.5, detected_s=0.25), phase(2, "joined"), phase(3, "compiled", compilations=1)]
    second = [fault(4, detected_s=0.5), phase(6, "joined"), phase(7, "compiled", compilations=2), phase(8, "restored", step=1, source="disk")]
    incident = summarize([started(0), step(1, 1), *first, *second, step(9, 2)]).incidents[0]
    assert (incident.downtime_s, incident.detect_s, incident.start_s, incident.compile_s, incident.restore_s) == (7, 0.75, 3.0, 2, 1)
    assert (incident.first_step_s, incident.compilations) == (1, 3)
    assert incident.downtime_s == 0.25 + incident.detect_s + incident.start_s + incident.compile_s + incident.restore_s


def test_without_phases_the_supervisors_word_stands() -> None:
    told = {"downtime_s": 2.0, "detect_s": 0.25, "start_s": 0.5, "restore_s": 0.25, "compile_s": 1.0, "first_step_s": 1.0, "compilations": 4}
    recovered = event(4, "recovered", from_step=1, to_step=1, lost_steps=0, **told)
    incident = summarize([started(0), step(1, 1), fault(1.5), step(4, 2), recovered]).incidents[0]
    assert (incident.detect_s, incident.start_s, incident.compile_s, incident.compilations) == (0.25, 0.5, 1.0, 4)


def test_a_peers_echo_is_not_the_cause() -> None:
    report = summarize([started(0), step(1, 1), fault(1.5, cause="peer", rank=0), fault(1.6, cause="exited"), step(4, 2)])
    assert report.incidents[0].root.cause == "exited"


def test_a_pause_between_sessions_is_named_but_no_wall_time() -> None:
    first = [started(0), step(1, 1), event(2, "run_ended", status="interrupted", step=1)]
    second = [started(102), step(105, 2), event(105, "run_ended", status="done", step=2)]
    report = summarize(first + second)
    assert (report.wall_s, report.status, report.steps) == (5, Status.DONE, 2)
    assert [(pause.at_s, pause.duration_s) for pause in report.pauses] == [(2, 100)]
    assert report.badput_s[Cause.INIT_START] == 2
    assert report.goodput_s == 2


def test_a_session_after_a_kill_loses_the_steps_after_its_checkpoint() -> None:
    restored = event(52, "worker_phase", phase="restored", duration_s=1.0, step=1, source="disk")
    report = summarize([started(0), step(1, 1), step(2, 2), started(50), restored, step(53, 2)])
    assert (report.wall_s, report.goodput_s, report.badput_s[Cause.LOST_WORK], report.badput_s[Cause.RESTORE]) == (5, 2, 1, 2)


def test_a_rollback_is_restoring_and_its_steps_are_lost() -> None:
    back = event(4, "rollback", from_step=3, to_step=1, reason="3 bad steps in a row")
    report = summarize([started(0), step(1, 1), step(2, 2, applied=False), step(3, 3, applied=False), back, step(5, 2)])
    assert report.loss.steps == [1, 2]
    assert (report.badput_s[Cause.BAD_STEPS], report.badput_s[Cause.RESTORE]) == (2, 1)
    assert report.rollbacks[0].to_step == 1


def test_speed_and_mfu() -> None:
    facts = {"tokens_per_step": 100, "model_flop_per_token": 10.0, "peak_flop_per_s": 4000.0, "peak_how": "datasheet"}
    report = summarize([started(0, **facts), step(2, 1, duration_s=0.5), step(2.5, 2, duration_s=0.5)])
    assert (report.tokens, report.tokens_per_s, report.overall_tokens_per_s) == (200, 200, 80)
    assert (report.mfu_fraction, report.overall_mfu_fraction, report.peak_how) == (0.5, 0.2, "datasheet")


def test_skipped_steps_train_no_tokens() -> None:
    report = summarize([started(0, tokens_per_step=100), step(2, 1), step(3, 2, applied=False)])
    assert report.tokens == 100


def test_the_timeline_holds_the_same_time_as_the_totals() -> None:
    report = summarize(Stream(kill_after=(27,)).run())
    for cause, total_s in (report.badput_s | {Cause.PRODUCTIVE: report.goodput_s}).items():
        drawn_s = sum(report.timeline.shares.get(cause, [])) * report.timeline.bin_s
        assert drawn_s == pytest.approx(total_s, abs=0.02)
    assert sum(report.timeline.steps_per_s) * report.timeline.bin_s == pytest.approx(67, abs=0.1)


def test_torn_lines_harm_no_other(tmp_path: Any) -> None:
    run = Run(tmp_path)
    events = Stream(num_steps=20, kill_after=(12,)).run()
    append_events(run.events, events[:20])
    with run.events.open("a") as file:
        file.write('{"time_s":179000')
    append_events(run.events, events[20:])
    assert summarize_run(run) == summarize(events)


def span(at_s: float, first: int, last: int, *, duration_s: float, **parts_s: float) -> Event:
    """Steps after ``first`` up to ``last``; what no part names is productive."""
    parts = {"blocked_s": 0.0, "straggler_s": 0.0, "power_cap_s": 0.0, "fewer_nodes_s": 0.0} | parts_s
    productive_s = duration_s - sum(parts.values())
    return event(at_s, "steps", from_step=first, to_step=last, duration_s=duration_s, productive_s=productive_s, num_saves=0, **parts)


def test_every_part_of_a_span_of_steps_has_its_cause() -> None:
    one = span(101, 0, 10, duration_s=100, blocked_s=4, straggler_s=8, power_cap_s=16, fewer_nodes_s=32)
    report = summarize([started(0, tokens_per_step=7), event(1, "waiting", duration_s=0.5, reason="a node"), one])
    causes = (Cause.CHECKPOINT, Cause.STRAGGLER, Cause.POWER_CAP, Cause.FEWER_NODES, Cause.WAIT_NODES, Cause.INIT_START)
    assert [report.badput_s[cause] for cause in causes] == [4, 8, 16, 32, 0.5, 0.5]
    assert (report.goodput_s, report.steps, report.tokens, report.median_step_s) == (40, 10, 70, 10)
    assert sum(report.timeline.steps_per_s) * report.timeline.bin_s == pytest.approx(10, rel=1e-3)


@pytest.mark.parametrize("kept", [0, 4, 6, 10])
def test_a_rewind_cuts_the_span_that_it_falls_into(kept: int) -> None:
    events = [started(0, tokens_per_step=7), span(60, 0, 6, duration_s=60), span(100, 6, 10, duration_s=40), fault(102, detected_s=2.0)]
    back = event(110, "worker_phase", phase="restored", duration_s=1.0, step=kept, source="disk")
    report = summarize([*events, back, span(120 + 10 * (10 - kept), kept, 10, duration_s=10 * (10 - kept) or 1)][: 6 if kept < 10 else 5])
    assert (report.steps, report.tokens, report.goodput_s, report.replayed_steps) == (10, 70, 100, 10 - kept)
    assert (report.badput_s[Cause.LOST_WORK], report.badput_s[Cause.DETECT]) == (10 * (10 - kept), 2)
    assert report.incidents[0].lost_steps == 10 - kept and report.incidents[0].lost_s == 10 * (10 - kept)


def test_single_steps_and_spans_of_them_come_to_the_same() -> None:
    alone = [step(10 * number, number, duration_s=10.0) for number in range(1, 11)]
    one, many = summarize([started(0), span(100, 0, 10, duration_s=100)]), summarize([started(0), *alone])
    same = ("wall_s", "goodput_s", "badput_s", "steps", "median_step_s")
    assert [getattr(one, name) for name in same] == [getattr(many, name) for name in same]
    assert one.timeline.steps_per_s == many.timeline.steps_per_s


def test_a_save_before_a_span_does_not_count_as_one_inside() -> None:
    """Unlike a single step, a span does not tell again what blocked the steps before it."""
    save = event(11, "checkpoint_started", step=10, tier="disk", blocked_s=1.0)
    report = summarize([started(0), span(10, 0, 10, duration_s=10), save, span(21, 10, 20, duration_s=10, blocked_s=2)])
    assert (report.goodput_s, report.badput_s[Cause.CHECKPOINT], report.wall_s) == (18, 3, 21)


def test_waiting_for_nodes_is_a_part_of_the_downtime() -> None:
    wait = event(12, "waiting", duration_s=5.0, reason="no spare left")
    report = summarize([started(0), step(1, 1), fault(3, detected_s=2.0), phase(5, "joined"), wait, phase(13, "restored", step=1, source="disk"), step(14, 2)])
    incident = report.incidents[0]
    assert (incident.wait_s, incident.downtime_s, report.badput_s[Cause.WAIT_NODES]) == (5, 12, 5)


def test_a_simulated_fault_names_its_node_and_component() -> None:
    told = event(2, "fault", cause="hbm", detail="", detected_s=0.5, node=7, component="hbm")
    record = summarize([started(0), step(1, 1), told]).incidents[0].root
    assert (record.node, record.component) == (7, "hbm")
