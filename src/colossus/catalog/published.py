"""Published training runs, row by row as their sources give them, and the words they use (published/words.toml)."""

from __future__ import annotations

import csv
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from colossus.spec.errors import DataError, nearest


@dataclass(frozen=True)
class PublishedRun:
    """One row; empty cells are None. ``get`` gives a number, ``text`` a word."""

    cells: dict[str, str]

    @property
    def id(self) -> str:
        return self.cells["id"]

    @property
    def group(self) -> str:
        return self.cells["group"]

    def text(self, column: str) -> str:
        return self.cells.get(column) or ""

    def get(self, column: str) -> float | None:
        value = self.text(column)
        try:
            return float(value) if value else None
        except ValueError:
            raise DataError(f"row {self.id}: {column} = {value!r} is not a number", hint="leave a cell empty where nothing was published") from None

    def number(self, column: str, default: float | None = None) -> float:
        """The cell, or ``default``; raises DataError where both are absent."""
        found = self.get(column)
        if found is None and default is None:
            raise DataError(f"row {self.id}: {column} is empty, and nothing else says it")
        return default if found is None else found  # type: ignore[return-value]


COLUMNS = ("id", "group", "model", "layers", "hidden", "heads", "seq_len", "accelerator", "n_accel", "framework", "global_batch_seqs")


def read_published(path: Path | None = None) -> list[PublishedRun]:
    """The catalog's own rows, or those of any file with the same columns."""
    if path is None:
        return list(_own())
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            return list(_rows(lines, str(path)))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="give a CSV file with the columns of catalog/published/training.csv") from None


@cache
def _own() -> tuple[PublishedRun, ...]:
    source = files("colossus.catalog") / "published" / "training.csv"
    return tuple(_rows(source.read_text(encoding="utf-8").splitlines(), "published/training.csv"))


def _rows(lines: Any, origin: str) -> Iterator[PublishedRun]:
    reader = csv.DictReader(lines)
    given = reader.fieldnames or []
    for column in COLUMNS:
        if column not in given:
            raise DataError(f"{origin} has no column {column!r}", hint=nearest(column, given) or f"columns: {', '.join(COLUMNS)}, ...")
    for cells in reader:
        yield PublishedRun({name: (value or "").strip() for name, value in cells.items() if name is not None})


@cache
def _words() -> dict[str, dict[str, str]]:
    data = tomllib.loads((files("colossus.catalog") / "published" / "words.toml").read_text(encoding="utf-8"))
    return {name: table for name, table in data.items() if isinstance(table, dict)}


def our_word(table: str, theirs: str) -> str | None:
    """What a published word means here: the first pattern of ``table`` that it matches."""
    return next((ours for pattern, ours in _words()[table].items() if re.search(pattern, theirs, re.IGNORECASE)), None)
