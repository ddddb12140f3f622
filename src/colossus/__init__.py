"""Colossus: an AI supercomputer as software. Plans, runs, simulates and compares the training of neural networks."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_PLACES = {"ArrayDataset": "colossus.train.program", "Program": "colossus.train.program", "load_trained": "colossus.train.weights"}


def __getattr__(name: str) -> Any:
    """What a network of one's own needs, imported when it is named: ``from colossus import Program``; ``colossus.plan(job, machine)``."""
    if name == "plan":
        import importlib

        return importlib.import_module("colossus.plan")
    if name not in _PLACES:
        raise AttributeError(f"module 'colossus' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PLACES[name]), name)
