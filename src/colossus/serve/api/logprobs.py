"""Logprobs of tokens, in the two shapes that OpenAI gives them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from colossus.serve.api.generation import Written
from colossus.serve.detokenize import Vocabulary
from colossus.serve.request import TokenLogprob

_LEAST = -9999.0  # what OpenAI writes for a probability of zero, since JSON has no infinity


def chat_logprobs(written: Sequence[Written], vocabulary: Vocabulary, num_top: int) -> dict[str, Any]:
    """Chat's: a list, each token with its bytes and the likeliest beside it."""
    content = [_chat_token(item.entry.token, item.entry.logprob, vocabulary) | {"top_logprobs": _chat_top(item.entry, vocabulary, num_top)} for item in written]
    return {"content": content, "refusal": None}


def _chat_top(entry: TokenLogprob, vocabulary: Vocabulary, num_top: int) -> list[dict[str, Any]]:
    return [_chat_token(token, logprob, vocabulary) for token, logprob in entry.top[:num_top]]


def _chat_token(token: int, logprob: float, vocabulary: Vocabulary) -> dict[str, Any]:
    raw = vocabulary.token_bytes(token)
    return {"token": spelled(raw), "logprob": _finite(logprob), "bytes": list(raw)}


class CompletionLogprobs:
    """Completions': four lists of the same length, over the prompt too where it is echoed."""

    def __init__(self, vocabulary: Vocabulary, num_top: int) -> None:
        self._vocabulary, self._num_top = vocabulary, num_top

    def of_answer(self, written: Sequence[Written], offset: int) -> dict[str, list[Any]]:
        """``offset`` is where the answer begins in the text given out."""
        entries = [item.entry for item in written]
        return self._lists(entries) | {"text_offset": [offset + item.start for item in written]}

    def of_prompt(self, prompt: Sequence[int], entries: Sequence[TokenLogprob], offsets: list[int]) -> dict[str, list[Any]]:
        """The first token has none: nothing came before it."""
        lists = self._lists(entries)
        first = self._name(prompt[0])
        return {
            "tokens": [first, *lists["tokens"]],
            "token_logprobs": [None, *lists["token_logprobs"]],
            "top_logprobs": [None, *lists["top_logprobs"]],
            "text_offset": offsets,
        }

    def _lists(self, entries: Sequence[TokenLogprob]) -> dict[str, list[Any]]:
        return {
            "tokens": [self._name(entry.token) for entry in entries],
            "token_logprobs": [_finite(entry.logprob) for entry in entries],
            "top_logprobs": [self._top(entry) for entry in entries],
        }

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        """The likeliest, and the drawn token where it is not among them."""
        listed = {self._name(token): _finite(logprob) for token, logprob in entry.top[: self._num_top]}
        return listed | {self._name(entry.token): _finite(entry.logprob)}

    def _name(self, token: int) -> str:
        return spelled(self._vocabulary.token_bytes(token))


def spelled(raw: bytes) -> str:
    """A token's text; one that is only a part of a character is spelled as OpenAI does, ``bytes:\\xe2\\x82``."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST) if not math.isnan(logprob) else _LEAST
