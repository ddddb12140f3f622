"""Every error a user can meet.

ColossusError
├── SpecError        a job, machine or run file breaks its rules (all problems at once)
├── CatalogError     a name that the catalog does not know
├── DataError        a corpus is missing, empty, unreadable or damaged
├── InfeasibleError  the job cannot fit the machine; says what would fit
├── StorageError     the disk is full or refuses to be written
├── CheckpointError  no checkpoint can be read
├── RunError         a folder is not a run, or a run is in use
├── EngineError      worker processes could not be started or kept alive
└── GrammarError     a form that answers are to have cannot be enforced

Each says the value, the rule it broke and, as ``hint``, the nearest thing that works.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


class ColossusError(Exception):
    """Root of the errors a user can cause and mend; the CLI prints it without a traceback and exits 1."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One broken rule of a file: where, what was given, the rule, the nearest fix."""

    path: str
    value: str
    rule: str
    hint: str | None = None

    def __str__(self) -> str:
        tail = f" ({self.hint})" if self.hint else ""
        return f"{self.path} = {self.value}: {self.rule}{tail}"


class SpecError(ColossusError):
    """A file or ``--set`` breaks the spec's rules; carries every problem, not just the first."""

    def __init__(self, origin: str, problems: Iterable[Problem], *, hint: str | None = None) -> None:
        self.origin = origin
        self.problems = tuple(problems)
        count = len(self.problems)
        lines = [f"{origin}: {count} problem{'s' if count != 1 else ''}", *(f"  {problem}" for problem in self.problems)]
        super().__init__("\n".join(lines), hint=hint)


class CatalogError(ColossusError):
    """A name that the catalog does not know; the hint lists the nearest names."""


class DataError(ColossusError):
    """A corpus is missing, empty, unreadable or damaged."""


class InfeasibleError(ColossusError):
    """The job cannot run on the machine as laid out; the hint says what would fit."""


class StorageError(ColossusError):
    """The disk is full or refuses to be written; nothing that was complete is harmed."""


class CheckpointError(ColossusError):
    """No checkpoint of the run can be read."""


class RunError(ColossusError):
    """A folder is not a readable run of Colossus, or another process is using it."""


class EngineError(ColossusError):
    """Worker processes could not be started or kept alive; carries their own last words."""


class GrammarError(ColossusError):
    """A form that cannot be enforced: it is malformed, too large, or says what the library has no rule for."""


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """A hint naming the valid names closest to ``name``, or all of them when none is close and they are few."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(match) for match in close) + "?"
    return "valid: " + ", ".join(names) if 0 < len(names) <= 24 else None
