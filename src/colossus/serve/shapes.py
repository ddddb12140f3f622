"""The fixed shapes that steps are padded to, and where in two flat arrays each input of a step lies.

One array of whole numbers and one of floats travel to the device for each step: a transfer costs more than what it carries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from math import prod
from typing import Any

from colossus.serve.sequence import MAX_STOPS


class Kind(IntEnum):
    """What a program brings. The first two are the levels of ``sequence.Level``."""

    PLAIN = 0
    EDITED = 1
    VERIFY = 2  # a token drawn after each of a row's last ones, to hold guesses against
    SCORE = 3  # log-probabilities of given tokens, at every place
    EMBED = 4  # sums of hidden states


@dataclass(frozen=True, order=True)
class Key:
    """One program: its kind, and for how many tokens, rows, pages a row and outputs a row it is compiled."""

    kind: Kind
    num_tokens: int
    num_rows: int
    num_pages: int
    num_outputs: int = 1

    @property
    def decodes(self) -> bool:
        return self.num_tokens == self.num_rows

    def __str__(self) -> str:
        return f"{self.kind.name.lower()} of {self.num_tokens} tokens, {self.num_rows} rows, {self.num_pages} pages"

    @cached_property
    def layout(self) -> Layout:
        return Layout(self)


class Layout:
    """Places of the inputs in the two arrays, for one program."""

    def __init__(self, key: Key) -> None:
        rows, places = key.num_rows, key.num_rows * key.num_outputs
        draws = key.kind <= Kind.VERIFY
        ints: dict[str, tuple[int, ...]] = {"num_rows": (1,), "num_steps": (1,), "slots": (rows,), "lengths": (rows,), "tokens": (key.num_tokens,)}
        floats: dict[str, tuple[int, ...]] = {}
        if not key.decodes:
            ints["starts"] = (rows + 1,)
        if draws:
            ints |= {"seeds": (rows,), "top_k": (rows,)}
            floats |= {"temperature": (rows,), "top_p": (rows,), "min_p": (rows,)}
        if key.kind is Kind.EDITED:
            ints |= {"wants_logprobs": (1,), "edit_slots": (rows,), "banned": (rows, MAX_STOPS)}
            floats |= {"penalties": (rows, 3)}
        if key.kind is Kind.VERIFY:
            ints["outputs"] = (places,)
        if key.kind is Kind.SCORE:
            ints["targets"] = (key.num_tokens,)
        ints["pages"] = (rows, key.num_pages)
        self.ints, self.num_ints = _places(ints)
        self.floats, self.num_floats = _places(floats)

    def unpack(self, ints: Any, floats: Any) -> dict[str, Any]:
        """Views, or slices where the arrays are traced, by name."""
        parts = {name: ints[place].reshape(shape) for name, (place, shape) in self.ints.items()}
        return parts | {name: floats[place].reshape(shape) for name, (place, shape) in self.floats.items()}


def _places(shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, tuple[slice, tuple[int, ...]]], int]:
    places, start = {}, 0
    for name, shape in shapes.items():
        places[name] = (slice(start, start + prod(shape)), shape)
        start += prod(shape)
    return places, start


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """The programs of an engine.

    :param max_pages: of a row.
    :param ragged: whether the decoder passes over padding by itself, so that only what surrounds it pays for padding.
    """

    max_rows: int
    max_tokens: int
    max_pages: int
    num_drafts: int
    ragged: bool

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        """All programs, those needed first first."""
        found = dict.fromkeys((*self._decoding(), *self._mixed(), *self._rare()))
        return tuple(found)

    def fitting(self, kind: Kind, *, num_tokens: int, num_rows: int, num_pages: int, decodes: bool) -> Key:
        """The cheapest program that takes a step of this size."""
        able = self._able[kind, decodes]
        return next(key for key in able if key.num_tokens >= num_tokens and key.num_rows >= num_rows and key.num_pages >= num_pages)

    @cached_property
    def _able(self) -> dict[tuple[Kind, bool], list[Key]]:
        """By what is asked for, the cheapest first."""
        able: dict[tuple[Kind, bool], list[Key]] = {}
        for key in sorted(self.keys, key=lambda key: (key.num_tokens, key.num_pages, key.num_rows)):
            able.setdefault((key.kind, key.decodes), []).append(key)
        return able

    def _pages(self, most: int) -> list[int]:
        """Sizes of page tables, the largest last."""
        sizes = [self.max_pages]
        while not self.ragged and len(sizes) < most and sizes[0] > 8:
            sizes.insert(0, -(-sizes[0] // 4))
        return sizes

    def _decoding(self) -> Iterator[Key]:
        rows = _powers(2 if self.ragged else 4, self.max_rows)
        yield from (Key(Kind.PLAIN, num, num, pages) for pages in self._pages(3) for num in rows)

    def _mixed(self) -> Iterator[Key]:
        """Fewer rows than tokens; the last takes all that a budget allows."""
        sizes = [(64, 8), (256, 16)]
        fitting = [(tokens, rows) for tokens, rows in sizes if tokens < self.max_tokens and rows < self.max_rows]
        yield from (Key(Kind.PLAIN, tokens, rows, pages) for pages in self._pages(2) for tokens, rows in [*fitting, self._most])

    @property
    def _most(self) -> tuple[int, int]:
        return max(self.max_tokens, self.max_rows + 1), self.max_rows

    def _rare(self) -> Iterator[Key]:
        """What few requests ask for, in few shapes."""
        (tokens, rows), few, pages = self._most, min(8, self.max_rows), self.max_pages
        yield from (Key(Kind.EDITED, num, num, pages) for num in sorted({few, rows}))
        yield from (Key(Kind.EDITED, *size, pages) for size in sorted({(min(64, tokens), few), (tokens, rows)}) if size[0] > size[1])
        yield Key(Kind.SCORE, max(min(128, tokens), rows + 1), rows, pages)
        yield Key(Kind.EMBED, tokens, rows, pages)
        if self.num_drafts:
            outputs = self.num_drafts + 1
            sizes = {(num * outputs, num) for num in (1, few) if num * outputs < tokens} | {(tokens, rows)}
            yield from (Key(Kind.VERIFY, *size, most, outputs) for most in self._pages(2) for size in sorted(sizes))


def _powers(base: int, most: int) -> list[int]:
    """1, base, base**2 ... and ``most``."""
    sizes = [1]
    while sizes[-1] * base < most:
        sizes.append(sizes[-1] * base)
    return [*sizes, most] if most > 1 else sizes
