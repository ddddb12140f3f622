"""Servers and trays, one TOML file each: which chips, how many, their scale-up domain and their share of the network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field

from colossus.catalog.chips import load_chip, load_chip_entry
from colossus.catalog.entry import Entry, WattFigure
from colossus.catalog.networks import Links
from colossus.spec.base import Spec
from colossus.spec.machine import Node
from colossus.spec.units import Bytes


class Domain(Spec):
    """The largest scale-up domain that nodes of a kind form. ``links`` None: the chip's own.

    ``num_torus_dims``: of a torus (TPU slices), built of cubes of ``num_cube_edge_chips`` where a slice is as large; None is a
    switch or a full mesh. ``num_wraparound_chips``: along a dim, from which on its ends are joined.
    """

    num_chips: Annotated[int, Field(ge=1)]
    links: Links | None = None
    num_torus_dims: Annotated[int, Field(ge=1, le=3)] | None = None
    num_cube_edge_chips: Annotated[int, Field(ge=1)] = 1
    num_wraparound_chips: Annotated[int, Field(ge=1)] = 1

    def torus_dims(self, num_chips: int) -> tuple[int, ...] | None:
        """The most cubic torus of so many chips, of whole cubes where it can be: (8, 8, 16) of 1024, (16, 20, 28) of 8960."""
        return None if self.num_torus_dims is None else most_cubic(num_chips, self.num_torus_dims, self.num_cube_edge_chips)


def most_cubic(num_chips: int, num_dims: int, edge: int) -> tuple[int, ...]:
    """The torus of least sum of dims, of whole cubes of ``edge`` where it can be."""
    shapes = list(_shapes(num_chips, num_dims, 1))
    whole = [dims for dims in shapes if all(dim % edge == 0 for dim in dims)]
    return min(whole or shapes, key=sum)


def _shapes(num_chips: int, num_dims: int, least: int) -> Iterator[tuple[int, ...]]:
    """Every way to write ``num_chips`` as a product of ``num_dims`` ascending factors, each at least ``least``."""
    if num_dims == 1:
        yield (num_chips,)
        return
    for dim in range(least, round(num_chips ** (1 / num_dims)) + 1):
        if num_chips % dim == 0:
            yield from ((dim, *rest) for rest in _shapes(num_chips // dim, num_dims - 1, dim))


class NodeEntry(Entry):
    """One file of ``catalog/nodes``. ``chip``: a name of ``catalog/chips``; ``num_cores``: physical; ``power_w``: of the node at full load.

    ``host``: a chip's link to the processors. ``scale_out``: the network between domains that it usually has. ``facility``: the building, a line of ``prices/facilities.toml``.
    """

    FOLDER: ClassVar[str] = "nodes"

    chip: str
    num_chips: Annotated[int, Field(ge=1)]
    num_cores: Annotated[int, Field(ge=1)]
    memory_bytes: Bytes
    power_w: WattFigure | None = None
    domain: Domain | None = None
    host: Links | None = None
    scale_out: Links | None = None
    facility: str = "hyperscale"

    def to_node(self) -> Node:
        return Node(
            chip=load_chip(self.chip),
            num_chips=self.num_chips,
            num_cores=self.num_cores,
            memory_bytes=self.memory_bytes,
            power_w=self.power_w,
            host_bytes_per_s_per_chip=self.host.bandwidth() if self.host else None,
        )

    @property
    def domain_links(self) -> Links | None:
        """What connects the chips of a domain; None where they share nothing of known speed."""
        return None if self.domain is None else self.domain.links or load_chip_entry(self.chip).links


def node_names() -> list[str]:
    """Every name that ``load_node`` knows, sorted."""
    return NodeEntry.names()


def load_node_entry(name: str) -> NodeEntry:
    """The file called ``name``; CatalogError names the nearest valid names."""
    return NodeEntry.load(name)


def load_node(name: str) -> Node:
    """E.g. ``load_node("dgx-h100").num_chips == 8``."""
    return load_node_entry(name).to_node()
