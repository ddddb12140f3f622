"""What all files of the catalog share: figures written as text with their source, and folders of files found by name."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, ValidationInfo

from colossus.spec.base import Spec
from colossus.spec.errors import CatalogError, nearest
from colossus.spec.machine import Figure, How
from colossus.spec.units import parse_quantity

_DATE = re.compile(r"\d{4}-\d{2}(-\d{2})?")
_ORIGIN = ("source", "date", "how")


def figure(base: str) -> BeforeValidator:
    """Reads ``"80 GB"`` as a Figure with the file's source, date and how, and a table with a ``value`` as one with its own.

    ``base``: as for ``parse_quantity``; "" is a pure number. A figure without source and date, or not above zero, is refused.
    """

    def read(given: Any, info: ValidationInfo) -> dict[str, Any]:
        table = given.to_data() if isinstance(given, Figure) else dict(given) if isinstance(given, Mapping) else {"value": given}
        if "source" not in table:
            table = {key: info.data[key] for key in _ORIGIN if key in info.data} | table
        _check_origin(table)
        return {"how": How.DATASHEET} | table | {"value": _positive(table.get("value"), base)}

    return BeforeValidator(read)


def _check_origin(table: Mapping[str, Any]) -> None:
    if not table.get("source"):
        raise ValueError("needs a source: {value = ..., source = ..., date = ...}")
    if not _DATE.fullmatch(str(table.get("date"))):
        raise ValueError("needs the date of its source, as 2024-03 or 2024-03-18")


def _positive(value: Any, base: str) -> float:
    number = parse_quantity(value, base) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not number > 0:
        raise ValueError("must be a number above zero")
    return float(number)


PureFigure = Annotated[Figure, figure("")]
BytesFigure = Annotated[Figure, figure("B")]
BytesPerSFigure = Annotated[Figure, figure("B/s")]
FlopPerSFigure = Annotated[Figure, figure("FLOP/s")]
SecondsFigure = Annotated[Figure, figure("s")]
WattFigure = Annotated[Figure, figure("W")]
UsdFigure = Annotated[Figure, figure("USD")]
UsdPerSFigure = Annotated[Figure, figure("USD/s")]
UsdPerJFigure = Annotated[Figure, figure("USD/J")]
KgCo2ePerJFigure = Annotated[Figure, figure("kgCO2e/J")]


class Entry(Spec):
    """One file of a folder of the catalog; ``source``, ``date`` (as published, ISO 8601) and ``how`` hold for each figure in it
    that names no other. ``notes``: what was simplified, what is disputed.
    """

    FOLDER: ClassVar[str]

    schema_version: Literal[1] = Field(1, alias="schema")
    name: Annotated[str, Field(min_length=1)]
    source: Annotated[str, Field(min_length=1)]
    date: Annotated[str, Field(pattern=rf"^{_DATE.pattern}$")]
    how: How = How.DATASHEET
    notes: str | None = None

    @classmethod
    def names(cls) -> list[str]:
        """Every name that ``load`` knows, sorted."""
        return sorted(file.name.removesuffix(".toml") for file in cls._folder().iterdir() if file.name.endswith(".toml"))

    @classmethod
    def load(cls, name: str) -> Self:
        """The file called ``name``; CatalogError names the nearest valid names."""
        return _load(cls, name)

    @classmethod
    def _folder(cls) -> Traversable:
        return files("colossus.catalog") / cls.FOLDER


_EntryType = TypeVar("_EntryType", bound=Entry)


@cache
def _load(cls: type[_EntryType], name: str) -> _EntryType:
    if name not in cls.names():
        raise unknown(cls.FOLDER.removesuffix("s"), name, cls.names())
    file = cls._folder() / f"{name}.toml"
    return cls.from_data(tomllib.loads(file.read_text(encoding="utf-8")), origin=str(file))


def unknown(noun: str, name: str, names: list[str]) -> CatalogError:
    """The error for a name that is not among ``names``."""
    return CatalogError(f"no {noun} {name!r} in the catalog", hint=nearest(name, names) or "valid: " + ", ".join(names))
