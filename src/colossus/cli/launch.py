"""From a job to a run and through it: resolve, plan, prepare the data, supervise. Says on stderr what it does."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from colossus.cli.hardware import known_fit, known_machine
from colossus.engine.process import LocalEngine, worker_environment
from colossus.engine.supervisor import Kill, Supervisor, Task
from colossus.spec.base import read_toml, set_path
from colossus.spec.errors import ColossusError, EngineError, InfeasibleError, Problem, RunError, SpecError, nearest
from colossus.spec.event import Event, append_events, read_events
from colossus.spec.job import TrainJob, load_job
from colossus.spec.layout import Layout
from colossus.spec.machine import Machine
from colossus.spec.model import ModelCard, untrainable
from colossus.spec.plan import Infeasible, OwnFit, Plan
from colossus.spec.run import Inputs, Run, create_run, open_run, write_atomic

ENGINES = ("local", "twin:MACHINE")
TWIN = "twin:"
_TWINS = "local, or twin:MACHINE, e.g. twin:this or twin:h100-sxm*64"
# Times its need that a worker's share of the node must be before it keeps what a step used (engine/process.py).
_ROOMY = 3
Kills = tuple[tuple[int, int], ...]  # (rank, step) each
# What a resumed run may not change: it would be another network, or other data.
_FIXED: tuple[str, ...] = (
    *("schema", "name", "seed", "model", "program", "options", "data", "batch.num_sequences", "batch.sequence_tokens"),
    *("optimizer.kind", "optimizer.clip_norm"),  # they shape the optimizer's state
)


def check_engine(name: str, *, or_twin: bool = False) -> None:
    if name.startswith(TWIN) and len(name) > len(TWIN):
        if or_twin:
            return
        raise EngineError(f"{name}: a simulated machine has no state to go on from", hint="simulate the whole run: colossus train JOB --on " + name)
    if name != "local":
        raise EngineError(f"no engine {name!r}", hint=_TWINS if name.startswith("twin") else nearest(name, ENGINES))


def load_any_job(path: Path, assignments: tuple[str, ...], workers: int | None) -> TrainJob:
    """The job of a .toml file, or of a .py file that holds ``JOB`` (a dict) beside its ``program`` function."""
    if workers is not None:
        assignments = (*assignments, f"num_workers={workers}")
    if path.suffix != ".py":
        return load_job(path, assignments)
    from colossus.train.registry import read_job

    data = read_job(path)
    data.setdefault("program", f"{path.absolute()}:program")
    data.setdefault("name", path.stem)
    for assignment in assignments:
        set_path(data, assignment)
    return TrainJob.from_data(data, origin=str(path))


def prepare(job: TrainJob, runs: Path, *, kills: Kills) -> Run:
    """Checks that the job fits, readies its data, and makes its run folder; nothing is written for a job that cannot run."""
    machine = known_machine(runs)
    card, weights = resolve_model(job)
    plan = make_plan(job, machine, card, known_fit(runs))
    check_kills(kills, plan.num_workers, job.num_steps)
    if job.program is not None:
        from colossus.train.registry import find_function

        find_function(job.program)
    corpus, took = _prepare_data(job, card, weights, runs) if card is not None else (None, None)
    run = create_run(runs, job)
    _keep_program(run, job)
    if card is not None and corpus is not None:
        _keep_tokenizer(run, job, corpus.tokenizer, weights)
        write_atomic(run.card, card.to_json())
        write_atomic(run.inputs, Inputs(corpus=corpus.folder.absolute(), weights=weights).to_json())
    _write_plan(run, machine, plan)
    _tell(run, "run_started", **start_payload(job, machine, plan))
    if took is not None:
        _tell(run, "data_ready", **took)
    return run


def reopen(folder: Path, assignments: tuple[str, ...], workers: int | None, *, kills: Kills) -> Run:
    """The run at ``folder`` with its job as changed, planned anew for the workers there are now."""
    run = open_run(folder)
    data = read_toml(run.job)
    if workers is not None:
        assignments = (*assignments, f"num_workers={workers}")
    for assignment in assignments:
        name = assignment.partition("=")[0].strip()
        if any(name == fixed or name.startswith(fixed + ".") or fixed.startswith(name + ".") for fixed in _FIXED):
            raise SpecError(
                "--set", [Problem(path=name, value=assignment, rule="cannot change in a run that has begun", hint="start another run with colossus train")]
            )
        set_path(data, assignment)
    job = TrainJob.from_data(data, origin=str(run.job))
    card = _kept_card(run, job)
    machine = known_machine(run.folder.parent)
    plan = make_plan(job, machine, card, known_fit(run.folder.parent))
    check_kills(kills, plan.num_workers, job.num_steps)
    with _lock(run):
        write_atomic(run.job, job.to_toml())
        _write_plan(run, machine, plan)
        _tell(run, "run_started", **start_payload(job, machine, plan))
    return run


def is_done(run: Run) -> bool:
    """Whether its last supervisor ended with all steps done."""
    ended = [event for event in read_events(run.events) if event.kind in ("run_started", "run_ended")]
    return bool(ended) and ended[-1].kind == "run_ended" and ended[-1].payload["status"] == "done" and _last_step(run) >= run.load_job().num_steps


def supervise(run: Run, *, kills: Kills) -> str:
    """Trains the run to its end; returns "done" or "interrupted". Raises EngineError when it cannot go on."""
    from colossus.cli.watch import Watch

    job, plan, machine = run.load_job(), run.load_plan(), run.load_machine()
    layouts = {plan.num_workers: plan.layout} | smaller_layouts(job, machine, plan, _kept_card(run, job))
    with _lock(run), Watch(run) as watch, _ram_blocks(job, plan.num_workers) as blocks:
        engine = LocalEngine(run.folder, blocks, environment=worker_environment(machine.node.chip.kind, is_roomy=_is_roomy(plan, machine)))
        task = Task(
            run=run,
            recovery=job.recovery,
            num_workers=plan.num_workers,
            num_steps=job.num_steps,
            layouts=layouts,
            prior_mtbf_s=prior_mtbf_s(machine),
            kills=tuple(Kill(rank=rank, step=step) for rank, step in kills),
        )
        try:
            status = Supervisor(task, engine, on_tick=watch.update).run()
        except ColossusError as error:
            with contextlib.suppress(OSError):  # a full disk must not hide why
                _tell(run, "run_ended", status="failed", step=_last_step(run), reason=str(error)[:500])
            raise
        _tell(run, "run_ended", status=status, step=_last_step(run))
        watch.update()
    return status


def resolve_model(job: TrainJob) -> tuple[ModelCard | None, Path | None]:
    """The job's model card, and the folder of pretrained weights when it names one; SpecError where it can be planned but not trained."""
    card, weights = _named_model(job)
    if card is not None and (problems := untrainable(card)):
        raise SpecError("job", problems, hint="plan it for a machine of the catalog: colossus plan MODEL --on MACHINE")
    return card, weights


def _named_model(job: TrainJob) -> tuple[ModelCard | None, Path | None]:
    if job.model is None or isinstance(job.model, ModelCard):
        return job.model, None
    folder = Path(job.model)
    if (folder / "config.json").is_file():
        from colossus.nn.hf_config import read_card

        return read_card(folder), folder.absolute()
    if "/" in job.model or folder.is_dir():
        problem = Problem(path="model", value=repr(job.model), rule="is no folder with a config.json", hint="give a Hugging Face folder or a catalog name")
        raise SpecError("job", [problem])
    from colossus.catalog.models import load_model_entry

    entry = load_model_entry(job.model)
    if entry.planned_only is not None:
        raise SpecError("job", [Problem(path="model", value=repr(job.model), rule=f"can be planned, not trained: {entry.planned_only}")])
    return entry.model, None


def make_plan(job: TrainJob, machine: Machine, card: ModelCard | None, own: OwnFit | None = None) -> Plan:
    """The layout that fits, or InfeasibleError with what would."""
    from colossus.plan import plan_layout

    plan = plan_layout(job, machine, card, own=own)
    if isinstance(plan, Infeasible):
        raise InfeasibleError(plan.reason, hint=plan.fit)
    return plan


def _prepare_data(job: TrainJob, card: ModelCard, weights: Path | None, runs: Path) -> tuple[Any, dict[str, Any]]:
    from colossus.cli.watch import data_progress
    from colossus.train.data import open_dataset, prepare

    assert job.data is not None and job.batch.sequence_tokens is not None
    spec = job.data
    if spec.tokenizer is None and weights is not None:
        spec = spec.model_copy(update={"tokenizer": str(weights)})
    vocab_size = spec.vocab_size or (card.vocab_size if spec.tokenizer is None else None)
    with data_progress() as progress:
        corpus = prepare(spec, runs / ".cache" / "data", vocab_size=vocab_size, sequence_tokens=job.batch.sequence_tokens, progress=progress)
    if corpus.vocab_size > card.vocab_size:
        problem = Problem(
            path="model.vocab_size",
            value=str(card.vocab_size),
            rule=f"is below the tokenizer's {corpus.vocab_size}",
            hint=f"set data.vocab_size={card.vocab_size} or a wider model",
        )
        raise SpecError("job", [problem])
    open_dataset(corpus.folder, sequence_tokens=job.batch.sequence_tokens, num_sequences=job.batch.num_sequences, seed=job.seed, verify=True)
    took = {
        "num_tokens": corpus.num_train_tokens,
        "num_validation_tokens": corpus.num_validation_tokens,
        "vocab_size": corpus.vocab_size,
        "cached": corpus.cached,
        "duration_s": corpus.duration_s,
    }
    return corpus, took


def _keep_program(run: Run, job: TrainJob) -> None:
    """A program's own file goes into the run folder, so that an edit later does not change what is resumed or sampled."""
    from colossus.train.registry import keep_folder, split_reference

    if job.program is None:
        return
    keep_folder(run, job.program)
    place, function = split_reference(job.program)
    if place.endswith(".py"):
        shutil.copyfile(place, run.folder / "program.py")
        kept = job.model_copy(update={"program": f"{(run.folder / 'program.py').absolute()}:{function}"})
        write_atomic(run.job, kept.to_toml())


def _keep_tokenizer(run: Run, job: TrainJob, prepared: Path, weights: Path | None) -> None:
    """The tokenizer as prepared, and what lay beside the given one (its configuration, a chat template), for sample and export."""
    from colossus.nn.tokenizer_files import copy_companions

    shutil.copyfile(prepared, run.tokenizer)
    source = (job.data.tokenizer if job.data is not None else None) or weights
    if source is not None:
        copy_companions(Path(source).expanduser(), run.folder)


def _write_plan(run: Run, machine: Machine, plan: Plan) -> None:
    write_atomic(run.machine, machine.to_json())
    write_atomic(run.plan, plan.to_json())


def start_payload(job: TrainJob, machine: Machine, plan: Plan) -> dict[str, Any]:
    chip = machine.node.chip
    peak = chip.peak_flop_per_s.get(job.precision.value) or chip.peak_flop_per_s.get("float32")
    used = num_devices_used(machine, plan.num_workers)
    total = machine.num_devices
    chips = machine.num_nodes * (1 if chip.kind == "cpu" else machine.node.num_chips)
    return {
        "name": job.name,
        "num_workers": plan.num_workers,
        "num_steps": job.num_steps,
        "layout": plan.layout.describe(),
        "platform": chip.kind,
        "tokens_per_step": job.tokens_per_step,
        "model_flop_per_token": plan.model_flop_per_token,
        "peak_flop_per_s": peak.value * chips * used / total if peak else None,
        "peak_how": f"{peak.how.value}: {peak.source}" + (f"; {used} of {total} used" if used < total else "") if peak else None,
        "planned": plan.expectation().to_data(),
    }


def _is_roomy(plan: Plan, machine: Machine) -> bool:
    """Whether all workers of a node could hold what they need several times over; not where the need is not known."""
    need_bytes = plan.expectation().memory_bytes
    return need_bytes is not None and _ROOMY * need_bytes * plan.num_workers / machine.num_nodes <= machine.node.memory_bytes


def num_devices_used(machine: Machine, num_workers: int) -> int:
    """Devices that the workers compute on, for the peak behind MFU: on a CPU the cores they get, an equal whole share each.

    As the engine gives them out (engine/process.py): one worker has all cores, more workers than cores share all.
    """
    total = machine.num_devices
    each = machine.node.num_chips if machine.node.chip.kind != "cpu" else max(1, total // num_workers)
    return min(total, num_workers * each)


def _kept_card(run: Run, job: TrainJob) -> ModelCard | None:
    """The network that a run began with; None for a program. Raises SpecError where what it needs is lost."""
    if job.model is None:
        return None
    run.load_inputs()
    return run.load_card()


def smaller_layouts(job: TrainJob, machine: Machine, plan: Plan, card: ModelCard | None) -> dict[int, Layout]:
    """The layout for each smaller number of workers that could carry the job on."""
    from colossus.plan import smaller_layouts as planned

    return planned(job, machine, plan, card) if job.recovery.allow_fewer_workers else {}


def prior_mtbf_s(machine: Machine) -> float:
    from colossus.catalog.reliability import node_mtbf_s

    return node_mtbf_s() / machine.num_nodes


def check_kills(kills: Kills, num_workers: int, num_steps: int) -> None:
    last = num_workers - 1
    rule = f"there are ranks 0 to {last}" if last else "there is rank 0 only"
    problems = [Problem(path="--kill", value=f"{rank}@{step}", rule=rule, hint=f"e.g. --kill {last}@{step}") for rank, step in kills if rank > last]
    rule = f"the job has num_steps = {num_steps}"
    hint = f"--kill {min(last, kills[0][0])}@{num_steps // 2}" if kills else ""
    problems += [Problem(path="--kill", value=f"{rank}@{step}", rule=rule, hint=f"e.g. {hint}") for rank, step in kills if step > num_steps]
    if problems:
        raise SpecError("--kill", problems)


@contextlib.contextmanager
def _ram_blocks(job: TrainJob, num_workers: int) -> Iterator[list[tuple[int, int]]]:
    """Shared memory for the fast tier of checkpoints, for as long as the supervisor lives."""
    blocks = [] if job.checkpoint.ram_interval_steps == 0 else create_blocks(num_workers)
    try:
        yield blocks
    finally:
        for descriptor in (descriptor for pair in blocks for descriptor in pair):
            os.close(descriptor)


def create_blocks(num_ranks: int) -> list[tuple[int, int]]:
    """Two anonymous blocks of shared memory for each rank; workers inherit them (see train/ram.py)."""
    from colossus.engine.shared_memory import anonymous_block

    return [(anonymous_block(), anonymous_block()) for _ in range(num_ranks)]


@contextlib.contextmanager
def _lock(run: Run) -> Iterator[None]:
    """One supervisor a run; the kernel frees the lock when its holder is gone, however it went."""
    with run.lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise RunError(f"{run.folder} is in use by process {file.read().strip() or 'unknown'}", hint="stop that one first, with Ctrl-C or kill") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _tell(run: Run, kind: str, **payload: Any) -> None:
    append_events(run.events, [Event(time_s=time.time(), kind=kind, payload=payload)])


def _last_step(run: Run) -> int:
    return max((event.payload["step"] for event in read_events(run.events) if event.kind == "step"), default=0)
