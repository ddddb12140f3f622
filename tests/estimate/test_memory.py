"""The closed form of memory: its parts against the real parameter table, its whole against XLA's account of the real step."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossus.catalog.models import load_model, model_names
from colossus.estimate.memory import CHUNK_BYTES, CPU_CHUNK_BYTES, num_parameters, program_memory, train_memory
from colossus.spec.job import OptimizerKind, OptimizerSpec, Precision
from colossus.spec.layout import Layout, Remat
from colossus.spec.model import ModelCard, MoeCard, untrainable

DENSE = ModelCard(vocab_size=2048, num_layers=4, model_dim=256, num_heads=4, num_kv_heads=2, head_dim=64, ffn_dim=768)
MOE = DENSE.model_copy(update={"moe": MoeCard(num_experts=4, num_experts_per_token=2, expert_dim=384)})


def need(card=DENSE, layout=None, **changes):
    return train_memory(card, layout or Layout(), **{"num_sequences": 8, "sequence_tokens": 256, **changes})


@pytest.mark.parametrize("name", [name for name in model_names() if not untrainable(load_model(name))])
def test_parameters_are_those_of_the_network(name):
    from colossus.nn.parameters import num_params

    assert num_parameters(load_model(name)) == num_params(load_model(name))


def test_published_sizes():
    assert num_parameters(load_model("llama-3-8b")) == 8_030_261_248
    assert num_parameters(load_model("mixtral-8x7b")) == 46_702_792_704


def test_chunks_are_the_heads_own():
    from colossus.nn import loss

    assert (CPU_CHUNK_BYTES, CHUNK_BYTES) == (loss.CPU_CHUNK_BYTES, loss.CHUNK_BYTES)


@pytest.mark.parametrize(
    ("card", "layout", "options"),
    [
        pytest.param(DENSE, Layout(remat=Remat.FULL), {}, id="full"),
        pytest.param(DENSE, Layout(), {}, id="none", marks=pytest.mark.slow),
        pytest.param(DENSE, Layout(remat=Remat.SELECTIVE), {}, id="selective", marks=pytest.mark.slow),
        pytest.param(DENSE, Layout(num_microbatches=4), {}, id="microbatches", marks=pytest.mark.slow),
        pytest.param(MOE, Layout(), {}, id="moe", marks=pytest.mark.slow),
        pytest.param(DENSE, Layout(remat=Remat.FULL), {"optimizer": OptimizerKind.MUON}, id="muon", marks=pytest.mark.slow),
    ],
)
def test_against_xlas_account_of_the_real_step(card, layout, options, monkeypatch):
    """State to 1 %; all of it within 35 %: XLA's CPU backend orders a step for speed, and keeps some things longer.

    In plain JAX, which the estimate counts; the compiled CPU kernels, where they can be built, need less.
    """
    monkeypatch.setenv("COLOSSUS_KERNELS", "off")
    monkeypatch.setattr("colossus.nn.kernels.ffi.unavailable", lambda: "switched off")
    estimated = need(card, layout, **options)
    state_bytes, total_bytes = compiled_bytes(card, layout, options.get("optimizer", OptimizerKind.ADAMW))
    assert estimated.weights_bytes + estimated.optimizer_bytes == pytest.approx(state_bytes, rel=0.01)
    assert estimated.total_bytes == pytest.approx(total_bytes, rel=0.35)


def compiled_bytes(card, layout, optimizer_kind):
    """(arguments, arguments and temporaries) of the compiled train step on this machine's CPU, attention in its plain form."""
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from colossus.nn import decoder, sharding
    from colossus.nn.attention import plain_attention
    from colossus.nn.compute import Compute
    from colossus.train.language import token_loss
    from colossus.train.optimizer import learning_rate, make_optimizer
    from colossus.train.program import Program
    from colossus.train.session import abstract_state, compile_step

    compute = Compute(remat=layout.remat, attention=plain_attention)
    program = Program(
        init=partial(decoder.init_params, card), loss=partial(token_loss, card=card, compute=compute), dataset=None, axes=sharding.param_axes(card)
    )
    spec = OptimizerSpec(kind=optimizer_kind)
    mesh = sharding.make_mesh(layout, jax.devices()[:1])
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(spec, 100)
        abstract = abstract_state(program, optimizer, layout, mesh)
        whole = NamedSharding(mesh, PartitionSpec())
        shape = (layout.num_microbatches, 8 // layout.num_microbatches, 256)
        batch = tuple(jax.ShapeDtypeStruct(shape, np.int32, sharding=whole) for _ in range(2))
        account = compile_step(program, optimizer, learning_rate(spec, 100), abstract, batch, whole).memory_analysis()
    return (
        account.argument_size_in_bytes,
        account.argument_size_in_bytes + account.temp_size_in_bytes + account.output_size_in_bytes - account.alias_size_in_bytes,
    )


@given(axis=st.sampled_from(["dp", "fsdp", "tp"]), remat=st.sampled_from(list(Remat)), moe=st.booleans())
def test_more_devices_never_need_more_each(axis, remat, moe):
    card = MOE if moe else DENSE
    few, many = (need(card, Layout(**{axis: size}, remat=remat), precision=Precision.BFLOAT16) for size in (2, 4))
    assert many.total_bytes <= few.total_bytes


def test_each_remat_keeps_less():
    none, selective, full = (need(layout=Layout(remat=remat)).activations_bytes for remat in Remat)
    assert none > selective > full


def test_smaller_pieces_need_less():
    assert need(layout=Layout(num_microbatches=8)).activations_bytes < need().activations_bytes
    assert need(precision=Precision.BFLOAT16).activations_bytes < need().activations_bytes
    assert need(optimizer=OptimizerKind.MUON).optimizer_bytes < need().optimizer_bytes


def test_fsdp_cuts_the_state_and_dp_does_not():
    whole = need().optimizer_bytes
    assert need(layout=Layout(dp=4)).optimizer_bytes == whole
    assert need(layout=Layout(fsdp=4)).optimizer_bytes == pytest.approx(whole / 4, rel=1e-3)


def test_programs_are_known_by_their_bytes():
    assert program_memory(1000, Layout(fsdp=4)).total_bytes == 1000
