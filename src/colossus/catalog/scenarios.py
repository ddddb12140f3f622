"""Scenarios by name or file, each laid over ``default.toml``, and the fault profile that one names."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from colossus.catalog.entry import unknown
from colossus.spec.base import read_toml, set_path
from colossus.spec.errors import CatalogError
from colossus.spec.scenario import Scenario
from colossus.spec.scenario_keys import assignment as full_assignment

_FOLDER = "scenarios"
# Where files of one's own lie, whose name alone is not enough.
_OWN_FOLDERS = (Path(), Path("recipes") / "scenarios")
DEFAULT = "default"


def scenario_names() -> list[str]:
    """Every name that ``load_scenario`` knows, sorted."""
    folder = files("colossus.catalog") / _FOLDER
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def load_scenario(name: str | Path = DEFAULT, assignments: tuple[str, ...] = ()) -> Scenario:
    """The scenario called so, or of a .toml file, with ``path=value`` assignments, names short or full; SpecError names every problem at once."""
    data = _named(DEFAULT)
    if str(name) != DEFAULT:
        is_file = Path(name).suffix == ".toml" or Path(name).is_file()
        data = overlay(data, read_toml(Path(name)) if is_file else _named(str(name)))
    for assignment in assignments:
        set_path(data, full_assignment(assignment))
    return Scenario.from_data(data, origin=str(name))


def overlay(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``above`` where it says something, table by table; ``below`` else. A duration is one value, not a table to mix."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        is_table = isinstance(value, dict) and isinstance(old, dict) and "mean_s" not in value and "mean_s" not in old
        merged[key] = overlay(old, value) if is_table else value  # type: ignore[arg-type]
    return merged


def _unknown(name: str) -> CatalogError:
    """A file that was meant by its bare name is named."""
    file = next((file for folder in _OWN_FOLDERS if (file := folder / f"{name}.toml").is_file()), None)
    return unknown("scenario", name, scenario_names()) if file is None else CatalogError(f"no scenario {name!r} in the catalog", hint=f"a file: {file}")


def _named(name: str) -> dict[str, Any]:
    if name not in scenario_names():
        raise _unknown(name)
    return tomllib.loads((files("colossus.catalog") / _FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
