"""What flows between the door (HTTP, text) and an engine (tokens): requests in, outputs back, and their form on a socket."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self


class Finish(StrEnum):
    """Why a request ended."""

    STOP = "stop"  # a stop token
    LENGTH = "length"  # max_tokens, or the model's context
    ABORT = "abort"  # its client left, or the door ended it (a stop string, a timeout)
    ERROR = "error"  # the engine could not go on with it; see ``Output.error``


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are drawn, and when to stop.

    In this order: penalties, bias and grammar change the logits; temperature divides them; then top_k, top_p, min_p cut.
    The noise of the token at place p depends on (seed, p) alone, so neither neighbours, nor preemption, nor speculation change an answer.

    :param temperature: 0 takes the likeliest token.
    :param top_k: keep the k likeliest; None keeps all.
    :param top_p: keep the fewest likeliest that hold this probability (Holtzman et al. 2019); None keeps all.
    :param min_p: keep those with at least this share of the likeliest one's probability (Nguyen et al. 2024).
    :param presence_penalty: taken off the logit of each token already in the answer (OpenAI).
    :param frequency_penalty: the same, times its count.
    :param repetition_penalty: divides positive logits, multiplies negative ones, of tokens in prompt or answer (Keskar et al. 2019).
    :param logit_bias: added to the logits of these tokens.
    :param num_logprobs: None for none; else of the drawn token and of this many likeliest. They are those of the model's own logits,
        before anything here changes them.
    :param num_prompt_logprobs: the same for each token of the prompt but the first.
    :param stop_token_ids: tokens that end the answer, the model's own end tokens included; counted with it, and no part of its text.
    :param min_tokens: before which no stop token may be drawn.
    :param grammar: an llguidance grammar (its JSON form) that the answer must follow; None for free text.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0  # 0 .. 2**32 - 1
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    grammar: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One prompt for one answer, or for one embedding. ``n`` answers are ``n`` requests, whose prompt the prefix cache shares.

    :param owner: whose it is (an API key's name), for fair shares.
    :param priority: smaller goes first, where the policy looks at it.
    :param cache_salt: requests share cached prefixes only with the same salt.
    :param arrival_s: when it came, on the clock of ``time.time``.
    :param shares_prompt: another answer to the prompt of a request beside it, which is counted there.
    :param embed: wants the mean of the last hidden states over the prompt, normalised to length 1, in place of an answer.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: Sampling
    owner: str = ""
    priority: int = 0
    cache_salt: str = ""
    arrival_s: float = 0.0
    shares_prompt: bool = False
    embed: bool = False

    def to_wire(self) -> dict[str, Any]:
        """As msgpack takes it."""
        data = {name: getattr(self, name) for name in self.__slots__}
        return data | {"sampling": asdict(self.sampling)}

    @classmethod
    def from_wire(cls, data: dict[str, Any]) -> Self:
        sampling = data["sampling"] | {"stop_token_ids": tuple(data["sampling"]["stop_token_ids"])}
        return cls(**(data | {"prompt": tuple(data["prompt"]), "sampling": Sampling(**sampling)}))


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprob:
    """Natural logarithm of one token's probability, its rank (0 is the likeliest), and the likeliest tokens beside it."""

    token: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """What is new of a request: some tokens, or its end, or both. The last one has ``finish``.

    :param logprobs: one for each new token, where asked for.
    :param prompt_logprobs: of the prompt but its first token, on the first output, where asked for.
    :param num_cached_tokens: of the prompt, found in the prefix cache; on the first output.
    :param embedding: where the request asked for one.
    :param error: in words, with ``finish`` ERROR.
    """

    id: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    num_cached_tokens: int | None = None
    embedding: tuple[float, ...] | None = None
    finish: Finish | None = None
    error: str | None = None

    def to_wire(self) -> dict[str, Any]:
        """As msgpack takes it; what is not set is left out."""
        data: dict[str, Any] = {"id": self.id, "tokens": self.tokens}
        for name in ("num_cached_tokens", "embedding", "finish", "error"):
            if (value := getattr(self, name)) is not None:
                data[name] = value
        for name in ("logprobs", "prompt_logprobs"):
            if (entries := getattr(self, name)) is not None:
                data[name] = [(entry.token, entry.logprob, entry.rank, entry.top) for entry in entries]
        return data

    @classmethod
    def from_wire(cls, data: dict[str, Any]) -> Self:
        fields = dict(data, tokens=tuple(data["tokens"]))
        for name in ("logprobs", "prompt_logprobs"):
            if name in data:
                fields[name] = tuple(_logprob(*entry) for entry in data[name])
        if "finish" in data:
            fields["finish"] = Finish(data["finish"])
        if "embedding" in data:
            fields["embedding"] = tuple(data["embedding"])
        return cls(**fields)


def _logprob(token: int, logprob: float, rank: int, top: list[list[Any]]) -> TokenLogprob:
    return TokenLogprob(token=token, logprob=logprob, rank=rank, top=tuple((int(other), float(value)) for other, value in top))


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStats:
    """Of one engine, at one moment; counts are since its start."""

    time_s: float
    num_running: int
    num_waiting: int
    num_pages: int
    num_used_pages: int  # held by requests; what only the prefix cache keeps counts as free
    num_cached_pages: int  # free, but still known to the prefix cache
    num_steps: int = 0
    num_prompt_tokens: int = 0  # computed, not cached
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    num_preemptions: int = 0
    num_drafted_tokens: int = 0
    num_accepted_tokens: int = 0
    num_compilations: int = 0  # after warm-up
    busy_s: float = 0.0
