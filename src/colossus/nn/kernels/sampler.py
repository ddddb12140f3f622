"""The largest logit, a drawn token and log-probabilities, compiled on CPU: XLA's own sorts and reductions take milliseconds there.

The plain forms stand in ``nn.sampling``, which calls these. Logits float32 (O,V).
"""

from collections.abc import Callable, Sequence

import jax
from jax import Array

from colossus.nn.kernels import ffi

Shapes = Sequence[jax.ShapeDtypeStruct]


def choose(name: str, plain: Callable[..., Array], logits_ov: Array, *controls: Array) -> Array:
    """One int32 token a row: target `name` where kernels are usable, else `plain`."""
    if not ffi.usable(logits_ov):
        return plain(logits_ov, *controls)
    tokens = [jax.ShapeDtypeStruct(logits_ov.shape[:1], "int32")]
    return ffi.on_cpu(lambda *args: _call(name, tokens, *args)[0], plain, logits_ov, *controls)


def logprobs(plain: Callable[..., tuple[Array, ...]], logits_ov: Array, tokens_o: Array, num_top: int) -> tuple[Array, ...]:
    """Log-probability (O) and rank (O) of `tokens_o`, then tokens and log-probabilities of the likeliest, (O,num_top) each."""
    if not ffi.usable(logits_ov) or num_top > logits_ov.shape[1]:
        return plain(logits_ov, tokens_o)
    one, top = tokens_o.shape, (*tokens_o.shape, num_top)
    results = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in ((one, "float32"), (one, "int32"), (top, "int32"), (top, "float32"))]
    return ffi.on_cpu(lambda *args: tuple(_call("logprobs", results, *args)), plain, logits_ov, tokens_o)


def _call(name: str, results: Shapes, *arrays: Array) -> Sequence[Array]:
    return jax.ffi.ffi_call(f"colossus_{name}", list(results))(*arrays)
