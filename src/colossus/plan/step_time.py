"""How long a step of a real run will take on the machine at hand, in parts, and how well that is known.

On processors from the trainer's kernels as they were measured there (``colossus machine --measure``); where they were not, from the
machine's GEMM peak and memory bandwidth and what those kernels usually reach of them. On accelerators from the catalog's chip. What
runs on this machine took over their plans (``colossus calibrate --runs``) is laid over either.
"""

from __future__ import annotations

import math

from colossus.catalog.local import usual_kernels
from colossus.estimate.local import Work, local_step, scaled
from colossus.spec.job import Precision, TrainJob
from colossus.spec.kernels import GangRates
from colossus.spec.layout import Layout
from colossus.spec.machine import How, Machine
from colossus.spec.model import ModelCard
from colossus.spec.plan import OwnFit, StepEstimate


def step_estimate(job: TrainJob, card: ModelCard, machine: Machine, layout: Layout, num_workers: int, own: OwnFit | None = None) -> StepEstimate | None:
    """None where nothing is known: a processor that was never measured, a chip that the catalog lacks, bfloat16 on a processor."""
    if machine.node.chip.kind == "cpu":
        found = _on_processors(job, card, machine, layout, num_workers)
    else:
        from colossus.plan.chip_time import chip_step  # brings NumPy

        found = chip_step(job, card, machine, layout)
    return calibrated(found, own) if found is not None and own is not None and belongs(own, machine) else found


def belongs(own: OwnFit, machine: Machine) -> bool:
    """Whether factors were fitted to plans of this machine that rest on what plans rest on now."""
    return own.machine == machine.identity and own.basis == basis_of(machine)


def basis_of(machine: Machine) -> str:
    """A digest of the figures behind a plan's step time: the kernels', or else the chip's."""
    return (machine.kernels or machine.node.chip).digest()


def calibrated(step: StepEstimate, own: OwnFit) -> StepEstimate:
    """The estimate with the factors that this machine's own runs gave."""
    parts_s = scaled(step.parts_s, own.factors)
    step_s = sum(parts_s.values())
    runs = f"{own.num_runs} run{'s' if own.num_runs > 1 else ''}"
    source = f"{step.source}; calibrated on {runs} of this machine, {own.date}"
    return StepEstimate(
        step_s=step_s,
        lower_step_s=step_s * own.lower_fraction,
        upper_step_s=step_s * own.upper_fraction,
        parts_s=parts_s,
        how=How.MEASURED,
        source=source,
    )


def _on_processors(job: TrainJob, card: ModelCard, machine: Machine, layout: Layout, num_workers: int) -> StepEstimate | None:
    if job.precision is not Precision.FLOAT32 or job.batch.sequence_tokens is None:
        return None
    known = _gang(machine, num_workers) or _usual(machine, num_workers)
    if known is None:
        return None
    rates, how, source = known
    parts_s = local_step(Work.of(card, layout, job.batch.num_sequences, job.batch.sequence_tokens), rates)
    step_s = sum(parts_s.values())
    off = rates.residual_fraction + abs(rates.rest_fraction)  # how far a whole step lay from its parts
    ends = {"lower_step_s": step_s * max(0.0, rates.lower_fraction - off), "upper_step_s": step_s * (rates.upper_fraction + off)}
    return StepEstimate(step_s=step_s, **ends, parts_s=parts_s, how=how, source=source)


def _gang(machine: Machine, num_workers: int) -> tuple[GangRates, How, str] | None:
    """Rates of a worker of a gang of this size, from the measured gang nearest to it; a worker's rates go with its share of the cores."""
    if machine.kernels is None:
        return None
    nearest = min(machine.kernels.gangs, key=lambda gang: abs(math.log(gang.num_workers / num_workers)))
    source = f"the trainer's kernels, measured on this machine {machine.kernels.date}"
    if nearest.num_workers == num_workers:
        return nearest, How.MEASURED, source
    return _resized(nearest, num_workers), How.ESTIMATED, f"{source} with {nearest.num_workers} worker{'s' if nearest.num_workers > 1 else ''}"


def _resized(rates: GangRates, num_workers: int) -> GangRates:
    """The same cores among another number of workers: each gets its share of what all reached together."""
    factor = rates.num_workers / num_workers
    names = ("gemm_flop_per_s", "attention_flop_per_s", "head_flop_per_s", "elementwise_bytes_per_s", "slices_bytes_per_s", "update_bytes_per_s")
    return rates.model_copy(update={name: getattr(rates, name) * factor for name in names} | {"num_workers": num_workers})


def _usual(machine: Machine, num_workers: int) -> tuple[GangRates, How, str] | None:
    """From a GEMM peak and a memory bandwidth alone, by the fractions of them that the kernels reach elsewhere."""
    peak, bandwidth = machine.node.chip.peak_flop_per_s.get("float32"), machine.node.chip.memory_bandwidth_bytes_per_s
    if peak is None or bandwidth is None:
        return None
    usual = usual_kernels()
    flop_per_s, bytes_per_s = peak.value / num_workers, bandwidth.value / num_workers
    rates = GangRates(
        num_workers=num_workers,
        gemm_flop_per_s=usual["gemm_fraction"] * flop_per_s,
        gemm_halves=tuple(usual["gemm_halves"]),
        attention_flop_per_s=usual["attention_fraction"] * flop_per_s,
        attention_halves=tuple(usual["attention_halves"]),
        head_flop_per_s=usual["head_fraction"] * flop_per_s,
        head_halves=(usual["head_half"],),
        elementwise_bytes_per_s=usual["elementwise_fraction"] * bytes_per_s,
        slices_bytes_per_s=usual["slices_fraction"] * bytes_per_s,
        update_bytes_per_s=usual["update_fraction"] * bytes_per_s,
        reduce_bytes_per_s=usual["reduce_fraction"] * bytes_per_s,
        reduce_latency_s=usual["message_latency_s"],
        gather_bytes_per_s=usual["gather_fraction"] * bytes_per_s,
        gather_latency_s=usual["message_latency_s"],
        rest_fraction=usual["rest_fraction"],
        lower_fraction=usual["lower_fraction"],
        upper_fraction=usual["upper_fraction"],
        residual_fraction=0.0,
    )
    return rates, How.ESTIMATED, f"GEMM peak and memory bandwidth of this machine ({peak.how.value}), and what kernels usually reach of them"
