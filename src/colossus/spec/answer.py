"""What a plan for a machine of the catalog says: the best layouts with all that they take, every figure estimated."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from colossus.spec.base import Spec
from colossus.spec.layout import AxisSize, CpKind, Offload, Remat, Schedule


class PlannedLayout(Spec):
    """Mesh axes outer to inner, how the batch is cut, what is recomputed and what is sharded.

    ``ep`` re-cuts dp x cp x tp for experts. ``zero_stage`` 1 shards the optimizer's state over dp x cp, 2 gradients too, 3 (fsdp)
    weights too; inside each of ``num_replica_groups`` (HSDP).
    """

    pp: AxisSize = 1
    dp: AxisSize = 1
    cp: AxisSize = 1
    tp: AxisSize = 1
    ep: AxisSize = 1
    num_virtual_stages: AxisSize = 1
    num_microbatch_sequences: AxisSize = 1
    num_microbatches: AxisSize = 1
    remat: Remat = Remat.NONE
    zero_stage: Literal[1, 2, 3] = 1
    num_replica_groups: AxisSize = 1
    schedule: Schedule = Schedule.ONE_F_ONE_B
    cp_kind: CpKind = CpKind.RING
    offload: Offload = Offload.NONE

    @property
    def num_chips(self) -> int:
        return self.pp * self.dp * self.cp * self.tp

    def describe(self) -> str:
        axes = [f"{name} {size}" for name in ("pp", "dp", "cp", "tp", "ep") if (size := getattr(self, name)) > 1]
        batch = f"{self.num_microbatches} microbatch{'es' if self.num_microbatches > 1 else ''} of {self.num_microbatch_sequences}"
        return ", ".join([" x ".join(axes) or "one chip", *self._extras(), batch, self._sharding(), f"remat {self.remat.value}", *self._offloaded()])

    def _extras(self) -> list[str]:
        stages = [f"{self.num_virtual_stages} virtual stages"] if self.num_virtual_stages > 1 else []
        schedule = [self.schedule.value] if self.schedule is not Schedule.ONE_F_ONE_B else []
        return [*stages, *schedule, *([f"cp by {self.cp_kind.value}"] if self.cp > 1 and self.cp_kind is not CpKind.RING else [])]

    def _sharding(self) -> str:
        return f"ZeRO {self.zero_stage}" + (f" in {self.num_replica_groups} groups (HSDP)" if self.num_replica_groups > 1 else "")

    def _offloaded(self) -> list[str]:
        what = {Offload.OPTIMIZER: "optimizer", Offload.ACTIVATIONS: "activations", Offload.BOTH: "optimizer and activations"}
        return [f"{what[self.offload]} in the host's memory"] if self.offload in what else []


class Choice(Spec):
    """One layout and what it takes. Times are of the mean step; ``lower`` and ``upper`` hold nine measured runs in ten.

    ``parts_s`` add up to ``step_s``, ``memory_parts_bytes`` to ``memory_bytes_per_chip``. Energy and carbon are the site's, cooling included.
    ``cost_usd``: rent of the chips for the time; ``purchase_usd``: what these chips cost to buy.
    """

    layout: PlannedLayout
    step_s: float
    lower_step_s: float
    upper_step_s: float
    parts_s: dict[str, float]
    memory_bytes_per_chip: float
    memory_parts_bytes: dict[str, float]
    model_flop_per_s_per_chip: float
    mfu_fraction: float
    throughput_tokens_per_s: float
    time_to_train_s: float
    power_w: float | None = None
    energy_j: float | None = None
    cost_usd: float | None = None
    purchase_usd: float | None = None
    carbon_kg_co2e: float | None = None
    limited_by: str
    why_not_first: str | None = None

    @property
    def num_chips(self) -> int:
        return self.layout.num_chips


class Answer(Spec):
    """The question as it was understood, how many layouts there are, and the best of them, best first.

    ``chip``: its catalog name. ``chip_memory_bytes``: all that it has. ``deadline_s``: what the choice of chips had to meet.
    """

    schema_version: Literal[1] = Field(1, alias="schema")
    model: str
    machine: str
    num_chips: int
    precision: str
    program: str
    num_sequences: int
    sequence_tokens: int
    total_tokens: float
    objective: Literal["time", "cost", "energy"] = "time"
    deadline_s: float | None = None
    chip: str | None = None
    chip_memory_bytes: float | None = None
    num_parameters: int
    num_layouts: int
    num_fitting: int
    choices: list[Choice]
    notes: list[str] = Field(default_factory=list)

    @property
    def best(self) -> Choice:
        return self.choices[0]
