"""The model cards: each has a source and a date, and its shapes give the published number of parameters."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from colossus.catalog.models import ModelEntry, load_model, load_model_entry, model_names
from colossus.estimate.parameters import active_parameters, num_parameters
from colossus.spec.errors import CatalogError, SpecError
from colossus.spec.model import untrainable


@dataclass(frozen=True)
class Published:
    """Billions of parameters as printed; a number may differ by 1 %, by half of its last digit, or as ``why`` explains.

    ``positions``: learned positions that the print counts and the card does not have. ``active``: as printed, with the
    input table (most) or without.
    """

    total: str
    active: str | None = None
    positions: int = 0
    counts_input_table: bool = True
    tolerance_fraction: float = 0.01
    why: str = ""


# Model pages of Hugging Face and the papers that the cards name; our own recipes as their comments say.
PUBLISHED = {
    "llama-3m": Published("0.00283"),
    "llama-14m": Published("0.01377"),
    "llama-91m": Published("0.0912"),
    "smollm2-135m": Published("0.1345"),
    "gpt-2-124m": Published("0.1244", positions=1024),
    "gpt-2-355m": Published("0.3548", positions=1024),
    "gpt-2-774m": Published("0.7740", positions=1024),
    "gpt-2-1.5b": Published("1.5576", positions=1024),
    "gpt-3-175b": Published("174.6", positions=2048),
    "megatron-1.7b": Published("1.7", positions=2048),
    "megatron-3.6b": Published("3.6", positions=2048),
    "megatron-7.5b": Published("7.5", positions=2048),
    "megatron-18b": Published("18.4", positions=2048),
    "megatron-39b": Published("39.1", positions=2048),
    "megatron-76b": Published("76.1", positions=2048),
    "megatron-145b": Published("145.6", positions=2048),
    "megatron-310b": Published("310.1", positions=2048),
    "megatron-530b": Published("529.6", positions=2048),
    "megatron-1t": Published("1008.0", positions=2048),
    "palm-540b": Published("540.35"),
    "llama-1-7b": Published("6.7"),
    "llama-1-13b": Published("13.0"),
    "llama-1-33b": Published("32.5"),
    "llama-1-65b": Published("65.2"),
    "llama-2-7b": Published("6.74"),
    "llama-2-13b": Published("13.02"),
    "llama-2-70b": Published("68.98"),
    "llama-3-8b": Published("8.030"),
    "llama-3-70b": Published("70.554"),
    "llama-3.1-405b": Published("405.853"),
    "llama-3.2-1b": Published("1.236"),
    "llama-3.2-3b": Published("3.213"),
    "llama-4-scout": Published("109", "17", tolerance_fraction=0.015, why="the print counts the image encoder, 0.9 billion"),
    "llama-4-maverick": Published("400", "17"),
    "mistral-7b-v0.1": Published("7.242"),
    "mixtral-8x7b": Published("46.7", "12.9"),
    "mixtral-8x22b": Published("141", "39"),
    "deepseek-v2": Published("236", "21"),
    "deepseek-v3": Published("671", "36.6", counts_input_table=False),
    "kimi-k2": Published("1040", "32.6", tolerance_fraction=0.015, why="printed 1.04T; the published config.json gives 1.026T"),
    "qwen3-0.6b": Published("0.596"),
    "qwen3-1.7b": Published("1.7206"),
    "qwen3-4b": Published("4.02"),
    "qwen3-8b": Published("8.191"),
    "qwen3-14b": Published("14.77"),
    "qwen3-32b": Published("32.76"),
    "qwen3-30b-a3b": Published("30.532", "3.3", tolerance_fraction=0.02, why="3.35 billion active, printed as 3.3"),
    "qwen3-235b-a22b": Published("235.09", "22"),
    "grok-1": Published("314"),  # of the active share xAI says 25 %, which is experts alone
    "nemotron-4-15b": Published("15.7"),
    "nemotron-4-340b": Published("341.0"),
    "gpt-oss-20b": Published("20.91", "3.61", counts_input_table=False),
    "gpt-oss-120b": Published("116.83", "5.13", counts_input_table=False),
    "mpt-125m": Published("0.1253", positions=2048),
    "mpt-350m": Published("0.3560", positions=2048),
    "mpt-760m": Published("0.7605", positions=2048),
    "mpt-1b": Published("1.3160", positions=2048),
    "mpt-3b": Published("2.6518", positions=2048),
    "mpt-7b": Published("6.6589", positions=2048),
    "mpt-13b": Published("12.8540", positions=2048),
    "mpt-30b": Published("29.9752", positions=2048),
    "mpt-70b": Published("64.8624", positions=2048),
}
MIXTURES = [name for name, published in PUBLISHED.items() if published.active]


def half_a_digit(printed: str) -> float:
    return 0.5 * 10.0 ** -len(printed.partition(".")[2])


def test_every_card_is_listed_here() -> None:
    assert model_names() == sorted(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_give_the_published_number_of_parameters(name: str) -> None:
    card, published = load_model(name), PUBLISHED[name]
    assert published.why or published.tolerance_fraction == 0.01
    counted = (num_parameters(card) + published.positions * card.model_dim) / 1e9
    assert counted == pytest.approx(float(published.total), rel=published.tolerance_fraction, abs=half_a_digit(published.total))


@pytest.mark.parametrize("name", MIXTURES)
def test_shapes_give_the_published_number_of_active_parameters(name: str) -> None:
    published = PUBLISHED[name]
    counted = active_parameters(load_model(name), input_table=published.counts_input_table) / 1e9
    assert counted == pytest.approx(float(published.active or 0), rel=published.tolerance_fraction, abs=half_a_digit(published.active or ""))


def test_of_a_dense_model_all_parameters_are_active() -> None:
    card = load_model("llama-3-8b")
    assert active_parameters(card) == num_parameters(card)
    assert num_parameters(card) - active_parameters(card, input_table=False) == card.vocab_size * card.model_dim
    tied = load_model("llama-3.2-1b")
    assert active_parameters(tied, input_table=False) == num_parameters(tied)


def test_what_only_plans_is_said() -> None:
    paths = {problem.path for name in PUBLISHED for problem in untrainable(load_model(name))}
    moe = {"model.moe.shared_dim", "model.moe.num_dense_layers", "model.moe.num_groups"}
    assert paths == {"model.mla", "model.activation", "model.num_window_layers", *moe}
    assert not untrainable(load_model("llama-2-70b"))


@pytest.mark.parametrize("name", PUBLISHED)
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
