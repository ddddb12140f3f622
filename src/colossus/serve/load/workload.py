"""What is asked of a server: how long prompts and answers are, and when requests arrive."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum


class Distribution(StrEnum):
    """Of lengths about their mean."""

    FIXED = "fixed"
    UNIFORM = "uniform"  # between half and one and a half of the mean
    LOGNORMAL = "lognormal"  # as lengths of conversations are, roughly


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """One request to make.

    :param at_s: its arrival after the start; None where a client sends it when it is free.
    :param shared_tokens: of the prompt, the same as in all others.
    :param blocks: identities of the prompt's parts of ``block_tokens``, as some traces give them: equal identities, equal tokens.
    """

    number: int
    prompt_tokens: int
    output_tokens: int
    at_s: float | None = None
    shared_tokens: int = 0
    blocks: tuple[int, ...] = ()
    block_tokens: int = 512


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Of prompts and answers, in tokens."""

    prompt_tokens: int = 128
    output_tokens: int = 128
    distribution: Distribution = Distribution.FIXED
    sigma: float = 0.8  # of the logarithm, with LOGNORMAL
    shared_tokens: int = 0

    def words(self) -> str:
        shape = f", lognormal with sigma {self.sigma:g}" if self.distribution is Distribution.LOGNORMAL else f", {self.distribution.value}"
        shared = f", the first {self.shared_tokens} tokens shared by all" if self.shared_tokens else ""
        return f"prompts of {self.prompt_tokens} tokens, answers of {self.output_tokens}{shape}{shared}"


def make_asks(lengths: Lengths, num_requests: int, seed: int) -> list[Ask]:
    """So many requests without arrival times; the same for the same seed."""
    chance = random.Random(f"{seed} lengths")
    asks = []
    for number in range(num_requests):
        prompt, output = (_drawn(mean, lengths, chance) for mean in (lengths.prompt_tokens, lengths.output_tokens))
        shared = min(lengths.shared_tokens, prompt)
        asks.append(Ask(number=number, prompt_tokens=prompt, output_tokens=output, shared_tokens=shared))
    return asks


def _drawn(mean: int, lengths: Lengths, chance: random.Random) -> int:
    match lengths.distribution:
        case Distribution.FIXED:
            return mean
        case Distribution.UNIFORM:
            return chance.randint(max(1, math.ceil(mean / 2)), max(1, math.floor(mean * 1.5)))
        case Distribution.LOGNORMAL:
            return max(1, round(chance.lognormvariate(math.log(mean) - lengths.sigma**2 / 2, lengths.sigma)))


def poisson(asks: Sequence[Ask], requests_per_s: float, seed: int) -> list[Ask]:
    """Arrivals without memory: gaps are exponential with mean ``1 / requests_per_s``."""
    chance, at_s, placed = random.Random(f"{seed} arrivals"), 0.0, []
    for ask in asks:
        placed.append(replace(ask, at_s=at_s))
        at_s += chance.expovariate(requests_per_s)
    return placed


def numbered(asks: Sequence[Ask], first: int) -> list[Ask]:
    """With numbers of their own, so that loads of one test share no prompts but those that are meant to be shared."""
    return [replace(ask, number=first + number) for number, ask in enumerate(asks)]


def unplaced(asks: Sequence[Ask]) -> list[Ask]:
    """Without arrival times: clients take them one after another."""
    return [replace(ask, at_s=None) for ask in asks]


def scaled(asks: Sequence[Ask], *, time_factor: float = 1.0, length_factor: float = 1.0, max_sequence_tokens: int | None = None) -> list[Ask]:
    """Arrivals ``time_factor`` times as far apart, lengths ``length_factor`` times as long; answers, then prompts, cut to what the server takes."""
    return [_scaled(ask, time_factor, length_factor, max_sequence_tokens) for ask in asks]


def _scaled(ask: Ask, time_factor: float, length_factor: float, most: int | None) -> Ask:
    prompt, output = (max(1, round(tokens * length_factor)) for tokens in (ask.prompt_tokens, ask.output_tokens))
    if most is not None and prompt + output > most:
        output = max(1, min(output, most // 2))
        prompt = max(1, min(prompt, most - output))
    return replace(
        ask,
        at_s=None if ask.at_s is None else ask.at_s * time_factor,
        prompt_tokens=prompt,
        output_tokens=output,
        shared_tokens=min(ask.shared_tokens, prompt),
        block_tokens=max(1, round(ask.block_tokens * length_factor)),
    )
