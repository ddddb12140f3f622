"""Laws of cutting and of the split: nothing lost, nothing on both sides, every corpus has both parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossus.spec.errors import DataError
from colossus.train.data.blocks import (
    EXACT_BYTES,
    Block,
    block_chars,
    cut,
    validation_threshold,
)
from colossus.train.data.readers import Piece

pieces = st.lists(st.text(alphabet="ab \n船", max_size=40), max_size=8)


def as_pieces(documents: list[list[str]]) -> list[Piece]:
    return [Piece(text, number == 0) for document in documents for number, text in enumerate(document)]


@given(st.lists(pieces.filter(bool), max_size=6), st.integers(1, 30))
def test_blocks_joined_are_the_documents(documents: list[list[str]], most_chars: int) -> None:
    found = [""] * len(documents)
    places: list[list[int]] = [[] for _ in documents]
    for block in cut(as_pieces(documents), most_chars):
        assert 0 < len(block.text) <= most_chars
        found[block.document] += block.text
        places[block.document].append(block.position)
    assert found == ["".join(document) for document in documents]
    assert all(place == list(range(len(place))) for place in places)


@given(pieces.filter(bool), st.integers(1, 30))
def test_where_pieces_end_makes_no_difference(document: list[str], most_chars: int) -> None:
    assert list(cut(as_pieces([document]), most_chars)) == list(cut([Piece("".join(document), True)], most_chars))


def test_blocks_end_at_line_ends() -> None:
    text = "a line of text\n" * 100
    assert all(block.text.endswith("\n") for block in cut([Piece(text, True)], 200))


@given(st.sets(st.text(min_size=1, max_size=5), min_size=2, max_size=60), st.floats(0.001, 0.999))
def test_small_corpora_are_split_exactly_and_never_empty(texts: set[str], fraction: float) -> None:
    blocks = [Block(text, number, 0) for number, text in enumerate(sorted(texts))]
    threshold = validation_threshold(lambda: blocks, fraction, 1000)
    held_out = sum(block.hash < threshold for block in blocks)
    assert 1 <= held_out <= len(blocks) - 1
    assert held_out == min(len(blocks) - 1, -(-fraction * len(blocks) // 1))


def test_large_corpora_need_no_pass() -> None:
    threshold = validation_threshold(lambda: pytest.fail("read the corpus"), 0.1, EXACT_BYTES + 1)
    blocks = [Block(str(number), number, 0) for number in range(20_000)]
    assert abs(sum(block.hash < threshold for block in blocks) - 2000) < 200


def test_one_text_over_and_over_cannot_be_split() -> None:
    with pytest.raises(DataError, match="too small to hold anything out"):
        validation_threshold(lambda: [Block("same", number, 0) for number in range(9)], 0.1, 36)


def test_block_size_follows_the_corpus() -> None:
    assert block_chars(10_000, 0.02) == 1024
    assert block_chars(5_000_000, 0.02) == 3125
    assert block_chars(10**12, 0.02) == 2**16
