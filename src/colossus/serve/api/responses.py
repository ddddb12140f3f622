"""POST /v1/responses: the newer shape of a chat. Nothing is stored: each body carries its whole conversation."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from colossus.serve.api.body import read_body
from colossus.serve.api.chat import Chat, prepare, split_calls
from colossus.serve.api.errors import ApiError, to_json
from colossus.serve.api.generation import Piece, answers, whole
from colossus.serve.api.responses_body import ResponsesBody
from colossus.serve.api.sending import EventStream, WholeAnswer
from colossus.serve.api.service import Asked, Service
from colossus.serve.api.usage import Usage
from colossus.serve.tools import CallDelta, Parsed


class ResponsesEndpoint:
    """The path's handler."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def handle(self, request: HttpRequest) -> Response:
        body = await read_body(request, ResponsesBody, max_bytes=self._service.settings.max_body_bytes)
        chat = await prepare(self._service, body.as_chat(), Asked.of(request, "resp_"))
        if body.stream:
            events = _Events(body, chat)
            return EventStream(events.run(), on_error=events.fail)
        return WholeAnswer(lambda: _complete(body, chat))


async def _complete(body: ResponsesBody, chat: Chat) -> bytes:
    [done] = await whole(chat.service.backend, chat.tasks)
    usage = chat.usage
    usage.add_all([done])
    content, calls = split_calls(chat, done.text) or (done.text, [])
    output = [_call_item(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls]
    if content or not output:
        output.insert(0, _message_item(_new_id("msg_"), content, chat.logprobs(done.written)))
    return to_json(_response(body, chat, output=output, finish=done.finish, usage=usage))


def _response(body: ResponsesBody, chat: Chat, *, output: list[Any], finish: str | None = None, usage: Usage | None = None) -> dict[str, Any]:
    """The response as it stands: in progress without a ``finish``."""
    status = "in_progress" if finish is None else "incomplete" if finish == "length" else "completed"
    sampling = chat.tasks[0].request.sampling
    return {
        "id": chat.asked.id,
        "object": "response",
        "created_at": chat.asked.created_s,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": chat.service.model_name,
        "output": output,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "store": False,
        "temperature": sampling.temperature,
        "text": {"format": {"type": "text"} if body.text is None or body.text.format is None else _dumped(body.text.format)},
        "tool_choice": _dumped(body.tool_choice) if body.tool_choice is not None else "auto",
        "tools": [_dumped(tool) for tool in body.tools or ()],
        "top_p": body.top_p if body.top_p is not None else sampling.top_p or 1.0,
        "truncation": "disabled",
        "usage": None if usage is None else _usage(usage),
        "user": body.user,
    }


def _dumped(value: Any) -> Any:
    return value if isinstance(value, str) else value.model_dump(by_alias=True, exclude_none=True)


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.num_prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.num_cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.num_answer_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.num_prompt_tokens + usage.num_answer_tokens,
    }


def _new_id(prefix: str) -> str:
    return prefix + secrets.token_hex(12)


def _part(text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": (logprobs or {}).get("content", [])}


def _message_item(item_id: str, text: str | None, logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
    """A message; one that has only begun is without text."""
    content = [] if text is None else [_part(text, logprobs)]
    return {"id": item_id, "type": "message", "role": "assistant", "status": "in_progress" if text is None else "completed", "content": content}


def _call_item(call_id: str, name: str, arguments: str, *, item_id: str | None = None, status: str = "completed") -> dict[str, Any]:
    return {"id": item_id or _new_id("fc_"), "type": "function_call", "call_id": call_id, "name": name, "arguments": arguments, "status": status}


class _Events:
    """The events of one streamed response, numbered; at most one item is open at a time."""

    def __init__(self, body: ResponsesBody, chat: Chat) -> None:
        self._body, self._chat = body, chat
        self._parser = chat.parser()
        self._number = 0
        self._output: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._text = ""
        self._logprobs: list[Any] = []

    async def run(self) -> AsyncGenerator[bytes, None]:
        usage = self._chat.usage
        begun = False
        async with aclosing(answers(self._chat.service.backend, self._chat.tasks)) as pieces:
            async for _, piece in pieces:
                usage.add(0, piece.num_tokens, piece.num_cached_tokens)
                data = b"" if begun else self._begin()
                begun = True
                data += self._of_piece(piece)
                if piece.finish is not None:
                    data += self._end(piece.finish, usage)
                if data:
                    yield data

    def fail(self, error: ApiError) -> bytes:
        """What ends a stream that cannot go on."""
        response = _response(self._body, self._chat, output=self._output) | {"status": "failed", "error": {"code": "server_error", "message": str(error)}}
        return self._event("response.failed", response=response)

    def _begin(self) -> bytes:
        response = _response(self._body, self._chat, output=[])
        return self._event("response.created", response=response) + self._event("response.in_progress", response=response)

    def _end(self, finish: str, usage: Usage) -> bytes:
        data = self._close()
        if not self._output:
            data += self._open_message() + self._close()
        response = _response(self._body, self._chat, output=self._output, finish=finish, usage=usage)
        return data + self._event(f"response.{response['status']}", response=response)

    def _of_piece(self, piece: Piece) -> bytes:
        parsed = self._parse(piece)
        logprobs = (self._chat.logprobs(piece.written) or {}).get("content", []) if piece.written else []
        data = self._of_text(parsed.content, logprobs) if parsed.content else b""
        for call in parsed.calls:
            data += self._of_call(call)
        return data

    def _parse(self, piece: Piece) -> Parsed:
        if self._parser is None:
            return Parsed(piece.text)
        return self._parser.read(piece.text, last=piece.finish is not None)

    def _of_text(self, text: str, logprobs: list[Any]) -> bytes:
        data = b""
        if self._open is None or self._open["type"] != "message":
            data = self._close() + self._open_message()
        self._text += text
        self._logprobs += logprobs
        return data + self._event("response.output_text.delta", **self._place(), delta=text, logprobs=logprobs)

    def _of_call(self, call: CallDelta) -> bytes:
        data = b""
        if call.name is not None:
            data = self._close()
            self._open = _call_item(call.id or "", call.name, "", status="in_progress")
            self._text = ""
            data += self._event("response.output_item.added", output_index=len(self._output), item=self._open)
        self._text += call.arguments
        return data + self._event("response.function_call_arguments.delta", **self._place(), delta=call.arguments)

    def _open_message(self) -> bytes:
        self._open, self._text, self._logprobs = _message_item(_new_id("msg_"), None), "", []
        added = self._event("response.output_item.added", output_index=len(self._output), item=self._open)
        return added + self._event("response.content_part.added", **self._place(), part=_part("", None))

    def _close(self) -> bytes:
        """Ends the open item, if there is one."""
        if self._open is None:
            return b""
        if self._open["type"] == "message":
            logprobs = {"content": self._logprobs}
            done = self._event("response.output_text.done", **self._place(), text=self._text, logprobs=self._logprobs)
            done += self._event("response.content_part.done", **self._place(), part=_part(self._text, logprobs))
            item = _message_item(self._open["id"], self._text, logprobs)
        else:
            done = self._event("response.function_call_arguments.done", **self._place(), name=self._open["name"], arguments=self._text)
            item = self._open | {"arguments": self._text, "status": "completed"}
        done += self._event("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)
        self._open = None
        return done

    def _place(self) -> dict[str, Any]:
        assert self._open is not None
        place = {"item_id": self._open["id"], "output_index": len(self._output)}
        return place | {"content_index": 0} if self._open["type"] == "message" else place

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = to_json({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)
