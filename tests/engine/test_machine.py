"""Describing and measuring this machine, and machines that are not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from colossus.engine import bench, machine
from colossus.engine.machine import describe_machine, unusable_accelerators, usable_cores, usable_memory_bytes
from colossus.spec.errors import EngineError
from colossus.spec.machine import How, Machine


@pytest.fixture
def no_accelerators(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("TPU_ACCELERATOR_TYPE", raising=False)


def fake_nvidia_smi(folder: Path, *lines: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    program.chmod(0o755)


def test_describing_is_whole_and_measures_nothing(no_accelerators):
    found = describe_machine()
    assert found.node.chip.kind == "cpu" and found.node.chip.name and not found.node.chip.peak_flop_per_s
    assert 1 <= found.node.num_cores <= len(os.sched_getaffinity(0))
    assert 0 < found.node.memory_bytes <= psutil.virtual_memory().total
    assert found.num_devices == found.node.num_cores
    assert Machine.from_data(json.loads(found.to_json()), origin="test") == found


def test_never_starts_jax():
    code = "import sys; from colossus.engine.machine import describe_machine; describe_machine(); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_measures_this_machine(no_accelerators):
    found = describe_machine(measure=True, seconds=1.0)
    peak, bandwidth = found.node.chip.peak_flop_per_s["float32"], found.node.chip.memory_bandwidth_bytes_per_s
    assert bandwidth is not None
    for figure in (peak, bandwidth):
        assert figure.how is How.MEASURED and figure.date and "core" in figure.source
    assert 1e9 < peak.value < 1e14 * found.node.num_cores
    assert 1e8 < bandwidth.value < 1e13


def test_a_failing_probe_says_why(monkeypatch):
    monkeypatch.setattr(bench, "_probe", lambda *args: bench._answer(child))
    with (
        subprocess.Popen([sys.executable, "-c", "raise SystemExit('no numpy here')"], stdin=-1, stdout=-1, stderr=-1, text=True) as child,
        pytest.raises(EngineError) as error,
    ):
        bench.measure_cores([0], 2**30, 0.1)
    assert "no numpy here" in str(error.value)


def test_gpus_join_their_datasheet(monkeypatch, tmp_path):
    fake_nvidia_smi(tmp_path, "0, GPU-aa, NVIDIA H200, 143771", "1, GPU-bb, NVIDIA H200, 143771")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "pip install 'colossus[cuda]'" in str(unusable_accelerators()) or machine._has_plugin("gpu")
    monkeypatch.setattr(machine, "_has_plugin", lambda kind: True)
    found = describe_machine(measure=True)
    assert found.node.chip.peak_flop_per_s["bfloat16"].how is How.DATASHEET
    assert found.node.chip.memory_bytes is not None and found.node.chip.memory_bytes.value == 143771 * 2**20
    assert found.num_devices == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert describe_machine().num_devices == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert describe_machine().node.chip.kind == "cpu"
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert describe_machine().node.chip.kind == "cpu"


def test_unknown_gpus_are_told_without_figures(monkeypatch, tmp_path, no_accelerators):
    fake_nvidia_smi(tmp_path, "0, GPU-aa, Quadro 9000, 1000")
    chip, count = machine._nvidia_gpus({}) or (None, 0)
    assert chip is not None and (chip.name, count, chip.peak_flop_per_s) == ("Quadro 9000", 1, {})


def test_tpus(tmp_path):
    for number in range(4):
        (tmp_path / f"accel{number}").touch()
    chip, count = machine._tpus({"TPU_ACCELERATOR_TYPE": "v5litepod-16"}, tmp_path) or (None, 0)
    assert chip is not None and (chip.name, count) == ("Google TPU v5e", 4)
    assert machine._tpus({}, tmp_path) is None


@pytest.mark.parametrize(
    ("files", "cores"),
    [({"cpu.max": "150000 100000"}, 1.5), ({"cpu.max": "max 100000"}, None), ({"cpu.cfs_quota_us": "400000", "cpu.cfs_period_us": "100000"}, 4.0), ({}, None)],
)
def test_control_groups_grant_cores(tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    assert machine._cpu_quota(tmp_path) == cores


def test_control_groups_limit_memory_and_cores(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text(str(2**30))
    (tmp_path / "cpu.max").write_text("50000 100000")
    monkeypatch.setattr(machine, "_control_groups", lambda controller: [tmp_path])
    assert usable_memory_bytes() == 2**30
    assert len(usable_cores()) == 1
