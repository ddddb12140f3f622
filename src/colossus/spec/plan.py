"""What a job will take on a machine, said before it starts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from colossus.spec.base import Spec
from colossus.spec.layout import Layout, Remat
from colossus.spec.machine import How


class MemoryEstimate(Spec):
    """Bytes on one device, by use (closed form, estimated).

    ``copies_bytes``: weights once more, as a step uses them: gathered over fsdp, in the compute dtype, cut out of stacks.
    """

    weights_bytes: int
    copies_bytes: int = 0
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    logits_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.copies_bytes + self.gradients_bytes + self.optimizer_bytes + self.activations_bytes + self.logits_bytes


class StepEstimate(Spec):
    """Seconds of one optimizer step, expected and the ends of what nine runs in ten take; ``parts_s`` add up to ``step_s``.

    ``how`` and ``source``: where the rates behind it come from. The time itself is always estimated.
    """

    step_s: float
    lower_step_s: float
    upper_step_s: float
    parts_s: dict[str, float]
    how: How
    source: str


class Expectation(Spec):
    """What a plan says of a real run, to be held against it. ``memory_bytes``: a worker's on a processor, a device's else. ``save_bytes``: a checkpoint."""

    num_workers: int
    remat: Remat = Remat.NONE
    step: StepEstimate | None = None
    memory_bytes: int | None = None
    save_bytes: int | None = None
    compile_s: float | None = None


class OwnFit(Spec):
    """How runs on this very machine came out over their plans: a factor for each group of a step's parts (estimate/local.py).

    ``machine``: its identity; ``basis``: what the plans rest on that the factors belong to. ``lower_fraction`` and ``upper_fraction``: measured over planned once the factors are in, 5th and 95th percentile.
    """

    schema_version: Literal[1] = Field(1, alias="schema")
    machine: str
    basis: str
    date: str
    num_runs: int
    runs: list[str]
    factors: dict[str, float]
    median_error_fraction: float
    lower_fraction: float
    upper_fraction: float


class Plan(Spec):
    """A layout that fits, with the work, memory and time it needs; hashes tie it to its inputs.

    ``worker_bytes``: on a processor, what a worker holds beside the device's need: the process itself, and copies of the state.
    ``save_bytes``: of a checkpoint on disk.
    """

    schema_version: Literal[1] = Field(1, alias="schema")
    job_digest: str
    machine_digest: str
    layout: Layout
    num_workers: int
    num_parameters: int | None = None
    model_flop_per_token: float | None = None
    memory_per_device: MemoryEstimate | None = None
    worker_bytes: int | None = None
    step: StepEstimate | None = None
    save_bytes: int | None = None
    compile_s: float | None = None
    notes: list[str] = Field(default_factory=list)

    def expectation(self) -> Expectation:
        need = self.memory_per_device
        memory_bytes = None if need is None else need.total_bytes + (self.worker_bytes or 0)
        return Expectation(
            num_workers=self.num_workers,
            remat=self.layout.remat,
            step=self.step,
            memory_bytes=memory_bytes,
            save_bytes=self.save_bytes,
            compile_s=self.compile_s,
        )


class Infeasible(Spec):
    """Why a job cannot run on a machine, and what would; a value, not an exception."""

    reason: str
    fit: str | None = None
