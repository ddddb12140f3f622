"""A small corpus of real words, and how to prepare it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from data_words import prose

from colossus.spec.job import DataSpec
from colossus.train.data import Corpus, prepare


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder of six documents, one of them much longer than the others."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.txt").write_text(prose(1500, number))
    (folder / "book.md").write_text(prose(30_000, 9))
    return folder


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Corpus]:
    """Prepares sources in a cache of the test's own."""

    def make(*sources: object, vocab_size: int | None = 400, sequence_tokens: int = 16, **settings: object) -> Corpus:
        spec = DataSpec.from_data({"sources": [str(source) for source in sources], **settings}, origin="test")
        return prepare(spec, tmp_path / "cache", vocab_size=vocab_size, sequence_tokens=sequence_tokens)

    return make
