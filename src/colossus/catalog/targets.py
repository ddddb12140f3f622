"""GPUs as XLA's CUDA compiler wants them described, one TOML file each, so that it compiles for a chip that is not here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from colossus.catalog.entry import Entry


class TargetEntry(Entry):
    """One file of ``catalog/targets``, named as its chip. ``device``: fields of XLA's GpuDeviceInfoProto, by their names there."""

    FOLDER: ClassVar[str] = "targets"

    device: dict[str, Any]

    def to_text(self) -> str:
        """XLA's GpuTargetConfigProto as text."""
        whole = {"gpu_device_info": self.device, "platform_name": "CUDA", "device_description_str": self.device.get("name", self.name)}
        return "\n".join(_lines(whole)) + "\n"


def load_target(chip: str) -> str | None:
    """The description of a chip of the catalog, None where there is none."""
    return TargetEntry.load(chip).to_text() if chip in TargetEntry.names() else None


def _lines(table: dict[str, Any]) -> Iterator[str]:
    """Protobuf's text form: a table is a message, a name in capitals without quotes an enum."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield f"{name} {{"
            yield from _lines(value)
            yield "}"
        elif isinstance(value, str):
            yield f'{name}: "{value}"' if not (value.isupper() and "_" in value) else f"{name}: {value}"
        else:
            yield f"{name}: {str(value).lower() if isinstance(value, bool) else value}"
