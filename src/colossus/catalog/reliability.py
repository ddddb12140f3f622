"""How often nodes fail, from published runs, one TOML file each."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from typing import Annotated, Literal

from pydantic import Field

from colossus.spec.base import Spec
from colossus.spec.machine import How
from colossus.spec.units import Seconds


class ReliabilityEntry(Spec):
    """Unexpected interruptions of one run over ``num_nodes`` nodes; ``date`` as published, ISO 8601."""

    schema_version: Literal[1] = Field(1, alias="schema")
    name: str
    source: Annotated[str, Field(min_length=1)]
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}(-\d{2})?$")]
    how: How = How.MEASURED
    num_nodes: Annotated[int, Field(ge=1)]
    num_interruptions: Annotated[int, Field(ge=1)]
    duration_s: Annotated[Seconds, Field(gt=0)]

    @property
    def node_mtbf_s(self) -> float:
        """Time between interruptions that one node causes: T nodes / interruptions."""
        return self.duration_s * self.num_nodes / self.num_interruptions


def load_reliability(name: str) -> ReliabilityEntry:
    file = files("colossus.catalog") / "reliability" / f"{name}.toml"
    return ReliabilityEntry.from_data(tomllib.loads(file.read_text(encoding="utf-8")), origin=str(file))


def node_mtbf_s() -> float:
    """The prior for a node that nothing is known of: Llama 3's, 264 days."""
    return load_reliability("llama-3").node_mtbf_s
