"""Accelerators as sold, one TOML file each: dense peaks by dtype, memory, bandwidth one way, power, with sources."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from colossus.spec.base import Spec
from colossus.spec.errors import CatalogError, nearest
from colossus.spec.machine import Chip, Figure, How
from colossus.spec.units import parse_quantity


def _quantity(base: str) -> BeforeValidator:
    return BeforeValidator(lambda value: parse_quantity(value, base) if isinstance(value, str) else value)


class ChipEntry(Spec):
    """One file of ``catalog/chips``; ``source`` and ``date`` (as published, ISO 8601) hold for each figure in it.

    ``device_names``: regular expressions for what drivers and JAX call the chip.
    """

    schema_version: Literal[1] = Field(1, alias="schema")
    name: str
    kind: Literal["gpu", "tpu"]
    device_names: Annotated[list[str], Field(min_length=1)]
    source: Annotated[str, Field(min_length=1)]
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}(-\d{2})?$")]
    how: How = How.DATASHEET
    memory_bytes: Annotated[float, _quantity("B")]
    memory_bandwidth_bytes_per_s: Annotated[float, _quantity("B/s")]
    power_w: Annotated[float, _quantity("W")] | None = None
    peak_flop_per_s: dict[str, Annotated[float, _quantity("FLOP/s")]]

    def to_chip(self) -> Chip:
        return Chip(
            name=self.name,
            kind=self.kind,
            memory_bytes=self._figure(self.memory_bytes),
            memory_bandwidth_bytes_per_s=self._figure(self.memory_bandwidth_bytes_per_s),
            power_w=None if self.power_w is None else self._figure(self.power_w),
            peak_flop_per_s={dtype: self._figure(peak) for dtype, peak in self.peak_flop_per_s.items()},
        )

    def _figure(self, value: float) -> Figure:
        return Figure(value=value, how=self.how, source=self.source, date=self.date)


def chip_names() -> list[str]:
    """Every name that ``load_chip`` knows, sorted."""
    return sorted(file.name.removesuffix(".toml") for file in _folder().iterdir() if file.name.endswith(".toml"))


@cache
def load_chip_entry(name: str) -> ChipEntry:
    """The file called ``name``; CatalogError names the nearest valid names."""
    names = chip_names()
    if name not in names:
        raise CatalogError(f"no chip {name!r} in the catalog", hint=nearest(name, names) or "valid: " + ", ".join(names))
    file = _folder() / f"{name}.toml"
    return ChipEntry.from_data(tomllib.loads(file.read_text(encoding="utf-8")), origin=str(file))


def load_chip(name: str) -> Chip:
    """E.g. ``load_chip("h200-sxm").memory_bytes.value == 141e9``."""
    return load_chip_entry(name).to_chip()


def match_device_name(device_name: str) -> Chip | None:
    """The chip that a driver or JAX calls ``device_name`` ("NVIDIA H200", "TPU v5 lite"), None where none is known."""
    for name in chip_names():
        if any(re.fullmatch(pattern, device_name, re.IGNORECASE) for pattern in load_chip_entry(name).device_names):
            return load_chip(name)
    return None


def _folder() -> Traversable:
    return files("colossus.catalog") / "chips"
