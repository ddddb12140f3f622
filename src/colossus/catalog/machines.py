"""Machines by name: one TOML file each, a node's name for one domain of it, or ``CHIP*COUNT`` and ``NODE*COUNT``."""

from __future__ import annotations

from math import prod
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from colossus.catalog.chips import chip_names, load_chip_entry
from colossus.catalog.entry import Entry, unknown
from colossus.catalog.networks import Links, load_network
from colossus.catalog.nodes import NodeEntry, load_node_entry, node_names
from colossus.catalog.prices import SiteEntry
from colossus.spec.base import Spec
from colossus.spec.errors import CatalogError
from colossus.spec.machine import Machine, ScaleOut, ScaleUp


class ScaleUpEntry(Spec):
    """Of a machine's domains, what differs from its node's. ``torus_dims`` None: the most cubic shape."""

    num_chips: Annotated[int, Field(ge=1)] | None = None
    torus_dims: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _dims_hold_the_domain(self) -> Self:
        if self.torus_dims is not None and prod(self.torus_dims) != self.num_chips:
            raise ValueError(f"torus_dims {self.torus_dims} hold {prod(self.torus_dims)} chips, not num_chips = {self.num_chips}")
        return self


class ScaleOutEntry(Spec):
    """Of a machine's network, what differs from its node's. ``num_tiers`` None: the fewest that reach all chips."""

    links: Links | None = None
    num_tiers: Annotated[int, Field(ge=1)] | None = None
    pod_chips: Annotated[int, Field(ge=1)] | None = None
    oversubscription: Annotated[float, Field(ge=1)] = 1.0


class MachineEntry(Entry):
    """One file of ``catalog/machines``; ``node`` is a name of ``catalog/nodes``."""

    FOLDER: ClassVar[str] = "machines"

    node: str
    num_nodes: Annotated[int, Field(ge=1)]
    scale_up: ScaleUpEntry = ScaleUpEntry()
    scale_out: ScaleOutEntry = ScaleOutEntry()
    site: SiteEntry = SiteEntry()

    def to_machine(self) -> Machine:
        node = load_node_entry(self.node)
        return Machine(
            name=self.name,
            node=node.to_node(),
            num_nodes=self.num_nodes,
            scale_up=self._scale_up(node),
            scale_out=self._scale_out(node),
            site=self.site.to_site(node.chip, node.facility),
        )

    def _scale_up(self, node: NodeEntry) -> ScaleUp | None:
        links = node.domain_links
        if links is None or node.domain is None:
            return None
        most = self.scale_up.num_chips or node.domain.num_chips
        num_chips = self.scale_up.num_chips or _even_domain_chips(self.num_nodes * node.num_chips, most, node.num_chips)
        return ScaleUp(
            num_chips=num_chips,
            bandwidth_bytes_per_s_per_chip=links.bandwidth(),
            latency_s=load_network(links.network).latency_s,
            torus_dims=self.scale_up.torus_dims or node.domain.torus_dims(num_chips),
            num_wraparound_chips=node.domain.num_wraparound_chips if node.domain.num_torus_dims else None,
        )

    def _scale_out(self, node: NodeEntry) -> ScaleOut | None:
        own, num_chips = self.scale_out, self.num_nodes * node.num_chips
        links = own.links or node.scale_out
        if links is None:
            return None
        return ScaleOut(
            bandwidth_bytes_per_s_per_chip=links.bandwidth(),
            latency_s=load_network(links.network).latency_s,
            num_tiers=own.num_tiers or links.num_tiers(num_chips),
            pod_chips=own.pod_chips,
            oversubscription=own.oversubscription,
        )


def _even_domain_chips(num_chips: int, most: int, per_node: int) -> int:
    """The largest domain of whole nodes, at most ``most`` chips, that cuts ``num_chips`` evenly: 256 GB200 are 4 times 64 of 72.

    ``most`` where an even cut would halve the domain.
    """
    if num_chips <= most:
        return num_chips
    even = (size for size in range(most - most % per_node, most // 2, -per_node) if num_chips % size == 0)
    return next(even, most)


def machine_names() -> list[str]:
    """Every name that ``load_machine`` knows, those with a ``*`` apart, sorted."""
    return sorted({*MachineEntry.names(), *node_names()})


def load_machine_entry(name: str) -> MachineEntry:
    """The file called ``name``, one domain of the node called so, or so many chips: ``"h100-sxm*64"``, ``"gb200-nvl72*144"``."""
    kind, star, count = (part.strip() for part in name.partition("*"))
    if star:
        return _counted(kind, count)
    if name in MachineEntry.names() or name not in node_names():
        return _filed(name)
    node = load_node_entry(name)
    return _of_nodes(name, name, max(1, node.domain.num_chips // node.num_chips if node.domain else 1))


def load_machine(name: str) -> Machine:
    """E.g. ``load_machine("colossus-100k").num_chips == 100_000``; as ``load_machine_entry`` names them."""
    return load_machine_entry(name).to_machine()


def _filed(name: str) -> MachineEntry:
    if name in chip_names():
        node = load_node_entry(load_chip_entry(name).node)
        raise CatalogError(f"{name!r} is a chip; a machine has a number of them", hint=f"write {name}*{8 * node.num_chips}")
    if name not in MachineEntry.names():
        raise unknown("machine", name, machine_names())
    return MachineEntry.load(name)


def _counted(kind: str, count: str) -> MachineEntry:
    if kind not in chip_names() and kind not in node_names():
        raise unknown("chip or node", kind, sorted({*chip_names(), *node_names()}))
    node_name = kind if kind in node_names() else load_chip_entry(kind).node
    per_node = load_node_entry(node_name).num_chips
    num_chips = int(count.replace("_", "")) if count.replace("_", "").isdecimal() else 0
    if num_chips < 1:
        raise CatalogError(f"{count!r} is not a number of chips", hint=f"write e.g. {kind}*{8 * per_node}")
    if num_chips % per_node:
        below = num_chips - num_chips % per_node
        near = [f"{kind}*{size}" for size in (below, below + per_node) if size]
        part = f", of which colossus plan takes fewer with --chips {num_chips}" if num_chips < per_node else ""
        told = f"{num_chips} chip does not fill a whole node" if num_chips == 1 else f"{num_chips} chips do not fill whole nodes"
        raise CatalogError(f"{told}: {node_name} has {per_node}", hint=" or ".join(near) + part)
    return _of_nodes(f"{kind}*{num_chips}", node_name, num_chips // per_node)


def _of_nodes(name: str, node_name: str, num_nodes: int) -> MachineEntry:
    node = load_node_entry(node_name)
    return MachineEntry(name=name, source=node.source, date=node.date, how=node.how, node=node_name, num_nodes=num_nodes)
