"""Forms that an answer must have, as grammars: response_format, vLLM's structured outputs, and tools that must be called."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import Any

from colossus.serve.api.conversation import ToolUse
from colossus.serve.api.errors import ApiError
from colossus.serve.api.fields import Drawing, ResponseFormat
from colossus.serve.grammar import (
    GrammarError,
    check_grammar,
    choice_grammar,
    json_object_grammar,
    json_schema_grammar,
    lark_grammar,
    regex_grammar,
    tool_grammar,
)


async def grammar_of(body: Drawing, use: ToolUse | None = None) -> str | None:
    """The grammar of a body's answers, found to be one; None for free text."""
    chosen = _chosen(_asked(body), use)
    if chosen is None:
        return None
    param, make = chosen
    try:
        return await asyncio.to_thread(_checked, make)
    except GrammarError as error:
        raise ApiError(f"{param}: {error}", param=param, code="invalid_grammar") from None


def _checked(make: Callable[[], str]) -> str:
    grammar = make()
    check_grammar(grammar)
    return grammar


def _chosen(asked: dict[str, Callable[[], str]], use: ToolUse | None) -> tuple[str, Callable[[], str]] | None:
    """The one form that counts, by its field. Tools that must be called go before others; those that may be called exclude them."""
    if len(asked) > 1:
        raise ApiError(f"one form at a time: {' and '.join(asked)} were asked for", param=list(asked)[1])
    form = next(iter(asked.items()), None)
    if use is None or not use.tools:
        return form
    if form is not None and not use.required:
        raise ApiError(f"{form[0]} and tools that may be called exclude each other: set tool_choice to 'none' or 'required'", param=form[0])
    if use.required or any(tool.function.strict for tool in use.tools):
        return "tools", lambda: tool_grammar(use.allowed, required=use.required, parallel=use.parallel)
    return None


def _asked(body: Drawing) -> dict[str, Callable[[], str]]:
    """Each form asked for, by its field, and what makes its grammar."""
    forms: dict[str, Callable[[], str] | None] = {"response_format": _of_format(body.response_format)}
    structured = body.structured_outputs
    pairs: list[tuple[str, Callable[[Any], str], Any, Any]] = [
        ("json", _schema, body.guided_json, structured and structured.json_),
        ("regex", regex_grammar, body.guided_regex, structured and structured.regex),
        ("choice", choice_grammar, body.guided_choice, structured and structured.choice),
        ("grammar", lark_grammar, body.guided_grammar, structured and structured.grammar),
        ("json_object", lambda _: json_object_grammar(), None, (structured and structured.json_object) or None),
    ]
    for name, make, guided, value in pairs:
        forms[f"guided_{name}"] = None if guided is None else partial(make, guided)
        forms[f"structured_outputs.{name}"] = None if value is None else partial(make, value)
    return {name: form for name, form in forms.items() if form is not None}


def _of_format(form: ResponseFormat | None) -> Callable[[], str] | None:
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return json_object_grammar
    assert form.json_schema is not None
    schema = form.json_schema.schema_
    return lambda: json_schema_grammar(schema or {})


def _schema(schema: str | dict[str, Any]) -> str:
    """vLLM takes a schema as text too."""
    if isinstance(schema, dict):
        return json_schema_grammar(schema)
    try:
        data = json.loads(schema)
    except (ValueError, RecursionError):
        raise GrammarError(f"the schema is no JSON: {schema[:80]!r}") from None
    if not isinstance(data, dict):
        raise GrammarError("the schema is no JSON object")
    return json_schema_grammar(data)
