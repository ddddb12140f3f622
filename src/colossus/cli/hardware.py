"""The machine this runs on: described anew each time, measured once and remembered."""

from __future__ import annotations

import json
import os
import tempfile
from datetime import date
from pathlib import Path

from colossus.cli.common import talk
from colossus.spec.errors import ColossusError, RunError
from colossus.spec.kernels import Kernels
from colossus.spec.machine import Figure, Machine
from colossus.spec.plan import OwnFit
from colossus.spec.run import write_atomic
from colossus.spec.units import format_quantity

# How long the kernels are timed, all gangs together, beside starting and compiling.
_KERNELS_S = 24.0


def known_machine(runs: Path, *, measure: bool = True) -> Machine:
    """This machine with what was measured before; measures when nothing fitting was."""
    from colossus.engine.machine import describe_machine

    fresh = describe_machine(measure=False)
    warn_of_idle(fresh)
    kept = _remembered(runs)
    if kept is not None and _same(kept, fresh):
        return kept
    if not measure:
        return fresh
    return describe(runs, measure=True)


def describe(runs: Path, *, measure: bool) -> Machine:
    """Describes, and when measured remembers, beside the trainer's kernels as they were measured before."""
    from colossus.engine.machine import describe_machine

    if not measure:
        return describe_machine(measure=False)
    _check_writable(runs)
    talk().print("measuring this machine once, a few seconds ...")
    machine = describe_machine(measure=True)
    kept = _remembered(runs)
    if kept is not None and _same(kept, machine):
        machine = machine.model_copy(update={"kernels": kept.kernels})
    write_atomic(_file(runs), machine.to_json())
    return machine


def measure_kernels(runs: Path) -> Machine:
    """``describe``, and the trainer's own kernels timed in gangs of one worker and of one a core; remembered."""
    from colossus.engine.kernels import time_kernels
    from colossus.engine.process import worker_environment
    from colossus.estimate.kernel_fit import rates_of

    machine = describe(runs, measure=True)
    if machine.node.chip.kind != "cpu":
        talk().print(f"kernels of {machine.node.chip.name} are not timed here: plans take its figures from the catalog")
        return machine
    sizes = sorted({1, machine.node.num_cores})
    words = lambda number: talk().print(f"timing the trainer's kernels with {number} worker{'s' if number > 1 else ''}, about half a minute ...")
    probes = time_kernels(sizes, duration_s=_KERNELS_S, environment=worker_environment("cpu"), on_gang=words)
    kernels = Kernels(
        date=date.today().isoformat(),
        source="colossus machine --measure",
        gangs=[rates_of(probe) for probe in probes],
        fused=all(probe.fused for probe in probes),
    )
    machine = machine.model_copy(update={"kernels": kernels})
    write_atomic(_file(runs), machine.to_json())
    return machine


def known_fit(runs: Path) -> OwnFit | None:
    """What ``colossus calibrate --runs`` found for this machine; None where it never ran or its file is damaged."""
    try:
        return OwnFit.from_data(json.loads(own_file(runs).read_text()), origin=str(own_file(runs)))
    except (OSError, ValueError, ColossusError):
        return None


def own_file(runs: Path) -> Path:
    return runs / ".cache" / "own_runs.json"


def warn_of_idle(machine: Machine) -> None:
    """Says it when the CPU is used only because JAX lacks the plugin of an accelerator that is here."""
    from colossus.engine.machine import unusable_accelerators

    asked_for_cpu = os.environ.get("JAX_PLATFORMS", "").split(",")[0] == "cpu"
    found = None if machine.node.chip.kind != "cpu" or asked_for_cpu else unusable_accelerators()
    if found is not None:
        talk().print(f"warning: {found}; until then the CPU is used")


def machine_rows(machine: Machine) -> list[tuple[str, str, str]]:
    """(what, value, how it is known) for people."""
    node, chip = machine.node, machine.node.chip
    rows = [
        ("machine", machine.name, ""),
        ("cores", str(node.num_cores), ""),
        ("memory", format_quantity(node.memory_bytes, "B", binary=True), ""),
        ("chip", chip.name, chip.kind),
    ]
    if chip.kind != "cpu":
        rows.append(("chips", str(node.num_chips), ""))
    rows += [(f"GEMM peak {dtype}", format_quantity(peak.value, "FLOP/s"), _known(peak)) for dtype, peak in chip.peak_flop_per_s.items()]
    for name, figure, unit in (("memory bandwidth", chip.memory_bandwidth_bytes_per_s, "B/s"), ("chip memory", chip.memory_bytes, "B")):
        if figure is not None:
            rows.append((name, format_quantity(figure.value, unit), _known(figure)))
    return rows + _kernel_rows(machine)


def _kernel_rows(machine: Machine) -> list[tuple[str, str, str]]:
    """Of each gang that was measured: what all its workers reach together in large products, and in messages."""
    if machine.kernels is None:
        return [("trainer's kernels", "not measured", "colossus machine --measure")] if machine.node.chip.kind == "cpu" else []
    rows = []
    for gang in machine.kernels.gangs:
        name = f"{gang.num_workers} worker{'s' if gang.num_workers > 1 else ''}"
        reduce = f", sum of gradients {format_quantity(gang.reduce_bytes_per_s, 'B/s')}" if gang.reduce_bytes_per_s else ""
        rates = f"products {format_quantity(gang.num_workers * gang.gemm_flop_per_s, 'FLOP/s')}{reduce}"
        rows.append((f"kernels, {name}", rates, f"measured {machine.kernels.date}; curves off by {gang.residual_fraction:.1%} at the median"))
    return rows


def _known(figure: Figure) -> str:
    return f"{figure.how.value}: {figure.source}"


def _file(runs: Path) -> Path:
    return runs / ".cache" / "machine.json"


def _check_writable(runs: Path) -> None:
    """Raises RunError where the runs folder cannot be written, before anything takes time."""
    try:
        _file(runs).parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=_file(runs).parent).close()
    except OSError as error:
        hint = "make it a folder that can be written, or give another place with --runs DIR"
        raise RunError(f"the folder of runs {runs} cannot be written: {error.strerror}", hint=hint) from None


def _remembered(runs: Path) -> Machine | None:
    try:
        return Machine.from_data(json.loads(_file(runs).read_text()), origin=str(_file(runs)))
    except (OSError, ValueError, ColossusError):
        return None


def _same(kept: Machine, fresh: Machine) -> bool:
    """Whether a remembered measurement is of this machine as it is now, the limits of its control group included."""
    return kept.identity == fresh.identity
