"""A device that computes nothing: it keeps in each place of the cache the token that was written there, and draws a hash of what it reads.

So a wrong page, place, length or order of steps changes what is drawn, as it would on a real one, in microseconds.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from colossus.nn.paged import PAGE_TOKENS
from colossus.nn.sampling import Logprobs
from colossus.serve.programs import MAX_FUSED_STEPS, NUM_TOP, Outputs
from colossus.serve.shapes import Key, Kind

VOCAB_SIZE = 50


def next_token(tokens: list[int], seed: int = 0) -> int:
    """What follows these tokens. Every 7th place repeats, so that guesses come true now and then."""
    if len(tokens) % 7 and len(tokens) > 3:
        return tokens[-3]
    return hash((seed, *tokens)) % VOCAB_SIZE


def answer_to(prompt: tuple[int, ...], num: int, seed: int = 0) -> list[int]:
    tokens = list(prompt)
    for _ in range(num):
        tokens.append(next_token(tokens, seed))
    return tokens[len(prompt) :]


class FakePrograms:
    """In the place of ``Programs``."""

    num_compiled = 0

    def __init__(self, _decoder: Any, *, num_pages: int, num_slots: int) -> None:
        self.cache = np.full((num_pages, PAGE_TOKENS), -1, np.int64)
        self.last = np.full(num_slots + 1, -1, np.int64)
        self.steps: list[Key] = []

    def compile(self, keys: Any, progress: Any) -> None: ...

    def enter(self, *_: Any) -> None: ...

    def run(self, key: Key, ints: np.ndarray, floats: np.ndarray, masks: Any = None) -> Outputs:
        self.steps.append(key)
        parts: Any = SimpleNamespace(**key.layout.unpack(ints, floats))
        rows = range(int(parts.num_rows[0]))
        starts = np.minimum(np.arange(key.num_rows + 1), len(rows)) if key.decodes else parts.starts
        texts = {}
        for row in rows:
            own = parts.tokens[starts[row] : starts[row + 1]].astype(np.int64)
            own[own < 0] = self.last[parts.slots[row]]
            assert (own >= 0).all(), "a token that the device never drew"
            self._write(parts, row, int(parts.lengths[row]) - len(own), own.tolist())
        for row in rows:
            texts[row] = self._read(parts, row, int(parts.lengths[row]))
        if key.kind is Kind.EMBED:
            return Outputs(hidden_rd=self._sums(key, parts, starts, texts))
        if key.kind is Kind.SCORE:
            return Outputs(logprobs=self._score(key, starts, texts))
        if key.kind is Kind.VERIFY:
            return Outputs(tokens=self._verify(key, parts, starts, texts))
        return Outputs(tokens=self._draw(key, parts, texts))

    def _write(self, parts: Any, row: int, first: int, tokens: list[int]) -> None:
        for place, token in enumerate(tokens, first):
            page = parts.pages[row, place // PAGE_TOKENS]
            if page:
                self.cache[page, place % PAGE_TOKENS] = token

    def _read(self, parts: Any, row: int, length: int) -> list[int]:
        pages = parts.pages[row, : -(-length // PAGE_TOKENS)]
        return self.cache[pages].reshape(-1)[:length].tolist()

    def _draw(self, key: Key, parts: Any, texts: dict[int, list[int]]) -> np.ndarray:
        drawn = np.zeros((MAX_FUSED_STEPS, key.num_rows), np.int64)
        for row, known in texts.items():
            text = known
            for step in range(int(parts.num_steps[0])):
                token = next_token(text, int(parts.seeds[row]))
                drawn[step, row] = token
                text = [*text, token]
                if step + 1 < parts.num_steps[0]:
                    self._write(parts, row, len(text) - 1, [token])
            self.last[parts.slots[row]] = drawn[int(parts.num_steps[0]) - 1, row]
        return drawn

    def _verify(self, key: Key, parts: Any, starts: np.ndarray, texts: dict[int, list[int]]) -> np.ndarray:
        drawn = np.zeros(key.num_rows * key.num_outputs, np.int64)
        for output, token_place in enumerate(parts.outputs):
            row = int(np.searchsorted(starts[: len(texts) + 1], token_place, side="right")) - 1
            if row in texts:
                length = len(texts[row]) - int(starts[row + 1]) + int(token_place) + 1
                drawn[output] = next_token(texts[row][:length], int(parts.seeds[row]))
        return drawn

    def _score(self, key: Key, starts: np.ndarray, texts: dict[int, list[int]]) -> Any:
        """In the place of each logarithm what follows there."""
        own, zeros = np.zeros(key.num_tokens, np.float32), np.zeros((key.num_tokens, NUM_TOP), np.int32)
        for row, text in texts.items():
            for place in range(int(starts[row]), int(starts[row + 1])):
                own[place] = next_token(text[: len(text) - int(starts[row + 1]) + place + 1])
        parts: Any = (own, zeros[:, 0], zeros, zeros)
        return Logprobs(*parts)

    def _sums(self, key: Key, parts: Any, starts: np.ndarray, texts: dict[int, list[int]]) -> np.ndarray:
        sums = np.zeros((key.num_rows, 2), np.float32)
        for row, text in texts.items():
            own = text[len(text) - int(starts[row + 1] - starts[row]) :]
            sums[row] = sum(own), len(own)
        return sums
