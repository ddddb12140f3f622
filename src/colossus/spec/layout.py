"""How a job is cut over devices."""

from __future__ import annotations

from enum import StrEnum
from math import prod
from typing import Annotated

from pydantic import Field

from colossus.spec.base import Spec

AxisSize = Annotated[int, Field(ge=1)]

# Mesh axes, outer to inner: neighbours on the innermost axis are closest on the wire. pp and cp join here when they come.
MESH_AXES = ("dp", "fsdp", "tp")


class Remat(StrEnum):
    """Which activations the backward pass computes again instead of keeping: none, the cheap ones, or all."""

    NONE = "none"
    SELECTIVE = "selective"
    FULL = "full"


# Of a part's forward and backward time, the forward's, which FULL does again: one product of three, 2 of attention's 7 products of
# tokens with tokens, and 0.4 of the passes between, which SELECTIVE does again too.
FORWARD_FRACTION = {"gemm": 1 / 3, "attention": 2 / 7, "elementwise": 0.4}
RECOMPUTED: dict[Remat, tuple[str, ...]] = {Remat.NONE: (), Remat.SELECTIVE: ("elementwise",), Remat.FULL: ("gemm", "attention", "elementwise")}


class Schedule(StrEnum):
    """In which order a pipeline's stages work (``estimate/pipeline.py`` has their bubbles and what they hold). Interleaved is 1f1b with virtual stages."""

    ONE_F_ONE_B = "1f1b"
    GPIPE = "gpipe"
    ZB_H1 = "zb-h1"
    ZB_H2 = "zb-h2"
    ZB_V = "zb-v"
    V_HALF = "v-half"
    V_MIN = "v-min"
    DUALPIPE = "dualpipe"


class CpKind(StrEnum):
    """How ranks that share a sequence see each other's keys and values: pass them round, gather them, or exchange heads for tokens (Ulysses)."""

    RING = "ring"
    ALL_GATHER = "all-gather"
    ULYSSES = "ulysses"


class Offload(StrEnum):
    """What rests in the host's memory: nothing, the optimizer's state, activations, or both."""

    NONE = "none"
    OPTIMIZER = "optimizer"
    ACTIVATIONS = "activations"
    BOTH = "both"


class Layout(Spec):
    """Sizes of the mesh axes, what is recomputed, and how many microbatches make a step.

    dp copies the weights and splits the batch; fsdp splits both; tp splits features (and, between blocks, the
    sequence). Their product is the number of devices.
    """

    dp: AxisSize = 1
    fsdp: AxisSize = 1
    tp: AxisSize = 1
    remat: Remat = Remat.NONE
    num_microbatches: AxisSize = 1

    @property
    def axis_sizes(self) -> tuple[int, ...]:
        return tuple(getattr(self, axis) for axis in MESH_AXES)

    @property
    def num_devices(self) -> int:
        return prod(self.axis_sizes)

    @property
    def num_data_shards(self) -> int:
        """Into how many parts the batch is cut."""
        return self.dp * self.fsdp

    def describe(self) -> str:
        axes = " x ".join(f"{axis} {size}" for axis, size in zip(MESH_AXES, self.axis_sizes, strict=True))
        return f"{axes}, remat {self.remat.value}, {self.num_microbatches} microbatch{'es' if self.num_microbatches > 1 else ''}"
