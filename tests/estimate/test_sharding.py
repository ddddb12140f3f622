"""ZeRO, HSDP, offload, kinds of context parallelism, node-limited routing: what each adds and saves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossus.catalog.models import load_model
from colossus.estimate.context import kernel_tokens
from colossus.estimate.footprint import footprint, host_bytes, kept_bytes, values_per_token
from colossus.estimate.layer import expert_parallel
from colossus.estimate.shape import Shape, outer_stage_layers, stage_layers
from colossus.estimate.sharding import activation_wait_s, gradient_rounds, optimizer_s, state_travel_s, updated
from colossus.estimate.step import step_parts
from colossus.spec.layout import CpKind
from tests.estimate.cutting import cut
from tests.plan.asking import question

ASKED = question()
DEVICE, PROFILE, HOLDING = ASKED.device, ASKED.profile, ASKED.holding
LLAMA, META = Shape.of(load_model("llama-3-8b")), Shape.of(load_model("llama-3.1-405b"))
KINDS = {kind: list(CpKind).index(kind) for kind in CpKind}


def parts(shape=LLAMA, device=DEVICE, **changes):
    return {name: float(np.broadcast_to(value, (1,))[0]) for name, value in vars(step_parts(shape, cut(**changes), device, PROFILE)).items()}


def memory(shape=LLAMA, **changes):
    return {name: float(np.broadcast_to(value, (1,))[0]) for name, value in vars(footprint(shape, cut(**changes), HOLDING)).items()}


def test_llama_3_405b_fits_as_it_was_trained():
    """tp 8, pp 16, dp 128, 8,192 tokens, no recompute, gradients sharded and in 32 bits (arXiv 2407.21783, 3.3.2): it ran in 80 GB."""
    as_run = {"tp": 8, "pp": 16, "dp": 128, "virtual_stages": 8, "num_microbatches": 16, "sequence_tokens": 8192}
    room = ASKED.device.memory_bytes * 0.97
    assert 0.7 * room < sum(memory(META, **as_run, gradients_sharded=1).values()) < room
    unfitted = footprint(META, cut(**as_run, gradients_sharded=1), replace(HOLDING, activation_factor=1.0))
    assert float(unfitted.total_bytes[0]) < 1.02 * room  # by the formulas alone


def test_the_values_a_layer_keeps_worked_by_hand():
    """Llama 3 8B: 4 x 4096 around the norms, 4096 queries and outputs, 2 x 1024 keys and values, 3 x 14336 in the feed-forward."""
    assert float(np.max(values_per_token(LLAMA, cut())[0])) == 4 * 4096 + 2 * 4096 + 2 * 1024 + 3 * 14336


def test_stages_have_whole_layers_and_the_outer_ones_have_room_for_embedding_and_head():
    deep, spread = Shape.of(load_model("deepseek-v3")), Shape.of(load_model("llama-4-maverick"))
    count = lambda shape, pp: [float(np.max(number)) for number in stage_layers(shape, cut(pp=pp))]
    assert count(META, 16) == [8, 0] and float(outer_stage_layers(META, cut(pp=16))[0]) == 7 / 8
    assert count(deep, 1) == [3, 58] and count(deep, 16) == [0, 4]  # the three dense ones are in the first
    assert count(spread, 4) == [6, 6] and count(LLAMA, 8) == [4, 0] and float(outer_stage_layers(LLAMA, cut(pp=8))[0]) == 1


def test_zero_2_keeps_less_and_travels_more():
    one, two = {"dp": 64, "pp": 4}, {"dp": 64, "pp": 4, "gradients_sharded": 1}
    assert memory(**two)["gradients_bytes"] < 0.3 * memory(**one)["gradients_bytes"] and memory(**two)["weights_bytes"] == memory(**one)["weights_bytes"]
    assert parts(**two)["dp_s"] >= parts(**one)["dp_s"]
    assert float(gradient_rounds(cut(**two))[0]) == 8 and float(gradient_rounds(cut(**two, virtual_stages=2))[0]) == 2


def test_groups_gather_inside_a_node_and_hold_more():
    """HSDP in groups of 8 on a slow network: weights are gathered over NVLink, each chip holds an eighth instead of a 512th."""
    slow = replace(DEVICE, scale_out_bytes_per_s=DEVICE.scale_out_bytes_per_s / 8)
    whole, groups = {"dp": 512, "weights_sharded": 1}, {"dp": 512, "weights_sharded": 1, "replica_groups": 64}
    assert parts(device=slow, **groups)["dp_s"] < 0.5 * parts(device=slow, **whole)["dp_s"]
    assert memory(**groups)["weights_bytes"] == pytest.approx(64 * memory(**whole)["weights_bytes"])


def test_offload_frees_memory_and_takes_the_link_and_the_hosts_memory():
    gone, kept = memory(dp=8, optimizer_offload=1), memory(dp=8)
    assert gone["optimizer_bytes"] == 0 < kept["optimizer_bytes"]
    state = cut(dp=8, optimizer_offload=1)
    num = float(updated(LLAMA, state)[0])
    assert float(host_bytes(LLAMA, state)[0]) == pytest.approx(12 * num)
    assert float(optimizer_s(LLAMA, state, DEVICE)[0]) == pytest.approx(30 * num / DEVICE.host_memory_bytes_per_s)
    assert float(state_travel_s(LLAMA, state, DEVICE)[0]) == pytest.approx(4 * num / DEVICE.host_bytes_per_s)
    moved = cut(dp=8, activation_offload=1)
    layers = float(kept_bytes(LLAMA, moved)[0])
    assert memory(dp=8, activation_offload=1)["activations_bytes"] == pytest.approx(memory(dp=8)["activations_bytes"] * 2 / 32, rel=0.01)
    assert float(activation_wait_s(moved, DEVICE, layers, 0.0)[0]) == pytest.approx(2 * layers / DEVICE.host_bytes_per_s)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([1, 8, 64]), st.sampled_from([1, 2, 8]), st.booleans(), st.booleans(), st.booleans())
def test_offload_and_zero_2_in_a_pipeline_never_speed_up_a_step_and_never_need_more(dp, tp, optimizer, activations, gradients):
    plain = {"dp": dp, "tp": tp, "pp": 4}
    saved = plain | {"optimizer_offload": optimizer, "activation_offload": activations, "gradients_sharded": gradients}
    assert sum(parts(**saved).values()) >= sum(parts(**plain).values()) * (1 - 1e-9)
    assert sum(memory(**saved).values()) <= sum(memory(**plain).values()) * (1 + 1e-9)


def test_kernels_of_a_ring_are_as_long_as_its_blocks():
    tokens = lambda kind, cp: float(kernel_tokens(cut(cp=cp, cp_kind=KINDS[kind], sequence_tokens=8192))[0])
    assert tokens(CpKind.RING, 8) == 512 and tokens(CpKind.RING, 1) == 8192 and tokens(CpKind.ULYSSES, 8) == 8192
    assert 512 < tokens(CpKind.ALL_GATHER, 8) < 8192


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(CpKind)), st.sampled_from([1, 2, 4, 8]), st.sampled_from([4096, 131072]))
def test_cp_costs_nothing_alone_and_more_bandwidth_never_slows_it(kind, cp, tokens):
    one = {"cp": cp, "cp_kind": KINDS[kind], "sequence_tokens": tokens}
    assert (parts(**one)["cp_s"] == 0) == (cp == 1)
    faster = replace(DEVICE, scale_up_bytes_per_s=2 * DEVICE.scale_up_bytes_per_s, scale_out_bytes_per_s=2 * DEVICE.scale_out_bytes_per_s)
    assert parts(device=faster, **one)["cp_s"] <= parts(**one)["cp_s"] * (1 + 1e-9)


def test_a_ring_pays_for_its_steps_on_short_sequences_and_hides_on_long_ones():
    slow = replace(DEVICE, scale_up_bytes_per_s=DEVICE.scale_up_bytes_per_s / 8)
    cost = lambda kind, tokens: parts(device=slow, cp=8, cp_kind=KINDS[kind], sequence_tokens=tokens)
    share = lambda kind, tokens: cost(kind, tokens)["cp_s"] / cost(kind, tokens)["attention_s"]
    assert share(CpKind.RING, 4096) > 3 * share(CpKind.RING, 131072)
    assert share(CpKind.RING, 131072) < share(CpKind.ALL_GATHER, 131072)


def test_node_limited_routing_sends_one_copy_to_each_node():
    """DeepSeek-V3, ep 64 on nodes of 8: at most 4 of 8 copies leave; without groups all 8 x 56/64."""
    deep = Shape.of(load_model("deepseek-v3"))
    free = replace(deep, num_expert_groups=0.0)
    out = lambda shape: float(expert_parallel(shape, cut(ep=64, dp=64), DEVICE).forward_s[0]) / 2 - DEVICE.scale_out_latency_s
    assert out(deep) == pytest.approx(out(free) / 2)
    assert out(free) == pytest.approx(4096 * 8 * 7168 * 2 * 56 / 64 / DEVICE.scale_out_bytes_per_s)
