"""How long a step of a real run will take on this machine's accelerators, from the catalog's figures of their kind."""

from __future__ import annotations

from dataclasses import asdict

from colossus.catalog.chips import chip_names, load_chip_entry
from colossus.catalog.machines import load_machine
from colossus.catalog.measured import load_coefficients
from colossus.estimate.device import device_of, is_low_precision, profile_of
from colossus.estimate.shape import Cut, Shape
from colossus.estimate.step import step_parts
from colossus.spec.job import TrainJob
from colossus.spec.layout import Layout, Remat
from colossus.spec.machine import How, Machine
from colossus.spec.model import ModelCard
from colossus.spec.plan import StepEstimate

_PROGRAM = "colossus"


def chip_step(job: TrainJob, card: ModelCard, machine: Machine, layout: Layout) -> StepEstimate | None:
    """None where the catalog lacks the chip."""
    chip = next((name for name in chip_names() if load_chip_entry(name).name == machine.node.chip.name), None)
    if chip is None or job.batch.sequence_tokens is None:
        return None
    coefficients, precision = load_coefficients(), job.precision.value
    profile = profile_of(coefficients, chip=chip, precision=precision, program=_PROGRAM)
    usual = load_machine(load_chip_entry(chip).node)  # how the chips of a node are joined
    parts = step_parts(Shape.of(card), _cut(job, layout, precision), device_of(usual, chip, precision), profile)
    parts_s = {name.removesuffix("_s"): float(seconds) for name, seconds in asdict(parts).items() if float(seconds) > 0}
    step_s = sum(parts_s.values())
    lower, upper = coefficients.interval(_PROGRAM, chip=chip, precision=precision)
    source = f"the catalog's figures of {chip}, and programs like this one elsewhere"
    return StepEstimate(step_s=step_s, lower_step_s=step_s * lower, upper_step_s=step_s * upper, parts_s=parts_s, how=How.DATASHEET, source=source)


def _cut(job: TrainJob, layout: Layout, precision: str) -> Cut:
    """The trainer's layout in the terms of the closed forms: fsdp shards weights in each of dp's groups (HSDP)."""
    assert job.batch.sequence_tokens is not None
    return Cut(
        tp=float(layout.tp),
        cp=1.0,
        pp=1.0,
        ep=1.0,
        dp=float(layout.num_data_shards),
        virtual_stages=1.0,
        microbatch_sequences=job.batch.num_sequences / layout.num_data_shards / layout.num_microbatches,
        num_microbatches=float(layout.num_microbatches),
        sequence_tokens=float(job.batch.sequence_tokens),
        recompute=float(layout.remat is Remat.FULL),
        selective=float(layout.remat is Remat.SELECTIVE),
        weights_sharded=float(layout.fsdp > 1),
        optimizer_sharded=float(layout.fsdp > 1),
        replica_groups=float(layout.dp) if layout.fsdp > 1 else 1.0,
        is_low_precision=float(is_low_precision(precision)),
    )
