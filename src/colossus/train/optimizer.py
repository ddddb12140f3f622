"""The optimizer as one Optax transformation: clipping, AdamW or Muon, weight decay, schedule, and the guard's gate.

``update(grads, state, params, applied=ok)``: where ``ok`` is false nothing changes but the schedule's step count. The
gate sits inside on purpose. Selecting between old and new state outside makes XLA compute the moments twice and copy
them: on CPU one AdamW step then takes three to four times as long (66 against 20 ms at 14 M parameters, 2 cores).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from colossus.spec.job import OptimizerKind, OptimizerSpec, Schedule

# The last word of a parameter's name that says: a gain, a shift, never decayed and no matrix.
_VECTOR_NAMES = ("norm", "scale", "bias")
# Tables and output heads: matrices by shape, but Muon's authors leave them to AdamW, and routers with them.
_TABLE_NAMES = ("embed", "embedding", "tokens", "lm_head", "head", "router")
# (L, ...) stacks of the decoder: which dims a matrix reduces over and which it puts out; all others are batch.
_STACKED_MATRICES = {
    "wq": (1, (2, 3)),
    "wk": (1, (2, 3)),
    "wv": (1, (2, 3)),
    "wo": ((1, 2), 3),
    "w_gate": (-2, -1),
    "w_up": (-2, -1),
    "w_down": (-2, -1),
}
# Muon's update is scaled to AdamW's usual root mean square, so that one learning rate serves both: J. Liu et al.,
# "Muon is scalable for LLM training", arXiv 2502.16982, section 2.2.
_MUON_RMS = 0.2


def learning_rate(spec: OptimizerSpec, num_steps: int) -> Callable[[Any], jax.Array]:
    """``schedule(step)`` for step 0 .. num_steps - 1; traceable.

    Warm-up is linear and starts at peak / warmup_steps, so that no step is wasted. Then, with f the final fraction and
    x running from 0 to 1 over what remains: cosine f + (1 - f)(1 + cos pi x) / 2; WSD flat, then over the last
    decay_fraction of num_steps f + (1 - f)(1 - sqrt x) (A. Hägele et al., "Scaling laws and compute-optimal training
    beyond fixed training durations", arXiv 2405.18392, eq. 1); or constant.
    """
    warmup, final = spec.warmup_steps, spec.final_learning_rate_fraction
    decay_start = max(warmup, round(num_steps * (1 - spec.decay_fraction))) if spec.schedule is Schedule.WSD else warmup
    decay_steps = max(num_steps - 1 - decay_start, 1)

    def schedule(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        x = jnp.clip((step - decay_start) / decay_steps, 0.0, 1.0)
        fraction = {
            Schedule.COSINE: final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * x)),
            Schedule.WSD: final + (1 - final) * (1 - jnp.sqrt(x)),
            Schedule.CONSTANT: jnp.ones_like(x),
        }[spec.schedule]
        warm = (step + 1) / max(warmup, 1)
        return spec.learning_rate * jnp.where(step < warmup, warm, fraction)

    return schedule


def make_optimizer(spec: OptimizerSpec, num_steps: int) -> optax.GradientTransformationExtraArgs:
    """AdamW, or Muon for the matrices and AdamW for the rest; ``update`` takes ``applied`` (default: true)."""
    parts = [] if spec.clip_norm is None else [clip_by_global_norm(spec.clip_norm)]
    adam = optax.chain(
        scale_by_adam(beta1=spec.beta1, beta2=spec.beta2, epsilon=spec.epsilon),
        optax.add_decayed_weights(spec.weight_decay, decay_mask),
    )
    if spec.kind is OptimizerKind.MUON:
        parts.append(optax.partition({"muon": _muon(spec), "adamw": adam}, _muon_labels))
    else:
        parts.append(adam)
    return optax.chain(*parts, optax.scale_by_learning_rate(learning_rate(spec, num_steps)), _gate_updates())


class AdamState(NamedTuple):
    """Applied updates so far, and the first and second moments, shaped as the parameters."""

    num_updates: jax.Array
    mu: Any
    nu: Any


def scale_by_adam(*, beta1: float, beta2: float, epsilon: float) -> optax.GradientTransformationExtraArgs:
    """Adam's direction m^ / (sqrt(v^) + epsilon): D. Kingma and J. Ba, arXiv 1412.6980, algorithm 1.

    The direction is read off the gated moments, the very values that are stored, so that XLA makes one pass over each
    tensor and writes in place.
    """

    def init(params: Any) -> AdamState:
        return AdamState(num_updates=jnp.zeros((), jnp.int32), mu=optax.tree.zeros_like(params), nu=optax.tree.zeros_like(params))

    def update(grads: Any, state: AdamState, params: Any = None, *, applied: Any = True, **_: Any) -> tuple[Any, AdamState]:
        def blend(old: Any, new: Any, beta: float) -> Any:
            return jnp.where(applied, beta * old + (1 - beta) * new, old)

        mu = jax.tree.map(lambda m, g: blend(m, g, beta1), state.mu, grads)
        nu = jax.tree.map(lambda v, g: blend(v, g * g, beta2), state.nu, grads)
        count = state.num_updates + jnp.where(applied, 1, 0).astype(jnp.int32)
        grown = jnp.maximum(count, 1).astype(jnp.float32)
        first, second = 1 / (1 - beta1**grown), 1 / (1 - beta2**grown)
        direction = jax.tree.map(lambda m, v: (m * first) / (jnp.sqrt(v * second) + epsilon), mu, nu)
        return direction, AdamState(num_updates=count, mu=mu, nu=nu)

    return optax.GradientTransformationExtraArgs(init, update)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """Gradients times min(1, max_norm / norm), as one scalar factor: R. Pascanu et al., arXiv 1211.5063."""

    def update(grads: Any, state: Any, params: Any = None, **_: Any) -> tuple[Any, Any]:
        norm = optax.tree.norm(grads)
        factor = jnp.where(norm > max_norm, max_norm / norm, 1.0)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _gate_updates() -> optax.GradientTransformationExtraArgs:
    """Zero where the step is not applied, whatever (NaN included) stood there."""

    def update(updates: Any, state: Any, params: Any = None, *, applied: Any = True, **_: Any) -> tuple[Any, Any]:
        return jax.tree.map(lambda u: jnp.where(applied, u, jnp.zeros_like(u)), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _gate_state(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Keeps the state of a transformation that knows nothing of the gate."""

    def update(grads: Any, state: Any, params: Any = None, *, applied: Any = True, **_: Any) -> tuple[Any, Any]:
        updates, new = inner.update(grads, state, params)
        return updates, jax.tree.map(lambda n, o: jnp.where(applied, n, o), new, state)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _muon(spec: OptimizerSpec) -> optax.GradientTransformationExtraArgs:
    """Momentum orthogonalised by Newton-Schulz, layer by layer (K. Jordan, github.com/KellerJordan/Muon); momentum beta2."""
    return optax.chain(
        _gate_state(scale_by_muon(beta=spec.beta2, weight_dimension_numbers=_matrices_or_masked)),
        optax.stateless(lambda updates, _: jax.tree.map(_to_adam_rms, updates, _matrices_or_masked(updates), is_leaf=_is_masked)),
        optax.add_decayed_weights(spec.weight_decay),
    )


def _to_adam_rms(update: Any, matrix: Any) -> Any:
    """An orthogonal (n, m) matrix has root mean square 1 / sqrt(max(n, m)); brings it to _MUON_RMS."""
    if _is_masked(update):
        return update
    sides = [matrix.reduction_axis, matrix.output_axis]
    fans = [jnp.prod(jnp.array([update.shape[axis] for axis in ([side] if isinstance(side, int) else side)])) for side in sides]
    return update * (_MUON_RMS * jnp.sqrt(jnp.maximum(*fans).astype(update.dtype)))


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _names(path: Any) -> list[str]:
    return [str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part)))) for part in path]


def _is_vector(path: Any, array: Any) -> bool:
    return array.ndim < 2 or any(_names(path)[-1].endswith(name) for name in _VECTOR_NAMES)


def decay_mask(params: Any) -> Any:
    """True for matrices and stacks of them; false for norm gains, scales, biases (stacked too) and all vectors."""
    return jax.tree_util.tree_map_with_path(lambda path, array: not _is_vector(path, array), params)


def matrix_of(path: Any, array: Any) -> MuonDimensionNumbers | None:
    """How Muon sees a parameter as a matrix, or as a stack of them; None leaves it to AdamW.

    The decoder's own stacks are known by name; of other networks, plain (in, out) matrices that are no table or head.
    """
    names = _names(path)
    if _is_vector(path, array) or any(name in _TABLE_NAMES for name in names):
        return None
    if names[-1] in _STACKED_MATRICES and array.ndim >= 3:
        return MuonDimensionNumbers(*_STACKED_MATRICES[names[-1]])
    return MuonDimensionNumbers() if array.ndim == 2 else None


def _muon_labels(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, array: "adamw" if matrix_of(path, array) is None else "muon", params)


def _matrices_or_masked(params: Any) -> Any:
    """matrix_of each parameter that optax.partition left to Muon."""
    return jax.tree_util.tree_map_with_path(lambda path, array: array if _is_masked(array) else matrix_of(path, array), params, is_leaf=_is_masked)


def state_specs(opt_state: Any, params: Any, param_specs: Any, *, replicated: Any) -> Any:
    """Shardings of the optimizer's state: each moment as its parameter, all else ``replicated``.

    ``opt_state`` and ``params``: arrays or jax.eval_shape's; ``param_specs``: PartitionSpecs or shardings, shaped as
    params. A leaf of the state belongs to the parameter whose path ends its own and whose shape it shares.
    """
    leaves, treedef = cast("Any", jax.tree_util.tree_flatten_with_path(params))
    specs = {tuple(_names(path)): (array.shape, spec) for (path, array), spec in zip(leaves, treedef.flatten_up_to(param_specs), strict=True)}

    def find(path: Any, leaf: Any) -> Any:
        names = tuple(_names(path))
        matches = (specs.get(names[start:]) for start in range(len(names)))
        return next((spec for shape, spec in filter(None, matches) if shape == leaf.shape), replicated)

    return jax.tree_util.tree_map_with_path(find, opt_state)
