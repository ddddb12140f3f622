"""The layouts a job could take on a number of devices, cheapest first, each with what stands against it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from colossus.estimate.memory import program_memory, state_bytes, train_memory
from colossus.spec.cuts import check_batch, check_layout
from colossus.spec.errors import Problem
from colossus.spec.job import Precision, TrainJob
from colossus.spec.layout import Layout, Remat
from colossus.spec.machine import Machine
from colossus.spec.model import ModelCard
from colossus.spec.plan import MemoryEstimate, OwnFit, Plan

# Of an accelerator's memory, what is ours: the rest is the runtime's and lost between allocations.
_USABLE_FRACTION = 0.9
# What a worker on a CPU holds beside the estimate: interpreter, JAX and compiled programs (resident 0.5 GB measured).
WORKER_BYTES = 0.6e9


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A job, what it runs on, and its network: a card, or the bytes of a program's parameters, or neither known.

    ``own``: how runs on this machine came out over their plans.
    """

    job: TrainJob
    machine: Machine
    card: ModelCard | None = None
    param_bytes: int | None = None
    own: OwnFit | None = None

    def memory(self, layout: Layout) -> MemoryEstimate | None:
        """The need on one device; None where nothing is known of the network."""
        batch = self.job.batch
        if self.card is None or batch.sequence_tokens is None:
            return None if self.param_bytes is None else program_memory(self.param_bytes, layout)
        return train_memory(
            self.card,
            layout,
            num_sequences=batch.num_sequences,
            sequence_tokens=batch.sequence_tokens,
            precision=self.job.precision,
            optimizer=self.job.optimizer.kind,
            platform=self.machine.node.chip.kind,
            fused=self._is_fused,
        )

    @property
    def _is_fused(self) -> bool:
        """Whether the compiled kernels were seen to run on this machine, and take this job."""
        kernels = self.machine.kernels
        return kernels is not None and kernels.fused and self.job.precision is Precision.FLOAT32

    def available_bytes(self, layout: Layout) -> float:
        """What one device may use. On a CPU its worker's share of the node, less the worker itself and the fast tier."""
        chip = self.machine.node.chip
        if chip.kind != "cpu":
            return _USABLE_FRACTION * self.machine.memory_bytes_per_device
        per_node = max(1, layout.num_devices // self.machine.num_nodes)
        return self.machine.node.memory_bytes / per_node - WORKER_BYTES - self.ram_tier_bytes(layout)

    def ram_tier_bytes(self, layout: Layout) -> float:
        """Of host memory, for each worker on a CPU: two copies of the state, each stored once over all replicas."""
        if self.machine.node.chip.kind != "cpu" or self.job.checkpoint.ram_interval_steps == 0:
            return 0.0
        of_program = 3 * (self.param_bytes or 0) / layout.fsdp  # AdamW's weights and two moments
        state = of_program if self.card is None else state_bytes(self.card, layout, self.job.optimizer.kind)
        return 2 * state / (layout.num_devices / (layout.fsdp * layout.tp))

    def problems(self, layout: Layout) -> list[Problem]:
        """What cannot be cut as the layout says."""
        batch = self.job.batch
        if self.card is None or batch.sequence_tokens is None:
            return check_batch(layout, batch.num_sequences)
        return check_layout(self.card, layout, batch.num_sequences, batch.sequence_tokens)

    def fits(self, layout: Layout) -> bool:
        need = self.memory(layout)
        return need is None or need.total_bytes <= self.available_bytes(layout)

    @property
    def devices_per_worker(self) -> int:
        """One core on a CPU; on a node of accelerators one worker drives all its chips."""
        return 1 if self.machine.node.chip.kind == "cpu" else self.machine.node.num_chips


def candidates(ask: Ask, num_devices: int) -> Iterator[Layout]:
    """Every layout of so many devices within what the user fixed, cheapest first.

    Communication grows from dp (one sum of gradients a step) over fsdp (weights gathered for each layer) to tp (every
    layer's activations); recomputing costs less than tp. A program that is no decoder of ours takes tp only when told to.
    """
    fixed = ask.job.layout
    sizes = [
        (dp, fsdp, tp)
        for tp in _divisors(num_devices)
        for fsdp in _divisors(num_devices // tp)
        for dp in [num_devices // tp // fsdp]
        if all(want in (None, have) for want, have in ((fixed.dp, dp), (fixed.fsdp, fsdp), (fixed.tp, tp)))
        and (tp == 1 or ask.card is not None or fixed.tp is not None)
    ]
    remats = list(Remat) if fixed.remat is None else [fixed.remat]
    order = sorted((tp, remats.index(remat), fsdp, dp, remat) for dp, fsdp, tp in sizes for remat in remats)
    for tp, _, fsdp, dp, remat in order:
        yield Layout(dp=dp, fsdp=fsdp, tp=tp, remat=remat, num_microbatches=ask.job.batch.num_microbatches)


def best_layout(ask: Ask, num_devices: int) -> Layout | None:
    """The cheapest layout that divides everything and fits the memory."""
    return next((layout for layout in candidates(ask, num_devices) if not ask.problems(layout) and ask.fits(layout)), None)


def fixed_size(job: TrainJob) -> int:
    """Devices that the axes a user fixed already ask for."""
    return prod(size or 1 for size in (job.layout.dp, job.layout.fsdp, job.layout.tp))


def smaller_layouts(job: TrainJob, machine: Machine, plan: Plan, card: ModelCard | None = None, param_bytes: int | None = None) -> dict[int, Layout]:
    """A layout for each smaller number of workers that could carry the plan's job on: same global batch, same result.

    Axes the user fixed hold only as long as they can: on fewer workers all are chosen anew, remat apart.
    """
    freed = job.model_copy(update={"layout": job.layout.model_copy(update={"dp": None, "fsdp": None, "tp": None})})
    ask = Ask(job=freed, machine=machine, card=card, param_bytes=param_bytes)
    found = {workers: best_layout(ask, workers * ask.devices_per_worker) for workers in range(1, plan.num_workers)}
    return {workers: layout for workers, layout in found.items() if layout is not None}


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
