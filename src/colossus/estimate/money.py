"""What a machine costs to buy, by class, and what an hour of it costs, used or not: straight-line depreciation, energy, staff, maintenance.

Ignored: what chips are worth afterwards, interest, taxes, land.
"""

from __future__ import annotations

from dataclasses import dataclass

from colossus.estimate.power import design_degrees, full_load_site_w
from colossus.spec.machine import Machine
from colossus.spec.scenario import MoneyScenario

_YEAR_S = 365.25 * 86400.0


@dataclass(frozen=True, kw_only=True)
class Capital:
    """Purchase by class. ``chips_usd``: chips in their servers."""

    chips_usd: float
    network_usd: float
    building_usd: float

    @property
    def total_usd(self) -> float:
        return self.chips_usd + self.network_usd + self.building_usd

    @classmethod
    def of(cls, machine: Machine, money: MoneyScenario) -> Capital | None:
        """None where nobody sells the chip. The building is paid by the watt that it is built for.

        A site's price that holds the building (``construction_usd_per_chip``) holds the network too; a chip's price from a list holds neither.
        """
        site = machine.site
        if site is None or site.purchase_usd_per_chip is None:
            return None
        price_usd, chips = site.purchase_usd_per_chip.value, machine.num_chips
        beside = money.network_fraction
        if site.construction_usd_per_chip is not None:
            hardware_usd = (price_usd - site.construction_usd_per_chip.value) * chips
            chips_usd = hardware_usd / (1.0 + beside)
            return cls(chips_usd=chips_usd, network_usd=hardware_usd - chips_usd, building_usd=site.construction_usd_per_chip.value * chips)
        built_w = full_load_site_w(machine, above_mean_degrees=design_degrees()) or 0.0
        return cls(chips_usd=price_usd * chips, network_usd=price_usd * chips * beside, building_usd=money.building_usd_per_w * built_w)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """USD a second of a machine that stands, energy apart; ``None`` in ``Capital`` leaves its classes out."""

    parts_usd_per_s: dict[str, float]

    @classmethod
    def of(cls, capital: Capital | None, money: MoneyScenario, num_nodes: int) -> Rates:
        parts: dict[str, float] = {}
        if capital is not None:
            parts = {
                "chips": capital.chips_usd / money.depreciation_s,
                "network": capital.network_usd / money.depreciation_s,
                "building": capital.building_usd / money.building_depreciation_s,
                "maintenance": money.maintenance_fraction * capital.total_usd / _YEAR_S,
            }
        return cls(parts_usd_per_s=parts | {"staff": money.staff_usd_per_s_per_node * num_nodes})
