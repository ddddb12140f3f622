"""Sampling text from a decoder: the prompt in one pass, then token by token over a cache of keys and values.

Shape letters: B batch (1 here), T tokens of the prompt, S places of the cache, D model_dim, H query heads, N key/value heads,
G = H / N, K head_dim, V vocabulary. Runs on one device; a server's batches and pages are another program.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from colossus.nn.attention import attend
from colossus.nn.compute import Compute
from colossus.nn.decoder import DEFAULT, Attend, Weights, embed, layer, layer_weights, logits, unstack
from colossus.nn.norm import rms_norm
from colossus.nn.parameters import Params
from colossus.nn.rope import rope_tables
from colossus.spec.errors import Problem, SpecError
from colossus.spec.model import ModelCard

_SMALLEST_BUCKET = 32  # prompts and caches are padded to powers of two from here, so that few programs are compiled


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is drawn: softmax(logits / temperature), cut to the ``top_k`` likeliest, then to the fewest that hold
    ``top_p`` of the rest's probability (Holtzman et al. 2019). Temperature 0 takes the likeliest."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def problems(self) -> list[Problem]:
        checks = [
            ("temperature", self.temperature, self.temperature >= 0, "must be 0 (the likeliest token) or more"),
            ("top_k", self.top_k, self.top_k is None or self.top_k >= 1, "must be 1 or more"),
            ("top_p", self.top_p, self.top_p is None or 0 < self.top_p <= 1, "must be above 0 and at most 1"),
            ("seed", self.seed, 0 <= self.seed < 2**32, "must be from 0 to 4294967295"),
        ]
        return [Problem(path=name, value=str(value), rule=rule) for name, value, good, rule in checks if not good]


class Cache(NamedTuple):
    """Keys (RoPE applied) and values of one layer, of every position so far: (B, N, S, K) each."""

    k: jax.Array
    v: jax.Array


class Ready(NamedTuple):
    """Weights as generation wants them: in the compute dtype and one dict a layer, since a slice of a stack would be copied
    for every token."""

    outer: Params  # all but the layers
    layers: list[Weights]


def prepare(params: Params, card: ModelCard, compute: Compute = DEFAULT) -> Ready:
    """What ``stream`` and ``generate`` make of ``params`` first; make it once where texts are generated again and again."""
    ready: Ready = _prepare(params, card=card, dtype=compute.dtype)
    return ready


@partial(jax.jit, static_argnames=("card", "dtype"))
def _prepare(params: Params, *, card: ModelCard, dtype: Any) -> Ready:
    outer = {name: arrays for name, arrays in params.items() if name != "layers"}
    layers = [layer_weights(weights, card, dtype) for weights in unstack(params["layers"])]
    return Ready(jax.tree.map(lambda array: array.astype(dtype), outer), layers)


def generate(
    params: Params | Ready,
    card: ModelCard,
    prompt_tokens: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_token: int | None = None,
    compute: Compute = DEFAULT,
) -> list[int]:
    """At most ``max_new_tokens`` that follow the prompt, ending before ``stop_token``; the same for the same seed."""
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    return list(stream(params, card, prompt_tokens, sampling, max_new_tokens=max_new_tokens, stop_token=stop_token, compute=compute))


def stream(
    params: Params | Ready,
    card: ModelCard,
    prompt_tokens: Sequence[int],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    stop_token: int | None = None,
    compute: Compute = DEFAULT,
) -> Iterator[int]:
    """``generate``, each token as it is drawn. Raises SpecError, before the first, for what cannot be done."""
    _check(card, prompt_tokens, sampling, max_new_tokens)
    ready = params if isinstance(params, Ready) else prepare(params, card, compute)
    num_places = _bucket(len(prompt_tokens) + max_new_tokens, card.max_sequence_tokens)
    cuts = sampling.top_k is not None or sampling.top_p is not None
    program = _Program(card=card, compute=compute, num_places=num_places, greedy=sampling.temperature == 0, cuts=cuts)
    tokens = _stream(program, ready, prompt_tokens, _Knobs.of(sampling, card), max_new_tokens)
    return tokens if stop_token is None else takewhile(lambda token: token != stop_token, tokens)


@dataclass(frozen=True, kw_only=True)
class _Program:
    """What the compiled programs depend on."""

    card: ModelCard
    compute: Compute
    num_places: int  # of the cache
    greedy: bool
    cuts: bool  # top_k or top_p


class _Knobs(NamedTuple):
    """The numbers of ``Sampling``, as inputs of the programs."""

    key: jax.Array
    temperature: float
    top_k: int
    top_p: float

    @staticmethod
    def of(sampling: Sampling, card: ModelCard) -> _Knobs:
        top_k = min(sampling.top_k or card.vocab_size, card.vocab_size)
        return _Knobs(jax.random.key(sampling.seed), sampling.temperature, top_k, 1.0 if sampling.top_p is None else sampling.top_p)


def _stream(program: _Program, ready: Ready, prompt: Sequence[int], knobs: _Knobs, num_new: int) -> Iterator[int]:
    length = len(prompt)
    padded_bt = np.zeros((1, _bucket(length, program.card.max_sequence_tokens)), np.int32)
    padded_bt[0, :length] = prompt
    token, caches = _prefill(program, ready, padded_bt, length, knobs)
    yield int(token)
    for position in range(length, length + num_new - 1):
        token, caches = _decode(program, ready, token, position, caches, knobs)
        yield int(token)


@partial(jax.jit, static_argnums=0)
def _prefill(program: _Program, ready: Ready, tokens_bt: jax.Array, length: jax.Array, knobs: _Knobs) -> tuple[jax.Array, list[Cache]]:
    """The first new token and the cache of the prompt. What lies beyond ``length`` is padding, which no token ever attends to."""
    card = program.card
    empty = jnp.zeros((1, card.num_kv_heads, program.num_places, card.head_dim), program.compute.dtype)

    def step(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Cache]:
        return attend(q, k, v, card, program.compute.attention), _write(Cache(empty, empty), k, v, 0)

    positions_bt = jnp.arange(tokens_bt.shape[1])[None, :]
    x_btd, caches = _run_layers(ready, tokens_bt, positions_bt, [step] * card.num_layers, card)
    last_btd = jax.lax.dynamic_slice_in_dim(x_btd, length - 1, 1, axis=1)
    return _draw(program, _last_logits(ready, last_btd, card), length, knobs), caches


@partial(jax.jit, static_argnums=0, donate_argnames="caches")
def _decode(program: _Program, ready: Ready, token: jax.Array, position: jax.Array, caches: list[Cache], knobs: _Knobs) -> tuple[jax.Array, list[Cache]]:
    """The token after ``token``, which stands at ``position``; the caches are updated in place."""

    def step(cache: Cache, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Cache]:
        cache = _write(cache, k, v, position)
        return attend_cache(q, cache, position, program.card), cache

    steps = [partial(step, cache) for cache in caches]
    x_btd, caches = _run_layers(ready, token.reshape(1, 1), position.reshape(1, 1), steps, program.card)
    return _draw(program, _last_logits(ready, x_btd, program.card), position + 1, knobs), caches


def _run_layers(ready: Ready, tokens_bt: jax.Array, positions_bt: jax.Array, steps: Sequence[Attend], card: ModelCard) -> tuple[jax.Array, list[Cache]]:
    """All layers over the new tokens, each with its own attention step, which keeps a cache."""
    rope = rope_tables(card, positions_bt)
    x_btd = embed(ready.outer, tokens_bt, ready.outer["embed"]["tokens"].dtype)
    caches = []
    for weights, step in zip(ready.layers, steps, strict=True):
        x_btd, cache, _ = layer(x_btd, weights, card, rope, step)
        caches.append(cache)
    return x_btd, caches


def attend_cache(q_bthk: jax.Array, cache: Cache, position: jax.Array, card: ModelCard) -> jax.Array:
    """One query (T = 1) at ``position`` against the places 0..position of the cache, within the card's window."""
    batch, _, num_heads, head_dim = q_bthk.shape
    q_bngk = q_bthk.reshape(batch, card.num_kv_heads, num_heads // card.num_kv_heads, head_dim)
    s_bngs = jnp.einsum("bngk,bnsk->bngs", q_bngk, cache.k, preferred_element_type=jnp.float32) * head_dim**-0.5
    age_s = position - jnp.arange(cache.k.shape[2])
    seen_s = (age_s >= 0) if card.sliding_window_tokens is None else (age_s >= 0) & (age_s < card.sliding_window_tokens)
    p_bngs = jax.nn.softmax(jnp.where(seen_s, s_bngs, -jnp.inf), axis=-1).astype(cache.v.dtype)
    return jnp.einsum("bngs,bnsk->bngk", p_bngs, cache.v).reshape(q_bthk.shape)


def _write(cache: Cache, k_btnk: jax.Array, v_btnk: jax.Array, position: Any) -> Cache:
    """Puts new keys and values at ``position`` and after."""
    new = (jnp.swapaxes(x, 1, 2).astype(cache.k.dtype) for x in (k_btnk, v_btnk))
    return Cache(*(jax.lax.dynamic_update_slice(old, x, (0, 0, position, 0)) for old, x in zip(cache, new, strict=True)))


def _last_logits(ready: Ready, x_btd: jax.Array, card: ModelCard) -> jax.Array:
    """(V,) of the only token in x (1, 1, D)."""
    return logits(ready.outer, rms_norm(x_btd, ready.outer["final_norm"]["scale"], card.norm_epsilon))[0, 0]


def _draw(program: _Program, logits_v: jax.Array, place: jax.Array, knobs: _Knobs) -> jax.Array:
    """The token that will stand at ``place``, which makes its chance its own."""
    if program.greedy:
        return jnp.argmax(logits_v)
    scaled_v = logits_v / knobs.temperature
    kept_v = cut(scaled_v, knobs.top_k, knobs.top_p) if program.cuts else scaled_v
    return jax.random.categorical(jax.random.fold_in(knobs.key, place), kept_v)


def cut(logits_v: jax.Array, top_k: Any, top_p: Any) -> jax.Array:
    """-inf for all but the ``top_k`` largest logits and, of these, the fewest largest that hold ``top_p`` of their probability."""
    order_v = jnp.argsort(-logits_v)
    sorted_v = jnp.where(jnp.arange(len(logits_v)) < top_k, logits_v[order_v], -jnp.inf)
    probability_v = jax.nn.softmax(sorted_v)
    before_v = jnp.cumsum(probability_v) - probability_v
    kept_v = jnp.where((before_v < top_p) | (jnp.arange(len(logits_v)) == 0), sorted_v, -jnp.inf)
    return jnp.zeros_like(logits_v).at[order_v].set(kept_v)


def _bucket(num_tokens: int, limit: int) -> int:
    return min(limit, max(_SMALLEST_BUCKET, 1 << (num_tokens - 1).bit_length()))


def _check(card: ModelCard, prompt: Sequence[int], sampling: Sampling, num_new: int) -> None:
    problems = sampling.problems()
    room = card.max_sequence_tokens - len(prompt)
    strange = [token for token in prompt if not 0 <= token < card.vocab_size]
    if len(prompt) == 0:
        problems.append(Problem(path="prompt", value="(empty)", rule="must hold a token", hint="start from the tokenizer's end-of-text token"))
    if strange:
        rule = f"is no token of a vocabulary of {card.vocab_size}"
        problems.append(Problem(path="prompt", value=str(strange[0]), rule=rule, hint="is this the model's tokenizer?"))
    if num_new < 1:
        problems.append(Problem(path="max_new_tokens", value=str(num_new), rule="must be 1 or more"))
    elif num_new > room:
        rule = f"with a prompt of {len(prompt)} tokens must be at most {room}: max_sequence_tokens is {card.max_sequence_tokens}"
        hint = "shorten the prompt" if room < 1 else None
        problems.append(Problem(path="max_new_tokens", value=str(num_new), rule=rule, hint=hint))
    if problems:
        raise SpecError("generate", problems)
