"""Hugging Face configs to plan with: published ones give the catalog's cards, what has no meaning is refused in words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossus.catalog.hf_config import FAMILIES, card_from_config
from colossus.catalog.models import load_model
from colossus.estimate.parameters import num_parameters
from colossus.spec.errors import SpecError
from colossus.spec.model import Activation

Data = dict[str, Any]

# What the published files say, without what plays no part (dtypes, token ids, dropout).
CONFIGS: dict[str, Data] = json.loads((Path(__file__).parent / "data" / "hf_configs.json").read_text())
_HEADS: Data = {"num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA: Data = {"model_type": "llama", "num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 192, "vocab_size": 512, **_HEADS}
QWEN2: Data = LLAMA | {"model_type": "qwen2"}
MOE: Data = LLAMA | {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LLAMA4: Data = LLAMA | {"model_type": "llama4_text", "intermediate_size_mlp": 256}
GPT2: Data = {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "n_inner": None, "vocab_size": 50257}


@pytest.mark.parametrize("name", CONFIGS)
def test_published_configs_give_the_catalogs_cards(name: str) -> None:
    assert card_from_config(CONFIGS[name]) == load_model(name)


def test_gpt2_is_spelled_in_its_own_way() -> None:
    card = load_model("gpt-2-124m")  # without RoPE, whose base is then no matter
    assert card_from_config(GPT2) == card.model_copy(update={"rope_theta": 10000.0})


def test_gpt_neox() -> None:
    shape: Data = {"num_hidden_layers": 44, "hidden_size": 6144, "num_attention_heads": 64, "intermediate_size": 24576, "vocab_size": 50432}
    card = card_from_config({"model_type": "gpt_neox", "hidden_act": "gelu_fast", "rotary_pct": 0.25, **shape})
    assert card.activation is Activation.GELU and num_parameters(card) == pytest.approx(20.55e9, rel=1e-3)


def test_a_file_its_folder_and_its_data_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["deepseek-v3"]))
    card = load_model("deepseek-v3")
    assert card_from_config(tmp_path) == card_from_config(str(tmp_path / "config.json")) == card


def test_windows_in_some_layers() -> None:
    windows: Data = {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}
    assert card_from_config(QWEN2 | windows).num_window_layers == 3
    assert card_from_config(QWEN2 | windows | {"max_window_layers": 0}).num_window_layers is None
    assert card_from_config(QWEN2 | windows | {"max_window_layers": 4}).sliding_window_tokens is None
    assert card_from_config(QWEN2 | windows | {"use_sliding_window": False}).sliding_window_tokens is None
    named = card_from_config(QWEN2 | windows | {"layer_types": ["sliding_attention"] * 2 + ["full_attention"] * 2})
    assert (named.sliding_window_tokens, named.num_window_layers) == (32, 2)
    every_other = card_from_config(LLAMA | {"model_type": "gpt_oss"})
    assert (every_other.sliding_window_tokens, every_other.num_window_layers) == (128, 2)


def test_experts_in_some_layers() -> None:
    def num_dense(data: Data) -> int | None:
        moe = card_from_config(data).moe
        return None if moe is None else moe.num_dense_layers

    assert num_dense(MOE) == 0
    assert num_dense(MOE | {"decoder_sparse_step": 2}) == 2
    assert num_dense(MOE | {"mlp_only_layers": [0]}) == 1
    assert num_dense(MOE | {"mlp_only_layers": [0, 1, 2, 3]}) is None
    assert num_dense(LLAMA4 | {"interleave_moe_layer_step": 2}) == 2
    assert num_dense(LLAMA4 | {"moe_layers": [3]}) == 3
    deepseek = CONFIGS["deepseek-v3"] | {"num_hidden_layers": 6}
    assert num_dense(deepseek) == 3 and num_dense(deepseek | {"moe_layer_freq": 2}) == 5


def test_queries_without_a_latent() -> None:
    mla = card_from_config(CONFIGS["deepseek-v2"] | {"q_lora_rank": None}).mla
    assert mla is not None and mla.query_rank is None


def test_what_a_plan_does_not_need_is_dropped() -> None:
    extra: Data = {"attention_bias": True, "quantization_config": {"bits": 4}, "rope_scaling": {"type": "dynamic", "factor": 2.0}, "hidden_act": "gelu"}
    assert card_from_config(LLAMA | extra) == card_from_config(LLAMA)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"model_type": "mamba2"}, "model_type = 'mamba2': is not a decoder that Colossus reads .*supported: deepseek_v2, .*qwen3_moe"),
        ({"model_type": "deepseek_v4"}, "did you mean 'deepseek_v[23]'.*supported: "),
        ({}, r"model_type = \(absent\)"),
        ({"model_type": ["llama"]}, "model_type = "),
        ({"model_type": "llama"}, "num_hidden_layers = .*is required"),
        ({"model_type": "gpt2", "vocab_size": 1}, r"n_layer = \(absent\): is required"),
        (GPT2 | {"n_embd": "wide"}, "n_embd = 'wide': must be a whole number of at least 1"),
        (GPT2 | {"activation_function": "tanh"}, "activation_function = 'tanh'.*valid: gelu"),
        (GPT2 | {"add_cross_attention": True}, "add_cross_attention = true: must be false"),
        (LLAMA | {"hidden_size": -64}, "hidden_size = -64: must be a whole number of at least 1"),
        (LLAMA | {"num_hidden_layers": 10**12}, "num_hidden_layers = 1000000000000: must be at most 10000"),
        (LLAMA | {"num_attention_heads": 0, "num_hidden_layers": 0}, "2 problems"),
        (LLAMA | {"num_key_value_heads": 3}, "must be a multiple of num_kv_heads"),
        (LLAMA | {"rope_scaling": "yarn"}, "rope_scaling = 'yarn': must be a JSON object"),
        (LLAMA | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling.low_freq_factor = .*is required"),
        (MOE | {"mlp_only_layers": "all"}, "mlp_only_layers = 'all': must be a list of whole numbers"),
        (MOE | {"decoder_sparse_step": 0}, "decoder_sparse_step = 0: must be a whole number of at least 1"),
        (MOE | {"num_experts_per_tok": 5}, "num_experts_per_token 5 must be at most num_experts 4"),
        (QWEN2 | {"layer_types": ["full_attention"] * 3}, "layer_types = '3 names': must name each of num_hidden_layers 4 layers"),
        (QWEN2 | {"layer_types": ["linear_attention"] * 4}, "layer_types = 'linear_attention': each must be full_attention or sliding_attention"),
        ({"model_type": "llama4", "text_config": 3}, "text_config = 3: must be a JSON object"),
    ],
)
def test_a_config_without_meaning_is_refused(data: Data, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        card_from_config(data)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"config.json: .*does not exist"):
        card_from_config(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(SpecError, match="must be a JSON object"):
        card_from_config(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(SpecError, match="cannot be read as JSON"):
        card_from_config(tmp_path)


_KEYS = sorted({key for data in CONFIGS.values() for key in data | data.get("text_config", {})} - {"model_type"})
_ODD = st.sampled_from([None, True, -1, 0, 1, 3, 300, 0.5, float("nan"), "", "gelu", [], [0, 3], ["full_attention"] * 4, [None], {}, {"type": "llama3"}])


@given(
    base=st.sampled_from([LLAMA, MOE, LLAMA4, GPT2]),
    family=st.sampled_from(sorted(FAMILIES)),
    odd=st.lists(st.tuples(st.sampled_from(_KEYS), _ODD), max_size=4),
)
def test_any_config_gives_a_card_or_a_spec_error(base: Data, family: str, odd: list[tuple[str, Any]]) -> None:
    try:
        assert num_parameters(card_from_config(base | {"model_type": family} | dict(odd))) > 0
    except SpecError as error:
        assert error.problems


def test_reading_never_imports_jax() -> None:
    code = "import sys, colossus.catalog.hf_config; sys.exit(any(name in sys.modules for name in ('jax', 'numpy', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
