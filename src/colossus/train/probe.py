"""A program of its own that times the trainer's kernels as its steps call them: ``python -m colossus.train.probe ORDER_JSON``.

It is started by engine/kernels.py, one process a worker, pinned and joined as workers are; every call of a kernel begins at once on
all of them, so that they share memory and caches as in training. Each call goes through enough copies of its arrays that no
cache holds them from one call to the next. Rank 0 answers with one line of JSON (spec.kernels.Probe).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from colossus.nn import kernels, sharding
from colossus.nn.compute import Compute, unstack
from colossus.nn.decoder import init_params
from colossus.nn.kernels.product import matmul
from colossus.nn.rope import rope_tables
from colossus.spec.job import OptimizerSpec
from colossus.spec.kernels import Kind, Probe, ProbeOrder, Timing
from colossus.spec.layout import MESH_AXES, Layout
from colossus.spec.model import ModelCard
from colossus.train import distributed
from colossus.train.compiling import abstract_state, compile_step
from colossus.train.language import token_loss
from colossus.train.optimizer import learning_rate, make_optimizer
from colossus.train.program import Program
from colossus.train.step import REQUESTS, init_state

# Shapes as small language models have them; what a model's own are is read off curves through these.
_PRODUCTS = ((1024, 256, 256), (512, 512, 512), (2048, 256, 1024), (2048, 1024, 256), (1024, 1024, 1024), (2048, 512, 1536), (2048, 1536, 512))
_ATTENTIONS = ((8, 128, 4, 64), (4, 256, 8, 64), (1, 1024, 8, 64), (4, 256, 8, 32), (2, 256, 8, 128))
_HEADS = ((1024, 256, 4096), (1024, 512, 2048), (1024, 1024, 2048))
_LAYERS = ((2048, 256, 768), (1024, 1024, 2816))
_STACKS = ((6, 640, 640), (8, 256, 1024))
_MESSAGES_BYTES = (2**12, 2**20, 2**23, 2**25)
# The decoder whose whole step is timed: sequences for each worker, and its card.
_STEP_SEQUENCES, _STEP_TOKENS = 4, 256
_STEP_CARD = ModelCard(vocab_size=2048, num_layers=4, model_dim=512, num_heads=8, num_kv_heads=8, head_dim=64, ffn_dim=1408)
# Copies of a kernel's arrays: as many as make this many bytes, but at most six.
_COLD_BYTES, _MOST_COPIES = 48 * 2**20, 6
_MIN_ROUNDS, _MAX_ROUNDS = 3, 15

Call = Callable[[], Any]


class Item:
    """One thing to time: what it is, a call that does it ``times`` times over, and the seconds of each call."""

    def __init__(self, kind: Kind, sizes: tuple[int, ...], call: Call, *, times: int = 1, variant: str = "") -> None:
        self.kind, self.sizes, self.call, self.times, self.variant = kind, sizes, call, times, variant
        self.seconds: list[float] = []
        self.compiling: Timing | None = None

    def timing(self) -> Timing:
        return Timing(kind=self.kind, sizes=self.sizes, variant=self.variant, repeats_s=[seconds / self.times for seconds in self.seconds])


def measure(order: ProbeOrder) -> Probe:
    """All items in turn, round after round, so that a neighbour's burst falls on all of them and not on one."""
    if order.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, order.cores)
    distributed.join(order.address, order.num_workers, order.rank)
    ticket, start_s = count(), time.monotonic()
    items = list(_items(order.num_workers))
    for item in items:
        distributed.barrier(f"first-{next(ticket)}", 600)
        distributed.wait(item.call())
    rounds, done = _MAX_ROUNDS, 0
    while done < rounds:
        for item in items:
            distributed.barrier(f"call-{next(ticket)}", 600)
            begin = time.perf_counter()
            distributed.wait(item.call())
            item.seconds.append(time.perf_counter() - begin)
        done += 1
        rounds = _rounds(order, done, time.monotonic() - start_s)
    distributed.barrier("measured", 600)
    distributed.leave()
    compiling = [item.compiling for item in items if item.compiling is not None]
    timings = [*(item.timing() for item in items), *compiling[:1]]
    return Probe(num_workers=order.num_workers, num_rounds=done, fused=kernels.in_use(), step_card=_STEP_CARD, timings=timings)


def _rounds(order: ProbeOrder, done: int, elapsed_s: float) -> int:
    """How many rounds in all: at least three, then as long as the time lasts; rank 0 says it for all."""
    mine = str(_MAX_ROUNDS if elapsed_s < order.duration_s else max(done, _MIN_ROUNDS))
    return int(distributed.agree(f"rounds-{done}", mine if order.rank == 0 else None))


def _items(num_workers: int) -> Iterator[Item]:
    for m, n, k in _PRODUCTS:
        yield from _products(m, n, k)
    yield _step(num_workers, "dp")
    yield from (_attention(*sizes) for sizes in _ATTENTIONS)
    yield from (_head(*sizes) for sizes in _HEADS)
    yield from (_elementwise(*sizes) for sizes in _LAYERS)
    for stack in _STACKS:
        yield _slices(stack)
        yield _update(stack)
    if num_workers > 1:
        yield from _messages(num_workers)
        yield _step(num_workers, "fsdp")


def _array(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape, np.float32))


def _copies(num_floats: int, make: Callable[[], Any]) -> list[Any]:
    return [make() for _ in range(max(1, min(_MOST_COPIES, _COLD_BYTES // (4 * num_floats))))]


def _each(function: Callable[..., Any], copies: Any) -> list[Any]:
    return [function(*one) for one in copies]


def _products(m: int, n: int, k: int) -> Iterator[Item]:
    """A product and its two gradients, each of sizes (rows, columns, summed)."""
    copies = _copies(m * k + k * n + m * n, lambda: (_array(m, k), _array(k, n), _array(m, n)))
    variants = {
        "forward": ((m, n, k), lambda x, w, dy: matmul(x, w)),
        "input": ((m, k, n), lambda x, w, dy: matmul(dy, w, transpose_b=True)),
        "weight": ((k, n, m), lambda x, w, dy: matmul(x, dy, transpose_a=True)),
    }
    for name, (sizes, multiply) in variants.items():
        call = partial(jax.jit(partial(_each, multiply)), copies)
        yield Item("product", sizes, call, times=len(copies), variant=name)


def _attention(sequences: int, tokens: int, heads: int, dim: int) -> Item:
    shape = (sequences, tokens, heads, dim)
    copies = _copies(8 * sequences * tokens * heads * dim, lambda: [_array(*shape) for _ in range(4)])

    def both(q: jax.Array, k: jax.Array, v: jax.Array, d_out: jax.Array) -> Any:
        out, back = jax.vjp(partial(kernels.attention, scale=dim**-0.5), q, k, v)
        return out, back(d_out)

    return Item("attention", shape, partial(jax.jit(partial(_each, both)), copies), times=len(copies))


def _head(tokens: int, width: int, vocabulary: int) -> Item:
    rows = (_array(tokens, width), _array(width, vocabulary), jnp.arange(tokens, dtype=jnp.int32) % vocabulary, jnp.ones(tokens) / tokens)
    return Item("head", (tokens, width, vocabulary), partial(jax.jit(kernels.cross_entropy_and_gradients), *rows))


def _elementwise(tokens: int, width: int, ffn: int) -> Item:
    """What a layer does between its products, forward and backward: two norms, rotated queries and keys, SwiGLU, two residuals."""
    length, dim = 256, 64
    card = _STEP_CARD.model_copy(update={"head_dim": dim})
    rope = rope_tables(card, jnp.arange(length)[None, :])
    turned = (tokens // length, length, width // dim, dim)

    def layer(x: jax.Array, scale: jax.Array, q: jax.Array, k: jax.Array, gate: jax.Array, up: jax.Array) -> Any:
        first = kernels.rms_norm(x, scale, 1e-5)
        middle = x + first
        second = kernels.rms_norm(middle, scale, 1e-5)
        queries, keys = kernels.rope(q, *rope), kernels.rope(k, *rope)
        return middle + second, queries, keys, kernels.swiglu(gate, up)

    def both(inputs: Any, cotangents: Any) -> Any:
        out, back = jax.vjp(layer, *inputs)
        return out, back(cotangents)

    def make() -> Any:
        x, q, gate = (partial(_array, *shape) for shape in ((tokens, width), turned, (tokens, ffn)))
        return (x(), _array(width), q(), q(), gate(), gate()), (x(), q(), q(), gate())

    copies = _copies(16 * tokens * width + 7 * tokens * ffn, make)
    return Item("elementwise", (tokens, width, ffn), partial(jax.jit(partial(_each, both)), copies), times=len(copies))


def _slices(shape: tuple[int, ...]) -> Item:
    """Stacked weights cut into layers, and the layers' gradients stacked again."""
    copies = _copies(3 * int(np.prod(shape)), lambda: [_array(*shape)])

    def both(stack: jax.Array) -> Any:
        layers, back = jax.vjp(unstack, stack)
        return layers, back(tuple(layer + 0.0 for layer in layers))

    return Item("slices", (int(np.prod(shape)),), partial(jax.jit(partial(_each, both)), copies), times=len(copies))


def _update(shape: tuple[int, ...]) -> Item:
    """The optimizer's whole update: norm, clipping, moments, weights; in place, as in a step."""
    optimizer = make_optimizer(OptimizerSpec(), 1000)
    params = [_array(*shape) for _ in range(4)]
    grads = [_array(*shape) for _ in range(4)]

    def update(held: Any, grads: Any) -> Any:
        params, state = held
        updates, state = optimizer.update(grads, state, params, applied=True)
        return jax.tree.map(jnp.add, params, updates), state

    run = jax.jit(update, donate_argnums=0)
    held = [(params, optimizer.init(params))]

    def call() -> Any:
        held[0] = run(held[0], grads)
        return held[0]

    return Item("update", (4 * int(np.prod(shape)),), call)


def _messages(num_workers: int) -> Iterator[Item]:
    """All-reduce and all-gather over the gang; ``sizes``: bytes that every rank starts from, or ends up with."""
    mesh = sharding.make_mesh(Layout(dp=num_workers))
    cut, whole = PartitionSpec("dp"), PartitionSpec()
    for num_bytes in _MESSAGES_BYTES:
        width = max(1, num_bytes // 4 // num_workers)
        for kind, length, send in (
            ("reduce", width * num_workers, lambda x: jax.lax.psum(x, "dp")),
            ("gather", width, lambda x: jax.lax.all_gather(x, "dp")),
        ):
            mine = np.ones((1, length), np.float32)
            x = jax.make_array_from_process_local_data(NamedSharding(mesh, cut), mine)
            run = jax.jit(jax.shard_map(send, mesh=mesh, in_specs=cut, out_specs=cut if kind == "gather" else whole))
            yield Item(cast("Kind", kind), (4 * width * num_workers,), partial(run, x))


def _step(num_workers: int, axis: str) -> Item:
    """A whole optimizer step of a small decoder, as train/session.py makes it."""
    spec, layout = OptimizerSpec(), Layout.from_data({axis: num_workers}, origin="probe")
    dataset: Any = None
    program = Program(
        init=partial(init_params, _STEP_CARD),
        loss=partial(token_loss, card=_STEP_CARD, compute=Compute()),
        dataset=dataset,
        axes=sharding.param_axes(_STEP_CARD),
    )
    optimizer, mesh = make_optimizer(spec, 1000), sharding.make_mesh(layout)
    num_sequences = _STEP_SEQUENCES * num_workers
    with jax.set_mesh(mesh):
        abstract = abstract_state(program, optimizer, layout, mesh)
        held = [jax.jit(lambda: init_state(program, optimizer, 0), out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))()]
        rows, whole = NamedSharding(mesh, PartitionSpec(None, sharding.RULES.batch)), NamedSharding(mesh, PartitionSpec())
        requests = NamedSharding(mesh, PartitionSpec(MESH_AXES))
        tokens = np.random.default_rng(0).integers(0, _STEP_CARD.vocab_size, (1, num_sequences, _STEP_TOKENS), dtype=np.int32)
        place = lambda array, where: jax.make_array_from_callback(array.shape, where, lambda index: array[index])
        batch = (place(tokens, rows), place(tokens, rows))
        inputs = (batch, place(np.float32(np.inf), whole), place(np.zeros((mesh.size, len(REQUESTS)), np.int32), requests))
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), batch)
        begin = time.perf_counter()
        step = compile_step(program, optimizer, learning_rate(spec, 1000), abstract, shapes, requests)
        compile_s = time.perf_counter() - begin

    def call() -> Any:
        held[0], measures = step(held[0], *inputs)
        return measures

    item = Item("step", (num_sequences, _STEP_TOKENS), call, variant=axis)
    item.compiling = Timing(kind="compile", sizes=(_STEP_CARD.num_layers,), repeats_s=[compile_s])
    return item


def main(text: str) -> None:
    order = ProbeOrder.from_data(json.loads(text), origin="order")
    probe = measure(order)
    if order.rank == 0:
        sys.stdout.write(probe.to_json().replace("\n", "") + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
    os._exit(0)  # a gang's native threads must not delay the exit
