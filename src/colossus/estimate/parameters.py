"""The parameters of a decoder, in closed form, by kind: how many there are and which mesh axes cut them.

Counted as RMSNorm and without biases or learned positions: a published model that has them is under 1 % larger from
0.3 B parameters up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from colossus.spec.layout import Layout
from colossus.spec.model import Activation, MlaCard, ModelCard


@dataclass(frozen=True, kw_only=True)
class Part:
    """Parameters of one kind: how many, which axes cut them, and whether Muon would take them."""

    name: str
    num: int
    cut_by_fsdp: bool = True
    cut_by_tp: bool = True
    is_matrix: bool = True

    def on_device(self, layout: Layout) -> float:
        return self.num / (layout.fsdp if self.cut_by_fsdp else 1) / (layout.tp if self.cut_by_tp else 1)


def parameters(card: ModelCard, tp: int = 1) -> list[Part]:
    """Every parameter of the card. fsdp cuts the model dim; tp cuts heads, feed-forward and vocabulary where it divides."""
    return [*_tables(card), *_norms(card), *_attention(card, tp), *_feed_forward(card)]


def num_parameters(card: ModelCard) -> int:
    """How many numbers the card's weights hold."""
    return sum(part.num for part in parameters(card))


def active_parameters(card: ModelCard, *, input_table: bool = True) -> int:
    """Parameters that one token passes: all but the experts it is not sent to; of a dense model, all.

    ``input_table`` False leaves out an embedding of its own, which is looked up and not multiplied with (gpt-oss and
    DeepSeek-V3 publish this count, most others do not). A table tied to the head always counts, as the head.
    """
    idle = 0
    if card.moe is not None:
        experts = next(part.num for part in parameters(card) if part.name == "experts")
        idle = experts - experts * card.moe.num_experts_per_token // card.moe.num_experts
    looked_up = 0 if input_table or card.tie_embeddings else card.vocab_size * card.model_dim
    return num_parameters(card) - idle - looked_up


def num_moe_layers(card: ModelCard) -> int:
    """Layers with a mixture of experts in place of the dense feed-forward."""
    return 0 if card.moe is None else card.num_layers - card.moe.num_dense_layers


def num_feed_forward_matrices(card: ModelCard) -> int:
    """Matrices of one feed-forward: gate, up and down, or up and down."""
    return 3 if card.activation is Activation.SWIGLU else 2


def query_projection(card: ModelCard, mla: MlaCard) -> int:
    """Weights between a layer's input and all its queries: through a latent, or at once."""
    width = card.num_heads * (card.head_dim + mla.rope_head_dim)
    return card.model_dim * width if mla.query_rank is None else mla.query_rank * (card.model_dim + width)


def key_value_projection(card: ModelCard, mla: MlaCard) -> int:
    """Weights from a layer's input to the latent and the shared rotated key, and from the latent to all keys and values."""
    return card.model_dim * (mla.kv_rank + mla.rope_head_dim) + mla.kv_rank * card.num_heads * (card.head_dim + mla.value_head_dim)


def _tables(card: ModelCard) -> Iterator[Part]:
    yield Part(name="embed", num=card.vocab_size * card.model_dim, is_matrix=False)
    if not card.tie_embeddings:
        yield Part(name="lm_head", num=card.vocab_size * card.model_dim, is_matrix=False)


def _norms(card: ModelCard) -> Iterator[Part]:
    layers, mla = card.num_layers, card.mla
    yield Part(name="norms", num=(2 * layers + 1) * card.model_dim, cut_by_tp=False, is_matrix=False)
    if card.qk_norm:
        yield Part(name="qk_norms", num=2 * layers * card.head_dim, cut_by_fsdp=False, cut_by_tp=False, is_matrix=False)
    if mla is not None:
        yield Part(name="latent norms", num=layers * (mla.kv_rank + (mla.query_rank or 0)), cut_by_fsdp=False, cut_by_tp=False, is_matrix=False)


def _attention(card: ModelCard, tp: int) -> list[Part]:
    """Latent attention (MLA): tp cuts the heads, so that every rank holds the ways down to the latents whole."""
    layers, d, mla = card.num_layers, card.model_dim, card.mla
    if mla is None:
        heads = d * card.head_dim * layers
        return [
            Part(name="queries and output", num=2 * heads * card.num_heads),
            Part(name="keys and values", num=2 * heads * card.num_kv_heads, cut_by_tp=card.num_kv_heads % tp == 0),
        ]
    down = d * (mla.kv_rank + mla.rope_head_dim + (mla.query_rank or 0))
    both = query_projection(card, mla) + key_value_projection(card, mla)
    return [
        Part(name="latents", num=layers * down, cut_by_tp=False),
        Part(name="queries, keys and values", num=layers * (both - down)),
        Part(name="output", num=layers * card.num_heads * mla.value_head_dim * d),
    ]


def _feed_forward(card: ModelCard) -> Iterator[Part]:
    sparse, moe = num_moe_layers(card), card.moe
    matrix = num_feed_forward_matrices(card) * card.model_dim
    if sparse < card.num_layers:
        yield Part(name="feed-forward", num=(card.num_layers - sparse) * matrix * card.ffn_dim)
    if moe is None:
        return
    yield Part(name="router", num=sparse * card.model_dim * moe.num_experts, cut_by_tp=False, is_matrix=False)
    yield Part(name="experts", num=sparse * matrix * moe.num_experts * moe.expert_dim)
    if moe.shared_dim:
        yield Part(name="shared experts", num=sparse * matrix * moe.shared_dim)
