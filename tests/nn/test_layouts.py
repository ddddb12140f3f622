"""Every layout gives one process's loss and gradients: dp, fsdp, tp in products, recomputation, accumulation, dense and mixture."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import pytest

from colossus.nn import decoder, sharding
from colossus.nn.parameters import param_shapes
from colossus.spec.layout import Layout, Remat
from tests.nn.decoders import CARDS, QUICK, batch, gradient, largest_difference, plain, quick_jit
from tests.nn.decoders import params as init


@functools.cache
def _alone(name):
    card = CARDS[name]
    return quick_jit(gradient(card, plain()))(init(card), *batch(card))


def _on_layout(name, layout, unroll):
    """The same step on a mesh, with the batch cut into microbatches whose gradients are averaged."""
    card, num = CARDS[name], layout.num_microbatches
    mesh = sharding.make_mesh(layout, jax.devices()[: layout.num_devices])
    params = sharding.place(mesh, sharding.param_specs(card, layout), init(card))
    rows = tuple(x.reshape(num, -1, x.shape[1]) for x in batch(card))
    rows = sharding.place(mesh, (jax.P(None, *sharding.batch_spec()),) * 2, rows)
    one = gradient(card, plain(remat=layout.remat, unroll=unroll))

    def step(p, rows):
        parts = [one(p, rows[0][i], rows[1][i]) for i in range(num)] if num <= 2 else jax.lax.map(lambda xy: one(p, *xy), rows)
        mean = functools.partial(jnp.mean, axis=0)
        return jax.tree.map(lambda *x: sum(x) / num, *parts) if num <= 2 else jax.tree.map(mean, parts)

    with jax.set_mesh(mesh):
        return quick_jit(step)(params, rows)


def _check(name, layout, unroll=False):
    assert largest_difference(_on_layout(name, layout, unroll), _alone(name)) < 1e-5


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("dense", Layout(dp=2, fsdp=2, tp=2)),
        pytest.param("dense", Layout(dp=2, fsdp=2, num_microbatches=2, remat=Remat.SELECTIVE), marks=pytest.mark.slow),
        pytest.param("tied", Layout(fsdp=2, tp=4, remat=Remat.FULL), marks=pytest.mark.slow),
        pytest.param("mixture", Layout(dp=2, tp=2, remat=Remat.SELECTIVE), marks=pytest.mark.slow),
    ],
    ids=lambda x: x if isinstance(x, str) else x.describe(),
)
def test_layouts(name, layout):
    _check(name, layout)


_PRODUCTS = [axes for axes in itertools.product((1, 2, 4), (1, 2, 4), (1, 2, 4, 8)) if axes[0] * axes[1] * axes[2] in (2, 4, 8)]


@pytest.mark.slow
@pytest.mark.parametrize("name", CARDS)
@pytest.mark.parametrize("axes", _PRODUCTS, ids=str)
def test_every_product(name, axes):
    """Recomputation, microbatches and unrolling go round with the products, so that each meets each axis."""
    turn = _PRODUCTS.index(axes) + list(CARDS).index(name)
    dp, fsdp, tp = axes
    num = (1, 2, 4)[turn % 3] if 8 % (dp * fsdp * (1, 2, 4)[turn % 3]) == 0 else 1
    layout = Layout(dp=dp, fsdp=fsdp, tp=tp, remat=list(Remat)[turn // 2 % 3], num_microbatches=num)
    _check(name, layout, unroll=bool(turn % 2))


def test_the_values_at_the_start_do_not_depend_on_the_mesh():
    card = CARDS["dense"]
    layout = Layout(dp=2, fsdp=2, tp=2)
    placed = sharding.shardings(sharding.make_mesh(layout), sharding.param_specs(card, layout))
    start = jax.jit(functools.partial(decoder.init_params, card), out_shardings=placed, compiler_options=QUICK)
    assert largest_difference(start(jax.random.key(0)), init(card)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "mixture"])
def test_no_activation_is_shuffled_or_gathered_over_the_batch(name):
    """What the partitioner adds on its own is an error of the table: the program holds gathers and sums, each over one axis's group."""
    program = _program(CARDS[name], Layout(dp=2, fsdp=2, tp=2), unroll=False)
    assert "all-to-all(" not in program
    whole_batch = re.findall(r"\w+\[8,16[,\]][^=]*all-gather\(", program)
    assert whole_batch == []


@pytest.mark.parametrize(
    "layout",
    [*(pytest.param(layout, marks=pytest.mark.slow) for layout in (Layout(dp=2), Layout(dp=2, fsdp=2))), Layout(fsdp=2)],
    ids=lambda layout: layout.describe(),
)
def test_on_a_cpu_messages_do_not_grow_with_the_layers(layout):
    """gloo takes milliseconds for each, however small: stacked weights are gathered, and their gradients summed, once."""
    card = CARDS["dense"]
    deeper = card.model_copy(update={"num_layers": 3 * card.num_layers})
    assert _num_messages(_program(deeper, layout, unroll=True)) == _num_messages(_program(card, layout, unroll=True))
    assert "reduce-precision(" not in _program(card, layout, unroll=True)


def _program(card, layout, *, unroll):
    """The compiled loss and gradient as text."""
    mesh = sharding.make_mesh(layout, jax.devices()[: layout.num_devices])
    placed = sharding.shardings(mesh, sharding.param_specs(card, layout))
    shapes = jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), param_shapes(card), placed)
    rows = jax.ShapeDtypeStruct((8, 16), jnp.int32, sharding=jax.NamedSharding(mesh, sharding.batch_spec()))
    with jax.set_mesh(mesh):
        step = jax.jit(gradient(card, plain(unroll=unroll)), out_shardings=(None, placed), compiler_options=QUICK)
        return step.lower(shapes, rows, rows).compile().as_text()


def _num_messages(program):
    """Buffers that its collectives send."""
    found = re.findall(r" (?:all-reduce|all-gather|reduce-scatter)\(([^)]*)\)", program)
    return sum(len(re.findall("%", operands)) for operands in found)
