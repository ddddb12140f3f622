"""Small GGUF files for tests, written with the ``gguf`` package as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from colossus.nn.gguf import _tensor_name
from colossus.nn.hf_weights import leaves
from colossus.nn.parameters import param_shapes
from colossus.spec.model import ModelCard

TEXT = ["the cat sat on the mat, 12 times; it's 2024 now", "a dog and a cat, in the house of the dog: they'll see", '{"a": [1, 2, true]}'] * 3


def card_of(**changes: Any) -> ModelCard:
    small = {"vocab_size": 320, "num_layers": 2, "model_dim": 64, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "ffn_dim": 96}
    return ModelCard(**(small | {"max_sequence_tokens": 128, "rope_theta": 10000.0, "tie_embeddings": True} | changes))


def params_of(card: ModelCard) -> dict[str, Any]:
    """Random weights, the norms around 1."""
    chance = np.random.default_rng(0)

    def drawn(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        matrix = chance.normal(size=leaf.shape) * 0.1
        return np.asarray(matrix + (1 if len(leaf.shape) < 3 and card.vocab_size not in leaf.shape else 0), np.float32)

    return jax.tree.map(drawn, param_shapes(card))


def trained_bpe(vocab_size: int = 300) -> Tokenizer:
    """Byte-level BPE on a few lines, with two special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def write_gguf(path: Path, card: ModelCard, params: dict[str, Any], *, architecture: str = "llama", kind: str = "F32", **metadata: Any) -> Path:
    """A model file: weights of ``params`` in the type ``kind``, a byte-level vocabulary, and ``metadata`` as further keys (dots as ``__``)."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(card.num_layers)
    writer.add_context_length(card.max_sequence_tokens)
    writer.add_embedding_length(card.model_dim)
    writer.add_feed_forward_length(card.ffn_dim)
    writer.add_head_count(card.num_heads)
    writer.add_head_count_kv(card.num_kv_heads)
    writer.add_key_length(card.head_dim)
    writer.add_value_length(card.head_dim)
    writer.add_rope_dimension_count(card.head_dim)
    writer.add_rope_freq_base(card.rope_theta)
    writer.add_layer_norm_rms_eps(card.norm_epsilon)
    if card.moe is not None:
        writer.add_expert_count(card.moe.num_experts)
        writer.add_expert_used_count(card.moe.num_experts_per_token)
        writer.add_expert_feed_forward_length(card.moe.expert_dim)
    _add_vocabulary(writer, trained_bpe())
    for key, value in metadata.items():
        _add(writer, key.replace("__", "."), value)
    for name, array in stored_tensors(card, params, architecture).items():
        quantised = kind if array.ndim > 1 and "norm" not in name else "F32"
        dtype = gguf.GGMLQuantizationType[quantised]
        writer.add_tensor(name, array if quantised == "F32" else gguf.quants.quantize(array, dtype), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def stored_tensors(card: ModelCard, params: dict[str, Any], architecture: str) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for leaf in leaves(card):
        array = np.asarray(params[leaf.path[0]][leaf.path[1]])
        for coords in leaf.coords:
            stored = leaf.to_stored(array[coords])
            if architecture == "llama" and leaf.path[1] in ("wq", "wk"):
                stored = _paired(stored, card.head_dim)
            name = _tensor_name(leaf, coords)
            out[name] = np.concatenate([out[name], stored[None]]) if name in out else stored[None] if len(coords) == 2 else stored
    return out


def _paired(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """llama.cpp's order of a head's rows: the two halves interleaved."""
    return rows.reshape(-1, 2, head_dim // 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def _add_vocabulary(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    vocab = tokenizer.get_vocab()
    tokens = sorted(vocab, key=lambda token: vocab[token])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if vocab[token] < 2 else gguf.TokenType.NORMAL for token in tokens])

    writer.add_token_merges([" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]])
    writer.add_eos_token_id(1)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    adders[type(value)](key, value)
