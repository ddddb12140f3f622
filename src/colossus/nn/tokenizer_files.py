"""tokenizer.json and its companions in a Hugging Face folder: which token ends a text, and what transformers needs to know."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossus.spec.errors import DataError

# Spelled so in the tokenizers of Llama 1-3, Qwen, GPT-2 and ours; only looked up among a tokenizer's special tokens.
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")
_BEGINS = ("<|begin_of_text|>", "<s>", "<bos>", "<|bos|>")
_HINT = "give the file that `tokenizers` or transformers saved"
_COMPANIONS = ("special_tokens_map.json", "chat_template.jinja", "added_tokens.json")


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
    config = _config_beside(tokenizer)
    bos, eos = _choose(config.get("bos_token"), _BEGINS, ids), _choose(config.get("eos_token"), _ENDS, ids)
    return SpecialTokens(bos, ids.get(bos or ""), eos, ids.get(eos or ""))


def write_tokenizer(folder: Path, tokenizer: Path, special: SpecialTokens, max_tokens: int) -> None:
    """Copies tokenizer.json and its companions into ``folder``, and writes a tokenizer_config.json where there was none."""
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    for name in _COMPANIONS:
        if (tokenizer.parent / name).is_file():
            shutil.copyfile(tokenizer.parent / name, folder / name)
    ours = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": special.bos, "eos_token": special.eos, "clean_up_tokenization_spaces": False}
    config = _config_beside(tokenizer) or {key: value for key, value in ours.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": max_tokens}, indent=2) + "\n", encoding="utf-8")


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


def _config_beside(tokenizer: Path) -> dict[str, Any]:
    file = tokenizer.parent / "tokenizer_config.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _choose(named: Any, usual: tuple[str, ...], ids: dict[str, int]) -> str | None:
    """A config names a token as text or as {"content": text}."""
    text = named.get("content") if isinstance(named, dict) else named
    return text if text in ids else next((token for token in usual if token in ids), None)
