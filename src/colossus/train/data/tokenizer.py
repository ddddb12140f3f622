"""The tokenizer of a run: a byte-level BPE trained on the corpus, or one that is given."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from colossus.nn.tokenizer_files import ENDS
from colossus.spec.errors import DataError, nearest
from colossus.train.data.readers import Meter, read_pieces
from colossus.train.data.sources import TextFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
SAMPLE_BYTES = 16 * 2**20
LEAST_VOCABULARY = 257
LONG_RUN = re.compile(r"\S{128}")


def train(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE as GPT-2's: any UTF-8 text can be encoded and comes back unchanged.

    Runs of more than 128 characters without a space (genomes, base64) are learned from in parts: a merge costs the length of each
    word that holds it. The same texts give the same tokenizer. A small corpus may hold too few pairs to fill ``vocab_size``; it is then smaller.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator((LONG_RUN.sub(r"\g<0>\n", text) for text in texts), trainer)
    return tokenizer


def sample(files: list[TextFile], text_field: str, meter: Meter, num_bytes: int = SAMPLE_BYTES) -> Iterator[str]:
    """What a tokenizer is trained on: all of a corpus up to 16 MiB of text; of a larger one the beginning of each file, in
    proportion to the file's size on disk. Training takes up to about 60 times the sample's bytes where words seldom recur."""
    total_bytes = sum(file.size_bytes for file in files)
    for file in files:
        left = -(-num_bytes * file.size_bytes // total_bytes)
        for piece in read_pieces([file], text_field, meter):
            data = piece.text.encode()
            yield piece.text if len(data) <= left else data[:left].decode(errors="ignore")
            left -= len(data)
            if left <= 0:
                break


def locate(given: str) -> Path:
    """The tokenizer.json that ``data.tokenizer`` names."""
    path = Path(given).expanduser()
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        near = nearest(path.name, [entry.name for entry in path.parent.iterdir()]) if path.parent.is_dir() else None
        raise DataError(f"data.tokenizer = {given}: no tokenizer.json there", hint=near or "give a tokenizer.json or a folder that holds one")
    return file


def load(file: Path) -> Tokenizer:
    """A given tokenizer, its truncation and padding switched off."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # noqa: BLE001 the library raises bare Exception for bad files
        raise DataError(f"{file} is not a tokenizer.json: {error}", hint="save one with tokenizers' Tokenizer.save or transformers' save_pretrained") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the greatest token id."""
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)


def end_of_text(tokenizer: Tokenizer, file: Path) -> str:
    """The token between documents: what tokenizer_config.json beside ``file`` calls eos_token, else a usual name."""
    for name in (*_configured_end(file), *ENDS):
        if tokenizer.token_to_id(name) is not None:
            return name
    special = sorted(token.content for token in tokenizer.get_added_tokens_decoder().values())
    raise DataError(
        f"{file}: the tokenizer has no end-of-text token",
        hint=f"looked for {', '.join(ENDS)}; it has: {', '.join(special[:10]) or 'none'}; name one eos_token in tokenizer_config.json",
    )


def _configured_end(file: Path) -> Iterable[str]:
    try:
        token = json.loads((file.parent / "tokenizer_config.json").read_text())["eos_token"]
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    content = token.get("content") if isinstance(token, dict) else token
    return (content,) if isinstance(content, str) else ()


def check_vocabulary(vocab_size: int | None, tokenizer_size: int | None) -> int:
    """The vocabulary asked for, checked against what the tokenizer needs (None: it is yet to be trained)."""
    if vocab_size is None and tokenizer_size is None:
        raise DataError("data.vocab_size is missing", hint="a tokenizer trained on the corpus needs one: 2048 for a few MB of text, 32768 for many GB")
    if vocab_size is None or tokenizer_size is None:
        size = vocab_size or tokenizer_size or 0
        if tokenizer_size is None and size < LEAST_VOCABULARY:
            raise DataError(f"vocab_size {size} is too small", hint=f"at least {LEAST_VOCABULARY}: 256 bytes and {END_OF_TEXT}")
        return size
    if tokenizer_size > vocab_size:
        raise DataError(f"the tokenizer has {tokenizer_size} tokens, the model room for {vocab_size}", hint=f"set vocab_size to {tokenizer_size} or more")
    return vocab_size
