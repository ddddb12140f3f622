"""Tool calls found in text, however it is cut."""

from __future__ import annotations

import json

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from colossus.serve.tools import Parsed, ToolForm, ToolParser, with_tools_described

Calls = list[tuple[str, str]]


def parse(text: str, sizes: list[int], form: ToolForm = ToolForm.HERMES, *, trusted: bool = False, parallel: bool = True) -> tuple[str, Calls]:
    parser, content, at = ToolParser(form, trusted=trusted, parallel=parallel), "", 0
    calls: Calls = []

    def take(parsed: Parsed) -> None:
        nonlocal content
        content += parsed.content
        for delta in parsed.calls:
            if delta.name is not None:
                assert delta.index == len(calls) and delta.id is not None and delta.id.startswith("call_")
                calls.append((delta.name, delta.arguments))
            else:
                calls[delta.index] = (calls[delta.index][0], calls[delta.index][1] + delta.arguments)

    for size in sizes:
        take(parser.push(text[at : at + size]))
        at += size
    take(parser.read(text[at:], last=True))
    return content, calls


cuts = st.lists(st.integers(0, 9), max_size=40)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('ab{}[]"\\</tool_call>é 😀\n'), max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
arguments = st.dictionaries(st.text(max_size=5), values, max_size=3)


@settings(max_examples=120, deadline=None)
@given(given_calls=st.lists(arguments, min_size=1, max_size=3), sizes=cuts, trusted=st.booleans(), ascii_only=st.booleans())
def test_any_arguments_come_back(given_calls: list[dict[str, object]], sizes: list[int], trusted: bool, ascii_only: bool) -> None:
    written = [json.dumps({"name": f"f{place}", "arguments": each}, ensure_ascii=ascii_only) for place, each in enumerate(given_calls)]
    text = "Well.\n" + "\n".join(f"<tool_call>\n{each}\n</tool_call>" for each in written)
    content, calls = parse(text, sizes, trusted=trusted)
    assert content == "Well."
    assert [(name, json.loads(each)) for name, each in calls] == [(f"f{place}", each) for place, each in enumerate(given_calls)]


@settings(max_examples=120, deadline=None)
@given(text=st.text(st.sampled_from("ab <tool_call>"), max_size=30).filter(lambda text: "<tool_call>" not in text), sizes=cuts)
def test_text_without_calls_stays_as_it_is(text: str, sizes: list[int]) -> None:
    assert parse(text, sizes) == (text, [])


@pytest.mark.parametrize(
    "text",
    ["<tool_call> is a tag", '<tool_call>{"name": 3}</tool_call> hm', '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', '<tool_call>{"name": "f"'],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert parse(text, [1] * len(text)) == (text, [])


@settings(max_examples=100, deadline=None)
@given(sizes=cuts)
def test_forms_of_other_models(sizes: list[int]) -> None:
    one = ("f", '{"a": 1}')
    assert parse('{"name": "f", "parameters": {"a": 1}}', sizes, ToolForm.LLAMA) == ("", [one])
    assert parse('<|python_tag|>{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}', sizes, ToolForm.LLAMA) == ("", [one, ("g", "{}")])
    assert parse('{"x": 1} is JSON', sizes, ToolForm.LLAMA) == ('{"x": 1} is JSON', [])
    assert parse('[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]', sizes, ToolForm.MISTRAL) == ("", [one, ("g", "{}")])
    assert parse('[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g{}', sizes, ToolForm.MISTRAL) == ("", [one, ("g", "{}")])


def test_one_call_at_a_time() -> None:
    text = '<tool_call>{"name": "f", "arguments": {}}</tool_call>' * 2 + " more"
    assert parse(text, [7] * 20, parallel=False) == ("", [("f", "{}")])


def test_arguments_that_a_grammar_holds_go_out_as_they_come() -> None:
    parser = ToolParser(ToolForm.HERMES, trusted=True)
    assert [delta.name for delta in parser.push('<tool_call>{"name": "f", "arguments": {"text": "lo').calls] == ["f"]
    assert [delta.arguments for delta in parser.push("ng tex").calls] == ["ng tex"]


@pytest.mark.parametrize("rest", ['\n<tool_call>{"na', "\n<tool"])
def test_a_call_that_was_cut_off_under_a_grammar_is_dropped(rest: str) -> None:
    whole = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert parse(whole + rest, [], trusted=True) == ("", [("f", "{}")])
    assert ToolParser(ToolForm.HERMES, trusted=True, required=True).read(rest.strip(), last=True) == Parsed()
    assert ToolParser(ToolForm.HERMES).read(rest.strip(), last=True) == Parsed(rest.strip())


def test_a_conversation_with_tools_in_plain_words() -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "7"},
    ]
    told = with_tools_described(messages, [{"type": "function", "function": {"name": "f"}}])
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]
    assert told[2] == {"role": "assistant", "content": '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'}
    assert told[3]["content"] == "<tool_response>\n7\n</tool_response>"
    assert with_tools_described([{"role": "system", "content": "Be brief."}], [{"a": 1}])[0]["content"].startswith("Be brief.\n\nYou can call")
