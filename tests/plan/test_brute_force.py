"""The search against brute force: loops over all numbers, that know none of its code, over models and machines that hypothesis draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colossus.estimate.shape import Cut
from colossus.plan.search import Question, estimate, search
from colossus.spec.model import ModelCard, MoeCard
from tests.plan.asking import question

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])


class Tried(NamedTuple):
    """One layout: what is cut into how many, recomputed and sharded."""

    tp: int
    pp: int
    cp: int
    ep: int
    dp: int
    microbatch: int
    virtual_stages: int
    remat: str
    zero_3: bool

    def cut(self, asked: Question) -> Cut:
        return Cut(
            tp=float(self.tp), pp=float(self.pp), cp=float(self.cp), ep=float(self.ep), dp=float(self.dp),
            virtual_stages=float(self.virtual_stages), microbatch_sequences=float(self.microbatch),
            num_microbatches=asked.num_sequences / self.dp / self.microbatch, sequence_tokens=float(asked.sequence_tokens),
            recompute=float(self.remat == "full"), selective=float(self.remat == "selective"),
            weights_sharded=float(self.zero_3), optimizer_sharded=float(not self.zero_3), is_low_precision=0.0,
        )  # fmt: skip


def brute_force(asked: Question) -> Iterator[Tried]:
    """Everything that can be cut evenly, but layers over stages, where the fullest stage counts.

    tp divides the heads and stays in the scale-up domain, sequences are cut in equal pieces (by cp in two each), replicas and
    microbatches divide the batch, ep divides experts and a stage's chips; virtual stages divide the layers, embedding and head
    counted or not, and with them pp divides the microbatches. ZeRO 3 is not pipelined.
    """
    card, chips = asked.card, asked.num_chips
    for tp in range(1, chips + 1):
        if card.num_heads % tp or tp > asked.device.domain_chips:
            continue
        for pp in range(1, min(card.num_layers, chips) + 1):
            for cp in range(1, chips + 1):
                if chips % (tp * pp * cp) or asked.sequence_tokens % (tp * (2 * cp if cp > 1 else 1)):
                    continue
                dp = chips // (tp * pp * cp)
                if asked.num_sequences % dp == 0:
                    yield from within(asked, tp, pp, cp, dp)


def within(asked: Question, tp: int, pp: int, cp: int, dp: int) -> Iterator[Tried]:
    layers, experts, sequences = asked.card.num_layers, asked.card.moe.num_experts if asked.card.moe else 1, asked.num_sequences // dp
    for ep in (size for size in range(1, experts + 1) if experts % size == 0 and dp * cp * tp % size == 0):
        for microbatch in (size for size in range(1, sequences + 1) if sequences % size == 0):
            for stages in range(1, layers + 3):
                divides = layers % (pp * stages) == 0 or (layers + 2) % (pp * stages) == 0
                if stages > 1 and (pp == 1 or not divides or (sequences // microbatch) % pp):
                    continue
                for remat in ("none", "selective", "full"):
                    for zero_3 in (False, True):
                        if not (zero_3 and pp > 1):
                            yield Tried(tp, pp, cp, ep, dp, microbatch, stages, remat, zero_3)


def searched(asked: Question) -> dict[Tried, tuple[float, bool]]:
    """Step time and whether it fits, of every layout that the search tried; it times only what fits."""
    found = search(asked)
    cut = found.cut
    remat = np.where(cut.recompute == 1, "full", np.where(cut.selective == 1, "selective", "none"))
    columns = (cut.tp, cut.pp, cut.cp, cut.ep, cut.dp, cut.microbatch_sequences, cut.virtual_stages)
    numbers = [tuple(map(int, row)) for row in zip(*columns, strict=True)]
    tried = [Tried(*row, str(kind), bool(sharded)) for row, kind, sharded in zip(numbers, remat, cut.weights_sharded, strict=True)]
    assert len(set(tried)) == len(tried), "a layout is tried twice"
    return dict(zip(tried, zip(map(float, found.step_s), map(bool, found.fits), strict=True), strict=True))


def forced(asked: Question) -> dict[Tried, tuple[float, bool]]:
    """The same by brute force."""
    tried = list(brute_force(asked))
    if not tried:
        return {}
    priced = estimate(asked, Cut.stack([one.cut(asked) for one in tried]))
    step_s = np.where(priced.fits, priced.step_s, np.inf)
    return dict(zip(tried, zip(map(float, step_s), map(bool, priced.fits), strict=True), strict=True))


def best_s(layouts: dict[Tried, tuple[float, bool]]) -> float:
    return min((seconds for seconds, fits in layouts.values() if fits), default=float("inf"))


class Drawn(NamedTuple):
    """A question, short enough to be read where a test fails."""

    card: ModelCard
    chip: str
    num_chips: int
    num_sequences: int
    sequence_tokens: int

    def asked(self) -> Question:
        plain = question("llama-3-8b", f"{self.chip}*{self.num_chips}", sequences=self.num_sequences, program="megatron-plain")
        return replace(plain, card=self.card, num_chips=self.num_chips, sequence_tokens=self.sequence_tokens)


@st.composite
def questions(draw: st.DrawFn) -> Drawn:
    """Small models on 1 to 6 nodes, some so wide that not every layout fits."""
    heads = draw(st.sampled_from([1, 2, 4, 6, 8, 12, 16]))
    width = 64 * heads * draw(st.sampled_from([1, 4, 16]))
    card = ModelCard(
        vocab_size=draw(st.sampled_from([1024, 128256])),
        num_layers=draw(st.integers(1, 14)),
        model_dim=width,
        num_heads=heads,
        num_kv_heads=draw(st.sampled_from([size for size in range(1, heads + 1) if heads % size == 0])),
        head_dim=width // heads,
        ffn_dim=4 * width,
        moe=draw(st.none() | st.builds(MoeCard, num_experts=st.sampled_from([2, 4, 6, 8]), num_experts_per_token=st.just(2), expert_dim=st.just(4 * width))),
    )
    chip, num_chips = draw(st.sampled_from(["h100-sxm", "a100-80", "b200"])), 8 * draw(st.integers(1, 6))
    return Drawn(card, chip, num_chips, draw(st.integers(1, 48)), draw(st.sampled_from([96, 512, 2048, 8192, 131072])))


@FEW
@given(questions())
def test_what_the_search_tries_brute_force_finds_with_the_same_figures(drawn):
    tried, all_of_them = searched(drawn.asked()), forced(drawn.asked())
    wrong = {one: (figures, all_of_them.get(one)) for one, figures in tried.items() if all_of_them.get(one) != (pytest.approx(figures[0]), figures[1])}
    assert not wrong


@FEW
@given(questions())
def test_brute_force_finds_nothing_faster(drawn):
    assert best_s(searched(drawn.asked())) == pytest.approx(best_s(forced(drawn.asked())))


@FEW
@given(questions())
def test_brute_force_finds_nothing_more_that_fits(drawn):
    tried, all_of_them = searched(drawn.asked()), forced(drawn.asked())
    assert all_of_them or not tried
    assert not [one for one, (_, fits) in all_of_them.items() if fits and one not in tried][:3]


CARD = ModelCard(vocab_size=1024, num_layers=4, model_dim=4608, num_heads=72, num_kv_heads=8, head_dim=64, ffn_dim=18432)


@pytest.mark.parametrize(
    ("drawn", "wanted"),
    [
        (Drawn(CARD, "gb200", 144, 2, 73728), {"tp": 72}),
        (Drawn(CARD, "h100-sxm", 256, 1, 2**20), {"cp": 128}),
        (Drawn(CARD, "h100-sxm", 24, 24, 6144), {"cp": 3}),
        (Drawn(CARD, "h100-sxm", 24, 24, 6144), {"pp": 3}),
        (Drawn(CARD.model_copy(update={"num_layers": 48}), "h100-sxm", 40, 40, 6144), {"pp": 20}),
        (Drawn(CARD.model_copy(update={"num_layers": 48}), "h100-sxm", 16, 16, 6144), {"pp": 2, "virtual_stages": 24}),
        (Drawn(CARD, "h100-sxm", 8, 256, 256), {"microbatch": 32}),
        (Drawn(CARD, "h100-sxm", 8, 24, 2048), {"microbatch": 3}),
    ],
    ids=lambda value: "-".join(f"{name}{size}" for name, size in value.items()) if isinstance(value, dict) else value.chip,
)
def test_sizes_beyond_the_usual_are_tried(drawn, wanted):
    forced_to, tried = ({one for one in layouts if one._asdict().items() >= wanted.items()} for layouts in (forced(drawn.asked()), searched(drawn.asked())))
    assert forced_to
    assert not sorted(forced_to - tried)[:3]
