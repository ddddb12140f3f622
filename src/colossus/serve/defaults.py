"""How a model's makers would have it drawn: of a Hugging Face folder's generation_config.json, or of a GGUF file's metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossus.nn.tokenizer_files import generation_config
from colossus.spec.errors import Problem, SpecError


@dataclass(frozen=True, kw_only=True)
class DefaultSampling:
    """What a request that says nothing gets; None where the makers say nothing either."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None


NO_DEFAULTS = DefaultSampling()
# Field -> what its value must be.
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "temperature": ("must be a number from 0", lambda value: _is_number(value) and 0 <= value < float("inf")),
    "top_p": ("must be a number above 0, 1 at most", lambda value: _is_number(value) and 0 < value <= 1),
    "top_k": ("must be a count; 0 or -1 takes all", lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= -1),
}


def of_folder(folder: Path) -> DefaultSampling:
    """Nothing where ``do_sample`` is false: then the other keys count for nothing."""
    config = generation_config(folder)
    if config.get("do_sample") is False:
        return NO_DEFAULTS
    return _checked({name: config.get(name) for name in _RULES}, str(folder / "generation_config.json"))


def of_gguf(metadata: Mapping[str, Any], origin: str) -> DefaultSampling:
    """Of ``general.sampling.*``, as llama.cpp writes it."""
    keys = {"temperature": "temp", "top_p": "top_p", "top_k": "top_k"}
    return _checked({name: metadata.get(f"general.sampling.{key}") for name, key in keys.items()}, origin)


def _checked(given: Mapping[str, Any], origin: str) -> DefaultSampling:
    problems = [
        Problem(path=name, value=str(value)[:60], rule=_RULES[name][0]) for name, value in given.items() if value is not None and not _RULES[name][1](value)
    ]
    if problems:
        raise SpecError(origin, problems)
    top_k = given["top_k"]
    return DefaultSampling(temperature=given["temperature"], top_p=given["top_p"], top_k=top_k if top_k is not None and top_k > 0 else None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
