"""Grammars: random walks along the masks always give what was asked for; what cannot be enforced is refused in words and in time."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colossus.serve.grammar import (
    Grammars,
    choice_grammar,
    json_object_grammar,
    json_schema_grammar,
    lark_grammar,
    regex_grammar,
    tool_grammar,
)
from colossus.serve.model import ServedModel, open_model
from colossus.spec.errors import GrammarError
from tests.nn.gguf_files import card_of, params_of, write_gguf

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"$ref": "#/$defs/City"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
                "required": ["city", "days"],
                "additionalProperties": False,
                "$defs": {"City": {"enum": ["Bern", "Zürich"]}},
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    card = card_of()
    return open_model(write_gguf(tmp_path_factory.mktemp("grammar") / "tiny.gguf", card, params_of(card)))


@pytest.fixture(scope="module")
def grammars(model: ServedModel) -> Grammars:
    return Grammars(model)


def allowed(mask_w: np.ndarray) -> list[int]:
    return np.flatnonzero(np.unpackbits(mask_w.view(np.uint8), bitorder="little")).tolist()


def walk(model: ServedModel, grammars: Grammars, grammar: str, seed: int, most: int = 400) -> str | None:
    """A random answer along the masks, which ends as soon as it may; None where it comes to no end."""
    chance, matcher, tokens = np.random.default_rng(seed), grammars.compile(grammar), []
    for _ in range(most):
        if matcher.may_end and (matcher.is_done or chance.random() < 0.5):
            return model.tokenizer.decode(tokens, skip_special_tokens=False)
        choices = [token for token in allowed(matcher.mask()) if token not in model.end_ids]
        tokens.append(int(chance.choice(_closing(model, choices, len(tokens) > most // 4))))
        assert matcher.accept(tokens[-1])
    return None


def _closing(model: ServedModel, choices: list[int], hurry: bool) -> list[int]:
    """In a hurry, tokens that close what is open, where there are such; never space for its own sake."""
    texts = {token: model.tokenizer.decode([token]) for token in choices}
    solid = [token for token in choices if texts[token].strip()] or choices
    return [token for token in solid if texts[token][0] in '"]}'] or solid if hurry else solid


names = st.sampled_from(["a", "b", "key", "ü"])
scalars = st.one_of(
    st.just({"type": "integer"}),
    st.builds(lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size}, st.integers(-50, 50), st.integers(0, 100)),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(lambda size: {"type": "string", "maxLength": size}, st.integers(0, 6)),
    st.just({"type": "string", "pattern": "^[a-c]{2,4}$"}),
    st.builds(lambda values: {"enum": values}, st.lists(st.one_of(st.integers(), st.text(max_size=4), st.booleans(), st.none()), min_size=1, max_size=3)),
)
schemas = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.builds(lambda items, size: {"type": "array", "items": items, "minItems": min(size, 1), "maxItems": size}, inner, st.integers(0, 3)),
        st.builds(
            lambda properties, needed: {"type": "object", "properties": properties, "required": sorted(properties)[:needed], "additionalProperties": False},
            st.dictionaries(names, inner, max_size=3),
            st.integers(0, 3),
        ),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=2)),
    ),
    max_leaves=5,
)


@given(schemas, st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_random_answers_are_json_of_the_schema(model: ServedModel, grammars: Grammars, schema: dict[str, Any], seed: int) -> None:
    jsonschema_rs = pytest.importorskip("jsonschema_rs")
    answer = walk(model, grammars, json_schema_grammar(schema), seed)
    assert answer is not None
    jsonschema_rs.validator_for(schema).validate(json.loads(answer))


@pytest.mark.parametrize("seed", range(5))
def test_a_json_object_is_one(model: ServedModel, grammars: Grammars, seed: int) -> None:
    answer = walk(model, grammars, json_object_grammar(), seed)
    assert answer is None or isinstance(json.loads(answer), dict)


@pytest.mark.parametrize("seed", range(4))
def test_patterns_and_choices_are_kept_to(model: ServedModel, grammars: Grammars, seed: int) -> None:
    assert re.fullmatch(r"(ab|c)+[0-9]{2}", str(walk(model, grammars, regex_grammar("(ab|c){1,9}[0-9]{2}"), seed)))
    choices = ["a+b", "a.c (x)", "naïve\n", "[1]", "a-b & #c"]
    assert walk(model, grammars, choice_grammar(choices), seed) in choices
    assert walk(model, grammars, lark_grammar('start: "x" y+\ny: "1" | "2"'), seed) is not None


def test_every_choice_can_be_made(model: ServedModel, grammars: Grammars) -> None:
    choices = ["a+b", "\\d", "ü]", "{}", '"q"', "tab\t%<>"]
    for choice in choices:
        tokens = model.tokenizer.encode(choice).ids
        assert grammars.compile(choice_grammar(choices)).num_accepted(tokens) == len(tokens)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("parallel", [False, True])
def test_required_calls_are_calls(model: ServedModel, grammars: Grammars, seed: int, parallel: bool) -> None:
    answer = str(walk(model, grammars, tool_grammar(TOOLS, required=True, parallel=parallel), seed))
    found = re.findall(r"<tool_call>\n(.*?)\n</tool_call>", answer, re.DOTALL)
    assert found and answer.startswith("<tool_call>") and (parallel or len(found) == 1)
    for call in map(json.loads, found):
        if call["name"] == "weather":
            assert call["arguments"]["city"] in ("Bern", "Zürich") and 1 <= call["arguments"]["days"] <= 9
        else:
            assert call == {"name": "now", "arguments": {}}


@pytest.mark.parametrize(("parallel", "most"), [(False, 1), (True, 8)])
def test_required_calls_come_to_an_end(model: ServedModel, grammars: Grammars, parallel: bool, most: int) -> None:
    matcher = grammars.compile(tool_grammar(TOOLS, required=True, parallel=parallel))
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    for token in model.tokenizer.encode("\n".join([call] * most)).ids:
        assert matcher.accept(token)
    assert matcher.may_end and matcher.is_done
    assert matcher.num_accepted(model.tokenizer.encode("\n" + call).ids) == 0


@pytest.mark.parametrize(
    ("text", "fits", "may_end"),
    [
        ("Just words, <tool> too.", True, True),
        ('First this. <tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', True, True),
        ('<tool_call>\n{"name": "weather", "arguments": {"city": "Bern", "days": 3}}\n</tool_call>', True, True),
        ('<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"', False, False),
        ('<tool_call>\n{"name": "nothing"', False, False),
        ("<tool_call> hello", False, False),
    ],
)
def test_calls_that_may_come_are_held_to_their_form(model: ServedModel, grammars: Grammars, text: str, fits: bool, may_end: bool) -> None:
    matcher = grammars.compile(tool_grammar(TOOLS, required=False, parallel=True))
    tokens = model.tokenizer.encode(text).ids
    assert (matcher.num_accepted(tokens) == len(tokens)) == fits
    if fits:
        assert all(matcher.accept(token) for token in tokens) and matcher.may_end == may_end


@pytest.mark.parametrize(
    ("text", "fits", "may_end"),
    [
        ('{"a": 1}', True, True),
        ('<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', True, True),
        ('{"a": "x"}', False, False),
        ("Hello", False, False),
    ],
)
def test_calls_that_may_come_beside_an_answer_of_a_form(model: ServedModel, grammars: Grammars, text: str, fits: bool, may_end: bool) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
    matcher = grammars.compile(tool_grammar(TOOLS, required=False, parallel=True, answer=schema))
    tokens = model.tokenizer.encode(text, add_special_tokens=False).ids
    assert (matcher.num_accepted(tokens) == len(tokens)) == fits
    assert not fits or (all(map(matcher.accept, tokens)) and matcher.may_end == may_end)


def test_all_end_tokens_are_allowed_exactly_where_the_answer_may_end(model: ServedModel, grammars: Grammars) -> None:
    matcher = grammars.compile(regex_grammar("ab?"))
    a, b = (model.tokenizer.encode(letter).ids[0] for letter in "ab")
    assert len(model.end_ids) == 2 and matcher.mask().dtype == np.uint32 and len(matcher.mask()) == -(-model.card.vocab_size // 32)
    assert not model.end_ids & set(allowed(matcher.mask())) and not matcher.may_end
    assert matcher.accept(a)
    assert set(allowed(matcher.mask())) == {b, *model.end_ids} and matcher.may_end and not matcher.is_done
    assert matcher.accept(b)
    assert set(allowed(matcher.mask())) == model.end_ids and matcher.is_done
    assert matcher.accept(max(model.end_ids)) and matcher.is_done and matcher.error is None


def test_a_matcher_goes_back_and_copies_go_their_own_way(model: ServedModel, grammars: Grammars) -> None:
    matcher = grammars.compile(regex_grammar("a[bc]c"))
    a, b, c = (model.tokenizer.encode(letter).ids[0] for letter in "abc")
    matcher.accept(a)
    other = matcher.copy()
    assert matcher.accept(b) and matcher.accept(c) and matcher.is_done and not other.is_done
    matcher.rollback(2)
    assert allowed(matcher.mask()) == allowed(other.mask()) and other.num_accepted([c, c, c]) == 2
    assert not other.accept(a) and other.error is not None and set(allowed(other.mask())) == model.end_ids and other.is_done
    assert matcher.error is None


def test_a_grammar_is_compiled_once(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    grammars, made = Grammars(model), []
    compiled = Grammars._compiled
    monkeypatch.setattr(Grammars, "_compiled", lambda self, grammar: made.append(grammar) or compiled(self, grammar))
    first, second = grammars.compile(regex_grammar("ab")), grammars.compile(regex_grammar("ab"))
    first.accept(model.tokenizer.encode("a").ids[0])
    assert len(made) == 1 and not second.may_end and allowed(second.mask()) != allowed(first.mask())


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def chained(length: int) -> dict[str, Any]:
    links = {f"d{index}": {"type": "array", "items": {"$ref": f"#/$defs/d{index + 1}"}} for index in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{length}": {"type": "null"}}}


def joined(count: int) -> list[str]:
    return [f"(.|\\n)*a.{{{index}}}" for index in range(1, count + 1)]


HOSTILE: dict[str, tuple[Callable[[], str], str]] = {
    "unknown keyword": (lambda: json_schema_grammar({"not": {"type": "null"}}), "Unimplemented keys"),
    "unknown type": (lambda: json_schema_grammar({"type": "foo"}), "Invalid type: foo"),
    "unknown format": (lambda: json_schema_grammar({"type": "string", "format": "foo"}), "Unknown format"),
    "remote reference": (lambda: json_schema_grammar({"$ref": "http://127.0.0.1/x"}), "does not fetch"),
    "nothing fits": (lambda: json_schema_grammar(False), "must be a JSON object"),
    "nested": (lambda: json_schema_grammar(nested(200)), "recursion limit|nested too deeply"),
    "nested more": (lambda: json_schema_grammar(nested(100_000)), "nested too deeply"),
    "itself": (lambda: json_schema_grammar({"$ref": "#"}), "cannot be enforced"),
    "chain": (lambda: json_schema_grammar(chained(1500)), "references"),
    "wide": (lambda: json_schema_grammar({"properties": {f"p{index}": {} for index in range(5000)}}), "properties in one object"),
    "long": (lambda: json_schema_grammar({"enum": ["x" * 200_000]}), "characters"),
    "joined patterns": (lambda: json_schema_grammar({"allOf": [{"type": "string", "pattern": f"^{part}$"} for part in joined(40)]}), "patterns beside allOf"),
    "key patterns": (lambda: json_schema_grammar({"type": "object", "patternProperties": {part: {} for part in joined(40)}}), "patternProperties"),
    "eight patterns": (lambda: json_schema_grammar({"allOf": [{"type": "string", "pattern": f"^{part}$"} for part in joined(8)]}), "cannot be enforced"),
    "large divisor": (lambda: json_schema_grammar({"type": "integer", "multipleOf": 999_999_937}), "multipleOf"),
    "divisor": (lambda: json_schema_grammar({"type": "integer", "multipleOf": 1_000_003}), "multipleOf"),
    "divisors": (lambda: json_schema_grammar({"anyOf": [{"type": "integer", "multipleOf": 99 - index} for index in range(60)]}), "multipleOf"),
    "divisors at once": (lambda: json_schema_grammar({"allOf": [{"type": "number", "multipleOf": part} for part in (1.01, 10.3, 107)]}), "multipleOf"),
    "divisor in lark": (lambda: lark_grammar('start: %json {"type": "integer", "multipleOf": 1000003}'), "multipleOf"),
    "divisors of tools": (
        lambda: tool_grammar(
            [{"name": f"f{index}", "parameters": {"properties": {"x": {"multipleOf": 997}}}} for index in range(60)], required=True, parallel=False
        ),
        "multipleOf",
    ),
    "unknown token": (lambda: lark_grammar("start: <|nothere|>"), "unknown special token"),
    "token out of range": (lambda: lark_grammar("start: <[999999]>"), "too large"),
    "look-ahead": (lambda: regex_grammar("(?=a)b"), "look-around"),
    "open group": (lambda: regex_grammar("("), "unclosed group"),
    "no rule": (lambda: lark_grammar("start: foo"), "unknown name"),
    "no lark": (lambda: lark_grammar('{"grammars": []}'), "no Lark"),
    "lark nested": (lambda: lark_grammar("start: " + "(" * 3000 + '"a"' + ")" * 3000), "too deeply nested"),
    "lark chain": (lambda: lark_grammar("\n".join(["start: r0", *(f"r{index}: r{index + 1}" for index in range(4000))])), "rules"),
    "lark joined": (lambda: lark_grammar("start: X\nX: " + " & ".join(f"/{part}/" for part in joined(40))), "joined"),
    "no choice": (lambda: choice_grammar([]), "one text or more"),
    "no tool": (lambda: tool_grammar([], required=True, parallel=True), "no tool"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_cannot_be_enforced_is_refused_in_words_and_in_time(grammars: Grammars, case: str) -> None:
    make, words = HOSTILE[case]
    started_s = time.thread_time()
    with pytest.raises(GrammarError, match=words) as refused:
        grammars.compile(make())
    assert len(str(refused.value)) < 500
    assert time.thread_time() - started_s < 2


@pytest.mark.parametrize(
    "schema",
    [
        nested(60),
        chained(300),
        {"type": "string", "maxLength": 10**8},
        {"type": "array", "items": {"type": "integer"}, "minItems": 10**6},
        {"type": "string", "pattern": "^" + "(a?){60}" * 20 + "a{1200}$"},
        {"type": "string", "pattern": "^(a{1,1000}){1,1000}$"},
        {"allOf": [{"type": "string", "pattern": f"^{part}$"} for part in joined(3)]},
    ],
)
def test_what_is_odd_but_can_be_enforced_stays_quick(grammars: Grammars, schema: dict[str, Any]) -> None:
    """It may come to a limit on the way, and then ends."""
    started_s, chance = time.thread_time(), np.random.default_rng(0)
    matcher = grammars.compile(json_schema_grammar(schema))
    for _ in range(20):
        fits = matcher.accept(int(chance.choice(allowed(matcher.mask()))))
        assert fits or (matcher.error and matcher.is_done)
    assert time.thread_time() - started_s < 2


def test_a_model_without_end_tokens_is_told(model: ServedModel) -> None:
    with pytest.raises(GrammarError, match="no token that ends"):
        Grammars(replace(model, end_ids=frozenset())).compile(json_object_grammar())
