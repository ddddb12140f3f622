"""POST /tokenize and /detokenize, in vLLM's shapes: texts or conversations to tokens, and back."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from colossus.serve.api.body import check, read_body
from colossus.serve.api.chat_body import ChatBody, Message, Tool
from colossus.serve.api.conversation import ToolUse, encode_chat
from colossus.serve.api.errors import ApiError, to_json
from colossus.serve.api.fields import Body, TokenId
from colossus.serve.api.sampling import check_tokens
from colossus.serve.api.service import Service
from colossus.serve.api.text import off_loop


class TokenizeBody(Body):
    """A text as ``prompt``, or a conversation as ``messages``."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise ApiError("give prompt or messages, and not both", param="prompt")
        return self

    def as_chat(self) -> ChatBody:
        """The conversation as a chat body would tell it."""
        shared = {"tools", "add_generation_prompt", "continue_final_message", "chat_template_kwargs"}
        return check({"messages": self.messages} | {name: getattr(self, name) for name in shared}, ChatBody)


class DetokenizeBody(Body):
    model: str | None = None
    tokens: list[TokenId]


class TokenizeEndpoint:
    """Texts and conversations to tokens."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def handle(self, request: HttpRequest) -> Response:
        service = self._service
        body = await read_body(request, TokenizeBody, max_bytes=service.settings.max_body_bytes)
        service.check_model(body.model)
        tokens = await self._tokens(body)
        data: dict[str, Any] = {"count": len(tokens), "max_model_len": service.bounds.max_sequence_tokens, "tokens": tokens, "token_strs": None}

        def written() -> bytes:
            if body.return_token_strs:
                data["token_strs"] = [service.text.vocabulary.token_text(token) for token in tokens]
            return to_json(data)

        return Response(await off_loop(len(tokens), written), media_type="application/json")

    async def _tokens(self, body: TokenizeBody) -> list[int]:
        text, prompt = self._service.text, body.prompt
        if prompt is None:
            chat = body.as_chat()
            return await encode_chat(text, chat, ToolUse.of(chat))
        return await off_loop(len(prompt), lambda: text.encode(prompt, add_special_tokens=body.add_special_tokens is not False))


class DetokenizeEndpoint:
    """Tokens to their text, special ones written out."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def handle(self, request: HttpRequest) -> Response:
        service = self._service
        body = await read_body(request, DetokenizeBody, max_bytes=service.settings.max_body_bytes)
        service.check_model(body.model)
        check_tokens(body.tokens, service.bounds, "tokens")
        written = await off_loop(len(body.tokens), lambda: to_json({"prompt": service.text.decode(body.tokens)}))
        return Response(written, media_type="application/json")
