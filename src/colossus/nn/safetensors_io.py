"""Safetensors files, read by memory map and written tensor by tensor: a slice costs its own bytes, not the file's.

Format: 8 bytes little-endian length, a JSON header {name: {dtype, shape, data_offsets}}, then the data
(https://github.com/huggingface/safetensors). The library's own readers give no bfloat16 slices to numpy, and its writer wants a whole
shard in memory; hence these few lines.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from colossus.spec.errors import DataError, nearest

DTYPES = {"F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class Stored:
    """One tensor on disk."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def open(self) -> np.ndarray:
        """A read-only map of the tensor; DataError for a dtype that is no plain float."""
        if self.dtype not in DTYPES:
            hint = "valid: " + ", ".join(DTYPES) + "; dequantise the weights first"
            raise DataError(f"{self.file} holds dtype {self.dtype}, which is not read here", hint=hint)
        return np.memmap(self.file, dtype=DTYPES[self.dtype], mode="r", offset=self.offset, shape=self.shape)


def read_folder(folder: Path) -> dict[str, Stored]:
    """All tensors of ``model.safetensors`` or of the shards that its index names; reads headers alone."""
    if (folder / _INDEX).exists():
        return _read_shards(folder)
    if (folder / _SINGLE).exists():
        return read_header(folder / _SINGLE)
    hint = "write it anew with save_pretrained(safe_serialization=True)" if list(folder.glob("*.bin")) else "the folder holds " + _listing(folder)
    raise DataError(f"{folder} has neither {_SINGLE} nor {_INDEX}", hint=hint)


def read_header(file: Path) -> dict[str, Stored]:
    """The tensors of one file, each checked to lie inside it."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
                raise ValueError(f"its header claims {length} bytes of {size}")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        return {name: _stored(file, name, entry, 8 + length, size) for name, entry in header.items()}
    except FileNotFoundError:
        hint = nearest(file.name, [sibling.name for sibling in file.parent.glob("*.safetensors")])
        raise DataError(f"{file} does not exist, though the index names it", hint=hint) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        hint = "it may be cut short or a Git LFS pointer; download it again"
        raise DataError(f"{file} is not a readable safetensors file: {error}", hint=hint) from None


def write_file(file: Path, tensors: Iterable[tuple[str, Any]], specs: dict[str, tuple[np.dtype, tuple[int, ...]]]) -> None:
    """Writes ``tensors`` (name, array) in the order of ``specs`` (name -> dtype, shape) and flushes them to the disk."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in specs.items():
        begin, end = end, end + dtype.itemsize * prod(shape)
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for (name, array), (expected, (dtype, shape)) in zip(tensors, specs.items(), strict=True):
            if (name, array.dtype, array.shape) != (expected, dtype, shape):
                raise ValueError(f"{name} {array.dtype} {array.shape} came where {expected} {dtype} {shape} was due")
            stream.write(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
        stream.flush()
        os.fsync(stream.fileno())


def _stored(file: Path, name: str, entry: dict[str, Any], start: int, size: int) -> Stored:
    begin, end = entry["data_offsets"]
    shape = tuple(int(dim) for dim in entry["shape"])
    dtype = DTYPES.get(entry["dtype"])
    if not 0 <= begin <= end <= size - start:
        raise ValueError(f"{name} ends at byte {start + end} of {size}")
    if dtype is not None and end - begin != dtype.itemsize * prod(shape):
        raise ValueError(f"{name} has {end - begin} bytes for {shape} {entry['dtype']}")
    return Stored(file, entry["dtype"], shape, start + begin)


def _read_shards(folder: Path) -> dict[str, Stored]:
    index = folder / _INDEX
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = {shard: read_header(folder / shard) for shard in sorted(set(names.values()))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{index} is not a readable index: {error!r}", hint="it must hold a weight_map of tensor names to file names") from None
    absent = [name for name, shard in names.items() if name not in shards[shard]]
    if absent:
        raise DataError(f"{index} says {names[absent[0]]} holds {absent[0]}, which it does not ({len(absent)} such tensors)")
    return {name: shards[shard][name] for name, shard in names.items()}


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())[:8] if folder.is_dir() else []
    return ", ".join(names) or "nothing"
