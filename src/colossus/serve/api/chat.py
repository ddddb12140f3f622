"""POST /v1/chat/completions: conversations in, messages and tool calls out, whole or as they are written."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from colossus.serve.api.body import read_body
from colossus.serve.api.chat_body import ChatBody
from colossus.serve.api.conversation import ToolUse, encode_chat
from colossus.serve.api.errors import to_json
from colossus.serve.api.forms import grammar_of, has_form
from colossus.serve.api.generation import Piece, Task, Whole, answers, whole
from colossus.serve.api.logprobs import chat_logprobs
from colossus.serve.api.sampling import make_sampling, room
from colossus.serve.api.sending import DONE, EventStream, WholeAnswer
from colossus.serve.api.service import Asked, Service
from colossus.serve.api.usage import Usage
from colossus.serve.tools import MARKERS, CallDelta, Parsed, ToolForm, ToolParser


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A chat request, checked and ready to run."""

    service: Service
    asked: Asked
    body: ChatBody
    use: ToolUse
    tasks: list[Task]
    grammar: str | None

    @property
    def usage(self) -> Usage:
        return Usage(self.tasks, len(self.tasks))

    def parser(self) -> ToolParser | None:
        """For one answer, where tools may be called."""
        if not self.use.tools:
            return None
        template = self.service.text.template
        held = self.use.required or has_form(self.body)  # a grammar allows calls in our own form alone
        form = ToolForm.of_template(template.source) if template.knows_tools and not held else ToolForm.HERMES
        return ToolParser(form, trusted=self.grammar is not None, parallel=self.use.parallel, required=self.use.required)

    def logprobs(self, written: list[Any]) -> dict[str, Any] | None:
        if not self.body.logprobs:
            return None
        return chat_logprobs(written, self.service.text.vocabulary, self.body.top_logprobs or 0)


class ChatEndpoint:
    """The path's handler."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def handle(self, request: HttpRequest) -> Response:
        body = await read_body(request, ChatBody, max_bytes=self._service.settings.max_body_bytes)
        chat = await prepare(self._service, body, Asked.of(request, "chatcmpl-"))
        if body.stream:
            return EventStream(_stream(chat))
        return WholeAnswer(lambda: _complete(chat))


async def prepare(service: Service, body: ChatBody, asked: Asked) -> Chat:
    """The prompt and the sampling of a body; raises ApiError where it breaks a rule."""
    service.check_model(body.model)
    bounds = service.bounds
    use = ToolUse.of(body)
    grammar = await grammar_of(service.grammars, body, use)
    prompt = await encode_chat(service.text, body, use, max_tokens=bounds.max_sequence_tokens)
    wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    max_tokens = room(len(prompt), wanted, bounds, param="messages")
    num_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    sampling = make_sampling(body, bounds, max_tokens=max_tokens, num_logprobs=num_logprobs, grammar=grammar)
    ids = (service.text.vocabulary.id_of(marker) for marker in MARKERS) if use.tools else ()
    tasks = service.tasks(asked, body, [prompt], [sampling], show=[token for token in ids if token is not None])
    return Chat(service=service, asked=asked, body=body, use=use, tasks=tasks, grammar=grammar)


async def _complete(chat: Chat) -> bytes:
    wholes = await whole(chat.service.backend, chat.tasks)
    usage = chat.usage
    usage.add_all(wholes)
    data = {
        "id": chat.asked.id,
        "object": "chat.completion",
        "created": chat.asked.created_s,
        "model": chat.service.model_name,
        "choices": [_choice(chat, index, done) for index, done in enumerate(wholes)],
        "usage": usage.to_data(),
    }
    return to_json(data)


def _choice(chat: Chat, index: int, done: Whole) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": done.text, "refusal": None}
    finish = done.finish
    if (content_calls := split_calls(chat, done.text)) is not None:
        content, calls = content_calls
        message["content"] = content
        if calls:
            message |= {"content": content or None, "tool_calls": calls}
            finish = "tool_calls" if finish == "stop" else finish
    return {"index": index, "message": message, "logprobs": chat.logprobs(done.written), "finish_reason": finish, "stop_reason": done.stop_reason}


def split_calls(chat: Chat, text: str) -> tuple[str, list[dict[str, Any]]] | None:
    """An answer's text and its calls; None where no tools may be called."""
    if (parser := chat.parser()) is None:
        return None
    parsed = parser.read(text, last=True)
    calls: list[dict[str, Any]] = []
    for delta in parsed.calls:
        if delta.name is not None:
            calls.append({"id": delta.id, "type": "function", "function": {"name": delta.name, "arguments": delta.arguments}})
        else:
            calls[delta.index]["function"]["arguments"] += delta.arguments
    return parsed.content, calls


@dataclass(slots=True)
class _Chunks:
    """The chunks of one stream: what is the same in all of them is written once."""

    chat: Chat
    parsers: list[ToolParser | None] = field(default_factory=list)
    head: bytes = b""
    tail: bytes = b""

    def __post_init__(self) -> None:
        asked, service = self.chat.asked, self.chat.service
        self.parsers = [self.chat.parser() for _ in self.chat.tasks]
        same = {"id": asked.id, "object": "chat.completion.chunk", "created": asked.created_s, "model": service.model_name}
        self.head = b"data: " + to_json(same)[:-1] + b',"choices":['
        self.tail = b'],"usage":null}\n\n' if self.chat.body.wants_usage else b"]}\n\n"

    def chunk(self, index: int, delta: dict[str, Any], *, logprobs: dict[str, Any] | None = None, end: Piece | None = None, finish: str | None = None) -> bytes:
        logged = b"null" if logprobs is None else to_json(logprobs)
        ended = b"null" if finish is None else to_json(finish) + b',"stop_reason":' + to_json(end.stop_reason if end else None)
        return b'%b{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b}%b' % (self.head, index, to_json(delta), logged, ended, self.tail)

    def usage(self, usage: Usage) -> bytes:
        return self.head + b'],"usage":' + to_json(usage.to_data()) + b"}\n\n"

    def of_piece(self, index: int, piece: Piece) -> bytes:
        """All that one piece has to say, perhaps nothing."""
        parsed = self._parse(index, piece)
        logprobs = self.chat.logprobs(piece.written) if piece.written else None
        out = b""
        if parsed.content or logprobs is not None:
            out += self.chunk(index, {"content": parsed.content}, logprobs=logprobs)
        for call in parsed.calls:
            out += self.chunk(index, {"tool_calls": [_call_delta(call)]})
        if piece.finish is not None:
            out += self.chunk(index, {}, end=piece, finish=self._finish(index, piece.finish))
        return out

    def _parse(self, index: int, piece: Piece) -> Parsed:
        parser = self.parsers[index]
        return Parsed(piece.text) if parser is None else parser.read(piece.text, last=piece.finish is not None)

    def _finish(self, index: int, finish: str) -> str:
        parser = self.parsers[index]
        return "tool_calls" if finish == "stop" and parser is not None and parser.num_calls else finish


def _call_delta(call: CallDelta) -> dict[str, Any]:
    if call.name is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    return {"index": call.index, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


async def _stream(chat: Chat) -> AsyncGenerator[bytes, None]:
    chunks, usage = _Chunks(chat), chat.usage
    begun: set[int] = set()
    async with aclosing(answers(chat.service.backend, chat.tasks)) as pieces:
        async for index, piece in pieces:
            usage.add(index, piece.num_tokens, piece.num_cached_tokens)
            data = chunks.of_piece(index, piece)
            if index not in begun:
                begun.add(index)
                data = chunks.chunk(index, {"role": "assistant", "content": ""}) + data
            if data:
                yield data
    yield (chunks.usage(usage) if chat.body.wants_usage else b"") + DONE
