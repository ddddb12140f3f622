"""What was fitted on measurements, apart from facts: GEMM curves of chips, coefficients of training programs.

Files under ``measured/`` are written by ``benchmarks/fit_kernels.py`` and ``colossus calibrate``; each says on what, when and how well.
"""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

FOLDER = "measured"
# From the widest to the narrowest; the narrowest that has a value wins.
SCOPES = ("all", "precision", "chip", "program", "chip_precision")


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What a coefficient is before any measurement: a value, the factor it may plausibly be off by, and which scope it belongs to.

    ``most``: what it cannot exceed.
    """

    value: float
    factor: float
    scope: str
    meaning: str
    most: float = 1e30


@dataclass(frozen=True, kw_only=True)
class Program:
    """A training program as tables name it, in a period. ``chunk_layers``: layers of a pipeline chunk where a table does not say."""

    name: str
    pattern: str
    until: str | None = None
    flash_attention: bool = True
    chunk_layers: int | None = None
    can: tuple[str, ...] = ()

    def matches(self, framework: str, date: str) -> bool:
        return re.search(self.pattern, framework, re.IGNORECASE) is not None and (self.until is None or date < self.until)


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """Fitted values by scope and key, over priors."""

    priors: Mapping[str, Prior]
    values: Mapping[str, Mapping[str, Mapping[str, float]]]  # scope -> key -> coefficient -> value
    spread: Mapping[str, tuple[float, float]]  # program -> measured over estimated, 5th and 95th percentile

    def get(self, name: str, *, chip: str, precision: str, program: str) -> float:
        keys = {"all": "all", "precision": precision, "chip": chip, "program": program, "chip_precision": f"{chip} {precision}"}
        found = self.priors[name].value
        for scope in SCOPES:
            found = self.values.get(scope, {}).get(keys[scope], {}).get(name, found)
        return found

    def knows(self, chip: str, precision: str) -> bool:
        """Whether runs on this chip in this precision were among those fitted on."""
        return bool(self.values.get("chip_precision", {}).get(f"{chip} {precision}"))

    def interval(self, program: str, *, chip: str, precision: str) -> tuple[float, float]:
        """Of measured over estimated time, 5th and 95th percentile; as far as on models not seen where the chip was not (benchmarks/holdout.py)."""
        if not self.knows(chip, precision):
            return tuple(_read("unseen.toml")["measured_over_estimated"])
        ends = list(self.spread.values()) or [(1.0, 1.0)]
        return self.spread.get(program, (min(low for low, _ in ends), max(high for _, high in ends)))


@cache
def gemm_curves() -> dict[str, dict[str, float]]:
    """``"CHIP PRECISION"`` -> flop_per_s, m_half, n_half, k_half, num_shapes, median_error_fraction."""
    return _read("gemm.toml")["curves"]


def gemm_curve(chip: str, precision: str) -> dict[str, float] | None:
    """The curve of a chip, or of its kin with the same silicon; None where neither was measured."""
    kin = _read("kin.toml")["kin"].get(chip, chip)
    return gemm_curves().get(f"{chip} {precision}") or gemm_curves().get(f"{kin} {precision}")


@cache
def programs() -> list[Program]:
    return [Program(**entry | {"can": tuple(entry.get("can", ()))}) for entry in _read("programs.toml")["programs"]]


def program_of(framework: str, date: str) -> Program:
    """The first entry that a framework's name and a date match; the last entry matches everything."""
    return next(program for program in programs() if program.matches(framework, date))


@cache
def load_coefficients(path: Path | None = None) -> Coefficients:
    """The committed coefficients, or a user's own file laid over them."""
    data = copy.deepcopy(_read("coefficients.toml"))
    if path is not None:
        own = tomllib.loads(path.read_text(encoding="utf-8"))
        for scope, entries in own.get("values", {}).items():
            for key, named in entries.items():
                data["values"].setdefault(scope, {}).setdefault(key, {}).update(named)
        data["spread"].update(own.get("spread", {}))
    return Coefficients(priors=priors(), values=data.get("values", {}), spread={name: (low, high) for name, (low, high) in data["spread"].items()})


@cache
def priors() -> dict[str, Prior]:
    return {name: Prior(**entry) for name, entry in _read("priors.toml")["priors"].items()}


def usual_rates() -> dict[str, Any]:
    """Fractions of datasheet rates that are reached where nothing was measured on the very chip or fabric."""
    return _read("rates.toml")


@cache
def training_power_fraction() -> float:
    """Of a node's power at full load that it draws on average while it trains."""
    return _read("power.toml")["training_power_fraction"]


@cache
def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((files("colossus.catalog") / FOLDER / name).read_text(encoding="utf-8"))
