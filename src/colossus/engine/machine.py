"""Describes the machine this process stands on, and measures it when asked. Never starts JAX."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path

import psutil

from colossus.catalog.chips import match_device_name
from colossus.engine.bench import measure_cores
from colossus.spec.machine import Chip, Figure, How, Machine, Node

# JAX's plugins, without which an accelerator cannot be used from here, and the extra that brings them.
_PLUGINS = {"gpu": ("jax_cuda13_plugin", "jax_cuda12_plugin"), "tpu": ("libtpu",)}
_EXTRAS = {"gpu": "cuda", "tpu": "tpu"}
_TPU_NAMES = {"v5litepod": "TPU v5e", "v5p": "TPU v5p", "v6e": "TPU v6e"}


def describe_machine(measure: bool = False, seconds: float = 4.0) -> Machine:
    """This machine as one node: its accelerators where JAX can use them, else its processor, each core a device.

    ``measure``: also the processor's GEMM rate and memory bandwidth, within about ``seconds``.
    """
    cores, memory_bytes = usable_cores(), usable_memory_bytes()
    chip, num_chips = usable_accelerators() or (_processor(), 1)
    if chip.kind == "cpu" and measure:
        chip = _measured(chip, cores, memory_bytes, seconds)
    node = Node(chip=chip, num_chips=num_chips, num_cores=len(cores), memory_bytes=memory_bytes)
    return Machine(name=platform.node() or "localhost", node=node)


def usable_accelerators() -> tuple[Chip, int] | None:
    """The accelerators that JAX would find here, as catalog chips, and how many; None where it would use the CPU."""
    wanted = os.environ.get("JAX_PLATFORMS", "").split(",")[0]
    found = None if wanted == "cpu" else _found_accelerators()
    return found if found is not None and _has_plugin(found[0].kind) else None


def unusable_accelerators() -> str | None:
    """A sentence about accelerators that are here but that JAX lacks the plugin for, or None."""
    found = _found_accelerators()
    if found is None or _has_plugin(found[0].kind):
        return None
    chip, count = found
    return f"{count} x {chip.name} found but not usable: pip install 'colossus[{_EXTRAS[chip.kind]}]'"


def usable_cores() -> list[int]:
    """The cores this process may run on, as many of them as its control group grants time for."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    quota = _least(_cpu_quota(folder) for folder in _control_groups("cpu"))
    return cores if quota is None else cores[: max(1, int(quota))]


def usable_memory_bytes() -> int:
    """The machine's memory, or its control group's limit where that is lower."""
    limits = (_number(folder / name) for folder in _control_groups("memory") for name in ("memory.max", "memory.limit_in_bytes"))
    total = int(psutil.virtual_memory().total)
    limit = _least(limits)
    return total if limit is None else min(total, int(limit))


def _found_accelerators() -> tuple[Chip, int] | None:
    return _nvidia_gpus(os.environ) or _tpus(os.environ, Path("/dev"))


def _nvidia_gpus(environment: Mapping[str, str]) -> tuple[Chip, int] | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    rows = [[field.strip() for field in line.split(",")] for line in answer.splitlines() if line.count(",") == 3]
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        wanted = [name.strip() for name in visible.split(",") if name.strip()]
        rows = [row for row in rows if row[0] in wanted or any(row[1].startswith(name) for name in wanted)]
    if not rows:
        return None
    name, mebibytes = rows[0][2:]
    memory = Figure(value=float(mebibytes) * 2**20, how=How.MEASURED, source="nvidia-smi", date=_today()) if mebibytes.isdigit() else None
    known = match_device_name(name)
    chip = Chip(name=name, kind="gpu", memory_bytes=memory) if known is None else known.model_copy(update={"memory_bytes": memory or known.memory_bytes})
    return chip, sum(row[2] == name for row in rows)


def _tpus(environment: Mapping[str, str], devices: Path) -> tuple[Chip, int] | None:
    """Cloud TPU machines name their kind in the environment and show one device file per chip."""
    kind = environment.get("TPU_ACCELERATOR_TYPE", "").split("-")[0]
    count = len(list(devices.glob("accel[0-9]*"))) or len(list(devices.glob("vfio/[0-9]*")))
    if not kind or not count:
        return None
    name = _TPU_NAMES.get(kind, f"TPU {kind}")
    return match_device_name(name) or Chip(name=name, kind="tpu"), count


def _has_plugin(kind: str) -> bool:
    return any(importlib.util.find_spec(name) is not None for name in _PLUGINS[kind])


def _processor() -> Chip:
    """All cores of the machine as one chip."""
    return Chip(name=_processor_name(), kind="cpu")


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine() or "processor"


def _measured(chip: Chip, cores: list[int], memory_bytes: int, seconds: float) -> Chip:
    measured = measure_cores(cores, memory_bytes, seconds)
    peak = Figure(value=measured.gemm_flop_per_s, how=How.MEASURED, source=measured.gemm_source, date=_today())
    bandwidth = Figure(value=measured.triad_bytes_per_s, how=How.MEASURED, source=measured.triad_source, date=_today())
    return chip.model_copy(update={"peak_flop_per_s": {"float32": peak}, "memory_bandwidth_bytes_per_s": bandwidth})


def _today() -> str:
    return date.today().isoformat()


def _control_groups(controller: str) -> list[Path]:
    """Folders of this process's control group and of those above it, version 1 or 2, nearest first."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        root = Path("/sys/fs/cgroup") / (names if names else "")
        place = root / path.lstrip("/")
        folders += [folder for folder in (place, *place.parents) if folder == root or root in folder.parents]
    return folders


def _cpu_quota(folder: Path) -> float | None:
    """Cores' worth of time granted: version 2 writes "quota period" in one file, version 1 in two."""
    words = _text(folder / "cpu.max").split()
    if len(words) == 2 and words[0].isdigit():
        return int(words[0]) / int(words[1])
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota is not None and period else None


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text.isdigit() else None  # "max" and -1 mean no limit


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _least(limits: Iterable[float | None]) -> float | None:
    return min((limit for limit in limits if limit is not None), default=None)
