"""AdamW's update alone: Optax's chain with the guard's selection outside, against ours with the gate inside.

    python benchmarks/optimizer_update.py [CATALOG_MODEL]

Prints one line of JSON: milliseconds of each (least of the repeats, taken in turn), their ratio, and the temporaries.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

from colossus.catalog.models import load_model
from colossus.nn.parameters import init_params
from colossus.spec.job import OptimizerSpec
from colossus.train.optimizer import decay_mask, learning_rate, make_optimizer

REPEATS = 20


def main(name: str) -> None:
    spec = OptimizerSpec()
    card, schedule = load_model(name), learning_rate(spec, 1000)
    chain = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b1=spec.beta1, b2=spec.beta2, eps=spec.epsilon, weight_decay=spec.weight_decay, mask=decay_mask),
    )
    programs = {
        "optax_outside": compiled(selecting_outside(chain), chain, card),
        "colossus_inside": compiled(gated_inside(spec), make_optimizer(spec, 1000), card),
    }
    times: dict[str, list[float]] = {key: [] for key in programs}
    for _ in range(REPEATS):
        for key, program in programs.items():
            times[key].append(program["run"]())
    least = {f"{key}_ms": round(1e3 * min(values), 2) for key, values in times.items()}
    temporaries = {f"{key}_temporary_bytes": program["temporary_bytes"] for key, program in programs.items()}
    ratio = least["optax_outside_ms"] / least["colossus_inside_ms"]
    print(json.dumps({"model": name, "jax": jax.__version__, "optax": optax.__version__, **least, "ratio": round(ratio, 2), **temporaries}))


def selecting_outside(optimizer: optax.GradientTransformation) -> Any:
    def step(params: Any, state: Any, grads: Any, applied: Any) -> Any:
        updates, new = optimizer.update(grads, state, params)
        return jax.tree.map(lambda n, o: jnp.where(applied, n, o), (optax.apply_updates(params, updates), new), (params, state))

    return step


def gated_inside(spec: OptimizerSpec) -> Any:
    optimizer = make_optimizer(spec, 1000)

    def step(params: Any, state: Any, grads: Any, applied: Any) -> Any:
        updates, state = optimizer.update(grads, state, params, applied=applied)
        return optax.apply_updates(params, updates), state

    return step


def compiled(step: Any, optimizer: Any, card: Any) -> dict[str, Any]:
    params = init_params(card, jax.random.key(0))
    held = [params, optimizer.init(params)]
    grads, applied = jax.tree.map(lambda p: 1e-3 * p, params), jnp.asarray(True)
    program = jax.jit(step, donate_argnums=(0, 1)).lower(*held, grads, applied).compile()

    def run() -> float:
        start = time.perf_counter()
        held[:] = program(*held, grads, applied)
        jax.block_until_ready(held)
        return time.perf_counter() - start

    run()
    return {"run": run, "temporary_bytes": program.memory_analysis().temp_size_in_bytes}


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "llama-14m")
