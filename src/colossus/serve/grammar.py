"""Answers of a given form, enforced token by token with llguidance: JSON of a schema, regular expressions, choices, tool calls.

Functions make a grammar's text, at the door; ``Grammars`` compiles it, in the engine, and a ``Matcher`` says at each place which tokens
may follow. What a client sends is hostile until shown otherwise: sizes are bounded before the library sees them, since it follows
references and nested rules on the stack and intersects patterns at exponential cost; its own limits bound the rest.
"""

from __future__ import annotations

import json
import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from functools import cached_property
from threading import Lock
from typing import Any, Final, Protocol

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from colossus.spec.errors import GrammarError

_MOST_CHARACTERS = 128 * 1024
_MOST_REFERENCES = 500  # followed on the stack; some thousands overflow it
_MOST_RULES = 500  # of a user's own grammar, followed likewise
_MOST_PROPERTIES = 1000  # of one object; compiling takes the square of it
_MOST_PATTERNS = 64
_MOST_JOINED_PATTERNS = 8  # that may have to hold at once
_MOST_DIVISORS = 10_000  # of all multipleOf the sum, and where they meet the least common multiple; compiling takes seconds for a million
_MOST_CALLS = 8  # of one answer that must be calls
_KEPT = 128  # compiled grammars
_SPACE = r"[\x20\x0A\x0D\x09]{1,24}"  # between parts of JSON: enough to indent, not enough to fill an answer
_LIMITS: Final = {"verbose_errors": False, "max_lexer_states": 50_000}
_NAMING_KEYS = {"$ref", "$defs", "definitions", "title", "description", "default", "examples", "$comment"}
_OPENS, _CLOSES = "<tool_call>", "</tool_call>"  # Hermes' form, which Qwen and others were trained on too
ANY_OBJECT: Final = {"type": "object"}  # the schema
_SPECIAL_IN_REGEX = re.compile(r"[\\.+*?()|\[\]{}^$]")


class GrammarModel(Protocol):
    """What grammars need of a served model."""

    @property
    def name(self) -> str: ...
    @property
    def tokenizer_json(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def end_ids(self) -> frozenset[int]: ...


class Matcher:
    """One answer's place in its grammar. Nothing here raises: where the library gives up, the answer ends and ``error`` says why."""

    def __init__(self, matcher: LLMatcher, num_words: int, ends: np.ndarray) -> None:
        self._matcher, self._num_words, self._ends = matcher, num_words, ends

    def mask(self) -> np.ndarray:
        """Which tokens may come next: bit v % 32 of word v // 32, uint32. End tokens may, where the answer may end."""
        words = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)[: self._num_words]
        return self._ends if self._matcher.is_error() else words

    def accept(self, token: int) -> bool:
        """Goes on past a token; False where it does not fit."""
        return bool(self._matcher.consume_token(token))

    def num_accepted(self, tokens: Sequence[int]) -> int:
        """How many of these tokens, from the first, would fit; the place stays."""
        return int(self._matcher.validate_tokens(list(tokens)))

    def rollback(self, num_tokens: int) -> None:
        """Back to before the last accepted tokens."""
        self._matcher.rollback(num_tokens)

    def copy(self) -> Matcher:
        """Another at the same place, which goes its own way."""
        return Matcher(self._matcher.deep_copy(), self._num_words, self._ends)

    @property
    def may_end(self) -> bool:
        """Whether the answer so far is whole."""
        return bool(self._matcher.is_accepting())

    @property
    def is_done(self) -> bool:
        """Whether nothing but the end can follow."""
        return bool(self._matcher.is_stopped())

    @property
    def error(self) -> str | None:
        """Why the library gave up (a limit was met, a token did not fit); None while all is well."""
        return _first_lines(self._matcher.get_error()) if self._matcher.is_error() else None


class Grammars:
    """Compiles grammars for one model's tokens and keeps those used last. Safe to share between threads."""

    def __init__(self, model: GrammarModel) -> None:
        self._model = model
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = Lock()

    def compile(self, grammar: str) -> Matcher:
        """A matcher at the start of an answer; GrammarError in words where the grammar cannot be enforced."""
        with self._lock:
            compiled = self._kept.pop(grammar, None) or self._compiled(grammar)
            self._kept[grammar] = compiled
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return Matcher(compiled.deep_copy(), len(self._ends), self._ends)

    def _compiled(self, grammar: str) -> LLMatcher:
        _check_size(grammar)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LLParserLimits(**_LIMITS))  # type: ignore[arg-type]
        if not matcher.is_error():
            matcher.compute_bitmask()  # which finds grammars that allow nothing at all
        if matcher.is_error():
            raise _refusal(matcher.get_error())
        return matcher

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        if not self._model.end_ids:
            raise GrammarError(f"{self._model.name} has no token that ends an answer, so no form can be enforced")
        try:
            return LLTokenizer(self._model.tokenizer_json, n_vocab=self._model.vocab_size, eos_token=sorted(self._model.end_ids))
        except (ValueError, RuntimeError) as error:
            raise GrammarError(f"forms cannot be enforced with the tokenizer of {self._model.name}: {_first_lines(str(error))}") from None

    @cached_property
    def _ends(self) -> np.ndarray:
        """A mask of the end tokens alone."""
        words = np.zeros(-(-self._model.vocab_size // 32), np.uint32)
        for token in self._model.end_ids:
            words[token // 32] |= np.uint32(1 << token % 32)
        return words


def json_schema_grammar(schema: Mapping[str, Any] | bool) -> str:
    """JSON of a schema (draft 2020-12, less what llguidance has no rule for); properties in the order of the schema."""
    return _json_grammar(_checked_schema(schema))


def json_object_grammar() -> str:
    """Any JSON object."""
    return _json_grammar(ANY_OBJECT)


def regex_grammar(pattern: str) -> str:
    """The whole answer matches a regular expression, in Rust's syntax."""
    _check_size(pattern)
    return str(LLMatcher.grammar_from_regex(pattern))


def choice_grammar(choices: Sequence[str]) -> str:
    """One of some texts."""
    if not choices or not all(isinstance(choice, str) and choice for choice in choices):
        raise GrammarError("choices must be one text or more, none of them empty")
    return regex_grammar("|".join(_SPECIAL_IN_REGEX.sub(r"\\\g<0>", choice) for choice in choices))


def lark_grammar(text: str) -> str:
    """A user's own grammar, in llguidance's dialect of Lark."""
    _check_size(text)
    _checked_schema({"anyOf": list(_schemas_within(text))})
    if text.lstrip().startswith("{"):
        raise GrammarError("the grammar is no Lark: it begins with {; a JSON schema goes into response_format")
    joined = text.count("&") + text.count("~") + text.count('"pattern')
    for count, most, words in (
        (text.count(":"), _MOST_RULES, "rules or so"),
        (text.count("$ref"), _MOST_REFERENCES, "references ($ref)"),
        (joined, _MOST_JOINED_PATTERNS, "patterns joined or negated (&, ~, in %json)"),
    ):
        _check_count(count, most, f"the grammar has {count} {words}")
    return str(LLMatcher.grammar_from_lark(text))


def _schemas_within(text: str) -> Iterator[Any]:
    """What stands after each ``%json`` of a grammar; what is no JSON the library refuses itself."""
    for found in re.finditer(r"%json\s*", text):
        try:
            yield json.JSONDecoder().raw_decode(text, found.end())[0]
        except ValueError:
            continue
        except RecursionError:
            raise GrammarError("a schema of the grammar is nested too deeply") from None


def tool_grammar(tools: Sequence[Mapping[str, Any]], *, required: bool, parallel: bool, answer: Mapping[str, Any] | None = None) -> str:
    """Calls of tools (as OpenAI describes them) in Hermes' form, ``<tool_call>``, a line of JSON, ``</tool_call>``.

    Required: calls alone, one or with ``parallel`` up to 8, since small models repeat a call for as long as they may. Else: text, or text that comes to a call and then calls; with ``answer``, calls
    alone or JSON of that schema alone.
    """
    if not tools:
        raise GrammarError("there is no tool to call")
    call = json.dumps(_call_schema(tools), ensure_ascii=False)
    again = f' ("\\n{_OPENS}" body)' + (f"{{0,{_MOST_CALLS - 1}}}" if required else "*") if parallel else ""
    first = f'"{_OPENS}"' if required or answer is not None else "head"
    other = "" if required else " | TEXT" if answer is None else " | answer"
    rules = [f"start: {first} body{again}{other}", f'body: "\\n" call "\\n{_CLOSES}"', f"call: %json {call}"]
    if other == " | TEXT":
        rules += [f"TEXT: /(?s:.*)/ & ~/(?s:.*){_OPENS}(?s:.*)/", f"head[lazy]: /(?s:.*){_OPENS}/"]
    elif other:
        rules.append(f"answer: %json {json.dumps(_spaced(_checked_schema(answer)), ensure_ascii=False)}")
    return str(LLMatcher.grammar_from_lark("\n".join(rules)))


def _call_schema(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One object for each tool, its name and arguments. Parameters stand as definitions, and what they refer to moves with them."""
    calls, definitions = [], {}
    for index, tool in enumerate(tools):
        function = tool.get("function", tool)
        parameters = _checked_schema(function.get("parameters") or {"type": "object", "properties": {}, "additionalProperties": False})
        definitions[f"tool{index}"] = _moved(parameters, f"#/$defs/tool{index}")
        parts = {"name": {"const": function["name"]}, "arguments": {"$ref": f"#/$defs/tool{index}"}}
        calls.append({"type": "object", "properties": parts, "required": list(parts), "additionalProperties": False})
    schema = {"anyOf": calls, "$defs": definitions}
    _check_divisors(list(_objects(schema)), joined=False)  # each tool's own are within bounds
    return _spaced(schema)


def _spaced(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"x-guidance": {"whitespace_pattern": _SPACE}, **schema}


def _moved(node: Any, root: str) -> Any:
    """A schema whose references to its own root lead to another place."""
    if isinstance(node, list):
        return [_moved(part, root) for part in node]
    if not isinstance(node, dict):
        return node
    reference = node.get("$ref")
    moved = {key: _moved(part, root) for key, part in node.items() if key not in ("$id", "$schema")}
    return moved | {"$ref": root + reference[1:]} if isinstance(reference, str) and reference.startswith("#") else moved


def _json_grammar(schema: Any) -> str:
    try:
        return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={"whitespace_pattern": _SPACE}))
    except ValueError as error:
        raise _refusal(str(error)) from None


def _checked_schema(schema: Any) -> dict[str, Any]:
    """The schema as a dict, its sizes within bounds; GrammarError else."""
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise GrammarError(f"a schema must be a JSON object, not {json.dumps(schema, default=str)[:40]}")
    try:
        _check_size(json.dumps(schema))
        nodes = list(_objects(schema))
    except (RecursionError, TypeError, ValueError):
        raise GrammarError("the schema is nested too deeply, or is no JSON") from None
    properties = max(len(node["properties"]) for node in [{"properties": {}}, *nodes] if isinstance(node.get("properties"), dict))
    joined = any("allOf" in node or ("$ref" in node and node.keys() - _NAMING_KEYS) for node in nodes)
    named = sum(len(node["patternProperties"]) for node in nodes if isinstance(node.get("patternProperties"), dict))
    for count, most, words in (
        (sum("$ref" in node for node in nodes), _MOST_REFERENCES, "references ($ref)"),
        (properties, _MOST_PROPERTIES, "properties in one object"),
        (named, _MOST_JOINED_PATTERNS, "patternProperties"),
        (sum("pattern" in node for node in nodes), _MOST_JOINED_PATTERNS if joined else _MOST_PATTERNS, "patterns" + " beside allOf" * joined),
    ):
        _check_count(count, most, f"the schema has {count} {words}")
    _check_divisors(nodes, joined=joined or any("anyOf" in node or "oneOf" in node for node in nodes))
    return schema


def _check_divisors(nodes: Sequence[dict[str, Any]], *, joined: bool) -> None:
    divisors = [_divisor(node["multipleOf"]) for node in nodes if "multipleOf" in node]
    size = max(sum(divisors), math.lcm(*divisors) if joined else 1)
    _check_count(size, _MOST_DIVISORS, "the schema has multipleOf that come to " + (f"{size}" if size < 10**12 else "very much"))


def _divisor(value: Any) -> int:
    """A number less its decimal point; 1 for what is none, which the library refuses."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return 1
    _, digits, exponent = Decimal(repr(value)).as_tuple()
    return int("".join(map(str, digits))) * 10 ** max(0, int(exponent))


def _objects(node: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object in a schema."""
    if isinstance(node, dict):
        yield node
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _objects(part)


def _check_size(text: str) -> None:
    _check_count(len(text), _MOST_CHARACTERS, f"the grammar has {len(text)} characters")


def _check_count(count: int, most: int, words: str) -> None:
    if count > most:
        raise GrammarError(f"{words}; at most {most} are taken")


def _refusal(problem: str) -> GrammarError:
    return GrammarError(f"this form cannot be enforced: {_first_lines(problem)}")


def _first_lines(text: str, most: int = 300) -> str:
    """What the library says, less its dump of states."""
    return text.partition("<state>")[0].partition("<non-verbose/>")[0].strip()[:most]
