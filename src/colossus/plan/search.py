"""Every layout of a training job on a machine, estimated at once, the best first.

Exhaustive over tp, pp, cp, ep, microbatch, virtual stages, remat and sharding, and what the program offers beside them
(``plan/variants.py``), with rules that no better layout can break: axes divide what they cut, layers over stages apart, and tp
stays in the scale-up domain. What does not fit is counted, and not timed. tests/plan/test_brute_force.py holds it to loops over all
numbers. Deterministic: ties go to the layout that comes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

import numpy as np

from colossus.catalog.measured import Coefficients, Program, usable_memory_fraction
from colossus.estimate.device import device_of, holding_of, is_low_precision, profile_of, value_bytes
from colossus.estimate.footprint import Footprint, Holding, footprint, host_bytes
from colossus.estimate.profile import Profile
from colossus.estimate.shape import Cut, Device, Shape
from colossus.estimate.step import StepParts, step_parts
from colossus.plan.variants import divisors, faster, join, smaller, take
from colossus.spec.machine import Machine
from colossus.spec.model import ModelCard

REMATS = ("none", "selective", "full")
SHARDINGS = ("zero 1", "zero 3")  # ZeRO 2 and groups: plan/variants.py


@dataclass(frozen=True, kw_only=True)
class Question:
    """A model trained with ``num_sequences`` of ``sequence_tokens`` a step on ``num_chips`` of a machine by a program."""

    card: ModelCard
    num_sequences: int
    sequence_tokens: int
    machine: Machine
    chip: str  # its catalog name
    num_chips: int
    precision: str
    program: Program
    coefficients: Coefficients
    is_whole: bool = False  # whether the user asked for the machine, not for so many of its chips
    changes: tuple[Any, ...] = ()  # plan.whatif.Change: figures of the machine that are tried otherwise

    @property
    def device(self) -> Device:
        device = device_of(self.machine, self.chip, self.precision, self.num_chips)
        for change in self.changes:
            device = change.apply(device)
        return device

    @property
    def holding(self) -> Holding:
        return holding_of(self.coefficients, chip=self.chip, precision=self.precision, program=self.program.name)

    @property
    def kept_bytes(self) -> float:
        return self.program.low_precision_kept_bytes if is_low_precision(self.precision) else value_bytes(self.precision)

    @property
    def can(self) -> tuple[str, ...]:
        """What the program offers and the machine allows: offload needs a host link of known speed."""
        known = self.machine.node.host_bytes_per_s_per_chip is not None
        return tuple(feature for feature in self.program.can if known or "offload" not in feature)

    @property
    def profile(self) -> Profile:
        return profile_of(self.coefficients, chip=self.chip, precision=self.precision, program=self.program.name, flash_attention=self.program.flash_attention)


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """All layouts that divide the job, as arrays, with what they take; ``fits`` by memory."""

    cut: Cut
    parts: StepParts
    memory: Footprint
    step_s: np.ndarray
    memory_bytes: np.ndarray
    fits: np.ndarray

    def __len__(self) -> int:
        return len(self.step_s)

    def order(self) -> np.ndarray:
        """Indices of the layouts that fit, fastest first."""
        return np.flatnonzero(self.fits)[np.argsort(self.step_s[self.fits], kind="stable")]

    def at(self, index: int) -> tuple[Cut, StepParts, Footprint]:
        """One layout's numbers."""
        return tuple(_pick(table, index) for table in (self.cut, self.parts, self.memory))


def _pick(table: Any, index: int) -> Any:
    return replace(table, **{field.name: float(np.broadcast_to(getattr(table, field.name), _length(table))[index]) for field in fields(table)})


def _length(table: Any) -> tuple[int, ...]:
    return np.broadcast_shapes(*(np.shape(getattr(table, field.name)) for field in fields(table)))


def search(question: Question) -> Candidates:
    """Every layout of the question; the step of those that fit."""
    return estimate(question, cuts(question), only_fitting=True)


def estimate(question: Question, cut: Cut, *, only_fitting: bool = False) -> Candidates:
    """``only_fitting``: the step time of layouts that do not fit is left infinite, and its parts zero."""
    shape, device = Shape.of(question.card), question.device
    with np.errstate(divide="ignore", invalid="ignore"):
        memory = footprint(shape, cut, question.holding)
        beside = np.broadcast_to(host_bytes(shape, cut), cut.tp.shape)
        memory_bytes = np.broadcast_to(memory.total_bytes, cut.tp.shape)
        fits = (memory_bytes <= usable_memory_fraction() * device.memory_bytes) & (beside <= usable_memory_fraction() * device.host_memory_bytes)
        priced = fits if only_fitting else np.ones_like(fits)
        parts = step_parts(shape, take(cut, priced), device, question.profile)
    step_s = _spread(parts.step_s, priced, np.inf)
    whole = StepParts(**{field.name: _spread(getattr(parts, field.name), priced, 0.0) for field in fields(StepParts)})
    return Candidates(cut=cut, parts=whole, memory=memory, step_s=step_s, memory_bytes=memory_bytes, fits=fits)


def _spread(values: Any, where: np.ndarray, otherwise: float) -> np.ndarray:
    """Values to the places where a mask holds."""
    found = np.full(where.shape, otherwise)
    found[where] = values
    return found


def cuts(question: Question) -> Cut:
    """Every cut that divides model, batch and machine."""
    axes = np.array(list(_axes(question)), float)
    if not len(axes):
        axes = np.empty((0, 6))
    tp, pp, cp, ep, dp, micro = axes.T
    inner = list(product(range(len(REMATS)), range(len(SHARDINGS))))
    many = [np.repeat(column, len(inner)) for column in (tp, pp, cp, ep, dp, micro)]
    remat, sharding = np.tile(np.array(inner).reshape(-1, 2), (len(axes), 1)).T
    tp, pp, cp, ep, dp, micro = many
    whole = Cut(
        tp=tp, pp=pp, cp=cp, ep=ep, dp=dp,
        virtual_stages=np.ones_like(tp),
        microbatch_sequences=micro,
        num_microbatches=question.num_sequences / dp / micro,
        sequence_tokens=np.full_like(tp, question.sequence_tokens),
        recompute=(remat == 2).astype(float),
        selective=(remat == 1).astype(float),
        weights_sharded=(sharding == 1).astype(float),
        optimizer_sharded=(sharding == 0).astype(float),
        is_low_precision=np.full_like(tp, float(is_low_precision(question.precision))),
        value_bytes=np.full_like(tp, value_bytes(question.precision)),
        kept_bytes=np.full_like(tp, question.kept_bytes),
    )  # fmt: skip
    kept = take(whole, ~((sharding == 1) & (pp > 1)))  # ZeRO 3 gathers every microbatch anew: never with a pipeline
    tried = faster(kept, question.card, question.can, question.device.domain_chips)
    if not question.can or not len(tried.tp):
        return tried
    return join([tried, smaller(take(tried, ~_fits(question, tried)), question.can)])


def _fits(question: Question, cut: Cut) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        needed = footprint(Shape.of(question.card), cut, question.holding).total_bytes
    return np.broadcast_to(needed, cut.tp.shape) <= usable_memory_fraction() * question.device.memory_bytes


def _axes(question: Question) -> Iterator[tuple[int, int, int, int, int, int]]:
    """(tp, pp, cp, ep, dp, microbatch sequences). Layers need not divide by pp: the fullest stage counts."""
    card, chips = question.card, question.num_chips
    for tp in divisors(card.num_heads, int(question.device.domain_chips)):
        for pp in divisors(chips // tp, card.num_layers) if chips % tp == 0 else ():
            for cp in divisors(chips // (tp * pp)):
                dp = chips // (tp * pp * cp)
                if question.num_sequences % dp or question.sequence_tokens % _pieces(tp, cp):
                    continue
                for ep in _expert_axes(card, dp * cp * tp):
                    for micro in divisors(question.num_sequences // dp):
                        yield tp, pp, cp, ep, dp, micro


def most_chips(question: Question) -> int:
    """The largest number of chips that some cut fills; what is left over of the machine are spares."""
    return int(filled_chips(question)[0].max(initial=0))


def filled_chips(question: Question) -> tuple[np.ndarray, np.ndarray]:
    """Every number of chips, up to the question's, of whole nodes or within one, that some cut of the job fills; and the useful chips of each.

    Useful: at most so many work at once, stages being as uneven as layers over pp make them and waiting pp - 1 microbatches of a step.
    Costs of tp, cp and dp are left out: it ranks numbers, and only the search times them.
    """
    card, node = question.card, question.machine.node.num_chips
    inner = {
        tp * cp
        for tp in divisors(card.num_heads, int(question.device.domain_chips))
        for cp in divisors(question.sequence_tokens)
        if question.sequence_tokens % _pieces(tp, cp) == 0
    }
    sizes = np.array(sorted(inner)), np.arange(1, card.num_layers + 1), np.array(divisors(question.num_sequences, question.num_chips))
    inside, pp, dp = (size.ravel() for size in np.meshgrid(*sizes, indexing="ij"))
    chips = inside * pp * dp
    balance = card.num_layers / (-(-card.num_layers // pp) * pp)
    useful = chips * balance / (1 + (pp - 1) * dp / question.num_sequences)
    kept = (chips <= question.num_chips) & ((chips % node == 0) | (chips < node))
    counts, place = np.unique(chips[kept], return_inverse=True)
    most = np.zeros(len(counts))
    np.maximum.at(most, place, useful[kept])
    return counts, most


def _pieces(tp: int, cp: int) -> int:
    """Into how many a sequence is cut: between blocks by tp, and by cp in two halves each, so that causal work is even."""
    return tp * (2 * cp if cp > 1 else 1)


def _expert_axes(card: ModelCard, ranks: int) -> Iterator[int]:
    if card.moe is None:
        yield 1
        return
    yield from (ep for ep in divisors(card.moe.num_experts, ranks) if ranks % ep == 0)
