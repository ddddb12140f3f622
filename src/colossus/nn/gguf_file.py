"""The GGUF container: metadata and quantised tensors of one file, read by memory map (https://github.com/ggml-org/ggml, docs/gguf.md).

Header: "GGUF", version, counts; then key-value pairs; then name, dims (innermost first), type and offset of each tensor; then, aligned,
the data. The ``gguf`` package knows the types and dequantises; its own reader makes an object of every token, seconds for a vocabulary.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from colossus.spec.errors import DataError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT_BYTES = 32  # where general.alignment says nothing else
_MOST_DIMS = 4
_DEEPEST_ARRAY = 3
_BOOL, _STRING, _ARRAY = 7, 8, 9
_SCALARS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", _BOOL: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
_PLAIN = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}
_BLOCKWISE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
_HINT = "is the download complete? compare its size with the publisher's"

Value = Any  # int, float, bool, str, a list of str, or a numpy array


@dataclass(frozen=True)
class GgufTensor:
    """One tensor in the file. ``shape`` is outermost first; of a quantised one each row is a run of blocks."""

    name: str
    kind: int  # GGMLQuantizationType
    shape: tuple[int, ...]
    rows: np.ndarray  # uint8, (*shape[:-1], bytes of a row), a view of the map

    def floats(self, rows: np.ndarray | None = None) -> np.ndarray:
        """The numbers as float32, of all rows or of those given; DataError where this type cannot be dequantised."""
        from gguf import quants
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        kind = GGMLQuantizationType(self.kind)
        chosen = np.ascontiguousarray(self.rows if rows is None else rows)
        if kind.name in _PLAIN:
            return chosen.view(_PLAIN[kind.name]).astype(np.float32, copy=False)
        if kind.name in _BLOCKWISE:  # quants.dequantize takes 16 rows at a time, three times slower
            blocks = chosen.reshape(-1, GGML_QUANT_SIZES[kind][1])
            return np.asarray(getattr(quants, kind.name).dequantize_blocks(blocks).reshape(*chosen.shape[:-1], self.shape[-1]))
        try:
            return np.asarray(quants.dequantize(chosen, kind))
        except NotImplementedError:
            hint = "known: " + ", ".join((*_PLAIN, "BF16", *_BLOCKWISE, "and the IQ types"))
            raise DataError(f"tensor {self.name} is of type {kind.name}, which cannot be dequantised here", hint=hint) from None


@dataclass(frozen=True)
class GgufFile:
    """Metadata and tensors of one file; no tensor is read until it is asked for."""

    path: Path
    metadata: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Opens the file and reads its header; DataError for what is no GGUF, of another version, cut short or contradictory."""
    data = _map(path)
    try:
        return _parse(path, data)
    except (struct.error, ValueError, OverflowError) as error:
        raise DataError(f"{path} is a damaged GGUF file: {error}", hint=_HINT) from None


def _map(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            head = file.read(8)
            if head[:4] != _MAGIC:
                hint = "a Hugging Face folder is given as the folder" if path.suffix in (".safetensors", ".json") else "its first four bytes must be GGUF"
                raise DataError(f"{path} is not a GGUF file", hint=hint)
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


class _Cursor:
    """Reads one value after another and never beyond the file's end."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = data.data
        self.at = 4

    def take(self, size: int) -> memoryview:
        if size > len(self.data) - self.at:
            raise ValueError(f"it ends at byte {len(self.data)}, in the middle of its header")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, form: str) -> int:
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def text(self) -> str:
        return str(self.take(self.number("<Q")), "utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Value:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array(depth)
        scalar = np.frombuffer(self.take(self._dtype(kind).itemsize), self._dtype(kind))
        return scalar[0].item()

    def _array(self, depth: int) -> Value:
        kind, count = self.number("<I"), self.number("<Q")
        if kind in (_STRING, _ARRAY):
            if depth >= _DEEPEST_ARRAY or count * 8 > len(self.data) - self.at:
                raise ValueError(f"an array of {count} entries at byte {self.at} is deeper or longer than the file")
            read: Callable[[], Value] = self.text if kind == _STRING else lambda: self._array(depth + 1)
            return [read() for _ in range(count)]
        dtype = self._dtype(kind)
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)

    def _dtype(self, kind: int) -> np.dtype[Any]:
        if kind not in _SCALARS:
            raise ValueError(f"a value at byte {self.at} has the unknown type {kind}")
        return np.dtype(_SCALARS[kind])


def _parse(path: Path, data: np.ndarray) -> GgufFile:
    cursor = _Cursor(data)
    version = cursor.number("<I")
    if version not in _VERSIONS:
        big_endian = version & 0xFFFF == 0
        raise ValueError("it is big-endian" if big_endian else f"its version is {version}, known are {' and '.join(map(str, _VERSIONS))}")
    num_tensors, num_keys = cursor.number("<Q"), cursor.number("<Q")
    metadata: dict[str, Value] = {}
    for _ in range(num_keys):
        key = cursor.text()
        if key in metadata:
            raise ValueError(f"it has the key {key} twice")
        metadata[key] = cursor.value(cursor.number("<I"))
    heads = [_tensor_head(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", _ALIGNMENT_BYTES)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {alignment!r}, not a power of two")
    start = -(-cursor.at // alignment) * alignment
    tensors = [_tensor(data, start, *head) for head in heads]
    named = {tensor.name: tensor for tensor in tensors}
    if len(named) < len(tensors):
        raise ValueError("it has a tensor twice")
    return GgufFile(path, metadata, named)


def _tensor_head(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, num_dims = cursor.text(), cursor.number("<I")
    if not 1 <= num_dims <= _MOST_DIMS:
        raise ValueError(f"tensor {name} has {num_dims} dims")
    dims = tuple(cursor.number("<Q") for _ in range(num_dims))
    return name, dims[::-1], cursor.number("<I"), cursor.number("<Q")


def _tensor(data: np.ndarray, start: int, name: str, shape: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    if kind not in set(GGMLQuantizationType):
        raise ValueError(f"tensor {name} has the unknown type {kind}")
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    if min(shape) < 1 or shape[-1] % block:
        raise ValueError(f"tensor {name} has rows of {shape[-1]}, not of whole blocks of {block}")
    row_bytes = shape[-1] // block * block_bytes
    size = prod(shape[:-1]) * row_bytes
    if start + offset + size > len(data):
        raise ValueError(f"tensor {name} ends at byte {start + offset + size}, the file at {len(data)}")
    return GgufTensor(name, kind, shape, data[start + offset :][:size].reshape(*shape[:-1], row_bytes))
