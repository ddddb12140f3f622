"""A machine of the catalog and the coefficients measured on its kind, as the numbers that the formulas take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from math import inf, prod

from colossus.catalog.measured import Coefficients, gemm_curve, usual_rates
from colossus.catalog.nodes import most_cubic
from colossus.estimate.footprint import Holding
from colossus.estimate.profile import Profile
from colossus.estimate.shape import Device
from colossus.spec.machine import Figure, Machine, ScaleUp

# Which peak of a chip a precision runs at, where no curve was measured.
_PEAK_OF = {"mxfp8": "float8", "nvfp4": "float4", "mxfp4": "float4"}


def device_of(machine: Machine, chip: str, precision: str, num_chips: int | None = None) -> Device:
    """``chip``: its catalog name, under which curves are filed. ``num_chips``: those of the machine that are used; fewer than a torus
    has are a smaller torus, the most cubic one."""
    narrow = _curve(machine, chip, precision)
    wide = _curve(machine, chip, "bfloat16") if is_low_precision(precision) else narrow
    node, rates = machine.node, usual_rates()
    up, out = machine.scale_up, machine.scale_out
    bandwidth = node.chip.memory_bandwidth_bytes_per_s
    memory = node.chip.memory_bytes
    reached = rates["torus_fraction" if up and up.torus_dims else "scale_up_fraction"]
    up_rate = reached * up.bandwidth_bytes_per_s_per_chip.value if up else 0.0
    out_rate = rates["scale_out_fraction"] * out.bandwidth_bytes_per_s_per_chip.value if out else up_rate
    up_rate = up_rate or out_rate  # no fabric: a domain of one, whose links are the network's
    return Device(
        gemm_flop_per_s=narrow[0],
        m_half=narrow[1],
        n_half=narrow[2],
        k_half=narrow[3],
        attention_flop_per_s=wide[0],
        memory_bytes_per_s=rates["memory_fraction"] * (bandwidth.value if bandwidth else 0.0),
        memory_bytes=memory.value if memory else node.memory_bytes / node.num_chips,
        domain_chips=float(up.num_chips if up else 1 if out else machine.num_chips),
        scale_up_bytes_per_s=up_rate,
        scale_up_latency_s=up.latency_s.value if up else 0.0,
        scale_out_bytes_per_s=out_rate,
        scale_out_latency_s=out.latency_s.value if out else 0.0,
        host_bytes_per_s=rates["host_link_fraction"] * node.host_bytes_per_s_per_chip.value if node.host_bytes_per_s_per_chip else inf,
        host_memory_bytes_per_s=rates["host_memory_bytes_per_s_per_chip"],
        host_memory_bytes=node.memory_bytes / node.num_chips,
        pod_chips=float(out.pod_chips or inf) if out else inf,
        oversubscription=out.oversubscription if out else 1.0,
        **_torus(up, num_chips),
    )


def _torus(up: ScaleUp | None, num_chips: int | None) -> dict[str, float]:
    """Dims of the torus that the chips in use form; those of the whole domain where they fill it."""
    if up is None or up.torus_dims is None:
        return {}
    whole, around = up.torus_dims, up.num_wraparound_chips or 1
    used = prod(whole) if num_chips is None else min(num_chips, prod(whole))
    dims = whole if used == prod(whole) else most_cubic(used, len(whole), around)
    names = ("torus_x", "torus_y", "torus_z")
    return {"num_torus_dims": float(len(dims)), "num_wraparound_chips": float(around)} | dict(zip(names, map(float, dims), strict=False))


def profile_of(coefficients: Coefficients, *, chip: str, precision: str, program: str, flash_attention: bool = True) -> Profile:
    """``flash_attention``: without it the matrix of scores passes through memory."""
    values = {field.name: coefficients.get(field.name, chip=chip, precision=precision, program=program) for field in fields(Profile)}
    return Profile(**values | ({"score_passes": 0.0} if flash_attention else {}))


def holding_of(coefficients: Coefficients, *, chip: str, precision: str, program: str) -> Holding:
    return Holding(**{field.name: coefficients.get(field.name, chip=chip, precision=precision, program=program) for field in fields(Holding)})


def value_bytes(precision: str) -> float:
    """Of what is computed with: 16 bits beside GEMM inputs of 8 or fewer."""
    return 4.0 if precision in ("float32", "tensorfloat32") else 2.0


def is_low_precision(precision: str) -> bool:
    """Whether GEMM inputs are cast to 8 bits or fewer."""
    return precision not in ("bfloat16", "float16", "float32", "tensorfloat32")


def _curve(machine: Machine, chip: str, precision: str) -> tuple[float, float, float, float]:
    found = gemm_curve(chip, precision)
    if found is not None:
        return found["flop_per_s"], found["m_half"], found["n_half"], found["k_half"]
    peaks = machine.node.chip.peak_flop_per_s
    name = next(name for name in (precision, _PEAK_OF.get(precision), "bfloat16", "float16", *peaks) if name in peaks)
    halves = usual_rates()["halves"]["float8" if is_low_precision(name) else "bfloat16"]
    return _best_fraction(chip, peaks, name) * peaks[name].value, *halves


def _best_fraction(chip: str, peaks: Mapping[str, Figure], precision: str) -> float:
    """Of a peak, what products measured alone reach: of the very chip, else in its 16-bit precision, else as usual."""
    for name in (precision, "bfloat16"):
        best = usual_rates()["best_flop_per_s"].get(f"{chip} {name}")
        if best is not None:
            return best / peaks[name].value
    return usual_rates()["peak_fraction"]
