"""Mixture of experts: top-k routing, its two auxiliary losses, and the feed-forward without dropping a token.

Shape letters: B batch, T tokens, D model_dim, E experts, k experts per token, X expert_dim, M = tokens * k rows sorted by expert.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from colossus.nn import sharding
from colossus.nn.grouped import grouped_matmul
from colossus.spec.model import MoeCard


class Routing(NamedTuple):
    """Which experts a token goes to, with what weight, and the auxiliary losses of the choice."""

    experts_btk: jax.Array
    gates_btk: jax.Array
    losses: dict[str, jax.Array]


def route(h_btd: jax.Array, router_de: jax.Array, moe: MoeCard) -> Routing:
    """Top-k of the router's softmax, in float32; the k gates are normalised to sum 1 where the card says so.

    - load_balance: ``E * sum_e f_e P_e``, f_e the share of the assignments that go to expert e, P_e its mean probability;
      1 when even (Fedus et al. 2021, Switch, eq. 4-6). Taken over each sequence and averaged (DeepSeek-V3 2024, eq. 17-20),
      so that neither the layout nor the number of microbatches changes it.
    - z_loss: ``mean(logsumexp(logits)**2)`` (Zoph et al. 2022, ST-MoE, eq. 5).
    """
    logits_bte = jnp.einsum("btd,de->bte", h_btd, router_de, preferred_element_type=jnp.float32)
    probabilities_bte = jax.nn.softmax(logits_bte, axis=-1)
    gates_btk, experts_btk = _top_k(probabilities_bte, moe.num_experts_per_token)
    if moe.normalize_top_k:
        gates_btk = gates_btk / jnp.sum(gates_btk, axis=-1, keepdims=True)
    chosen_bte = jnp.sum(jax.nn.one_hot(experts_btk, moe.num_experts, dtype=jnp.float32), axis=2)
    share_be = jnp.mean(chosen_bte, axis=1) / moe.num_experts_per_token
    balance = moe.num_experts * jnp.mean(jnp.sum(share_be * jnp.mean(probabilities_bte, axis=1), axis=-1))
    z_loss = jnp.mean(jax.nn.logsumexp(logits_bte, axis=-1) ** 2)
    return Routing(experts_btk, gates_btk, {"load_balance": balance, "z_loss": z_loss})


def _top_k(probabilities_bte: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Each device chooses for its own tokens: left to the partitioner, top_k gathers the whole batch on every device."""
    rows = ("batch", "sequence", None)
    output = sharding.spec_of(rows, probabilities_bte.shape)
    choose = sharding.per_device(lambda p_bte: tuple(jax.lax.top_k(p_bte, k)), (rows,), (output, output))
    gates_btk, experts_btk = choose(probabilities_bte)
    return gates_btk, experts_btk


def moe_mlp(h_btd: jax.Array, weights: dict[str, jax.Array], moe: MoeCard) -> tuple[jax.Array, dict[str, jax.Array]]:
    """``sum_k gate_k * swiglu_{expert_k}(h)`` and the auxiliary losses.

    Every device sends its own tokens through its part (over tp) of every expert; no token leaves its device, none is dropped.
    """
    routing = route(h_btd, weights["router"], moe)
    rows = ("batch", "sequence", None)
    cut_up, cut_down = ("experts", None, "ffn"), ("experts", "ffn", None)
    output = sharding.spec_of(("batch", "sequence_parallel", None), h_btd.shape)
    local = partial(_experts, num_experts=moe.num_experts, scatter="tp" in output)
    run = sharding.per_device(local, (rows, rows, rows, cut_up, cut_up, cut_down), output)
    y_btd = run(h_btd, routing.experts_btk, routing.gates_btk, weights["w_gate"], weights["w_up"], weights["w_down"])
    return y_btd, routing.losses


def _experts(h: jax.Array, experts: jax.Array, gates: jax.Array, *matrices: jax.Array, num_experts: int, scatter: bool) -> jax.Array:
    """Sort the assignments by expert, three grouped GEMMs, put back in order, weigh and sum over k."""
    w_gate, w_up, w_down = matrices
    batch, length, k = experts.shape
    order, inverse, group_sizes = _sorted(experts.reshape(-1), num_experts)
    rows_md = _permute(jnp.repeat(h.reshape(batch * length, -1), k, axis=0), order, inverse)
    gate_mx = checkpoint_name(grouped_matmul(rows_md, w_gate, group_sizes), "gate_out")
    up_mx = checkpoint_name(grouped_matmul(rows_md, w_up, group_sizes), "up_out")
    out_md = checkpoint_name(grouped_matmul(jax.nn.silu(gate_mx) * up_mx, w_down, group_sizes), "down_out")
    chosen = _permute(out_md, inverse, order).reshape(batch, length, k, -1)
    y = jnp.einsum("btkd,btk->btd", chosen, gates.astype(chosen.dtype))
    if sharding.axis_size("tp") == 1:
        return y
    return jax.lax.psum_scatter(y, "tp", scatter_dimension=1, tiled=True) if scatter else jax.lax.psum(y, "tp")


def _sorted(experts_m: jax.Array, num_experts: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Order of the assignments by expert (stable), its inverse, and how many each expert has."""
    order = jnp.argsort(experts_m, stable=True)
    inverse = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)), unique_indices=True)
    return order, inverse, jnp.bincount(experts_m, length=num_experts).astype(jnp.int32)


@jax.custom_vjp
def _permute(rows: jax.Array, order: jax.Array, inverse: jax.Array) -> jax.Array:
    """``rows[order]``; its gradient is a gather too, where the derived one would be a scatter-add."""
    return rows[order]


def _permute_forward(rows: jax.Array, order: jax.Array, inverse: jax.Array) -> tuple[jax.Array, Any]:
    return rows[order], (order, inverse)


def _permute_backward(saved: Any, d_rows: jax.Array) -> tuple[Any, ...]:
    order, inverse = saved
    none = np.zeros(order.shape, jax.dtypes.float0)
    return d_rows[inverse], none, none


_permute.defvjp(_permute_forward, _permute_backward)
