"""The order of training: each epoch a permutation of the windows that is computed, never stored.

A Feistel network over an even number of bits is a bijection whatever its round function; values that fall outside the
domain walk on along their cycle until they are inside (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002), which keeps it
a bijection of the domain itself. At most four steps in the mean, since the domain is at least a quarter of the power of four above it.
Not a cipher: a shuffle, in constant memory for any number of windows below 2^62.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

NUM_ROUNDS = 6
MOST_WINDOWS = 2**62

Positions = NDArray[np.uint64]


def permute(index: ArrayLike, *, size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Where each of ``index`` (0..size-1) goes in the permutation of ``epoch``; the same on every machine and process."""
    if not 0 < size <= MOST_WINDOWS:
        raise ValueError(f"size {size} must be in 1..2^62")
    value = np.atleast_1d(np.asarray(index, np.uint64))
    if value.size and int(value.max()) >= size:
        raise ValueError(f"index {int(value.max())} must be below size {size}")
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = _round_keys(seed, epoch)
    value = _feistel(value, half_bits, keys)
    while (outside := value >= size).any():
        value[outside] = _feistel(value[outside], half_bits, keys)
    return value.astype(np.int64)


@lru_cache(maxsize=64)
def _round_keys(seed: int, epoch: int) -> tuple[np.uint64, ...]:
    digest = hashlib.blake2b(f"colossus order {seed} {epoch}".encode(), digest_size=8 * NUM_ROUNDS).digest()
    return tuple(np.uint64(key) for key in np.frombuffer(digest, "<u8"))


def _feistel(value: Positions, half_bits: int, keys: tuple[np.uint64, ...]) -> Positions:
    mask, shift = np.uint64((1 << half_bits) - 1), np.uint64(half_bits)
    left, right = value >> shift, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _mix(value: Positions) -> Positions:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every output bit depends on every input bit; wraps modulo 2^64."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
