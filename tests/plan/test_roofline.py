"""The roofline: nothing above a roof, and the work that it counts is the work of the model."""

from __future__ import annotations

import pytest

from colossus.estimate.flop import train_flop
from colossus.plan.roofline import roofline, works
from colossus.plan.search import search
from colossus.plan.whatif import Change
from tests.plan.asking import question

CASES = [
    ("llama-3-8b", "h100-sxm*64", {}),
    ("llama-3-70b", "h100-sxm*64", {"precision": "float8"}),
    ("mixtral-8x7b", "h100-sxm*32", {}),
    ("deepseek-v3", "gb300*288", {"precision": "mxfp8", "sequences": 288, "sequence_tokens": 4096}),
    ("palm-540b", "tpu-v4-pod", {"sequences": 2048, "chips": 1024}),
    ("gpt-3-175b", "megascale-12k", {"sequences": 1536, "sequence_tokens": 2048, "chips": 1536}),
]


@pytest.mark.parametrize(("model", "machine", "options"), CASES)
def test_nothing_is_above_its_roof(model, machine, options):
    asked = question(model, machine, **options)
    candidates = search(asked)
    order = candidates.order()
    good = order[candidates.step_s[order] < 1.3 * candidates.step_s[order[0]]]  # what a plan could show; crumbs of a few tokens are estimated too fast
    for index in good[:: max(1, len(good) // 9)]:
        found = roofline(asked, candidates, int(index))
        assert {"attention", "attention's projections", "norms and activations"} <= {kind.name for kind in found.kinds}
        for kind in found.kinds:
            assert 0 < found.reached_fraction(kind) <= 1.001, kind
        assert 0.3 < sum(kind.step_fraction for kind in found.kinds) < 1.01


@pytest.mark.parametrize(("model", "machine", "options"), CASES)
def test_the_work_counted_is_that_of_the_model(model, machine, options):
    """All kinds over all layers, microbatches and chips give the model's FLOP: within what routers, copied keys and causal counting differ by."""
    asked = question(model, machine, **options)
    candidates = search(asked)
    # tp copies the latents of latent attention, which is work that the model's count does not have
    flat = [
        int(index)
        for index in candidates.order()
        if candidates.cut.pp[index] == 1 and not candidates.cut.recompute[index] and not (asked.card.mla and candidates.cut.tp[index] > 1)
    ]
    if not flat:
        pytest.skip("only pipelines fit, where the head is left out")
    cut, parts, _ = candidates.at(flat[0])
    rounds = cut.num_microbatches
    whole = asked.num_chips * rounds * sum(work.num_flop * work.num_layers for work in works(asked, cut, parts) if work.name != "norms and activations")
    assert whole == pytest.approx(train_flop(asked.card, asked.num_sequences, asked.sequence_tokens).model_flop, rel=0.08)


def test_what_ifs_lift_the_roofs():
    asked = question("llama-3-8b", "dgx-h100", changes=(Change(figure="chip.peak", factor=2.0), Change(figure="chip.memory_bandwidth", factor=3.0)))
    plain = question("llama-3-8b", "dgx-h100")
    lifted, flat = (roofline(one, search(one), int(search(one).order()[0])) for one in (asked, plain))
    assert lifted.memory_bytes_per_s == 3 * flat.memory_bytes_per_s
    assert [peak for _, peak in lifted.peak_flop_per_s] == [2 * peak for _, peak in flat.peak_flop_per_s]


@pytest.mark.parametrize(("precision", "roofs"), [("bfloat16", ["bfloat16"]), ("float8", ["bfloat16", "float8"]), ("float32", ["float32", "bfloat16"])])
def test_products_are_under_the_roof_of_their_precision_and_attention_under_the_16_bit_one(precision, roofs):
    asked = question("llama-3-8b", "dgx-h100", precision=precision)
    candidates = search(asked)
    found = roofline(asked, candidates, int(candidates.order()[0]))
    peaks = asked.machine.node.chip.peak_flop_per_s
    assert [name for name, _ in found.peak_flop_per_s] == roofs
    kinds = {kind.name: kind.peak_flop_per_s for kind in found.kinds}
    assert kinds["feed-forward"] == peaks[precision].value and kinds["attention"] == peaks["bfloat16"].value
