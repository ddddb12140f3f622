"""Calls into the compiled library: registration, and the choice between it and plain JAX."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import Array

from colossus.nn import target
from colossus.nn.kernels.build import Unavailable, library

TARGETS = tuple(
    f"colossus_{name}"
    for name in (
        "attention_forward", "attention_backward", "matmul", "cross_entropy", "rms_norm", "rms_norm_backward", "swiglu",
        "swiglu_backward", "rope", "paged_decoder", "panel_product", "argmax", "sample", "logprobs",
    )
)  # fmt: skip


@functools.cache
def unavailable() -> str | None:
    """None when the kernels are compiled and registered, else why not."""
    loaded = library()
    if isinstance(loaded, Unavailable):
        return loaded.reason
    for name in TARGETS:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(loaded, name)), platform="cpu")
    return None


def in_use() -> bool:
    """Whether this process has registered the kernels, so that its compiled programs may call them."""
    return unavailable.cache_info().currsize > 0 and unavailable() is None


def usable(*arrays: Array) -> bool:
    """Whether kernels can take these arrays on the default backend: a CPU, float32, and a library."""
    in_float32 = all(x.dtype == "float32" and x.size > 0 for x in arrays)
    return in_float32 and target.platform() == "cpu" and unavailable() is None


def call(name: str, shapes: Sequence[tuple[int, ...]], *arrays: Array, **attributes: Any) -> tuple[Array, ...]:
    """Runs target `name` on float32 arrays; one float32 result per shape, varying over the mesh axes of the inputs."""
    results = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    outputs = jax.ffi.ffi_call(name, results, vmap_method="sequential")(*arrays, **attributes)
    return vary_alike(*outputs, like=arrays)


def on_cpu(kernel: Callable[..., Any], otherwise: Callable[..., Any], *arrays: Array) -> Any:
    """`kernel` where the program is lowered for CPU, `otherwise` where it is lowered for another platform."""
    return jax.lax.platform_dependent(*arrays, cpu=kernel, default=otherwise)


def vary_alike(*arrays: Array, like: Sequence[Array] = ()) -> tuple[Array, ...]:
    """The arrays, marked inside shard_map as varying over every mesh axis that one of them or of `like` varies over.

    Its transpose sums gradients over the axes that were added.
    """
    axes = frozenset[str]().union(*map(_varying, (*arrays, *like)))
    missing = [tuple(axes - _varying(x)) for x in arrays]
    return tuple(jax.lax.pcast(x, new, to="varying") if new else x for x, new in zip(arrays, missing, strict=True))


def _varying(x: Array) -> frozenset[str]:
    """Mesh axes, inside shard_map, along which x differs between devices."""
    aval = jax.typeof(x)
    return frozenset(aval.mat.varying if hasattr(aval, "mat") else aval.vma)
