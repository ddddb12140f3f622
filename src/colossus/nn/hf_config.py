"""config.json of a Hugging Face folder <-> ModelCard.

Read: model_type llama, mistral, mixtral, qwen3, qwen3_moe, with RoPE plain or scaled by Llama 3's rule, spelled as
``rope_theta`` + ``rope_scaling`` (transformers 4, all published folders) or ``rope_parameters`` (transformers 5).
Written in the older spelling, which both versions read. What a card cannot say (biases, quantised weights, other
scalings, mixed layers) is refused by name, never dropped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from colossus.spec.errors import Problem, SpecError, nearest
from colossus.spec.model import ModelCard


@dataclass(frozen=True)
class Family:
    """One ``model_type``: the class that transformers loads, and what it takes an absent key to mean."""

    architecture: str
    defaults: dict[str, Any] = field(default_factory=dict)


# The defaults are those of the configuration classes of transformers 5.23.
FAMILIES = {
    "llama": Family("LlamaForCausalLM", {"max_position_embeddings": 2048}),
    "mistral": Family("MistralForCausalLM", {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072}),
    "mixtral": Family(
        "MixtralForCausalLM",
        {
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "router_aux_loss_coef": 0.001,
        },
    ),
    "qwen3": Family("Qwen3ForCausalLM", {"num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768}),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        {
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "norm_topk_prob": False,
            "router_aux_loss_coef": 0.001,
        },
    ),
}
_DEFAULTS = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False}

# Card field -> key of config.json, for fields that are copied as they are.
_KEYS = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "model_dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "ffn_dim": "intermediate_size",
    "max_sequence_tokens": "max_position_embeddings",
    "norm_epsilon": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}
_ROPE_KEYS = {
    "factor": "factor",
    "low_frequency_factor": "low_freq_factor",
    "high_frequency_factor": "high_freq_factor",
    "original_max_tokens": "original_max_position_embeddings",
}
# Keys that may only have the value at which the model is one of ours.
_FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "quantization_config": None,
    "partial_rotary_factor": 1.0,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "is_encoder_decoder": False,
    "add_cross_attention": False,
}


def read_card(folder: Path) -> ModelCard:
    """The shape that ``folder/config.json`` describes; SpecError names every key that we cannot honour."""
    file = folder / "config.json"
    given = _read_json(file)
    model_type = given.get("model_type")
    if model_type not in FAMILIES:
        hint = nearest(str(model_type), FAMILIES)
        raise _refuse(file, Problem(path="model_type", value=repr(model_type), rule="is not a decoder that Colossus reads", hint=hint))
    config = _DEFAULTS | FAMILIES[model_type].defaults | given
    rope, problems = _rope(config)
    problems += _fixed_problems(config)
    data = _card_data(model_type, config, problems) | rope
    if problems:
        raise SpecError(str(file), problems)
    return _card(data, file)


def config_data(card: ModelCard, *, dtype: str, bos_token_id: int | None, eos_token_id: int | None) -> dict[str, Any]:
    """The config.json of a card; ``dtype`` is that of the weights, e.g. ``float32``."""
    model_type = family_of(card)
    data: dict[str, Any] = {
        "architectures": [FAMILIES[model_type].architecture],
        "model_type": model_type,
        **{key: getattr(card, name) for name, key in _KEYS.items()},
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


def _card_data(model_type: str, config: dict[str, Any], problems: list[Problem]) -> dict[str, Any]:
    data = {name: config[key] for name, key in _KEYS.items() if config.get(key) is not None}
    heads, width = data.get("num_heads"), data.get("model_dim")
    data.setdefault("num_kv_heads", heads)
    if isinstance(heads, int) and isinstance(width, int) and heads > 0:
        data.setdefault("head_dim", width // heads)
    data["qk_norm"] = model_type in ("qwen3", "qwen3_moe")
    data["sliding_window_tokens"] = _window(model_type, config, problems)
    if model_type in ("mixtral", "qwen3_moe"):
        data["moe"] = _moe(model_type, config)
    return data


def _window(model_type: str, config: dict[str, Any], problems: list[Problem]) -> int | None:
    """The window that every layer has, or None; layers of two kinds are a problem."""
    kinds = set(config.get("layer_types") or [])
    if kinds - {"full_attention", "sliding_attention"} or len(kinds) > 1:
        rule = "all layers must be full_attention or all sliding_attention"
        problems.append(Problem(path="layer_types", value=", ".join(sorted(kinds)), rule=rule))
    if model_type == "llama" or kinds == {"full_attention"}:
        return None
    if model_type.startswith("qwen3") and not config.get("use_sliding_window"):
        return None
    if model_type == "qwen3" and not kinds and config.get("max_window_layers", 28) != 0:
        rule = "must be 0 with use_sliding_window: a card has one kind of layer"
        problems.append(Problem(path="max_window_layers", value=str(config.get("max_window_layers", 28)), rule=rule))
    return config.get("sliding_window")


def _moe(model_type: str, config: dict[str, Any]) -> dict[str, Any]:
    mixtral = model_type == "mixtral"
    return {
        "num_experts": config.get("num_local_experts", config.get("num_experts", 128)),
        "num_experts_per_token": config["num_experts_per_tok"],
        "expert_dim": config.get("intermediate_size" if mixtral else "moe_intermediate_size"),
        "normalize_top_k": True if mixtral else config["norm_topk_prob"],
        "load_balance_weight": config["router_aux_loss_coef"],
        "z_loss_weight": config.get("router_z_loss_coef", 0.0),
    }


def _rope(config: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    path = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    rope = config.get(path) or {}
    theta = rope.get("rope_theta", config["rope_theta"])
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        problem = Problem(path=f"{path}.partial_rotary_factor", value=str(rope["partial_rotary_factor"]), rule="must be 1.0: RoPE turns whole heads")
        return {}, [problem]
    if kind == "default":
        return {"rope_theta": theta}, []
    if kind != "llama3":
        problem = Problem(path=f"{path}.rope_type", value=repr(kind), rule="is not a RoPE scaling that Colossus has", hint="valid: default, llama3")
        return {}, [problem]
    absent = [key for key in _ROPE_KEYS.values() if key not in rope]
    problems = [Problem(path=f"{path}.{key}", value="(absent)", rule="is required with rope_type llama3") for key in absent]
    return {"rope_theta": theta, "rope_scaling": {name: rope.get(key) for name, key in _ROPE_KEYS.items()}}, problems


def _fixed_problems(config: dict[str, Any]) -> list[Problem]:
    return [
        Problem(path=key, value=json.dumps(config[key])[:60], rule=f"must be {json.dumps(fixed)} or absent: the decoder has no such part")
        for key, fixed in _FIXED.items()
        if config.get(key) not in (fixed, None)
    ]


def _card(data: dict[str, Any], file: Path) -> ModelCard:
    try:
        return ModelCard.from_data(data, origin=str(file))
    except SpecError as error:
        problems = [replace(problem, path=_KEYS.get(problem.path, problem.path)) for problem in error.problems]
        raise SpecError(str(file), problems) from None


def _rope_scaling_data(card: ModelCard) -> dict[str, Any] | None:
    if card.rope_scaling is None:
        return None
    return {"rope_type": "llama3", **{key: getattr(card.rope_scaling, name) for name, key in _ROPE_KEYS.items()}}


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


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = "a Hugging Face folder holds config.json, *.safetensors and tokenizer.json"
        raise _refuse(file, Problem(path="file", value=str(file), rule="does not exist", hint=hint)) from None
    except (OSError, ValueError) as error:
        raise _refuse(file, Problem(path="file", value=str(file), rule=f"cannot be read as JSON: {error}")) from None
    if not isinstance(data, dict):
        raise _refuse(file, Problem(path="file", value=type(data).__name__, rule="must be a JSON object"))
    return data


def _refuse(file: Path, problem: Problem) -> SpecError:
    return SpecError(str(file), [problem])
