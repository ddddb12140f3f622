"""Guesses of the next tokens without a model: what followed when the sequence's last few tokens stood there before (prompt lookup).

Good where answers repeat their prompt: edits, summaries, code, extraction. A guess costs little and is checked by the model itself.
"""

from __future__ import annotations

from collections.abc import Sequence

_WIDTHS = (3, 2)  # tokens that must have stood there before, the longer match first
_LONGEST_REST = 32  # tokens drawn without guesses after guesses failed again and again


class Drafter:
    """Guesses for one sequence. It guesses less where its guesses fail: each costs the step some time."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._num_wanted = max_tokens
        self._tokens: list[int] = []
        self._next_of: dict[tuple[int, ...], int] = {}  # last tokens -> the place after them, where they stood last
        self._num_failures = 0
        self._rest_until = 0

    def extend(self, tokens: Sequence[int]) -> None:
        """The sequence grew."""
        for token in tokens:
            place = len(self._tokens)
            for width in _WIDTHS:
                if place >= width:  # what ends just before this token has now a token that follows
                    self._next_of[tuple(self._tokens[place - width :])] = place
            self._tokens.append(token)

    def guess(self, most: int) -> list[int]:
        """At most ``most`` tokens that may come next."""
        if len(self._tokens) < self._rest_until:
            return []
        for width in _WIDTHS:
            place = self._next_of.get(tuple(self._tokens[-width:])) if len(self._tokens) >= width else None
            if place is not None:
                period = len(self._tokens) - place  # past the end the guess goes on with itself
                return [self._tokens[place + step % period] for step in range(min(most, self._num_wanted))]
        return []

    def learn(self, num_guessed: int, num_accepted: int) -> None:
        """How the last guess went."""
        if num_accepted == num_guessed:
            self._num_wanted = min(2 * self._num_wanted, self._max_tokens)
        else:
            self._num_wanted = min(num_accepted + 1, self._max_tokens)
        self._num_failures = 0 if num_accepted else self._num_failures + 1
        if self._num_failures > 1:
            self._rest_until = len(self._tokens) + min(2**self._num_failures, _LONGEST_REST)
