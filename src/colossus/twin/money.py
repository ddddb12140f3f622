"""The bill of a simulation: every class of cost over its wall time, beside what renting the same nodes would have cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from colossus.estimate.money import Capital, Rates
from colossus.spec.machine import Machine
from colossus.spec.scenario import MoneyScenario

_HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class MoneyModel:
    """USD a second by class, of the whole machine; a job pays the share of its nodes and spares. None: not known."""

    parts_usd_per_s: dict[str, float]
    energy_usd_per_j: float | None
    rent_usd_per_s: float | None
    is_whole: bool  # whether capital and energy are known, so that a total says something

    @classmethod
    def of(cls, machine: Machine, money: MoneyScenario) -> MoneyModel:
        site, capital = machine.site, Capital.of(machine, money)
        rent = site.rent_usd_per_s_per_chip if site else None
        energy = site.energy_usd_per_j if site else None
        return cls(
            parts_usd_per_s=Rates.of(capital, money, machine.num_nodes).parts_usd_per_s,
            energy_usd_per_j=energy.value if energy else None,
            rent_usd_per_s=rent.value * machine.num_chips if rent else None,
            is_whole=capital is not None and energy is not None,
        )

    def costs(self, *, wall_s: float, tokens: float, job_j: float, held_fraction: float) -> dict[str, Any]:
        """Fields of a Bill. ``held_fraction``: of the machine, what the job holds, and ``job_j`` what that drew at the grid.

        An hour lost costs as much as any other: nodes are paid whether they train or not.
        """
        parts = {name: rate * wall_s * held_fraction for name, rate in self.parts_usd_per_s.items()}
        if self.energy_usd_per_j is not None:
            parts["energy"] = self.energy_usd_per_j * job_j
        total = sum(parts.values()) if self.is_whole else None
        return {
            "parts_usd": parts,
            "total_usd": total,
            "usd_per_million_tokens": None if total is None or not tokens else total / tokens * 1e6,
            "lost_hour_usd": None if total is None or not wall_s else total / wall_s * _HOUR_S,
            "rent_usd": None if self.rent_usd_per_s is None else self.rent_usd_per_s * wall_s * held_fraction,
        }
