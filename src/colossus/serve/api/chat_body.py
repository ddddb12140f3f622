"""The body of POST /v1/chat/completions: a conversation, tools, and the form of the answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from colossus.serve.api.errors import MARK, ApiError
from colossus.serve.api.fields import LIST, OBJECT, TEXT, Body, Drawing, by_kind, refused
from colossus.spec.errors import nearest


def _only_text(kind: Any) -> Any:
    if isinstance(kind, str) and kind != "text":
        raise ValueError(f"{kind[:40]!r} parts are not taken: this model reads text only")
    return kind


class Part(Body):
    """A piece of a message's content."""

    type: Annotated[Literal["text"], BeforeValidator(_only_text)]
    text: str


Content = Annotated[
    Annotated[str, Tag(TEXT)] | Annotated[list[Part], Tag(LIST)],
    Discriminator(lambda value: LIST if isinstance(value, list) else TEXT),
]


class CalledFunction(Body):
    name: str
    arguments: str


class PastCall(Body):
    """A call that the model made earlier in the conversation."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[PastCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Message:
        if self.role != "assistant" and self.tool_calls:
            raise ValueError("only a message of the assistant has tool_calls")
        if self.content is None and not (self.role == "assistant"):
            raise ValueError(f"a message of role {self.role!r} needs content")
        if self.role == "tool" and not self.tool_call_id:
            raise ValueError("a message of role 'tool' needs tool_call_id")
        return self

    @property
    def text(self) -> str:
        """Its content as one text; parts stand on lines of their own."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class Function(Body):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"] = "function"
    function: NamedFunction


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(MARK + "word")] | Annotated[NamedTool, Tag(OBJECT)],
    Discriminator(lambda value: OBJECT if by_kind(value) == OBJECT or isinstance(value, NamedTool) else MARK + "word"),
]


class ChatBody(Drawing):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    documents: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    reasoning_effort: str | None = None
    functions: Annotated[None, refused("is not offered: use tools")] = None
    function_call: Annotated[None, refused("is not offered: use tool_choice", but=("none",))] = None
    modalities: Annotated[None, refused("only ['text'] is offered", but=(["text"], []))] = None
    audio: Annotated[None, refused("is not offered: this model writes text only")] = None
    web_search_options: Annotated[None, refused("is not offered: the server does not search")] = None
    chat_template: Annotated[None, refused("is not offered: the model's own template is used")] = None
    echo: Annotated[None, refused("is not offered in chat: use /v1/completions", but=(False,))] = None

    @model_validator(mode="after")
    def _check_chat(self) -> ChatBody:
        if self.top_logprobs and not self.logprobs:
            raise ApiError("top_logprobs is only for logprobs = true", param="top_logprobs")
        if self.continue_final_message and (self.add_generation_prompt or self.messages[-1].role != "assistant"):
            words = "continue_final_message needs a last message of the assistant, and add_generation_prompt off"
            raise ApiError(words, param="continue_final_message")
        self._check_tools()
        return self

    def _check_tools(self) -> None:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ApiError("tools: two have the same name", param="tools")
        if self.tool_choice not in (None, "none", "auto") and not names:
            raise ApiError("tool_choice needs tools", param="tool_choice")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            hint = nearest(self.tool_choice.function.name, names)
            raise ApiError(f"tool_choice: no tool is called {self.tool_choice.function.name[:64]!r}; {hint}", param="tool_choice")
