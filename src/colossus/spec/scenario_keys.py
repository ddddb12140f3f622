"""Short names of a scenario's values: ``spares`` for ``recovery.num_spares``, ``checkpoint.interval`` for ``checkpoint.interval_s``, ``recovery`` for its kind."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from functools import cache

from colossus.spec.base import Spec
from colossus.spec.errors import Problem, SpecError, nearest
from colossus.spec.scenario import Scenario

# Endings that may be left out, longest first.
_UNITS = ("_bytes_per_s_per_node", "_usd_per_s_per_node", "_bytes_per_s", "_per_parameter", "_usd_per_w", "_per_year", "_fraction", "_s", "_w", "_j", "_c")
_GUIDE = "names: docs/simulating.md, and all of them in catalog/scenarios/default.toml"
# Words for a value that a file writes otherwise.
_WORDS = {("recovery.num_spares", "all"): "off"}


def assignment(text: str) -> str:
    """``checkpoint.interval=30min`` with its path in full; what has no ``=`` stays as it is, for who reads it to refuse."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        return text
    path = resolve(key)
    return f"{path}={_WORDS.get((path, value.strip()), value)}"


def resolve(text: str) -> str:
    """The full dotted path of a value: unit, ``num_`` and tables before the last name may be left out where one value alone is meant."""
    given = text.strip().split(".")
    known = paths()
    if ".".join(given) in known:
        return _with_kind(".".join(given), known)
    found = [path for path in known if _is_meant(given, path.split("."))]
    if not found:
        raise _refuse(text, "is not a value of a scenario", nearest(text.strip(), _names(known)) or _GUIDE)
    shallow = [path for path in found if path.count(".") == min(each.count(".") for each in found)]
    tops = [path for path in shallow if not any(path.startswith(f"{other}.") for other in shallow)]
    if len(tops) > 1:
        raise _refuse(text, f"may mean {', '.join(tops)}", "write one of them")
    return _with_kind(tops[0], known)


@cache
def paths() -> dict[str, bool]:
    """Every dotted path that can be set -> whether it is a table of its own, in the file's order."""
    return dict(_walk(Scenario, ""))


def _walk(cls: type[Spec], before: str) -> Iterator[tuple[str, bool]]:
    for name, field in cls.model_fields.items():
        path = f"{before}{field.alias or name}"
        inner = _inner(field.annotation)
        yield path, inner is not None
        if inner is not None:
            yield from _walk(inner, f"{path}.")


def _inner(annotation: object) -> type[Spec] | None:
    """The table that a field holds, alone or in a union; lists are set whole."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return annotation
    if typing.get_origin(annotation) in (list, dict):
        return None
    return next((found for each in typing.get_args(annotation) if (found := _inner(each))), None)


def _is_meant(given: list[str], path: list[str]) -> bool:
    """Whether the path ends in the given names, each in full or short."""
    return len(given) <= len(path) and all(name in (full, _short(full)) for name, full in zip(given, path[-len(given) :], strict=True))


def _short(name: str) -> str:
    bare = name.removeprefix("num_")
    return next((bare.removesuffix(unit) for unit in _UNITS if bare.endswith(unit) and bare != unit), bare)


def _with_kind(path: str, known: dict[str, bool]) -> str:
    """A table that is of some kind is named for it; a duration can be written as one text and stays."""
    return f"{path}.kind" if known[path] and f"{path}.kind" in known and f"{path}.mean_s" not in known else path


def _names(known: dict[str, bool]) -> list[str]:
    """All that could have been written, short and full, without what belongs to a whole fault profile."""
    told = [path for path in known if not path.startswith("faults.")]
    return sorted({*told, *(".".join(map(_short, path.split("."))) for path in told), *(_short(path.split(".")[-1]) for path in told if path.count(".") < 2)})


def _refuse(text: str, rule: str, hint: str | None) -> SpecError:
    return SpecError("scenario", [Problem(path=text.strip(), value="(a name)", rule=rule, hint=hint)])
