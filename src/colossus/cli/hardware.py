"""The machine this runs on: described anew each time, measured once and remembered."""

from __future__ import annotations

import json
from pathlib import Path

from colossus.cli.common import talk
from colossus.spec.errors import ColossusError
from colossus.spec.machine import Figure, Machine
from colossus.spec.run import write_atomic
from colossus.spec.units import format_quantity


def known_machine(runs: Path, *, measure: bool = True) -> Machine:
    """This machine with what was measured before; measures when nothing fitting was."""
    from colossus.engine.machine import describe_machine

    fresh = describe_machine(measure=False)
    kept = _remembered(runs)
    if kept is not None and _same(kept, fresh):
        return kept
    if not measure:
        return fresh
    talk().print("measuring this machine once, a few seconds ...")
    return describe(runs, measure=True)


def describe(runs: Path, *, measure: bool) -> Machine:
    """Describes, and when measured remembers."""
    from colossus.engine.machine import describe_machine

    machine = describe_machine(measure=measure)
    if measure:
        _file(runs).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(_file(runs), machine.to_json())
    return machine


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
    return rows


def _known(figure: Figure) -> str:
    return f"{figure.how.value}: {figure.source}"


def _file(runs: Path) -> Path:
    return runs / ".cache" / "machine.json"


def _remembered(runs: Path) -> Machine | None:
    try:
        return Machine.from_data(json.loads(_file(runs).read_text()), origin=str(_file(runs)))
    except (OSError, ValueError, ColossusError):
        return None


def _same(kept: Machine, fresh: Machine) -> bool:
    """Whether a remembered measurement is of this machine as it is now."""
    identity = lambda machine: (machine.name, machine.node.chip.name, machine.node.num_cores, machine.node.num_chips)
    return identity(kept) == identity(fresh)
