"""A Hugging Face config.json as a ModelCard's data: what planning (``catalog.hf_config``) and training (``nn.hf_config``) share.

Spelled as transformers 4 does (``rope_theta`` + ``rope_scaling``: all published folders) or as 5 does (``rope_parameters``).
Here a config is read for its shape alone. What a card cannot say (biases, quantised weights, other RoPE scalings) is
dropped, since it moves neither FLOP nor bytes; ``nn``, which must compute it, refuses it by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from colossus.spec.errors import Problem, SpecError, nearest
from colossus.spec.model import ModelCard

# Card field -> key of config.json, for fields that are copied as they are.
KEYS = {
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
ROPE_KEYS = {
    "factor": "factor",
    "low_frequency_factor": "low_freq_factor",
    "high_frequency_factor": "high_freq_factor",
    "original_max_tokens": "original_max_position_embeddings",
}
_DEFAULTS = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False}
# No architecture that we read has these.
_FIXED = {"is_encoder_decoder": False, "add_cross_attention": False}
# Keys that are computed with, by the least value they may have; the rest ModelCard checks.
_COUNTS = {
    **dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads"), 1),
    **dict.fromkeys(("decoder_sparse_step", "moe_layer_freq", "interleave_moe_layer_step", "no_rope_layer_interval"), 1),
    **dict.fromkeys(("moe_intermediate_size", "n_shared_experts", "first_k_dense_replace", "max_window_layers"), 0),
}
_MOST_LAYERS = 10_000
_LISTS: dict[str, type] = {"layer_types": str, "mlp_only_layers": int, "moe_layers": int, "no_rope_layers": int}
_TABLES = ("rope_scaling", "rope_parameters", "text_config")

Values = dict[str, Any]


@dataclass(frozen=True)
class Config:
    """One config.json, its family's own spellings and absent keys resolved; ``problems`` grows while it is read."""

    origin: str
    model_type: str
    family: Family
    values: Values
    problems: list[Problem] = field(default_factory=list)

    @property
    def num_layers(self) -> int:
        return int(self.values.get("num_hidden_layers") or 0)

    def refuse(self, path: str, rule: str, *, hint: str | None = None, value: Any = None) -> None:
        """Notes that ``path``, as given, breaks a rule."""
        given = self.values.get(path) if value is None else value
        text = repr(given) if isinstance(given, str) else json.dumps(given)
        self.problems.append(Problem(path=self.spelled(path), value=text[:60], rule=rule, hint=hint))

    def spelled(self, key: str) -> str:
        """A key of transformers at large, as this family spells it."""
        return next((own for own, common in self.family.aliases.items() if common == key), key)


Part = Callable[[Config], Values]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One ``model_type``: the class that transformers loads, what an absent key means to it, and how it is read.

    ``aliases``: its own spelling of a key -> the one used here. ``parts``: what its card has beside ``KEYS``.
    """

    architecture: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()


def read_json(path: Path) -> Values:
    """The config.json at ``path``, or in the folder ``path``."""
    file = path / "config.json" if path.is_dir() or path.suffix != ".json" else path
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = "a Hugging Face folder holds config.json, *.safetensors and tokenizer.json"
        raise _refusal(file, str(file), "does not exist", hint) from None
    except (OSError, ValueError, RecursionError) as error:
        raise _refusal(file, str(file), f"cannot be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise _refusal(file, type(data).__name__, "must be a JSON object")
    return data


def open_config(data: Values, families: Mapping[str, Family], origin: str) -> Config:
    """``data`` as one of ``families``; SpecError when it is none of them, or when a key has no meaning at all."""
    model_type = data.get("model_type")
    if not isinstance(model_type, str) or model_type not in families:
        value = "(absent)" if model_type is None else repr(model_type)[:60]
        near = nearest(str(model_type), families) or ""
        hint = (f"{near} " if near.startswith("did") else "") + "supported: " + ", ".join(sorted(families))
        raise SpecError(origin, [Problem(path="model_type", value=value, rule="is not a decoder that Colossus reads", hint=hint)])
    family = families[model_type]
    renamed = {family.aliases.get(key, key): value for key, value in data.items() if family.aliases.get(key) not in data}
    config = Config(origin, model_type, family, {**_DEFAULTS, **family.defaults, **renamed})
    _check_types(config)
    if config.problems:
        raise SpecError(origin, config.problems)
    return config


def card_data(config: Config) -> Values:
    """The data of the config's ModelCard; what cannot be read goes to ``config.problems``."""
    values = config.values
    data = {name: values[key] for name, key in KEYS.items() if values.get(key) is not None}
    heads, width = data.get("num_heads"), data.get("model_dim")
    data.setdefault("num_kv_heads", heads)
    if heads and width:
        data.setdefault("head_dim", width // heads)
    for key, fixed in _FIXED.items():
        if values.get(key) not in (fixed, None):
            config.refuse(key, f"must be {json.dumps(fixed)} or absent: a decoder has no such part")
    data |= _rope_data(config)
    for part in config.family.parts:
        data |= part(config)
    return data


def card_of(config: Config, data: Values) -> ModelCard:
    """The checked card; SpecError with every problem, each at the key of config.json that it is about."""
    if config.problems:
        raise SpecError(config.origin, config.problems)
    try:
        return ModelCard.from_data(data, origin=config.origin)
    except SpecError as error:
        problems = [replace(problem, path=config.spelled(KEYS.get(problem.path, problem.path))) for problem in error.problems]
        raise SpecError(config.origin, problems) from None


def rope_of(config: Config) -> tuple[str, Values, str]:
    """Where the config says how RoPE turns (``rope_scaling`` or ``rope_parameters``), what it says, and the rule's name."""
    path = "rope_parameters" if config.values.get("rope_parameters") else "rope_scaling"
    rope = config.values.get(path) or {}
    return path, rope, rope.get("rope_type", rope.get("type", "default"))


def _rope_data(config: Config) -> Values:
    path, rope, kind = rope_of(config)
    data = {"rope_theta": rope.get("rope_theta", config.values["rope_theta"])}
    if kind != "llama3":
        return data
    for key in ROPE_KEYS.values():
        if key not in rope:
            config.problems.append(Problem(path=f"{path}.{key}", value="(absent)", rule="is required with rope_type llama3"))
    return data | {"rope_scaling": {name: rope.get(key) for name, key in ROPE_KEYS.items()}}


def qk_norm(config: Config) -> Values:
    """Qwen3's norms of queries and keys."""
    return {"qk_norm": True}


def window_everywhere(config: Config) -> Values:
    """One sliding window in all layers, or none (Mistral, Mixtral)."""
    return window_data(config, config.values.get("sliding_window"), [True] * config.num_layers)


def window_if_used(config: Config) -> Values:
    """One sliding window in all layers where ``use_sliding_window`` says so (Qwen3's mixtures)."""
    return window_everywhere(config) if config.values.get("use_sliding_window") else {}


def window_above(config: Config) -> Values:
    """Qwen's window: off unless ``use_sliding_window``, then in the layers from ``max_window_layers`` up."""
    first = config.values.get("max_window_layers") or 0
    window = config.values.get("sliding_window") if config.values.get("use_sliding_window") else None
    return window_data(config, window, [layer >= first for layer in range(config.num_layers)])


def window_data(config: Config, window: int | None, in_layers: list[bool], kind: str = "sliding_attention") -> Values:
    """The card's window: ``layer_types`` says which layers have it, else ``in_layers``."""
    if kinds := config.values.get("layer_types"):
        if unknown := set(kinds) - {"full_attention", kind}:
            config.refuse("layer_types", f"each must be full_attention or {kind}", value=", ".join(sorted(unknown)))
        if len(kinds) != config.num_layers:
            config.refuse("layer_types", f"must name each of num_hidden_layers {config.num_layers} layers", value=f"{len(kinds)} names")
        in_layers = [name == kind for name in kinds]
    count = sum(in_layers)
    if window is None or count == 0:
        return {}
    return {"sliding_window_tokens": window, "num_window_layers": None if count == len(in_layers) else count}


def moe_data(config: Config, *, expert_dim: str, in_layers: list[bool], **more: Any) -> Values:
    """The card's mixture: experts as wide as the key ``expert_dim`` says, in the layers where ``in_layers`` holds."""
    values = config.values
    if in_layers and not any(in_layers):
        return {}
    moe = {
        "num_experts": values.get("num_local_experts"),
        "num_experts_per_token": values.get("num_experts_per_tok"),
        "expert_dim": values.get(expert_dim),
        "num_dense_layers": len(in_layers) - sum(in_layers),
        "load_balance_weight": values.get("router_aux_loss_coef", 0.0),
        "z_loss_weight": values.get("router_z_loss_coef", 0.0),
    }
    return {"moe": {name: value for name, value in (moe | more).items() if value is not None}}


def mixtral_moe(config: Config) -> Values:
    return moe_data(config, expert_dim="intermediate_size", in_layers=[True] * config.num_layers, normalize_top_k=True)


def qwen3_moe(config: Config) -> Values:
    """Experts in every ``decoder_sparse_step``-th layer but those of ``mlp_only_layers``."""
    step, dense = config.values.get("decoder_sparse_step") or 1, config.values.get("mlp_only_layers") or []
    in_layers = [(layer + 1) % step == 0 and layer not in dense for layer in range(config.num_layers)]
    return moe_data(config, expert_dim="moe_intermediate_size", in_layers=in_layers, normalize_top_k=config.values.get("norm_topk_prob"))


# The defaults are those of the configuration classes of transformers 5.23. These five nn can train.
TRAINED: dict[str, Family] = {
    "llama": Family(architecture="LlamaForCausalLM", defaults={"max_position_embeddings": 2048}),
    "mistral": Family(
        architecture="MistralForCausalLM",
        defaults={"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072},
        parts=(window_everywhere,),
    ),
    "mixtral": Family(
        architecture="MixtralForCausalLM",
        defaults={
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "router_aux_loss_coef": 0.001,
        },
        aliases={"num_experts": "num_local_experts"},
        parts=(window_everywhere, mixtral_moe),
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        defaults={"num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28},
        parts=(qk_norm, window_above),
    ),
    "qwen3_moe": Family(
        architecture="Qwen3MoeForCausalLM",
        defaults={
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
            "num_local_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "norm_topk_prob": False,
            "router_aux_loss_coef": 0.001,
            "sliding_window": 4096,
        },
        aliases={"num_experts": "num_local_experts"},
        parts=(qk_norm, window_if_used, qwen3_moe),
    ),
}


def _check_types(config: Config) -> None:
    """Every key that the readers compute with is of its type."""
    for key, least in _COUNTS.items():
        value = config.values.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            config.refuse(key, f"must be a whole number of at least {least}")
        elif key == "num_hidden_layers" and value is not None and value > _MOST_LAYERS:
            config.refuse(key, f"must be at most {_MOST_LAYERS}")
    for key, kind in _LISTS.items():
        value = config.values.get(key)
        if value is not None and (not isinstance(value, list) or not all(isinstance(item, kind) for item in value)):
            config.refuse(key, f"must be a list of {'names' if kind is str else 'whole numbers'}")
    for key in _TABLES:
        if not isinstance(config.values.get(key), dict | None):
            config.refuse(key, "must be a JSON object")


def _refusal(file: Path, value: str, rule: str, hint: str | None = None) -> SpecError:
    return SpecError(str(file), [Problem(path="file", value=value, rule=rule, hint=hint)])
