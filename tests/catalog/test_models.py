"""The model cards: each has a source and a date, and its shapes give the published number of parameters."""

import pytest

from colossus.catalog.models import ModelEntry, load_model, load_model_entry, model_names
from colossus.spec.errors import CatalogError, SpecError
from colossus.spec.model import ModelCard

# Published numbers of parameters (model pages of Hugging Face, in 1e6), ours as the card's own comment says.
MILLIONS = {
    "llama-3m": 2.83,
    "llama-14m": 13.77,
    "llama-91m": 91.2,
    "llama-3.2-1b": 1236,
    "llama-3-8b": 8030,
    "llama-3-70b": 70554,
    "llama-3.1-405b": 405853,
    "qwen3-0.6b": 596,
    "qwen3-8b": 8191,
    "qwen3-30b-a3b": 30532,
    "mistral-7b-v0.1": 7242,
    "mixtral-8x7b": 46703,
    "smollm2-135m": 134.5,
}


def num_parameters(card: ModelCard) -> int:
    attention = card.model_dim * card.head_dim * 2 * (card.num_heads + card.num_kv_heads)
    moe = card.moe
    mlp = 3 * card.model_dim * card.ffn_dim if moe is None else card.model_dim * moe.num_experts * (1 + 3 * moe.expert_dim)
    norms = 2 * card.model_dim + (2 * card.head_dim if card.qk_norm else 0)
    embeddings = card.vocab_size * card.model_dim * (1 if card.tie_embeddings else 2)
    return card.num_layers * (attention + mlp + norms) + embeddings + card.model_dim


def test_every_card_is_listed_here() -> None:
    assert model_names() == sorted(MILLIONS)


@pytest.mark.parametrize("name", MILLIONS)
def test_shapes_give_the_published_number_of_parameters(name: str) -> None:
    assert num_parameters(load_model(name)) / 1e6 == pytest.approx(MILLIONS[name], rel=2e-3)


@pytest.mark.parametrize("name", MILLIONS)
def test_dump_then_load_is_identity(name: str) -> None:
    entry = load_model_entry(name)
    assert ModelEntry.from_data(entry.to_data(), origin=name) == entry


@pytest.mark.parametrize("key", ["source", "date"])
def test_a_card_without_source_or_date_is_refused(key: str) -> None:
    data = load_model_entry("llama-3m").to_data()
    del data[key]
    with pytest.raises(SpecError, match=f"{key} = .*is required"):
        ModelEntry.from_data(data, origin="card.toml")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(CatalogError, match="no model 'llama-8b'") as caught:
        load_model("llama-8b")
    assert "llama-3-8b" in (caught.value.hint or "")
    with pytest.raises(CatalogError) as caught:
        load_model("../models/zzz")
    assert "qwen3-8b" in (caught.value.hint or "")
