"""``PagedDecoder`` on a CPU: the whole decoder as one call into the compiled kernels, its weights packed as they read them.

Shape letters as in ``nn.paged``; W panels of 32 columns, C = 32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from colossus.nn import target
from colossus.nn.kernels.ffi import unavailable
from colossus.nn.paged import Batch, Pages, zeros
from colossus.nn.parameters import Params
from colossus.nn.rope import rope_tables
from colossus.spec.model import ModelCard

_COLUMNS = 32  # C: PN in panels.h
_UNIT = 32  # what model_dim, ffn_dim and the heads' width must be a multiple of
_GROUPS = (64, 32)  # inputs that share a scale with int8, the largest that divides


def why_not(card: ModelCard) -> str | None:
    """What keeps the kernels from computing this card, None if nothing does."""
    if target.platform() != "cpu":
        return f"they are for CPUs, not {target.platform()}"
    if (missing := unavailable()) is not None:
        return missing
    if card.moe is not None:
        return "they have no mixture of experts"
    widths = {"model_dim": card.model_dim, "ffn_dim": card.ffn_dim, "num_heads * head_dim": card.num_heads * card.head_dim}
    odd = [f"{name} {width} is no multiple of {_UNIT}" for name, width in widths.items() if width % _UNIT]
    if card.head_dim % 16:
        odd.append(f"head_dim {card.head_dim} is no multiple of 16")
    return ", ".join(odd) or None


@dataclass(frozen=True, kw_only=True)
class KernelDecoder:
    """The decoder through ``kernels/decoder.cc``. Padding costs it nothing: it reads how many tokens there are."""

    card: ModelCard
    weights: Any
    cache_dtype: Any
    ragged: bool = field(default=True, init=False)

    def empty_pages(self, num_pages: int) -> Pages:
        return zeros(self.card, num_pages, self.cache_dtype)

    def forward(self, weights: Any, pages: Pages, batch: Batch) -> tuple[jax.Array, Pages]:
        hidden = jax.ShapeDtypeStruct((batch.tokens_t.shape[0], self.card.model_dim), jnp.float32)
        scales = [jnp.zeros((0,), jnp.float32) if scale is None else scale for scale in (pages.k_scale, pages.v_scale)]
        cache = [pages.k, pages.v, *scales]
        arrays = [*batch, *(weights["outer"][name] for name in _OUTER), *(part for name in _LINEAR for part in weights[name])]
        aliases = {len(arrays) + index: 1 + index for index in range(len(cache))}
        results = [hidden, *(jax.ShapeDtypeStruct(part.shape, part.dtype) for part in cache)]
        window = self.card.sliding_window_tokens or np.iinfo(np.int32).max
        call = jax.ffi.ffi_call("colossus_paged_decoder", results, input_output_aliases=aliases)
        attributes = {"heads": np.int64(self.card.num_heads), "ffn": np.int64(self.card.ffn_dim), "window": np.int64(window)}
        hidden_td, *cache = call(*arrays, *cache, **attributes, epsilon=np.float32(self.card.norm_epsilon))
        return hidden_td, Pages(*cache) if pages.k_scale is not None else Pages(cache[0], cache[1])

    def logits(self, weights: Any, hidden_od: jax.Array, num_real: jax.Array | None = None) -> jax.Array:
        result = jax.ShapeDtypeStruct((hidden_od.shape[0], self.card.vocab_size), jnp.float32)
        count = jnp.full((1,), hidden_od.shape[0] if num_real is None else num_real, jnp.int32)
        return jax.ffi.ffi_call("colossus_panel_product", result)(hidden_od, count, *weights["head"])


def kernel_decoder(params: Params, card: ModelCard, *, weight_dtype: Any = jnp.float32, cache_dtype: Any = jnp.float32) -> KernelDecoder:
    """Packs the weights of ``params`` (arrays of numpy or JAX); the embedding keeps float32, or bfloat16 with smaller weights.

    Only where ``why_not`` has nothing to say.
    """
    if (reason := why_not(card)) is not None:
        raise ValueError(f"the compiled kernels cannot serve this model: {reason}")
    dtype = jnp.dtype(weight_dtype)
    layers, d = params["layers"], card.model_dim
    wide = jnp.float32 if dtype == jnp.float32 else jnp.bfloat16
    rope = rope_tables(card, jnp.arange(card.max_sequence_tokens)[None])
    none = np.zeros((0,), np.float32)
    outer = {
        "embed": jnp.asarray(params["embed"]["tokens"]).astype(wide),
        **{name: _float32(layers[name]) for name in ("attn_norm", "mlp_norm")},
        **{name: _float32(layers.get(name, none)) for name in ("q_norm", "k_norm")},
        "final_norm": _float32(params["final_norm"]["scale"]),
        "cos": rope.cos_btk[0],
        "sin": rope.sin_btk[0],
    }
    layer_of: dict[str, Callable[[int], np.ndarray]] = {
        "qkv": lambda i: np.concatenate([np.asarray(layers[name][i]).reshape(d, -1) for name in ("wq", "wk", "wv")], axis=1),
        "o": lambda i: np.asarray(layers["wo"][i]).reshape(-1, d),
        "gate_up": lambda i: _interleaved(np.asarray(layers["w_gate"][i]), np.asarray(layers["w_up"][i])),
        "down": lambda i: np.asarray(layers["w_down"][i]),
    }
    packed = {name: _stacked([_pack(matrix(i), dtype) for i in range(card.num_layers)]) for name, matrix in layer_of.items()}
    head = np.asarray(params["lm_head"]["kernel"]) if "lm_head" in params else np.asarray(params["embed"]["tokens"]).T
    weights = {"outer": outer, **packed, "head": _stacked([_pack(head, dtype)])}
    return KernelDecoder(card=card, weights=weights, cache_dtype=jnp.dtype(cache_dtype))


# In the order of the handler's arguments.
_OUTER = ("embed", "attn_norm", "mlp_norm", "q_norm", "k_norm", "final_norm", "cos", "sin")
_LINEAR = ("qkv", "o", "gate_up", "down")

Packed = tuple[np.ndarray, np.ndarray]


def _float32(x: Any) -> jax.Array:
    return jnp.asarray(x, jnp.float32)


def _interleaved(gate_df: np.ndarray, up_df: np.ndarray) -> np.ndarray:
    """Panels of the gate and of up in turn, so that one chunk of work has both."""
    shape = (gate_df.shape[0], -1, _COLUMNS)
    return np.stack([gate_df.reshape(shape), up_df.reshape(shape)], axis=2).reshape(gate_df.shape[0], -1)


def _pack(matrix: np.ndarray, dtype: Any) -> Packed:
    """(K, N) -> panels and their scales; see panels.h for how they lie."""
    inputs, outputs = matrix.shape
    padded = np.pad(matrix.astype(np.float32, copy=False), ((0, 0), (0, -outputs % _COLUMNS)))
    panels_wkc = padded.reshape(inputs, -1, _COLUMNS).transpose(1, 0, 2)
    if dtype != jnp.int8:
        return np.ascontiguousarray(panels_wkc).astype(dtype, copy=False), np.zeros((0,), np.float32)
    group = next(size for size in _GROUPS if inputs % size == 0)
    grouped = panels_wkc.reshape(-1, inputs // group, group, _COLUMNS)
    scales = np.maximum(np.abs(grouped).max(axis=2), 1e-20) / 127
    whole = np.rint(grouped / scales[:, :, None]).astype(np.int16) + 128
    quads = whole.astype(np.uint8).reshape(-1, inputs // 4, 4, _COLUMNS).transpose(0, 1, 3, 2)
    return np.ascontiguousarray(quads), scales.astype(np.float32)


def _stacked(layers: list[Packed]) -> tuple[jax.Array, jax.Array]:
    data, scales = zip(*layers, strict=True)
    return jnp.asarray(np.stack(data)), jnp.asarray(np.stack(scales))
