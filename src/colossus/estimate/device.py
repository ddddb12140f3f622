"""A machine of the catalog and the coefficients measured on its kind, as the numbers that the formulas take."""

from __future__ import annotations

from dataclasses import fields

from colossus.catalog.measured import Coefficients, gemm_curve, usual_rates
from colossus.estimate.footprint import Holding
from colossus.estimate.profile import Profile
from colossus.estimate.shape import Device
from colossus.spec.machine import Machine

# Which peak of a chip a precision runs at, where no curve was measured.
_PEAK_OF = {"mxfp8": "float8", "nvfp4": "float4", "mxfp4": "float4"}


def device_of(machine: Machine, chip: str, precision: str) -> Device:
    """``chip``: its catalog name, under which curves are filed."""
    wide, narrow = _curve(machine, chip, "bfloat16"), _curve(machine, chip, precision)
    node, rates = machine.node, usual_rates()
    up, out = machine.scale_up, machine.scale_out
    bandwidth = node.chip.memory_bandwidth_bytes_per_s
    memory = node.chip.memory_bytes
    up_rate = rates["scale_up_fraction"] * up.bandwidth_bytes_per_s_per_chip.value if up else 0.0
    out_rate = rates["scale_out_fraction"] * out.bandwidth_bytes_per_s_per_chip.value if out else up_rate
    return Device(
        gemm_flop_per_s=narrow[0],
        m_half=narrow[1],
        n_half=narrow[2],
        k_half=narrow[3],
        attention_flop_per_s=wide[0],
        memory_bytes_per_s=rates["memory_fraction"] * (bandwidth.value if bandwidth else 0.0),
        memory_bytes=memory.value if memory else float(machine.memory_bytes_per_device),
        domain_chips=float(up.num_chips if up else machine.num_chips),
        scale_up_bytes_per_s=up_rate,
        scale_up_latency_s=up.latency_s.value if up else 0.0,
        scale_out_bytes_per_s=out_rate,
        scale_out_latency_s=out.latency_s.value if out else 0.0,
    )


def profile_of(coefficients: Coefficients, *, chip: str, precision: str, program: str, flash_attention: bool = True) -> Profile:
    """``flash_attention``: without it the matrix of scores passes through memory."""
    values = {field.name: coefficients.get(field.name, chip=chip, precision=precision, program=program) for field in fields(Profile)}
    return Profile(**values | ({"score_passes": 0.0} if flash_attention else {}))


def holding_of(coefficients: Coefficients, *, chip: str, precision: str, program: str) -> Holding:
    return Holding(**{field.name: coefficients.get(field.name, chip=chip, precision=precision, program=program) for field in fields(Holding)})


def is_low_precision(precision: str) -> bool:
    """Whether GEMM inputs are cast to 8 bits or fewer."""
    return precision not in ("bfloat16", "float16", "float32", "tensorfloat32")


def _curve(machine: Machine, chip: str, precision: str) -> tuple[float, float, float, float]:
    found = gemm_curve(chip, precision)
    if found is not None:
        return found["flop_per_s"], found["m_half"], found["n_half"], found["k_half"]
    peaks = machine.node.chip.peak_flop_per_s
    name = next(name for name in (precision, _PEAK_OF.get(precision), "bfloat16", "float16", *peaks) if name in peaks)
    peak, halves = peaks[name], usual_rates()["halves"]["float8" if is_low_precision(name) else "bfloat16"]
    return usual_rates()["peak_fraction"] * peak.value, *halves
