"""One gang's work on this process: mesh, compiled programs, state, checkpoints, and the loop over them.

Everything that touches devices lives in one Session, so that a survivor can drop it whole and begin another.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from colossus.nn import sharding
from colossus.spec.errors import CheckpointError
from colossus.spec.job import TrainJob
from colossus.spec.layout import MESH_AXES, Layout
from colossus.spec.run import Run
from colossus.train import distributed
from colossus.train.checkpoint import DiskTier, newest_good_step, read_meta, remove_step, remove_unfinished, saved_steps
from colossus.train.compiling import abstract_state, compile_step
from colossus.train.feed import Feed
from colossus.train.kept import KeptPrograms, Programs
from colossus.train.loop import EventLog, Loop, Setup
from colossus.train.optimizer import learning_rate, make_optimizer
from colossus.train.program import Program
from colossus.train.ram import RamTier
from colossus.train.registry import load_program
from colossus.train.step import init_state, make_eval
from colossus.train.tracking import open_trackers

_READY_TIMEOUT_S = 600.0
_TRACKERS_TIMEOUT_S = 30.0
_CORPUS_BATCHES = 8


class Session:
    """Built for one order of the supervisor; ``run`` trains to the end. ``say`` reports phases."""

    def __init__(self, run: Run, job: TrainJob, order: dict[str, Any], *, ram_blocks: list[tuple[int, int]], say: Callable[..., None]) -> None:
        self._run = run
        self._job = job
        self._order = order
        self._say = say
        self._layout = Layout.from_data(order["layout"], origin="order")
        self._rank: int = order["rank"]
        self._blocks = ram_blocks
        self._mark_s = time.perf_counter()
        self._loop: Loop | None = None
        self._stop_requested = False
        self._disk: DiskTier | None = None

    def stop(self) -> None:
        """Asks the gang to save and stop after the step under way."""
        self._stop_requested = True
        if self._loop is not None:
            self._loop.stop_requested = True

    def run(self, on_progress: Callable[[int, float], None]) -> int:
        mesh = sharding.make_mesh(self._layout)
        with jax.set_mesh(mesh):
            setup, state, meta, source = self._prepare(mesh)
            self._disk = setup.disk
            self._loop = Loop(setup, state, meta, on_disk=source == "disk", on_progress=on_progress)
            self._loop.stop_requested = self._stop_requested
            setup.disk.on_saved = self._loop.on_saved
            del state
            trackers_s = _TRACKERS_TIMEOUT_S
            try:
                step = self._loop.run()
                distributed.barrier(f"ended-{self._order['attempt']}", setup.disk.patience_s)  # none leaves while a peer needs it
                return step
            except Exception as error:
                if distributed.is_peer_failure(error):
                    trackers_s = 0.0  # recovery waits for none
                raise
            finally:
                setup.feed.close()
                setup.log.close(trackers_s)

    def abandon(self) -> None:
        """The gang is gone; nothing of it may touch the run any more."""
        if self._disk is not None:
            self._disk.abandon()

    def _prepare(self, mesh: Any) -> tuple[Setup, Any, dict[str, Any], str]:
        job, layout = self._job, self._layout
        before = distributed.compilations()
        program = load_program(self._run, job, layout)
        optimizer = make_optimizer(job.optimizer, job.num_steps)
        feed = Feed(
            program.dataset,
            mesh,
            num_sequences=job.batch.num_sequences,
            num_microbatches=layout.num_microbatches,
            batch_axes=sharding.RULES.batch,
        )
        requests_sharding = NamedSharding(mesh, PartitionSpec(MESH_AXES))
        wanted = job.evaluation.num_batches or (_CORPUS_BATCHES if program.is_language_model else None)
        held_out = program.dataset.num_validation_batches
        count = held_out if wanted is None else min(wanted, held_out)
        kept = KeptPrograms(self._run.folder / ".programs", self._order["session"], layout)
        programs = None if self._order["anew"] else kept.load(mesh)
        source = "traced" if programs is None else "kept"
        if programs is None:
            abstract = abstract_state(program, optimizer, layout, mesh)
            step = compile_step(program, optimizer, learning_rate(job.optimizer, job.num_steps), abstract, feed.abstract(), requests_sharding, seed=job.seed)
            programs = Programs(step=step, abstract=abstract)
            if self._rank == 0:
                kept.save(programs)
        abstract = programs.abstract
        self._phase("compiled", compilations=distributed.compilations() - before, source=source)
        log = EventLog(self._run.events, {"attempt": self._order["attempt"], "rank": self._rank})
        is_leader = self._rank == 0
        disk = DiskTier(self._run.checkpoints, generation=self._order["attempt"], is_leader=is_leader)
        disk.on_failed = lambda step, reason: log.tell("checkpoint_failed", step=step, reason=reason)
        disk.on_wait = lambda: self._say("busy", doing="saving")
        ram = self._ram_tier()
        restore = self._restorer(program, optimizer, abstract, disk)
        state, meta, source = self._first_state(restore, abstract, ram, log)
        self._phase("restored", step=int(state["step"]), source=source)
        distributed.barrier(f"ready-{self._order['attempt']}", _READY_TIMEOUT_S)
        if is_leader:
            remove_unfinished(self._run.checkpoints)
        setup = Setup(
            job=job,
            step=programs.step,
            evaluate=lazily(lambda: compile_eval(program, abstract["params"], feed.abstract())),
            feed=feed,
            requests_sharding=requests_sharding,
            agree=lambda name, value: distributed.agree(f"{name}-{self._order['attempt']}", value),
            on_busy=lambda doing: self._say("busy", doing=doing),
            restore=restore,
            disk=disk,
            ram=ram,
            log=log,
            is_leader=is_leader,
            mtbf_s=self._order["mtbf_s"],
            checkpoint_folder=self._run.checkpoints,
            is_language_model=program.is_language_model,
            num_validation_batches=count,
            profiles=is_leader and self._order["attempt"] == 1 and jax.default_backend() == "cpu",
        )
        if is_leader:
            log.trackers = open_trackers(job.tracking, self._run)
        return setup, state, meta, source

    def _ram_tier(self) -> RamTier | None:
        if self._job.checkpoint.ram_interval_steps == 0 or not self._blocks:
            return None
        return RamTier(self._blocks, rank=self._rank, num_processes=self._order["num_workers"])

    def _restorer(self, program: Program, optimizer: Any, abstract: Any, disk: DiskTier) -> Callable[[int | None], tuple[Any, dict[str, Any]]]:
        """How to get the state of a saved step, or (None) the state that training begins with."""

        def restore(step: int | None) -> tuple[Any, dict[str, Any]]:
            if step is not None:
                return disk.restore(step, abstract), read_meta(self._run.checkpoints, step)
            return begin_state(program, optimizer, self._job.seed, abstract), {}

        return restore

    def _first_state(self, restore: Any, abstract: Any, ram: RamTier | None, log: EventLog) -> tuple[Any, dict[str, Any], str]:
        """The newest state there is: in memory, on disk, or fresh. The leader chooses, all follow."""
        chosen = distributed.agree(f"restore-{self._order['attempt']}", self._choose(ram, log) if self._rank == 0 else None)
        source, _, number = chosen.partition(":")
        if source == "ram" and ram is not None:
            _, meta = ram.newest() or (int(number), {})
            return ram.restore(int(number), abstract), meta, source
        state, meta = restore(int(number) if source == "disk" else None)
        return state, meta, source

    def _choose(self, ram: RamTier | None, log: EventLog) -> str:
        damaged: list[int] = []

        def rejected(step: int, reason: str) -> None:
            damaged.append(step)
            log.tell("checkpoint_rejected", step=step, reason=reason)

        in_memory = ram.newest() if ram else None
        newest = max(saved_steps(self._run.checkpoints), default=-1)
        if in_memory is not None and in_memory[0] >= newest:
            return f"ram:{in_memory[0]}"
        on_disk = newest_good_step(self._run.checkpoints, on_damaged=rejected)
        if on_disk is not None or in_memory is not None:
            for step in damaged:  # else retention would count them, and delete good ones
                remove_step(self._run.checkpoints, step)
        if on_disk is not None and (in_memory is None or on_disk >= in_memory[0]):
            return f"disk:{on_disk}"
        if in_memory is not None:
            return f"ram:{in_memory[0]}"
        if newest >= 0:
            raise CheckpointError(
                f"every checkpoint in {self._run.checkpoints} is damaged; see checkpoint_rejected in {self._run.events}",
                hint="to begin anew, move the folder away and resume",
            )
        return "init:"

    def _phase(self, phase: str, **fields: Any) -> None:
        now = time.perf_counter()
        self._say("phase", phase=phase, duration_s=now - self._mark_s, **fields)
        self._mark_s = now


def begin_state(program: Program, optimizer: Any, seed: int, abstract: Any) -> Any:
    """The state before the first step, made in place: each device its own part; pretrained weights where given."""
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    if program.start is None:
        return jax.jit(lambda: init_state(program, optimizer, seed), out_shardings=placed)()
    params = program.start(placed["params"])
    opt_state = jax.jit(optimizer.init, out_shardings=placed["opt_state"])(params)
    step = jax.make_array_from_callback((), placed["step"], lambda _: np.zeros((), np.int32))
    return {"step": step, "params": params, "opt_state": opt_state}


def lazily(make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """A function that is made when it is first called: evaluation must not delay the first step after a fault."""
    made: list[Callable[..., Any]] = []

    def call(*arguments: Any) -> Any:
        if not made:
            made.append(make())
        return made[0](*arguments)

    return call


def compile_eval(program: Program, params: Any, batch: Any) -> Any:
    whole = NamedSharding(jax.tree.leaves(params)[0].sharding.mesh, PartitionSpec())
    return jax.jit(make_eval(program), out_shardings=whole).lower(params, batch).compile()
