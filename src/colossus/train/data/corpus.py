"""Text to tokens, once: ``prepare`` finds the corpus in the cache or builds it whole, beside whatever was there before."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossus.spec.errors import DataError
from colossus.spec.job import DataSpec
from colossus.spec.run import write_atomic
from colossus.train.data import shards, tokenizer
from colossus.train.data.blocks import Block, block_chars, cut, validation_threshold
from colossus.train.data.cache import (
    find,
    lock,
    publish,
    remove_stale,
    storage_errors,
    temporary_folder,
)
from colossus.train.data.dataset import check_fits
from colossus.train.data.readers import Meter, read_pieces
from colossus.train.data.sources import TextFile, resolve

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FORMAT = 2
CHARS_PER_CORE = 2**18
MOST_CORES = 32


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far ``prepare`` is. Bytes are those of the source files, as stored.

    Stages: ``waiting`` (another process prepares this corpus), ``tokenizer`` (training it), ``tokens``.
    """

    stage: str
    done_bytes: int
    total_bytes: int
    num_documents: int
    num_tokens: int


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A prepared corpus. ``vocab_size`` is what the tokenizer needs; a model may have more. ``cached``: nothing had to be done."""

    folder: Path
    tokenizer: Path
    num_train_tokens: int
    num_validation_tokens: int
    num_documents: int
    num_text_bytes: int
    vocab_size: int
    end_of_text: str
    end_of_text_id: int
    cached: bool
    duration_s: float


@dataclass(kw_only=True)
class _Build:
    """One preparation: what goes in, and how far it has come."""

    spec: DataSpec
    files: list[TextFile]
    given: Path | None
    end_of_text: str
    vocab_size: int
    progress: ProgressCallback | None
    meter: Meter = field(default_factory=Meter)

    @cached_property
    def total_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def blocks(self, meter: Meter | None = None) -> Iterator[Block]:
        pieces = read_pieces(self.files, self.spec.text_field, meter or Meter())
        return cut(pieces, block_chars(self.total_bytes, self.spec.validation_fraction))

    def report(self, stage: str, total_bytes: int, num_tokens: int = 0) -> None:
        if self.progress:
            done = min(self.meter.num_bytes, total_bytes)
            documents = self.meter.num_documents
            self.progress(Progress(stage=stage, done_bytes=done, total_bytes=total_bytes, num_documents=documents, num_tokens=num_tokens))


def prepare(spec: DataSpec, cache: Path, *, vocab_size: int | None, sequence_tokens: int, progress: ProgressCallback | None = None) -> Corpus:
    """The corpus of ``spec`` as tokens in a folder of ``cache``: found there, or made.

    The folder's name is a digest of the files' names, sizes and times and of every setting that shapes the tokens, so a changed
    source makes a new folder. Two processes may prepare at once: one works, the other waits and finds its result. A build that
    fails or is killed leaves nothing that is read later. ``vocab_size`` None takes a given tokenizer's own.
    """
    started = time.perf_counter()
    build = _plan(spec, vocab_size, progress)
    fingerprint = _fingerprint(build)
    folder = cache / hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:24]
    index, cached = find(folder), True
    if index is None:
        with storage_errors(cache), lock(cache, folder.name, lambda: build.report("waiting", build.total_bytes)) as alone:
            index = find(folder)
            if index is None:
                cached, index = False, _make(build, folder, fingerprint, alone)
    check_fits(index, sequence_tokens)
    return _corpus(folder, index, cached, time.perf_counter() - started)


def _plan(spec: DataSpec, vocab_size: int | None, progress: ProgressCallback | None) -> _Build:
    given, size, end = None, None, tokenizer.END_OF_TEXT
    if spec.tokenizer:
        given = tokenizer.locate(spec.tokenizer)
        loaded = tokenizer.load(given)
        size, end = tokenizer.vocabulary_size(loaded), tokenizer.end_of_text(loaded, given)
    vocab_size = tokenizer.check_vocabulary(vocab_size, size)
    return _Build(spec=spec, files=resolve(spec.sources), given=given, end_of_text=end, vocab_size=size or vocab_size, progress=progress)


def _fingerprint(build: _Build) -> dict[str, Any]:
    """All that shapes the tokens: files by name, size and time; settings; the tokenizer or the size of the one to train."""
    listing = hashlib.sha256()
    for file in build.files:
        listing.update(json.dumps([file.name, str(file.path), file.size_bytes, file.modified_ns]).encode())
    return {
        "format": FORMAT,
        "sources": list(build.spec.sources),
        "num_files": len(build.files),
        "num_bytes": build.total_bytes,
        "files_sha256": listing.hexdigest(),
        "text_field": build.spec.text_field,
        "tokenizer": shards.file_sha256(build.given) if build.given else f"byte-level BPE {build.vocab_size}",
        "end_of_text": build.end_of_text,
        "validation_fraction": build.spec.validation_fraction,
        "shard_bytes": build.spec.shard_bytes,
    }


def _corpus(folder: Path, index: shards.Index, cached: bool, duration_s: float) -> Corpus:
    return Corpus(
        folder=folder,
        tokenizer=folder / shards.TOKENIZER,
        num_train_tokens=index.num_tokens("train"),
        num_validation_tokens=index.num_tokens("validation"),
        num_documents=index.num_documents,
        num_text_bytes=index.num_text_bytes,
        vocab_size=index.vocab_size,
        end_of_text=index.end_of_text,
        end_of_text_id=index.end_of_text_id,
        cached=cached,
        duration_s=duration_s,
    )


def _make(build: _Build, folder: Path, fingerprint: dict[str, Any], alone: bool) -> shards.Index:
    """Builds in a temporary folder beside ``folder`` and puts it there in one rename."""
    if alone:
        remove_stale(folder)
    temporary = temporary_folder(folder)
    try:
        _write(build, temporary, fingerprint)
        if resolve(build.spec.sources) != build.files:
            raise DataError("the sources changed while they were read", hint="start the job again when nothing writes to them")
        publish(temporary, folder)
        return shards.load_index(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(build: _Build, folder: Path, fingerprint: dict[str, Any]) -> None:
    trained = _tokenizer(build, folder)
    end_id = trained.get_vocab(with_added_tokens=True)[build.end_of_text]
    splits, num_text_bytes = _tokenise(build, folder, trained, end_id)
    index = shards.Index(
        dtype=shards.token_dtype(build.vocab_size),
        vocab_size=tokenizer.vocabulary_size(trained),
        end_of_text=build.end_of_text,
        end_of_text_id=end_id,
        tokenizer_sha256=shards.file_sha256(folder / shards.TOKENIZER),
        num_documents=build.meter.num_documents,
        num_text_bytes=num_text_bytes,
        fingerprint=fingerprint,
        splits=splits,
    )
    shards.save_index(folder, index)


def _tokenizer(build: _Build, folder: Path) -> Tokenizer:
    """The given tokenizer or a trained one, saved as the folder's tokenizer.json."""
    if build.given:
        write_atomic(folder / shards.TOKENIZER, build.given.read_text(encoding="utf-8"))
        return tokenizer.load(build.given)
    total_bytes = min(build.total_bytes, tokenizer.SAMPLE_BYTES)
    watched = _watch(tokenizer.sample(build.files, build.spec.text_field, build.meter), lambda: build.report("tokenizer", total_bytes))
    trained = tokenizer.train(watched, build.vocab_size)
    write_atomic(folder / shards.TOKENIZER, trained.to_str(pretty=True))
    return trained


def _watch(texts: Iterator[str], report: Callable[[], None]) -> Iterator[str]:
    for text in texts:
        yield text
        report()


def _tokenise(build: _Build, folder: Path, trained: Tokenizer, end_id: int) -> tuple[dict[str, tuple[shards.Shard, ...]], int]:
    """Every block through the tokenizer, a batch at a time on all cores, into its split's shards."""
    threshold = validation_threshold(build.blocks, build.spec.validation_fraction, build.total_bytes)
    build.meter = Meter()
    trained.encode_special_tokens = True  # "<|endoftext|>" written in a text is text
    dtype, size = shards.token_dtype(build.vocab_size), build.spec.shard_bytes
    writers = {split: shards.ShardWriter(folder, split, dtype=dtype, shard_bytes=size, end_of_text_id=end_id) for split in shards.SPLITS}
    num_text_bytes = 0
    try:
        for batch in _batches(build.blocks(build.meter)):
            encoded = trained.encode_batch_fast([block.text for block in batch], add_special_tokens=False)
            for block, encoding in zip(batch, encoded, strict=True):
                split = "validation" if block.hash < threshold else "train"
                writers[split].append(encoding.ids, block.document, block.position)
                num_text_bytes += len(block.text.encode())
            build.report("tokens", build.total_bytes, sum(writer.num_tokens for writer in writers.values()))
        return {split: writer.close() for split, writer in writers.items()}, num_text_bytes
    finally:
        for writer in writers.values():
            writer.abandon()


def _batches(blocks: Iterator[Block]) -> Iterator[list[Block]]:
    """Lists of blocks, 256 Ki characters a core: the tokenizer library takes some 200 bytes a token, and a text may have three a character."""
    most_chars = CHARS_PER_CORE * min(os.cpu_count() or 1, MOST_CORES)
    batch: list[Block] = []
    num_chars = 0
    for block in blocks:
        batch.append(block)
        num_chars += len(block.text)
        if num_chars >= most_chars:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch
