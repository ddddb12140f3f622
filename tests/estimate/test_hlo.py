"""Compiled programs as text: products, loops and messages of each spelling that XLA's back ends print."""

from __future__ import annotations

import pytest

from colossus.estimate.groups import axes_of, group_of
from colossus.estimate.hlo import Array, met_pairs, parse_instruction, parse_module, product_flop
from colossus.estimate.program import read_program, rematerializations
from colossus.spec.layout import Layout
from colossus.spec.model import ModelCard
from colossus.spec.program import ProgramAccount, ProgramOrder

MESH = {"dp": 2, "fsdp": 2, "tp": 2}
ORDER = ProgramOrder(
    card=ModelCard(vocab_size=256, num_layers=1, model_dim=64, num_heads=2, num_kv_heads=2, head_dim=32, ffn_dim=64),
    layout=Layout(**MESH), num_sequences=8, sequence_tokens=64, platform="tpu", compiler="tpu",
)  # fmt: skip
ACCOUNT = ProgramAccount(
    written_flop=0,
    arguments_bytes=1,
    outputs_bytes=1,
    aliased_bytes=1,
    temporaries_bytes=1,
    peak_bytes=2,
    compile_s=1.0,
    compiler_memory_bytes=1,
    jax_version="0",
)


@pytest.mark.parametrize(
    ("attributes", "group", "axes"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}, use_global_device_ids=true", [0, 1], "tp"),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", [0, 4], "dp"),
        ("channel_id=1, replica_groups=[4,2]<=[8], dimensions={0}", [0, 1], "tp"),
        ("replica_groups=[4,2]<=[2,2,2]T(0,2,1), dimensions={0}", [0, 2], "fsdp"),
        ("replica_groups=[2,4]<=[2,2,2]T(2,0,1), dimensions={0}", [0, 2, 4, 6], "dp+fsdp"),
        ("replica_groups=[1,8]<=[8], to_apply=%add", list(range(8)), "dp+fsdp+tp"),
        ("replica_groups=mesh['dp'=2,'fsdp'=2,'tp'=2] {'tp'}, dimensions={0}", [0, 1], "tp"),
        ("replica_groups=mesh['dp'=2,'fsdp'=2,'tp'=2] {'dp','fsdp'}, to_apply=%add", [0, 2, 4, 6], "dp+fsdp"),
        ("replica_groups=mesh[dp=2,axis_1=4] {axis_1:(1)2}, dimensions={0}", [0, 2], "fsdp"),
        ("replica_groups=mesh[axis_0=4,axis_1=2] {axis_0:(2)2}, dimensions={0}", [0, 2], "fsdp"),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([2,2,2]T(1,0,2)) {'axis_0'}, to_apply=%add", [0, 2], "fsdp"),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_0'}, to_apply=%add", [0, 2], "fsdp"),
        ("replica_groups=mesh[a=2,b=4], device_ids=([2,4]<=[4,2]T(1,0)) {a}, dimensions={0}", [0, 1], "tp"),
        ("replica_groups=mesh[a=2,b=2], device_ids=(0,2,1,3) {b}, dimensions={0}", [0, 2], "fsdp"),
        ("channel_id=3, source_target_pairs={{0,1},{1,0},{2,3},{3,2}}", [0, 1], "tp"),
        ("source_target_pairs={{0,2},{2,4},{4,6},{6,0}}", [0, 2, 4, 6], "dp+fsdp"),
        ("replica_groups={}, to_apply=%add", list(range(8)), "dp+fsdp+tp"),
        ("replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}", [0], "none"),
    ],
)
def test_every_spelling_of_a_group(attributes, group, axes):
    found = group_of(attributes, 8)
    assert found == group
    assert axes_of(found, MESH) == axes


def test_a_large_group_is_not_written_out_to_be_read():
    assert len(group_of("replica_groups=[1024,128]<=[128,128,8]T(0,2,1)", 131072)) == 128
    assert axes_of(group_of("replica_groups=[1024,128]<=[128,128,8]T(0,2,1)", 131072), {"dp": 128, "fsdp": 128, "tp": 8}) == "fsdp"


PROGRAM = """
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[4,8]{1,0})->f32[4,8]{1,0}}, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%product (a: f32[4,8], b: f32[8,16]) -> f32[4,16] {
  %a = f32[4,8]{1,0} parameter(0)
  %b = f32[8,16]{1,0} parameter(1)
  ROOT %dot.1 = f32[4,16]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (state: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %state = (s32[], f32[4,8]{1,0:T(8,128)S(1)}) parameter(0)
  %count = s32[] get-tuple-element(%state), index=0
  %x.1 = f32[4,8]{1,0} get-tuple-element(%state), index=1
  %shard = f32[4,16]{1,0} constant({...})
  %all-gather-start = (f32[4,16]{1,0}, f32[8,16]{1,0}) all-gather-start(%shard), channel_id=1, replica_groups=[4,2]<=[2,2,2]T(0,2,1), dimensions={0}, use_global_device_ids=true, metadata={op_name="jit(step)/layers/gather"}
  %all-gather-done = f32[8,16]{1,0} all-gather-done(%all-gather-start)
  %fusion = f32[4,16]{1,0} fusion(%x.1, %all-gather-done), kind=kOutput, calls=%product
  %all-reduce = f32[4,16]{1,0} all-reduce(%fusion), channel_id=2, replica_groups={{0,1},{2,3},{4,5},{6,7}}, use_global_device_ids=true, to_apply=%add
  ROOT %out = (s32[], f32[4,8]{1,0}) tuple(%count, %x.1)
}

%test (state.1: (s32[], f32[4,8])) -> pred[] {
  %state.1 = (s32[], f32[4,8]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[4,8]{1,0}) tuple(%zero, %p)
  %loop = (s32[], f32[4,8]{1,0}) while(%start), condition=%test, body=%body, metadata={op_name="jit(step)/layers/while"}, backend_config={"known_trip_count":{"n":"80"},"known_init_step":{"init":"0","step":"1"}}
  %x.2 = f32[4,8]{1,0} get-tuple-element(%loop), index=1
  %scatter = ((f32[4,8]{1,0}), f32[4,4]{1,0}) reduce-scatter-start(%x.2), channel_id=3, replica_groups=[4,2]<=[8], dimensions={1}, to_apply=%add
  %scattered = f32[4,4]{1,0} reduce-scatter-done(%scatter)
  ROOT %swap = f32[4,8]{1,0} all-to-all(%x.2), channel_id=4, replica_groups={{0,4},{1,5},{2,6},{3,7}}, dimensions={0}, metadata={op_name="jit(step)/reshape"}
}
"""


def test_a_loops_work_and_messages_count_as_often_as_it_turns():
    reading = read_program(PROGRAM, ORDER, ACCOUNT)
    assert reading.flop_per_device == 80 * 2 * 4 * 8 * 16
    assert {(one.opcode, one.axes): (one.payload_bytes, one.num_times) for one in reading.collectives} == {
        ("all-gather", "fsdp"): (80 * 8 * 16 * 4, 80),
        ("all-reduce", "tp"): (80 * 4 * 16 * 4, 80),
        ("reduce-scatter", "tp"): (4 * 8 * 4, 1),
        ("all-to-all", "dp"): (4 * 8 * 4, 1),
    }
    assert reading.bytes_by_axes()["tp"] == 80 * 256 + 128
    assert [(loop.num_times, loop.source) for loop in reading.loops] == [(80, "jit(step)/layers/while")]


def test_a_loop_that_only_its_condition_bounds():
    """As libtpu prints it: no count beside the loop, a comparison with a constant in its condition."""
    counted = PROGRAM.replace("known_trip_count", "aliasing").replace(
        "  ROOT %less = pred[] constant(true)",
        "  %bound = s32[]{:T(128)} constant(80)\n  %turn = s32[]{:T(128)} get-tuple-element(%state.1), index=0\n"
        "  ROOT %less = pred[]{:T(512)} compare(%turn, %bound), direction=LT",
    )
    assert read_program(counted, ORDER, ACCOUNT).flop_per_device == 80 * 2 * 4 * 8 * 16
    by_two = counted.replace("%count = s32[] get-tuple-element(%state), index=0", "%two = s32[] constant(2)\n  %count = s32[] add(%two, %two)")
    assert read_program(by_two, ORDER, ACCOUNT).flop_per_device == 40 * 2 * 4 * 8 * 16


def test_a_message_spread_over_fusions_counts_once():
    """A TPU's asynchronous fusions: start, steps and end each hold the same all-gather."""
    part = (
        "%part.{} (q: bf16[4,8]) -> bf16[8,8] {{\n  %q = bf16[4,8]{{1,0}} parameter(0)\n"
        "  ROOT %g = bf16[8,8]{{1,0}} all-gather(%q), channel_id={}, replica_groups={{{{0,1}},{{2,3}},{{4,5}},{{6,7}}}}, dimensions={{0}}\n}}\n"
    )
    calls = "".join(f"  %f.{n} = bf16[8,8]{{1,0}} fusion(%p), kind=kCustom, calls=%part.{n}\n" for n in range(3))
    text = (
        "".join(part.format(n, 1 if n < 2 else 7) for n in range(3))
        + "ENTRY %main (p: bf16[4,8]) -> bf16[8,8] {\n  %p = bf16[4,8]{1,0} parameter(0)\n"
        + calls
        + "}\n"
    )
    assert read_program(text, ORDER, ACCOUNT).collectives[0].num_times == 2


def test_what_nobody_asked_for_is_told_with_its_place():
    small = PROGRAM.replace('"n":"80"', '"n":"1"')
    assert any("all-to-all that nobody asked for" in line and "jit(step)/reshape" in line for line in read_program(small, ORDER, ACCOUNT).warnings)
    assert any("unknown length" in line for line in read_program(PROGRAM.replace("known_trip_count", "x"), ORDER, ACCOUNT).warnings)


def test_gathering_before_rounding_is_told():
    assert any("gathered over fsdp in float32" in line for line in read_program(PROGRAM, ORDER, ACCOUNT).warnings)
    assert not read_program(PROGRAM.replace("f32[", "bf16["), ORDER, ACCOUNT).warnings


def test_work_that_differs_from_what_was_written_is_told():
    reading = read_program(PROGRAM, ORDER, ACCOUNT.model_copy(update={"written_flop": 8 * 40 * 2 * 4 * 8 * 16}))
    assert any("100.0% more" in line for line in reading.warnings)


def test_rematerialisation_is_read_from_what_the_compiler_says():
    old = (
        "W1125 16:36:02.606770   15171 spmd_partitioner.cc:656] [SPMD] Involuntary full rematerialization. The compiler cannot go from sharding "
        "{devices=[8,1,1]<=[8]} to {devices=[1,1,4,2]<=[2,4]T(1,0) last_tile_dim_replicate} efficiently for HLO operation "
        "%fake_parameter.2 = f32[1,1024,512]{2,1,0} parameter(2), sharding={devices=[8,1,1]<=[8]}. As the last resort, SPMD will replicate"
    )
    new = old.replace("HLO operation %fake_parameter.2 = f32[1,1024,512]", "HLO operation: %reshape.7 = bf16[8,4096,8,128]")
    assert rematerializations("\n".join([old, new, old, "something else"])) == [
        "involuntary full rematerialization, 2 times: f32[1,1024,512] is copied whole to every device and cut anew",
        "involuntary full rematerialization, 1 times: bf16[8,4096,8,128] is copied whole to every device and cut anew",
    ]


def _flop(line: str, **operands: str) -> int:
    computation = {name: parse_instruction(f"  %{name} = {kind} parameter(0)") for name, kind in operands.items()}
    return product_flop(parse_instruction(line), computation)


def test_products_as_a_gpu_and_a_tpu_write_them():
    gemm = (
        '  %gemm = (bf16[128,256]{1,0}, s8[4194304]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":'
        '{"alpha_real":1,"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[]}}}'
    )
    assert _flop(gemm, a="bf16[128,64]{1,0}", b="bf16[64,256]{1,0}") == 2 * 128 * 64 * 256
    plain = "  %c = bf16[128,256]{1,0:T(8,128)(2,1)} convolution(bf16[128,64]{1,0:T(8,128)(2,1)} %a, %b), dim_labels=bf_io->bf"
    assert _flop(plain, a="bf16[128,64]{1,0:T(8,128)(2,1)}", b="bf16[64,256]{1,0}") == 2 * 128 * 64 * 256
    batched = "  %c = f32[8,128,256]{2,1,0} convolution(%a, %b), window={size=8 stride=7 pad=0_7 lhs_dilate=8}, dim_labels=0bf_0io->0bf"
    assert _flop(batched, a="f32[8,128,64]{2,1,0}", b="f32[8,64,256]{2,1,0}") == 2 * 8 * 128 * 64 * 256


def test_windows_count_only_pairs_that_meet():
    assert met_pairs(8, 8, 8, 0, 7, 8, 1) == 8
    assert met_pairs(10, 3, 8, 0, 1, 1, 1) == 24
    assert met_pairs(10, 3, 10, 1, 1, 1, 1) == 28


def test_types():
    line = "  ROOT %t.1 = (f32[2,3]{1,0}, /*index=1*/bf16[4]{0}, pred[], s4[6]) tuple(%a, %b.2, %c)"
    instruction = parse_instruction(line)
    assert instruction.result == (Array("f32", (2, 3)), Array("bf16", (4,)), Array("pred", ()), Array("s4", (6,)))
    assert [array.num_bytes for array in instruction.result] == [24, 8, 1, 3]
    assert instruction.operands == ("a", "b.2", "c")
    assert parse_module(PROGRAM).entry == "main"
