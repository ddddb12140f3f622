"""A report in words: the verdict, key figures and table cells that terminal and HTML share."""

from __future__ import annotations

from colossus.report.record import Incident, PlannedRow, Report, Status
from colossus.spec.causes import BADPUT, LABELS, Cause
from colossus.spec.machine import How
from colossus.spec.units import format_duration, format_quantity

_VERBS = {
    Status.DONE: "Done",
    Status.INTERRUPTED: "Interrupted",
    Status.FAILED: "Failed",
    Status.UNFINISHED: "Unfinished",
}


def percent(fraction: float | None) -> str:
    """``percent(0.0425) == "4.3 %"``; a dash for what is not known."""
    if fraction is None:
        return "–"
    value = fraction * 100
    return f"{value:.0f} %" if value >= 99.95 or value == 0 else f"{value:.1f} %" if value >= 0.1 else "< 0.1 %"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return "0 s" if seconds == 0 else format_duration(seconds)


def whole_duration(seconds: float) -> str:
    """A clock for people who watch: whole seconds."""
    return "0 s" if seconds < 0.5 else format_duration(round(seconds))


def count(number: float, noun: str) -> str:
    """``count(2, "kill") == "2 kills"``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}g}"


def describe_layout(layout: object) -> str:
    """``dp 2 x fsdp 1 x tp 1, remat none, 1 microbatch`` of a layout's data; text stays as it is."""
    if not isinstance(layout, dict):
        return str(layout) if layout else "–"
    axes = " x ".join(f"{name} {size}" for name, size in layout.items() if isinstance(size, int) and name != "num_microbatches")
    rest = [f"remat {layout['remat']}"] if layout.get("remat") else []
    if layout.get("num_microbatches"):
        rest.append(count(layout["num_microbatches"], "microbatch").replace("hs", "hes"))
    return ", ".join([axes, *rest])


def verdict(report: Report) -> str:
    """One sentence: whether it was only simulated, how it ended, how far, what was learned, what it survived, how well the time was used."""
    told = _verdict(report)
    return told if report.how is How.MEASURED else f"{report.how.value.capitalize()}: {told[0].lower()}{told[1:]}"


def _verdict(report: Report) -> str:
    if report.status is Status.EMPTY:
        return "No events yet."
    parts = [f"{_VERBS[report.status]} after {_steps(report)} in {duration(report.wall_s)}"]
    if report.status_reason and report.status is not Status.DONE:
        parts[0] += f" ({report.status_reason})"
    first = next((value for value in report.loss.values if value is not None), None)
    if first is not None and report.final_loss is not None:
        parts.append(f"loss {number(first, 3)} → {number(report.final_loss, 3)}")
    survived = sum(incident.finished for incident in report.incidents)
    if report.incidents:
        parts.append(f"survived {survived} of {count(len(report.incidents), 'interruption')}")
    parts.append(f"goodput {percent(report.goodput_fraction)}")
    if report.replay_mismatches:
        parts.append(f"{count(len(report.replay_mismatches), 'replayed step')} gave another loss: silent corruption")
    return ", ".join(parts) + "."


def _steps(report: Report) -> str:
    known = report.num_steps is not None and (report.status is not Status.DONE or report.num_steps != report.steps)
    return f"{report.steps:,} of {report.num_steps:,} steps" if known else count(report.steps, "step")


def figures(report: Report) -> list[tuple[str, str, str]]:
    """Key figures as (name, value, remark), those that are known."""
    rows = [
        ("steps", _steps(report).replace(" steps", "").replace(" step", ""), f"median {duration(report.median_step_s)} a step" if report.median_step_s else "")
    ]
    if report.final_loss is not None:
        rows.append(("training loss", f"{report.final_loss:.4f}", "last step" if report.tokens_per_step is None else "nats per token, last step"))
    if report.final_validation_loss is not None:
        rows.append(("validation loss", f"{report.final_validation_loss:.4f}", f"perplexity {report.final_perplexity:.4g}" if report.final_perplexity else ""))
    rows += [(name, f"{value:.4g}", "validation") for name, value in report.final_metrics.items() if isinstance(value, int | float)]
    if report.tokens is not None:
        rows.append(("tokens", format_quantity(report.tokens, "").strip(), f"{report.tokens_per_step:,} a step"))
    if report.tokens_per_s is not None:
        rows.append(("tokens/s", f"{report.tokens_per_s:,.0f}", f"median step; {report.overall_tokens_per_s:,.0f} over the wall time"))
    if report.mfu_fraction is not None:
        peak = format_quantity(report.peak_flop_per_s or 0, "FLOP/s")
        rows.append(
            (
                "MFU",
                percent(report.mfu_fraction),
                f"of {peak} ({_first_word(report.peak_how) or 'source unknown'}); {percent(report.overall_mfu_fraction)} over the wall time",
            )
        )
    rows.append(("goodput", percent(report.goodput_fraction), f"{duration(report.goodput_s)} of {duration(report.wall_s)}"))
    if report.memory_peak_bytes:
        rows.append(("peak memory", format_quantity(report.memory_peak_bytes, "B", binary=True), "busiest device"))
    return rows


def _first_word(how: str | None) -> str | None:
    """``measured`` of ``measured: best GEMM of ten``; the page's foot tells the rest."""
    return how.partition(":")[0] if how else None


def time_rows(report: Report) -> list[tuple[Cause, str, float, float]]:
    """Where the wall time went, as (cause, label, seconds, fraction): goodput first, then what is not zero."""
    wall = report.wall_s or 1.0
    rows = [(Cause.PRODUCTIVE, report.goodput_s), *((cause, report.badput_s.get(cause, 0.0)) for cause in BADPUT)]
    return [(cause, LABELS[cause], seconds, seconds / wall) for cause, seconds in rows if seconds or cause is Cause.PRODUCTIVE]


def incident_cells(incident: Incident) -> list[str]:
    """time, fault, decision, lost work, downtime, its parts."""
    return [
        duration(incident.time_s),
        fault_words(incident),
        decision_words(incident),
        lost_words(incident),
        duration(incident.downtime_s),
        parts_words(incident),
    ]


def fault_words(incident: Incident) -> str:
    root = incident.root
    where = f"worker {root.rank} " if root.rank is not None else ""
    others = len(incident.faults) - 1
    detail = root.detail if len(root.detail) <= 80 else root.detail[:77] + "..."
    return f"{where}{root.cause} {detail}".rstrip() + (" on purpose" if root.injected else "") + (f" (+ {others} more)" if others else "")


def decision_words(incident: Incident) -> str:
    if not incident.actions:
        return "none" if incident.finished else "undecided"
    gang = f", {count(incident.num_workers, 'worker')}" if incident.num_workers is not None and incident.actions[-1] != "give_up" else ""
    return ", then ".join(incident.actions).replace("_", " ") + gang


def lost_words(incident: Incident) -> str:
    if incident.lost_steps == 0:
        return "no step"
    return f"{count(incident.lost_steps, 'step')} ({incident.to_step} → {incident.from_step})" + (f", {duration(incident.lost_s)}" if incident.lost_s else "")


def parts_words(incident: Incident) -> str:
    names = {
        "detect": incident.detect_s,
        "start": incident.start_s,
        "restore": incident.restore_s,
        "compile": incident.compile_s,
        "wait for nodes": incident.wait_s,
        "first step": incident.first_step_s,
    }
    text = ", ".join(f"{name} {duration(seconds)}" for name, seconds in names.items() if seconds is not None)
    if not text:
        return "the log ends before it was over" if not incident.finished else "not told"
    return text + (f" ({count(incident.compilations, 'program')} compiled)" if incident.compilations else "")


def checkpoint_rows(report: Report) -> list[tuple[str, str]]:
    record = report.checkpoints
    rows = [("saved to disk", str(record.num_saved))]
    if record.num_in_ram:
        rows.append(("copies in memory", str(record.num_in_ram)))
    if record.num_in_spans:
        rows.append(("within spans of steps", f"{record.num_in_spans:,}"))
    if record.interval_steps:
        rows.append(("interval", count(record.interval_steps, "step")))
    if record.mean_size_bytes is not None:
        rows.append(("size", format_quantity(record.mean_size_bytes, "B")))
    if record.mean_duration_s is not None:
        rows.append(("time of a save", f"{duration(record.mean_duration_s)} on average"))
    if record.blocked_fraction is not None:
        rows.append(("steps stood still for", f"{percent(record.blocked_fraction)} of it"))
    return rows + [("problem", problem) for problem in record.problems]


def planned_cells(row: PlannedRow) -> list[str]:
    """name, planned, measured (or simulated), ratio, remark."""
    ratio = "–" if row.ratio is None else f"{row.ratio:.2f} x"
    ends = "" if row.lower is None or row.upper is None else f"{_quantity(row.lower, row.unit)} to {_quantity(row.upper, row.unit)} expected"
    remark = ends if row.is_as_planned else f"outside the {ends}"
    return [("  " if row.is_part else "") + row.name, _quantity(row.planned, row.unit), _quantity(row.measured, row.unit), ratio, remark]


def _quantity(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    if unit == "s":
        return duration(value)
    if unit == "B":
        return format_quantity(value, "B", binary=True)
    return f"{value:,.0f}" if unit == "tokens/s" else percent(value)


def planned_advice(report: Report) -> str | None:
    """What to do where the step took another time than was planned."""
    step = next((row for row in report.planned if row.name == "step"), None)
    if report.how is not How.MEASURED:
        return None
    if step is None or step.is_as_planned or step.ratio is None:
        return None
    return (
        f"A step took {step.ratio:.2f} x its plan ({report.planned_source}). `colossus calibrate RUN` makes the next plan of this machine its own; "
        "`colossus machine --measure` measures it anew, best while nothing else runs."
    )


def provenance(report: Report) -> str:
    """What the figures rest on."""
    if report.how is How.SIMULATED:
        return "Every figure here is simulated: no machine did what events.jsonl tells."
    return f"All times and losses are {report.how.value}, from events.jsonl."


def notes(report: Report) -> list[str]:
    """What a reader must not miss."""
    found = []
    if report.replay_mismatches:
        shown = ", ".join(map(str, report.replay_mismatches[:10]))
        found.append(f"Steps {shown} gave another loss when they were done again: memory, a chip or the program is not deterministic.")
    elif report.replayed_steps and report.how is How.SIMULATED:
        found.append(f"{count(report.replayed_steps, 'step')} done twice.")
    elif report.replayed_steps:
        found.append(f"{count(report.replayed_steps, 'step')} done twice gave the same loss, bit for bit.")
    if report.pauses:
        found.append(
            f"The run was resumed {count(len(report.pauses), 'time')}; {duration(sum(pause.duration_s for pause in report.pauses))} between its sessions do not count."
        )
    if report.bad_steps:
        found.append(f"{count(len(report.bad_steps), 'bad step')} skipped: " + ", ".join(f"{bad.step} ({bad.reason})" for bad in report.bad_steps[:10]) + ".")
    if advice := planned_advice(report):
        found.append(advice)
    found += [f"Went back from step {back.from_step} to {back.to_step}: {back.reason}." for back in report.rollbacks]
    return found
