"""Tools: told to models whose template does not know them, and the calls found in what models write.

Our own form is that of Hermes and Qwen: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``. Models whose template shows
another form are read in that too: Mistral's ``[TOOL_CALLS][{...}]`` and Llama 3's bare ``{"name": ..., "parameters": {...}}``.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

START, END = "<tool_call>", "</tool_call>"
MISTRAL, LLAMA = "[TOOL_CALLS]", "<|python_tag|>"
MARKERS = (START, END, MISTRAL, LLAMA)
"""What a tokenizer may hold as special tokens, and must write out where calls are looked for."""


class ToolForm(Enum):
    """How a model writes calls, beside our own form, which is always read."""

    HERMES = "hermes"
    MISTRAL = "mistral"
    LLAMA = "llama"

    @classmethod
    def of_template(cls, template: str) -> ToolForm:
        """The form that a chat template shows its model."""
        if START in template:
            return cls.HERMES
        if MISTRAL in template:
            return cls.MISTRAL
        return cls.LLAMA if LLAMA in template or '"parameters"' in template else cls.HERMES


def describe(tools: Sequence[Mapping[str, Any]]) -> str:
    """What a system message tells a model whose template knows nothing of tools."""
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return (
        f"You can call these functions, one JSON schema a line:\n<tools>\n{listed}\n</tools>\n"
        f'To call one, write {START}{{"name": NAME, "arguments": {{ARGUMENTS}}}}{END} and nothing after it. '
        "Results come back between <tool_response> and </tool_response>."
    )


def with_tools_described(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A conversation with tools, in words that any template can render: system, user and assistant messages of text."""
    plain = [_in_words(message) for message in messages]
    if not tools:
        return plain
    if plain and plain[0]["role"] == "system":
        plain[0]["content"] = f"{plain[0]['content']}\n\n{describe(tools)}" if plain[0]["content"] else describe(tools)
        return plain
    return [{"role": "system", "content": describe(tools)}, *plain]


def _in_words(message: Mapping[str, Any]) -> dict[str, Any]:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    written = [f"{START}{json.dumps({'name': call['name'], 'arguments': call['arguments']}, ensure_ascii=False)}{END}" for call in calls]
    content = "\n".join([*([message["content"]] if message["content"] else []), *written])
    return {key: value for key, value in message.items() if key != "tool_calls"} | {"content": content}


@dataclass(frozen=True, slots=True)
class CallDelta:
    """What is new of one call: its id and name first, then its arguments (JSON), perhaps in pieces."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


@dataclass(slots=True)
class Parsed:
    """What is new of an answer, taken apart."""

    content: str = ""
    calls: list[CallDelta] = field(default_factory=list)


class ToolParser:
    """Takes an answer apart, however it is cut into pieces, into text and calls.

    What is no complete, well-formed call stays text. Space around calls is dropped.

    :param trusted: calls in our own form follow a grammar, so their arguments go out while they are written; others go out when the
        whole call has been read and found to be JSON. A call cut off before that is dropped then.
    :param required: the answer is calls alone, so that what is left of it is no text.
    :param parallel: False keeps the first call and drops what follows it.
    """

    def __init__(self, form: ToolForm, *, trusted: bool = False, parallel: bool = True, required: bool = False) -> None:
        self._markers = [START, *([MISTRAL] if form is ToolForm.MISTRAL else [LLAMA] if form is ToolForm.LLAMA else [])]
        self._bare = form is ToolForm.LLAMA
        self._trusted, self._parallel, self._required = trusted, parallel, required
        self._held = ""
        self._marker = ""
        self._call: _Json | None = None
        self._started = False
        self._num_streamed = 0
        self.num_calls = 0

    def push(self, text: str) -> Parsed:
        """What is certain after this text."""
        parsed = Parsed()
        self._held += text
        while self._held and self._step(parsed):
            pass
        return parsed

    def read(self, text: str, *, last: bool) -> Parsed:
        """``push``, and ``flush`` where this text is the last."""
        parsed = self.push(text)
        if last:
            rest = self.flush()
            parsed = Parsed(parsed.content + rest.content, parsed.calls + rest.calls)
        return parsed

    def flush(self) -> Parsed:
        """What is left at the end of the answer; a call that was cut off is text, as far as it has not gone out and no grammar says otherwise."""
        parsed = Parsed()
        if self._call is not None:
            if not self._started and not self._trusted:
                parsed.content = self._marker + self._call.text
            self._call = None
        elif not (self.num_calls and self._held.isspace()):
            parsed.content = self._held
        self._held = ""
        if self._required or (self.num_calls and (self._trusted or not self._parallel)):
            parsed.content = ""
        return parsed

    def _step(self, parsed: Parsed) -> bool:
        """One step through the held text; False when more must come first."""
        if self.num_calls and not self._parallel and self._call is None:
            self._held = ""
            return False
        return self._read_text(parsed) if self._call is None else self._read_call(parsed)

    def _read_text(self, parsed: Parsed) -> bool:
        if self.num_calls:
            self._drop_end()
        found = [(at, marker) for marker in self._markers if (at := self._held.find(marker)) >= 0]
        at, self._marker = min(found, default=(-1, ""))
        if self._bare and at < 0 and self._held.lstrip().startswith("{"):
            at, self._marker = len(self._held) - len(self._held.lstrip()), ""
        if at >= 0:
            self._give(self._held[:at].rstrip(), parsed)
            self._held = self._held[at + len(self._marker) :]
            self._call, self._started, self._num_streamed = _Json(), False, 0
            return True
        ready = len(self._held) - _num_held(self._held, (*self._markers, END) if self.num_calls else self._markers)
        self._give(self._held[:ready], parsed)
        self._held = self._held[ready:]
        return False

    def _drop_end(self) -> None:
        """After a call, its end mark, space, and Llama's semicolon between calls are no text."""
        rest = self._held.lstrip().removeprefix(END)
        self._held = rest.lstrip().lstrip(";") if self._bare else rest

    def _give(self, text: str, parsed: Parsed) -> None:
        if text.strip() or (text and not self.num_calls):
            parsed.content += text
            self._bare = self._bare and not text.strip()

    def _read_call(self, parsed: Parsed) -> bool:
        assert self._call is not None
        self._held = self._call.push(self._held)
        if self._trusted and self._marker == START and self._call.name is not None and self._call.arguments_start is not None:
            self._stream(parsed)
        if not self._call.is_complete and not (self._marker != MISTRAL and self._call.is_no_json):
            return False
        if not self._started and not self._finish(parsed):
            parsed.content += self._marker + self._call.text
            self._bare = False
        self._call = None
        return True

    def _stream(self, parsed: Parsed) -> None:
        call = self._call
        assert call is not None and call.arguments_start is not None
        new = call.text[call.arguments_start + self._num_streamed : call.arguments_end]
        self._num_streamed += len(new)
        if not self._started:
            self._started = True
            parsed.calls.append(CallDelta(self.num_calls, new, _call_id(), call.name))
            self.num_calls += 1
        elif new:
            parsed.calls.append(CallDelta(self.num_calls - 1, new))

    def _finish(self, parsed: Parsed) -> bool:
        """Gives out a complete value's calls; False where it is none."""
        assert self._call is not None
        calls = _calls_of(self._call.text)
        for name, arguments in calls if self._parallel else calls[:1]:
            parsed.calls.append(CallDelta(self.num_calls, arguments, _call_id(), name))
            self.num_calls += 1
        return bool(calls)


def _call_id() -> str:
    return "call_" + secrets.token_hex(12)


def _calls_of(text: str) -> list[tuple[str, str]]:
    """Names and arguments (JSON) of the calls that a value stands for; none where it is not well formed."""
    prefix = re.match(r"\s*([\w.-]+)(?:\[ARGS\])?\s*(?=\{)", text)  # newer Mistral models write the name before the arguments
    try:
        value = json.loads(text[prefix.end() :] if prefix else text)
    except (ValueError, RecursionError):
        return []
    if prefix:
        value = {"name": prefix.group(1), "arguments": value}
    calls = [_call_of(each) for each in (value if isinstance(value, list) else [value])]
    return [call for call in calls if call is not None] if None not in calls else []


def _call_of(value: Any) -> tuple[str, str] | None:
    if not isinstance(value, dict) or not isinstance(name := value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    return (name, json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None


_SIGNS = re.compile(r'[{}\[\]"\\]')
_NAME = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\S)')


class _Json:
    """One JSON object or array as it comes, up to its last bracket.

    :ivar name: of the call, once read, where name and arguments stand in this order.
    :ivar arguments_start: where in ``text`` the arguments begin; ``arguments_end`` where they end, once they do.
    """

    def __init__(self) -> None:
        self.text = ""
        self.is_complete = False
        self.name: str | None = None
        self.arguments_start: int | None = None
        self.arguments_end: int | None = None
        self._depth, self._in_string, self._escaped_at = 0, False, -1

    def push(self, text: str) -> str:
        """Takes what belongs to the value; the rest comes back."""
        begin = len(self.text)
        self.text += text
        self._find_arguments()
        for sign in _SIGNS.finditer(self.text, begin):
            self._see(sign.group(), sign.start())
            if self.is_complete:
                rest = self.text[sign.end() :]
                self.text = self.text[: sign.end()]
                return rest
        return ""

    @property
    def is_no_json(self) -> bool:
        """Whether it cannot become an object or an array any more."""
        begun = self.text.lstrip()
        return bool(begun) and begun[0] not in "{["

    def _see(self, sign: str, at: int) -> None:
        if at == self._escaped_at:
            return
        if self._in_string:
            if sign == "\\":
                self._escaped_at = at + 1
            elif sign == '"':
                self._in_string = False
        elif sign == '"':
            self._in_string = True
        elif self._depth == 0 and sign in "[]" and self.text[:at].strip():
            return  # Mistral's name[ARGS]{...}
        elif sign in "{[":
            self._depth += 1
        elif sign in "}]":
            self._depth -= 1
            if self._depth == 1 and self.arguments_end is None and self.arguments_start is not None and at > self.arguments_start:
                self.arguments_end = at + 1
            self.is_complete = self._depth <= 0

    def _find_arguments(self) -> None:
        if self.arguments_start is None and (match := _NAME.match(self.text)):
            self.name = json.loads(match.group(1))
            self.arguments_start = match.end()


def _num_held(text: str, markers: Sequence[str]) -> int:
    """Characters at the end that may be the space before a marker, or its beginning."""
    longest = max(map(len, markers)) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(marker.startswith(text[-size:]) for marker in markers):
            return size + len(text[:-size]) - len(text[:-size].rstrip())
    return len(text) - len(text.rstrip())
