"""config.json of a Hugging Face folder <-> ModelCard, for training: what ``nn`` cannot compute is refused by name, never dropped.

Read: model_type llama, mistral, mixtral, qwen3, qwen3_moe, with RoPE plain or scaled by Llama 3's rule. Written in the
older spelling, which transformers 4 and 5 read. For planning, which needs the shape alone: ``colossus.catalog.hf_config``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from colossus.spec.errors import Problem, SpecError
from colossus.spec.hf_config import KEYS, ROPE_KEYS, TRAINED, Config, card_data, card_of, open_config, read_json, rope_of
from colossus.spec.model import ModelCard

# Keys that may only have the value at which the model is one of ours.
_FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "quantization_config": None,
    "partial_rotary_factor": 1.0,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}


def read_card(folder: Path) -> ModelCard:
    """The shape that ``folder/config.json`` describes; SpecError names every key that we cannot honour."""
    config = open_config(read_json(folder / "config.json"), TRAINED, str(folder / "config.json"))
    data = card_data(config)
    _refuse_fixed(config)
    _refuse_rope(config)
    _refuse_mixed_layers(config, data)
    return card_of(config, data)


def config_data(card: ModelCard, *, dtype: str, bos_token_id: int | None, eos_token_id: int | None) -> dict[str, Any]:
    """The config.json of a card; ``dtype`` is that of the weights, e.g. ``float32``."""
    model_type = family_of(card)
    data: dict[str, Any] = {
        "architectures": [TRAINED[model_type].architecture],
        "model_type": model_type,
        **{key: getattr(card, name) for name, key in KEYS.items()},
        "rope_theta": card.rope_theta,
        "rope_scaling": _rope_scaling_data(card),
        "hidden_act": "silu",
        "attention_bias": False,
        "torch_dtype": dtype,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
    }
    return data | _window_data(model_type, card) | _moe_data(model_type, card)


def family_of(card: ModelCard) -> str:
    """The ``model_type`` whose mathematics is the card's; SpecError when transformers has none."""
    if card.moe is not None:
        if not card.qk_norm and not card.moe.normalize_top_k:
            rule, hint = "has no counterpart in transformers without qk_norm", "mixtral always normalises; only qwen3_moe may not"
            raise SpecError("model card", [Problem(path="moe.normalize_top_k", value="false", rule=rule, hint=hint)])
        return "qwen3_moe" if card.qk_norm else "mixtral"
    if card.qk_norm:
        return "qwen3"
    # LlamaConfig insists on heads that divide the model's width; Mistral without a window is the same network.
    return "llama" if card.sliding_window_tokens is None and card.model_dim % card.num_heads == 0 else "mistral"


def _refuse_fixed(config: Config) -> None:
    for key, fixed in _FIXED.items():
        if config.values.get(key) not in (fixed, None):
            config.refuse(key, f"must be {json.dumps(fixed)} or absent: the decoder has no such part")


def _refuse_rope(config: Config) -> None:
    """A scaling that we do not have, or RoPE on a part of each head."""
    path, rope, kind = rope_of(config)
    if kind not in ("default", "llama3"):
        config.refuse(f"{path}.rope_type", "is not a RoPE scaling that Colossus has", hint="valid: default, llama3", value=kind)
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        config.refuse(f"{path}.partial_rotary_factor", "must be 1.0: RoPE turns whole heads", value=rope["partial_rotary_factor"])


def _refuse_mixed_layers(config: Config, data: dict[str, Any]) -> None:
    """A window in some layers only."""
    kinds = set(config.values.get("layer_types") or [])
    if kinds - {"full_attention", "sliding_attention"} or len(kinds) > 1:
        config.refuse("layer_types", "all layers must be full_attention or all sliding_attention", value=", ".join(sorted(kinds)))
    elif data.get("num_window_layers") is not None:
        config.refuse("max_window_layers", "must be 0 with use_sliding_window: the decoder has one kind of layer")


def _rope_scaling_data(card: ModelCard) -> dict[str, Any] | None:
    if card.rope_scaling is None:
        return None
    return {"rope_type": "llama3", **{key: getattr(card.rope_scaling, name) for name, key in ROPE_KEYS.items()}}


def _window_data(model_type: str, card: ModelCard) -> dict[str, Any]:
    window = card.sliding_window_tokens
    if model_type == "llama":
        return {"mlp_bias": False}
    if model_type in ("mistral", "mixtral"):
        return {"sliding_window": window}
    layers = {"max_window_layers": 0 if window else card.num_layers} if model_type == "qwen3" else {}
    return {"use_sliding_window": window is not None, "sliding_window": window, **layers}


def _moe_data(model_type: str, card: ModelCard) -> dict[str, Any]:
    moe = card.moe
    if moe is None:
        return {}
    common = {
        "num_experts_per_tok": moe.num_experts_per_token,
        "router_aux_loss_coef": moe.load_balance_weight,
        "router_z_loss_coef": moe.z_loss_weight,
    }
    if model_type == "mixtral":
        return common | {"num_local_experts": moe.num_experts, "intermediate_size": moe.expert_dim}
    own = {"num_experts": moe.num_experts, "moe_intermediate_size": moe.expert_dim, "norm_topk_prob": moe.normalize_top_k}
    return common | own | {"decoder_sparse_step": 1, "mlp_only_layers": []}
