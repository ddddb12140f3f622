"""From pydantic's errors to problems in the file's own words: its keys without tags of unions, and of a union's branches the one that is meant."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Union

from pydantic import BaseModel, ValidationError

from colossus.spec.errors import Problem, nearest

# One sentence per broken rule, in place of pydantic's own where that one does not teach.
_RULES = {
    "missing": "is required",
    "extra_forbidden": "is not a known key",
    "frozen_instance": "cannot be changed",
    "model_type": "must be a table",
    "string_type": "must be a text",
    "finite_number": 'must be a finite number; what can be left out is switched off with "off"',
}
# What is said to data of another type than a branch takes.
_OTHER_TYPES = ("literal_error", "enum")


def problems(cls: type[BaseModel], error: ValidationError) -> list[Problem]:
    """Every problem once, with its path as a user would write it."""
    items = [dict(item) for item in error.errors()]
    return [_problem(cls, item) for item in _of_meant_branches(cls, items)]


def _problem(cls: type[BaseModel], item: Mapping[str, Any]) -> Problem:
    path, _ = _walked(cls, item)
    hint = nearest(path[-1], _keys(cls, item["loc"][:-1])) if item["type"] == "extra_forbidden" else item.get("hint")
    value = "(absent)" if item["type"] == "missing" else _short(item["input"])
    return Problem(path=".".join(path) or "file", value=value, rule=_rule(item), hint=hint)


def _rule(item: Mapping[str, Any]) -> str:
    return item.get("rule") or _RULES.get(item["type"]) or item["msg"].removeprefix("Value error, ")


def _of_meant_branches(cls: type[BaseModel], items: list[dict[str, Any]], depth: int = 0) -> list[dict[str, Any]]:
    """Pydantic tells a union's every branch. Told are those of the ``depth``-th union on the way, then of the next, that take such data as was given."""
    found: list[dict[str, Any]] = []
    unions: dict[Any, dict[Any, list[dict[str, Any]]]] = {}
    for item in items:
        _, tags = _walked(cls, item)
        if len(tags) <= depth:
            found.append(item)
            continue
        place, tag = item["loc"][: tags[depth]], item["loc"][tags[depth]]
        if place not in unions:
            unions[place] = {}
            found.append({"union": place})  # its problems' place among the others
        unions[place].setdefault(tag, []).append(item)
    if not unions:
        return found
    chosen = [each for item in found for each in (_meant(cls, list(unions[item["union"]].values())) if "union" in item else [item])]
    return _of_meant_branches(cls, chosen, depth + 1)


def _meant(cls: type[BaseModel], branches: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The branch with fewest problems of those that take data of this type, with the words that could stand instead; else in one sentence what all take."""
    fit = [branch for branch in branches if not _is_of_another_type(cls, branch)]
    if not fit:
        rules = list(dict.fromkeys(_rule(item) for branch in branches for item in branch))
        return [branches[0][0] | {"rule": "; or ".join(rules)}]
    meant = min(fit, key=len)
    words = [item["ctx"]["expected"] for branch in branches for item in branch if item["type"] == "literal_error"]
    return [item | {"hint": f"or write {words[0]}"} if words and item["type"] != "extra_forbidden" else item for item in meant]


def _is_of_another_type(cls: type[BaseModel], branch: Sequence[Mapping[str, Any]]) -> bool:
    return len(branch) == 1 and (branch[0]["type"] in _OTHER_TYPES or branch[0]["type"].endswith("_type")) and _ends_in_tag(cls, branch[0])


def _ends_in_tag(cls: type[BaseModel], item: Mapping[str, Any]) -> bool:
    _, tags = _walked(cls, item)
    return bool(tags) and tags[-1] == len(item["loc"]) - 1


def _keys(cls: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """Those that a file may have at a location."""
    kinds: list[Any] = [cls]
    for part in location:
        kinds = _inside(kinds, part) or kinds
    return sorted({info.alias or name for kind in kinds if _is_spec(kind) for name, info in kind.model_fields.items()})


def _walked(cls: type[BaseModel], item: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """The keys of an error's location as the file has them, and which of its parts are tags of a union, which no file has."""
    kinds: list[Any] = [cls]
    path, tags = [], []
    for index, part in enumerate(item["loc"]):
        inner = _inside(kinds, part)
        if inner or (item["type"] == "extra_forbidden" and index == len(item["loc"]) - 1):
            path.append(str(part))
            kinds = inner or kinds
        else:
            tags.append(index)
            kinds = _of_tag(kinds, str(part))
    return path, tags


def _of_tag(kinds: list[Any], tag: str) -> list[Any]:
    """The branch that a tag names, where it names a model; else all."""
    named = [kind for kind in kinds if _is_spec(kind) and (tag == kind.__name__ or tag.endswith((f" {kind.__name__}]", f"[{kind.__name__}]")))]
    return named or kinds


def _inside(kinds: list[Any], part: Any) -> list[Any]:
    """What may stand at a key of a table or at a place of a list; nothing where none of ``kinds`` has such a one."""
    found: list[Any] = []
    for kind in kinds:
        inner = typing.get_args(kind)
        if _is_spec(kind):
            found += [each for name, info in kind.model_fields.items() if part in (name, info.alias) for each in _branches(info.annotation)]
        elif isinstance(part, int) and inner:
            found += [each for argument in inner if argument is not Ellipsis for each in _branches(argument)]
        elif typing.get_origin(kind) is dict:
            found += list(_branches(inner[1]))
        elif kind in (Any, dict, list):
            found.append(Any)
    return found


def _branches(annotation: Any) -> Iterator[Any]:
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        yield from _branches(typing.get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for each in typing.get_args(annotation):
            yield from _branches(each)
    elif annotation is not type(None):
        yield annotation


def _is_spec(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _short(value: Any) -> str:
    text = json.dumps(value, default=str) if not isinstance(value, str) else repr(value)
    return "(the file)" if isinstance(value, dict) and len(text) > 80 else text if len(text) <= 80 else text[:77] + "..."
