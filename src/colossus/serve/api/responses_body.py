"""The body of POST /v1/responses, told as the chat body that means the same."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from colossus.serve.api.body import check
from colossus.serve.api.chat_body import ChatBody
from colossus.serve.api.errors import MARK, ApiError
from colossus.serve.api.fields import LIST, OBJECT, TEXT, Body, refused

_TEXT_PARTS = ("input_text", "output_text", "text")


def _only_text(kind: Any) -> Any:
    if isinstance(kind, str) and kind not in _TEXT_PARTS:
        raise ValueError(f"{kind[:40]!r} parts are not taken: this model reads text only")
    return kind


class InputPart(Body):
    type: Annotated[Literal["input_text", "output_text", "text"], BeforeValidator(_only_text)]
    text: str


InputContent = Annotated[
    Annotated[str, Tag(TEXT)] | Annotated[list[InputPart], Tag(LIST)],
    Discriminator(lambda value: LIST if isinstance(value, list) else TEXT),
]


class Item(Body):
    """One entry of the input: a message, a call that the model made, what came of it, or a thought (which is left out)."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: InputContent | None = None
    call_id: Annotated[str, Field(min_length=1)] | None = None
    name: str | None = None
    arguments: str | None = None
    output: InputContent | None = None

    @model_validator(mode="after")
    def _check(self) -> Item:
        needed = {"message": ("role", "content"), "function_call": ("call_id", "name", "arguments"), "function_call_output": ("call_id", "output")}
        for name in needed.get(self.type, ()):
            if getattr(self, name) is None:
                raise ValueError(f"an item of type {self.type!r} needs {name}")
        return self


def _plain(content: str | list[InputPart] | None) -> str:
    return "\n".join(part.text for part in content) if isinstance(content, list) else content or ""


class TextFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(max_length=64)] | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> TextFormat:
        if self.type == "json_schema" and self.schema_ is None:
            raise ValueError("type 'json_schema' needs schema")
        return self


class TextOptions(Body):
    format: TextFormat | None = None


class FlatTool(Body):
    """A function, as this path writes tools."""

    type: Literal["function"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FlatNamedTool(Body):
    type: Literal["function"] = "function"
    name: str


FlatToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(MARK + "word")] | Annotated[FlatNamedTool, Tag(OBJECT)],
    Discriminator(lambda value: OBJECT if isinstance(value, (dict, FlatNamedTool)) else MARK + "word"),
]


class Reasoning(Body):
    effort: str | None = None


class ResponsesBody(Body):
    model: str | None = None
    input: Annotated[
        Annotated[str, Tag(TEXT)] | Annotated[list[Item], Tag(LIST), Field(min_length=1)],
        Discriminator(lambda value: LIST if isinstance(value, list) else TEXT),
    ]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    text: TextOptions | None = None
    tools: Annotated[list[FlatTool], Field(max_length=128)] | None = None
    tool_choice: FlatToolChoice | None = None
    parallel_tool_calls: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: list[str] | None = None
    reasoning: Reasoning | None = None
    stream: bool | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    cache_salt: Annotated[str, Field(max_length=256)] | None = None
    previous_response_id: Annotated[None, refused("is not offered: nothing is stored here, send the whole conversation as input")] = None
    conversation: Annotated[None, refused("is not offered: nothing is stored here, send the whole conversation as input")] = None
    prompt: Annotated[None, refused("is not offered: no prompts are stored here")] = None
    background: Annotated[None, refused("is not offered: read the answer as a stream", but=(False,))] = None
    truncation: Annotated[None, refused("is not offered: shorten the input", but=("disabled",))] = None
    max_tool_calls: Annotated[None, refused("is not offered: the server runs no tools itself")] = None

    def as_chat(self) -> ChatBody:
        """The same as a chat body."""
        data: dict[str, Any] = {"messages": self._messages(), "max_completion_tokens": self.max_output_tokens}
        shared = ("model", "temperature", "top_p", "seed", "parallel_tool_calls", "stream", "user", "priority", "cache_salt")
        data |= {name: getattr(self, name) for name in shared}
        if "message.output_text.logprobs" in (self.include or ()) or self.top_logprobs:
            data |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        if self.text is not None and (form := self.text.format) is not None:
            schema = {"name": form.name or "answer", "schema": form.schema_, "strict": form.strict}
            data["response_format"] = {"type": form.type} | ({"json_schema": schema} if form.type == "json_schema" else {})
        if self.tools:
            data["tools"] = [{"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)} for tool in self.tools]
        if self.tool_choice is not None:
            data["tool_choice"] = self.tool_choice if isinstance(self.tool_choice, str) else {"function": {"name": self.tool_choice.name}}
        if self.reasoning is not None:
            data["reasoning_effort"] = self.reasoning.effort
        return check(data, ChatBody)

    def _messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        if self.instructions is not None:
            messages.append({"role": "system", "content": self.instructions})
        items = [Item(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        for item in items:
            _append(messages, item)
        if not messages:
            raise ApiError("input: there is no message in it", param="input")
        return messages


def _append(messages: list[dict[str, Any]], item: Item) -> None:
    """Adds an item; calls join the assistant's message that they came with."""
    if item.type == "message":
        messages.append({"role": item.role, "content": _plain(item.content)})
    elif item.type == "function_call_output":
        messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _plain(item.output)})
    elif item.type == "function_call":
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        call = {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}
        messages[-1].setdefault("tool_calls", []).append(call)
