"""The one base of everything a user writes and everything that flows: frozen, strict, all problems at once."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from colossus.spec.breaches import problems
from colossus.spec.errors import Problem, SpecError, nearest


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
            raise SpecError(origin, problems(cls, error)) from None

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
