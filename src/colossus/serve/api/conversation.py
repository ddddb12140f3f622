"""A conversation, as a chat body or a responses body tells it, to the prompt of its answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from colossus.serve.api.chat_body import ChatBody, Message, NamedTool, Tool
from colossus.serve.api.errors import ApiError
from colossus.serve.api.text import Text, off_loop
from colossus.serve.tools import with_tools_described

_UNKNOWN_SIZE = 1 << 20  # characters that tools and other data may become
_MARK = "\ue0c5\ue0c6"  # private-use characters, to find the last message again in what the template wrote


@dataclass(frozen=True, kw_only=True)
class ToolUse:
    """Which tools an answer may call, and whether it must.

    :param named: the one tool that the caller wants called.
    """

    tools: Sequence[Tool] = ()
    required: bool = False
    named: str | None = None
    parallel: bool = True

    @classmethod
    def of(cls, body: ChatBody) -> ToolUse:
        choice = body.tool_choice
        if not body.tools or choice == "none":
            return cls()
        named = choice.function.name if isinstance(choice, NamedTool) else None
        return cls(
            tools=body.tools,
            required=choice == "required" or named is not None,
            named=named,
            parallel=body.parallel_tool_calls is not False and named is None,
        )

    @property
    def allowed(self) -> list[dict[str, Any]]:
        """Those that the answer may call."""
        return [tool_data(tool) for tool in self.tools if self.named in (None, tool.function.name)]


def tool_data(tool: Tool) -> dict[str, Any]:
    """As templates and grammars take it."""
    return tool.model_dump(exclude_none=True)


async def encode_chat(text: Text, body: ChatBody, use: ToolUse, *, max_tokens: int | None = None) -> list[int]:
    """Tokens of the prompt. The template writes the beginning-of-text token itself, where the model has one.

    :param max_tokens: longer prompts may be refused before they are tokenized.
    """
    messages = [_message(message) for message in body.messages]
    tools = [tool_data(tool) for tool in use.tools]
    size = sum(map(_size, body.messages)) + (_UNKNOWN_SIZE if tools or body.documents or body.chat_template_kwargs else 0)

    def encode() -> list[int]:
        prompt = render(text, body, messages, tools)
        if max_tokens is not None:
            text.check_length(prompt, max_tokens, "messages")
        return text.encode(prompt, add_special_tokens=False)

    return await off_loop(size, encode)


def render(text: Text, body: ChatBody, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
    """The prompt as text."""
    if not text.template.knows_tools:
        messages, tools = with_tools_described(messages, tools), []
    extra = dict(body.chat_template_kwargs or {})
    if clash := extra.keys() & {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"}:
        raise ApiError(f"chat_template_kwargs: {sorted(clash)[0]!r} has a field of its own", param="chat_template_kwargs")
    if body.reasoning_effort is not None:
        extra.setdefault("reasoning_effort", body.reasoning_effort)
    going_on = bool(body.continue_final_message)
    if going_on:
        messages[-1]["content"] += _MARK
    generates = body.add_generation_prompt is not False and not going_on
    written = text.render(messages, tools=tools or None, documents=body.documents, add_generation_prompt=generates, **extra)
    return _up_to_mark(written) if going_on else written


def _up_to_mark(written: str) -> str:
    if _MARK not in written:
        raise ApiError("the model's chat template does not write the last message as it stands, so it cannot go on", param="continue_final_message")
    return written[: written.rindex(_MARK)]


def _size(message: Message) -> int:
    return len(message.text) + len(message.reasoning_content or "") + sum(len(call.function.arguments) for call in message.tool_calls or ())


def _message(message: Message) -> dict[str, Any]:
    """As templates know messages: text content, and a call's arguments as data."""
    role = "system" if message.role == "developer" else message.role
    data: dict[str, Any] = {"role": role, "content": message.text}
    for name in ("name", "tool_call_id", "reasoning_content"):
        if (value := getattr(message, name)) is not None:
            data[name] = value
    if message.tool_calls:
        data["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)}}
            for call in message.tool_calls
        ]
    return data


def _arguments(text: str) -> Any:
    try:
        return json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        raise ApiError(f"tool_calls: arguments are no JSON: {text[:80]!r}", param="messages") from None
