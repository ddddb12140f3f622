"""POST /v1/completions: texts or tokens in, what follows them out, whole or as it is written."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from colossus.serve.api.body import read_body
from colossus.serve.api.errors import MARK, ApiError, to_json
from colossus.serve.api.fields import TEXT, Drawing, TokenId, refused
from colossus.serve.api.forms import grammar_of
from colossus.serve.api.generation import Piece, Task, Whole, answers, whole
from colossus.serve.api.logprobs import CompletionLogprobs
from colossus.serve.api.sampling import check_tokens, make_sampling, room
from colossus.serve.api.sending import DONE, EventStream, WholeAnswer
from colossus.serve.api.service import Asked, Service
from colossus.serve.api.text import off_loop
from colossus.serve.api.usage import Usage
from colossus.serve.request import TokenLogprob

_DEFAULT_TOKENS = 16  # OpenAI's for this path


def prompt_kind(value: Any) -> str:
    """Which of text, texts, tokens, lists of tokens a prompt is, by its first entry."""
    if not isinstance(value, list):
        return TEXT
    first = value[0] if value else None
    return MARK + ("batch" if isinstance(first, list) else "tokens" if isinstance(first, int) else "texts")


def _is_one(prompt: str | list[Any]) -> bool:
    return isinstance(prompt, str) or isinstance(prompt[0], int)


def num_texts(prompt: str | list[Any]) -> int:
    """How many prompts a body's field holds."""
    return 1 if _is_one(prompt) else len(prompt)


Tokens = Annotated[list[TokenId], Field(min_length=1)]
Prompt = Annotated[
    Annotated[str, Tag(TEXT)]
    | Annotated[list[str], Tag(MARK + "texts"), Field(min_length=1)]
    | Annotated[Tokens, Tag(MARK + "tokens")]
    | Annotated[list[Tokens], Tag(MARK + "batch"), Field(min_length=1)],
    Discriminator(prompt_kind),
]


class CompletionBody(Drawing):
    prompt: Prompt
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None
    suffix: Annotated[None, refused("is not offered: the model only goes on from the end of a text", but=("",))] = None

    @model_validator(mode="after")
    def _check_echo(self) -> CompletionBody:
        if self.max_tokens == 0 and not self.echo:
            raise ApiError("max_tokens = 0 is only for echo = true", param="max_tokens")
        return self


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A completions request, checked and ready to run."""

    service: Service
    asked: Asked
    body: CompletionBody
    prompts: list[list[int]]
    tasks: list[Task]

    @property
    def num_choices(self) -> int:
        return self.body.n or 1

    @property
    def lister(self) -> CompletionLogprobs | None:
        """Lists logprobs, where they are asked for."""
        return None if self.body.logprobs is None else CompletionLogprobs(self.service.text.vocabulary, self.body.logprobs)

    def echoed(self, index: int) -> str:
        """The prompt of answer ``index`` as text, where it is to be echoed."""
        return self.service.text.decode(self.prompts[index // self.num_choices]) if self.body.echo else ""


class CompletionsEndpoint:
    """The path's handler."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def handle(self, request: HttpRequest) -> Response:
        body = await read_body(request, CompletionBody, max_bytes=self._service.settings.max_body_bytes)
        completion = await prepare(self._service, body, Asked.of(request, "cmpl-"))
        if body.stream:
            return EventStream(_stream(completion))
        return WholeAnswer(lambda: _complete(completion))


async def prepare(service: Service, body: CompletionBody, asked: Asked) -> Completion:
    """The prompts and the sampling of a body; raises ApiError where it breaks a rule."""
    service.check_model(body.model)
    bounds = service.bounds
    service.check_choices(body, num_texts(body.prompt))
    grammar = await grammar_of(service.grammars, body)
    prompts = await encode_prompts(service, body.prompt, add_special_tokens=body.add_special_tokens is not False)
    samplings = []
    for prompt in prompts:
        check_tokens(prompt, bounds, "prompt")
        max_tokens = room(len(prompt), _DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens, bounds, param="prompt")
        sampling = make_sampling(body, bounds, max_tokens=max_tokens, num_logprobs=body.logprobs, grammar=grammar)
        samplings.append(replace(sampling, num_prompt_logprobs=body.logprobs) if body.echo else sampling)
    tasks = service.tasks(asked, body, prompts, samplings, silent=body.max_tokens == 0)
    return Completion(service=service, asked=asked, body=body, prompts=prompts, tasks=tasks)


async def encode_prompts(
    service: Service, prompt: str | list[str] | list[int] | list[list[int]], *, add_special_tokens: bool, param: str = "prompt"
) -> list[list[int]]:
    """Every prompt of a body as tokens; those given as tokens are taken as they are."""
    entries: Sequence[Any] = [prompt] if _is_one(prompt) else prompt
    if entries and not isinstance(entries[0], str):
        return [list(tokens) for tokens in entries]
    text = service.text
    for entry in entries:
        text.check_length(entry, service.bounds.max_sequence_tokens, param)
    encoded = await off_loop(sum(map(len, entries)), lambda: [text.encode(entry, add_special_tokens=add_special_tokens) for entry in entries])
    if not all(encoded):
        raise ApiError(f"{param}: an empty text has no tokens, and this model begins no text by itself: write something", param=param)
    return encoded


async def _complete(completion: Completion) -> bytes:
    wholes = await whole(completion.service.backend, completion.tasks)
    usage = Usage(completion.tasks, completion.num_choices)
    usage.add_all(wholes)
    data = {
        "id": completion.asked.id,
        "object": "text_completion",
        "created": completion.asked.created_s,
        "model": completion.service.model_name,
        "choices": [_choice(completion, index, done) for index, done in enumerate(wholes)],
        "usage": usage.to_data(),
    }
    return to_json(data)


def _choice(completion: Completion, index: int, done: Whole) -> dict[str, Any]:
    echoed = completion.echoed(index)
    logprobs = None
    if (lister := completion.lister) is not None:
        logprobs = lister.of_answer(done.written, len(echoed))
        if completion.body.echo:
            logprobs = joined(_of_prompt(completion, index, done.prompt_logprobs or ()), logprobs)
    return {"index": index, "text": echoed + done.text, "logprobs": logprobs, "finish_reason": done.finish, "stop_reason": done.stop_reason}


def _of_prompt(completion: Completion, index: int, entries: Sequence[TokenLogprob]) -> dict[str, list[Any]]:
    lister = completion.lister
    assert lister is not None
    prompt = completion.prompts[index // completion.num_choices]
    return lister.of_prompt(prompt, entries, completion.service.text.offsets(prompt))


def joined(first: dict[str, list[Any]], then: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Lists of the prompt, then of the answer."""
    return {name: first[name] + then[name] for name in first}


async def _stream(completion: Completion) -> AsyncGenerator[bytes, None]:
    usage = Usage(completion.tasks, completion.num_choices)
    offsets: dict[int, int] = {}
    head, tail = _frame(completion)
    async with aclosing(answers(completion.service.backend, completion.tasks)) as pieces:
        async for index, piece in pieces:
            usage.add(index, piece.num_tokens, piece.num_cached_tokens)
            first = index not in offsets
            echoed = completion.echoed(index) if first else ""
            if first:
                offsets[index] = len(echoed)
            if data := _chunk(completion, index, piece, echoed, offsets[index]):
                yield head + data + tail
    last = head + b'],"usage":' + to_json(usage.to_data()) + b"}\n\n" if completion.body.wants_usage else b""
    yield last + DONE


def _frame(completion: Completion) -> tuple[bytes, bytes]:
    """What stands around the choice in every chunk."""
    same = {
        "id": completion.asked.id,
        "object": "text_completion",
        "created": completion.asked.created_s,
        "model": completion.service.model_name,
    }
    return b"data: " + to_json(same)[:-1] + b',"choices":[', b'],"usage":null}\n\n' if completion.body.wants_usage else b"]}\n\n"


def _chunk(completion: Completion, index: int, piece: Piece, echoed: str, offset: int) -> bytes:
    """The choice of one chunk; nothing where there is nothing to say."""
    lister, logprobs = completion.lister, None
    if lister is not None and piece.written:
        logprobs = lister.of_answer(piece.written, offset)
    if lister is not None and piece.prompt_logprobs is not None and completion.body.echo:
        before = _of_prompt(completion, index, piece.prompt_logprobs)
        logprobs = before if logprobs is None else joined(before, logprobs)
    text = echoed + piece.text
    if not text and logprobs is None and piece.finish is None:
        return b""
    return to_json({"index": index, "text": text, "logprobs": logprobs, "finish_reason": piece.finish, "stop_reason": piece.stop_reason})
