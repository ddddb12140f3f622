"""A step of the trainer on processors: laws of the closed form, and rates recovered from timings made with them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossus.catalog.models import load_model
from colossus.estimate.flop import train_flop
from colossus.estimate.kernel_fit import rates_of
from colossus.estimate.local import GROUPS, SLICE_FLOATS, UPDATE_FLOATS, Work, attention_flop, layer_floats, local_step, product_s, scaled
from colossus.spec.kernels import GangRates, Probe, Timing
from colossus.spec.layout import Layout, Remat
from colossus.spec.model import ModelCard
from tests.plan.rates import RATES as PLAIN

RATES = PLAIN.model_copy(update={"reduce_latency_s": 2e-3, "gather_latency_s": 1e-3, "rest_fraction": 0.0, "compile_s": None})
CARD = ModelCard(vocab_size=512, num_layers=4, model_dim=64, num_heads=4, num_kv_heads=2, head_dim=16, ffn_dim=192)
SPEEDS = [name for name in GangRates.model_fields if name.endswith("_per_s")]
layouts = st.builds(
    Layout,
    dp=st.sampled_from([1, 2, 4]),
    fsdp=st.sampled_from([1, 2]),
    tp=st.sampled_from([1, 2]),
    remat=st.sampled_from(Remat),
    num_microbatches=st.sampled_from([1, 2]),
)


def work(layout: Layout, sequences: int = 32, card: ModelCard = CARD) -> Work:
    return Work.of(card, layout, sequences, 128)


@given(layout=layouts, name=st.sampled_from(SPEEDS), factor=st.floats(1.0, 10.0))
def test_a_faster_machine_is_never_slower(layout, name, factor):
    faster = RATES.model_copy(update={name: getattr(RATES, name) * factor})
    assert sum(local_step(work(layout), faster).values()) <= sum(local_step(work(layout), RATES).values()) * (1 + 1e-9)


@given(layout=layouts)
def test_no_step_beats_its_flop_at_the_highest_rate(layout):
    flop = train_flop(CARD, 32, 128).model_flop / layout.num_devices
    top = max(RATES.gemm_flop_per_s, RATES.attention_flop_per_s, RATES.head_flop_per_s)
    assert sum(local_step(work(layout), RATES).values()) >= flop / top


@given(layout=layouts)
def test_every_part_is_positive_and_in_a_group(layout):
    parts = local_step(work(layout), RATES)
    assert all(seconds > 0 for seconds in parts.values())
    assert parts.keys() <= {name for names in GROUPS.values() for name in names}
    assert {axis for axis in ("dp", "fsdp", "tp") if getattr(layout, axis) > 1} == parts.keys() & {"dp", "fsdp", "tp"}


def test_the_sum_of_gradients_is_all_weights_once():
    card = load_model("llama-91m")
    parts = local_step(Work.of(card, Layout(dp=2), 8, 256), RATES)
    assert parts["dp"] == pytest.approx(4 * 91.2e6 / RATES.reduce_bytes_per_s + 11 * RATES.reduce_latency_s, rel=0.01)


def test_factors_scale_their_group_alone():
    parts = local_step(work(Layout(dp=2)), RATES)
    changed = scaled(parts, {"communication": 2.0})
    assert changed == {**parts, "dp": 2 * parts["dp"]}


def timings(rates: GangRates, rest: float) -> Probe:
    """Timings as a machine of exactly these rates would give them."""

    def timing(kind, sizes, seconds, variant=""):
        return Timing(kind=kind, sizes=sizes, variant=variant, repeats_s=[0.9 * seconds, seconds, 1.2 * seconds] if kind == "step" else [seconds] * 3)

    found = [
        timing("product", size, product_s(rates, *size), "forward")
        for size in [(1024, 256, 256), (512, 512, 512), (256, 2048, 1024), (2048, 512, 1536), (64, 640, 128)]
    ]
    for b, t, h, d in [(8, 128, 4, 64), (1, 1024, 8, 64), (4, 256, 8, 32), (2, 256, 8, 128)]:
        seconds = attention_flop(b * t, t, h, d) / rates.attention_flop_per_s * (1 + rates.attention_halves[0] / t + rates.attention_halves[1] / d)
        found.append(timing("attention", (b, t, h, d), seconds))
    for n, d, v in [(1024, 256, 4096), (1024, 1024, 2048)]:
        found.append(timing("head", (n, d, v), 6 * n * d * v / rates.head_flop_per_s * (1 + rates.head_halves[0] / d)))
    found.append(timing("elementwise", (2048, 256, 768), 4 * layer_floats(2048, 256, 512, 768) / rates.elementwise_bytes_per_s))
    found.append(timing("slices", (2**20,), 4 * SLICE_FLOATS * 2**20 / rates.slices_bytes_per_s))
    found.append(timing("update", (2**20,), 4 * UPDATE_FLOATS * 2**20 / rates.update_bytes_per_s))
    for size in (2**12, 2**20, 2**25):
        found.append(timing("reduce", (size,), size / rates.reduce_bytes_per_s + rates.reduce_latency_s))
        found.append(timing("gather", (size,), size / rates.gather_bytes_per_s + rates.gather_latency_s))
    parts = local_step(Work.of(CARD, Layout(dp=2), 8, 128), rates)
    whole = sum(parts.values()) + rest * (sum(parts.values()) - parts["dp"])
    return Probe(num_workers=2, num_rounds=3, fused=True, step_card=CARD, timings=[*found, timing("step", (8, 128), whole, "dp"), timing("compile", (4,), 3.0)])


def test_the_fit_finds_the_rates_behind_the_timings():
    found = rates_of(timings(RATES, 0.08))
    for name in SPEEDS:
        assert getattr(found, name) == pytest.approx(getattr(RATES, name), rel=1e-3), name
    assert found.gemm_halves == pytest.approx(RATES.gemm_halves, rel=1e-2)
    assert found.attention_halves == pytest.approx(RATES.attention_halves, rel=1e-2)
    assert (found.reduce_latency_s, found.gather_latency_s) == pytest.approx((2e-3, 1e-3), rel=1e-3)
    assert found.rest_fraction == pytest.approx(0.08, abs=1e-3)
    assert (found.lower_fraction, found.upper_fraction, found.compile_s) == pytest.approx((0.9, 1.2, 3.0), abs=0.05)
    assert found.residual_fraction < 1e-6
