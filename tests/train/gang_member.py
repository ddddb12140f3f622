"""A worker for test_distributed.py: does what it is told over an inherited socket, one JSON message a line.

The main thread does the work; the reading thread plays the watchdog ("interrupt" works while the main one is blocked).
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import resource
import socket
import sys
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from colossus.train import distributed

EXIT_LOST = 75


class Line:
    """Messages to and from the test."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self.orders: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def say(self, what: str, **fields: Any) -> None:
        self._socket.sendall((json.dumps({"say": what, "at": time.time(), **fields}) + "\n").encode())

    def _read(self) -> None:
        with self._socket.makefile("r") as lines:
            for text in lines:
                order = json.loads(text)
                if order["do"] == "interrupt":
                    self.say("interrupted", num_cut=distributed.interrupt())
                else:
                    self.orders.put(order)
        os._exit(0)  # the test is gone


class Member:
    """What a worker holds between orders; all of it is dropped on leave."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.held: dict[str, Any] = {}

    def do_join(self, address: str | None, n: int, rank: int, heartbeat_timeout_s: float = 10.0, timeout_s: float = 60.0) -> None:
        begin = time.perf_counter()
        distributed.join(address, n, rank, heartbeat_timeout_s=heartbeat_timeout_s, timeout_s=timeout_s)
        self.line.say("joined", join_s=time.perf_counter() - begin, devices=[d.id for d in jax.devices()], rank=jax.process_index())

    def do_connect(self, address: str, rank: int) -> None:
        """Comes to the service, and no further."""
        self.held["client"] = distributed._connect(address, rank, heartbeat_timeout_s=10.0, timeout_s=60.0)
        self.line.say("connected")

    def do_leave(self) -> None:
        self.held.clear()
        begin = time.perf_counter()
        distributed.leave()
        self.line.say("left", leave_s=time.perf_counter() - begin)

    def do_barrier(self, name: str, timeout_s: float) -> None:
        distributed.barrier(name, timeout_s)
        self.line.say("met")

    def do_cache(self, folder: str) -> None:
        distributed.share_compilation_cache(folder)
        self.line.say("cached")

    def do_sum(self) -> None:
        """One collective: the sum of rank + 1 over the gang."""
        begin = time.perf_counter()
        add, values = _sum_program()
        value = float(np.asarray(add(values))[0, 0])
        self.line.say("sum", value=value, first_s=time.perf_counter() - begin)

    def do_spin(self, pause_at: int | None = None) -> None:
        """Collectives without end; says when it is under way. At step ``pause_at`` it stands still, until the next order."""
        add, values = _sum_program()
        step = 0
        while True:
            jax.block_until_ready(add(values))
            step += 1
            if step == 5:
                self.line.say("spinning")
            if pause_at is not None and step >= pause_at:
                self.line.say("pausing")
                self.line.orders.get()
                return

    def do_build(self, how: str, layers: int = 2, executable: str = "", prefix: str = "") -> None:
        """Gets the train step ready in one of three ways, without running it. ``how``: compile, load."""
        begin = time.perf_counter()
        before = distributed.compilations()
        state, batch, lowered = _train_program(layers, how == "compile")
        made_s = time.perf_counter() - begin
        begin = time.perf_counter()
        if how == "load":
            with open(executable, "rb") as file:
                compiled = distributed.load_executable(file.read())
            trace_s = 0.0
        else:
            lowered = lowered()
            trace_s = time.perf_counter() - begin
            compiled = lowered.compile()
        self.held.update(state=state, batch=batch, step=compiled)
        self.line.say("built", state_s=made_s, build_s=time.perf_counter() - begin, trace_s=trace_s, compilations=distributed.compilations() - before)

    def do_save_executable(self, path: str) -> None:
        data = distributed.save_executable(self.held["step"])
        with open(path, "wb") as file:
            file.write(data)
        self.line.say("saved", num_bytes=len(data))

    def do_train(self, steps: int) -> None:
        begin = time.perf_counter()
        state, batch, step = self.held["state"], self.held["batch"], self.held["step"]
        first_s, losses = None, []
        for _ in range(steps):
            state, loss = step(state, batch)
            losses.append(np.asarray(loss).tobytes().hex())
            first_s = first_s or time.perf_counter() - begin
        self.held["state"] = state
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(state):
            for shard in leaf.addressable_shards:
                digest.update(np.asarray(shard.data).tobytes())
        self.line.say("trained", losses=losses, digest=digest.hexdigest(), first_s=first_s)

    def do_march(self) -> None:
        """Trains without end, waiting as the step loop does."""
        state, batch, step = self.held.pop("state"), self.held["batch"], self.held["step"]
        state, loss = step(state, batch)
        distributed.wait(loss)
        self.line.say("marching")
        while True:
            state, loss = step(state, batch)
            distributed.wait(loss)

    def do_stats(self) -> None:
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        self.line.say(
            "stats",
            fds=len(os.listdir("/proc/self/fd")),
            threads=len(os.listdir("/proc/self/task")),
            rss_bytes=pages * resource.getpagesize(),
            listeners=[address[0] for address in distributed._listeners()],
            compilations=distributed.compilations(),
        )

    def obey(self, order: dict[str, Any]) -> None:
        try:
            getattr(self, f"do_{order.pop('do')}")(**order)
        except distributed.GangError as error:
            self.line.say("lost", text=str(error))
            os._exit(EXIT_LOST)
        except Exception as error:
            self.line.say("failed", peer=distributed.is_peer_failure(error), type=type(error).__name__, text=str(error)[:500])


def _mesh() -> Mesh:
    return Mesh(np.array(jax.devices()), ("x",), axis_types=(AxisType.Auto,))


def _sum_program() -> tuple[Any, Any]:
    mesh = _mesh()
    add = jax.jit(jax.shard_map(lambda v: jax.lax.psum(v, "x"), mesh=mesh, in_specs=P("x"), out_specs=P()))
    row = np.full((1, 1000), jax.process_index() + 1, np.float32)
    return add, jax.make_array_from_callback((mesh.size, 1000), NamedSharding(mesh, P("x")), lambda _: row)


_D, _HEADS, _T, _B, _V = 128, 4, 64, 12, 256


def _train_program(layers: int, traced: bool) -> tuple[Any, Any, Any]:
    """A decoder's train step, parameters and Adam moments sharded over the gang where their first dim divides by its size."""
    mesh = _mesh()
    rng = np.random.default_rng(0)
    shapes = {"embed": (_V, _D), "head": (_D, _V)}
    for i in range(layers):
        shapes |= {f"{i}.qkv": (_D, 3 * _D), f"{i}.out": (_D, _D), f"{i}.up": (_D, 4 * _D), f"{i}.down": (4 * _D, _D)}
    shardings = {name: NamedSharding(mesh, P("x") if shape[0] % mesh.size == 0 else P()) for name, shape in shapes.items()}
    values = {name: (rng.standard_normal(shape) * 0.02).astype(np.float32) for name, shape in shapes.items()}

    def put(value: np.ndarray, sharding: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    params = {name: put(values[name], shardings[name]) for name in shapes}
    zeros = {name: put(np.zeros_like(values[name]), shardings[name]) for name in shapes}
    zeros2 = {name: put(np.zeros_like(values[name]), shardings[name]) for name in shapes}
    batch = put(rng.integers(0, _V, (_B, _T + 1)).astype(np.int32), NamedSharding(mesh, P("x")))
    state = (params, zeros, zeros2)

    def block(x: jax.Array, p: dict[str, jax.Array], i: int) -> jax.Array:
        b, t, d = x.shape
        q, k, v = jnp.split(_norm(x) @ p[f"{i}.qkv"], 3, axis=-1)
        q, k, v = (a.reshape(b, t, _HEADS, d // _HEADS) for a in (q, k, v))
        x = x + jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(b, t, d) @ p[f"{i}.out"]
        return x + jax.nn.silu(_norm(x) @ p[f"{i}.up"]) @ p[f"{i}.down"]

    def loss(p: dict[str, jax.Array], tokens: jax.Array) -> jax.Array:
        x = p["embed"][tokens[:, :-1]]
        for i in range(layers):
            x = block(x, p, i)
        logits = jax.nn.log_softmax(_norm(x) @ p["head"])
        return -jnp.take_along_axis(logits, tokens[:, 1:, None], -1).mean()

    def step(state: Any, tokens: jax.Array) -> Any:
        p, m, v = state
        value, grads = jax.value_and_grad(loss)(p, tokens)
        m = jax.tree.map(lambda a, g: 0.9 * a + 0.1 * g, m, grads)
        v = jax.tree.map(lambda a, g: 0.99 * a + 0.01 * g * g, v, grads)
        p = jax.tree.map(lambda w, a, s: w - 1e-3 * a / (jnp.sqrt(s) + 1e-8), p, m, v)
        return (p, m, v), value

    tree = (shardings, shardings, shardings)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(tree, NamedSharding(mesh, P())))
    return state, batch, (lambda: jitted.lower(state, batch)) if traced else None


def _norm(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def main() -> None:
    line = Line(int(sys.argv[1]))
    member = Member(line)
    line.say("imported", pid=os.getpid())
    while True:
        member.obey(line.orders.get())


if __name__ == "__main__":
    main()
