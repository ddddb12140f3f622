"""From a body's fields to how the engine draws: defaults, seeds of n answers, stop tokens, and the room that the context leaves."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, replace
from typing import Any

from colossus.serve.api.errors import ApiError
from colossus.serve.api.fields import Drawing
from colossus.serve.defaults import NO_DEFAULTS, DefaultSampling
from colossus.serve.request import Sampling


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What limits every request to one model, and how it draws where a request says nothing."""

    max_sequence_tokens: int
    vocab_size: int
    end_ids: frozenset[int]
    default: DefaultSampling = NO_DEFAULTS


def make_sampling(body: Drawing, bounds: Bounds, *, max_tokens: int, num_logprobs: int | None, grammar: str | None) -> Sampling:
    """The sampling of a body's first answer."""
    _check_ids(body, bounds)
    if body.min_tokens is not None and body.min_tokens > max_tokens:
        raise ApiError(f"min_tokens {body.min_tokens} is more than the {max_tokens} tokens that the answer may have", param="min_tokens")
    ends = () if body.ignore_eos else sorted(bounds.end_ids)
    return Sampling(
        max_tokens=max(1, max_tokens),
        **_cuts(body, bounds.default),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=body.repetition_penalty or 1.0,
        logit_bias={int(token): value for token, value in (body.logit_bias or {}).items()},
        seed=secrets.randbits(32) if body.seed is None else body.seed % 2**32,
        num_logprobs=num_logprobs,
        stop_token_ids=tuple(dict.fromkeys([*ends, *(body.stop_token_ids or ())])),
        min_tokens=body.min_tokens or 0,
        grammar=grammar,
    )


def _cuts(body: Drawing, default: DefaultSampling) -> dict[str, Any]:
    """Temperature and what is left of the likeliest: the body's, else the model's own; OpenAI allows top_p = 0, which keeps one token."""
    temperature = default.temperature if body.temperature is None else body.temperature
    top_p = default.top_p if body.top_p is None else body.top_p
    top_k = default.top_k if body.top_k is None else body.top_k
    greedy = top_p == 0
    return {
        "temperature": 1.0 if temperature is None else temperature,
        "top_k": 1 if greedy else top_k if top_k is not None and top_k > 0 else None,
        "top_p": None if greedy or top_p == 1 else top_p,
        "min_p": body.min_p or None,
    }


def _check_ids(body: Drawing, bounds: Bounds) -> None:
    named = {"logit_bias": [int(token) for token in body.logit_bias or {}], "stop_token_ids": body.stop_token_ids or []}
    for param, tokens in named.items():
        check_tokens(tokens, bounds, param)


def check_tokens(tokens: list[int], bounds: Bounds, param: str) -> None:
    """All are tokens of the model."""
    if tokens and (worst := max(tokens)) >= bounds.vocab_size:
        raise ApiError(f"{param}: {worst} is no token; the model's go from 0 to {bounds.vocab_size - 1}", param=param)


def of_choice(sampling: Sampling, index: int) -> Sampling:
    """The sampling of answer ``index`` of n: the first keeps the seed, so that it is the answer to n = 1."""
    if index == 0:
        return sampling
    digest = hashlib.blake2b(f"{sampling.seed}:{index}".encode(), digest_size=4).digest()
    return replace(sampling, seed=int.from_bytes(digest, "big"))


def room(num_prompt_tokens: int, wanted: int | None, bounds: Bounds, *, param: str) -> int:
    """Tokens that an answer may have: those asked for, or all that the context leaves. Raises where they do not fit."""
    left = bounds.max_sequence_tokens - num_prompt_tokens
    if left < 1:
        words = f"the prompt has {num_prompt_tokens} tokens, and with an answer the model takes at most {bounds.max_sequence_tokens}: shorten it"
        raise ApiError(words, param=param, code="context_length_exceeded")
    if wanted is not None and wanted > left:
        words = f"{num_prompt_tokens} tokens of prompt and {wanted} of answer are more than the model's {bounds.max_sequence_tokens}: ask for at most {left}"
        raise ApiError(words, param=param, code="context_length_exceeded")
    return left if wanted is None else wanted
