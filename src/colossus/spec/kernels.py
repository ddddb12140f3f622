"""What the trainer's own kernels were measured to do on a machine: the order to measure, raw timings, and the rates fitted to them."""

from __future__ import annotations

from statistics import median
from typing import Annotated, Literal

from pydantic import Field

from colossus.spec.base import Spec
from colossus.spec.model import ModelCard

Kind = Literal["product", "attention", "head", "elementwise", "slices", "update", "reduce", "gather", "step", "compile"]


class Timing(Spec):
    """Seconds of each call of a kernel, one a round, all workers calling it at once.

    ``sizes`` by kind. product: (m, n, k), in ``variant`` forward, input or weight (gradients). attention, forward and backward: (sequences,
    tokens, heads, head_dim). head: (tokens, model_dim, vocabulary). elementwise: (tokens, model_dim, ffn_dim), of one layer. slices and
    update: (parameters,). reduce and gather: (bytes,). step: (sequences, tokens), of ``variant`` "dp" or "fsdp".
    compile: (layers,), once, of that step's program.
    """

    kind: Kind
    sizes: tuple[int, ...]
    variant: str = ""
    repeats_s: Annotated[list[float], Field(min_length=1)]

    @property
    def median_s(self) -> float:
        return median(self.repeats_s)

    def of_round(self, number: int) -> Timing:
        """This timing as if there had been one round, the ``number``-th."""
        return self.model_copy(update={"repeats_s": [self.repeats_s[number]]})


class ProbeOrder(Spec):
    """What one measuring worker is told. ``duration_s``: about how long to repeat."""

    rank: int
    num_workers: int
    address: str | None = None
    cores: list[int] = Field(default_factory=list)
    duration_s: float


class Probe(Spec):
    """What the workers of one gang measured. ``step_card``: the decoder whose whole steps were timed. ``fused``: with the compiled kernels."""

    num_workers: int
    num_rounds: int
    fused: bool
    step_card: ModelCard
    timings: list[Timing]


class GangRates(Spec):
    """What each of ``num_workers`` workers reaches that share the cores evenly and all work at once, in float32.

    A product (m, n, k) takes ``2 m n k / gemm_flop_per_s (1 + m_half/m + n_half/n + k_half/k)``; attention over T tokens with head_dim D
    ``flop / attention_flop_per_s (1 + T_half/T + D_half/D)``; the head with model_dim D ``flop / head_flop_per_s (1 + D_half/D)``. A message
    takes its bytes over the rate, and the latency. ``rest_fraction``: of the time of all parts, what a whole step of the probe took beside them (their noise), or saved. ``compile_s``: compiling that step.
    ``lower_fraction`` and ``upper_fraction``: whole steps over their median, 5th and 95th percentile. ``residual_fraction``: median error of the fits.
    """

    num_workers: Annotated[int, Field(ge=1)]
    gemm_flop_per_s: float
    gemm_halves: tuple[float, float, float]
    attention_flop_per_s: float
    attention_halves: tuple[float, float]
    head_flop_per_s: float
    head_halves: tuple[float]
    elementwise_bytes_per_s: float
    slices_bytes_per_s: float
    update_bytes_per_s: float
    reduce_bytes_per_s: float | None = None
    reduce_latency_s: float = 0.0
    gather_bytes_per_s: float | None = None
    gather_latency_s: float = 0.0
    rest_fraction: float = 0.0
    compile_s: float | None = None
    lower_fraction: float
    upper_fraction: float
    residual_fraction: float


class Kernels(Spec):
    """The rates of every gang that was measured, when, and how.

    ``fused``: compiled kernels ran, which keep no matrix of scores.
    """

    date: str
    source: str
    gangs: Annotated[list[GangRates], Field(min_length=1)]
    fused: bool = False
