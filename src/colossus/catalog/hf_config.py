"""Any Hugging Face config.json as a ModelCard to plan with: the shape alone, without JAX and without weights.

Dropped, since it moves neither FLOP nor bytes by one per cent: biases, learned positions, RoPE scalings other than Llama 3's,
quantised weights, multi-token prediction, the images' half of Llama 4. To train, ``nn.hf_config`` is the strict door.
"""

from __future__ import annotations

from pathlib import Path

from colossus.spec.hf_config import TRAINED, Config, Family, Values, card_data, card_of, moe_data, open_config, read_json, window_above, window_data
from colossus.spec.model import Activation, ModelCard


def card_from_config(config: Path | str | Values) -> ModelCard:
    """The card of a config.json, of the folder that holds one, or of its data; SpecError names what cannot be read.

    >>> card_from_config({"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257}).ffn_dim
    3072
    """
    given = config if isinstance(config, dict) else read_json(Path(config))
    opened = open_config(_text_part(given), FAMILIES, "config.json" if isinstance(config, dict) else str(config))
    return card_of(opened, card_data(opened))


def _text_part(data: Values) -> Values:
    """The language model's own config: Llama 4 keeps it beside that of the images."""
    text = data.get("text_config")
    if data.get("model_type") != "llama4" or not isinstance(text, dict):
        return data
    return {"tie_word_embeddings": data.get("tie_word_embeddings")} | text | {"model_type": "llama4"}


def _two_matrices(config: Config) -> Values:
    """A feed-forward without a gate; four times as wide as the model where nothing else is said."""
    activation = str(config.values.get("hidden_act"))
    if activation != "relu2" and "gelu" not in activation:
        config.refuse("hidden_act", "is not an activation that Colossus plans", hint="valid: gelu and its approximations, relu2")
    width = {} if config.values.get("intermediate_size") else {"ffn_dim": 4 * (config.values.get("hidden_size") or 1)}
    return {"activation": Activation.SQUARED_RELU if activation == "relu2" else Activation.GELU} | width


def _latent_attention(config: Config) -> Values:
    """DeepSeek's: heads share no keys, ``head_dim`` is a head's width without position."""
    values = config.values
    mla = {"kv_rank": "kv_lora_rank", "query_rank": "q_lora_rank", "rope_head_dim": "qk_rope_head_dim", "value_head_dim": "v_head_dim"}
    heads = {"num_kv_heads": values.get("num_attention_heads"), "head_dim": values.get("qk_nope_head_dim")}
    return heads | {"mla": {name: values.get(key) for name, key in mla.items()}}


def _deepseek_moe(config: Config) -> Values:
    """Experts from layer ``first_k_dense_replace`` on, ``n_shared_experts`` of them for every token; of ``n_group`` groups a token chooses ``topk_group``."""
    values = config.values
    first, step = values.get("first_k_dense_replace") or 0, values.get("moe_layer_freq") or 1
    found = moe_data(
        config,
        expert_dim="moe_intermediate_size",
        in_layers=[layer >= first and layer % step == 0 for layer in range(config.num_layers)],
        shared_dim=(values.get("n_shared_experts") or 0) * (values.get("moe_intermediate_size") or 0),
        normalize_top_k=values.get("norm_topk_prob"),
    )
    if (values.get("n_group") or 1) == 1 or not found.get("moe"):
        return found
    return found | {"moe": found["moe"] | {"num_groups": values.get("n_group"), "num_groups_per_token": values.get("topk_group")}}


def _gpt_oss(config: Config) -> Values:
    """Experts everywhere, a window in every other layer, the first among them."""
    layers = range(config.num_layers)
    windows = window_data(config, config.values.get("sliding_window"), [layer % 2 == 0 for layer in layers])
    return windows | moe_data(config, expert_dim="intermediate_size", in_layers=[True for _ in layers])


def _llama4(config: Config) -> Values:
    """Experts beside a shared one in every ``interleave_moe_layer_step``-th layer; dense layers have a width of their own.

    Attention within chunks is planned as a window of a chunk: the same
    up to one chunk, at most twice the keys beyond. The norm of queries and keys has no weights.
    """
    values, layers = config.values, range(config.num_layers)
    step, interval = values.get("interleave_moe_layer_step") or 1, values.get("no_rope_layer_interval") or 4
    rotated = values.get("no_rope_layers") or [(layer + 1) % interval for layer in layers]
    chosen = values.get("moe_layers")
    in_layers = [(layer + 1) % step == 0 if chosen is None else layer in chosen for layer in layers]
    windows = window_data(config, values.get("attention_chunk_size"), [turns != 0 for turns in rotated], "chunked_attention")
    spread = {} if all(in_layers) else {"dense_layers": "spread"}
    moe = moe_data(config, expert_dim="intermediate_size", in_layers=in_layers, shared_dim=values.get("intermediate_size"), normalize_top_k=False, **spread)
    return {"ffn_dim": values.get("intermediate_size_mlp")} | windows | moe


def _grok(config: Config) -> Values:
    """Experts everywhere; their gate is a GELU's, three matrices like SwiGLU's."""
    return moe_data(config, expert_dim="intermediate_size", in_layers=[True] * config.num_layers, normalize_top_k=False)


_EXPERTS = {"n_routed_experts": "num_local_experts", "num_experts": "num_local_experts", "aux_loss_alpha": "router_aux_loss_coef"}
_LATENT = {"kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
_V3 = {"n_shared_experts": 1, "num_local_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "first_k_dense_replace": 3}
_DEEPSEEK_V3 = Family(
    architecture="DeepseekV3ForCausalLM",
    defaults={**_LATENT, **_V3, "norm_topk_prob": True, "max_position_embeddings": 4096},
    aliases=_EXPERTS,
    parts=(_latent_attention, _deepseek_moe),
)
_LLAMA4 = Family(
    architecture="Llama4ForConditionalGeneration",
    defaults={"num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0}
    | {"intermediate_size": 8192, "intermediate_size_mlp": 16384, "num_local_experts": 16, "num_experts_per_tok": 1}
    | {"attention_chunk_size": 8192, "router_aux_loss_coef": 0.001},
    parts=(_llama4,),
)

# The defaults are those of transformers 5.23's configuration classes; of Kimi K2 and Grok-1, of the code beside their weights.
FAMILIES: dict[str, Family] = TRAINED | {
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        defaults={"num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28},
        parts=(window_above,),
    ),
    "deepseek_v2": Family(
        architecture="DeepseekV2ForCausalLM",
        defaults={**_LATENT, "n_shared_experts": 2, "num_local_experts": 64, "moe_intermediate_size": 1407, "norm_topk_prob": False}
        | {"max_position_embeddings": 2048},
        aliases=_EXPERTS,
        parts=(_latent_attention, _deepseek_moe),
    ),
    "deepseek_v3": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    "gpt_oss": Family(
        architecture="GptOssForCausalLM",
        defaults={"num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 150000.0}
        | {"num_local_experts": 128, "num_experts_per_tok": 4, "sliding_window": 128, "router_aux_loss_coef": 0.001},
        aliases={"num_experts": "num_local_experts"},
        parts=(_gpt_oss,),
    ),
    "gpt2": Family(
        architecture="GPT2LMHeadModel",
        defaults={"max_position_embeddings": 1024, "hidden_act": "gelu_new", "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
        aliases={
            "n_embd": "hidden_size",
            "n_layer": "num_hidden_layers",
            "n_head": "num_attention_heads",
            "n_inner": "intermediate_size",
            "n_positions": "max_position_embeddings",
            "activation_function": "hidden_act",
            "layer_norm_epsilon": "rms_norm_eps",
        },
        parts=(_two_matrices,),
    ),
    "gpt_neox": Family(
        architecture="GPTNeoXForCausalLM",
        defaults={"max_position_embeddings": 2048, "hidden_act": "gelu", "rms_norm_eps": 1e-5},
        aliases={"layer_norm_eps": "rms_norm_eps", "rotary_emb_base": "rope_theta"},
        parts=(_two_matrices,),
    ),
    "nemotron": Family(
        architecture="NemotronForCausalLM",
        defaults={"max_position_embeddings": 4096, "hidden_act": "relu2", "rms_norm_eps": 1e-5},
        aliases={"norm_eps": "rms_norm_eps"},
        parts=(_two_matrices,),
    ),
    "llama4": _LLAMA4,
    "llama4_text": _LLAMA4,
    "grok-1": Family(
        architecture="Grok1ModelForCausalLM",
        defaults={"num_key_value_heads": 8, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
        | {"num_local_experts": 8, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.001},
        aliases={"num_experts": "num_local_experts"},
        parts=(_grok,),
    ),
}
