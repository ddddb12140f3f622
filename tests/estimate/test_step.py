"""Laws of the closed forms, and figures that can be worked out by hand."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossus.catalog.measured import load_coefficients
from colossus.catalog.models import load_model, model_names
from colossus.estimate.collectives import all_to_all_s, gather_s
from colossus.estimate.device import profile_of
from colossus.estimate.flop import train_flop
from colossus.estimate.footprint import footprint
from colossus.estimate.parameters import num_parameters
from colossus.estimate.shape import Shape
from colossus.estimate.step import step_parts
from tests.estimate.cutting import cut
from tests.plan.asking import question

ASKED = question()
DEVICE, PROFILE = ASKED.device, ASKED.profile


def step_s(card="llama-3-8b", device=DEVICE, profile=PROFILE, **changes) -> float:
    return float(step_parts(Shape.of(load_model(card)), cut(**changes), device, profile).step_s[0])


axes = st.fixed_dictionaries(
    {
        "tp": st.sampled_from([1, 2, 4, 8]), "cp": st.sampled_from([1, 2, 4]), "pp": st.sampled_from([1, 2, 4, 8]), "dp": st.sampled_from([1, 4, 64]),
        "microbatch_sequences": st.sampled_from([1, 2, 4]), "num_microbatches": st.sampled_from([1, 8, 32]), "recompute": st.booleans(),
        "weights_sharded": st.booleans(), "is_low_precision": st.booleans(), "cp_kind": st.sampled_from([0, 1, 2]), "schedule": st.integers(0, 7),
        "optimizer_offload": st.booleans(), "activation_offload": st.booleans(), "gradients_sharded": st.booleans(),
    }
)  # fmt: skip
models = st.sampled_from(["llama-3-8b", "gpt-3-175b", "mixtral-8x7b", "deepseek-v3", "gpt-oss-120b"])


@settings(max_examples=60, deadline=None)
@given(models, axes, st.sampled_from([field.name for field in fields(DEVICE) if field.name.endswith("_per_s")]), st.floats(1.01, 10))
def test_a_faster_machine_is_never_slower(model, sizes, figure, factor):
    faster = replace(DEVICE, **{figure: getattr(DEVICE, figure) * factor})
    assert step_s(model, faster, **sizes) <= step_s(model, **sizes) * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(models, axes)
def test_no_step_beats_the_flop_over_the_curve(model, sizes):
    """Time x chips x the fitted GEMM rate is at least the model's FLOP, attention's apart."""
    counted = train_flop(load_model(model), 1, 4096)
    sequences = sizes["microbatch_sequences"] * sizes["num_microbatches"] * sizes["dp"]
    flop = (counted.model_flop - counted.attention_flop) * sequences
    chips = sizes["tp"] * sizes["cp"] * sizes["pp"] * sizes["dp"]
    rate = DEVICE.gemm_flop_per_s * PROFILE.gemm_fraction
    assert step_s(model, **sizes) * chips * rate >= 0.98 * flop


@settings(max_examples=40, deadline=None)
@given(models, axes)
def test_parts_are_never_negative_and_add_up(model, sizes):
    parts = step_parts(Shape.of(load_model(model)), cut(**sizes), DEVICE, PROFILE)
    values = [float(np.broadcast_to(value, (1,))[0]) for value in vars(parts).values()]
    assert min(values) >= -1e-9 and sum(values) == pytest.approx(float(parts.step_s[0]))


@pytest.mark.parametrize("name", [name for name in model_names() if name not in ("palm-540b", "gpt-2-124m", "gpt-2-355m", "gpt-2-774m", "gpt-2-1.5b")])
def test_weights_of_the_formulas_are_those_of_the_card(name):
    """Norms, biases and learned positions apart: within 1 %."""
    card = load_model(name)
    shape = Shape.of(card)
    assert float(shape.dense_params + shape.expert_params + shape.table_params) == pytest.approx(num_parameters(card), rel=0.01)


def test_the_bubble_is_that_of_1f1b():
    """(p - 1) / m of the stage's work, less with virtual stages (Narayanan et al. 2021)."""
    shape = Shape.of(load_model("llama-3-70b"))
    plain = step_parts(shape, cut(pp=8, num_microbatches=16), DEVICE, PROFILE)
    chunks = step_parts(shape, cut(pp=8, num_microbatches=16, virtual_stages=5), DEVICE, PROFILE)
    work = sum(vars(plain)[f"{name}_s"] for name in ("gemm", "attention", "elementwise", "recompute", "host", "tp", "cp", "ep"))
    assert float(plain.bubble_s[0]) == pytest.approx(float(work[0]) * 7 / 16, rel=0.02)
    assert float(chunks.bubble_s[0]) == pytest.approx(float(plain.bubble_s[0]) / 5)


def test_collectives_cross_the_tiers_that_they_cross():
    gigabyte, one = 1e9, np.array([1.0])
    inside = float(gather_s(DEVICE, gigabyte, np.array([8.0]), one)[0])
    assert inside == pytest.approx(gigabyte * 7 / 8 / DEVICE.scale_up_bytes_per_s, rel=0.01)
    whole_nodes = float(gather_s(DEVICE, gigabyte, np.array([16.0]), one)[0])
    assert whole_nodes == pytest.approx(gigabyte * 15 / 16 / min(DEVICE.scale_up_bytes_per_s, 8 * DEVICE.scale_out_bytes_per_s), rel=0.01)
    one_a_node = float(gather_s(DEVICE, gigabyte, np.array([4.0]), np.array([8.0]))[0])
    assert one_a_node == pytest.approx(gigabyte * 3 / 4 / DEVICE.scale_out_bytes_per_s, rel=0.01)
    spread = float(all_to_all_s(DEVICE, gigabyte, np.array([64.0]), one)[0])
    assert spread == pytest.approx(gigabyte * 56 / 64 / DEVICE.scale_out_bytes_per_s, rel=0.01)
    assert float(gather_s(DEVICE, gigabyte, one, one)[0]) == 0.0


@settings(max_examples=40, deadline=None)
@given(models, axes)
def test_recompute_and_sharding_never_need_more_memory(model, sizes):
    asked = question()
    from colossus.estimate.device import holding_of

    holding = holding_of(load_coefficients(), chip=asked.chip, precision="bfloat16", program=asked.program.name)
    shape = Shape.of(load_model(model))
    total = lambda **changes: float(np.broadcast_to(footprint(shape, cut(**(sizes | changes)), holding).total_bytes, (1,))[0])
    deep = {"num_microbatches": 32, "weights_sharded": 0}
    assert total(recompute=1, **deep) <= total(recompute=0, selective=0, **deep) * 1.2  # the layer under way is whole once more
    assert total(optimizer_sharded=1, weights_sharded=0) <= total(optimizer_sharded=0, weights_sharded=0)


def test_unknown_programs_and_chips_take_what_all_have_in_common():
    first, second = (profile_of(load_coefficients(), chip=name, precision="bfloat16", program=name) for name in ("no-such", "nor-this"))
    assert first == second and 0.5 < first.gemm_fraction < 1.1 and first.score_passes == 0.0
