"""The sharding table: specs of every parameter, refused layouts with the nearest that fit, the fallback for any network."""

import math

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from colossus.nn import sharding
from colossus.nn.parameters import param_shapes
from colossus.spec.errors import SpecError
from colossus.spec.layout import MESH_AXES, Layout
from colossus.spec.model import ModelCard, MoeCard
from tests.nn.decoders import DENSE, MIXTURE


def test_specs_of_a_decoder():
    specs = sharding.param_specs(DENSE, Layout(dp=2, fsdp=2, tp=2))
    assert specs["embed"]["tokens"] == P("tp", "fsdp")
    assert specs["lm_head"]["kernel"] == P("fsdp", "tp")
    assert specs["layers"]["wq"] == specs["layers"]["wk"] == P(None, "fsdp", "tp", None)
    assert specs["layers"]["wo"] == P(None, "tp", None, "fsdp")
    assert specs["layers"]["w_down"] == P(None, "tp", "fsdp")
    assert specs["layers"]["attn_norm"] == P(None, "fsdp")
    assert sharding.param_specs(MIXTURE, Layout(fsdp=2, tp=2))["layers"]["w_gate"] == P(None, None, "fsdp", "tp")


def test_fewer_kv_heads_than_tp_are_whole_on_every_device():
    assert sharding.param_specs(DENSE, Layout(tp=4))["layers"]["wk"] == P(None, "fsdp", None, None)
    assert sharding.check_layout(DENSE, Layout(tp=4), 8, 16) == []


@pytest.mark.parametrize(
    ("layout", "num_sequences", "length", "expected"),
    [
        (Layout(tp=3), 8, 16, "layout.tp = 3: must divide model.num_heads 8 (nearest: 2 or 4)"),
        (Layout(fsdp=5), 10, 16, "layout.fsdp = 5: must divide model.model_dim 32 (nearest: 4 or 8)"),
        (
            Layout(dp=3),
            8,
            16,
            "batch.num_sequences = 8: cannot be cut into dp 3 x fsdp 1 x 1 microbatches = 3 equal parts (nearest: 6 or 9)",
        ),
        (Layout(dp=2, num_microbatches=8), 8, 16, "(nearest: 16)"),
        (Layout(tp=2), 8, 15, "layout.tp = 2: must divide batch.sequence_tokens 15 (nearest: 1 or 3)"),
    ],
)
def test_a_layout_that_does_not_divide_is_refused(layout, num_sequences, length, expected):
    problems = [str(problem) for problem in sharding.check_layout(DENSE, layout, num_sequences, length)]
    assert any(expected in problem for problem in problems), problems


def test_kv_heads_and_tp_must_fit_each_other():
    card = DENSE.model_copy(update={"num_heads": 24, "num_kv_heads": 6, "ffn_dim": 96})
    problems = [str(problem) for problem in sharding.check_layout(card, Layout(tp=4), 8, 16)]
    assert problems == ["layout.tp = 4: must divide model.num_kv_heads 6 or be a multiple of it (a head is then copied) (nearest: 3 or 6)"]


def test_every_problem_is_told_at_once():
    paths = [problem.path for problem in sharding.check_layout(DENSE, Layout(dp=3, fsdp=3, tp=3), 10, 16)]
    assert paths.count("layout.tp") >= 4 and "layout.fsdp" in paths and "batch.num_sequences" in paths


sizes = st.integers(1, 12)


@given(
    heads=sizes,
    group=sizes,
    width=sizes,
    moe=st.booleans(),
    axes=st.tuples(sizes, sizes, sizes),
    rows=st.integers(1, 200),
    length=st.integers(1, 48),
)
def test_what_the_check_lets_through_divides_everywhere(heads, group, width, moe, axes, rows, length):
    card = ModelCard(
        vocab_size=96 * width, num_layers=2, model_dim=24 * width, num_heads=heads * group, num_kv_heads=heads, head_dim=4, ffn_dim=12 * width,
        moe=MoeCard(num_experts=3, num_experts_per_token=2, expert_dim=8 * width) if moe else None,
    )  # fmt: skip
    layout = Layout(**dict(zip(MESH_AXES, axes, strict=True)))
    if sharding.check_layout(card, layout, rows, length):
        return
    sizes_of = dict(zip(MESH_AXES, layout.axis_sizes, strict=True))
    shapes = jax.tree.leaves(param_shapes(card))
    specs = jax.tree.leaves(sharding.param_specs(card, layout), is_leaf=lambda n: isinstance(n, P))
    for leaf, spec in zip(shapes, specs, strict=True):
        for dim, entry in zip(leaf.shape, spec, strict=True):
            names = entry if isinstance(entry, tuple) else () if entry is None else (entry,)
            assert dim % math.prod(sizes_of[name] for name in names) == 0
    assert rows % layout.num_data_shards == 0 and length % layout.tp == 0 and card.num_heads % layout.tp == 0


def test_a_network_without_axes_is_cut_by_its_largest_dim():
    shapes = {
        "w": jax.ShapeDtypeStruct((6, 8), "float32"),
        "b": jax.ShapeDtypeStruct((3,), "float32"),
        "s": jax.ShapeDtypeStruct((), "float32"),
    }
    assert sharding.fallback_specs(shapes, Layout(fsdp=2)) == {"w": P(None, "fsdp"), "b": P(), "s": P()}
    assert sharding.fallback_specs(shapes, Layout(fsdp=3)) == {"w": P("fsdp", None), "b": P("fsdp"), "s": P()}
    assert sharding.fallback_specs(shapes, Layout(dp=2)) == {"w": P(), "b": P(), "s": P()}


def test_an_unknown_logical_axis_names_the_nearest():
    with pytest.raises(SpecError, match="did you mean 'heads'"):
        sharding.tree_specs({"w": ("head", None)}, {"w": jax.ShapeDtypeStruct((4, 4), "float32")}, Layout(tp=2))


def test_a_mesh_has_the_layouts_sizes():
    mesh = sharding.make_mesh(Layout(dp=2, tp=2), jax.devices()[:4])
    assert dict(mesh.shape) == {"dp": 2, "fsdp": 1, "tp": 2}
    assert dict(sharding.abstract_mesh(Layout(dp=1024, fsdp=128, tp=8)).shape) == {"dp": 1024, "fsdp": 128, "tp": 8}
