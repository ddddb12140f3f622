"""Hugging Face folders without transformers: what is exported comes back equal, and bad folders are refused in words."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from colossus.nn.hf import LeafReader, load_params, read_card, tokenizer_file
from colossus.nn.hf_config import config_data
from colossus.nn.hf_export import export_folder
from colossus.nn.hf_weights import leaves, stored_shapes, tree
from colossus.nn.parameters import param_shapes
from colossus.spec.errors import DataError, SpecError, StorageError
from colossus.spec.model import ModelCard, MoeCard, RopeScaling

Params = dict[str, Any]

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "num_layers": 2,
    "model_dim": 24,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "ffn_dim": 40,
    "max_sequence_tokens": 64,
}
MOE = MoeCard(num_experts=3, num_experts_per_token=2, expert_dim=40, z_loss_weight=0.5)
SCALING = RopeScaling(factor=4.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_max_tokens=32)
CARDS = {
    "llama": ModelCard(**SHAPE),
    "llama-tied-scaled": ModelCard(**SHAPE, tie_embeddings=True, rope_scaling=SCALING),
    "heads-that-do-not-divide": ModelCard(**SHAPE | {"model_dim": 30}),
    "mistral": ModelCard(**SHAPE, sliding_window_tokens=8),
    "mixtral": ModelCard(**SHAPE, moe=MOE, sliding_window_tokens=8),
    "qwen3": ModelCard(**SHAPE, qk_norm=True, tie_embeddings=True),
    "qwen3-window": ModelCard(**SHAPE, qk_norm=True, sliding_window_tokens=8),
    "qwen3_moe": ModelCard(**SHAPE, qk_norm=True, moe=MOE.model_copy(update={"normalize_top_k": False, "expert_dim": 16})),
}
MODEL_TYPES = ["llama", "llama", "mistral", "mistral", "mixtral", "qwen3", "qwen3", "qwen3_moe"]


def random_params(card: ModelCard) -> Params:
    generator = np.random.default_rng(0)
    return tree(card, {leaf.path: generator.standard_normal(leaf.shape, np.float32) for leaf in leaves(card)})


def write_tokenizer(file: Path, tokens: tuple[str, ...] = ("a", "b"), end: str = "<|endoftext|>") -> Path:
    vocab = {token: index for index, token in enumerate((*tokens, end))}
    special = [{"id": vocab[end], "content": end, "special": True}]
    file.write_text(json.dumps({"model": {"type": "BPE", "vocab": vocab, "merges": []}, "added_tokens": special}))
    return file


def export(folder: Path, card: ModelCard, params: Params | None = None, **options: Any) -> Path:
    export_folder(folder, card, params or random_params(card), write_tokenizer(folder.parent / "tokenizer.json"), **options)
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return export(tmp_path / "llama", CARDS["llama"])


@pytest.mark.parametrize("name", CARDS)
def test_the_mapping_covers_the_decoders_own_tree(name: str) -> None:
    ours = tree(CARDS[name], {leaf.path: leaf.shape for leaf in leaves(CARDS[name])})
    theirs = jax.tree.map(lambda leaf: leaf.shape, param_shapes(CARDS[name]))
    assert ours == theirs


@pytest.mark.parametrize("shard_bytes", [10**9, 9_000])
@pytest.mark.parametrize("name", CARDS)
def test_export_then_import_is_identity(name: str, shard_bytes: int, tmp_path: Path) -> None:
    card, params = CARDS[name], random_params(CARDS[name])
    folder = export(tmp_path / "out", card, params, max_shard_bytes=shard_bytes)
    assert read_card(folder) == card
    jax.tree.map(np.testing.assert_array_equal, load_params(folder, card), params)
    assert tokenizer_file(folder).read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(("name", "model_type"), list(zip(CARDS, MODEL_TYPES, strict=True)))
def test_the_architecture_follows_from_the_card(name: str, model_type: str) -> None:
    assert config_data(CARDS[name], dtype="float32", bos_token_id=None, eos_token_id=0)["model_type"] == model_type


def test_an_architecture_that_transformers_lacks_is_refused() -> None:
    card = ModelCard(**SHAPE, moe=MOE.model_copy(update={"normalize_top_k": False}))
    with pytest.raises(SpecError, match="no counterpart in transformers without qk_norm"):
        config_data(card, dtype="float32", bos_token_id=None, eos_token_id=None)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_written_and_read(dtype: Any, tmp_path: Path) -> None:
    card, params = CARDS["qwen3"], random_params(CARDS["qwen3"])
    folder = export(tmp_path / "out", card, params, dtype=dtype)
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == np.dtype(dtype).name
    rounded = jax.tree.map(lambda array: array.astype(dtype).astype(np.float32), params)
    jax.tree.map(np.testing.assert_array_equal, load_params(folder, card), rounded)
    assert load_params(folder, card, dtype=dtype)["embed"]["tokens"].dtype == dtype


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_a_reader_reads_any_part(name: str, tmp_path: Path) -> None:
    card, params = CARDS[name], random_params(CARDS[name])
    folder = export(tmp_path / "out", card, params)

    def compare(reader: LeafReader) -> None:
        part = tuple(slice(size // 3, size // 3 + max(1, size // 2)) for size in reader.shape)
        group, leaf = reader.path
        np.testing.assert_array_equal(reader(part), params[group][leaf][part])
        np.testing.assert_array_equal(reader(part[:1]), params[group][leaf][part[:1]])

    load_params(folder, card, read=compare)


def test_a_mesh_takes_its_shards_through_the_reader(llama: Path) -> None:
    card = CARDS["llama"]
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:1]), ("fsdp",)), PartitionSpec("fsdp"))
    loaded = load_params(llama, card, read=lambda reader: jax.make_array_from_callback(reader.shape, sharding, reader))
    jax.tree.map(np.testing.assert_array_equal, loaded, random_params(card))


def test_rope_of_transformers_5_reads_the_same(llama: Path) -> None:
    scaling = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    edit_config(llama, rope_parameters=scaling | {"rope_type": "llama3", "rope_theta": 1234.0}, rope_scaling=None, rope_theta=None)
    assert read_card(llama) == CARDS["llama"].model_copy(update={"rope_theta": 1234.0, "rope_scaling": SCALING})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "lama"}, "model_type = 'lama': .*did you mean 'llama'"),
        ({"model_type": "deepseek_v3"}, "model_type = 'deepseek_v3': .*supported: llama, mistral, mixtral, qwen3, qwen3_moe"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types = .*all layers must be"),
        ({"attention_bias": True}, "attention_bias = true: must be false"),
        ({"mlp_bias": True, "hidden_act": "gelu"}, "2 problems"),
        ({"quantization_config": {"bits": 4}}, "quantization_config = .*must be null"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type = 'yarn'.*valid: default, llama3"),
        ({"rope_scaling": {"type": "llama3", "factor": 4.0}}, "low_freq_factor = .*is required"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        ({"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "max_window_layers = 1: must be 0"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [0]}, "mlp_only_layers"),
        ({"num_key_value_heads": 3}, "must be a multiple of num_kv_heads"),
        ({"hidden_size": "wide"}, "hidden_size = 'wide'"),
        ({"num_hidden_layers": None}, r"num_hidden_layers = \(absent\): is required"),
    ],
)
def test_a_config_we_cannot_honour_is_refused(llama: Path, changes: dict[str, Any], said: str) -> None:
    edit_config(llama, **changes)
    with pytest.raises(SpecError, match=said) as caught:
        read_card(llama)
    assert str(llama / "config.json") in str(caught.value)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"config.json: 1 problem\n.*does not exist"):
        read_card(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SpecError, match="cannot be read as JSON"):
        read_card(tmp_path)


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("model.norm.weight"), r"1 tensors.*\n  model.norm.weight \(24,\): is missing"),
        (lambda t: t.update({"model.norm.weight": np.ones(23, np.float32)}), r"model.norm.weight = \(23,\): must be \(24,\)"),
        (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.ones(32, np.float32)}), r"q_proj.bias \(32,\): is no part of this model"),
        (lambda t: t.update({"model.norm.weight": np.ones(24, np.int8)}), "dtype I8, which is not read here"),
        (lambda t: t.clear(), r"21 tensors[\s\S]*and 13 more"),
    ],
)
def test_weights_that_do_not_fit_are_refused(llama: Path, change: Callable[[dict[str, np.ndarray]], None], said: str) -> None:
    rewrite(llama, change)
    with pytest.raises(DataError, match=said):
        load_params(llama, CARDS["llama"])


def test_leftovers_of_old_checkpoints_are_no_error(llama: Path) -> None:
    rewrite(llama, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}))
    load_params(llama, CARDS["llama"])


def test_a_file_cut_short_is_refused(llama: Path) -> None:
    file = llama / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(DataError, match=r"is not a readable safetensors file: .* ends at byte"):
        load_params(llama, CARDS["llama"])
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    with pytest.raises(DataError, match="not a readable safetensors file"):
        load_params(llama, CARDS["llama"])
    file.unlink()
    with pytest.raises(DataError, match=r"neither model.safetensors nor"):
        load_params(llama, CARDS["llama"])


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = export(tmp_path / "out", CARDS["llama"], max_shard_bytes=9_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(stored_shapes(CARDS["llama"]))
    (folder / index["weight_map"]["model.norm.weight"]).unlink()
    with pytest.raises(DataError, match=r"model-\d{5}-of-\d{5}.safetensors does not exist"):
        load_params(folder, CARDS["llama"])


def test_nothing_is_overwritten(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is not empty"):
        export(llama, CARDS["llama"])
    (tmp_path / "empty").mkdir()
    export(tmp_path / "empty", CARDS["llama"])
    with pytest.raises(StorageError, match="is a file"):
        export(tmp_path / "tokenizer.json", CARDS["llama"])


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """A real refusal of the operating system, by the limit on a file's size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(StorageError, match=r"cannot write .*nothing was left there"):
            export(tmp_path / "out", CARDS["llama"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_a_tree_of_another_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lm_head.kernel absent: must be \(24, 64\)"):
        export(tmp_path / "out", CARDS["llama"], random_params(CARDS["llama-tied-scaled"]))


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json", tuple(f"t{i}" for i in range(64)))
    with pytest.raises(DataError, match="ids up to 64, the model's vocabulary ends at 63"):
        export_folder(tmp_path / "out", CARDS["llama"], random_params(CARDS["llama"]), tokenizer)
    with pytest.raises(DataError, match=r"cannot be read as a tokenizer.json"):
        export_folder(tmp_path / "out", CARDS["llama"], random_params(CARDS["llama"]), tmp_path / "absent.json")
    assert not (tmp_path / "out").exists()


def test_the_end_of_text_is_found_in_the_tokenizer(llama: Path) -> None:
    assert json.loads((llama / "config.json").read_text())["eos_token_id"] == 2
    assert json.loads((llama / "generation_config.json").read_text()) == {"eos_token_id": 2}
    assert json.loads((llama / "tokenizer_config.json").read_text())["eos_token"] == "<|endoftext|>"
