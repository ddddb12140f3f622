"""GGUF models in: the card and the parameter tree of a file that llama.cpp runs, for the architectures that are ours.

llama (Mistral and Mixtral carry that name too), qwen3 and qwen3moe. What the decoder does not compute is refused by name. Weights are
dequantised tensor by tensor. In llama files the rows of each query and key head lie pairwise, for RoPE on neighbours; here they go
back into halves, for RoPE on halves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from colossus.nn.gguf_file import GgufFile, GgufTensor, read_gguf
from colossus.nn.hf_weights import Coords, Leaf, leaves, tree
from colossus.spec.errors import DataError, Problem, SpecError
from colossus.spec.model import ModelCard

ARCHITECTURES = ("llama", "qwen3", "qwen3moe")
_READERS = 4  # threads that dequantise and turn layers; more only wait for memory
_SHOWN = 8  # broken tensors named in one message
_CHUNK = 1 << 17  # numbers dequantised at a time
_EMBEDDING, _FREQUENCIES = "token_embd.weight", "rope_freqs.weight"
# Card field -> key below the architecture's name.
_KEYS = {
    "num_layers": "block_count",
    "model_dim": "embedding_length",
    "num_heads": "attention.head_count",
    "ffn_dim": "feed_forward_length",
    "max_sequence_tokens": "context_length",
    "norm_epsilon": "attention.layer_norm_rms_epsilon",
}
_OPTIONAL = {"num_kv_heads": "attention.head_count_kv", "rope_theta": "rope.freq_base", "sliding_window_tokens": "attention.sliding_window"}
_READ = {
    *_KEYS.values(), *_OPTIONAL.values(), "vocab_size", "attention.key_length", "attention.value_length", "rope.dimension_count",
    "expert_count", "expert_used_count", "expert_feed_forward_length",
}  # fmt: skip
# Keys that change the mathematics, by the values at which they do not.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (1.0,),
    "rope.scale_linear": (1.0,),
    "rope.scaling.original_context_length": (),
    "rope.scaling.finetuned": (False,),
    "use_parallel_residual": (False,),
    "logit_scale": (1.0,),
    "expert_shared_count": (0,),
    "expert_weights_scale": (1.0,),
    "expert_weights_norm": (True,),
    "leading_dense_block_count": (0,),
    "tensor_data_layout": ("reference", "Meta AI original pth"),
}
# Path in the tree -> tensor of a layer (or of the model).
_NAMES: dict[tuple[str, ...], str] = {
    ("embed", "tokens"): "token_embd",
    ("final_norm", "scale"): "output_norm",
    ("lm_head", "kernel"): "output",
    ("layers", "attn_norm"): "blk.{layer}.attn_norm",
    ("layers", "wq"): "blk.{layer}.attn_q",
    ("layers", "wk"): "blk.{layer}.attn_k",
    ("layers", "wv"): "blk.{layer}.attn_v",
    ("layers", "wo"): "blk.{layer}.attn_output",
    ("layers", "q_norm"): "blk.{layer}.attn_q_norm",
    ("layers", "k_norm"): "blk.{layer}.attn_k_norm",
    ("layers", "mlp_norm"): "blk.{layer}.ffn_norm",
    ("layers", "router"): "blk.{layer}.ffn_gate_inp",
    ("layers", "w_gate"): "blk.{layer}.ffn_gate",
    ("layers", "w_up"): "blk.{layer}.ffn_up",
    ("layers", "w_down"): "blk.{layer}.ffn_down",
}
# What Llama 3.1 and later write into their rope_freqs; only the factor differs (Meta 2024, model card).
_LLAMA3_ROPE = {"low_frequency_factor": 1.0, "high_frequency_factor": 4.0, "original_max_tokens": 8192}


@dataclass(frozen=True)
class GgufModel:
    """A file and the card that it describes."""

    file: GgufFile
    card: ModelCard
    architecture: str

    def load_params(self) -> dict[str, Any]:
        """The parameter tree, float32; DataError lists tensors that are missing, misshapen or unknown, before any is read."""
        _check(self)
        return tree(self.card, {leaf.path: _leaf(self, leaf) for leaf in leaves(self.card)})


def open_gguf(path: Path) -> GgufModel:
    """The model in a file, no weight read; SpecError names every key that we cannot honour."""
    file = read_gguf(path)
    architecture = str(file.metadata.get("general.architecture", "(absent)"))
    if architecture not in ARCHITECTURES:
        rule = "is not an architecture that Colossus computes"
        raise SpecError(str(path), [Problem(path="general.architecture", value=architecture, rule=rule, hint="valid: " + ", ".join(ARCHITECTURES))])
    problems = _refused(file, architecture)
    data = _card_data(file, architecture, problems)
    if problems:
        raise SpecError(str(path), problems)
    return GgufModel(file, _with_rope_scaling(file, ModelCard.from_data(data, origin=str(path))), architecture)


def _refused(file: GgufFile, architecture: str) -> list[Problem]:
    """Keys of the architecture that we do not read, and would have to; and files that are parts of one."""
    problems = []
    for key, value in file.metadata.items():
        name = key.removeprefix(f"{architecture}.")
        if name == key or name in _READ or _plain(value) in _NEUTRAL.get(name, ()) or _NEUTRAL.get(name) == ():
            continue
        neutral = _NEUTRAL.get(name)
        rule = f"must be {neutral[0]} or absent" if neutral else "says something that the decoder does not compute"
        problems.append(Problem(path=key, value=str(value)[:60], rule=rule))
    if (parts := _plain(file.metadata.get("split.count", 1))) not in (0, 1):
        problems.append(Problem(path="split.count", value=str(parts), rule="must be 1", hint="merge the parts with llama-gguf-split --merge"))
    return problems


def _plain(value: Any) -> Any:
    """A value that can be compared as a whole: an array as a list."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def _card_data(file: GgufFile, architecture: str, problems: list[Problem]) -> dict[str, Any]:
    """Data of the card; what is missing or contradictory goes to ``problems``."""
    own = {key.removeprefix(f"{architecture}."): value for key, value in file.metadata.items() if key.startswith(f"{architecture}.")}
    data = {field: own[key] for field, key in {**_KEYS, **_OPTIONAL}.items() if key in own}
    absent = [key for key in _KEYS.values() if key not in own]
    problems += [Problem(path=f"{architecture}.{key}", value="(absent)", rule="is required") for key in absent]
    uneven = [key for key in own if key in _READ and not isinstance(own[key], int | float)]
    problems += [Problem(path=f"{architecture}.{key}", value="(an array)", rule="must be one number: all layers are alike") for key in uneven]
    for key, most in (("attention.head_count", own.get("embedding_length")), ("block_count", len(file.tensors))):
        if not problems and not 1 <= own[key] <= most:
            problems.append(Problem(path=f"{architecture}.{key}", value=str(own[key]), rule=f"must be from 1 to {most}"))
    if problems:
        return {}
    head_dim = own.get("attention.key_length") or data["model_dim"] // data["num_heads"]
    for key in ("attention.value_length", "rope.dimension_count"):
        if own.get(key, head_dim) != head_dim:
            problems.append(Problem(path=f"{architecture}.{key}", value=str(own[key]), rule=f"must be the width of a head, {head_dim}"))
    embedding = file.tensors.get(_EMBEDDING)
    data |= {"head_dim": head_dim, "vocab_size": embedding.shape[0] if embedding is not None else own.get("vocab_size", 0)}
    data |= {"num_kv_heads": own.get("attention.head_count_kv", data["num_heads"]), "rope_theta": own.get("rope.freq_base", 10000.0)}
    return data | {"tie_embeddings": "output.weight" not in file.tensors, "qk_norm": architecture != "llama"} | _moe_data(own)


def _moe_data(own: Mapping[str, Any]) -> dict[str, Any]:
    if not own.get("expert_count"):
        return {}
    expert_dim = own.get("expert_feed_forward_length", own["feed_forward_length"])
    return {"moe": {"num_experts": own["expert_count"], "num_experts_per_token": own.get("expert_used_count"), "expert_dim": expert_dim}}


def _with_rope_scaling(file: GgufFile, card: ModelCard) -> ModelCard:
    """The card with Llama 3's scaling where the file carries its factors, by which the frequencies are divided."""
    tensor = file.tensors.get(_FREQUENCIES)
    if tensor is None:
        return card
    from colossus.nn.rope import inverse_frequencies  # brings JAX, which a server's door does without

    factors = tensor.floats().reshape(-1)
    scaling = {"factor": float(factors.max()), **_LLAMA3_ROPE}
    scaled = ModelCard.from_data(card.model_dump() | {"rope_scaling": scaling}, origin=str(file.path))
    plain = inverse_frequencies(card)
    if factors.shape != plain.shape or not np.allclose(plain / factors, inverse_frequencies(scaled), rtol=1e-4):
        rule = f"{len(factors)} factors from {factors.min():g} to {factors.max():g} are not those of Llama 3's rule"
        raise SpecError(str(file.path), [Problem(path=_FREQUENCIES, value="(a tensor)", rule=rule)])
    return scaled


def _tensor_name(leaf: Leaf, coords: Coords) -> str:
    """Experts of a layer lie in one tensor."""
    stacked = "_exps" if len(leaf.stack) == 2 else ""
    return _NAMES[leaf.path].format(layer=coords[0] if coords else 0) + stacked + ".weight"


def _stored_shapes(card: ModelCard) -> dict[str, tuple[int, ...]]:
    return {_tensor_name(leaf, coords): (*leaf.stack[1:], *leaf.stored) for leaf in leaves(card) for coords in leaf.coords}


def _check(model: GgufModel) -> None:
    expected, found = _stored_shapes(model.card), model.file.tensors
    lines = [f"{name} {shape}: is missing" for name, shape in expected.items() if name not in found]
    misshapen = [name for name, shape in expected.items() if name in found and found[name].shape != shape]
    lines += [f"{name} = {found[name].shape}: must be {expected[name]}" for name in misshapen]
    lines += [f"{name} {tensor.shape}: is no part of this model" for name, tensor in found.items() if name not in expected and name != _FREQUENCIES]
    if lines:
        more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        message = "\n  ".join([f"{model.file.path}: {len(lines)} tensors do not fit its metadata", *lines[:_SHOWN], *more])
        raise DataError(message, hint="the file is of another model than it says, or of a variant that Colossus does not compute")


def _leaf(model: GgufModel, leaf: Leaf) -> np.ndarray:
    """One array of the tree, each stored tensor dequantised into its place."""
    out = np.empty(leaf.shape, np.float32)
    order = _row_order(model, leaf)

    def fill(coords: Coords) -> None:
        tensor = model.file.tensors[_tensor_name(leaf, coords)]
        _fill(out[coords], tensor, order(tensor.rows[coords[1:]]))

    with ThreadPoolExecutor(_READERS) as pool:
        list(pool.map(fill, leaf.coords))
    return out


def _fill(out: np.ndarray, tensor: GgufTensor, rows: np.ndarray) -> None:
    """Numbers of (rows, columns) as they are, or turned: every matrix but the embedding is (out, in) there and (in, ...) here.

    Some rows at a time, that what is read and written stays in the cache.
    """
    if rows.ndim == 1:
        out[...] = tensor.floats(rows)
        return
    num_rows, width = len(rows), tensor.shape[-1]
    turned = tensor.name != _EMBEDDING
    target = out.reshape(width, num_rows) if turned else out
    step = max(1, _CHUNK // width)
    for at in range(0, num_rows, step):
        part = tensor.floats(rows[at : at + step])
        if turned:
            target[:, at : at + step] = part.T
        else:
            target[at : at + step] = part


def _row_order(model: GgufModel, leaf: Leaf) -> Callable[[np.ndarray], np.ndarray]:
    """Of a query or key matrix in a llama file: from pairs (2 i, 2 i + 1) of a head's rows to (i, i + K/2)."""
    if model.architecture != "llama" or leaf.path[1] not in ("wq", "wk"):
        return lambda rows: rows
    half = model.card.head_dim // 2
    return lambda rows: rows.reshape(-1, half, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)
