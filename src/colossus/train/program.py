"""The one door to the training machinery: what a network must give so that it trains here.

A decoder from the catalog comes through this door (train/language.py), and so does any JAX network of a user's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from colossus.spec.errors import DataError

Params = Any  # a pytree of arrays
Batch = Any  # a pytree of arrays whose first dim is the example


class Dataset(Protocol):
    """Examples by number. Both methods are functions of their arguments alone, so that any resume sees the same data."""

    def batch(self, step: int, rows: np.ndarray) -> Batch:
        """Rows ``rows`` (R,) of the global batch of one optimizer step; every leaf has R as its first dim."""

    @property
    def num_validation_batches(self) -> int: ...

    def validation_batch(self, index: int, rows: np.ndarray) -> Batch:
        """Rows of one held-out batch, as wide as a training batch."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """A network: how its parameters begin, what it minimises, what it learns from.

    ``init(key) -> params``; ``loss(params, batch) -> (mean over the batch's examples, metrics)``, both traceable by
    jax.jit. A loss that has a parameter ``key`` gets a random key made from (seed, step), None when it is evaluated. ``axes``: a pytree like the parameters with a tuple of logical axis names for each array (see
    nn/sharding.py); None lets the machinery shard each array's largest divisible dim over ``fsdp``.
    ``flop_per_token``: model FLOP of one token (or example), forward and backward, for MFU; None where unknown.
    ``start``: reads pretrained parameters, given the pytree of shardings; None starts from ``init``.
    """

    init: Callable[[Any], Params]
    loss: Callable[..., tuple[Any, dict[str, Any]]]
    dataset: Dataset
    axes: Any = None
    flop_per_token: float | None = None
    start: Callable[[Any], Params] | None = None
    is_language_model: bool = False


@dataclass(frozen=True, kw_only=True)
class ArrayDataset:
    """In-memory examples: dicts of arrays that share their first dim, shuffled anew each epoch by (seed, epoch).

    ``num_examples``: examples in one batch, as the job's ``batch.num_sequences``.
    """

    train: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]
    num_examples: int
    seed: int = 0
    _orders: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name, part in (("train", self.train), ("validation", self.validation)):
            sizes = {key: len(array) for key, array in part.items()}
            if len(set(sizes.values())) != 1:
                raise DataError(f"the {name} arrays differ in their number of examples: {sizes}")
            if self.num_examples > next(iter(sizes.values())):
                hint = f"batch.num_sequences of at most {min(sizes.values())}"
                raise DataError(f"the {name} part has {next(iter(sizes.values()))} examples, a batch {self.num_examples}", hint=hint)
        kinds = [{key: (array.shape[1:], array.dtype) for key, array in part.items()} for part in (self.train, self.validation)]
        if kinds[0] != kinds[1]:
            raise DataError(f"train and validation examples differ: {kinds[0]} and {kinds[1]}")

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders.clear()
            size = len(next(iter(self.train.values())))
            self._orders[epoch] = np.random.default_rng([self.seed, epoch]).permutation(size)
        return self._orders[epoch]

    def batch(self, step: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        size = len(next(iter(self.train.values())))
        positions = step * self.num_examples + np.asarray(rows)
        picked = np.array([self._order(int(p) // size)[int(p) % size] for p in positions])
        return {name: array[picked] for name, array in self.train.items()}

    @property
    def num_validation_batches(self) -> int:
        return len(next(iter(self.validation.values()))) // self.num_examples

    def validation_batch(self, index: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        picked = index * self.num_examples + np.asarray(rows)
        return {name: array[picked] for name, array in self.validation.items()}
