"""What else a cut of the mesh can be run with: kinds of cp, pipeline schedules, ZeRO and HSDP, offload. Only what the program offers.

Sound pruning: ZeRO 2 in a pipeline, offload to the host and GPipe cost time and (GPipe) memory, so that none is faster than the
same cut without it. ZeRO 2 in a pipeline and offload are tried where the cut does not fit without; GPipe never.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from colossus.estimate.pipeline import place
from colossus.estimate.shape import Cut
from colossus.spec.layout import CpKind, Schedule
from colossus.spec.model import ModelCard

# Schedules of two chunks a chip, folded: two virtual stages' worth of layers each.
FOLDED = (Schedule.ZB_V, Schedule.V_HALF, Schedule.V_MIN, Schedule.DUALPIPE)
_SEARCHED = (Schedule.ZB_H1, Schedule.ZB_H2, *FOLDED)


@cache
def divisors(number: int, most: int | None = None) -> list[int]:
    """All divisors of a number, smallest first, up to ``most``."""
    below = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    every = sorted({*below, *(number // size for size in below)})
    return every if most is None else [size for size in every if size <= most]


def take(cut: Cut, where: Any) -> Cut:
    """The cuts at an index or where a mask holds; every field becomes an array."""
    return Cut(**{field.name: np.broadcast_to(getattr(cut, field.name), cut.tp.shape)[where] for field in fields(Cut)})


def join(pieces: list[Cut]) -> Cut:
    return Cut(**{field.name: np.concatenate([np.broadcast_to(getattr(piece, field.name), piece.tp.shape) for piece in pieces]) for field in fields(Cut)})


def faster(cut: Cut, card: ModelCard, can: tuple[str, ...], domain_chips: float) -> Cut:
    """The cuts, and all that may be faster than they are."""
    whole = join([cut, *_schedules(cut, card.num_layers, can)])
    whole = join([whole, *_cp_kinds(whole, card.num_heads, can)])
    scattered = [_as_zero_2(take(whole, (whole.pp == 1) & (whole.optimizer_sharded > 0)))] if "zero 2" in can else []
    return join([whole, *scattered, *(_replicated(whole, domain_chips) if "hsdp" in can else ())])


def smaller(cut: Cut, can: tuple[str, ...]) -> Cut:
    """Slower variants of the cuts that need less memory."""
    tries = [("zero 2", "gradients_sharded"), ("optimizer offload", "optimizer_offload"), ("activation offload", "activation_offload")]
    names = [name for feature, name in tries if feature in can]
    pieces = []
    for chosen in product((0.0, 1.0), repeat=len(names)):
        if any(chosen):
            wanted = dict(zip(names, chosen, strict=True))
            some = take(cut, _sensible(cut, wanted))
            pieces.append(replace(some, **{name: np.maximum(getattr(some, name), value) for name, value in wanted.items()}))
    return join(pieces) if pieces else take(cut, np.zeros(len(cut.tp), bool))


def _as_zero_2(cut: Cut) -> Cut:
    return replace(cut, gradients_sharded=np.ones_like(cut.tp))


def _sensible(cut: Cut, wanted: dict[str, float]) -> np.ndarray:
    """ZeRO 2 of ZeRO 1 in a pipeline; activations that are recomputed are not offloaded too."""
    sharded = (wanted.get("gradients_sharded", 0.0) == 0) | ((cut.optimizer_sharded > 0) & (cut.pp > 1))
    return sharded & ((wanted.get("activation_offload", 0.0) == 0) | (cut.recompute + cut.selective == 0))


def _schedules(cut: Cut, num_layers: int, can: tuple[str, ...]) -> Iterator[Cut]:
    """Virtual stages, and the schedules that the program has: two chunks a chip need layers and microbatches for them."""
    for stages in divisors(num_layers)[1:] + [size for size in divisors(num_layers + 2)[1:] if num_layers % size]:
        part = take(cut, (cut.pp > 1) & _divides(num_layers, cut.pp * stages) & (cut.num_microbatches % cut.pp == 0))
        yield replace(part, virtual_stages=np.full_like(part.tp, stages))
    for schedule in _SEARCHED:
        if schedule.value in can:
            enough = _halves(num_layers, cut.pp) & (cut.num_microbatches >= 2 * cut.pp) if schedule in FOLDED else np.ones_like(cut.tp, bool)
            part = take(cut, (cut.pp > 1) & enough)
            yield replace(part, schedule=np.full_like(part.tp, place(schedule)))


def _halves(num_layers: int, stages: np.ndarray) -> np.ndarray:
    """Whether the fullest stage has two chunks of one size: 4 layers of 61 in 16 stages."""
    return np.ceil(num_layers / stages) % 2 == 0


def _divides(num_layers: int, chunks: np.ndarray) -> np.ndarray:
    """Whether chunks are of one size; embedding and head may count as a layer each."""
    return (num_layers % chunks == 0) | ((num_layers + 2) % chunks == 0)


def _cp_kinds(cut: Cut, num_heads: int, can: tuple[str, ...]) -> Iterator[Cut]:
    fits: dict[CpKind, Callable[[Cut], np.ndarray]] = {
        CpKind.ALL_GATHER: lambda some: some.cp > 1,
        CpKind.ULYSSES: lambda some: (some.cp > 1) & (num_heads % (some.tp * some.cp) == 0),
    }
    for kind, holds in fits.items():
        if kind.value in can:
            part = take(cut, holds(cut))
            yield replace(part, cp_kind=np.full_like(part.tp, list(CpKind).index(kind)))


def _replicated(cut: Cut, domain_chips: float) -> Iterator[Cut]:
    """ZeRO 3 inside groups of one domain, or of 2, 4, ... of them."""
    data = cut.dp * cut.cp
    shards = np.maximum(domain_chips // cut.tp, 1.0)
    while np.any(shards < data):
        where = (cut.weights_sharded > 0) & (shards > 1) & (shards < data) & (data % shards == 0)
        yield replace(take(cut, where), replica_groups=(data / shards)[where])
        shards = shards * 2
