"""Kernels that plain JAX does too slowly on a CPU: C++ behind XLA's FFI, compiled on first use, optional.

Where they cannot be built (no compiler, `COLOSSUS_KERNELS=off`), and on every other platform, the functions here are
plain JAX with the same results.
"""

from colossus.nn.kernels.elementwise import rms_norm, rope, swiglu
from colossus.nn.kernels.ffi import in_use, unavailable
from colossus.nn.kernels.flash import attention
from colossus.nn.kernels.product import linear
from colossus.nn.kernels.reference import attention_reference
from colossus.nn.kernels.xent import cross_entropy, cross_entropy_and_gradients

__all__ = [
    "attention",
    "attention_reference",
    "cross_entropy",
    "cross_entropy_and_gradients",
    "in_use",
    "linear",
    "rms_norm",
    "rope",
    "swiglu",
    "unavailable",
]
