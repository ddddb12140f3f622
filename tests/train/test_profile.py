"""A step's profile: shares of overlapping operations, kinds of instructions, and a real program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossus.train.profile import kind_of, kinds_of, profiled, shares_s

spans = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 1000), st.integers(0, 1000)).map(lambda span: (span[0], min(span[1:]), max(span[1:]))), max_size=12
)


@given(spans)
def test_shares_add_up_to_the_span_of_all(found):
    real = [span for span in found if span[2] > span[1]]
    whole = (max(end for _, _, end in real) - min(start for _, start, _ in real)) / 1e9 if real else 0.0
    assert sum(shares_s(found).values()) == pytest.approx(whole)


def test_operations_at_the_same_time_share_it_and_gaps_are_overhead():
    assert shares_s([("a", 0, 4), ("b", 2, 4), ("a", 6, 8)]) == pytest.approx({"a": 5e-9, "b": 1e-9, "overhead": 2e-9})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("colossus_attention_backward", "attention"),
        ("colossus_matmul", "gemm"),
        ("dot.3", "gemm"),
        ("all-reduce.1", "communication"),
        ("add_fusion", "elementwise"),
    ],
)
def test_kinds_by_name(name, kind):
    assert kind_of(name) == kind


def test_kinds_by_call_and_scope():
    text = """
  %ffi_call.2 = (f32[8]) custom-call(%a), custom_call_target="colossus_cross_entropy", metadata={op_name="jit(step)/x"}
  ROOT %fusion.7 = f32[8] fusion(%a), metadata={op_name="jit(step)/optimizer/mul"}
"""
    assert kinds_of(text) == {"ffi_call.2": "head", "fusion.7": "optimizer"}


def test_control_flow_has_no_kind_whatever_it_is_called():
    text = """
  %while.9 = (s32[], f32[8,8]{1,0}, /*index=2*/f32[8,8]{1,0:T(8,128)}) while(%tuple.5), condition=%region_1.3, body=%region_0.2
  %cond.1.clone = f32[8,8]{1,0} conditional(%flag, %tuple.3, %tuple.3), branch_computations={%a, %b}, metadata={op_name="jit(f)/cond"}
  ROOT %call.2 = f32[8,8]{1,0} call(%a), to_apply=%parallel_fusion
  %while_fusion = f32[8,8]{1,0} fusion(%a), kind=kLoop, calls=%c, metadata={op_name="jit(f)/while(x)/body/sin"}
"""
    assert kinds_of(text) == {"while.9": None, "cond.1.clone": None, "call.2": None, "while_fusion": "elementwise"}


def test_a_loop_is_not_counted_beside_its_body():
    x = jnp.ones((256, 256))

    @jax.jit
    def work(x):
        return jax.lax.scan(lambda y, _: (y @ x, None), x, length=20)[0]

    program = work.lower(x).compile()
    jax.block_until_ready(program(x))
    with profiled(program) as profile:
        jax.block_until_ready(program(x))
    parts = profile.parts_s
    assert parts["gemm"] > 5 * parts.get("elementwise", 0.0)


def test_a_real_program_is_seen():
    x = jnp.ones((256, 256))

    def work(x):
        y = x @ x
        with jax.named_scope("optimizer"):
            return jnp.sin(y) * 2.0

    program = jax.jit(work).lower(x).compile()
    jax.block_until_ready(program(x))
    with profiled(program) as profile:
        jax.block_until_ready(program(x))
    parts = profile.parts_s
    assert parts["gemm"] > 0 and parts["optimizer"] > 0


def test_a_step_runs_to_its_end_where_it_cannot_be_profiled(monkeypatch):
    def refuse(folder):
        raise OSError("no space left on device")

    monkeypatch.setattr(jax.profiler, "start_trace", refuse)
    with profiled(None) as profile:
        done = 1 + 1
    assert (done, profile.parts_s) == (2, {})


def test_a_lost_peer_is_seen_through_the_profile():
    with pytest.raises(RuntimeError, match="connection closed by peer"), profiled(None):
        raise RuntimeError("connection closed by peer")
