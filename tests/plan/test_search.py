"""The search against brute force written out, its rules, and its answers."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

import colossus
from colossus.catalog.machines import load_machine
from colossus.estimate.pipeline import place
from colossus.plan.answer import _cut_of, answer, choice_at, layout_of
from colossus.plan.explain import broken_rules, explain
from colossus.plan.front import scaling
from colossus.plan.search import cuts, estimate, search
from colossus.plan.variants import join, take
from colossus.plan.whatif import FIGURES, Change, best_step_s, changed, parse_change, tornado
from colossus.spec.answer import Answer, PlannedLayout
from colossus.spec.errors import ColossusError, InfeasibleError, SpecError
from colossus.spec.layout import CpKind, Offload, Remat, Schedule
from colossus.spec.plan import Infeasible
from tests.plan.asking import question


def brute_force(asked) -> set[tuple[int, ...]]:
    """Every (tp, pp, cp, dp, microbatch) that divides, by trying all numbers."""
    card, chips, found = asked.card, asked.num_chips, set()
    for tp, pp, cp in product(range(1, chips + 1), repeat=3):
        if chips % (tp * pp * cp) or card.num_heads % tp or tp > asked.device.domain_chips:
            continue
        dp = chips // (tp * pp * cp)
        if pp > card.num_layers or asked.num_sequences % dp or asked.sequence_tokens % (tp * (2 * cp if cp > 1 else 1)):
            continue
        per_rank = asked.num_sequences // dp
        found |= {(tp, pp, cp, dp, micro) for micro in range(1, per_rank + 1) if per_rank % micro == 0}
    return found


@pytest.mark.parametrize(("model", "sequences"), [("llama-3-8b", 64), ("llama-3-70b", 24), ("gpt-3-175b", 32)])
def test_every_cut_is_tried(model, sequences):
    asked = question(model, "h100-sxm*16", sequences=sequences, sequence_tokens=2048)
    cut = cuts(asked)
    tried = {tuple(map(int, row)) for row in zip(cut.tp, cut.pp, cut.cp, cut.dp, cut.microbatch_sequences, strict=True)}
    assert tried == brute_force(asked)
    assert np.all(cut.tp * cut.pp * cut.cp * cut.dp == 16) and np.all(cut.tokens_per_step == sequences * 2048)


def everything(asked):
    """The plain cuts with every schedule, kind of cp, ZeRO stage, group and offload there is, whether sensible or not."""
    plain = cuts(replace(asked, program=replace(asked.program, can=())))
    pieces = [take(plain, plain.virtual_stages == stages) for stages in range(1, 17)]
    for schedule, kind, gradients, optimizer, activations in product(range(len(Schedule)), range(len(CpKind)), (0, 1), (0, 1), (0, 1)):
        flags = {"schedule": schedule, "cp_kind": kind, "gradients_sharded": gradients, "optimizer_offload": optimizer, "activation_offload": activations}
        some = take(plain, (plain.virtual_stages == 1) & (plain.pp > 1) if schedule else np.ones(len(plain.tp), bool))
        some = take(some, some.optimizer_sharded > 0) if gradients else some
        some = take(some, (some.cp > 1) & ((kind < 2) | (asked.card.num_heads % (some.tp * some.cp) == 0))) if kind else some
        enough = (some.num_microbatches >= 2 * some.pp) & (np.ceil(asked.card.num_layers / some.pp) % 2 == 0)
        some = take(some, enough) if schedule >= place(Schedule.ZB_V) else some
        pieces.append(replace(some, **{name: np.full_like(some.tp, value) for name, value in flags.items()}))
    return join(pieces)


ALL = ("all-gather", "ulysses", "zb-h1", "zb-h2", "zb-v", "v-half", "v-min", "dualpipe", "zero 2", "hsdp", "optimizer offload", "activation offload")


@pytest.mark.parametrize(
    ("model", "machine", "chips", "sequences"),
    [("llama-3-8b", "h100-sxm*16", 16, 64), ("llama-3-8b", "dgx-h100", 2, 8), ("llama-3-70b", "h100-sxm*16", 16, 32)],
)
def test_what_is_not_tried_is_never_the_best(model, machine, chips, sequences):
    """Brute force over all variants finds nothing faster than the pruned search, on many chips and where only offload fits."""
    asked = question(model, machine, sequences=sequences, sequence_tokens=2048, chips=chips)
    asked = replace(asked, program=replace(asked.program, can=ALL))
    brute, found = estimate(asked, everything(asked)), search(asked)
    assert found.fits.any() == brute.fits.any()
    if found.fits.any():
        assert found.step_s[found.fits].min() <= brute.step_s[brute.fits].min() * (1 + 1e-9)


def test_deepseek_v3_is_planned_as_it_was_trained():
    """Pipeline 16, experts over 64, DualPipe; 2.664 M H800-hours for 14.8 T tokens in steps of 15,360 x 4,096 are 19.9 s a step (2412.19437, table 1, 4.2)."""
    asked = question("deepseek-v3", "deepseek-v3-2k", sequences=15360, sequence_tokens=4096, precision="float8", program="deepseek")
    as_run = PlannedLayout(pp=16, dp=128, ep=64, schedule=Schedule.DUALPIPE, remat=Remat.SELECTIVE, num_microbatch_sequences=1)
    told, found = explain(asked, as_run), search(asked)
    best = layout_of(found.at(int(found.order()[0]))[0])
    assert told.startswith("fits") and best.schedule is Schedule.DUALPIPE and best.pp == 16
    measured_s = 2.664e6 * 3600 / 2048 / (14.8e12 / (15360 * 4096))
    assert choice_at(asked, estimate(asked, _cut_of(asked, as_run)), 0, 1.0).step_s == pytest.approx(measured_s, rel=0.15)


def test_only_what_a_program_offers_is_tried():
    plain = question("llama-3-8b", "h100-sxm*16", sequences=64, program="megatron-plain")
    more = replace(plain, program=replace(plain.program, can=ALL))
    shown = lambda asked: {layout_of(search(asked).at(int(index))[0]).describe() for index in range(0, len(search(asked)), 97)}
    assert not any(word in text for text in shown(plain) for word in ("zb-", "HSDP", "host's memory", "ulysses", "ZeRO 2"))
    cut = cuts(more)
    assert {int(place_) for place_ in cut.schedule} == set(range(len(Schedule))) - {place(Schedule.GPIPE)}
    assert set(cut.cp_kind) == {0, 1, 2} and cut.optimizer_offload.any() and (cut.replica_groups > 1).any() and cut.gradients_sharded.any()
    assert np.all((cut.dp * cut.cp) % cut.replica_groups == 0) and np.all(cut.virtual_stages[cut.schedule > 0] == 1)


def test_a_model_too_large_for_its_chips_is_offloaded_and_says_so():
    found = colossus.plan("llama-3-8b", "dgx-h100", sequences=8, chips=1, tokens=1e9)
    assert found.best.layout.offload is Offload.OPTIMIZER and "optimizer in the host's memory" in found.best.layout.describe()
    assert found.best.parts_s["offload"] > 0


def test_the_first_is_the_fastest_that_fits_and_the_order_is_fixed():
    asked = question("llama-3-70b", "h100-sxm*64", sequences=128)
    candidates = search(asked)
    order = candidates.order()
    fitting = candidates.step_s[candidates.fits]
    assert len(order) == candidates.fits.sum() > 100 and candidates.step_s[order[0]] == fitting.min()
    assert np.array_equal(order, search(asked).order())
    assert not candidates.fits[candidates.memory_bytes > asked.device.memory_bytes].any()


def test_one_layout_alone_is_estimated_as_among_many():
    asked = question("mixtral-8x7b", "h100-sxm*32", sequences=64)
    candidates = search(asked)
    for index in candidates.order()[:: max(1, len(candidates.order()) // 7)]:
        alone = estimate(asked, _cut_of(asked, layout_of(candidates.at(int(index))[0])))
        assert alone.step_s[0] == pytest.approx(candidates.step_s[index]) and alone.memory_bytes[0] == pytest.approx(candidates.memory_bytes[index])


def test_an_answer_adds_up_and_round_trips():
    found = colossus.plan("llama-3-8b", "dgx-h100", sequences=64, tokens=1e9)
    best = found.best
    assert sum(best.parts_s.values()) == pytest.approx(best.step_s)
    assert sum(best.memory_parts_bytes.values()) == pytest.approx(best.memory_bytes_per_chip)
    assert best.lower_step_s <= best.step_s <= best.upper_step_s and 0 < best.mfu_fraction < 1
    assert best.throughput_tokens_per_s * best.time_to_train_s == pytest.approx(1e9, rel=1e-6)
    assert best.energy_j == pytest.approx(best.power_w * best.time_to_train_s)
    assert all(choice.why_not_first and "slower" in choice.why_not_first for choice in found.choices[1:])
    assert type(found).from_data(found.to_data(), origin="test") == found
    assert "<svg" in found._repr_html_()


@pytest.mark.parametrize(("machine", "node_w"), [("dgx-h100", 7150.0), ("llama-3-24k", 7150.0)])
def test_nodes_draw_in_training_what_was_measured(machine, node_w):
    """8 H100 alone drew 7150 W on average in MLPerf's LoRA of Llama 2 70B (fact-074), whether their full load is a maker's or was measured."""
    found = colossus.plan("llama-3-8b", machine, chips=8, sequences=64, tokens=1e9)
    site = load_machine(machine).site
    assert found.best.power_w / site.pue.value - 8 * site.network_w_per_chip.value == pytest.approx(node_w, rel=0.01)


def test_equal_questions_have_byte_equal_answers():
    once, again = (colossus.plan("llama-3-70b", "h100-sxm*64", sequences=128).to_json() for _ in range(2))
    assert once == again


def test_a_thinner_network_between_pods_slows_what_crosses_them():
    asked = question("llama-3-8b", "llama-3-24k", sequences=4096, chips=16384)
    wide, thin = (best_step_s(changed(asked, (Change(figure="scale_out.oversubscription", factor=factor),))) for factor in (1e-3, 100.0))
    assert wide < thin


def test_what_does_not_fit_says_what_would():
    found = answer(question("llama-3.1-405b", "dgx-h100", sequences=8), name="x", total_tokens=1e9)
    assert isinstance(found, Infeasible) and "no layout fits 8 chips" in found.reason and "--on h100-sxm*" in (found.fit or "") and "GiB" in found.reason
    more = int((found.fit or "").split(" chips")[0])
    assert isinstance(answer(question("llama-3.1-405b", f"h100-sxm*{more}", sequences=8 * more), name="x", total_tokens=1e9), Answer)


def test_a_batch_that_cannot_be_cut_names_counts_that_can():
    found = answer(question("llama-3-8b", "h100-sxm*296", chips=296, sequences=1, sequence_tokens=4096), name="x", total_tokens=1e9)
    assert isinstance(found, Infeasible) and "--chips" in (found.fit or "")


def test_any_layout_is_explained():
    asked = question("llama-3-70b", "h100-sxm*64", sequences=128)
    assert "but there are 64 chips" in explain(asked, PlannedLayout(tp=8))
    assert "does not divide 64 heads" in explain(asked, PlannedLayout(tp=3, dp=21))
    assert "leaves the scale-up domain" in explain(asked, PlannedLayout(tp=16, dp=4))
    assert "of a chip's" in explain(asked, PlannedLayout(dp=64))
    assert "fits" in explain(asked, PlannedLayout(tp=8, pp=4, dp=2, num_virtual_stages=5, num_microbatch_sequences=1))
    assert "fits" in explain(asked, PlannedLayout(tp=8, pp=4, dp=2, schedule=Schedule.ZB_V, num_microbatch_sequences=1))
    assert "own chunks" in explain(asked, PlannedLayout(tp=8, pp=4, dp=2, schedule=Schedule.ZB_V, num_virtual_stages=2))
    assert "do not divide 32" in explain(question("llama-3-8b", "h100-sxm*64"), PlannedLayout(tp=8, cp=8, cp_kind=CpKind.ULYSSES))
    assert "need zero_stage 3" in explain(asked, PlannedLayout(dp=64, num_replica_groups=8))
    assert "it fits, at" in explain(asked, PlannedLayout(tp=8, dp=8, num_microbatch_sequences=1))


@pytest.mark.parametrize(
    ("model", "machine", "options"), [("mixtral-8x7b", "h100-sxm*64", {}), ("gpt-3-175b", "dgx-a100*96", {"sequences": 96}), ("llama-3-8b", "dgx-h100", {})]
)
def test_the_search_breaks_no_rule_that_it_is_explained_by(model, machine, options):
    asked = question(model, machine, **options)
    candidates = search(asked)
    for index in range(0, len(candidates), max(1, len(candidates) // 300)):
        wanted = layout_of(candidates.at(index)[0])
        assert not list(broken_rules(asked, wanted)), wanted.describe()


def test_what_is_said_to_fit_does():
    asked = question("llama-3-70b", "h100-sxm*64", sequences=128)
    told = explain(asked, PlannedLayout(tp=8, pp=4, dp=2, num_microbatch_sequences=4))
    assert "of a chip's" in told and "with remat" in told and "it fits, at" in told
    assert "cut it over more" in explain(question("llama-3-70b", "dgx-h100"), PlannedLayout(dp=8))


def test_what_fits_though_nothing_that_the_program_offers_does_is_said_to():
    asked = question("llama-3-8b", "dgx-h100", chips=1, sequences=8)
    bare = replace(asked, program=replace(asked.program, can=()))
    assert explain(bare, PlannedLayout(remat="full", num_microbatch_sequences=1, offload="optimizer", num_microbatches=8)).startswith("fits, at")


def test_more_chips_are_faster_and_the_whole_machine_is_first():
    asked = question("llama-3-8b", "h100-sxm*64", sequences=512)
    choices = scaling(asked, 1e9)
    times = [choice.step_s for choice in choices]
    assert len(choices) >= 4 and times == sorted(times)


@pytest.mark.parametrize("figure", FIGURES)
def test_a_better_figure_is_never_worse(figure):
    asked = question("llama-3-70b", "h100-sxm*64", sequences=128)
    better = 0.5 if "latency" in figure or "oversubscription" in figure else 2.0
    assert best_step_s(changed(asked, (Change(figure=figure, factor=better),))) <= best_step_s(asked) * (1 + 1e-9)


def test_a_tornado_names_every_figure_once_widest_first():
    asked = question("llama-3-8b", "dgx-h100", sequences=64)
    swings = tornado(asked)
    assert {swing.figure for swing in swings} == set(FIGURES)
    assert swings[0].figure in ("chip.peak", "chip.memory")


@pytest.mark.parametrize("text", ["chip.peak", "chip.peek*2", "chip.peak*0", "chip.peak*-1", "chip.peak+1", ""])
def test_nonsense_what_ifs_are_refused(text):
    with pytest.raises(SpecError, match="what-if"):
        parse_change(text)


@pytest.mark.parametrize(
    ("arguments", "options", "told"),
    [
        (("llama-3-8x", "dgx-h100"), {}, "llama-3-8b"),
        (("llama-3-8b", "dgx-h1000"), {}, "dgx-h100"),
        (("llama-3-8b", "dgx-h100"), {"precision": "float9"}, "precision"),
        (("llama-3-8b", "dgx-a100"), {"precision": "float8"}, "does not compute in it"),
        (("llama-3-8b", "dgx-h100"), {"chips": 9}, "has 8"),
        (("llama-3-8b", "colossus-100k"), {"chips": 9}, "nodes of 8"),
        (("llama-3-8b", "dgx-h100"), {"program": "megatron"}, "megatron"),
        (("llama-3-8b", "dgx-h100"), {"tokens": -1.0}, "above zero"),
        (("llama-3-8b", "dgx-h100"), {"chips": 0}, "--chips = 0: must be a whole number above zero"),
        (("llama-3-8b", "dgx-h100"), {"sequences": -1}, "--sequences = -1"),
        (("llama-3-8b", "dgx-h100"), {"sequences": 2.5}, "--sequences = 2.5"),
        (("llama-3-8b", "dgx-h100"), {"sequence_tokens": 0}, "--sequence-tokens = 0"),
        (("llama-3-8b", "dgx-h100"), {"top": 0}, "top = 0"),
        (("llama-3-8b", "dgx-h100"), {"objective": "speed"}, "time, cost, energy"),
        (("llama-3.1-405b", "dgx-h100"), {}, "no layout fits"),
    ],
)
def test_wrong_questions_are_told_with_the_nearest_right_one(arguments, options, told):
    with pytest.raises(ColossusError) as raised:
        colossus.plan(*arguments, **options)
    assert told in f"{raised.value} {raised.value.hint}"


def test_a_job_as_an_object_is_planned_too(tmp_path):
    from colossus.spec.job import TrainJob

    job = TrainJob.from_data(
        {
            "name": "j", "num_steps": 100, "model": "llama-3-8b", "data": {"sources": ["x.txt"]},
            "batch": {"num_sequences": 64, "sequence_tokens": 4096},
        },
        origin="test",
    )  # fmt: skip
    found = colossus.plan(job, "dgx-h100")
    assert found.num_sequences == 64 and found.total_tokens == 100 * 64 * 4096
    with pytest.raises(InfeasibleError):
        colossus.plan(job.model_copy(update={"model": "llama-3.1-405b"}), "dgx-h100")


def test_layouts_per_second_are_counted_not_timed():
    """One question is one pass of arrays: no layout is estimated twice."""
    asked = question("llama-3-8b", "dgx-h100", sequences=64)
    cut = cuts(asked)
    rows = {tuple(getattr(cut, name)[index] for name in vars(cut)) for index in range(len(cut.tp))}
    assert len(rows) == len(cut.tp)
    assert choice_at(asked, search(asked), 0, 1.0).step_s > 0
    assert replace(asked, num_chips=4).num_chips == 4


def test_float32_holds_and_sends_four_bytes():
    wide, narrow = (question("llama-3-8b", "h100-sxm*64", sequences=64, precision=precision) for precision in ("float32", "bfloat16"))
    layout = PlannedLayout(dp=64, num_microbatch_sequences=1, zero_stage=1)
    heavy, light = (choice_at(asked, estimate(asked, _cut_of(asked, layout)), 0, 1.0) for asked in (wide, narrow))
    assert heavy.memory_parts_bytes["weights"] == 2 * light.memory_parts_bytes["weights"]
    assert heavy.memory_parts_bytes["activations"] == pytest.approx(2 * light.memory_parts_bytes["activations"])
    assert heavy.memory_parts_bytes["optimizer"] == pytest.approx(light.memory_parts_bytes["optimizer"] * 2 / 3)
    assert heavy.parts_s["elementwise"] == pytest.approx(2 * light.parts_s["elementwise"]) and heavy.parts_s["attention"] > 4 * light.parts_s["attention"]
