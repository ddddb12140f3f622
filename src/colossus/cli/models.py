"""``colossus models``: the model cards of the catalog."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from colossus.cli.common import json_option, print_json

if TYPE_CHECKING:
    from colossus.catalog.models import ModelEntry
    from colossus.cli.catalog import Fact

# Sequence for which training FLOP are told, where the model is made for so many.
_LENGTH_TOKENS = 8192


@click.command("models")
@click.argument("name", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the models of the catalog, or show all that is known of the model NAME, with its source.

    Active parameters are those that one token passes; context is the longest sequence that the card is made for.
    """
    from colossus.catalog.models import load_model_entry, model_names

    if name is None:
        _list({known: load_model_entry(known) for known in model_names()}, as_json=as_json)
        return
    _show(name, load_model_entry(name), as_json=as_json)


def _list(entries: dict[str, ModelEntry], *, as_json: bool) -> None:
    from colossus.cli.catalog import in_billions, show_all

    rows = [_row(name, entry) for name, entry in entries.items()]
    if as_json:
        print_json(rows)
        return
    header = ("model", "parameters", "active", "layers", "width", "context\ntokens", "experts\nof all", "published")
    show_all(
        header,
        [
            [
                row["id"],
                in_billions(row["num_parameters"]),
                in_billions(row["num_active_parameters"]),
                str(row["num_layers"]),
                f"{row['model_dim']:,}",
                f"{row['max_sequence_tokens']:,}",
                f"{row['num_experts_per_token']} of {row['num_experts']}" if row["num_experts"] else "",
                row["date"],
            ]
            for row in rows
        ],
    )


def _row(name: str, entry: ModelEntry) -> dict[str, Any]:
    """Plain numbers of one model."""
    card = entry.model
    return {
        "id": name,
        **_counts(entry),
        "num_layers": card.num_layers,
        "model_dim": card.model_dim,
        "max_sequence_tokens": card.max_sequence_tokens,
        "vocab_size": card.vocab_size,
        "num_experts": card.moe.num_experts if card.moe else None,
        "num_experts_per_token": card.moe.num_experts_per_token if card.moe else None,
        "date": entry.date,
    }


def _counts(entry: ModelEntry) -> dict[str, int]:
    from colossus.estimate.parameters import active_parameters, num_parameters

    return {"num_parameters": num_parameters(entry.model), "num_active_parameters": active_parameters(entry.model)}


def _show(name: str, entry: ModelEntry, *, as_json: bool) -> None:
    from colossus.cli.catalog import show_one

    if as_json:
        print_json({"id": name, **_counts(entry), "parameters": _by_kind(entry), **entry.to_data()})
        return
    show_one(name, None, list(_facts(entry)))


def _by_kind(entry: ModelEntry) -> dict[str, int]:
    from colossus.estimate.parameters import parameters

    return {part.name: part.num for part in parameters(entry.model)}


def _facts(entry: ModelEntry) -> Iterator[Fact]:
    from colossus.cli.catalog import Fact, Origin, facts_of, in_billions
    from colossus.estimate.flop import train_flop
    from colossus.spec.units import format_quantity

    counted = Origin(how="estimated", source="counted from the shape, norms included, biases and learned positions left out", date="")
    for name, number in _counts(entry).items():
        yield Fact(name=name.removeprefix("num_").replace("_", " "), value=f"{in_billions(number)}  ({number:,})", origin=counted)
    for name, number in _by_kind(entry).items():
        yield Fact(name=f"  {name}", value=in_billions(number), origin=counted)
    length = min(_LENGTH_TOKENS, entry.model.max_sequence_tokens)
    flop = train_flop(entry.model, 1, length).model_flop / length
    yield Fact(name=f"training FLOP per token of {length:,}", value=format_quantity(flop, "FLOP"), origin=counted)
    yield from facts_of(entry.model, Origin(how="datasheet", source=entry.source, date=entry.date))
