"""From what a user names to a question: a job file, a model or a config, a machine by name, and sensible defaults said aloud."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from colossus.catalog.chips import load_chip_entry
from colossus.catalog.hf_config import card_from_config
from colossus.catalog.machines import load_machine, load_machine_entry
from colossus.catalog.measured import Program, load_coefficients, programs
from colossus.catalog.models import load_model, model_names
from colossus.catalog.nodes import load_node_entry
from colossus.estimate.parameters import num_parameters
from colossus.plan.search import Question, most_chips
from colossus.spec.errors import CatalogError, Problem, SpecError, nearest
from colossus.spec.job import TrainJob, load_job
from colossus.spec.machine import Machine
from colossus.spec.model import ModelCard
from colossus.spec.units import parse_quantity

# Defaults where a model is named instead of a job: the batch of Llama 2 and 3's pretraining, and Hoffmann et al. 2022's
# tokens for each parameter (arXiv 2203.15556).
_BATCH_TOKENS, _SEQUENCE_TOKENS, _TOKENS_PER_PARAMETER = 4 * 2**20, 8192, 20
# Short names that papers use.
_SHORT = {"bf16": "bfloat16", "fp16": "float16", "fp8": "float8", "fp32": "float32"}
PRECISIONS = ("bfloat16", "float16", "float8", "mxfp8", "nvfp4", "float32")
# The peak that a precision runs at.
_PEAKS = {"mxfp8": "float8", "nvfp4": "float4"}
# Formats with a scale for each block of values came with the chips that multiply 4-bit ones.
_BLOCK_SCALED, _BLOCK_SCALING_PEAK = ("mxfp8", "nvfp4"), "float4"
# Which program is meant where none is named, by kind of chip: the one with most published runs on it.
_USUAL = {"gpu": "megatron-bridge-26.06", "tpu": "maxtext", "cpu": "colossus"}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question with what it was called, how many tokens are to be trained, and within what time."""

    question: Question
    model: str
    total_tokens: float
    deadline_s: float | None = None
    notes: tuple[str, ...] = ()  # what of a job file was not taken


def ask(
    job: str,
    machine: str,
    *,
    assignments: tuple[str, ...] = (),
    chips: int | None = None,
    precision: str | None = None,
    program: str | None = None,
    sequences: int | None = None,
    sequence_tokens: int | None = None,
    tokens: float | None = None,
    deadline: str | float | None = None,
    coefficients: Path | None = None,
) -> Asked:
    """Reads what the user named; every wrong name is an error with the nearest right one. ``coefficients``: a user's own, laid over the catalog's."""
    if not isinstance(machine, str):
        raise _refuse("machine", repr(machine), "must be a name of the catalog, or CHIP*COUNT", "e.g. 'h100-sxm*64'")
    _check_counts(chips=chips, sequences=sequences, sequence_tokens=sequence_tokens)
    name, card, file = _model(job, assignments)
    length, count, default_tokens = _batch(card, file, sequences, sequence_tokens)
    question = _question(
        card, length, count, machine, precision=_SHORT.get(precision or "", precision) or _precision_of(file), program=program, coefficients=coefficients
    )
    if tokens is not None and not 0 < tokens < math.inf:
        raise _refuse("--tokens", f"{tokens:g}", "must be above zero, and a number")
    total = default_tokens if tokens is None else tokens
    if total < count * length:
        path, value = ("--tokens", f"{total:g}") if tokens is not None else ("--sequences", str(count))
        raise _refuse(path, value, f"one step of {count} x {length} tokens is more than the {total:.3g} to train on", "fewer --sequences or more --tokens")
    return Asked(question=_on_chips(question, chips), model=name, total_tokens=total, deadline_s=deadline_s(deadline), notes=_not_taken(file, question))


def question_of(
    job: TrainJob, machine: str, *, chips: int | None = None, precision: str | None = None, program: str | None = None, deadline: str | float | None = None
) -> Asked:
    """A question from a job as an object (the Python door)."""
    _check_counts(chips=chips)
    card = _card_of(job)
    length, count, tokens = _batch(card, job, None, None)
    question = _question(card, length, count, machine, precision=precision or _precision_of(job), program=program, coefficients=None)
    return Asked(question=_on_chips(question, chips), model=job.name, total_tokens=tokens, deadline_s=deadline_s(deadline), notes=_not_taken(job, question))


def _check_counts(**counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and not (isinstance(value, int) and value >= 1):
            raise _refuse(f"--{name.replace('_', '-')}", repr(value), "must be a whole number above zero")


def deadline_s(given: str | float | None) -> float | None:
    """``"30d"`` or seconds; SpecError where it is no time above zero."""
    if given is None:
        return None
    try:
        seconds = parse_quantity(given, "s") if isinstance(given, str) else float(given)
    except ValueError:
        raise _refuse("--deadline", repr(given), "is no time", "write e.g. 30d, 12h or 90min") from None
    if not 0 < seconds < math.inf:
        raise _refuse("--deadline", repr(given), "must be above zero, and a number", "write e.g. 30d, 12h or 90min")
    return seconds


def _question(card: ModelCard, length: int, count: int, machine: str, *, precision: str | None, program: str | None, coefficients: Path | None) -> Question:
    place = load_machine(machine)
    chip = load_node_entry(load_machine_entry(machine).node).chip
    return Question(
        card=card,
        num_sequences=count,
        sequence_tokens=length,
        machine=place,
        chip=chip,
        num_chips=place.num_chips,
        precision=_checked_precision(precision or _usual_precision(chip), chip),
        program=_program(program, place.node.chip.kind),
        coefficients=load_coefficients(coefficients),
    )


def _precision_of(job: TrainJob | None) -> str | None:
    """Only where the job names it: the trainer's own default is for small machines."""
    return job.precision.value if job is not None and "precision" in job.model_fields_set else None


def _not_taken(job: TrainJob | None, question: Question) -> tuple[str, ...]:
    """What a job says of which the plan makes its own choice."""
    if job is None:
        return ()
    axes = [f"{name} {getattr(value, 'value', value)}" for name, value in job.layout if value is not None]
    notes = [f"the job's layout ({', '.join(axes)}) is not held to: the plan chooses; --why says what stands against another"] if axes else []
    if _precision_of(job) is None and question.precision != job.precision.value:
        notes.append(f"planned in {question.precision}; the job names no precision, and colossus train would take {job.precision.value}")
    return tuple(notes)


def _on_chips(question: Question, chips: int | None) -> Question:
    """On so many chips, or on as many as some cut fills at most: which of those is the answer's to choose."""
    if chips is None:
        return replace(question, num_chips=most_chips(question) or question.num_chips, is_whole=True)
    return replace(question, num_chips=_chips(question.machine, chips))


def _usual_precision(chip: str) -> str:
    peaks = load_chip_entry(chip).to_chip().peak_flop_per_s
    return next((name for name in ("bfloat16", "float16", "float32") if name in peaks), "bfloat16")


def _model(job: str, assignments: tuple[str, ...]) -> tuple[str, ModelCard, TrainJob | None]:
    path = Path(job)
    if path.suffix == ".toml":
        loaded = load_job(path, assignments)
        return loaded.name, _card_of(loaded), loaded
    if path.suffix == ".json" or path.is_dir():
        return path.name, card_from_config(path), None
    if job in model_names():
        if assignments:
            raise _refuse("--set", assignments[0], "changes a job file, and JOB is a model", "use --sequences, --sequence-tokens, --tokens")
        return job, load_model(job), None
    hint = nearest(job, model_names()) or "a job file (.toml), a config.json, or a model of: colossus models"
    raise CatalogError(f"{job!r} is no job file, no config and no model of the catalog", hint=hint)


def _card_of(job: TrainJob) -> ModelCard:
    if isinstance(job.model, ModelCard):
        return job.model
    if job.model is None:
        raise SpecError("plan", [Problem(path="program", value=str(job.program), rule="has no model card: only decoders can be planned for other machines")])
    return load_model(job.model) if job.model in model_names() else card_from_config(Path(job.model).expanduser())


def _batch(card: ModelCard, job: TrainJob | None, sequences: int | None, sequence_tokens: int | None) -> tuple[int, int, float]:
    """(tokens of a sequence, sequences of a step, tokens to train on)."""
    if job is not None and job.batch.sequence_tokens is not None:
        length, count = sequence_tokens or job.batch.sequence_tokens, sequences or job.batch.num_sequences
        return length, count, float(job.num_steps * count * length)
    length = sequence_tokens or min(_SEQUENCE_TOKENS, card.max_sequence_tokens)
    usual = max(1, _BATCH_TOKENS // length)
    return length, sequences or usual, float(max(_TOKENS_PER_PARAMETER * num_parameters(card), usual * length))


def _chips(machine: Machine, wanted: int | None) -> int:
    if wanted is None:
        return machine.num_chips
    per_node = machine.node.num_chips
    if wanted > machine.num_chips:
        raise _refuse("--chips", str(wanted), f"{machine.name} has {machine.num_chips}")
    if wanted > per_node and wanted % per_node:
        near = wanted // per_node * per_node
        raise _refuse("--chips", str(wanted), f"must fill nodes of {per_node}", f"--chips {near} or {near + per_node}")
    return wanted


def _checked_precision(precision: str, chip: str) -> str:
    peaks = load_chip_entry(chip).to_chip().peak_flop_per_s
    has = [name for name in PRECISIONS if _PEAKS.get(name, name) in peaks and (name not in _BLOCK_SCALED or _BLOCK_SCALING_PEAK in peaks)]
    if precision not in PRECISIONS:
        raise _refuse("--precision", precision, "is not a precision of training", nearest(precision, PRECISIONS) or f"one of {', '.join(has)}")
    if precision not in has:
        raise _refuse("--precision", precision, f"{chip} does not compute in it", f"it has {', '.join(has)}")
    return precision


def _program(name: str | None, kind: str) -> Program:
    known: Sequence[Program] = programs()
    wanted = name or _USUAL.get(kind, "default")
    found = next((program for program in known if program.name == wanted), None)
    if found is None:
        names = [program.name for program in known]
        raise _refuse("--program", wanted, "is not a training program that we know", nearest(wanted, names) or ", ".join(names))
    return found


def _refuse(path: str, value: str, rule: str, hint: str | None = None) -> SpecError:
    return SpecError("plan", [Problem(path=path, value=value, rule=rule, hint=hint)])
