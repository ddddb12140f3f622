"""Preparing a corpus: nothing of the text is lost, the cache is whole or absent, damage is found and named."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from data_words import prose
from tokenizers import Tokenizer

from colossus.spec.errors import DataError, StorageError
from colossus.spec.job import DataSpec
from colossus.train.data import Corpus, Progress, open_dataset, prepare
from colossus.train.data.shards import load_index

Make = Callable[..., Corpus]


def contents(corpus: Corpus, split: str) -> list[str]:
    """The split's documents and stretches of documents, decoded."""
    index = load_index(corpus.folder)
    tokens = np.concatenate([np.fromfile(corpus.folder / shard.file, index.dtype) for shard in index.splits[split]])
    assert tokens[-1] == corpus.end_of_text_id
    cuts = np.flatnonzero(tokens == corpus.end_of_text_id)
    decode = Tokenizer.from_file(str(corpus.tokenizer)).decode
    return [decode(part[part != corpus.end_of_text_id].tolist()) for part in np.split(tokens, cuts[:-1] + 1)]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("shard_bytes", [1000, 2**20])
def test_every_character_is_in_one_part(make: Make, texts: Path, shard_bytes: int) -> None:
    corpus = make(texts, validation_fraction=0.1, shard_bytes=shard_bytes)
    train, validation = contents(corpus, "train"), contents(corpus, "validation")
    documents = [path.read_text() for path in texts.iterdir()]
    assert sum(map(len, train + validation)) == sum(map(len, documents))
    assert all(any(part in document for document in documents) for part in train + validation)
    assert 0.03 < sum(map(len, validation)) / sum(map(len, documents)) < 0.3
    assert corpus.num_documents == 6
    assert corpus.num_text_bytes == sum(len(document.encode()) for document in documents)
    index = load_index(corpus.folder)
    assert index.dtype == "<u2"
    assert all(shard.num_tokens * 2 <= shard_bytes for shard in index.splits["train"])


def test_one_book_alone_has_both_parts(make: Make, texts: Path) -> None:
    corpus = make(texts / "book.md")
    assert corpus.num_validation_tokens > 100
    assert corpus.num_train_tokens > 20 * corpus.num_validation_tokens


def test_the_same_corpus_makes_the_same_bytes_and_is_found_again(make: Make, texts: Path) -> None:
    first = make(texts)
    assert not first.cached
    assert make(texts).cached
    before = files_of(first.folder)
    shutil.rmtree(first.folder)
    again = make(texts)
    assert not again.cached
    assert again.folder == first.folder
    assert files_of(again.folder) == before
    assert sorted(path.name for path in first.folder.parent.iterdir()) == [f".{first.folder.name}.lock", first.folder.name]


def test_what_shapes_the_tokens_shapes_the_key(make: Make, texts: Path) -> None:
    folders = {make(texts).folder, make(texts, vocab_size=300).folder, make(texts, validation_fraction=0.2).folder}
    (texts / "0.txt").write_text(prose(1500, 77))
    folders.add(make(texts).folder)
    assert len(folders) == 4


def test_more_than_65536_tokens_take_four_bytes(make: Make, texts: Path) -> None:
    corpus = make(texts, vocab_size=70_000)
    assert load_index(corpus.folder).dtype == "<u4"
    assert "".join(contents(corpus, "train"))


def test_progress_runs_to_the_end(texts: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    spec = DataSpec(sources=[str(texts)])
    corpus = prepare(spec, tmp_path / "cache", vocab_size=300, sequence_tokens=16, progress=seen.append)
    assert {item.stage for item in seen} == {"tokenizer", "tokens"}
    assert all(0 <= item.done_bytes <= item.total_bytes for item in seen)
    last = seen[-1]
    assert last.done_bytes == last.total_bytes
    assert last.num_documents == 6
    assert 0 < corpus.num_train_tokens + corpus.num_validation_tokens - last.num_tokens <= 2


def test_a_source_that_changes_meanwhile_is_refused(texts: Path, tmp_path: Path) -> None:
    def grow(progress: Progress) -> None:
        (texts / "0.txt").write_text("changed")

    with pytest.raises(DataError, match="changed while they were read"):
        prepare(DataSpec(sources=[str(texts)]), tmp_path / "cache", vocab_size=300, sequence_tokens=16, progress=grow)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


@pytest.mark.parametrize("damage", ["flip", "shorten", "delete", "tokenizer", "index"])
def test_damage_is_found_named_and_mended(make: Make, texts: Path, damage: str) -> None:
    corpus = make(texts, shard_bytes=2000)
    before = files_of(corpus.folder)
    name = {"tokenizer": "tokenizer.json", "index": "index.json"}.get(damage, "train-00001.bin")
    file = corpus.folder / name
    if damage == "delete":
        file.unlink()
    else:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 64
        file.write_bytes(data[:-100] if damage in ("shorten", "index") else data)
    with pytest.raises(DataError, match=name) as caught:
        open_dataset(corpus.folder, sequence_tokens=16, num_sequences=2, seed=0, verify=True)
    assert "delete" in str(caught.value.hint)
    if damage in ("flip", "tokenizer"):  # of the right length: only a checksum tells, and the user does as the hint says
        file.unlink()
    assert not make(texts, shard_bytes=2000).cached
    assert files_of(corpus.folder) == before


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    for expected in ("is not a tokenised corpus", "cannot be read as a corpus index"):
        with pytest.raises(DataError, match=expected):
            open_dataset(tmp_path, sequence_tokens=16, num_sequences=2, seed=0, verify=False)
        (tmp_path / "index.json").write_text(json.dumps({"schema": 1, "kind": "other"}))


PREPARE = """
import sys, time
from pathlib import Path
from colossus.spec.job import DataSpec
from colossus.train.data import prepare
stages = set()
def slow(progress):
    stages.add(progress.stage)
    time.sleep(float(sys.argv[3]) if progress.stage == "tokens" else 0)
corpus = prepare(DataSpec(sources=[sys.argv[1]]), Path(sys.argv[2]), vocab_size=300, sequence_tokens=16, progress=slow)
print(corpus.cached, corpus.folder, *sorted(stages), flush=True)
"""


def start(texts: Path, cache: Path, pause_s: float) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PREPARE, str(texts), str(cache), str(pause_s)], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_at_once_make_one_corpus(texts: Path, tmp_path: Path) -> None:
    said = [process.communicate()[0].split() for process in [start(texts, tmp_path / "cache", 2) for _ in range(3)]]
    assert sorted(cached for cached, *_ in said) == ["False", "True", "True"]
    assert len({folder for _, folder, *_ in said}) == 1
    for cached, _, *stages in said:
        assert stages in ([["tokenizer", "tokens"]] if cached == "False" else [["waiting"], []])


def test_a_killed_preparation_leaves_nothing_that_is_read(texts: Path, tmp_path: Path, make: Make) -> None:
    cache = tmp_path / "cache"
    process = start(texts, cache, 60)
    deadline = time.monotonic() + 30
    while not list(cache.glob(".*.tmp*/train-00000.bin")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert list(cache.glob(".*.tmp*"))
    corpus = make(texts, vocab_size=300)
    assert not corpus.cached
    assert sorted(path.name for path in cache.iterdir()) == [f".{corpus.folder.name}.lock", corpus.folder.name]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if not mount or subprocess.run([mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("shard_bytes", [4000, 2**26])
def test_a_full_disk_harms_nothing(small_disk: Path, texts: Path, tmp_path: Path, shard_bytes: int) -> None:
    def prepare_in(source: Path) -> Corpus:
        spec = DataSpec(sources=[str(source)], shard_bytes=shard_bytes)
        return prepare(spec, small_disk, vocab_size=300, sequence_tokens=16)

    old = prepare_in(texts)
    before = files_of(old.folder)
    (tmp_path / "large.txt").write_text(prose(500_000))
    with pytest.raises(StorageError, match=r"is full .* the corpus was not written, older ones are unharmed") as caught:
        prepare_in(tmp_path / "large.txt")
    assert "free some space" in str(caught.value.hint)
    assert [path for path in small_disk.iterdir() if path.is_dir()] == [old.folder]
    assert prepare_in(texts).cached
    assert files_of(old.folder) == before


def test_a_cache_that_cannot_be_written(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write to"):
        prepare(DataSpec(sources=[str(texts)]), tmp_path / "file" / "cache", vocab_size=300, sequence_tokens=16)
