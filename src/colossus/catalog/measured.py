"""What was fitted on measurements, apart from facts: GEMM curves of chips, coefficients of training programs.

Files under ``measured/`` are written by ``benchmarks/fit_kernels.py`` and ``colossus calibrate``; each says on what, when and how well.
"""

from __future__ import annotations

import copy
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from colossus.spec.errors import DataError, Problem, SpecError, nearest

FOLDER = "measured"
SCHEMA = 2  # of files of coefficients
_KEYS = ("schema", "source", "date", "num_runs", "num_decided", "median_error_fraction", "p90_error_fraction", "factors", "spread", "seen")
# What a coefficient may differ by; a family is of programs.
SCOPES = ("all", "precision", "chip", "chip_precision", "family", "program")


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What a coefficient is before any measurement, and by which factor it may plausibly differ, by scope; ``least`` and ``most`` bound it."""

    value: float
    vary: Mapping[str, float]
    meaning: str
    least: float = 0.0
    most: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Program:
    """A training program as tables name it, in a period, and its code base.

    ``chunk_layers``: layers of a pipeline chunk where a table does not say, ``usual_zero_stage``: what is sharded where it does not; ``can``: what it offers beyond the usual (plan/variants.py).
    """

    name: str
    pattern: str
    family: str | None = None
    until: str | None = None
    flash_attention: bool = True
    chunk_layers: int | None = None
    usual_zero_stage: int = 0
    can: tuple[str, ...] = ()
    low_precision_kept_bytes: float = 2.0

    def matches(self, framework: str, date: str) -> bool:
        return re.search(self.pattern, framework, re.IGNORECASE) is not None and (self.until is None or date < self.until)


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """A coefficient is its prior's value times a fitted factor for each scope it varies by; a factor not fitted is 1."""

    priors: Mapping[str, Prior]
    factors: Mapping[str, Mapping[str, Mapping[str, float]]]  # scope -> key -> coefficient -> factor
    spread: Mapping[str, tuple[float, float]]  # program -> ends between which measured over estimated lies in 9 runs of 10
    seen: Mapping[str, tuple[str, ...]]  # family of programs -> chips that its runs were on
    own: str | None = None  # a user's file that is laid over the catalog's, and what it was fitted to

    def get(self, name: str, *, chip: str, precision: str, program: str) -> float:
        prior = self.priors[name]
        keys = keys_of(chip=chip, precision=precision, program=program)
        found = prior.value * math.prod(self.factors.get(scope, {}).get(keys[scope], {}).get(name, 1.0) for scope in prior.vary)
        return min(max(found, prior.least), prior.most)

    def knows(self, program: str, *, chip: str, precision: str) -> bool:
        """Whether runs on this chip in this precision, and of this program's family on it, were among those fitted on."""
        family = keys_of(chip=chip, precision=precision, program=program)["family"]
        return bool(self.factors.get("chip_precision", {}).get(f"{chip} {precision}")) and chip in self.seen.get(family, ())

    def interval(self, program: str, *, chip: str, precision: str) -> tuple[float, float]:
        """Ends between which measured over estimated time lies in 9 runs of 10; as far as on chips not seen where this one was not (benchmarks/holdout.py)."""
        if not self.knows(program, chip=chip, precision=precision):
            return tuple(_read("unseen.toml")["measured_over_estimated"])
        ends = list(self.spread.values()) or [(1.0, 1.0)]
        return self.spread.get(program, (min(low for low, _ in ends), max(high for _, high in ends)))


def keys_of(*, chip: str, precision: str, program: str) -> dict[str, str]:
    """Scope -> the key under which its factors stand."""
    return {
        "all": "all",
        "precision": precision,
        "chip": chip,
        "chip_precision": f"{chip} {precision}",
        "family": _families().get(program, program),
        "program": program,
    }


@cache
def _families() -> dict[str, str]:
    return {program.name: program.family or program.name for program in programs()}


@cache
def gemm_curves() -> dict[str, dict[str, float]]:
    """``"CHIP PRECISION"`` -> flop_per_s, m_half, n_half, k_half, num_shapes, median_error_fraction."""
    return _read("gemm.toml")["curves"]


def gemm_curve(chip: str, precision: str) -> dict[str, float] | None:
    """The curve of a chip, or of its kin with the same silicon; None where neither was measured."""
    kin = _read("kin.toml")["kin"].get(chip, chip)
    return gemm_curves().get(f"{chip} {precision}") or gemm_curves().get(f"{kin} {precision}")


@cache
def programs() -> list[Program]:
    return [Program(**entry | {"can": tuple(entry.get("can", ()))}) for entry in _read("programs.toml")["programs"]]


def program_of(framework: str, date: str) -> Program:
    """The first entry that a framework's name and a date match; the last entry matches everything."""
    return next(program for program in programs() if program.matches(framework, date))


def load_coefficients(path: Path | None = None) -> Coefficients:
    """The committed coefficients, or a user's own file laid over them; a file that changed is read again, one that is damaged is a DataError."""
    if path is None:
        return _committed()
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", hint="colossus calibrate writes coefficients") from None
    return _laid_over(path.absolute(), state.st_mtime_ns, state.st_size)


@cache
def _committed() -> Coefficients:
    return _coefficients(_read("coefficients.toml"))


@lru_cache(maxsize=8)
def _laid_over(path: Path, _mtime_ns: int, _num_bytes: int) -> Coefficients:
    data = copy.deepcopy(_read("coefficients.toml"))
    own = _own(path)
    for scope, entries in own.get("factors", {}).items():
        for key, named in entries.items():
            data["factors"].setdefault(scope, {}).setdefault(key, {}).update(named)
    data["spread"].update(own.get("spread", {}))
    for family, chips in own.get("seen", {}).items():
        data["seen"][family] = sorted({*data["seen"].get(family, []), *chips})
    return replace(_coefficients(data), own=f"{path}: {own.get('source', 'of unknown source')}")


def _coefficients(data: Mapping[str, Any]) -> Coefficients:
    spread = {name: (low, high) for name, (low, high) in data["spread"].items()}
    return Coefficients(priors=priors(), factors=data.get("factors", {}), spread=spread, seen={name: tuple(chips) for name, chips in data["seen"].items()})


def _own(path: Path) -> dict[str, Any]:
    """A user's file, checked: every problem at once."""
    hint = f"colossus calibrate writes it anew; without it ({path.name} moved away) the catalog's coefficients hold"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} cannot be read as coefficients: {error}", hint=hint) from None
    problems = list(_problems(data))
    if problems:
        raise SpecError(str(path), problems, hint=hint)
    return data


def _problems(data: Mapping[str, Any]) -> Iterator[Problem]:
    if data.get("schema", SCHEMA) != SCHEMA:
        yield Problem(path="schema", value=repr(data["schema"]), rule=f"must be {SCHEMA}: another version of Colossus wrote this")
        return
    yield from (Problem(path=name, value="a key", rule="is none", hint=nearest(name, _KEYS)) for name in data if name not in _KEYS)
    factors, spread = data.get("factors", {}), data.get("spread", {})
    tables = {"factors": factors, "spread": spread, "seen": data.get("seen", {})}
    if wrong := [Problem(path=name, value=repr(table), rule="must be a table") for name, table in tables.items() if not isinstance(table, dict)]:
        yield from wrong
        return
    for scope, entries in factors.items():
        if scope not in SCOPES or not isinstance(entries, dict):
            yield Problem(path=f"factors.{scope}", value="a scope", rule="is none", hint=nearest(scope, SCOPES))
            continue
        for key, named in entries.items():
            yield from _wrong_values(f"factors.{scope}.{key}", named)
    yield from (_wrong_ends(name, ends) for name, ends in spread.items() if not _are_ends(ends))


def _are_ends(ends: Any) -> bool:
    return isinstance(ends, list) and len(ends) == 2 and all(map(_is_positive, ends)) and ends[0] <= ends[1]


def _wrong_ends(name: str, ends: Any) -> Problem:
    return Problem(path=f"spread.{name}", value=repr(ends), rule="must be two numbers above zero, the lower first")


def _wrong_values(path: str, named: Any) -> Iterator[Problem]:
    if not isinstance(named, dict):
        yield Problem(path=path, value=repr(named), rule="must be a table of coefficients")
        return
    for name, value in named.items():
        if name not in priors():
            yield Problem(path=f"{path}.{name}", value=repr(value), rule="is no coefficient", hint=nearest(name, priors()))
        elif not _is_positive(value):
            yield Problem(path=f"{path}.{name}", value=repr(value), rule="must be a finite number above zero")


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


@cache
def priors() -> dict[str, Prior]:
    return {name: Prior(**entry) for name, entry in _read("priors.toml")["priors"].items()}


def usual_rates() -> dict[str, Any]:
    """Fractions of datasheet rates that are reached where nothing was measured on the very chip or fabric."""
    return _read("rates.toml")


def usable_memory_fraction() -> float:
    """Of a chip's memory that a program may fill."""
    return _read("rates.toml")["usable_memory_fraction"]


@cache
def power_figures(table: str) -> dict[str, Any]:
    """One table of ``measured/power.toml``: node, chip, utilisation, clock, cooling, swing or battery."""
    return _read("power.toml")[table]


@cache
def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((files("colossus.catalog") / FOLDER / name).read_text(encoding="utf-8"))
