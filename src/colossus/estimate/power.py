"""Watts of nodes by phase of a synchronous step, of their site, and what a lower clock saves; fitted figures of ``catalog/measured/power.toml``.

A node draws idle + (busy - idle) x utilisation of the phase it is in. A clock c of the full one slows compute to c, draws c^exponent of what is above
idle (f V^2), and leaves communication as long as it was. Ignored: that fans and memory do not follow the clock, and differences between nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from colossus.catalog.measured import power_figures
from colossus.estimate.shape import Numbers
from colossus.spec.machine import Chip, How, Machine, Node

# Parts of a planned step in which chips compute; in all others they wait for one another or for a link.
COMPUTE_PARTS = frozenset({"gemm", "attention", "elementwise", "recompute", "head", "optimizer"})


@dataclass(frozen=True, kw_only=True)
class PhaseWatts:
    """What a node (or a chip) draws in each phase. ``waiting``: processes that stand still, at a save, a restart or for a fault."""

    idle_w: float
    compute_w: float
    communication_w: float
    evaluation_w: float
    waiting_w: float

    @classmethod
    def between(cls, idle_w: float, busy_w: float) -> PhaseWatts:
        share = power_figures("utilisation")
        of = lambda phase: idle_w + (busy_w - idle_w) * share[phase]
        return cls(idle_w=idle_w, compute_w=of("compute"), communication_w=of("communication"), evaluation_w=of("evaluation"), waiting_w=of("waiting"))


@dataclass(frozen=True, kw_only=True)
class StepShares:
    """Shares of a step's time, together 1."""

    compute_fraction: float
    communication_fraction: float

    @classmethod
    def of(cls, parts_s: Mapping[str, float]) -> StepShares:
        """From a plan's parts; a step without parts computes all the time."""
        total_s = sum(parts_s.values())
        compute_s = sum(seconds for name, seconds in parts_s.items() if name in COMPUTE_PARTS)
        fraction = compute_s / total_s if total_s else 1.0
        return cls(compute_fraction=fraction, communication_fraction=1.0 - fraction)

    def speed(self, clock: Numbers) -> Numbers:
        """Of a step at a fraction of the full clock, over that at the full one."""
        return 1.0 / (self.compute_fraction / clock + self.communication_fraction)

    def mean_w(self, watts: PhaseWatts, clock: Numbers = 1.0) -> Numbers:
        """Of a node over a step."""
        compute = self.compute_fraction / clock
        high_w, low_w = at_clock(watts.compute_w, watts, clock), at_clock(watts.communication_w, watts, clock)
        return (compute * high_w + self.communication_fraction * low_w) / (compute + self.communication_fraction)


def at_clock(full_w: float, watts: PhaseWatts, clock: Numbers) -> Numbers:
    """What draws ``full_w`` at the full clock."""
    return watts.idle_w + (full_w - watts.idle_w) * clock ** power_figures("clock")["exponent"]


def least_clock_fraction() -> float:
    """As low as a chip can be made to run."""
    return power_figures("clock")["least_fraction"]


def node_watts(node: Node) -> PhaseWatts | None:
    """Of any node, by its full load: H100 nodes were measured, others are taken to be alike (estimated); None where its power is not known."""
    if node.power_w is None:
        return None
    fitted = power_figures("node")
    measured = node.power_w.how is How.MEASURED
    busy_w = node.power_w.value * fitted["busy_fraction_of_measured" if measured else "busy_fraction_of_datasheet"]
    return PhaseWatts.between(fitted["idle_fraction_of_busy"] * busy_w, busy_w)


def chip_watts(chip: Chip) -> PhaseWatts | None:
    """Of a chip alone, as its own sensor shows it."""
    if chip.power_w is None:
        return None
    share = power_figures("chip")
    return PhaseWatts.between(share["idle_fraction"] * chip.power_w.value, share["busy_fraction"] * chip.power_w.value)


def network_w(machine: Machine) -> float:
    """Switches and optics between domains, which draw the same at any load; unknown counts as nothing."""
    figure = machine.site.network_w_per_chip if machine.site else None
    return figure.value * machine.num_chips if figure else 0.0


def site_pue(machine: Machine) -> float:
    """Facility over IT power, mean of a year; 1 where it is not known."""
    return machine.site.pue.value if machine.site and machine.site.pue else 1.0


def pue_at(pue: float, above_mean_degrees: Numbers) -> Numbers:
    """Cooling takes more on hot days: the year's mean, and a part that grows with degrees outside above the year's mean. Losses remain on cold ones."""
    cooling = power_figures("cooling")
    return np.maximum(pue + cooling["pue_per_degree"] * above_mean_degrees, min(pue, cooling["least_pue"]))


def training_site_w(machine: Machine, num_chips: int, parts_s: Mapping[str, float]) -> float | None:
    """Mean power at the site while ``num_chips`` train: (nodes x step's mean + network) x PUE; None where nodes or site are not known."""
    watts, site = node_watts(machine.node), machine.site
    if watts is None or site is None:
        return None
    of_network_w = site.network_w_per_chip.value * num_chips if site.network_w_per_chip else 0.0
    nodes_w = StepShares.of(parts_s).mean_w(watts) * num_chips / machine.node.num_chips
    return float(nodes_w + of_network_w) * site_pue(machine)


def full_load_site_w(machine: Machine, *, above_mean_degrees: float = 0.0) -> float | None:
    """What the site is built for: nodes at full load and network, times PUE, which is higher on a hot day."""
    if machine.node.power_w is None:
        return None
    it_w = machine.num_nodes * machine.node.power_w.value + network_w(machine)
    return float(it_w * pue_at(site_pue(machine), above_mean_degrees))


def design_degrees() -> float:
    """How much hotter than the year's mean the day is that cooling and contracts are sized for."""
    return power_figures("cooling")["design_above_mean_degrees"]
