"""The train step as a compiler made it for a machine that need not be here: what to compile, and what was read from it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from colossus.spec.base import Spec
from colossus.spec.job import OptimizerSpec, Precision
from colossus.spec.layout import Layout
from colossus.spec.model import ModelCard

Platform = Literal["cpu", "gpu", "tpu"]
Compiler = Literal["cpu", "cuda", "tpu"]


class ProgramOrder(Spec):
    """Which step to compile and for what: the program is the one that ``platform`` would run, ``compiler`` says whose back end.

    ``topology``: the machine as that compiler names it; ``target``: its description of the chip. Neither for the CPU's, which
    compiles for as many made-up devices as the layout has.
    """

    card: ModelCard
    layout: Layout
    num_sequences: int
    sequence_tokens: int
    precision: Precision = Precision.BFLOAT16
    optimizer: OptimizerSpec = OptimizerSpec()
    platform: Platform
    compiler: Compiler
    topology: str | None = None
    target: str | None = None


class ProgramAccount(Spec):
    """What the compiling process itself knows: FLOP as written (on all devices), the allocator's bytes, its own time and memory.

    ``opaque_calls``: calls into compiled code, whose work no reading sees.
    """

    written_flop: int
    opaque_calls: list[str] = Field(default_factory=list)
    arguments_bytes: int
    outputs_bytes: int
    aliased_bytes: int
    temporaries_bytes: int
    peak_bytes: int
    compile_s: float
    compiler_memory_bytes: int
    jax_version: str


class Collective(Spec):
    """All messages of one kind over the same mesh axes in a step, as one device sees them.

    ``payload_bytes``: of all of them together what every device ends up with (all-gather) or starts from (all others).
    ``float32_bytes``: of them in float32. ``axes``: joined by ``+``. ``source``: the part of the model that sends most of it, where the compiler says.
    """

    opcode: str
    axes: str
    num_in_group: int
    payload_bytes: int
    num_times: int
    float32_bytes: int = 0
    source: str = ""


class ProgramLoop(Spec):
    """A loop of the program: how often it turns in a step, all in all, and where it comes from."""

    num_times: int
    source: str = ""


class ProgramReading(Spec):
    """What the compiled step does on one device; ``warnings``: what no closed form would have said; ``notes``: how it was read."""

    compiler: Compiler
    layout: Layout
    flop_per_device: int
    memory: ProgramAccount
    collectives: list[Collective] = Field(default_factory=list)
    loops: list[ProgramLoop] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)

    def bytes_by_axes(self) -> dict[str, int]:
        """Payload over each set of mesh axes."""
        found: dict[str, int] = {}
        for one in self.collectives:
            found[one.axes] = found.get(one.axes, 0) + one.payload_bytes
        return found
