"""tokenizer.json and its companions in a Hugging Face folder: which token ends a text, and what transformers needs to know."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossus.spec.errors import DataError

# Spelled so in the tokenizers of Llama 1-3, Qwen, GPT-2, BERT and ours; a corpus is cut by the first that a tokenizer has.
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<|im_end|>", "[SEP]")
_BEGINS = ("<|begin_of_text|>", "<s>", "<bos>", "<|bos|>")
_HINT = "give the file that `tokenizers` or transformers saved"
_CONFIG, _GENERATION = "tokenizer_config.json", "generation_config.json"
_COMPANIONS = (_CONFIG, _GENERATION, "special_tokens_map.json", "chat_template.jinja", "added_tokens.json")


@dataclass(frozen=True)
class SpecialTokens:
    """The tokens that begin and end a text, None where the tokenizer has none."""

    bos: str | None
    bos_id: int | None
    eos: str | None
    eos_id: int | None


def find_special_tokens(tokenizer: Path, vocab_size: int) -> SpecialTokens:
    """Reads a tokenizer.json; what tokenizer_config.json beside it names goes before our own list of usual spellings."""
    data = _read(tokenizer)
    ids = {token["content"]: token["id"] for token in data.get("added_tokens", []) if token.get("special")}
    largest = max([*ids.values(), *_vocabulary(data).values(), 0])
    if largest >= vocab_size:
        hint = f"the model needs vocab_size {largest + 1} or more"
        raise DataError(f"{tokenizer} has token ids up to {largest}, the model's vocabulary ends at {vocab_size - 1}", hint=hint)
    config = _read_beside(tokenizer, _CONFIG)
    bos, eos = _choose(config.get("bos_token"), _BEGINS, ids), _choose(config.get("eos_token"), ENDS, ids)
    return SpecialTokens(bos, ids.get(bos or ""), eos, ids.get(eos or ""))


def write_tokenizer(folder: Path, tokenizer: Path, special: SpecialTokens, max_tokens: int) -> None:
    """Copies tokenizer.json and its companions into ``folder``, and writes a tokenizer_config.json where there was none."""
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    copy_companions(tokenizer, folder)
    ours = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": special.bos, "eos_token": special.eos, "clean_up_tokenization_spaces": False}
    config = _read_beside(tokenizer, _CONFIG) or {key: value for key, value in ours.items() if value is not None}
    (folder / _CONFIG).write_text(json.dumps(config | {"model_max_length": max_tokens}, indent=2) + "\n", encoding="utf-8")


def copy_companions(tokenizer: Path, folder: Path) -> None:
    """Copies what lies beside a tokenizer.json (or in the folder given) and belongs to it into ``folder``."""
    source = tokenizer if tokenizer.is_dir() else tokenizer.parent
    for name in _COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def end_ids(tokenizer: Path) -> set[int]:
    """The tokens at which generation_config.json beside a tokenizer.json says that a text ends: those of a chat's turns too."""
    ids = generation_config(tokenizer.parent).get("eos_token_id")
    return set(ids) if isinstance(ids, list) else set() if ids is None else {ids}


def generation_config(folder: Path) -> dict[str, Any]:
    """What generation_config.json in a model's folder says; empty where there is none."""
    return _read_beside(folder / "tokenizer.json", _GENERATION)


def _read(tokenizer: Path) -> dict[str, Any]:
    try:
        data = json.loads(tokenizer.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{tokenizer} cannot be read as a tokenizer.json: {error}", hint=_HINT) from None
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise DataError(f"{tokenizer} is no tokenizer.json: it has no model", hint=_HINT)
    return data


def _vocabulary(data: dict[str, Any]) -> dict[str, int]:
    """Token -> id; a Unigram model lists its pieces in the order of their ids."""
    vocab = data["model"].get("vocab", {})
    return vocab if isinstance(vocab, dict) else {str(index): index for index in range(len(vocab))}


def _read_beside(tokenizer: Path, name: str) -> dict[str, Any]:
    file = tokenizer.parent / name
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{file} cannot be read as a JSON object: {error}", hint="mend it, or take it away") from None


def _choose(named: Any, usual: tuple[str, ...], ids: dict[str, int]) -> str | None:
    """A config names a token as text or as {"content": text}."""
    text = named.get("content") if isinstance(named, dict) else named
    return text if text in ids else next((token for token in usual if token in ids), None)
