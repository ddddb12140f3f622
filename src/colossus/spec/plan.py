"""What a job will take on a machine, said before it starts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from colossus.spec.base import Spec
from colossus.spec.layout import Layout


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


class Plan(Spec):
    """A layout that fits, with the work and memory it needs; hashes tie it to its inputs."""

    schema_version: Literal[1] = Field(1, alias="schema")
    job_digest: str
    machine_digest: str
    layout: Layout
    num_workers: int
    num_parameters: int | None = None
    model_flop_per_token: float | None = None
    memory_per_device: MemoryEstimate | None = None
    notes: list[str] = Field(default_factory=list)


class Infeasible(Spec):
    """Why a job cannot run on a machine, and what would; a value, not an exception."""

    reason: str
    fit: str | None = None
