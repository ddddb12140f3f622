"""Batches from the dataset onto the mesh: each process reads only its rows, one step ahead of use."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from colossus.train.program import Dataset


class Feed:
    """Global batches of one layout. ``batch_axes``: the mesh axes that split the examples.

    A batch's leaves are (num_microbatches, examples, ...), sharded over the examples.
    """

    def __init__(self, dataset: Dataset, mesh: Mesh, *, num_sequences: int, num_microbatches: int, batch_axes: tuple[str, ...]) -> None:
        self._dataset = dataset
        self._num_microbatches = num_microbatches
        self._per_microbatch = num_sequences // num_microbatches
        self._sharding = NamedSharding(mesh, PartitionSpec(None, batch_axes))
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._ahead: tuple[int, Future[Any]] | None = None
        self._rows = self._local_rows()

    def abstract(self) -> Any:
        """Shapes, dtypes and shardings of a batch, for compiling."""
        example = self._dataset.batch(0, np.zeros(1, np.int64))
        lead = (self._num_microbatches, self._per_microbatch)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(lead + x.shape[1:], _dtype(x), sharding=self._sharding), example)

    def train(self, step: int) -> Any:
        """The batch of ``step``; starts reading the next one."""
        if self._ahead is None or self._ahead[0] != step:
            self._ahead = (step, self._pool.submit(self._dataset.batch, step, self._rows))
        local = self._ahead[1].result()
        self._ahead = (step + 1, self._pool.submit(self._dataset.batch, step + 1, self._rows))
        return self._to_mesh(local)

    def validation(self, index: int) -> Any:
        return self._to_mesh(self._dataset.validation_batch(index, self._rows))

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _local_rows(self) -> np.ndarray:
        """Rows of the global batch that this process's devices need, in order."""
        shape = (self._num_microbatches, self._per_microbatch)
        numbers = np.arange(np.prod(shape)).reshape(shape)
        indices = self._sharding.addressable_devices_indices_map(shape).values()
        return np.unique(np.concatenate([numbers[index].reshape(-1) for index in indices]))

    def _to_mesh(self, local: Any) -> Any:
        return jax.tree.map(self._place, local)

    def _place(self, rows: np.ndarray) -> jax.Array:
        shape = (self._num_microbatches, self._per_microbatch)
        numbers = np.arange(np.prod(shape)).reshape(shape)

        def read(index: Any) -> np.ndarray:
            wanted = numbers[index[:2]]
            return np.asarray(rows, _dtype(rows))[np.searchsorted(self._rows, wanted)]

        return jax.make_array_from_callback(shape + rows.shape[1:], self._sharding, read)


def _dtype(array: np.ndarray) -> Any:
    """JAX's default widths: 64-bit data comes in as 32-bit."""
    return jax.dtypes.canonicalize_dtype(array.dtype)
