"""Hugging Face folders in: ``read_card`` and ``load_params``; out: ``colossus.nn.hf_export``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from colossus.nn.hf_config import read_card as read_card
from colossus.nn.hf_weights import Leaf, leaves, stored_shapes, tree
from colossus.nn.safetensors_io import Stored, read_folder
from colossus.spec.errors import DataError, nearest
from colossus.spec.model import ModelCard

_SHOWN = 8  # broken tensors named in one message

Index = tuple[slice, ...]


@dataclass(frozen=True)
class LeafReader:
    """One array of the tree, still on disk; called with an index it reads that part alone.

    ``jax.make_array_from_callback(reader.shape, sharding, reader)`` gives each device its shard and no more.
    """

    leaf: Leaf
    tensors: Mapping[str, Stored]
    dtype: np.dtype

    @property
    def path(self) -> tuple[str, ...]:
        return self.leaf.path

    @property
    def shape(self) -> tuple[int, ...]:
        return self.leaf.shape

    def __call__(self, index: Index = ()) -> np.ndarray:
        """The slice ``array[index]`` (steps of 1), as ``dtype``."""
        full = index + (slice(None),) * (len(self.shape) - len(index))
        ranges = [range(*part.indices(size)) for part, size in zip(full, self.shape, strict=True)]
        depth = len(self.leaf.stack)
        out = np.empty([len(part) for part in ranges], self.dtype)
        for place in np.ndindex(*out.shape[:depth]):
            coords = tuple(part[i] for part, i in zip(ranges, place, strict=False))
            stored = self.tensors[self.leaf.name_at(coords)].open()
            out[place] = self.leaf.from_stored(stored)[full[depth:]]
        return out


def read_whole(reader: LeafReader) -> np.ndarray:
    return reader()


def load_params(folder: Path, card: ModelCard, *, dtype: Any = np.float32, read: Callable[[LeafReader], Any] = read_whole) -> dict[str, Any]:
    """The parameter tree of the folder's weights, each leaf what ``read`` makes of its reader (whole, as numpy, by default).

    Names and shapes of all tensors are checked from the headers before any weight is read; DataError lists what is
    missing, misshapen or unknown. ``card`` is ``read_card(folder)`` or must have its shape.
    """
    tensors = read_folder(folder)
    _check(folder, card, tensors)
    readers = {leaf.path: LeafReader(leaf, tensors, np.dtype(dtype)) for leaf in leaves(card)}
    return tree(card, {path: read(reader) for path, reader in readers.items()})


def tokenizer_file(folder: Path) -> Path:
    """``folder/tokenizer.json``; DataError when the folder has none."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        hint = "make one with AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        raise DataError(f"{folder} has no tokenizer.json", hint=hint)
    return file


def _check(folder: Path, card: ModelCard, tensors: Mapping[str, Stored]) -> None:
    expected = stored_shapes(card)
    unknown = [name for name in tensors if name not in expected and not _ignorable(name, card)]
    lines = []
    for name, shape in expected.items():
        if name not in tensors:
            lines.append(f"{name} {shape}: is missing" + _hint(name, unknown))
        elif tensors[name].shape != shape:
            lines.append(f"{name} = {tensors[name].shape}: must be {shape}")
    lines += [f"{name} {tensors[name].shape}: is no part of this model" for name in unknown]
    if lines:
        more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        message = [f"{folder}: {len(lines)} tensors do not fit its config.json", *lines[:_SHOWN], *more]
        raise DataError("\n  ".join(message), hint="is config.json that of these weights? (tie_word_embeddings, num_hidden_layers, head_dim, ...)")


def _ignorable(name: str, card: ModelCard) -> bool:
    """Old checkpoints carry RoPE's frequencies; tied ones may carry the embedding twice."""
    return name.endswith("rotary_emb.inv_freq") or (card.tie_embeddings and name == "lm_head.weight")


def _hint(name: str, unknown: list[str]) -> str:
    close = nearest(name, unknown) if unknown else None
    return f" ({close})" if close and close.startswith("did") else ""
