"""Products with a layer's weights, and SwiGLU between them."""

from __future__ import annotations

from math import prod

import jax

from colossus.nn import kernels, sharding
from colossus.nn.kernels.ffi import usable
from colossus.nn.quantized import Quantized, product

ROWS = ("batch", "sequence", None)


def linear(x: jax.Array, weight: jax.Array | Quantized, num_summed: int = 1) -> jax.Array:
    """``x weight``, summed over the last dims of x and the first of the weight: (B, T, *I), (*I, *O) -> (B, T, *O)."""
    if isinstance(weight, Quantized):
        return product(x, weight, num_summed)
    inputs, outputs = weight.shape[:num_summed], weight.shape[num_summed:]
    if not usable(x, weight) or sharding.axis_size("tp") > 1:
        summed = tuple(range(num_summed))
        return jax.lax.dot_general(x, weight, ((tuple(2 + dim for dim in summed), summed), ((), ())))
    flat = x.reshape(*x.shape[:2], prod(inputs))
    run = sharding.per_device(kernels.linear, (ROWS, (None, None)), sharding.spec_of(ROWS, flat.shape))
    return run(flat, weight.reshape(prod(inputs), prod(outputs))).reshape(*x.shape[:2], *outputs)


def swiglu(gate_btf: jax.Array, up_btf: jax.Array) -> jax.Array:
    """``silu(gate) * up`` (Shazeer 2020), its gradients cut over tp as it is."""
    axes = ("batch", "sequence", "ffn")
    gate_btf, up_btf = sharding.constrain(gate_btf, *axes), sharding.constrain(up_btf, *axes)
    if not usable(gate_btf, up_btf):
        return sharding.constrain(jax.nn.silu(gate_btf) * up_btf, *axes)
    return sharding.per_device(kernels.swiglu, (axes, axes), sharding.spec_of(axes, gate_btf.shape))(gate_btf, up_btf)
