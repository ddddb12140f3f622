"""The decoder family (Llama 3, Qwen3, Mistral, Mixtral) as plain functions over a dict of arrays.

Shape letters: B batch, T tokens, D model_dim, H query heads, N key/value heads, K head_dim, F ffn_dim, V vocabulary, L layers.
A layer: ``x += wo attention(rope(norm(x) [wq wk wv]))``, then ``x += w_down (silu(norm(x) w_gate) * norm(x) w_up)`` or its
mixture of experts. The head is ``norm(x) lm_head``, or the embedding transposed where they are tied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from colossus.nn import sharding, target
from colossus.nn.attention import attend
from colossus.nn.compute import Compute, gather, gather_layers, gather_shards, gather_weights, named, rematerialized
from colossus.nn.compute import unstack as unstack_array
from colossus.nn.embedding import look_up
from colossus.nn.linear import linear, swiglu
from colossus.nn.loss import cross_entropy
from colossus.nn.moe import moe_mlp
from colossus.nn.norm import rms_norm
from colossus.nn.parameters import Params, init_params, num_params, param_axes
from colossus.nn.rope import Rope, apply_rope, rope_tables
from colossus.spec.layout import Remat
from colossus.spec.model import ModelCard

__all__ = ["embed", "forward", "hidden_states", "init_params", "layer", "layer_weights", "logits", "loss", "num_params"]

Weights = dict[str, jax.Array]  # one layer's, without the leading dim
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]
WHOLE, CUT = ("batch", "sequence", None), ("batch", "sequence_parallel", None)  # inside a block; between blocks
HEADS = ("batch", "sequence", "heads", None)
DEFAULT = Compute()


def loss(
    params: Params,
    tokens_bt: jax.Array,
    targets_bt: jax.Array,
    card: ModelCard,
    *,
    weights_bt: jax.Array | None = None,
    compute: Compute = DEFAULT,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What training minimises, and its parts: mean nats per token, plus the weighted auxiliary losses of a mixture.

    ``weights_bt`` (default all 1) weighs the tokens' mean; 0 leaves a token out. The parts are float32 scalars:
    ``cross_entropy`` always; ``load_balance`` and ``z_loss``, means over layers and before their weights, with experts.
    """
    weights = jnp.ones(targets_bt.shape, jnp.float32) if weights_bt is None else weights_bt.astype(jnp.float32)
    hidden_btd, parts = hidden_states(params, tokens_bt, card, compute=compute)
    nats = cross_entropy(hidden_btd, head(params), targets_bt, weights / jnp.sum(weights), compute.chunk_tokens)
    total = nats
    if card.moe is not None:
        total = nats + card.moe.load_balance_weight * parts["load_balance"] + card.moe.z_loss_weight * parts["z_loss"]
    return total, {"cross_entropy": nats, **parts}


def forward(params: Params, tokens_bt: jax.Array, card: ModelCard, *, positions_bt: jax.Array | None = None, compute: Compute = DEFAULT) -> jax.Array:
    """Logits (B, T, V) in float32, all of them at once: for tests, sampling and short prompts."""
    hidden_btd, _ = hidden_states(params, tokens_bt, card, positions_bt=positions_bt, compute=compute)
    return logits(params, hidden_btd)


def logits(params: Params, hidden_btd: jax.Array) -> jax.Array:
    """Final hidden states -> (B, T, V) in float32."""
    kernel = gather(head(params), ("model", "vocab"), hidden_btd.dtype)
    return jnp.einsum("btd,dv->btv", hidden_btd, kernel, preferred_element_type=jnp.float32)


def head(params: Params) -> jax.Array:
    """The vocabulary head (D, V): its own, or the embedding transposed."""
    return params["lm_head"]["kernel"] if "lm_head" in params else params["embed"]["tokens"].T


def hidden_states(
    params: Params, tokens_bt: jax.Array, card: ModelCard, *, positions_bt: jax.Array | None = None, compute: Compute = DEFAULT
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The last layer's output after the final norm, (B, T, D) in the compute dtype, and the layers' mean auxiliary losses."""
    positions = jnp.arange(tokens_bt.shape[1])[None, :] if positions_bt is None else positions_bt
    rope = rope_tables(card, positions)
    x_btd = sharding.constrain(embed(params, tokens_bt, compute.dtype), *CUT)
    run = _layers_on_batch_shards if _communicates_at_ends(card, compute) else _run_layers
    x_btd, losses = run(params["layers"], x_btd, rope, card, compute)
    scale = gather(params["final_norm"]["scale"], ("model",), compute.dtype)
    return sharding.constrain(rms_norm(x_btd, scale, card.norm_epsilon), *WHOLE), losses


def embed(params: Params, tokens_bt: jax.Array, dtype: Any) -> jax.Array:
    """Token ids -> (B, T, D)."""
    return look_up(gather(params["embed"]["tokens"], ("vocab", "model"), dtype), tokens_bt)


def _communicates_at_ends(card: ModelCard, compute: Compute) -> bool:
    """Whether weights are gathered and gradients summed once for all layers, not layer by layer.

    An accelerator overlaps a layer's messages with the work of its neighbours. On CPU nothing overlaps, and gloo takes
    milliseconds for the smallest message: 58 of them cost three times the 12 of stacked weights. Remat, where memory
    is short, goes layer by layer. A mixture's losses are means over the whole batch, which one device does not see.
    """
    cuts = sharding.axis_size("dp") * sharding.axis_size("fsdp") > 1 and sharding.axis_size("tp") == 1
    keeps = sharding.axis_size("fsdp") == 1 or compute.remat is Remat.NONE
    return cuts and keeps and card.moe is None and target.platform() == "cpu"


def _layers_on_batch_shards(stacked: Weights, x_btd: jax.Array, rope: Rope, card: ModelCard, compute: Compute) -> tuple[jax.Array, Any]:
    """``_run_layers`` on each device's rows alone. The weights enter as stored, so that their gradients leave summed."""
    table = ("batch" if rope.cos_btk.shape[0] > 1 else None, "sequence", None)
    stored = {name: axes for name, axes in param_axes(card)["layers"].items() if name in stacked}

    def run(x: jax.Array, cos: jax.Array, sin: jax.Array, *weights: jax.Array) -> jax.Array:
        named_weights = list(zip(stacked, weights, strict=True))
        if compute.unrolls(card.num_layers):
            each = {name: gather_layers(weight, stored[name], compute.dtype) for name, weight in named_weights}
            return _run_unrolled(_by_layer(each), x, Rope(cos, sin), card, compute)[0]
        whole = {name: gather_shards(weight, stored[name], compute.dtype) for name, weight in named_weights}
        return _run_layers(whole, x, Rope(cos, sin), card, compute)[0]

    inputs = (CUT, table, table, *(stored[name] for name in stacked))
    return sharding.per_device(run, inputs, sharding.spec_of(CUT, x_btd.shape))(x_btd, *rope, *stacked.values()), {}


def _run_layers(stacked: Weights, x_btd: jax.Array, rope: Rope, card: ModelCard, compute: Compute) -> tuple[jax.Array, Any]:
    """All layers in turn, unrolled or as a loop over the stacked weights."""
    if compute.unrolls(card.num_layers):
        return _run_unrolled(unstack(stacked), x_btd, rope, card, compute)
    x_btd, losses = jax.lax.scan(_layer_body(rope, card, compute), x_btd, stacked)
    return x_btd, jax.tree.map(jnp.mean, losses)


def _run_unrolled(layers: list[Weights], x_btd: jax.Array, rope: Rope, card: ModelCard, compute: Compute) -> tuple[jax.Array, Any]:
    run, each = _layer_body(rope, card, compute), []
    for weights in layers:
        x_btd, losses = run(x_btd, weights)
        each.append(losses)
    return x_btd, jax.tree.map(lambda *values: sum(values) / len(values), *each)


def _layer_body(rope: Rope, card: ModelCard, compute: Compute) -> Callable[..., Any]:
    def body(x: jax.Array, weights: Weights) -> tuple[jax.Array, Any]:
        x, _, losses = layer(x, layer_weights(weights, card, compute.dtype), card, rope, whole_sequences(card, compute))
        return x, losses

    return rematerialized(body, compute.remat)


def layer_weights(weights: Weights, card: ModelCard, dtype: Any) -> Weights:
    """One layer's weights ready for use: in the compute dtype, gathered over fsdp, key/value heads copied up to tp."""
    ready = gather_weights(weights, {name: axes[1:] for name, axes in param_axes(card)["layers"].items()}, dtype)
    copies = sharding.axis_size("tp") // card.num_kv_heads
    if copies > 1:
        for name in ("wk", "wv"):
            ready[name] = sharding.constrain(jnp.repeat(ready[name], copies, axis=1), None, "kv_heads", "head_dim")
    return ready


def whole_sequences(card: ModelCard, compute: Compute) -> Attend:
    """The attention step of training: every token of the sequence at once, nothing kept."""
    return lambda q, k, v: (attend(q, k, v, card, compute.attention), None)


def layer(x_btd: jax.Array, weights: Weights, card: ModelCard, rope: Rope, attention_step: Attend) -> tuple[jax.Array, Any, Any]:
    """One layer: (B, T, D) -> (B, T, D), what the attention step kept, and the auxiliary losses ({} when dense).

    ``attention_step(q_bthk, k_btnk, v_btnk) -> (o_bthk, kept)``: over the whole sequence, or over a cache when generating.
    """
    q, k, v = queries_keys_values(x_btd, weights, card, rope)
    o_bthk, kept = attention_step(q, k, v)
    projected = sharding.constrain(linear(o_bthk, weights["wo"], num_summed=2), *CUT)
    x_btd = x_btd + named(projected, "attention_projection")
    y_btd, losses = feed_forward(x_btd, weights, card)
    return x_btd + y_btd, kept, losses


def queries_keys_values(x_btd: jax.Array, weights: Weights, card: ModelCard, rope: Rope) -> tuple[jax.Array, jax.Array, jax.Array]:
    """norm, three projections, Qwen3's norm of queries and keys where the card has it, RoPE."""
    h_btd = sharding.constrain(rms_norm(x_btd, weights["attn_norm"], card.norm_epsilon), *WHOLE)
    q, k, v = (named(linear(h_btd, weights[f"w{name}"]), f"{name}_out") for name in "qkv")
    if card.qk_norm:
        q = rms_norm(q, weights["q_norm"], card.norm_epsilon, HEADS)
        k = rms_norm(k, weights["k_norm"], card.norm_epsilon, HEADS)
    return apply_rope(q, rope), apply_rope(k, rope), v


def feed_forward(x_btd: jax.Array, weights: Weights, card: ModelCard) -> tuple[jax.Array, dict[str, jax.Array]]:
    """norm and SwiGLU, or the mixture of experts; the residual is the caller's to add."""
    h_btd = sharding.constrain(rms_norm(x_btd, weights["mlp_norm"], card.norm_epsilon), *WHOLE)
    if card.moe is not None:
        return moe_mlp(h_btd, weights, card.moe)
    gate_btf = named(linear(h_btd, weights["w_gate"]), "gate_out")
    up_btf = named(linear(h_btd, weights["w_up"]), "up_out")
    return sharding.constrain(linear(swiglu(gate_btf, up_btf), weights["w_down"]), *CUT), {}


def unstack(stacked: Weights) -> list[Weights]:
    """One dict per layer from arrays stacked over their first dim."""
    return _by_layer({name: unstack_array(array) for name, array in stacked.items()})


def _by_layer(parts: dict[str, tuple[jax.Array, ...]]) -> list[Weights]:
    return [dict(zip(parts, arrays, strict=True)) for arrays in zip(*parts.values(), strict=True)]
