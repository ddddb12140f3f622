"""FLOP of training in closed form: against published formulas and totals, against hand counts, and against the parameters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossus.catalog.models import load_model, model_names
from colossus.estimate.flop import TrainFlop, mean_causal_keys, train_flop
from colossus.estimate.parameters import active_parameters, num_parameters, parameters
from colossus.spec.layout import Remat
from colossus.spec.model import Activation, MlaCard, ModelCard, MoeCard

MEGATRON = [name for name in model_names() if name.startswith("megatron-")]
MLA = MlaCard(kv_rank=8, query_rank=12, rope_head_dim=4, value_head_dim=6)
MOE = MoeCard(num_experts=4, num_experts_per_token=2, expert_dim=24, shared_dim=10, num_dense_layers=1)
CARD = ModelCard(vocab_size=100, num_layers=3, model_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, ffn_dim=40, max_sequence_tokens=64)


def flop_per_token(name: str, sequence_tokens: int, **options: float) -> float:
    return train_flop(load_model(name), 1, sequence_tokens, **options).model_flop / sequence_tokens


@pytest.mark.parametrize("name", MEGATRON)
def test_megatrons_own_formula(name: str) -> None:
    """Narayanan et al. 2021, equation 3, without its recomputed forward pass: 72 B s l h^2 (1 + s / 6h + V / 12lh)."""
    card, sequences, s = load_model(name), 8, 2048
    h, layers = card.model_dim, card.num_layers
    theirs = 72 * sequences * s * layers * h**2 * (1 + s / (6 * h) + card.vocab_size / (12 * layers * h))
    assert train_flop(card, sequences, s, attended_keys=s).model_flop == pytest.approx(theirs, rel=1e-9)


def test_palms_own_formula() -> None:
    """Chowdhery et al. 2022, appendix B: 6 N + 12 L H Q T a token; norms are in their N alone."""
    card = load_model("palm-540b")
    theirs = 6 * num_parameters(card) + 12 * card.num_layers * card.num_heads * card.head_dim * 2048
    assert flop_per_token("palm-540b", 2048, attended_keys=2048) == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "sequence_tokens", "published", "tolerance"),
    [
        # DeepSeek, arXiv 2505.09343, table 2: FLOP a token with causal attention at 4096 tokens.
        ("deepseek-v2", 4096, 155e9, 0.004),
        ("deepseek-v3", 4096, 250e9, 0.004),
        # Totals by 6 N D, which leaves attention out: Llama 3 (arXiv 2407.21783) 3.8e25 over 15.6e12 tokens, GPT-3 (arXiv
        # 2005.14165, table D.1) 3.14e23 over 300e9.
        ("llama-3.1-405b", 8192, 3.8e25 / 15.6e12, 0.045),
        ("gpt-3-175b", 2048, 3.14e23 / 300e9, 0.02),
    ],
)
def test_published_totals(name: str, sequence_tokens: int, published: float, tolerance: float) -> None:
    assert flop_per_token(name, sequence_tokens) == pytest.approx(published, rel=tolerance)


@pytest.mark.parametrize("name", model_names())
def test_every_weight_that_multiplies_costs_six_flop_a_token(name: str) -> None:
    """6 N D holds exactly once N is the active parameters without input table and norms, and attention is counted apart."""
    card, tokens = load_model(name), 64
    norms = sum(part.num for part in parameters(card) if "norms" in part.name)
    flop = train_flop(card, 1, tokens)
    assert flop.model_flop - flop.attention_flop == pytest.approx(6 * tokens * (active_parameters(card, input_table=False) - norms), rel=1e-12)


@pytest.mark.parametrize("name", ["llama-2-70b", "qwen3-235b-a22b", "deepseek-v3", "kimi-k2", "grok-1", "nemotron-4-340b", "gpt-oss-120b"])
def test_six_n_d_is_a_good_guess_at_short_sequences(name: str) -> None:
    """With all active parameters and no attention, as people estimate: within 12 % at 2048 tokens (gpt-oss: a tenth is its input table)."""
    assert flop_per_token(name, 2048) == pytest.approx(6 * active_parameters(load_model(name)), rel=0.12)


def test_latent_attention_by_hand() -> None:
    card = CARD.model_copy(update={"mla": MLA, "num_kv_heads": 2})
    queries = 16 * 12 + 12 * 2 * (8 + 4)
    keys_values = 16 * (8 + 4) + 8 * 2 * (8 + 6)
    flop = train_flop(card, 1, 10)
    assert flop.projections_flop == 6 * 10 * 3 * (queries + keys_values + 2 * 6 * 16)
    assert flop.attention_flop == 6 * 10 * 3 * 2 * (8 + 4 + 6) * 5.5
    direct = card.model_copy(update={"mla": MLA.model_copy(update={"query_rank": None})})
    assert flop.projections_flop - train_flop(direct, 1, 10).projections_flop == 6 * 10 * 3 * (queries - 16 * 2 * (8 + 4))


def test_a_mixture_with_shared_experts_and_dense_layers_by_hand() -> None:
    flop = train_flop(CARD.model_copy(update={"moe": MOE}), 1, 10)
    assert flop.feed_forward_flop == 6 * 10 * 3 * 16 * (40 + 2 * (10 + 2 * 24))
    assert flop.router_flop == 6 * 10 * 2 * 16 * 4


@pytest.mark.parametrize("activation", [Activation.GELU, Activation.SQUARED_RELU])
def test_a_feed_forward_without_a_gate_has_two_matrices(activation: Activation) -> None:
    gated, plain = train_flop(CARD, 1, 10), train_flop(CARD.model_copy(update={"activation": activation}), 1, 10)
    assert plain.feed_forward_flop == gated.feed_forward_flop * 2 / 3
    assert (plain.projections_flop, plain.attention_flop) == (gated.projections_flop, gated.attention_flop)


def test_windows_in_some_layers() -> None:
    card = load_model("gpt-oss-120b")
    keys = (mean_causal_keys(4096, 128) + mean_causal_keys(4096)) / 2
    assert train_flop(card, 1, 4096).attention_flop == pytest.approx(train_flop(card, 1, 4096, attended_keys=keys).attention_flop)
    assert train_flop(card, 1, 128).attention_flop == pytest.approx(train_flop(card, 1, 128, attended_keys=64.5).attention_flop)


def test_recompute() -> None:
    """Full remat does every forward GEMM of the layers again but the last one of a feed-forward that no gate weighs."""
    card, d, tokens = CARD.model_copy(update={"moe": MOE}), 16, 10
    none, selective, full = (train_flop(card, 1, tokens, remat) for remat in (Remat.NONE, Remat.SELECTIVE, Remat.FULL))
    assert none.recompute_flop == 0 < selective.recompute_flop < full.recompute_flop
    layers = (full.model_flop - full.head_flop) / 3
    assert full.recompute_flop == pytest.approx(layers - 2 * tokens * d * (40 + 2 * 10))


# As counted before the catalog had latent attention, shared experts and feed-forwards without a gate.
@pytest.mark.parametrize(
    ("name", "remat", "model_flop", "recompute_flop"),
    [
        ("llama-3-8b", Remat.NONE, 1686607887335424, 0),
        ("mixtral-8x7b", Remat.FULL, 2717606196805632, 897278797676544),
        ("mistral-7b-v0.1", Remat.SELECTIVE, 1556302874542080, 26390426550272),
    ],
)
def test_counts_of_the_first_cards_stay(name: str, remat: Remat, model_flop: float, recompute_flop: float) -> None:
    flop = train_flop(load_model(name), 4, 8192, remat)
    assert (flop.model_flop, flop.recompute_flop) == (model_flop, recompute_flop)


def test_full_attention_counts_twice_the_causal_one() -> None:
    card = load_model("llama-2-70b")
    causal, full = train_flop(card, 1, 4096), train_flop(card, 1, 4096, attended_keys=4096)
    assert full.attention_flop / causal.attention_flop == pytest.approx(2, rel=1e-3)
    assert full.projections_flop == causal.projections_flop


CARDS = st.builds(
    CARD.model_copy,
    update=st.fixed_dictionaries(
        {
            "activation": st.sampled_from(list(Activation)),
            "mla": st.none() | st.just(MLA),
            "moe": st.none()
            | st.builds(MOE.model_copy, update=st.fixed_dictionaries({"num_dense_layers": st.integers(0, 2), "shared_dim": st.integers(0, 9)})),
            "sliding_window_tokens": st.just(8),
            "num_window_layers": st.none() | st.integers(1, 3),
        }
    ),
)


@given(card=CARDS, remat=st.sampled_from(list(Remat)), sequences=st.integers(1, 4))
def test_work_grows_with_the_batch_and_with_what_is_seen(card: ModelCard, remat: Remat, sequences: int) -> None:
    one, many = (train_flop(card, count, 32, remat) for count in (1, sequences))
    assert many.total_flop == pytest.approx(sequences * one.total_flop)
    assert isinstance(one, TrainFlop) and 0 < one.model_flop <= one.total_flop < 4 / 3 * one.model_flop + 1
    without_window = card.model_copy(update={"sliding_window_tokens": None, "num_window_layers": None})
    assert one.attention_flop <= train_flop(without_window, 1, 32, remat).attention_flop
    assert active_parameters(card) <= num_parameters(card)
