"""The optimizer step: loss and gradient over microbatches, clipping and update, and the guard against bad steps.

The state is one pytree, {"step": (), "params", "opt_state"}; the step is a pure function of (state, batch, threshold,
requests), compiled once for a layout.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from colossus.train.program import Program

State = dict[str, Any]

# What any rank may ask of all at the end of a step; carried through the step itself, so that all ranks agree on it
# without a message of their own.
REQUESTS = ("ram", "disk", "stop")


def init_state(program: Program, optimizer: optax.GradientTransformationExtraArgs, seed: int) -> State:
    """Fresh state; traceable, so that under jit with out_shardings each device makes only its part."""
    params = program.init(jax.random.key(seed))
    return {"step": jnp.zeros((), jnp.int32), "params": params, "opt_state": optimizer.init(params)}


def make_step(
    program: Program, optimizer: optax.GradientTransformationExtraArgs, schedule: Callable[[Any], Any], *, seed: int = 0
) -> Callable[[State, Any, Any, Any], tuple[State, dict[str, Any]]]:
    """``step(state, batch, threshold, requests) -> (state, measures)``.

    ``batch``: leaves (num_microbatches, examples, ...). ``threshold``: a loss above it, or a non-finite loss or
    gradient, changes nothing but the step count. ``requests`` (devices, len(REQUESTS)) 0 or 1; the answer is the
    maximum over devices. The gradient is the mean over microbatches, so their number does not change the result.
    """

    def step(state: State, batch: Any, threshold: Any, requests: Any) -> tuple[State, dict[str, Any]]:
        key = jax.random.fold_in(jax.random.key(seed), state["step"])
        gradient = jax.value_and_grad(loss_with(program, key), has_aux=True)
        loss, metrics, grads = _accumulate(gradient, state["params"], batch)
        with jax.named_scope("optimizer"):  # train/profile.py knows its operations by this name
            grad_norm = optax.tree.norm(grads)
            applied = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & (loss <= threshold)
            updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"], applied=applied)
            params = optax.apply_updates(state["params"], updates)
        new = {"step": state["step"] + 1, "params": params, "opt_state": opt_state}
        measures = {
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": jnp.asarray(schedule(state["step"]), jnp.float32),
            "applied": applied,
            "requests": jnp.max(requests, axis=0),
            "metrics": metrics,
        }
        return new, measures

    return step


def loss_with(program: Program, key: Any) -> Callable[[Any, Any], tuple[Any, dict[str, Any]]]:
    """The program's loss; one that takes ``key`` gets this one."""
    takes_key = "key" in inspect.signature(program.loss).parameters
    return partial(program.loss, key=key) if takes_key else program.loss


def _accumulate(gradient: Any, params: Any, batch: Any) -> tuple[Any, Any, Any]:
    """Mean loss, metrics and gradient over the leading dim of ``batch``; a loop keeps one microbatch's activations."""
    num = jax.tree.leaves(batch)[0].shape[0]
    one = lambda part: gradient(params, part)
    if num == 1:
        (loss, metrics), grads = one(jax.tree.map(lambda x: x[0], batch))
        return loss, metrics, grads

    def body(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, one(part)), None

    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], batch))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(body, zeros, batch)
    (loss, metrics), grads = jax.tree.map(lambda x: x / num, total)
    return loss, metrics, grads


def make_eval(program: Program) -> Callable[[Any, Any], tuple[Any, dict[str, Any]]]:
    """``evaluate(params, batch) -> (mean loss, metrics)``, a microbatch at a time."""

    def evaluate(params: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
        loss = loss_with(program, None)
        results = jax.lax.map(lambda part: loss(params, part), batch)
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), results)

    return evaluate
