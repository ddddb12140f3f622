"""Drawing tokens: the plain form against sorts, counts and transformers; the compiled kernels against the plain form."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from colossus.nn import kernels, sampling
from colossus.nn.sampling import Controls, Edits, edit, greedy, sample, token_logprobs

needs_kernels = pytest.mark.skipif(kernels.unavailable() is not None, reason="no compiled kernels")
plain_kept = jax.jit(sampling._kept)
plain_sample = jax.jit(sampling._sample)
any_sample = jax.jit(sample)
DRAWERS = [plain_sample, pytest.param(lambda logits, *controls: any_sample(logits, Controls(*controls)), marks=needs_kernels)]


def controls_of(num_rows: int, **given: Any) -> Controls:
    """Rows with seeds 0, 1, 2... at place 5, uncut at temperature 1, but for what is given."""
    usual = {"seed": np.arange(num_rows), "place": 5, "temperature": 1.0, "top_k": 2**30, "top_p": 1.0, "min_p": 0.0} | given
    dtypes = {"seed": np.uint32, "place": np.int32, "top_k": np.int32}
    return Controls(**{name: jnp.asarray(np.broadcast_to(value, num_rows).astype(dtypes.get(name, np.float32))) for name, value in usual.items()})


def kept_by_sorting(logits_v: np.ndarray, top_k: int, top_p: float, min_p: float) -> tuple[np.ndarray, float]:
    """What the cuts leave, and how far the sums stay from the bound that decides."""
    order = np.argsort(-logits_v, kind="stable")[:top_k]
    weights = np.exp((logits_v - logits_v.max()).astype(np.float64))
    share = weights[order] / weights[order].sum()
    before = np.concatenate([[0.0], np.cumsum(share)[:-1]])
    kept = np.zeros(len(logits_v), bool)
    kept[order[(before < top_p) | (top_p >= 1)]] = True
    margin = float(min(np.abs(before - np.float32(top_p)).min(), np.abs(weights[weights < 1] - min_p).min(initial=1.0) if min_p else 1.0))
    return kept & (weights >= min_p), margin


@given(
    st.lists(st.integers(-12, 12), min_size=1, max_size=70),
    st.integers(1, 75),
    st.sampled_from([0.05, 0.3, 0.5, 0.77, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 0.03, 0.2, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_the_cuts_are_those_of_a_sort(quarters: list[int], top_k: int, top_p: float, min_p: float) -> None:
    logits_v = np.array((quarters * 70)[: 16 if len(quarters) < 35 else 70], np.float32) / 4  # two lengths: each is a compilation
    expected_v, margin = kept_by_sorting(logits_v, top_k, top_p, min_p)
    assume(margin > 1e-5)
    num_rows = 64
    logits_ov = jnp.asarray(np.tile(logits_v, (num_rows, 1)))
    controls = controls_of(num_rows, top_k=top_k, top_p=top_p, min_p=min_p)
    scaled_ov = logits_ov - logits_v.max()
    kept_ov = np.asarray(plain_kept(scaled_ov, jnp.exp(scaled_ov), controls))
    assert (kept_ov == expected_v).all()
    drawn_o = np.asarray(plain_sample(logits_ov, *controls))
    assert expected_v[drawn_o].all()
    if kernels.unavailable() is None:
        assert (np.asarray(any_sample(logits_ov, controls)) == drawn_o).all()


@needs_kernels
@pytest.mark.parametrize("vocab_size", [1, 33, 5000])
def test_the_kernel_draws_what_plain_jax_draws(vocab_size: int) -> None:
    chance, num_rows = np.random.default_rng(vocab_size), 96
    logits_ov = jnp.asarray(chance.normal(size=(num_rows, vocab_size)) * chance.uniform(0.1, 8, (num_rows, 1)), jnp.float32)
    logits_ov = jnp.where(jnp.asarray(chance.random(logits_ov.shape) < 0.1), -jnp.inf, logits_ov)
    controls = controls_of(
        num_rows,
        seed=chance.integers(0, 2**32, num_rows),
        place=chance.integers(0, 10_000, num_rows),
        temperature=chance.choice([0.0, 0.3, 1.0, 2.0], num_rows),
        top_k=chance.choice([1, 7, 300, 2000, 2**30], num_rows),
        top_p=chance.choice([0.1, 0.9, 0.99, 1.0], num_rows),
        min_p=chance.choice([0.0, 0.02], num_rows),
    )
    assert (np.asarray(any_sample(logits_ov, controls)) == np.asarray(plain_sample(logits_ov, *controls))).all()
    assert (np.asarray(jax.jit(greedy)(logits_ov)) == np.argmax(logits_ov, axis=-1)).all()


@pytest.mark.parametrize("draw", DRAWERS)
@pytest.mark.parametrize("flat", [0.0, -3.0])
def test_equal_logits_are_cut_at_the_lowest_tokens(draw: Any, flat: float) -> None:
    """Thousands of equals are more than are ever sorted."""
    logits_ov = jnp.full((64, 3000), flat, jnp.float32).at[:, 2999].set(0.0)
    for cut in ({"top_k": 10}, {"top_p": 9.5 / 3000} if flat == 0 else {"top_k": 10, "top_p": 0.9999}):
        drawn = set(np.asarray(draw(logits_ov, *controls_of(64, **cut))).tolist())
        assert drawn <= {*range(10), 2999} and len(drawn) > 4


@pytest.mark.parametrize("draw", DRAWERS)
def test_a_row_without_choice_is_drawn_without_harm(draw: Any) -> None:
    logits_ov = jnp.array([[-jnp.inf] * 40, [-jnp.inf] * 39 + [0.0], [1e30] + [-1e30] * 39, [-jnp.inf] * 20 + [jnp.inf] + [0.0] * 19], jnp.float32)
    for extra in ({}, {"temperature": 0}, {"top_k": 3}, {"top_p": 0.5}, {"top_p": 1e-9, "min_p": 1.0}, {"temperature": 1e-30}):
        assert np.asarray(draw(logits_ov, *controls_of(4, **extra))).tolist() == [0, 39, 0, 20]


@pytest.mark.parametrize("draw", DRAWERS)
@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1.0, 50, 1.0), (0.7, 50, 1.0), (1.3, 20, 0.8)])
@pytest.mark.parametrize("walk", ["seeds", "places"])
def test_tokens_come_as_often_as_they_should(draw: Any, temperature: float, top_k: int, top_p: float, walk: str) -> None:
    num_draws = 20_000
    logits_v = np.random.default_rng(3).normal(size=50).astype(np.float32) * 1.5
    scaled_v = (logits_v / temperature).astype(np.float32)
    kept_v, _ = kept_by_sorting(scaled_v, top_k, top_p, 0.0)
    expected_v = np.where(kept_v, np.exp(scaled_v.astype(np.float64)), 0)
    counts = np.arange(num_draws)
    where = {"seed": counts} if walk == "seeds" else {"seed": 77, "place": counts}
    controls = controls_of(num_draws, temperature=temperature, top_k=top_k, top_p=top_p, **where)
    drawn_o = np.asarray(draw(jnp.asarray(np.tile(logits_v, (num_draws, 1))), *controls))
    observed_v = np.bincount(drawn_o, minlength=50)
    assert observed_v[~kept_v].sum() == 0
    assert chisquare(observed_v[kept_v], expected_v[kept_v] / expected_v.sum() * num_draws).pvalue > 1e-3


@pytest.mark.parametrize("step", [{"seed": 1}, {"place": 1}, {"seed": 1, "place": 1}, {"seed": 1, "place": -1}, {"seed": 1 << 16}])
def test_neighbouring_draws_know_nothing_of_each_other(step: dict[str, int]) -> None:
    """Pairs of draws at seeds and places one step apart fill all 64 cells alike."""
    num_draws, size = 16_384, 8
    seeds, places = np.arange(num_draws) * 3, np.arange(num_draws) % 97 + 1
    logits_ov = jnp.zeros((num_draws, size))
    first_o, second_o = (
        np.asarray(plain_sample(logits_ov, *controls_of(num_draws, seed=seeds + times * step.get("seed", 0), place=places + times * step.get("place", 0))))
        for times in (0, 1)
    )
    assert chisquare(np.bincount(first_o * size + second_o, minlength=size * size)).pvalue > 1e-3


@pytest.mark.parametrize("draw", DRAWERS)
def test_a_row_is_drawn_the_same_alone_and_among_others(draw: Any) -> None:
    chance, num_rows = np.random.default_rng(0), 40
    logits_ov = jnp.asarray(chance.normal(size=(num_rows, 700)) * 3, jnp.float32)
    controls = controls_of(num_rows, top_k=chance.choice([20, 2**30], num_rows), top_p=chance.choice([0.7, 1.0], num_rows))
    together = np.asarray(draw(logits_ov, *controls))
    alone = [int(draw(logits_ov[row : row + 1], *(part[row : row + 1] for part in controls))[0]) for row in range(num_rows)]
    assert together.tolist() == alone


def test_penalties_are_those_of_transformers_and_openai() -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    chance, vocab_size = np.random.default_rng(1), 30
    logits_ov = chance.normal(size=(2, vocab_size)).astype(np.float32) * 2
    prompt, answers = [3, 4, 4, 9], [[1, 1, 2], [9, 20, 20]]
    counts_ov = np.array([np.bincount(answer, minlength=vocab_size) for answer in answers], np.int32)
    in_prompt_ov = np.tile(np.bincount(prompt, minlength=vocab_size) > 0, (2, 1))
    processor = transformers.RepetitionPenaltyLogitsProcessor(1.7)
    rows = torch.tensor([prompt + answer for answer in answers])
    expected_ov = processor(rows, torch.tensor(logits_ov)).numpy() - 0.4 * (counts_ov > 0) - np.array([[0.3], [-0.5]]) * counts_ov
    column = lambda *values: jnp.array(values, jnp.float32)
    edits = Edits(
        counts_ov=jnp.asarray(counts_ov),
        in_prompt_ov=jnp.asarray(in_prompt_ov),
        presence_o=column(0.4, 0.4),
        frequency_o=column(0.3, -0.5),
        repetition_o=column(1.7, 1.7),
    )
    np.testing.assert_allclose(jax.jit(edit)(jnp.asarray(logits_ov), edits), expected_ov, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "given"), [("TopKLogitsWarper", {"top_k": 6}), ("TopPLogitsWarper", {"top_p": 0.8}), ("MinPLogitsWarper", {"min_p": 0.1})])
def test_cuts_are_those_of_transformers(name: str, given: dict[str, Any]) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    logits_ov = np.random.default_rng(4).normal(size=(20, 64)).astype(np.float32) * 2
    warped_ov = getattr(transformers, name)(*given.values())(None, torch.tensor(logits_ov)).numpy()
    scaled_ov = jnp.asarray(logits_ov - logits_ov.max(axis=1, keepdims=True))
    kept_ov = sampling._kept(scaled_ov, jnp.exp(scaled_ov), controls_of(20, **given))
    assert (np.asarray(kept_ov) == np.isfinite(warped_ov)).all()


def test_biases_are_added_and_masks_obeyed() -> None:
    vocab_size = 70
    logits_ov = jnp.zeros((2, vocab_size))
    ids_ob = jnp.array([[5, 69, vocab_size], [5, 5, vocab_size + 3]])
    values_ob = jnp.array([[2.0, -jnp.inf, 9.0], [1.0, 0.5, 9.0]])
    biased = np.asarray(edit(logits_ov, Edits(bias_ids_ob=ids_ob, bias_values_ob=values_ob)))
    assert biased[0, 5] == 2 and biased[0, 69] == -np.inf and biased[1, 5] == 1.5 and np.count_nonzero(biased) == 3
    mask_ow = np.full((2, 3), 0xFFFFFFFF, np.uint32)
    mask_ow[1] = [1 << 7, 1 << 31, 1 << 5]
    masked = np.asarray(edit(logits_ov, Edits(mask_ow=jnp.asarray(mask_ow))))
    assert np.isfinite(masked[0]).all() and np.flatnonzero(np.isfinite(masked[1])).tolist() == [7, 63, 69]


@pytest.mark.parametrize("form", ["plain", pytest.param("kernel", marks=needs_kernels)])
@pytest.mark.parametrize("num_top", [0, 1, 20])
def test_logprobs_are_those_of_a_softmax(form: str, num_top: int) -> None:
    chance = np.random.default_rng(5)
    logits_ov = np.round(chance.normal(size=(9, 333)) * 4, 1).astype(np.float32)
    tokens_o = chance.integers(0, 333, 9)
    args = jnp.asarray(logits_ov), jnp.asarray(tokens_o, jnp.int32)
    found = sampling.Logprobs(*sampling._token_logprobs(*args, num_top)) if form == "plain" else token_logprobs(*args, num_top)
    wide_ov = logits_ov.astype(np.float64)
    expected_ov = wide_ov - np.log(np.exp(wide_ov).sum(axis=1, keepdims=True))
    order_ov = np.argsort(-logits_ov, axis=1, kind="stable")
    np.testing.assert_allclose(found.logprob_o, expected_ov[np.arange(9), tokens_o], rtol=1e-5, atol=1e-5)
    assert np.asarray(found.rank_o).tolist() == [int(np.flatnonzero(order == token)[0]) for order, token in zip(order_ov, tokens_o, strict=True)]
    assert (np.asarray(found.top_ids_ok) == order_ov[:, :num_top]).all()
    np.testing.assert_allclose(found.top_logprobs_ok, np.take_along_axis(expected_ov, order_ov[:, :num_top], axis=1), rtol=1e-5, atol=1e-5)
