"""What a job runs on: chip < node < machine, every figure with how it was obtained."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from colossus.spec.base import Spec
from colossus.spec.kernels import Kernels
from colossus.spec.units import Bytes


class How(StrEnum):
    """How a number was obtained."""

    MEASURED = "measured"
    SIMULATED = "simulated"
    ESTIMATED = "estimated"
    DATASHEET = "datasheet"


class Figure(Spec):
    """A number about the world with its provenance; the unit is the suffix of the field that holds it."""

    value: float
    how: How
    source: str
    date: str | None = None


class Chip(Spec):
    """One accelerator package as sold, or a processor. Peaks are dense, per dtype; bandwidth is one direction.

    ``kind`` accelerator: neither GPU nor TPU (Trainium, Gaudi).
    """

    name: str
    kind: Literal["cpu", "gpu", "tpu", "accelerator"]
    memory_bytes: Figure | None = None
    memory_bandwidth_bytes_per_s: Figure | None = None
    peak_flop_per_s: dict[str, Figure] = Field(default_factory=dict)
    power_w: Figure | None = None


class Node(Spec):
    """One operating system: its processors, its memory and the chips it drives. ``power_w``: all of it at full load.

    ``host_bytes_per_s_per_chip``: between a chip and the processors' memory, one direction.
    """

    chip: Chip
    num_chips: Annotated[int, Field(ge=1)]
    num_cores: Annotated[int, Field(ge=1)]
    memory_bytes: Bytes
    power_w: Figure | None = None
    host_bytes_per_s_per_chip: Figure | None = None


class ScaleUp(Spec):
    """The fabric inside a domain (NVLink, ICI). Bandwidth is one direction, per chip, over all its links.

    ``torus_dims``: chips along each dim of a torus (TPU); None is a switch, where every chip reaches every other at full rate.
    ``num_wraparound_chips``: along a dim, from which on its two ends are joined.
    """

    num_chips: Annotated[int, Field(ge=1)]
    bandwidth_bytes_per_s_per_chip: Figure
    latency_s: Figure
    torus_dims: tuple[int, ...] | None = None
    num_wraparound_chips: Annotated[int, Field(ge=1)] | None = None


class ScaleOut(Spec):
    """The network between domains. Full bisection inside a pod of ``pod_chips``; above it ``oversubscription`` to 1."""

    bandwidth_bytes_per_s_per_chip: Figure
    latency_s: Figure
    num_tiers: Annotated[int, Field(ge=1)] = 2
    pod_chips: Annotated[int, Field(ge=1)] | None = None
    oversubscription: Annotated[float, Field(ge=1)] = 1.0


class Site(Spec):
    """Building and contracts: what a chip costs to buy or to rent, what a joule costs and emits, facility over IT power.

    ``construction_usd_per_chip``: of the purchase, what the building cost; None: the purchase is of chips in servers alone.
    """

    pue: Figure | None = None
    network_w_per_chip: Figure | None = None
    purchase_usd_per_chip: Figure | None = None
    construction_usd_per_chip: Figure | None = None
    rent_usd_per_s_per_chip: Figure | None = None
    energy_usd_per_j: Figure | None = None
    carbon_kg_co2e_per_j: Figure | None = None


class Machine(Spec):
    """Equal nodes on one network. On a machine without accelerators each core counts as one device.

    ``scale_up`` None: nodes are their own domains, of unknown speed. ``scale_out`` None: there is one domain only.
    ``kernels``: of the machine at hand, what the trainer's own kernels were measured to do on its processors.
    """

    schema_version: Literal[1] = Field(1, alias="schema")
    name: str
    node: Node
    num_nodes: Annotated[int, Field(ge=1)] = 1
    scale_up: ScaleUp | None = None
    scale_out: ScaleOut | None = None
    site: Site | None = None
    kernels: Kernels | None = None

    @property
    def identity(self) -> str:
        """What must be the same for a measurement to be of this machine as it is now, the limits of its control group included."""
        node = self.node
        return f"{self.name}: {self.num_nodes} x {node.num_chips} {node.chip.name}, {node.num_cores} cores, {node.memory_bytes} bytes"

    @property
    def num_chips(self) -> int:
        return self.num_nodes * self.node.num_chips

    @property
    def num_devices(self) -> int:
        per_node = self.node.num_cores if self.node.chip.kind == "cpu" else self.node.num_chips
        return self.num_nodes * per_node

    @property
    def memory_bytes_per_device(self) -> float:
        """What one device may use: its share of the node's memory on a CPU, its own memory else."""
        chip = self.node.chip
        if chip.kind == "cpu" or chip.memory_bytes is None:
            return self.node.memory_bytes * self.num_nodes / self.num_devices
        return chip.memory_bytes.value
