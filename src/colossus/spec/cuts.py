"""Whether a layout can cut a model and a batch, said before anything starts."""

from __future__ import annotations

from colossus.spec.errors import Problem
from colossus.spec.layout import Layout
from colossus.spec.model import ModelCard


def check_layout(card: ModelCard, layout: Layout, num_sequences: int, sequence_tokens: int) -> list[Problem]:
    """Every dim that the layout cannot cut evenly, each with the values nearest to the given one that would do."""
    return [*check_batch(layout, num_sequences), *_check_fsdp(card, layout), *_check_tp(card, layout, sequence_tokens)]


def check_batch(layout: Layout, num_sequences: int) -> list[Problem]:
    """The batch alone, which is all that is known of a program that is no decoder of ours."""
    parts = layout.num_data_shards * layout.num_microbatches
    if num_sequences % parts == 0:
        return []
    rule = f"cannot be cut into dp {layout.dp} x fsdp {layout.fsdp} x {layout.num_microbatches} microbatches = {parts} equal parts"
    return [Problem(path="batch.num_sequences", value=str(num_sequences), rule=rule, hint=_multiples(num_sequences, parts))]


def _check_fsdp(card: ModelCard, layout: Layout) -> list[Problem]:
    return _divides("layout.fsdp", layout.fsdp, "model.model_dim", card.model_dim)


def _check_tp(card: ModelCard, layout: Layout, sequence_tokens: int) -> list[Problem]:
    width = ("model.moe.expert_dim", card.moe.expert_dim) if card.moe else ("model.ffn_dim", card.ffn_dim)
    cut = [("model.num_heads", card.num_heads), width, ("model.vocab_size", card.vocab_size), ("batch.sequence_tokens", sequence_tokens)]
    problems = [problem for name, size in cut for problem in _divides("layout.tp", layout.tp, name, size)]
    if layout.tp % card.num_kv_heads and card.num_kv_heads % layout.tp:
        fits = [t for t in range(1, card.num_heads + 1) if card.num_heads % t == 0 and (t % card.num_kv_heads == 0 or card.num_kv_heads % t == 0)]
        rule = f"must divide model.num_kv_heads {card.num_kv_heads} or be a multiple of it (a head is then copied)"
        problems.append(Problem(path="layout.tp", value=str(layout.tp), rule=rule, hint=_nearest(layout.tp, fits)))
    return problems


def _divides(path: str, parts: int, name: str, size: int) -> list[Problem]:
    if size % parts == 0:
        return []
    hint = _nearest(parts, [d for d in range(1, min(size, 4 * parts) + 1) if size % d == 0])
    return [Problem(path=path, value=str(parts), rule=f"must divide {name} {size}", hint=hint)]


def _nearest(given: int, valid: list[int]) -> str:
    below, above = [v for v in valid if v < given][-1:], [v for v in valid if v > given][:1]
    return "nearest: " + " or ".join(str(v) for v in below + above)


def _multiples(given: int, parts: int) -> str:
    below = given // parts * parts
    return "nearest: " + " or ".join(str(v) for v in (below, below + parts) if v > 0)
