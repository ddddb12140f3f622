"""From a job and a machine to a Plan, or to what stands against it and what would fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from colossus.estimate.flop import train_flop
from colossus.estimate.memory import num_parameters, state_bytes
from colossus.plan.layouts import WORKER_BYTES, Ask, best_layout, candidates, fixed_size
from colossus.plan.step_time import belongs, step_estimate
from colossus.spec.job import Precision, TrainJob
from colossus.spec.layout import Layout, Remat
from colossus.spec.machine import Machine
from colossus.spec.model import ModelCard
from colossus.spec.plan import Infeasible, OwnFit, Plan, StepEstimate
from colossus.spec.units import format_quantity


def plan_layout(
    job: TrainJob, machine: Machine, card: ModelCard | None = None, param_bytes: int | None = None, *, own: OwnFit | None = None
) -> Plan | Infeasible:
    """The cheapest layout that divides the job and fits the machine.

    Workers: the job's own number, else one a core (on a node of accelerators one that drives them all), or as many
    fewer as the batch asks for. ``own``: how runs on this machine came out, for the step's time.
    """
    ask = Ask(job=job, machine=machine, card=card, param_bytes=param_bytes, own=own)
    if too_long := _too_long(job, card):
        return too_long
    counts = _worker_counts(ask)
    if isinstance(counts, Infeasible):
        return counts
    for workers in counts:
        layout = best_layout(ask, workers * ask.devices_per_worker)
        if layout is not None:
            return _plan(ask, workers, layout, most=counts[0])
    return _why_not(ask, next(count for count in counts if any(candidates(ask, count * ask.devices_per_worker))))


def _too_long(job: TrainJob, card: ModelCard | None) -> Infeasible | None:
    length = job.batch.sequence_tokens
    if card is None or length is None or length <= card.max_sequence_tokens:
        return None
    reason = f"batch.sequence_tokens = {length}: the model is made for at most {card.max_sequence_tokens} (model.max_sequence_tokens)"
    return Infeasible(reason=reason, fit=f"--set batch.sequence_tokens={card.max_sequence_tokens}")


def _worker_counts(ask: Ask) -> list[int] | Infeasible:
    """Worker counts to try, the wanted one first."""
    job, machine, each = ask.job, ask.machine, ask.devices_per_worker
    most = max(1, machine.num_devices // each)
    asked = fixed_size(job)
    wanted = job.num_workers
    if machine.node.chip.kind != "cpu" and wanted is not None and wanted > most:
        reason = f"num_workers = {wanted}: one worker drives all {each} chips of a node, and there {'is' if most == 1 else 'are'} {most}"
        return Infeasible(reason=reason, fit=f"--workers {most}")
    if wanted is not None and not any(candidates(ask, wanted * each)):
        reason = f"layout {_fixed_words(job)} does not multiply to num_workers = {wanted}, which gives {wanted * each}"
        return Infeasible(reason=reason, fit=f"--workers {max(1, asked // each)}, or leave out a layout axis")
    if wanted is not None:
        return [wanted]
    counts = [count for count in range(most, 0, -1) if any(candidates(ask, count * each))]
    if not counts:
        reason = f"layout {_fixed_words(job)} takes {asked} devices, the machine has {machine.num_devices}"
        return Infeasible(reason=reason, fit="smaller layout axes, or leave them out and let the plan choose")
    return counts


def _plan(ask: Ask, workers: int, layout: Layout, *, most: int) -> Plan:
    job, card = ask.job, ask.card
    length = job.batch.sequence_tokens
    flop = None
    if card is not None and length is not None:
        flop = train_flop(card, job.batch.num_sequences, length).model_flop / (job.batch.num_sequences * length)
    need = ask.memory(layout)
    step = None if card is None else step_estimate(job, card, ask.machine, layout, workers, ask.own)
    return Plan(
        job_digest=job.digest(),
        machine_digest=ask.machine.digest(),
        layout=layout,
        num_workers=workers,
        num_parameters=None if card is None else num_parameters(card),
        model_flop_per_token=flop,
        memory_per_device=need,
        worker_bytes=round(WORKER_BYTES + ask.ram_tier_bytes(layout)) if ask.machine.node.chip.kind == "cpu" else None,
        step=step,
        save_bytes=None if card is None else round(state_bytes(card, layout, job.optimizer.kind) * layout.fsdp * layout.tp),
        compile_s=_compile_s(ask, workers),
        notes=list(_notes(ask, workers, layout, step, most=most)),
    )


def _compile_s(ask: Ask, workers: int) -> float | None:
    """As long as the small decoder's step was measured to take: the number of layers changes little."""
    if ask.card is None or ask.machine.kernels is None:
        return None
    return min(ask.machine.kernels.gangs, key=lambda gang: abs(gang.num_workers - workers)).compile_s


def _notes(ask: Ask, workers: int, layout: Layout, step: StepEstimate | None, *, most: int) -> Iterator[str]:
    machine = ask.machine
    if workers < most:
        yield f"{workers} of {most} possible workers: {most} would not divide batch.num_sequences {ask.job.batch.num_sequences} or not fit"
    if machine.node.chip.kind == "cpu" and workers > machine.num_devices:
        yield f"{workers} workers share {machine.num_devices} core{'s' if machine.num_devices > 1 else ''}: slower than one each"
    if ask.own is not None and step is not None and not belongs(ask.own, machine):
        yield f"the calibration of {ask.own.date} is of this machine as it was measured before: colossus calibrate RUN"
    if step is None and ask.card is not None:
        yield f"no step time: {_untimed(ask)}"
    need = ask.memory(layout)
    if need is None:
        yield "memory not checked: the parameters of a program are known only once its workers have called it"
        return
    yield f"needs {_size(need.total_bytes)} of {_size(ask.available_bytes(layout))} a device (estimated)"
    if layout.remat is not Remat.NONE and ask.job.layout.remat is None:
        yield f"remat {layout.remat.value}, since keeping all activations would not fit"


def _untimed(ask: Ask) -> str:
    chip = ask.machine.node.chip
    if chip.kind != "cpu":
        return f"the catalog does not know {chip.name}"
    if ask.job.precision is not Precision.FLOAT32:
        return f"{ask.job.precision.value} on a processor is not measured"
    return "this machine was not measured yet: colossus machine --measure"


def _why_not(ask: Ask, workers: int) -> Infeasible:
    """The first rule that every layout breaks: something that does not divide, else memory."""
    layouts = list(candidates(ask, workers * ask.devices_per_worker))
    dividing = [layout for layout in layouts if not ask.problems(layout)]
    if not dividing:
        return _does_not_divide(ask, workers, layouts)
    layout = min(dividing, key=lambda layout: _total_bytes(ask, layout) - ask.available_bytes(layout))
    reason = (
        f"needs {_size(_total_bytes(ask, layout))} on each of {layout.num_devices} device{'s' if layout.num_devices > 1 else ''} even as {layout.describe()}, "
        f"but {_size(max(0.0, ask.available_bytes(layout)))} can be used{_kept_back(ask, layout)} (estimated)"
    )
    fits = list(_what_fits(ask, layout))
    return Infeasible(reason=reason, fit="; or ".join(fits) if fits else "a smaller model, or a machine with more memory")


def _kept_back(ask: Ask, layout: Layout) -> str:
    copies = ask.ram_tier_bytes(layout)
    return f" beside {_size(copies)} for copies of the state in memory" if copies else ""


def _does_not_divide(ask: Ask, workers: int, layouts: list[Layout]) -> Infeasible:
    problems = ask.problems(min(layouts, key=lambda layout: len(ask.problems(layout))))
    reason = f"{workers} worker{'s' if workers > 1 else ''}: " + "; ".join(str(problem) for problem in problems)
    fits = [count for count in range(1, 4 * workers + 1) if count != workers and best_layout(ask, count * ask.devices_per_worker)]
    near = [*[count for count in fits if count < workers][-1:], *[count for count in fits if count > workers][:1]]
    return Infeasible(reason=reason, fit=" or ".join(f"--workers {count}" for count in near) or None)


def _what_fits(ask: Ask, layout: Layout) -> Iterator[str]:
    """Changes to the job, each alone, that would make it fit the same devices."""
    job = ask.job
    remat = {"layout": job.layout.model_copy(update={"remat": Remat.FULL})}
    if job.layout.remat not in (None, Remat.FULL) and _fits_changed(ask, layout, remat):
        yield "--set layout.remat=full"
    if ask.ram_tier_bytes(layout) and _fits_changed(ask, layout, {"checkpoint": job.checkpoint.model_copy(update={"ram_interval_steps": 0})}):
        yield "--set checkpoint.ram_interval_steps=0"
    per_shard = job.batch.num_sequences // layout.num_data_shards
    for count in (number for number in range(job.batch.num_microbatches + 1, per_shard + 1) if per_shard % number == 0):
        if _fits_changed(ask, layout, {"batch": job.batch.model_copy(update={"num_microbatches": count})}):
            yield f"--set batch.num_microbatches={count}"
            break
    unit = layout.num_data_shards * layout.num_microbatches
    for count in range(job.batch.num_sequences - unit, 0, -unit):
        if _fits_changed(ask, layout, {"batch": job.batch.model_copy(update={"num_sequences": count})}):
            yield f"--set batch.num_sequences={count}"
            break
    yield from _fewer_layers(ask, layout)


def _fewer_layers(ask: Ask, layout: Layout) -> Iterator[str]:
    if ask.card is None:
        return
    for layers in range(ask.card.num_layers - 1, 0, -1):
        smaller = Ask(job=ask.job, machine=ask.machine, card=ask.card.model_copy(update={"num_layers": layers}))
        if best_layout(smaller, layout.num_devices) is not None:
            yield f"a model of at most {layers} layers like these"
            return


def _fits_changed(ask: Ask, layout: Layout, update: Mapping[str, object]) -> bool:
    changed = Ask(job=ask.job.model_copy(update=dict(update)), machine=ask.machine, card=ask.card, param_bytes=ask.param_bytes)
    return best_layout(changed, layout.num_devices) is not None


def _total_bytes(ask: Ask, layout: Layout) -> float:
    need = ask.memory(layout)
    return 0.0 if need is None else need.total_bytes


def _fixed_words(job: TrainJob) -> str:
    pairs = (("dp", job.layout.dp), ("fsdp", job.layout.fsdp), ("tp", job.layout.tp))
    return " x ".join(f"{name} {size}" for name, size in pairs if size is not None)


def _size(num_bytes: float) -> str:
    return format_quantity(num_bytes, "B", binary=True)
