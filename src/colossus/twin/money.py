"""The bill of a simulation: every class of cost over its wall time, beside what renting the job's chips would have cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from colossus.estimate.money import Capital, Rates
from colossus.spec.machine import Machine
from colossus.spec.scenario import MoneyScenario

_HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class MoneyModel:
    """USD a second by class, of the whole machine: its spares and what the job does not use are paid too. None: not known."""

    parts_usd_per_s: dict[str, float]
    energy_usd_per_j: float | None
    rent_usd_per_s: float | None
    is_whole: bool  # whether capital and energy are known, so that a total says something

    @classmethod
    def of(cls, machine: Machine, money: MoneyScenario, num_job_chips: int) -> MoneyModel:
        site, capital = machine.site, Capital.of(machine, money)
        rent = site.rent_usd_per_s_per_chip if site else None
        energy = site.energy_usd_per_j if site else None
        return cls(
            parts_usd_per_s=Rates.of(capital, money, machine.num_nodes).parts_usd_per_s,
            energy_usd_per_j=energy.value if energy else None,
            rent_usd_per_s=rent.value * num_job_chips if rent else None,
            is_whole=capital is not None and energy is not None,
        )

    def costs(self, *, wall_s: float, tokens: float, site_j: float) -> dict[str, Any]:
        """Fields of a Bill. An hour lost costs as much as any other: the machine is paid whether it trains or not."""
        parts = {name: rate * wall_s for name, rate in self.parts_usd_per_s.items()}
        if self.energy_usd_per_j is not None:
            parts["energy"] = self.energy_usd_per_j * site_j
        total = sum(parts.values()) if self.is_whole else None
        return {
            "parts_usd": parts,
            "total_usd": total,
            "usd_per_million_tokens": None if total is None or not tokens else total / tokens * 1e6,
            "lost_hour_usd": None if total is None or not wall_s else total / wall_s * _HOUR_S,
            "rent_usd": None if self.rent_usd_per_s is None else self.rent_usd_per_s * wall_s,
        }
