"""Documents cut into blocks, and which blocks are held out for validation.

A block is a whole document, or a stretch of a long one that ends at a line's end: so a corpus of one book is split as fairly as
one of a million pages. The hash of a block's own text decides, so that equal texts never stand on both sides.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from colossus.spec.errors import DataError
from colossus.train.data.readers import Piece

LEAST_BLOCK_CHARS = 2**10
MOST_BLOCK_CHARS = 2**16
NUM_VALIDATION_BLOCKS = 32
EXACT_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Block:
    """A stretch of one document: its text, the document's number and its place in the document."""

    text: str
    document: int
    position: int

    @property
    def hash(self) -> int:
        """64 bits of the text's BLAKE2b: the same on every machine."""
        return int.from_bytes(hashlib.blake2b(self.text.encode(), digest_size=8).digest(), "big")


def block_chars(corpus_bytes: int, validation_fraction: float) -> int:
    """The longest block: short enough that the validation part is made of about 32, whole documents where the corpus allows it."""
    return min(MOST_BLOCK_CHARS, max(LEAST_BLOCK_CHARS, int(corpus_bytes * validation_fraction / NUM_VALIDATION_BLOCKS)))


def cut(pieces: Iterable[Piece], most_chars: int) -> Iterator[Block]:
    """Blocks of at most ``most_chars``, joined they give each document back; where pieces end makes no difference."""
    document, position, rest = -1, 0, ""
    for piece in pieces:
        if piece.begins:
            if rest:
                yield Block(rest, document, position)
            document, position, rest = document + 1, 0, ""
        text, start = rest + piece.text, 0
        while len(text) - start > most_chars:
            end = _line_end(text, start, start + most_chars)
            yield Block(text[start:end], document, position)
            start, position = end, position + 1
        rest = text[start:]
    if rest:
        yield Block(rest, document, position)


def _line_end(text: str, start: int, limit: int) -> int:
    """The last end of a line, else of a word, in ``text[start:limit]``; else the limit."""
    for end in ("\n", " "):
        if (found := text.rfind(end, start, limit)) >= start:
            return found + 1
    return limit


def validation_threshold(blocks: Callable[[], Iterable[Block]], validation_fraction: float, corpus_bytes: int) -> int:
    """Blocks whose hash lies below the threshold are held out.

    Up to 64 MiB of files the smallest hashes are counted off, so that a small corpus gets its share exactly and never
    none; above, the share is met by the law of large numbers (64 MiB: to about a fifth) without a pass over the corpus.
    """
    if corpus_bytes > EXACT_BYTES:
        return math.ceil(validation_fraction * 2**64)
    hashes = sorted({block.hash for block in blocks()})
    if len(hashes) < 2:
        raise DataError(
            f"the corpus is too small to hold anything out: {corpus_bytes} bytes, {len(hashes)} distinct block(s) of text",
            hint=f"give at least {2 * LEAST_BLOCK_CHARS} bytes of text, or two different documents",
        )
    return hashes[min(len(hashes) - 1, math.ceil(validation_fraction * len(hashes)))]
