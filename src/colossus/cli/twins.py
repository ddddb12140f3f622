"""``--on twin:MACHINE``: the real supervisor on a simulated machine. This one as it was calibrated, or any of the catalog as it is planned."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossus.cli.common import talk
from colossus.cli.launch import TWIN, Kills, check_kills, load_any_job, make_plan, prior_mtbf_s, resolve_model, smaller_layouts, start_payload
from colossus.cli.own_times import data_digest, job_digest, known_times
from colossus.spec.errors import ColossusError, EngineError
from colossus.spec.event import Event, append_events, read_events
from colossus.spec.job import RecoverySpec, TrainJob
from colossus.spec.layout import Layout
from colossus.spec.machine import How, Machine
from colossus.spec.plan import Plan
from colossus.spec.run import Run, create_simulation, write_atomic
from colossus.spec.times import RunTimes

if TYPE_CHECKING:
    from colossus.cli.simulating import Ordered
    from colossus.twin.engine import Strike
    from colossus.twin.script import Script

_HERE = "this"
# Steps of a job from which on spans of them are told instead of each, and how often the supervisor then looks for silence.
_MANY_STEPS, _SPAN_STEPS = 20_000, 100_000
_TICK_S, _COARSE_TICK_S = 0.05, 1.0
_FLUSH_EVENTS = 2000
_MANY_TRIES = 1000
# Faults are drawn for so many times as long as the job takes without any, and for the scenario's horizon at least.
_SLACK = 4.0
_PLAN_OPTIONS = ("chips", "precision", "program", "sequences", "sequence_tokens", "tokens", "layout")


@dataclass(frozen=True, kw_only=True)
class Staged:
    """All that a simulated run needs: what is said at its start, how its workers behave, what befalls them, and until when that is drawn."""

    job: TrainJob
    machine: Machine
    plan: Plan | None
    started: dict[str, Any]
    data_ready: dict[str, Any] | None
    script: Script
    layouts: dict[int, Layout]
    num_workers: int
    mtbf_s: float
    kills: Kills = ()
    faults: Sequence[Strike] = ()
    faults_until_s: float = math.inf
    recovery: RecoverySpec
    tick_s: float = _TICK_S


def train_on_twin(engine: str, job_file: Path, assignments: tuple[str, ...], workers: int | None, runs: Path, *, kills: Kills) -> tuple[Run, str]:
    """Simulates the run that ``colossus train`` would make on a machine; the folder has its events, and a marker that says what it is."""
    machine = engine.removeprefix(TWIN)
    if machine == _HERE:
        job = load_any_job(job_file, assignments, workers)
        staged = stage_here(job, runs, kills=kills)
    else:
        staged = stage_there(job_file, machine, assignments, workers, runs, kills=kills)
    return play(staged, runs)


def play(staged: Staged, runs: Path, *, is_quiet: bool = False) -> tuple[Run, str]:
    """Runs the supervisor on the twin and keeps what it wrote; ``is_quiet``: shows no progress. Raises EngineError where it gives up, after the end is told."""
    from colossus.cli.watch import Watch
    from colossus.engine.supervisor import Kill, Supervisor, Task
    from colossus.twin.engine import TwinEngine

    run = create_simulation(runs, staged.job.name, staged.job)
    write_atomic(run.machine, staged.machine.to_json())
    if staged.plan is not None:
        write_atomic(run.plan, staged.plan.to_json())
    log = _Log(run)
    log.tell(0.0, "run_started", **staged.started)
    if staged.data_ready is not None:  # told at once, as a real one is: its duration lies before the run's beginning
        log.tell(0.0, "data_ready", **staged.data_ready)
    engine = TwinEngine(staged.script, log.add, faults=staged.faults, tick_s=staged.tick_s, begin_s=staged.script.times.launch_s)
    task = Task(
        run=run,
        recovery=staged.recovery,
        num_workers=staged.num_workers,
        num_steps=staged.job.num_steps,
        layouts=staged.layouts,
        prior_mtbf_s=staged.mtbf_s,
        kills=tuple(Kill(rank=rank, step=step) for rank, step in staged.kills),
    )
    with contextlib.nullcontext() if is_quiet else Watch(run, clock=engine.now_s, is_brief=bool(staged.faults)) as watch:
        show = watch.update if watch is not None else lambda: None
        try:
            status = Supervisor(task, engine, on_tick=show, on_event=log.add).run()
        except ColossusError as error:
            log.tell(engine.now_s(), "run_ended", status="failed", step=log.last_step, reason=str(error)[:500])
            raise
        finally:
            log.flush()
        log.tell(engine.now_s(), "run_ended", status=status, step=log.last_step)
        log.flush()
        show()
    if engine.now_s() > staged.faults_until_s:
        talk().print(
            f"faults were drawn for {staged.faults_until_s / 86400:.0f} days only, and the run took {engine.now_s() / 86400:.0f}: its end is too quiet"
        )
    return run, status


class _Log:
    """Events of the supervisor and of simulated workers, in the order that they were told."""

    def __init__(self, run: Run) -> None:
        self._path = run.events
        self._waiting: list[Event] = []
        self.last_step = 0

    def add(self, event: Event) -> None:
        self._waiting.append(event)
        if event.kind in ("step", "steps"):
            self.last_step = max(self.last_step, event.payload["step" if event.kind == "step" else "to_step"])
        if len(self._waiting) >= _FLUSH_EVENTS:
            self.flush()

    def tell(self, time_s: float, kind: str, **payload: Any) -> None:
        self.add(Event(time_s=time_s, kind=kind, payload=payload))

    def flush(self) -> None:
        append_events(self._path, self._waiting)
        self._waiting.clear()


# This machine, as it was calibrated


def stage_here(job: TrainJob, runs: Path, *, kills: Kills, is_cold: bool = False, machine: Machine | None = None, plan: Plan | None = None) -> Staged:
    """A run on this machine. ``machine`` and ``plan``: those of the real run that it is the twin of; else as the next one is planned."""
    from colossus.cli.hardware import known_fit, known_machine
    from colossus.report.planned import as_profiled

    machine = machine or known_machine(runs, measure=False)
    times = known_times(runs)
    if times is None or times.machine != machine.identity:
        raise EngineError("this machine's twin does not know how long things take here", hint="train once for real, then: colossus calibrate last")
    card = resolve_model(job)[0]
    plan = plan or make_plan(job, machine, card, known_fit(runs))
    check_kills(kills, plan.num_workers, job.num_steps)
    step_s, times = _here_step(job, plan, times)
    script = _script(job, times.begun_cold() if is_cold else times, step_s=step_s, kills=kills)
    script = replace(
        script,
        profiles=machine.node.chip.kind == "cpu",
        parts_s=tuple((as_profiled(plan.step.parts_s, plan.layout.remat) if plan.step else {}).items()),
        compilations=int(is_cold),
        memory_bytes=plan.expectation().memory_bytes or 0,
    )
    ready: dict[str, Any] | None = None
    if job.data is not None and times.data == data_digest(job) and times.num_tokens is not None:
        facts = {"num_tokens": times.num_tokens, "num_validation_tokens": times.num_validation_tokens, "vocab_size": times.vocab_size}
        ready = facts | {"cached": not is_cold, "duration_s": script.times.data_s}
    return Staged(
        job=job,
        machine=machine,
        plan=plan,
        started=start_payload(job, machine, plan),
        data_ready=ready,
        script=script,
        layouts={plan.num_workers: plan.layout} | smaller_layouts(job, machine, plan, card),
        num_workers=plan.num_workers,
        mtbf_s=prior_mtbf_s(machine),
        kills=kills,
        recovery=job.recovery,
    )


def _here_step(job: TrainJob, plan: Plan, times: RunTimes) -> tuple[float, RunTimes]:
    """The mean step: as planned with what real runs took over their plans, else as it was measured of this very job; and times for steps as long."""
    if plan.step is not None:
        step_s = plan.step.step_s * (1 + times.step_excess_fraction)
    elif times.step_s is not None and times.job == job_digest(job):
        step_s = times.step_s
    else:
        raise EngineError(
            "neither the plan nor a calibrated run tells how long a step of this job takes here", hint="colossus calibrate RUN, with a run of this job"
        )
    if times.job == job_digest(job) or not times.step_s:
        return step_s, times
    size = plan.save_bytes / times.save_bytes if plan.save_bytes and times.save_bytes else 1.0
    return step_s, times.scaled(step_fraction=step_s / times.step_s, bytes_fraction=size)


def _script(job: TrainJob, times: RunTimes, *, step_s: float, kills: Kills, ram_lost_by: frozenset[str] = frozenset()) -> Script:
    from colossus.twin.script import Script

    span_steps = 1 if job.num_steps < _MANY_STEPS else _SPAN_STEPS
    return Script.of(job, times, step_s=step_s, span_steps=span_steps, halt_steps=tuple(step for _, step in kills), ram_lost_by=ram_lost_by)


def stage_again(run: Run, runs: Path) -> Staged:
    """The twin of a real run: its job on its machine, begun as cold, and killed at the same steps."""
    events = list(read_events(run.events))
    return stage_here(run.load_job(), runs, kills=_kills_of(events), is_cold=_began_cold(events), machine=run.load_machine())


def _kills_of(events: Sequence[Event]) -> Kills:
    """Kills on purpose, each at the furthest step that was done by then."""
    found, furthest = [], 0
    for event in sorted(events, key=lambda event: event.time_s):
        if event.kind == "step":
            furthest = max(furthest, event.payload["step"])
        if event.kind == "injected":
            found.append((event.payload["rank"], furthest))
    return tuple(found)


def _began_cold(events: Sequence[Event]) -> bool:
    """Whether the first gang compiled something anew."""
    return any(event.kind == "worker_phase" and event.scope.get("attempt") == 1 and event.payload.get("compilations") for event in events)


# A machine of the catalog, as it is planned and as its scenario has it


def stage_there(job_file: Path, machine: str, assignments: tuple[str, ...], workers: int | None, runs: Path, *, kills: Kills) -> Staged:
    """One worker a node, a spare for each standby; faults as the default scenario's profile draws them, until long after the job's end, and those on purpose."""
    from colossus.cli.simulating import order

    job = load_any_job(job_file, assignments, None)
    options: dict[str, Any] = dict.fromkeys(_PLAN_OPTIONS) | {"days": None, "seed": job.seed, "scenario": "default", "runs": runs}
    options["assignments"] = tuple(f"job.{each}" for each in assignments)
    ordered = _until_the_end(order(str(job_file), machine, options), job.num_steps)
    workload = ordered.workload
    num_workers = -(-workload.num_job_chips // ordered.machine.node.num_chips)
    if workers not in (None, num_workers):
        raise EngineError(
            f"--workers {workers}: the job takes {num_workers} nodes of {machine}, and each has one worker", hint=f"--workers {num_workers}, or leave it out"
        )
    check_kills(kills, num_workers, job.num_steps)
    times, mtbf_s, faults, num_spares = _of_scenario(ordered)
    ram_lost_by = frozenset({"kill", "hang"}) if ordered.scenario.checkpoint.memory.value == "own" else frozenset()
    script = _script(job, times, step_s=workload.step_s, kills=kills, ram_lost_by=ram_lost_by)
    started = {
        "name": job.name,
        "num_workers": num_workers,
        "num_steps": job.num_steps,
        "layout": workload.layout,
        "platform": ordered.machine.node.chip.kind,
        "tokens_per_step": workload.tokens_per_step,
        "model_flop_per_token": workload.model_flop_per_token,
        "peak_flop_per_s": workload.peak_flop_per_s,
        "peak_how": "datasheet" if workload.peak_flop_per_s else None,
    }
    return Staged(
        job=job,
        machine=ordered.machine,
        plan=None,
        started=started,
        data_ready=None,
        script=replace(script, span_steps=_SPAN_STEPS),
        layouts={num_workers: Layout(dp=num_workers)},
        num_workers=num_workers,
        mtbf_s=mtbf_s,
        kills=kills,
        faults=faults,
        faults_until_s=ordered.scenario.horizon_s,
        recovery=_recovery_there(job.recovery, num_workers, num_spares),
        tick_s=_COARSE_TICK_S,
    )


def _until_the_end(ordered: Ordered, num_steps: int) -> Ordered:
    """With a horizon that the job will not reach: here a job runs until it is done."""
    horizon_s = max(ordered.scenario.horizon_s, _SLACK * num_steps * ordered.workload.step_s)
    return replace(ordered, scenario=ordered.scenario.model_copy(update={"horizon_s": horizon_s}))


def _recovery_there(asked: RecoverySpec, num_workers: int, num_spares: int) -> RecoverySpec:
    """With thousands of nodes faults meet, and are no reason to give the program up; where the job says nothing, a hundredth of the nodes stands by."""
    standbys = asked.num_standbys if "num_standbys" in asked.model_fields_set else min(num_spares, max(1, num_workers // 100))
    tries = max(asked.max_restarts_without_progress, _MANY_TRIES)
    return asked.model_copy(update={"num_standbys": standbys, "max_restarts_without_progress": tries, "allow_fewer_workers": False})


def _of_scenario(ordered: Ordered) -> tuple[RunTimes, float, list[Strike], int]:
    """Times, the gang's time between failures, spare nodes, and the faults that the supervisor can meet: crashes of nodes and of processes, and hangs."""
    from colossus.spec.faults import Effect, Unit
    from colossus.twin.faults import draw_faults
    from colossus.twin.setting import Setting
    from colossus.twin.simulate import profile_of

    scenario = ordered.scenario
    profile = profile_of(scenario)
    setting = Setting.of(ordered.workload, ordered.machine, scenario, profile)
    recovery = scenario.recovery
    times = RunTimes(
        machine=ordered.machine.name,
        how=How.ESTIMATED,
        source=f"scenario {scenario.name}",
        import_s=recovery.start.mean_s,
        standby_s=recovery.start.mean_s,
        join_s=0.0,
        reform_s=recovery.swap.mean_s,
        compile_s=recovery.compile.mean_s,
        kept_s=0.0,
        init_s=0.0,
        restore_ram_s=setting.restore_memory_s,
        restore_disk_s=setting.restore_disk_s,
        first_step_s=ordered.workload.step_s,
        copy_s=setting.copy_s,
        save_s=setting.save_s,
        blocked_s=setting.blocked_s,
        last_save_s=setting.save_s,
        last_blocked_s=setting.blocked_s,
        save_bytes=round(scenario.checkpoint.state_bytes_per_parameter * ordered.workload.num_parameters),
    )
    strikes = []
    for fault in draw_faults(profile, scenario, setting.grounds, seed=scenario.seed):
        each = profile.classes[fault.kind]
        if each.effect in (Effect.CRASH, Effect.HANG):
            cause = "hang" if each.effect is Effect.HANG else "exit" if each.takes is Unit.NONE else "kill"
            strikes.append((fault.time_s, fault.node, cause))
    return times, setting.mtbf_s, strikes, setting.grounds.num_nodes - setting.grounds.num_gang_nodes
