"""The one base of everything a user writes and everything that flows: frozen, strict, all problems at once."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from colossus.spec.errors import Problem, SpecError, nearest

# One sentence per broken rule, in place of pydantic's own where that one does not teach.
_RULES = {
    "missing": "is required",
    "extra_forbidden": "is not a known key",
    "frozen_instance": "cannot be changed",
    "finite_number": 'must be a finite number; what can be left out is switched off with "off"',
}


class Spec(BaseModel):
    """A frozen record: unknown keys are errors, dump then load is identity."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, use_enum_values=False)

    @model_validator(mode="before")
    @classmethod
    def _read_none(cls, data: Any) -> Any:
        """TOML has no null: ``"off"`` switches off what is on by default."""
        if not isinstance(data, dict):
            return data
        return {key: None if isinstance(value, str) and value == "off" else value for key, value in data.items()}

    @classmethod
    def from_data(cls, data: Any, *, origin: str) -> Self:
        """Checks ``data`` (what TOML or JSON gave); raises SpecError with every problem, each with its path."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise SpecError(origin, [_problem(cls, item) for item in error.errors()]) from None

    def to_data(self) -> dict[str, Any]:
        """Plain JSON-able data; None is left out where it is the default and written ``"off"`` where it is not."""
        return _without_none(self, self.model_dump(mode="json", by_alias=True))

    def to_toml(self) -> str:
        return tomli_w.dumps(_without_null(self.to_data()))

    def to_json(self) -> str:
        return json.dumps(self.to_data(), indent=2) + "\n"

    def digest(self) -> str:
        """A content hash: the same for equal specs, on any machine."""
        canonical = json.dumps(self.to_data(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class FiniteSpec(Spec):
    """One that infinity and what is no number have no place in."""

    model_config = ConfigDict(allow_inf_nan=False)


def _without_none(spec: Spec, data: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, info in type(spec).model_fields.items():
        key, value = info.alias or name, getattr(spec, name)
        if isinstance(value, Spec):
            kept[key] = _without_none(value, data[key])
        elif value is not None:
            kept[key] = data[key]
        elif info.default is not None:
            kept[key] = "off"
    return kept


def _without_null(data: Any) -> Any:
    """Tables in lists leave out what is null too, which TOML cannot say."""
    if isinstance(data, dict):
        return {key: _without_null(value) for key, value in data.items() if value is not None}
    return [_without_null(each) for each in data] if isinstance(data, list) else data


def read_toml(path: Path) -> dict[str, Any]:
    """The file's data; a missing file or a syntax error is a SpecError that says where."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(str(path), [Problem(path="file", value=str(path), rule="does not exist", hint=_toml_files(path, path.parent))]) from None
    except IsADirectoryError:
        raise SpecError(str(path), [Problem(path="file", value=str(path), rule="is a folder", hint=_toml_files(path, path))]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(str(path), [Problem(path="file", value=str(path), rule=f"cannot be read: {error}")]) from None
    except tomllib.TOMLDecodeError as error:
        raise SpecError(str(path), [Problem(path="file", value=str(path), rule=f"is not TOML: {error}")]) from None


def _toml_files(path: Path, folder: Path) -> str | None:
    return nearest(str(path), [str(file) for file in folder.glob("*.toml")])


def set_path(data: dict[str, Any], assignment: str) -> None:
    """Applies one ``--set path.to.key=value`` in place; the value is read as TOML, else taken as text."""
    path, equals, text = assignment.partition("=")
    if not equals or not path.strip():
        problem = Problem(path="--set", value=repr(assignment), rule="must look like path.to.key=value", hint="e.g. --set optimizer.learning_rate=1e-3")
        raise SpecError("--set", [problem])
    *parents, key = path.strip().split(".")
    target = data
    for name in parents:
        child = target.setdefault(name, {})
        if not isinstance(child, dict):
            problem = Problem(path=path.strip(), value=text, rule=f"{name!r} holds {child!r}, which has no keys")
            raise SpecError("--set", [problem])
        target = child
    target[key] = _toml_value(text.strip())


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _problem(cls: type[BaseModel], item: Any) -> Problem:
    location = [text for part in item["loc"] if "[" not in (text := str(part))]  # a union's tags for what it tried are no keys
    path = ".".join(location) or "file"
    hint = nearest(location[-1], _valid_keys(cls, location[:-1])) if item["type"] == "extra_forbidden" else None
    message = _RULES.get(item["type"]) or item["msg"].removeprefix("Value error, ")
    value = "(absent)" if item["type"] == "missing" else _short(item["input"])
    return Problem(path=path, value=value, rule=message, hint=hint)


def _valid_keys(cls: type[BaseModel], parents: list[str]) -> list[str]:
    """Keys allowed at a location, found by walking the JSON schema, which knows nested and union types."""
    schema = cls.model_json_schema(by_alias=True)
    nodes = [schema]
    for name in parents:
        resolved = [inner for node in nodes for inner in _expand(node, schema)]
        found = [node["properties"][name] for node in resolved if name in node.get("properties", {})]
        nodes = found or nodes  # a union's own tag is no key of the data
    return sorted({key for node in nodes for inner in _expand(node, schema) for key in inner.get("properties", {})})


def _expand(node: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in node:
        return _expand(schema["$defs"][node["$ref"].rsplit("/", 1)[-1]], schema)
    options = node.get("anyOf") or node.get("oneOf") or node.get("allOf")
    return [inner for option in options for inner in _expand(option, schema)] if options else [node]


def _short(value: Any) -> str:
    text = json.dumps(value, default=str) if not isinstance(value, str) else repr(value)
    return "(the file)" if isinstance(value, dict) and len(text) > 80 else text if len(text) <= 80 else text[:77] + "..."
