"""Forms that an answer must have, as grammars: response_format, vLLM's structured outputs, and tools that must be called."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from colossus.serve.api.conversation import ToolUse
from colossus.serve.api.errors import ApiError
from colossus.serve.api.fields import Drawing, ResponseFormat
from colossus.serve.grammar import ANY_OBJECT, Grammars, choice_grammar, json_schema_grammar, lark_grammar, regex_grammar, tool_grammar
from colossus.spec.errors import GrammarError


@dataclass(frozen=True, kw_only=True)
class _Form:
    """``grammar`` makes its grammar; ``schema`` its schema, where it is JSON. Both raise GrammarError."""

    grammar: Callable[[], str]
    schema: Callable[[], dict[str, Any]] | None = None


async def grammar_of(grammars: Grammars, body: Drawing, use: ToolUse | None = None) -> str | None:
    """The grammar of a body's answers, found to hold for the model's tokens; None for free text."""
    chosen = _chosen(_asked(body), use)
    if chosen is None:
        return None
    param, make = chosen
    try:
        return await asyncio.to_thread(_compiled, grammars, make)
    except GrammarError as error:
        raise ApiError(f"{param}: {error}", param=param, code="invalid_grammar") from None


def _compiled(grammars: Grammars, make: Callable[[], str]) -> str:
    """``make`` bounds what a client sent; only then the library sees it."""
    grammar = make()
    grammars.compile(grammar)
    return grammar


def has_form(body: Drawing) -> bool:
    """Whether answers that are no calls of tools are to have a form."""
    return bool(_asked(body))


def _chosen(asked: dict[str, _Form], use: ToolUse | None) -> tuple[str, Callable[[], str]] | None:
    """The one form that counts, by its field. Tools that must be called go before others; beside those that may be called, only JSON goes."""
    if len(asked) > 1:
        raise ApiError(f"one form at a time: {' and '.join(asked)} were asked for", param=list(asked)[1])
    param, form = next(iter(asked.items()), ("tools", None))
    if use is None or not use.tools:
        return None if form is None else (param, form.grammar)
    if use.required or (form is None and any(tool.function.strict for tool in use.tools)):
        return "tools", lambda: tool_grammar(use.allowed, required=use.required, parallel=use.parallel)
    if form is None:
        return None
    if (schema := form.schema) is None:
        raise ApiError(f"{param} and tools that may be called exclude each other: set tool_choice to 'none' or 'required'", param=param)
    return param, lambda: tool_grammar(use.allowed, required=False, parallel=use.parallel, answer=schema())


def _asked(body: Drawing) -> dict[str, _Form]:
    """Each form asked for, by its field."""
    forms = {"response_format": _of_format(body.response_format)}
    structured = body.structured_outputs
    pairs: list[tuple[str, Callable[[Any], _Form], Any, Any]] = [
        ("json", lambda value: _json(partial(_schema, value)), body.guided_json, structured and structured.json_),
        ("regex", lambda value: _Form(grammar=partial(regex_grammar, value)), body.guided_regex, structured and structured.regex),
        ("choice", lambda value: _Form(grammar=partial(choice_grammar, value)), body.guided_choice, structured and structured.choice),
        ("grammar", lambda value: _Form(grammar=partial(lark_grammar, value)), body.guided_grammar, structured and structured.grammar),
        ("json_object", lambda _: _json(lambda: ANY_OBJECT), None, (structured and structured.json_object) or None),
    ]
    for name, make, guided, value in pairs:
        forms[f"guided_{name}"] = None if guided is None else make(guided)
        forms[f"structured_outputs.{name}"] = None if value is None else make(value)
    return {name: form for name, form in forms.items() if form is not None}


def _json(schema: Callable[[], dict[str, Any]]) -> _Form:
    return _Form(grammar=lambda: json_schema_grammar(schema()), schema=schema)


def _of_format(form: ResponseFormat | None) -> _Form | None:
    if form is None or form.type == "text":
        return None
    schema = ANY_OBJECT if form.json_schema is None or form.type == "json_object" else form.json_schema.schema_ or {}
    return _json(lambda: schema)


def _schema(schema: str | dict[str, Any]) -> dict[str, Any]:
    """vLLM takes a schema as text too."""
    if isinstance(schema, dict):
        return schema
    try:
        data = json.loads(schema)
    except (ValueError, RecursionError):
        raise GrammarError(f"the schema is no JSON: {schema[:80]!r}") from None
    if not isinstance(data, dict):
        raise GrammarError("the schema is no JSON object")
    return data
