"""Writes a model as a Hugging Face folder that ``AutoModelForCausalLM`` and ``AutoTokenizer`` of transformers load.

The folder appears whole or not at all: it is written beside its place and renamed into it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from colossus.nn.hf_config import config_data
from colossus.nn.hf_weights import Coords, Leaf, leaves
from colossus.nn.safetensors_io import write_file
from colossus.nn.tokenizer_files import SpecialTokens, find_special_tokens, write_tokenizer
from colossus.spec.errors import DataError, StorageError
from colossus.spec.model import ModelCard

MAX_SHARD_BYTES = 5 * 10**9

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Piece:
    """One tensor to write: a leaf of the tree at one layer and expert."""

    leaf: Leaf
    coords: Coords

    @property
    def name(self) -> str:
        return self.leaf.name_at(self.coords)

    @property
    def num_elements(self) -> int:
        return prod(self.leaf.stored)


def export_folder(folder: Path, card: ModelCard, params: Params, tokenizer: Path, *, dtype: Any = np.float32, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Writes config.json, generation_config.json, safetensors of at most ``max_shard_bytes`` and the tokenizer.

    ``tokenizer`` is a tokenizer.json; what lies beside it (tokenizer_config.json, a chat template) goes along.
    Raises StorageError when ``folder`` holds something or the disk refuses, DataError when tree and card differ.
    """
    _check_free(folder)
    _check_tree(card, params)
    special = find_special_tokens(tokenizer, card.vocab_size)
    pieces = _pieces(card)
    kind = np.dtype(dtype)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            _write_weights(draft, pieces, params, kind, max_shard_bytes)
            _write_configs(draft, card, kind, special)
            write_tokenizer(draft, tokenizer, special, card.max_sequence_tokens)
            draft.chmod(0o755)
            os.rename(draft, folder)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    except OSError as error:
        need = sum(piece.num_elements for piece in pieces) * kind.itemsize
        hint = f"the weights need {need / 1e9:.3g} GB of free disk"
        raise StorageError(f"cannot write {folder}: {error}; nothing was left there", hint=hint) from None


def _pieces(card: ModelCard) -> list[Piece]:
    """All tensors, layer by layer, so that a shard holds whole layers where it can."""
    found = [Piece(leaf, coords) for leaf in leaves(card) for coords in leaf.coords]
    last = card.num_layers
    return sorted(found, key=lambda piece: piece.coords[0] if piece.coords else -1 if piece.leaf.path[0] == "embed" else last)


def _shards(pieces: list[Piece], itemsize: int, max_bytes: int) -> list[list[Piece]]:
    shards: list[list[Piece]] = [[]]
    size = 0
    for piece in pieces:
        nbytes = piece.num_elements * itemsize
        if shards[-1] and size + nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(piece)
        size += nbytes
    return shards


def _write_weights(draft: Path, pieces: list[Piece], params: Params, dtype: np.dtype, max_bytes: int) -> None:
    shards = _shards(pieces, dtype.itemsize, max_bytes)
    if len(shards) == 1:
        _write_shard(draft / "model.safetensors", pieces, params, dtype)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(draft / file, shard, params, dtype)
        weight_map |= {piece.name: file for piece in shard}
    total = sum(piece.num_elements for piece in pieces)
    metadata = {"total_parameters": total, "total_size": total * dtype.itemsize}
    write_json(draft / "model.safetensors.index.json", {"metadata": metadata, "weight_map": weight_map})


def _write_shard(file: Path, shard: list[Piece], params: Params, dtype: np.dtype) -> None:
    specs = {piece.name: (dtype, piece.leaf.stored) for piece in shard}
    write_file(file, _arrays(shard, params, dtype), specs)


def _arrays(shard: list[Piece], params: Params, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    for piece in shard:
        group, name = piece.leaf.path
        array = np.asarray(params[group][name][piece.coords])
        yield piece.name, piece.leaf.to_stored(array).astype(dtype)


def _write_configs(draft: Path, card: ModelCard, dtype: np.dtype, special: SpecialTokens) -> None:
    ids = {"bos_token_id": special.bos_id, "eos_token_id": special.eos_id}
    write_json(draft / "config.json", config_data(card, dtype=dtype.name, **ids))
    write_json(draft / "generation_config.json", {key: value for key, value in ids.items() if value is not None})


def write_json(file: Path, data: Any) -> None:
    with file.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(data, indent=2) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _check_free(folder: Path) -> None:
    hint = "give another folder, or empty this one first"
    if folder.is_dir() and any(folder.iterdir()):
        raise StorageError(f"{folder} is not empty; nothing is overwritten", hint=hint)
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{folder} is a file", hint=hint)


def _check_tree(card: ModelCard, params: Params) -> None:
    expected: dict[tuple[str, ...], tuple[int, ...]] = {leaf.path: leaf.shape for leaf in leaves(card)}
    given: dict[tuple[str, ...], tuple[int, ...]] = {(group, name): tuple(array.shape) for group, arrays in params.items() for name, array in arrays.items()}
    wrong = [f"{'.'.join(path)} {given.get(path, 'absent')}: must be {shape}" for path, shape in expected.items() if given.get(path) != shape]
    wrong += [f"{'.'.join(path)} {shape}: is no part of this model" for path, shape in given.items() if path not in expected]
    if wrong:
        raise DataError("\n  ".join(["the parameters do not fit the model card", *wrong]))
