"""What the engine takes, and words for what it does not."""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np

from colossus.serve.lookup import Drafter
from colossus.serve.options import EngineOptions
from colossus.serve.programs import NUM_TOP
from colossus.serve.request import Request, Sampling
from colossus.serve.sequence import MAX_BIASES, MAX_STOPS, Level, Purpose, Sequence, level_of
from colossus.spec.errors import ColossusError


class Refused(ColossusError):
    """A request that the engine cannot serve; its words go to its client."""


class Intake:
    """Makes a sequence of each request."""

    def __init__(self, model: Any, options: EngineOptions, max_sequence_tokens: int) -> None:
        self._model, self._options, self._max_sequence_tokens = model, options, max_sequence_tokens
        self._num_arrivals = 0
        self._grammars: Any = None

    def sequence(self, request: Request) -> Sequence:
        """Raises Refused."""
        self._check(request)
        purpose = _purpose(request)
        num_prompt = len(request.prompt)
        limit = num_prompt if request.embed else min(num_prompt + request.sampling.max_tokens, self._max_sequence_tokens)
        tokens = np.zeros(limit, np.int32)
        tokens[:num_prompt] = request.prompt
        self._num_arrivals += 1
        sequence = Sequence(
            request=request,
            number=self._num_arrivals,
            tokens=tokens,
            num_known=num_prompt,
            num_prompt=num_prompt,
            limit=limit,
            level=level_of(request),
            purpose=purpose,
            stops=frozenset(request.sampling.stop_token_ids),
        )
        if request.sampling.grammar is not None:
            sequence.matcher = self._matcher(request.sampling.grammar)
        if self._options.num_draft_tokens and not request.embed and sequence.level is Level.PLAIN:
            sequence.drafter = Drafter(self._options.num_draft_tokens)
            sequence.drafter.extend(list(request.prompt))
        return sequence

    def _matcher(self, grammar: str) -> Any:
        from colossus.serve.grammar import Grammars

        if self._grammars is None:
            self._grammars = Grammars(self._model)
        try:
            return self._grammars.compile(grammar)
        except ColossusError as error:
            raise Refused(str(error)) from error

    def _check(self, request: Request) -> None:
        num_prompt, most = len(request.prompt), self._max_sequence_tokens
        vocab_size = self._model.card.vocab_size
        if not num_prompt:
            raise Refused("the prompt has no tokens; give at least one")
        needed = num_prompt + (not request.embed and request.sampling.max_tokens > 0)
        if needed > most:
            raise Refused(f"the prompt has {num_prompt} tokens; prompt and answer together may have {most}")
        if not 0 <= min(request.prompt) <= max(request.prompt) < vocab_size:
            raise Refused(f"the prompt has tokens outside the vocabulary; they must be from 0 to {vocab_size - 1}")
        for value, rule, good in _rules(request.sampling, vocab_size):
            if not good:
                raise Refused(f"{rule}; given {value}")


def _rules(sampling: Sampling, vocab_size: int) -> list[tuple[Any, str, bool]]:
    tops = (sampling.num_logprobs or 0, sampling.num_prompt_logprobs or 0)
    biased, stops = sampling.logit_bias, sampling.stop_token_ids
    numbers = (sampling.presence_penalty, sampling.frequency_penalty, *biased.values())
    return [
        (sampling.max_tokens, "max_tokens must be 0 or more", sampling.max_tokens >= 0),
        (sampling.temperature, "temperature must be 0 or more", 0 <= sampling.temperature < float("inf")),
        (sampling.top_k, "top_k must be 1 or more", sampling.top_k is None or sampling.top_k >= 1),
        (sampling.top_p, "top_p must be above 0 and at most 1", sampling.top_p is None or 0 < sampling.top_p <= 1),
        (sampling.min_p, "min_p must be from 0 to 1", sampling.min_p is None or 0 <= sampling.min_p <= 1),
        (sampling.repetition_penalty, "repetition_penalty must be above 0", 0 < sampling.repetition_penalty < float("inf")),
        (sampling.seed, "seed must be from 0 to 4294967295", 0 <= sampling.seed < 2**32),
        (max(tops), f"log-probabilities of at most {NUM_TOP} likeliest tokens can be had", min(tops) >= 0 and max(tops) <= NUM_TOP),
        (len(biased), f"logit_bias may have at most {MAX_BIASES} entries", len(biased) <= MAX_BIASES),
        (list(numbers), "penalties and biases must be finite numbers", all(map(isfinite, numbers))),
        (sorted(biased)[:3], f"logit_bias names tokens from 0 to {vocab_size - 1}", all(0 <= token < vocab_size for token in biased)),
        (sampling.min_tokens, "min_tokens must be from 0 to max_tokens", 0 <= sampling.min_tokens <= sampling.max_tokens),
        (stops[:3], f"stop tokens must be from 0 to {vocab_size - 1}", all(0 <= token < vocab_size for token in stops)),
        (len(stops), f"at most {MAX_STOPS} stop tokens can be given", len(stops) <= MAX_STOPS),
    ]


def _purpose(request: Request) -> Purpose:
    if request.embed:
        return Purpose.EMBED
    scored = request.sampling.num_prompt_logprobs is not None and len(request.prompt) > 1
    return Purpose.SCORE if scored else Purpose.ANSWER
