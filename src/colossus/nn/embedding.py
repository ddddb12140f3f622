"""Token embedding, with the vocabulary cut over tp."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from colossus.nn import sharding


def look_up(table_vd: jax.Array, tokens_bt: jax.Array) -> jax.Array:
    """``table[tokens]``: (V, D), (B, T) -> (B, T, D), between blocks already cut along the sequence over tp."""
    if sharding.axis_size("tp") == 1:
        return jnp.take(table_vd, tokens_bt, axis=0)
    output = sharding.spec_of(("batch", "sequence_parallel", None), (*tokens_bt.shape, table_vd.shape[1]))
    local = partial(_local, scatter="tp" in output)
    return sharding.per_device(local, (("vocab", None), ("batch", "sequence")), output)(table_vd, tokens_bt)


def _local(table_vd: jax.Array, tokens_bt: jax.Array, *, scatter: bool) -> jax.Array:
    """Each device looks up the ids of its part of the vocabulary; the sum over tp puts them together."""
    index = tokens_bt - jax.lax.axis_index("tp") * table_vd.shape[0]
    owned = (index >= 0) & (index < table_vd.shape[0])
    rows = jnp.take(table_vd, jnp.where(owned, index, 0), axis=0)
    x_btd = jnp.where(owned[..., None], rows, 0)
    return jax.lax.psum_scatter(x_btd, "tp", scatter_dimension=1, tiled=True) if scatter else jax.lax.psum(x_btd, "tp")
