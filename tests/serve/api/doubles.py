"""A tiny tokenizer, a backend that says what a test tells it to, and a real HTTP server around them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import uvicorn
from starlette.applications import Starlette
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from colossus.serve.api.errors import HANDLERS
from colossus.serve.api.routes import routes
from colossus.serve.api.settings import ApiSettings
from colossus.serve.backend import EngineInfo
from colossus.serve.defaults import NO_DEFAULTS, DefaultSampling
from colossus.serve.request import EngineStats, Finish, Output, Request, TokenLogprob

NUM_UNUSED = 3  # rows of the embedding that are no token
TRAINED_ON = ["the quick brown fox jumps over the lazy dog and says hello world", "größe 東京 emoji 😀 stop END ### json {}"] * 4


def byte_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINED_ON, trainer)
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("</tool_call>", normalized=False)])
    return tokenizer


@dataclass(frozen=True, kw_only=True)
class TinyModel:
    name: str = "tiny"
    tokenizer: Tokenizer = field(default_factory=byte_tokenizer)
    chat_template: str | None = None
    bos: str | None = None
    eos: str | None = "<|im_end|>"
    bos_id: int | None = None
    end_ids: frozenset[int] = frozenset({0, 2})
    adds_bos: bool = False
    default_sampling: DefaultSampling = NO_DEFAULTS

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.get_vocab_size() + NUM_UNUSED

    @cached_property
    def tokenizer_json(self) -> str:
        return str(self.tokenizer.to_str())


Say = Callable[[Request], Sequence[int] | str | Exception]


@dataclass
class Scripted:
    """Says ``say(request)``, in outputs of ``per_output`` tokens; keeps what it was asked and what was given up."""

    tokenizer: Tokenizer
    say: Say = lambda request: "hello world"
    per_output: int = 1
    max_sequence_tokens: int = 1024
    pause_s: float = 0.0
    ends_with_stop_token: bool = True
    requests: list[Request] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    aborted: list[str] = field(default_factory=list)

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            model="tiny",
            max_sequence_tokens=self.max_sequence_tokens,
            vocab_size=self.tokenizer.get_vocab_size() + NUM_UNUSED,
            num_pages=8,
            page_tokens=16,
            weights="float32",
            cache="float32",
            cache_bytes=1 << 20,
            device="none",
            start_s=0.0,
            num_programs=0,
        )

    def stats(self) -> Sequence[EngineStats]:
        return ()

    async def submit(self, request: Request) -> AsyncIterator[Output]:
        said = self.say(request)
        if isinstance(said, Exception):
            raise said
        self.requests.append(request)
        self.running.add(request.id)
        done = False
        try:
            for output in self._outputs(request, self.tokenizer.encode(said).ids if isinstance(said, str) else list(said)):
                await asyncio.sleep(self.pause_s)
                done = output.finish is not None
                yield output
        finally:
            self.running.discard(request.id)
            if not done:
                self.aborted.append(request.id)

    def _outputs(self, request: Request, tokens: list[int]) -> Iterator[Output]:
        if request.embed:
            yield Output(id=request.id, embedding=(0.6, 0.8, 0.0), num_cached_tokens=0, finish=Finish.STOP)
            return
        sampling = request.sampling
        finish = Finish.LENGTH if len(tokens) >= sampling.max_tokens else Finish.STOP
        tokens = tokens[: sampling.max_tokens]
        if finish is Finish.STOP and self.ends_with_stop_token and sampling.stop_token_ids:
            tokens = [*tokens, sampling.stop_token_ids[-1]]
        for start in range(0, max(len(tokens), 1), self.per_output):
            part = tokens[start : start + self.per_output]
            last = start + self.per_output >= len(tokens)
            yield Output(
                id=request.id,
                tokens=tuple(part),
                logprobs=None if sampling.num_logprobs is None else tuple(map(logprob, part)),
                prompt_logprobs=tuple(map(logprob, request.prompt[1:])) if start == 0 and sampling.num_prompt_logprobs is not None else None,
                num_cached_tokens=3 if start == 0 else None,
                finish=finish if last else None,
            )


def logprob(token: int) -> TokenLogprob:
    return TokenLogprob(token=token, logprob=-0.5, rank=0, top=((token, -0.5), (65, -1.5), (66, float("-inf"))))


def app(backend: Scripted, model: TinyModel, settings: ApiSettings | None = None) -> Starlette:
    return Starlette(routes=routes(backend, model, settings), exception_handlers=HANDLERS)


@contextlib.contextmanager
def serving(application: Starlette) -> Iterator[str]:
    """Its address, while a server runs in a thread."""
    server = uvicorn.Server(uvicorn.Config(application, host="127.0.0.1", port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            threading.Event().wait(0.005)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


@dataclass(frozen=True)
class Reply:
    """A status, headers and what came with it."""

    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def data(self) -> Any:
        return json.loads(self.raw)


def send(url: str, body: object = None, *, method: str = "POST") -> Reply:
    """One request; bytes go as they are, all else as JSON."""
    raw = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data=raw, method=method, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=20) as answer:
            return Reply(answer.status, dict(answer.headers), answer.read())
    except urllib.error.HTTPError as error:
        return Reply(error.code, dict(error.headers), error.read())
