"""Every family against transformers itself, both ways, on small random weights in float32: the logits must be equal."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from colossus.nn.compute import Compute
from colossus.nn.decoder import forward
from colossus.nn.generate import generate
from colossus.nn.hf import load_params, read_card
from colossus.nn.hf_export import export_folder
from colossus.spec.model import ModelCard

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
LLAMA3_SCALING = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_BASE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_MOE: dict[str, Any] = {"num_experts": 4, "moe_intermediate_size": 24}
# name -> model_type and what differs from _BASE
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-mha": ("llama", {"num_key_value_heads": 4}),
    "llama-wide-heads": ("llama", {"head_dim": 16}),
    "llama3-scaling": ("llama", {"rope_parameters": LLAMA3_SCALING | {"original_max_position_embeddings": 16}}),
    "mistral-window": ("mistral", {"sliding_window": 8}),
    "mistral-full": ("mistral", {"sliding_window": None}),
    "mistral-uneven-heads": ("mistral", {"hidden_size": 30, "head_dim": 8, "sliding_window": None}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral-window-tied": ("mixtral", {"num_local_experts": 4, "sliding_window": 8, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3-tied": ("qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
    "qwen3-window": ("qwen3", {"head_dim": 8, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}),
    "qwen3_moe": ("qwen3_moe", _MOE | {"head_dim": 16, "num_experts_per_tok": 2, "norm_topk_prob": True}),
    "qwen3_moe-raw-top-k": ("qwen3_moe", _MOE | {"head_dim": 8, "num_experts_per_tok": 3, "norm_topk_prob": False}),
}
# One of each family always, its variants with the slow ones.
MARKED = [name if name in ("llama", "mistral-window", "mixtral", "qwen3", "qwen3_moe") else pytest.param(name, marks=pytest.mark.slow) for name in CASES]


def make_model(case: str) -> Any:
    """A float32 model with weights large enough that every part shows in the logits."""
    model_type, extra = CASES[case]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **(_BASE | extra), initializer_range=0.2)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "mlp.gate.weight" in name:
                parameter.normal_(0, 0.5)
    return model


def save_model(case: str, folder: Path, **options: Any) -> Any:
    model = make_model(case)
    model.save_pretrained(folder, **options)
    return model


def logits_of(model: Any, tokens_bt: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(tokens_bt.astype(np.int64))).logits)


def some_tokens(vocab_size: int, length: int = 24, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(1).integers(0, vocab_size, (batch, length)).astype(np.int32)


def make_tokenizer(file: Path, vocab_size: int = 96, end: str = "<|endoftext|>") -> Path:
    """A byte-free BPE on one line of text; enough to be loaded and to encode it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[end], show_progress=False)
    tokenizer.train_from_iterator(["to be or not to be that is the question"], trainer)
    file.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(file))
    return file


run = jax.jit(partial(forward, compute=Compute(unroll=False)), static_argnums=2)  # a loop over layers compiles sooner


def our_logits(folder: Path, card: ModelCard, tokens_bt: np.ndarray) -> np.ndarray:
    return np.asarray(run(load_params(folder, card), jnp.asarray(tokens_bt), card))


@pytest.mark.parametrize("case", MARKED)
def test_their_folder_gives_their_logits_here(case: str, tmp_path: Path) -> None:
    model = save_model(case, tmp_path)
    card = read_card(tmp_path)
    tokens_bt = some_tokens(card.vocab_size)
    theirs = logits_of(model, tokens_bt)
    assert np.abs(theirs).max() > 1
    np.testing.assert_allclose(our_logits(tmp_path, card, tokens_bt), theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", MARKED)
def test_our_folder_gives_our_logits_there(case: str, tmp_path: Path) -> None:
    """Through an export in several shards, loaded by name from what config.json says."""
    save_model(case, tmp_path / "theirs")
    card = read_card(tmp_path / "theirs")
    params = load_params(tmp_path / "theirs", card)
    export_folder(tmp_path / "ours", card, params, make_tokenizer(tmp_path / "tokenizer.json"), max_shard_bytes=20_000)
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 1
    model, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    assert model.dtype == torch.float32
    tokens_bt = some_tokens(card.vocab_size)
    ours = np.asarray(run(params, jnp.asarray(tokens_bt), card))
    np.testing.assert_allclose(logits_of(model, tokens_bt), ours, rtol=0, atol=TOLERANCE)
    assert read_card(tmp_path / "ours") == card


def test_the_tokenizer_loads_there_with_its_companions(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    save_model("llama", tmp_path / "theirs")
    card = read_card(tmp_path / "theirs")
    tokenizer = make_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    export_folder(tmp_path / "ours", card, load_params(tmp_path / "theirs", card), tokenizer, dtype=jnp.bfloat16)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    text = "that is not to be<|endoftext|>"
    assert loaded(text)["input_ids"] == Tokenizer.from_file(str(tokenizer)).encode(text).ids
    assert (loaded.eos_token, loaded.model_max_length) == ("<|endoftext|>", card.max_sequence_tokens)
    assert loaded.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == loaded.eos_token_id == 0


@pytest.mark.slow
def test_greedy_texts_agree(tmp_path: Path) -> None:
    model = save_model("mixtral-window-tied", tmp_path)
    card = read_card(tmp_path)
    prompt = some_tokens(card.vocab_size)[:1]
    theirs = model.generate(torch.from_numpy(prompt.astype(np.int64)), max_new_tokens=20, do_sample=False, eos_token_id=None)
    ours = generate(load_params(tmp_path, card), card, prompt[0].tolist(), max_new_tokens=20, temperature=0)
    assert ours == theirs[0, prompt.shape[1] :].tolist()
