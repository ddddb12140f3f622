"""Questions for tests: small, and on machines of the catalog."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from colossus.plan.question import ask
from colossus.plan.search import Question


def question(model: str = "llama-3-8b", machine: str = "dgx-h100", *, sequences: int = 64, **changes: Any) -> Question:
    named = {name: changes.pop(name) for name in ("chips", "precision", "program", "sequence_tokens") if name in changes}
    return replace(ask(model, machine, sequences=sequences, **named).question, **changes)
