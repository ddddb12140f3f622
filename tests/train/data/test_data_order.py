"""The order is a bijection of every size, differs by seed and epoch, and is the same for ever."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossus.train.data.order import permute


@given(st.integers(1, 5000), st.integers(0, 2**32 - 1), st.integers(0, 2**20))
def test_an_epoch_is_a_bijection(size: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(size), size=size, seed=seed, epoch=epoch)), np.arange(size))


@given(st.integers(2**33, 2**62), st.lists(st.integers(0, 2**33 - 1), min_size=2, max_size=50, unique=True))
def test_sizes_beyond_memory(size: int, index: list[int]) -> None:
    found = permute(index, size=size, seed=1, epoch=0)
    assert len(set(found.tolist())) == len(index)
    assert (found >= 0).all()
    assert (found < size).all()
    assert [int(permute(i, size=size, seed=1, epoch=0)[0]) for i in index] == found.tolist()


def test_seeds_and_epochs_differ() -> None:
    orders = [tuple(permute(np.arange(100), size=100, seed=seed, epoch=epoch)) for seed in range(10) for epoch in range(10)]
    assert len(set(orders)) == 100


def test_it_shuffles() -> None:
    """No window stays near its place, and neighbours part: both correlations vanish as 1/sqrt(n)."""
    size = 100_000
    for epoch in range(3):
        order = permute(np.arange(size), size=size, seed=0, epoch=epoch).astype(float)
        assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 4 / size**0.5
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 4 / size**0.5
        first = np.histogram(order[:10_000], 10, (0, size))[0]
        assert (abs(first - 1000) < 150).all()


def test_the_order_never_changes() -> None:
    """A run resumed with a later version must see the same data."""
    assert permute(np.arange(8), size=1000, seed=7, epoch=3).tolist() == [972, 696, 713, 180, 91, 385, 570, 489]


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="size 0"):
        permute([0], size=0, seed=0, epoch=0)
    with pytest.raises(ValueError, match="index 5 must be below size 5"):
        permute([5], size=5, seed=0, epoch=0)
