"""The decoder over a paged cache, for serving: tokens of many requests in one flat batch, each request's keys and values in pages.

Shape letters: T tokens of the batch, R rows (requests), M pages of a row, P pages in all, S tokens a page, D model_dim,
H query heads, N key/value heads, G = H / N, K head_dim, V vocabulary, L layers, O outputs wanted.
Two implementations with one interface, ``PagedDecoder``: JAX (here), on one device or a mesh, the reference and what runs
everywhere; and the compiled kernels of ``nn.kernels`` on a CPU (``nn.paged_cpu``). ``make_decoder`` chooses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from colossus.nn import sharding, target
from colossus.nn.decoder import layer
from colossus.nn.norm import rms_norm
from colossus.nn.paged_attention import PagedAttention, paged_attention
from colossus.nn.paged_cache import NULL_PAGE, PAGE_TOKENS, Batch, CacheShape, Pages, page_bytes, zeros
from colossus.nn.paged_weights import embedded, logits_of, prepare, whole_layer
from colossus.nn.parameters import Params
from colossus.nn.rope import rope_tables
from colossus.spec.errors import Problem, SpecError, nearest
from colossus.spec.job import Precision
from colossus.spec.layout import Layout
from colossus.spec.model import ModelCard

__all__ = ["NULL_PAGE", "PAGE_TOKENS", "Batch", "PagedDecoder", "Pages", "make_decoder", "page_bytes", "plain_decoder", "tp_mesh", "zeros"]

_WEIGHTS = ("float32", "bfloat16", "int8")


class PagedDecoder(Protocol):
    """A model made ready for serving. The functions are traced inside the engine's own programs; weights and pages are their inputs."""

    @property
    def card(self) -> ModelCard: ...

    @property
    def weights(self) -> Any:
        """A pytree, on the device or cut over a mesh."""
        ...

    def empty_pages(self, num_pages: int) -> Any:
        """A cache of zeros."""
        ...

    def forward(self, weights: Any, pages: Any, batch: Batch) -> tuple[jax.Array, Any]:
        """Hidden states after the final norm, (T, D), and the pages with the batch's keys and values written."""
        ...

    def logits(self, weights: Any, hidden_od: jax.Array, num_real: jax.Array | None = None) -> jax.Array:
        """(O, D) -> (O, V), float32. Rows from ``num_real`` on are padding, of which the result may be anything finite."""
        ...


@dataclass(frozen=True, kw_only=True)
class PlainDecoder:
    """``PagedDecoder`` in JAX, on one device or cut over a mesh's tp. On a mesh all that comes out but the pages is whole on every device."""

    card: ModelCard
    weights: Any
    compute_dtype: Any
    cache_dtype: Any
    attention: PagedAttention
    mesh: jax.sharding.Mesh | None = None

    def empty_pages(self, num_pages: int) -> Any:
        shape = CacheShape.of(self.card, num_pages, self.cache_dtype, _tp(self.mesh))
        make = partial(self.attention.empty, shape)
        if self.mesh is None:
            return make()
        sizes = dict(self.mesh.shape)
        specs = jax.tree.map(lambda leaf: sharding.RULES.spec(self.attention.axes(leaf), leaf.shape, sizes), jax.eval_shape(make))
        return jax.jit(make, out_shardings=sharding.shardings(self.mesh, specs))()

    def put(self, tree: Any) -> Any:
        """Host arrays, equal in every process, whole on each device: what the engine keeps beside the pages."""
        if self.mesh is None:
            return jax.device_put(tree)
        return sharding.place(self.mesh, jax.tree.map(lambda _: jax.P(), tree), tree)

    def forward(self, weights: Any, pages: Any, batch: Batch) -> tuple[jax.Array, Any]:
        with self._traced():
            rope = rope_tables(self.card, batch.positions_t[None])
            x_btd = embedded(weights["outer"]["embed"]["tokens"], batch.tokens_t, self.compute_dtype)
            for index, own in enumerate(weights["layers"]):
                step = partial(self._attend, index, pages, batch)
                x_btd, pages, _ = layer(x_btd, whole_layer(own, self.compute_dtype, len(batch.tokens_t)), self.card, rope, step)
            hidden_td = rms_norm(x_btd, weights["outer"]["final_norm"]["scale"], self.card.norm_epsilon)[0]
            return sharding.constrain(hidden_td, None, None), pages

    def _attend(self, index: int, pages: Any, batch: Batch, *qkv_btnk: jax.Array) -> tuple[jax.Array, Any]:
        o_thk, pages = self.attention.on_devices(index, self.card, pages, batch, *(x[0] for x in qkv_btnk))
        return o_thk[None], pages

    def logits(self, weights: Any, hidden_od: jax.Array, num_real: jax.Array | None = None) -> jax.Array:
        with self._traced():
            return sharding.constrain(logits_of(hidden_od, weights["outer"]), None, None)

    @contextmanager
    def _traced(self) -> Iterator[None]:
        """Inside, what is traced is laid out over the mesh; between blocks a step's few tokens are whole on every device."""
        if self.mesh is None:
            yield
            return
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh), sharding.whole_sequences():
            yield


def make_decoder(params: Params, card: ModelCard, *, weights: str = "float32", cache: str = "float32", mesh: jax.sharding.Mesh | None = None) -> PagedDecoder:
    """The fastest decoder for this platform that keeps weights and cache in the numbers asked for.

    :param params: the tree of ``nn.parameters``, on the host.
    :param weights: float32, bfloat16 or int8, which computes in float32 on a CPU and in bfloat16 elsewhere.
    :param cache: the same three.
    :param mesh: of ``tp_mesh``; None is one device.
    """
    for name, value in (("weights", weights), ("cache", cache)):
        if value not in _WEIGHTS:
            raise SpecError("decoder", [Problem(path=name, value=repr(value), rule=f"must be one of {', '.join(_WEIGHTS)}", hint=nearest(value, _WEIGHTS))])
    from colossus.nn import paged_cpu  # which builds on this module

    if mesh is None and paged_cpu.why_not(card) is None:
        return paged_cpu.kernel_decoder(params, card, weight_dtype=jnp.dtype(weights), cache_dtype=jnp.dtype(cache))
    accelerated = target.platform() != "cpu"
    dtype = jnp.dtype(("bfloat16" if accelerated else "float32") if weights == "int8" else weights)
    return _decoder(params, card, dtype=dtype, int8=weights == "int8", cache_dtype=jnp.dtype(cache), mesh=mesh)


def plain_decoder(params: Params, card: ModelCard, *, precision: Precision = Precision.FLOAT32, cache_dtype: Any = jnp.float32) -> PlainDecoder:
    """The reference on one device."""
    return _decoder(params, card, dtype=jnp.dtype(precision.value), int8=False, cache_dtype=jnp.dtype(cache_dtype), mesh=None)


def _decoder(params: Params, card: ModelCard, *, dtype: Any, int8: bool, cache_dtype: Any, mesh: jax.sharding.Mesh | None) -> PlainDecoder:
    tp = _tp(mesh)
    heads = max(card.num_kv_heads, tp) // tp
    local = CacheShape(num_layers=card.num_layers, num_pages=1, num_kv_heads=heads, head_dim=card.head_dim, dtype=cache_dtype)
    weights = prepare(params, card, dtype=dtype, int8=int8, mesh=mesh)
    return PlainDecoder(card=card, weights=weights, compute_dtype=dtype, cache_dtype=cache_dtype, attention=paged_attention(local), mesh=mesh)


def tp_mesh(card: ModelCard, tp: int) -> jax.sharding.Mesh | None:
    """The first ``tp`` devices as a mesh; None for one. Raises SpecError where the card cannot be cut so, or devices are missing."""
    if tp == 1:
        return None
    layout = Layout(tp=tp)
    problems = list(sharding.check_layout(card, layout, 1, tp))
    if tp > (num_devices := len(jax.devices())):
        problems.append(Problem(path="tp", value=str(tp), rule=f"there are {num_devices} devices", hint=f"tp {num_devices} at most"))
    if problems:
        raise SpecError("tp", problems)
    return sharding.make_mesh(layout)


def _tp(mesh: jax.sharding.Mesh | None) -> int:
    return 1 if mesh is None else int(mesh.shape["tp"])
