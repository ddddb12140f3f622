"""The accelerators' attention over pages against the plain one: interpreted here, and compiled for chips that are not here."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ref_ragged_paged_attention

from colossus.nn import paged_gpu, paged_tpu
from colossus.nn.paged_attention import PLAIN
from colossus.nn.paged_cache import CacheShape
from tests.nn.paging import NUM_PAGES, PAGES_OF_ROW, ROWS, TOKENS, Rows

INTERPRETED_GPU = dataclasses.replace(paged_gpu.ATTENTION, attend=partial(paged_gpu.attend, interpret=True))


def history(attention, shape, *, num_heads, window, dtype, spoil=None, run=jax.jit, steps=None):
    """Queries' outputs over a prompt, chunks in a mixed step, and steps of decoding."""
    rng = np.random.default_rng(0)
    rows = Rows([np.zeros(16 * PAGES_OF_ROW, np.int32)] * ROWS, np.random.default_rng(1))
    cache = attention.empty(shape)
    if spoil is not None:
        cache = jax.tree.map(lambda leaf: jnp.full_like(leaf, spoil), cache)
    step = run(partial(attention.attend, index=1, window=window))
    found = []
    for counts, num_tokens in steps or STEPS:
        draw = lambda heads, num=num_tokens: jnp.asarray(rng.normal(size=(num, heads, shape.head_dim)), dtype)
        q, k, v = draw(num_heads), draw(shape.num_kv_heads), draw(shape.num_kv_heads)
        o, cache = step(q, k, v, cache, jax.tree.map(jnp.asarray, rows.batch(counts, num_tokens)))
        found.append(np.asarray(o, np.float32)[: sum(counts.values())])
    return np.concatenate(found)


STEPS = [
    ({2: 31, 0: 3}, TOKENS),
    ({1: 40, 0: 1, 2: 7}, TOKENS),
    ({0: 1, 1: 1, 2: 1}, ROWS),
    ({3: 17, 2: 1, 1: 30}, TOKENS),
    ({1: 1, 3: 1}, ROWS),
]


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "window", "cache"),
    [
        (6, 2, 32, 19, "float32"),
        pytest.param(4, 2, 16, None, "bfloat16", marks=pytest.mark.slow),
        pytest.param(4, 2, 16, None, "int8", marks=pytest.mark.slow),
        pytest.param(3, 3, 16, None, "float32", marks=pytest.mark.slow),
    ],
)
def test_the_gpus_kernel_gives_the_plain_result(num_heads, num_kv_heads, head_dim, window, cache):
    shape = CacheShape(num_layers=2, num_pages=NUM_PAGES, num_kv_heads=num_kv_heads, head_dim=head_dim, dtype=jnp.dtype(cache))
    dtype = jnp.bfloat16 if cache == "bfloat16" else jnp.float32
    one, other = (history(attention, shape, num_heads=num_heads, window=window, dtype=dtype) for attention in (INTERPRETED_GPU, PLAIN))
    np.testing.assert_allclose(one, other, atol=0.02 if cache == "bfloat16" else 2e-6)


@pytest.mark.slow
def test_the_gpus_kernel_puts_splits_of_a_row_together(monkeypatch):
    """What others left in pages is not seen either."""
    shape = CacheShape(num_layers=2, num_pages=NUM_PAGES, num_kv_heads=2, head_dim=16, dtype=jnp.dtype("float32"))
    one = history(PLAIN, shape, num_heads=4, window=None, dtype=jnp.float32)
    monkeypatch.setattr(paged_gpu, "_MIN_BLOCKS_OF_SPLIT", 1)
    monkeypatch.setattr(paged_gpu, "_BLOCK_PAGES", 2)
    split = dataclasses.replace(paged_gpu.ATTENTION, attend=partial(paged_gpu.attend, interpret=True))
    other = history(split, shape, num_heads=4, window=None, dtype=jnp.float32, spoil=np.nan)
    np.testing.assert_allclose(one, other, atol=2e-6)


def _oracle(*inputs, num_kv_pages_per_block, num_queries_per_block, **options):
    """The kernel's definition, which gives the real tokens only. JAX's interpreters cannot run the kernel: it reshapes references."""
    o_thk = ref_ragged_paged_attention(*inputs, **options)
    return jnp.pad(o_thk, ((0, inputs[0].shape[0] - o_thk.shape[0]), (0, 0), (0, 0)))


@pytest.mark.slow
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim", "window", "cache"), [(4, 2, 16, None, "bfloat16"), (6, 3, 128, 19, "float32")])
def test_the_tpus_layout_gives_the_plain_result(num_heads, num_kv_heads, head_dim, window, cache):
    shape = CacheShape(num_layers=2, num_pages=NUM_PAGES, num_kv_heads=num_kv_heads, head_dim=head_dim, dtype=jnp.dtype(cache))
    tpu = dataclasses.replace(paged_tpu.ATTENTION, attend=partial(paged_tpu.attend, kernel=_oracle))
    sizes = {"num_heads": num_heads, "window": window, "dtype": shape.dtype, "steps": STEPS[1:3]}
    one, other = history(tpu, shape, **sizes, run=lambda step: step), history(PLAIN, shape, **sizes)
    np.testing.assert_allclose(one, other, atol=0.02 if cache == "bfloat16" else 2e-6)


@pytest.mark.parametrize(
    ("num_kv_heads", "dtype", "padded"), [(3, "bfloat16", 4), (3, "float32", 4), (8, "bfloat16", 8), (1, "bfloat16", 1), (12, "bfloat16", 16)]
)
def test_the_tpus_heads_fill_its_registers(num_kv_heads, dtype, padded):
    shape = CacheShape(num_layers=1, num_pages=2, num_kv_heads=num_kv_heads, head_dim=64, dtype=jnp.dtype(dtype))
    assert paged_tpu.empty(shape).kv[0].shape == (2, 16, 2 * padded, 128)
