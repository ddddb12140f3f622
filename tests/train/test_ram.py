"""The RAM tier on fake devices: what is saved in one layout is read in any other, and only whole copies count."""

import os
import struct

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from colossus.engine.shared_memory import anonymous_block
from colossus.nn.sharding import make_mesh
from colossus.spec.layout import Layout
from colossus.train.ram import RamTier

LAYOUTS = [Layout(dp=8), Layout(fsdp=8), Layout(dp=2, fsdp=2, tp=2), Layout(tp=4, dp=2)]


def state_on(layout: Layout, seed: int = 0) -> dict[str, jax.Array]:
    mesh, rng = make_mesh(layout), np.random.default_rng(seed)
    specs = {"a": P("fsdp", "tp"), "b": P(("dp", "fsdp")), "c": P(), "step": P()}
    host = {"a": rng.normal(size=(16, 8)), "b": rng.normal(size=(8,)), "c": rng.normal(size=(3, 5)), "step": np.array(seed)}
    return {name: jax.device_put(np.float32(array), NamedSharding(mesh, specs[name])) for name, array in host.items()}


@pytest.fixture
def blocks():
    pairs = [(anonymous_block(), anonymous_block())]
    yield pairs
    for descriptor in pairs[0]:
        os.close(descriptor)


def abstract(state: dict[str, jax.Array]) -> dict[str, jax.ShapeDtypeStruct]:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


@pytest.mark.parametrize("saved", LAYOUTS, ids=Layout.describe)
@pytest.mark.parametrize("read", LAYOUTS, ids=Layout.describe)
def test_any_layout_reads_any_other(blocks, saved, read):
    state, target = state_on(saved, seed=3), state_on(read, seed=4)
    RamTier(blocks, rank=0, num_processes=1).save(7, state, {"guard": {"mean": 1.5}})
    tier = RamTier(blocks, rank=0, num_processes=1)
    assert tier.newest() == (7, {"guard": {"mean": 1.5}})
    restored = tier.restore(7, abstract(target))
    for name in state:
        assert restored[name].sharding == target[name].sharding
        np.testing.assert_array_equal(restored[name], state[name])


def test_each_element_is_stored_once(blocks):
    state = state_on(Layout(dp=8))
    size = RamTier(blocks, rank=0, num_processes=1).save(1, state, {})
    num_bytes = sum(leaf.nbytes for leaf in state.values())
    assert num_bytes <= size < num_bytes + 64 * 8 * len(state)  # each of at most 8 pieces of a leaf is aligned
    assert size < 2 * num_bytes


def test_blocks_alternate_so_that_a_torn_write_leaves_the_copy_before(blocks):
    tier = RamTier(blocks, rank=0, num_processes=1)
    tier.save(1, state_on(LAYOUTS[0], seed=1), {})
    tier.save(2, state_on(LAYOUTS[0], seed=2), {})
    newer = next(fd for fd in blocks[0] if struct.unpack("<Q", os.pread(fd, 8, 0))[0] == 3)
    os.pwrite(newer, struct.pack("<Q", 0), 0)  # a kill in the middle of the third save would leave this
    after = RamTier(blocks, rank=0, num_processes=1)
    assert after.newest() == (1, {})
    np.testing.assert_array_equal(after.restore(1, abstract(state_on(LAYOUTS[1])))["a"], state_on(LAYOUTS[0], seed=1)["a"])
    after.save(3, state_on(LAYOUTS[0], seed=3), {})
    assert {struct.unpack("<Q", os.pread(fd, 8, 0))[0] for fd in blocks[0]} == {2, 4}


def test_a_copy_that_lacks_a_rank_does_not_count(blocks):
    more = [*blocks, (anonymous_block(), anonymous_block())]
    RamTier(more, rank=0, num_processes=2).save(5, state_on(LAYOUTS[0]), {})
    assert RamTier(more, rank=1, num_processes=2).newest() is None


def test_nothing_saved_is_nothing(blocks):
    tier = RamTier(blocks, rank=0, num_processes=1)
    assert tier.newest() is None
    with pytest.raises(LookupError, match="no complete copy"):
        tier.restore(1, abstract(state_on(LAYOUTS[0])))
