"""What a worker reads: batches of windows out of memory-mapped shards. Imports numpy and no tokenizer library."""

from __future__ import annotations

import bisect
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colossus.spec.errors import DataError
from colossus.train.data import shards
from colossus.train.data.order import permute

Rows = range | slice | list[int] | NDArray[np.integer[Any]]
Tokens = NDArray[np.int32]

MOST_OPEN_SHARDS = 256


class TokenStream:
    """One split's tokens as one sequence over its shards."""

    def __init__(self, folder: Path, parts: tuple[shards.Shard, ...], dtype: str) -> None:
        self._paths = [folder / part.file for part in parts]
        self._dtype = np.dtype(dtype)
        self._ends = list(accumulate(part.num_tokens for part in parts))
        self._map = lru_cache(maxsize=MOST_OPEN_SHARDS)(self._open)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, start: int, out: Tokens) -> None:
        """Fills ``out`` with the tokens from ``start`` on, across shards where need be."""
        filled, shard = 0, bisect.bisect_right(self._ends, start)
        while filled < len(out):
            begin = self._ends[shard - 1] if shard else 0
            taken = min(len(out) - filled, self._ends[shard] - start)
            out[filled : filled + taken] = self._map(shard)[start - begin : start - begin + taken]
            filled, start, shard = filled + taken, start + taken, shard + 1

    def _open(self, shard: int) -> NDArray[Any]:
        try:
            return np.memmap(self._paths[shard], self._dtype, "r")
        except (OSError, ValueError) as error:
            raise DataError(f"{self._paths[shard]} cannot be opened: {error}", hint="start the job again: the corpus is prepared anew") from None


class TokenDataset:
    """Windows of T tokens and their T next tokens. A batch is a function of (seed, step), whoever asks for which of its rows.

    Window w holds tokens wT .. wT+T of the stream, so that each token is a target once an epoch. Batches run through epoch after
    epoch, each a full permutation of the windows; an epoch's end need not be a batch's.
    """

    def __init__(self, train: TokenStream, validation: TokenStream, *, sequence_tokens: int, num_sequences: int, seed: int) -> None:
        self._train, self._validation = train, validation
        self.sequence_tokens, self.num_sequences, self.seed = sequence_tokens, num_sequences, seed
        self.num_train_windows = num_windows(len(train), sequence_tokens)
        self.num_validation_windows = num_windows(len(validation), sequence_tokens)

    @property
    def num_validation_batches(self) -> int:
        """Full batches of distinct validation windows; 1, with windows repeated, where they do not fill one."""
        return max(1, self.num_validation_windows // self.num_sequences)

    def epoch(self, step: int) -> float:
        """How many times the training part has been seen when ``step`` begins."""
        return step * self.num_sequences / self.num_train_windows

    def batch(self, step: int, rows: Rows) -> tuple[Tokens, Tokens]:
        """(tokens, targets), each (R, T) int32, of the named rows of the global batch of ``step``."""
        position = step * self.num_sequences + self._rows(rows)
        epoch, index = np.divmod(position, self.num_train_windows)
        window = np.empty_like(index)
        for number in np.unique(epoch):
            chosen = epoch == number
            window[chosen] = permute(index[chosen], size=self.num_train_windows, seed=self.seed, epoch=int(number))
        return self._read(self._train, window)

    def validation_batch(self, i: int, rows: Rows) -> tuple[Tokens, Tokens]:
        """(tokens, targets) of the named rows of validation batch ``i``, in the stream's own order."""
        if not 0 <= i < self.num_validation_batches:
            raise IndexError(f"validation batch {i} of {self.num_validation_batches}")
        position = i * self.num_sequences + self._rows(rows)
        return self._read(self._validation, position % self.num_validation_windows)

    def _rows(self, rows: Rows) -> NDArray[np.int64]:
        if isinstance(rows, slice):
            rows = range(*rows.indices(self.num_sequences))
        index = np.asarray(rows, np.int64)
        if index.size and not (index.min() >= 0 and index.max() < self.num_sequences):
            raise IndexError(f"rows {index.min()}..{index.max()} of a batch of {self.num_sequences}")
        return index

    def _read(self, stream: TokenStream, windows: NDArray[np.int64]) -> tuple[Tokens, Tokens]:
        out = np.empty((len(windows), self.sequence_tokens + 1), np.int32)
        for row, window in zip(out, windows.tolist(), strict=True):
            stream.read(window * self.sequence_tokens, row)
        return np.ascontiguousarray(out[:, :-1]), np.ascontiguousarray(out[:, 1:])


def num_windows(num_tokens: int, sequence_tokens: int) -> int:
    """Windows of T tokens with a next token each: T+1 tokens give one, 2T+1 two."""
    return max(0, (num_tokens - 1) // sequence_tokens)


def check_fits(index: shards.Index, sequence_tokens: int, num_sequences: int = 1) -> None:
    """DataError where a part of the corpus is smaller than one window, or the training part than one batch."""
    for split, least in (("train", num_sequences), ("validation", 1)):
        tokens = index.num_tokens(split)
        found = num_windows(tokens, sequence_tokens)
        if found < least:
            needed = "one" if least == 1 else f"a batch of {least}"
            raise DataError(
                f"the corpus is too small: its {split} part has {tokens} tokens, {found} windows of {sequence_tokens} + 1, where {needed} is needed",
                hint=_what_fits(split, tokens, found, least),
            )


def _what_fits(split: str, tokens: int, found: int, least: int) -> str:
    longest = (tokens - 1) // least
    fits = [f"batch.sequence_tokens of at most {longest}"] if longest >= 2 else []
    if found:
        fits.append(f"batch.num_sequences of at most {found}")
    if split == "validation":
        fits.append("a larger data.validation_fraction")
    return "what fits: " + ", ".join([*fits, "or more text"])


def open_dataset(folder: Path, *, sequence_tokens: int, num_sequences: int, seed: int, verify: bool) -> TokenDataset:
    """The prepared corpus at ``folder``, ready for batches. Lengths are always checked, checksums when ``verify``.

    ``verify`` reads every shard once: let one process of a run ask for it.
    """
    index = shards.load_index(folder)
    if verify:
        shards.verify(folder, index)
    check_fits(index, sequence_tokens, num_sequences)
    train, validation = (TokenStream(folder, index.splits[split], index.dtype) for split in shards.SPLITS)
    return TokenDataset(train, validation, sequence_tokens=sequence_tokens, num_sequences=num_sequences, seed=seed)
