"""Links between chips and between nodes, one TOML file each: rate of one link in one direction, latency, ports of a switch."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from colossus.catalog.entry import BytesPerSFigure, Entry, SecondsFigure
from colossus.spec.base import Spec
from colossus.spec.machine import Figure


class NetworkEntry(Entry):
    """One file of ``catalog/networks``. ``latency_s``: of the first byte over one hop, software of collectives apart.

    ``num_switch_ports``: at the link's rate; None where there are no switches or their size is the provider's secret.
    """

    FOLDER: ClassVar[str] = "networks"

    bandwidth_bytes_per_s_per_link: BytesPerSFigure
    latency_s: SecondsFigure
    num_switch_ports: Annotated[int, Field(ge=2)] | None = None


class Links(Spec):
    """How many links of a network a chip has; below 1 where several chips share one."""

    network: str
    num_links_per_chip: Annotated[float, Field(gt=0)]

    def bandwidth(self) -> Figure:
        """Of all links of a chip together, in one direction."""
        rate = load_network(self.network).bandwidth_bytes_per_s_per_link
        return rate.model_copy(update={"value": rate.value * self.num_links_per_chip, "source": f"{self.num_links_per_chip:g} x {rate.source}"})

    def num_tiers(self, num_chips: int) -> int:
        """Switch tiers of the smallest full-bisection Clos for so many chips: t tiers of p ports carry 2 (p/2)^t ends.

        Al-Fares et al., SIGCOMM 2008. 2 where the switch is unknown.
        """
        ports = load_network(self.network).num_switch_ports
        if ports is None:
            return 2
        tiers = 1
        while 2 * (ports / 2) ** tiers < num_chips * self.num_links_per_chip:
            tiers += 1
        return tiers


def network_names() -> list[str]:
    """Every name that ``load_network`` knows, sorted."""
    return NetworkEntry.names()


def load_network(name: str) -> NetworkEntry:
    """E.g. ``load_network("infiniband-ndr").bandwidth_bytes_per_s_per_link.value == 50e9``."""
    return NetworkEntry.load(name)
