"""Batches are a function of (seed, step): the same for any sharing of the rows; an epoch shows each token once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossus.spec.errors import DataError
from colossus.train.data import Corpus, TokenDataset, open_dataset
from colossus.train.data.dataset import TokenStream
from colossus.train.data.shards import ShardWriter

NUM_TOKENS = 1000


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    """Tokens 1..1000 in shards of 35 tokens and windows of 8: most windows are whole, many cross into the next shard."""
    return numbered(tmp_path_factory.mktemp("numbered"), shard_bytes=70, num_sequences=12)


def numbered(folder: Path, *, shard_bytes: int, num_sequences: int, sequence_tokens: int = 8) -> TokenDataset:
    streams = []
    for split in ("train", "validation"):
        writer = ShardWriter(folder, split, dtype="<u2", shard_bytes=shard_bytes, end_of_text_id=0)
        writer.append(list(range(1, 400)), 0, 0)
        writer.append(list(range(400, NUM_TOKENS)), 0, 1)
        streams.append(TokenStream(folder, writer.close(), "<u2"))
    return TokenDataset(*streams, sequence_tokens=sequence_tokens, num_sequences=num_sequences, seed=5)


@settings(max_examples=50)
@given(st.integers(0, 10**12), st.lists(st.integers(0, 11), max_size=12))
def test_any_rows_are_those_of_the_whole_batch(dataset: TokenDataset, step: int, rows: list[int]) -> None:
    tokens, targets = dataset.batch(step, range(12))
    mine, next_mine = dataset.batch(step, rows)
    assert mine.dtype == targets.dtype == np.int32
    assert mine.shape == (len(rows), 8)
    assert np.array_equal(mine, tokens[rows])
    assert np.array_equal(next_mine, targets[rows])
    assert np.array_equal(dataset.batch(step, slice(3, 9))[0], tokens[3:9])
    assert np.array_equal(tokens[:, 1:], targets[:, :-1])


def test_an_epoch_shows_every_window_once_in_a_new_order(dataset: TokenDataset) -> None:
    assert dataset.num_train_windows == 124
    rows = np.concatenate([dataset.batch(step, range(12))[1] for step in range(31)])
    epochs = [rows[number * 124 : (number + 1) * 124] for number in range(3)]
    for targets in epochs:
        assert sorted(targets.ravel()) == list(range(2, 994))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])
    assert dataset.epoch(31) == 3


@pytest.mark.parametrize("shard_bytes", [6, 14, 10_000])
def test_shards_make_no_difference(dataset: TokenDataset, tmp_path: Path, shard_bytes: int) -> None:
    other = numbered(tmp_path, shard_bytes=shard_bytes, num_sequences=12)
    for step in (0, 7, 10**9):
        assert np.array_equal(dataset.batch(step, range(12)), other.batch(step, range(12)))


def test_the_global_batch_does_not_depend_on_what_came_before(dataset: TokenDataset, tmp_path: Path) -> None:
    resumed = numbered(tmp_path, shard_bytes=70, num_sequences=12)
    dataset.batch(1, range(12))
    assert np.array_equal(dataset.batch(500, range(12)), resumed.batch(500, range(12)))


def test_validation_is_in_order_and_fixed(dataset: TokenDataset, tmp_path: Path) -> None:
    assert dataset.num_validation_windows == 124
    assert dataset.num_validation_batches == 10
    found = np.concatenate([dataset.validation_batch(i, slice(None))[0] for i in range(10)])
    assert found.ravel().tolist() == list(range(1, 961))
    with pytest.raises(IndexError, match="validation batch 10 of 10"):
        dataset.validation_batch(10, range(1))
    few = numbered(tmp_path, shard_bytes=70, num_sequences=200)
    assert few.num_validation_batches == 1
    assert few.validation_batch(0, range(200))[0].shape == (200, 8)


def test_rows_outside_the_batch_are_refused(dataset: TokenDataset) -> None:
    for rows in ([12], [-1]):
        with pytest.raises(IndexError, match="of a batch of 12"):
            dataset.batch(0, rows)


def test_too_small_a_corpus_says_what_fits(make: Callable[..., Corpus], texts: Path) -> None:
    corpus = make(texts)
    with pytest.raises(DataError, match="its train part has") as caught:
        open_dataset(corpus.folder, sequence_tokens=128, num_sequences=10_000, seed=0, verify=False)
    assert f"batch.num_sequences of at most {(corpus.num_train_tokens - 1) // 128}" in str(caught.value.hint)
    with pytest.raises(DataError, match="its validation part has") as caught:
        make(texts, sequence_tokens=corpus.num_validation_tokens)
    assert f"batch.sequence_tokens of at most {corpus.num_validation_tokens - 1}" in str(caught.value.hint)
    make(texts, sequence_tokens=corpus.num_validation_tokens - 1)


def test_workers_import_no_tokenizer() -> None:
    program = "import sys, colossus.train.data; print(sorted({'tokenizers', 'jax', 'pyarrow', 'zstandard'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
