"""Copies of the training state in memory that outlives a worker: the fast tier of checkpoints.

The supervisor owns two blocks of anonymous shared memory for each rank (memfd on Linux). A rank writes its part of the
state to one, then to the other, so that one complete copy survives a kill at any moment; when every process is gone the
kernel frees the memory. A node's loss takes its copies along: then the disk tier serves.

A block: commit word (step + 1, 0 while being written), lengths, meta (JSON, what else a resume needs), index (JSON: which
slices of which leaf lie where), then the bytes. Where an array has replicas, each holds a share of the leaves, so that
copying is split between ranks and every leaf is stored once.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

_HEAD = struct.Struct("<QQQQ")  # commit word, meta bytes, index bytes, start of data
_META_ROOM = 1 << 16
_ALIGN = 64

Slices = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Copy:
    """One rank's committed block: its step, meta and index."""

    descriptor: int
    step: int
    meta: dict[str, Any]
    index: dict[str, Any]
    data_start: int


class RamTier:
    """The blocks of one gang. ``descriptors[rank]`` are the two file descriptors of that rank."""

    def __init__(self, descriptors: Sequence[tuple[int, int]], *, rank: int, num_processes: int) -> None:
        self._descriptors = [tuple(pair) for pair in descriptors]
        self._rank = rank
        self._num_processes = num_processes
        self._next = self._older_block()

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> int:
        """Copies this rank's share of ``state`` after ``step``; returns the bytes copied."""
        parts = _my_shards(state, self._num_processes)
        index, size = _layout_of(parts, self._num_processes)
        index_text, meta_text = json.dumps(index).encode(), json.dumps(meta).encode()
        if len(meta_text) > _META_ROOM:
            raise ValueError(f"meta of {len(meta_text)} bytes exceeds its room of {_META_ROOM}")
        start = _align(_HEAD.size + _META_ROOM + len(index_text))
        descriptor = self._descriptors[self._rank][self._next]
        if os.fstat(descriptor).st_size < start + size:
            os.ftruncate(descriptor, start + size)
        with mmap.mmap(descriptor, start + size) as block:
            block[:8] = struct.pack("<Q", 0)
            block[8 : _HEAD.size] = struct.pack("<QQQ", len(meta_text), len(index_text), start)
            block[_HEAD.size : _HEAD.size + len(meta_text)] = meta_text
            block[_HEAD.size + _META_ROOM : _HEAD.size + _META_ROOM + len(index_text)] = index_text
            _copy_in(block, start, parts, index)
            block[:8] = struct.pack("<Q", step + 1)
        self._next = 1 - self._next
        return size

    def newest(self) -> tuple[int, dict[str, Any]] | None:
        """(step, meta) of the newest step that every rank of one gang committed; None where there is none."""
        found = _complete(self._copies())
        return (found[0].step, found[0].meta) if found else None

    def restore(self, step: int, abstract: Any) -> Any:
        """The state of ``step`` with the shapes, dtypes and shardings of ``abstract``, in this or any other layout."""
        copies = _complete([copy for copy in self._copies() if copy.step == step])
        if not copies:
            raise LookupError(f"no complete copy of step {step} in memory")
        words = [_commit_word(descriptor) for descriptor in self._descriptors[self._rank]]
        self._next = 1 - words.index(step + 1) if step + 1 in words else self._next  # the restored copy is kept until the next is whole
        leaves, treedef = jax.tree.flatten(abstract)
        pieces = _pieces(copies, len(leaves))
        arrays = [jax.make_array_from_callback(leaf.shape, leaf.sharding, _reader(leaf, part)) for leaf, part in zip(leaves, pieces, strict=True)]
        return jax.tree.unflatten(treedef, arrays)

    def forget(self) -> None:
        """Undoes this rank's copies: they are of steps that the run has gone back from."""
        for descriptor in self._descriptors[self._rank]:
            if os.fstat(descriptor).st_size:
                os.pwrite(descriptor, struct.pack("<Q", 0), 0)

    def _copies(self) -> list[Copy]:
        found = [_read_head(descriptor) for pair in self._descriptors for descriptor in pair]
        return [copy for copy in found if copy is not None]

    def _older_block(self) -> int:
        words = [_commit_word(descriptor) for descriptor in self._descriptors[self._rank]]
        return 0 if words[0] <= words[1] else 1


def _commit_word(descriptor: int) -> int:
    head = os.pread(descriptor, 8, 0)
    return struct.unpack("<Q", head)[0] if len(head) == 8 else 0


def _read_head(descriptor: int) -> Copy | None:
    head = os.pread(descriptor, _HEAD.size, 0)
    if len(head) < _HEAD.size:
        return None
    word, meta_size, index_size, start = _HEAD.unpack(head)
    if word == 0:
        return None
    meta = json.loads(os.pread(descriptor, meta_size, _HEAD.size))
    index = json.loads(os.pread(descriptor, index_size, _HEAD.size + _META_ROOM))
    return Copy(descriptor, word - 1, meta, index, start)


def _complete(copies: list[Copy]) -> list[Copy]:
    """The copies of the newest step for which all ranks of a gang of one size are there."""
    groups: dict[tuple[int, int], dict[int, Copy]] = {}
    for copy in copies:
        groups.setdefault((copy.step, copy.index["num_processes"]), {})[copy.index["rank"]] = copy
    whole = [(key[0], group) for key, group in groups.items() if len(group) == key[1]]
    return list(max(whole, key=lambda item: item[0])[1].values()) if whole else []


def _my_shards(state: Any, num_processes: int) -> list[tuple[int, Slices, np.ndarray]]:
    """(leaf number, slices, data) of what this process stores: each distinct shard by one of its replicas in turn."""
    parts = []
    for number, leaf in enumerate(jax.tree.leaves(state)):
        distinct = {str(index) for index in leaf.sharding.devices_indices_map(leaf.shape).values()}
        num_replicas = max(1, len(leaf.sharding.device_set) // len(distinct))
        for shard in leaf.addressable_shards:
            if shard.replica_id == number % num_replicas:
                parts.append((number, _slices(shard.index, leaf.shape), np.asarray(shard.data)))
    return parts


def _slices(index: Any, shape: tuple[int, ...]) -> Slices:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _layout_of(parts: list[tuple[int, Slices, np.ndarray]], num_processes: int) -> tuple[dict[str, Any], int]:
    entries, offset = [], 0
    for number, slices, data in parts:
        entries.append([number, slices, str(data.dtype), offset])
        offset = _align(offset + data.nbytes)
    return {"rank": jax.process_index(), "num_processes": num_processes, "entries": entries}, offset


def _copy_in(block: mmap.mmap, start: int, parts: list[tuple[int, Slices, np.ndarray]], index: dict[str, Any]) -> None:
    for (_, _, data), (_, _, _, offset) in zip(parts, index["entries"], strict=True):
        view = np.frombuffer(block, np.uint8, data.nbytes, start + offset)
        np.copyto(view, np.ascontiguousarray(data).reshape(-1).view(np.uint8))
        del view  # an exported view would keep the block from closing


def _pieces(copies: list[Copy], num_leaves: int) -> list[list[tuple[Slices, np.ndarray]]]:
    pieces: list[list[tuple[Slices, np.ndarray]]] = [[] for _ in range(num_leaves)]
    for copy in copies:
        block = mmap.mmap(copy.descriptor, 0, prot=mmap.PROT_READ)
        for number, slices, dtype, offset in copy.index["entries"]:
            bounds = tuple((low, high) for low, high in slices)
            shape = tuple(high - low for low, high in bounds)
            data = np.frombuffer(block, jax.numpy.dtype(dtype), int(np.prod(shape)), copy.data_start + offset)
            pieces[number].append((bounds, data.reshape(shape)))
    return pieces


def _reader(leaf: Any, parts: list[tuple[Slices, np.ndarray]]) -> Any:
    """A callback that fills any slice of a leaf from the stored ones; it copies, since blocks are written again."""

    def read(index: Any) -> np.ndarray:
        wanted = _slices(index, leaf.shape)
        out = np.empty([high - low for low, high in wanted], leaf.dtype)
        filled = 0
        for bounds, data in parts:
            overlap = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(bounds, wanted, strict=True)]
            if any(low >= high for low, high in overlap):
                continue
            source = tuple(slice(low - a, high - a) for (low, high), (a, _) in zip(overlap, bounds, strict=True))
            target = tuple(slice(low - c, high - c) for (low, high), (c, _) in zip(overlap, wanted, strict=True))
            out[target] = data[source]
            filled += int(np.prod([high - low for low, high in overlap]))
        if filled != out.size:
            raise LookupError(f"a copy in memory holds {filled} of {out.size} elements")
        return out

    return read


def _align(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
