"""Drawing tokens on the device: edits of the logits, cuts, chance, log-probabilities. All of it is traced inside a program.

Shape letters: O rows (outputs wanted), V vocabulary, B biased tokens of a row, W = ceil(V / 32) words of a mask, K likeliest tokens.
Of equal logits the lower token goes first, everywhere. Plain JAX here; on a CPU ``nn.kernels.sampler`` does the same, many times faster.

A token is drawn as the winner of a race (Gumbel's trick in its exponential form): token v with weight w arrives at time E / w, with E
exponential, and the first is drawn with probability w / sum(w). E is a hash of (seed, place, token): so the chance of one place of
one request is its own, whatever is computed beside it, and a guessed token is accepted by drawing and comparing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from colossus.nn.kernels import sampler

_MASK_BITS = 32
# Mixing of 32 bits, the constants of "lowbias32" (C. Wellons, hash-prospector, 2018, public domain), and Weyl steps of the golden ratio.
_MIX = (0x7FEB352D, 0x846CA68B)
_WEYL = (0x9E3779B9, 0x85EBCA6B)
_SERIES_BELOW = 2.0**-6  # where three terms of -log(1 - x) are exact to float32 and the logarithm is not


class Controls(NamedTuple):
    """How each row is drawn; all (O,). The cuts: top_k, then top_p on what is left, and min_p."""

    seed: Array  # uint32
    place: Array  # int32, of the token to be drawn, in its own sequence
    temperature: Array  # 0 takes the likeliest
    top_k: Array  # int32; V or more keeps all
    top_p: Array  # 1 keeps all
    min_p: Array  # 0 keeps all


class Edits(NamedTuple):
    """What changes the logits before they are drawn from. A part that is None is not in the program.

    Tokens that must not be drawn (stop tokens before ``min_tokens``) are biases of -inf.
    """

    counts_ov: Array | None = None  # whole numbers: how often a token is in the answer so far
    in_prompt_ov: Array | None = None  # bool
    presence_o: Array | None = None
    frequency_o: Array | None = None
    repetition_o: Array | None = None  # 1 changes nothing
    bias_ids_ob: Array | None = None  # int32; V and above: none
    bias_values_ob: Array | None = None
    mask_ow: Array | None = None  # uint32: bit v % 32 of word v // 32 is set where token v is allowed


class Logprobs(NamedTuple):
    """Natural logarithms of probabilities; rank 0 is the likeliest."""

    logprob_o: Array
    rank_o: Array
    top_ids_ok: Array
    top_logprobs_ok: Array


def greedy(logits_ov: Array) -> Array:
    """The likeliest token of each row, (O,) int32."""
    return sampler.choose("argmax", _greedy, logits_ov)


def sample(logits_ov: Array, controls: Controls) -> Array:
    """A token of each row, (O,) int32; rows with temperature 0 take the likeliest."""
    return sampler.choose("sample", _sample, logits_ov, *controls)


def token_logprobs(logits_ov: Array, tokens_o: Array, num_top: int) -> Logprobs:
    """Of the given token of each row, and of the ``num_top`` likeliest."""
    plain = lambda logits_ov, tokens_o: _token_logprobs(logits_ov, tokens_o, num_top)
    return Logprobs(*sampler.logprobs(plain, logits_ov, tokens_o.astype(jnp.int32), num_top))


def edit(logits_ov: Array, edits: Edits) -> Array:
    """The logits after penalties, biases and mask, in this order."""
    for change in (_repeated, _counted, _biased, _masked):
        logits_ov = change(logits_ov, edits)
    return logits_ov


def _repeated(logits_ov: Array, edits: Edits) -> Array:
    """Keskar et al. 2019, 4.1: positive logits of tokens seen before are divided, negative ones multiplied."""
    if edits.repetition_o is None:
        return logits_ov
    seen = [part for part in (None if edits.counts_ov is None else edits.counts_ov > 0, edits.in_prompt_ov) if part is not None]
    if not seen:
        return logits_ov
    penalty_o1 = edits.repetition_o[:, None]
    lower_ov = jnp.where(logits_ov > 0, logits_ov / penalty_o1, logits_ov * penalty_o1)
    return jnp.where(seen[0] if len(seen) == 1 else seen[0] | seen[1], lower_ov, logits_ov)


def _counted(logits_ov: Array, edits: Edits) -> Array:
    """OpenAI's: ``- presence [count > 0] - frequency count``."""
    if edits.counts_ov is None:
        return logits_ov
    if edits.presence_o is not None:
        logits_ov = logits_ov - jnp.where(edits.counts_ov > 0, edits.presence_o[:, None], 0.0)
    if edits.frequency_o is not None:
        logits_ov = logits_ov - edits.frequency_o[:, None] * edits.counts_ov.astype(jnp.float32)
    return logits_ov


def _biased(logits_ov: Array, edits: Edits) -> Array:
    if edits.bias_ids_ob is None or edits.bias_values_ob is None:
        return logits_ov
    rows_o1 = jnp.arange(logits_ov.shape[0])[:, None]
    return logits_ov.at[rows_o1, edits.bias_ids_ob].add(edits.bias_values_ob, mode="drop")


def _masked(logits_ov: Array, edits: Edits) -> Array:
    if edits.mask_ow is None:
        return logits_ov
    bits_ow32 = (edits.mask_ow[..., None] >> jnp.arange(_MASK_BITS, dtype=jnp.uint32)) & 1
    allowed_ov = bits_ow32.reshape(logits_ov.shape[0], -1)[:, : logits_ov.shape[1]] != 0
    return jnp.where(allowed_ov, logits_ov, -jnp.inf)


def _greedy(logits_ov: Array) -> Array:
    return jnp.argmax(logits_ov, axis=-1).astype(jnp.int32)


def _sample(logits_ov: Array, *parts: Array) -> Array:
    controls = Controls(*parts)
    likeliest_o = _greedy(logits_ov)
    top_o1 = jnp.take_along_axis(logits_ov, likeliest_o[:, None], axis=-1)
    drawn_o1 = jnp.where(controls.temperature > 0, controls.temperature, 1.0)[:, None]
    scaled_ov = jnp.where(logits_ov == top_o1, 0.0, (logits_ov - top_o1) / drawn_o1)  # of +inf and -inf alike no NaN comes
    weights_ov = jnp.where(logits_ov == -jnp.inf, 0.0, jnp.exp(scaled_ov))
    no_cuts = jnp.all((controls.top_k >= logits_ov.shape[1]) & (controls.top_p >= 1) & (controls.min_p <= 0))
    kept_ov = jax.lax.cond(no_cuts, lambda: jnp.ones(logits_ov.shape, bool), lambda: _kept(scaled_ov, weights_ov, controls))
    times_ov = _exponential(controls.seed, controls.place, logits_ov.shape[1])
    winner_o = jnp.argmax(jnp.where(kept_ov, weights_ov / times_ov, -1.0), axis=-1).astype(jnp.int32)
    return jnp.where(controls.temperature > 0, winner_o, likeliest_o)


def _kept(scaled_ov: Array, weights_ov: Array, controls: Controls) -> Array:
    """Which tokens the cuts leave; the likeliest always."""
    vocab_size = scaled_ov.shape[1]
    all_ov = jnp.ones(scaled_ov.shape, bool)
    by_count_ov = _fewest(scaled_ov, all_ov, all_ov.astype(jnp.float32), lambda total_o: jnp.clip(controls.top_k, 1, vocab_size).astype(jnp.float32))
    by_count_ov |= (controls.top_k >= vocab_size)[:, None]
    by_mass_ov = _fewest(scaled_ov, by_count_ov, weights_ov, lambda total_o: controls.top_p * total_o)
    kept_ov = jnp.where((controls.top_p >= 1)[:, None], by_count_ov, by_mass_ov)
    return kept_ov & (weights_ov >= controls.min_p[:, None])


def _fewest(scaled_ov: Array, among_ov: Array, shares_ov: Array, target: Callable[[Array], Array]) -> Array:
    """The fewest likeliest of ``among_ov`` whose shares reach ``target(sum of all)``.

    The least logit to be kept is found bit by bit from the highest, on numbers that are ordered as the logits are: no sort.
    """
    keys_ov = jnp.where(among_ov, _ordered(scaled_ov), 0)
    shares_ov = jnp.where(among_ov, shares_ov, 0.0)
    target_o = jnp.maximum(target(jnp.sum(shares_ov, axis=-1)), jnp.finfo(jnp.float32).tiny)  # one is kept in any case
    above = lambda low_o, strictly: jnp.sum(jnp.where(keys_ov > low_o[:, None] if strictly else keys_ov >= low_o[:, None], shares_ov, 0.0), axis=-1)

    def narrower(step: Array, low_o: Array) -> Array:
        trial_o = low_o | (jnp.uint32(1) << (31 - step).astype(jnp.uint32))
        return jnp.where(above(trial_o, False) >= target_o, trial_o, low_o)

    low_o = jax.lax.fori_loop(0, 32, narrower, jnp.zeros(keys_ov.shape[0], jnp.uint32))
    equal_ov = among_ov & (keys_ov == low_o[:, None])
    share_o = jnp.max(jnp.where(equal_ov, shares_ov, 0.0), axis=-1)
    num_equal_o = jnp.maximum(jnp.ceil((target_o - above(low_o, True)) / share_o), 1.0)
    first_ov = equal_ov & (jnp.cumsum(equal_ov, axis=-1) <= num_equal_o[:, None])
    return (among_ov & (keys_ov > low_o[:, None])) | first_ov


def _ordered(x: Array) -> Array:
    """Whole numbers in the order of the floats; both zeros alike."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _exponential(seed_o: Array, place_o: Array, vocab_size: int) -> Array:
    """(O, V) numbers of the exponential distribution with mean 1, each a hash of (seed, place, token); never 0."""
    seed_o, place_o = seed_o.astype(jnp.uint32), place_o.astype(jnp.uint32)
    first_o = _mixed(_mixed(place_o + jnp.uint32(_WEYL[0])) ^ seed_o)
    second_o = _mixed(_mixed(first_o + place_o) + seed_o * jnp.uint32(_WEYL[1]))
    tokens_v = jnp.arange(vocab_size, dtype=jnp.uint32) * jnp.uint32(_WEYL[0])
    hash_ov = _mixed(_mixed(tokens_v ^ first_o[:, None]) + second_o[:, None])
    # Half a step off 0, and halves are even: no number is 1 in float32 either (23 bits hold 1 - 2**-24 exactly).
    x_ov = jnp.minimum((hash_ov.astype(jnp.float32) + 0.5) * jnp.float32(2.0**-32), jnp.float32(1 - 2.0**-24))
    series_ov = x_ov * (1 + x_ov * (0.5 + x_ov * jnp.float32(1 / 3)))
    return jnp.where(x_ov < _SERIES_BELOW, series_ov, -jnp.log(1 - x_ov))


def _mixed(x: Array) -> Array:
    x = (x ^ (x >> 16)) * jnp.uint32(_MIX[0])
    x = (x ^ (x >> 15)) * jnp.uint32(_MIX[1])
    return x ^ (x >> 16)


def _token_logprobs(logits_ov: Array, tokens_o: Array, num_top: int) -> tuple[Array, ...]:
    norm_o1 = jax.nn.logsumexp(logits_ov, axis=-1, keepdims=True)
    own_o1 = jnp.take_along_axis(logits_ov, tokens_o[:, None], axis=-1)
    before_ov = jnp.arange(logits_ov.shape[1]) < tokens_o[:, None]
    rank_o = jnp.sum((logits_ov > own_o1) | ((logits_ov == own_o1) & before_ov), axis=-1).astype(jnp.int32)
    top_ok, ids_ok = jax.lax.top_k(logits_ov, num_top)
    return (own_o1 - norm_o1)[:, 0], rank_o, ids_ok.astype(jnp.int32), top_ok - norm_o1
