"""The tokenizer: any text comes back, the same corpus gives the same one, and others can load it."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from data_words import prose
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from colossus.spec.errors import DataError
from colossus.train.data import Corpus, open_dataset
from colossus.train.data.readers import Meter
from colossus.train.data.sources import TextFile
from colossus.train.data.tokenizer import END_OF_TEXT, sample, train

Make = Callable[..., Corpus]
TRAINED = train(iter([prose(20_000)]), 500)


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    TRAINED.encode_special_tokens = True
    assert TRAINED.decode(TRAINED.encode(text).ids, skip_special_tokens=False) == text


def test_training_is_deterministic_across_processes() -> None:
    program = "import sys, hashlib; sys.path.insert(0, sys.argv[1]); from data_words import prose; from colossus.train.data.tokenizer import train"
    program += "; print(hashlib.sha256(train(iter([prose(20_000)]), 500).to_str().encode()).hexdigest())"
    expected = hashlib.sha256(TRAINED.to_str().encode()).hexdigest()
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", program, str(Path(__file__).parent)], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


def test_transformers_loads_it(make: Make, texts: Path) -> None:
    transformers = pytest.importorskip("transformers")
    corpus = make(texts)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(corpus.tokenizer))
    text = "the ship sails 船\n\n  home"
    assert fast.decode(fast(text)["input_ids"]) == text
    assert fast.convert_tokens_to_ids(END_OF_TEXT) == corpus.end_of_text_id == 0


def test_end_of_text_written_in_a_text_is_text(make: Make, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"{END_OF_TEXT} is a token\n" * 300)
    (tmp_path / "b.txt").write_text("other")
    corpus = make(tmp_path / "a.txt", tmp_path / "b.txt")
    data = open_dataset(corpus.folder, sequence_tokens=2, num_sequences=1, seed=0, verify=True)
    tokens = [token for step in range(data.num_train_windows) for token in data.batch(step, range(1))[0].ravel()]
    assert tokens.count(corpus.end_of_text_id) <= 3


def test_a_given_tokenizer_is_used(make: Make, texts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    given = Tokenizer.from_str(TRAINED.to_str())
    given.add_special_tokens(["<stop>"])
    given.enable_truncation(5)
    given.save(str(folder / "tokenizer.json"))
    corpus = make(texts, tokenizer=str(folder), vocab_size=None)
    assert corpus.vocab_size == given.get_vocab_size()
    assert corpus.end_of_text == END_OF_TEXT
    assert corpus.num_train_tokens > 3000
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<stop>"}}))
    assert make(texts, tokenizer=str(folder / "tokenizer.json"), vocab_size=4096).end_of_text == "<stop>"
    with pytest.raises(DataError, match=f"the tokenizer has {given.get_vocab_size()} tokens, the model room for 300"):
        make(texts, tokenizer=str(folder), vocab_size=300)


def test_bad_tokenizers(make: Make, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokenizer\.json there"):
        make(texts, tokenizer=str(tmp_path / "nowhere"))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"is not a tokenizer\.json"):
        make(texts, tokenizer=str(tmp_path))
    bare = Tokenizer.from_str(TRAINED.to_str().replace(END_OF_TEXT, "<|pad|>"))
    bare.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="no end-of-text token") as caught:
        make(texts, tokenizer=str(tmp_path))
    assert "<|pad|>" in str(caught.value.hint)
    with pytest.raises(DataError, match="vocab_size is missing"):
        make(texts, vocab_size=None)
    with pytest.raises(DataError, match="vocab_size 100 is too small"):
        make(texts, vocab_size=100)


def test_a_large_corpus_is_sampled_in_proportion(tmp_path: Path) -> None:
    files = []
    for name, size in (("a", 40_000), ("b", 10_000)):
        (tmp_path / name).write_text(name * size)
        files.append(TextFile(name=name, path=tmp_path / name, size_bytes=size, modified_ns=0))
    assert "".join(sample(files, "text", Meter(), 1000)) == "a" * 800 + "b" * 200
    assert "".join(sample(files, "text", Meter(), 10**9)) == "a" * 40_000 + "b" * 10_000


def test_a_genome_is_learned_from_in_parts() -> None:
    """A word of a million letters would cost a scan of it for each merge."""
    draw = random.Random(0)
    genome = "".join(draw.choice("ACGT") for _ in range(1_000_000))
    started = time.perf_counter()
    learned = train(iter([genome]), 1000)
    assert time.perf_counter() - started < 30
    assert len(learned.encode(genome[:10_000]).ids) < 4000
