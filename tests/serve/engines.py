"""Real engines on tiny models, compiled in a hurry, and what their answers are held against."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import numpy as np

from colossus.nn.decoder import forward
from colossus.nn.paged import page_bytes
from colossus.serve import programs
from colossus.serve.compiling import ProgramStore
from colossus.serve.engine import Engine
from colossus.serve.options import EngineOptions
from colossus.serve.request import Output, Request, Sampling
from colossus.spec.model import ModelCard
from tests.nn.decoders import QUICK
from tests.serve.models import TinyModel, params_of


class _HurriedStore(ProgramStore):
    """Spends little time in the compiler, and keeps what it made apart from what users run."""

    def __init__(self, mark: str, devices: Any) -> None:
        super().__init__(f"hurried {mark}", devices)

    def get_or_make(self, name: str, lower: Callable[[], Any]) -> Any:
        return super().get_or_make(name, lambda: SimpleNamespace(compile=partial(lower().compile, compiler_options=QUICK)))


@cache
def engine_for(card: ModelCard, **options: Any) -> Engine:
    """Warm, and shared by the tests that ask for the same one: each must leave it empty."""
    return hurried(TinyModel("tiny", card), **options)


def hurried(model: Any, *, num_pages: int = 40, **options: Any) -> Engine:
    """A warm engine with a small cache."""
    kv_bytes = (num_pages + 1) * page_bytes(model.card, options.get("cache", "float32"))
    # 112 tokens and 8 fused ones are 8 pages: one size of page tables, so few programs.
    chosen = {"max_running": 4, "max_step_tokens": 24, "max_sequence_tokens": 112, "kv_bytes": kv_bytes} | options
    with mock.patch.object(programs, "ProgramStore", _HurriedStore):
        engine = Engine(model, EngineOptions(model=Path("tiny"), **chosen))
        engine.warm_up(lambda words: None)
    return engine


def ask(name: str, prompt: Any, **sampling: Any) -> Request:
    return Request(id=name, prompt=tuple(int(token) for token in prompt), sampling=Sampling(**({"max_tokens": 12, "temperature": 0.0} | sampling)))


def run(engine: Engine, *requests: Request, every: int = 0) -> dict[str, list[Output]]:
    """All outputs; a request joins every so many steps. Nothing is compiled, and nothing is left behind."""
    num_compilations = engine.stats().num_compilations
    waiting, outputs, step = list(requests), {request.id: [] for request in requests}, 0
    while waiting or engine.has_work:
        while waiting and (not every or step % every == 0):
            engine.add(waiting.pop(0))
            if every:
                break
        for output in engine.step():
            outputs[output.id].append(output)
        step += 1
        assert step < 3000, "the engine does not end"
    stats = engine.stats()
    assert (stats.num_used_pages, stats.num_running, stats.num_waiting) == (0, 0, 0)
    assert stats.num_compilations == num_compilations
    return outputs


def tokens_of(outputs: list[Output]) -> list[int]:
    assert outputs[-1].error is None, outputs[-1].error
    return [token for output in outputs for token in output.tokens]


@cache
def _forward(card: ModelCard) -> Any:
    return jax.jit(partial(forward, card=card), compiler_options=QUICK)


def logits_of(card: ModelCard, tokens: list[int] | tuple[int, ...]) -> np.ndarray:
    """(T, V) of the whole network, padded to one length: later tokens change nothing before them."""
    padded = np.zeros((1, card.max_sequence_tokens), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(_forward(card)(params_of(card), padded))[0, : len(tokens)]


def is_greedy(card: ModelCard, prompt: tuple[int, ...], answer: list[int]) -> bool:
    """Whether each token of the answer is the likeliest after all before it."""
    logits_tv = logits_of(card, [*prompt, *answer])
    return logits_tv[len(prompt) - 1 : -1].argmax(-1).tolist() == answer
