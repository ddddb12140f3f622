"""Where the time of one train step goes on this machine's cores, by kind of work, from XLA's own profiler.

    .venv/bin/python benchmarks/step_profile.py [--model llama-14m] [--num-sequences 16] [--length 256] [--steps 5] [--workers 1] [--axis dp]

The workers share the cores evenly, as in ``colossus train``; the profile is rank 0's. Operations that run at the same time
count in full. Writes benchmarks/results/step_profile_MODEL_LAYOUT.json and prints a table.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from colossus.engine.coordination import CoordinationService
from colossus.engine.process import CPU_MALLOC
from colossus.train import distributed

KINDS = (
    ("collectives", r"all.reduce|all.gather|reduce.scatter"),
    ("attention", r"attention"),
    ("matrix products", r"matmul|dot"),
    ("head and cross-entropy", r"cross_entropy"),
    ("norm, SwiGLU, RoPE", r"rms_norm|swiglu|rope"),
    ("copies and slices", r"copy|slice|concatenate|transpose|bitcast|pad"),
)


def kind_of(name: str) -> str:
    return next((kind for kind, pattern in KINDS if re.search(pattern, name)), "other elementwise and optimizer")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="llama-14m")
    parser.add_argument("--num-sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--axis", default="dp", choices=("dp", "fsdp", "tp"))
    parser.add_argument("--top", type=int, default=0, help="Print the longest operations too.")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.rank is not None:
        member(a)
        return
    with CoordinationService(a.workers) if a.workers > 1 else contextlib.nullcontext() as service:
        address = ["--address", service.address] if service else []
        command = [sys.executable, *sys.argv, *address]
        environment = os.environ | {"GLIBC_TUNABLES": CPU_MALLOC}
        others = [subprocess.Popen([*command, "--rank", str(rank)], env=environment) for rank in range(1, a.workers)]
        subprocess.run([*command, "--rank", "0"], check=True, env=environment)
        for other in others:
            other.wait()


def member(a: argparse.Namespace) -> None:
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // a.workers
    os.sched_setaffinity(0, cores[a.rank * share : (a.rank + 1) * share])
    distributed.join(a.address, a.workers, a.rank)
    step_s, events = profile(a)
    distributed.barrier("measured", 60)
    if a.rank == 0:
        report(a, step_s, events)
    distributed.leave()


def profile(a: argparse.Namespace) -> tuple[list[float], list[tuple[str, float]]]:
    """Seconds of each step without the profiler, and (operation, seconds) of one step with it."""
    import jax
    import numpy as np
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from colossus.catalog.models import load_model
    from colossus.nn.compute import Compute
    from colossus.nn.parameters import init_params, param_axes
    from colossus.nn.sharding import RULES, make_mesh
    from colossus.spec.job import OptimizerSpec
    from colossus.spec.layout import MESH_AXES, Layout
    from colossus.train.language import token_loss
    from colossus.train.optimizer import learning_rate, make_optimizer
    from colossus.train.program import Program
    from colossus.train.session import abstract_state, begin_state, compile_step
    from colossus.train.step import REQUESTS

    card, spec = load_model(a.model), OptimizerSpec()
    program = Program(init=partial(init_params, card), loss=partial(token_loss, card=card, compute=Compute()), dataset=None, axes=param_axes(card))  # type: ignore[arg-type]
    optimizer = make_optimizer(spec, 1000)
    layout = Layout.from_data({a.axis: a.workers}, origin="--axis")
    mesh = make_mesh(layout)
    with jax.set_mesh(mesh):
        state = begin_state(program, optimizer, 0, abstract_state(program, optimizer, layout, mesh))
        tokens = np.random.default_rng(0).integers(0, card.vocab_size, (1, a.num_sequences, a.length + 1), dtype=np.int32)
        whole, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P(None, RULES.batch))
        requests = NamedSharding(mesh, P(MESH_AXES))
        place = lambda array, where: jax.make_array_from_callback(array.shape, where, lambda index: array[index])
        rest = (
            (place(tokens[..., :-1], rows), place(tokens[..., 1:], rows)),
            place(np.float32(np.inf), whole),
            place(np.zeros((mesh.size, len(REQUESTS)), np.int32), requests),
        )
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), (state, rest[0]))
        step = compile_step(program, optimizer, learning_rate(spec, 1000), *abstract, requests)
        distributed.barrier("compiled", 600)
        times = []
        for _ in range(a.steps + 2):
            begin = time.perf_counter()
            state, _ = jax.block_until_ready(step(state, *rest))
            times.append(time.perf_counter() - begin)
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                jax.block_until_ready(step(state, *rest))
            calls = dict(re.findall(r'(ffi_call[.\d]*) = .*custom_call_target="(\w+)"', step.as_text()))
            return times[2:], [(calls.get(name, name), seconds) for name, seconds in read_trace(folder)]


def read_trace(folder: str) -> list[tuple[str, float]]:
    """The operations of XLA's CPU runtime: those events that name an instruction of the compiled program."""
    import jax

    (path,) = Path(folder).rglob("*.xplane.pb")
    found = []
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                if "hlo_op" in stats:
                    found.append((str(event.name), event.duration_ns / 1e9))
    return found


def report(a: argparse.Namespace, step_s: list[float], events: list[tuple[str, float]]) -> None:
    from common import record, spread

    by_kind: Counter[str] = Counter()
    by_name: Counter[str] = Counter()
    for name, seconds in events:
        by_kind[kind_of(name)] += seconds
        by_name[name] += seconds
    tokens = a.num_sequences * a.length
    total = sum(by_kind.values())
    figures: dict[str, Any] = {
        "model": a.model,
        "batch": f"{a.num_sequences} sequences of {a.length} tokens",
        "layout": f"{a.axis} {a.workers}",
        "step_s": spread(step_s),
        "tokens_per_s": tokens / spread(step_s)["median"],
        "operation_s": {kind: round(seconds, 4) for kind, seconds in by_kind.most_common()},
    }
    path = record(f"step_profile_{a.model}_{a.axis}{a.workers}", figures)
    print(f"step {spread(step_s)['median'] * 1e3:.0f} ms median of {len(step_s)}, {figures['tokens_per_s']:.0f} tokens/s; operations {total * 1e3:.0f} ms")
    for kind, seconds in by_kind.most_common():
        print(f"{kind:34} {seconds * 1e3:8.1f} ms  {seconds / total:5.1%}")
    for name, seconds in by_name.most_common(a.top):
        print(f"   {name:60} {seconds * 1e3:8.2f} ms")
    print(path)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
