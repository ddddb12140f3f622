"""Tokens on disk: shard files of raw little-endian ids, and index.json that names, counts and checksums them.

    <cache>/<key>/index.json            what the folder holds, and of what it was made
                  tokenizer.json
                  train-00000.bin ...   uint16, or uint32 for more than 65,536 tokens
                  validation-00000.bin ...

A split's shards are one stream of tokens, cut anywhere. Each document ends with the end-of-text token.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from colossus.spec.errors import DataError
from colossus.spec.run import write_atomic

INDEX = "index.json"
TOKENIZER = "tokenizer.json"
MARKER = {"schema": 1, "kind": "colossus-corpus"}
SPLITS = ("train", "validation")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of tokens."""

    file: str
    num_tokens: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Index:
    """What a corpus folder holds."""

    dtype: str
    vocab_size: int
    end_of_text: str
    end_of_text_id: int
    tokenizer_sha256: str
    num_documents: int
    num_text_bytes: int
    fingerprint: dict[str, Any]
    splits: dict[str, tuple[Shard, ...]]

    def num_tokens(self, split: str) -> int:
        """Tokens of one split, ends of text included."""
        return sum(shard.num_tokens for shard in self.splits[split])


def token_dtype(vocab_size: int) -> str:
    """The narrowest of uint16 and uint32 that holds every id."""
    return "<u2" if vocab_size <= 2**16 else "<u4"


class ShardWriter:
    """Appends tokens of one split to shards of about ``shard_bytes``; a block that continues another gets no end of text before it."""

    def __init__(self, folder: Path, split: str, *, dtype: str, shard_bytes: int, end_of_text_id: int) -> None:
        self._folder, self._split, self._dtype = folder, split, np.dtype(dtype)
        self._shard_bytes = max(shard_bytes, self._dtype.itemsize)
        self._end = np.array([end_of_text_id], self._dtype)
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._num_bytes = 0
        self._next: tuple[int, int] | None = None
        self._shards: list[Shard] = []

    @property
    def num_tokens(self) -> int:
        """Tokens written so far."""
        return sum(shard.num_tokens for shard in self._shards) + self._num_bytes // self._dtype.itemsize

    def append(self, tokens: list[int], document: int, position: int) -> None:
        """Adds a block's tokens; a gap before it closes the document that stood there."""
        if self._next not in (None, (document, position)):
            self._write(self._end)
        self._write(np.array(tokens, self._dtype))
        self._next = (document, position + 1)

    def close(self) -> tuple[Shard, ...]:
        """Ends the last document; every shard is then whole and on the disk."""
        if self._next is not None:
            self._write(self._end)
        self._finish()
        return tuple(self._shards)

    def abandon(self) -> None:
        """Lets the file go without finishing it."""
        if self._file is not None:
            self._file.close()

    def _write(self, tokens: np.ndarray) -> None:
        data = memoryview(tokens.tobytes())
        while data:
            file = self._file = self._file or self._start()
            room = self._shard_bytes // self._dtype.itemsize * self._dtype.itemsize - self._num_bytes
            file.write(data[:room])
            self._hash.update(data[:room])
            self._num_bytes += len(data[:room])
            data = data[room:]
            if data:
                self._finish()

    def _start(self) -> BinaryIO:
        self._hash, self._num_bytes = hashlib.sha256(), 0
        return (self._folder / self._name).open("wb")

    @property
    def _name(self) -> str:
        return f"{self._split}-{len(self._shards):05d}.bin"

    def _finish(self) -> None:
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._shards.append(Shard(file=self._name, num_tokens=self._num_bytes // self._dtype.itemsize, sha256=self._hash.hexdigest()))
        self._file, self._num_bytes = None, 0


def save_index(folder: Path, index: Index) -> None:
    """Writes index.json; a folder without one is no corpus, so it comes last."""
    write_atomic(folder / INDEX, json.dumps({**MARKER, **asdict(index)}, indent=1) + "\n")


def load_index(folder: Path) -> Index:
    """The index of a corpus folder, with every file it names present and of the right length; contents are ``verify``'s."""
    file = folder / INDEX
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if {key: data.pop(key) for key in MARKER} != MARKER:
            raise ValueError("some other program's or version's")
        splits = {split: tuple(Shard(**shard) for shard in data["splits"][split]) for split in SPLITS}
        index = Index(**{**data, "splits": splits})
    except FileNotFoundError:
        raise DataError(f"{folder} is not a tokenised corpus (no {INDEX})", hint="start the job again: the corpus is prepared anew") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} cannot be read as a corpus index: {error}", hint=_fix(folder)) from None
    itemsize = np.dtype(index.dtype).itemsize
    for shard in (shard for split in SPLITS for shard in index.splits[split]):
        _check_size(folder / shard.file, shard.num_tokens * itemsize)
    return index


def _check_size(file: Path, expected_bytes: int) -> None:
    try:
        found = file.stat().st_size
    except OSError as error:
        raise DataError(f"{file} is missing or unreadable: {error.strerror}", hint=_fix(file.parent)) from None
    if found != expected_bytes:
        raise DataError(f"{file} is damaged: {found} bytes where its index says {expected_bytes}", hint=_fix(file))


def verify(folder: Path, index: Index) -> None:
    """Reads every file once and compares checksums; raises DataError that names the first damaged one."""
    expected = [(shard.file, shard.sha256) for split in SPLITS for shard in index.splits[split]]
    expected.append((TOKENIZER, index.tokenizer_sha256))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for (name, sha256), found in zip(expected, pool.map(lambda item: file_sha256(folder / item[0]), expected), strict=True):
            if found != sha256:
                raise DataError(f"{folder / name} is damaged: its checksum is not the index's", hint=_fix(folder / name))


def file_sha256(file: Path) -> str:
    """Checksum of a file, read in chunks."""
    digest = hashlib.sha256()
    try:
        with file.open("rb") as opened:
            for chunk in _chunks(opened):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}", hint=_fix(file)) from None
    return digest.hexdigest()


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(2**20):
        yield chunk


def _fix(path: Path) -> str:
    return f"delete {path} and start the job again: it is rebuilt from the sources"
