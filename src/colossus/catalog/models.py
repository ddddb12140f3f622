"""Model cards: the shapes of published decoders and of our own recipes, one TOML file each, with source and date."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Annotated, Literal

from pydantic import Field

from colossus.spec.base import Spec
from colossus.spec.errors import CatalogError, nearest
from colossus.spec.model import ModelCard


class ModelEntry(Spec):
    """One file of ``catalog/models``. ``date`` is the day the figures were published, ISO 8601.

    ``planned_only``: what of the model no card says, so that training it from the card would train another network.
    """

    schema_version: Literal[1] = Field(1, alias="schema")
    source: Annotated[str, Field(min_length=1)]
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    planned_only: str | None = None
    model: ModelCard


def model_names() -> list[str]:
    """Every name that ``load_model`` knows, sorted."""
    return sorted(file.name.removesuffix(".toml") for file in _folder().iterdir() if file.name.endswith(".toml"))


def load_model_entry(name: str) -> ModelEntry:
    """The card called ``name`` with its source and date; CatalogError names the nearest valid names."""
    names = model_names()
    if name not in names:
        hint = nearest(name, names) or "valid: " + ", ".join(names)
        raise CatalogError(f"no model {name!r} in the catalog", hint=hint)
    file = _folder() / f"{name}.toml"
    return ModelEntry.from_data(tomllib.loads(file.read_text(encoding="utf-8")), origin=str(file))


def load_model(name: str) -> ModelCard:
    """The shape of the model called ``name``, e.g. ``load_model("llama-3-8b").num_layers == 32``."""
    return load_model_entry(name).model


def _folder() -> Traversable:
    return files("colossus.catalog") / "models"
