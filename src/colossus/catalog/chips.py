"""Accelerators as sold, one TOML file each: dense peaks by dtype, memory, bandwidth one way, power, with sources."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from colossus.catalog.entry import BytesFigure, BytesPerSFigure, Entry, FlopPerSFigure, WattFigure
from colossus.catalog.networks import Links
from colossus.spec.machine import Chip


class ChipEntry(Entry):
    """One file of ``catalog/chips``. ``memory_bytes``: what the driver offers, where known; None on a processor, which uses the node's.

    ``device_names``: regular expressions for what drivers and JAX call the chip. ``node``: the one it usually comes in.
    ``links``: to the other chips of its scale-up domain.
    """

    FOLDER: ClassVar[str] = "chips"

    kind: Literal["cpu", "gpu", "tpu", "accelerator"]
    device_names: Annotated[list[str], Field(min_length=1)]
    node: str
    memory_bytes: BytesFigure | None = None
    memory_bandwidth_bytes_per_s: BytesPerSFigure
    power_w: WattFigure | None = None
    links: Links | None = None
    peak_flop_per_s: Annotated[dict[str, FlopPerSFigure], Field(min_length=1)]

    def to_chip(self) -> Chip:
        return Chip(
            name=self.name,
            kind=self.kind,
            memory_bytes=self.memory_bytes,
            memory_bandwidth_bytes_per_s=self.memory_bandwidth_bytes_per_s,
            power_w=self.power_w,
            peak_flop_per_s=self.peak_flop_per_s,
        )


def chip_names() -> list[str]:
    """Every name that ``load_chip`` knows, sorted."""
    return ChipEntry.names()


def load_chip_entry(name: str) -> ChipEntry:
    """The file called ``name``; CatalogError names the nearest valid names."""
    return ChipEntry.load(name)


def load_chip(name: str) -> Chip:
    """E.g. ``load_chip("h200-sxm").memory_bandwidth_bytes_per_s.value == 4.8e12``."""
    return load_chip_entry(name).to_chip()


def match_device_name(device_name: str) -> Chip | None:
    """The chip that a driver or JAX calls ``device_name`` ("NVIDIA H200", "TPU v5 lite"), None where none is known."""
    for name in chip_names():
        if any(re.fullmatch(pattern, device_name, re.IGNORECASE) for pattern in load_chip_entry(name).device_names):
            return load_chip(name)
    return None
