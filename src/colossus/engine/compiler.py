"""Compiles a train step in a process of its own (train/aot.py): with a time-out, and with its last words where it dies."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from colossus.spec.errors import EngineError
from colossus.spec.program import Compiler, ProgramAccount, ProgramOrder

# The CPU's back end makes up no more devices than these: at 4096 it takes them for several processes'.
MAX_MADE_UP_DEVICES = 2048
# What each compiler needs from an install.
_MODULES: dict[Compiler, tuple[str, ...]] = {"cpu": ("jaxlib",), "tpu": ("libtpu",), "cuda": ("jax_cuda13_plugin", "jax_plugins.xla_cuda13")}


@dataclass(frozen=True)
class CompiledProgram:
    """What the compiler left: its program as text, its account, and what it said."""

    text: str
    account: ProgramAccount
    errors: str


def compile_program(order: ProgramOrder, *, timeout_s: float) -> CompiledProgram:
    """Runs the compiler to its end; EngineError with its last words where it fails, dies or takes too long."""
    with tempfile.TemporaryDirectory(prefix="colossus-aot-") as name:
        folder = Path(name)
        path = folder / "order.json"
        path.write_text(order.to_json())
        command = [sys.executable, "-m", "colossus.train.aot", str(path)]
        with (folder / "errors.txt").open("wb") as errors:
            try:
                code = subprocess.run(command, env=_environment(order), stdout=errors, stderr=errors, timeout=timeout_s, check=False).returncode
            except subprocess.TimeoutExpired:
                raise EngineError(f"the {order.compiler} compiler did not finish in {timeout_s:.0f} s", hint="--compile-timeout allows more") from None
        said = (folder / "errors.txt").read_text(errors="replace")
        if code:
            raise EngineError(f"the {order.compiler} compiler ended with {_how(code)}: {_last_words(said)}")
        account = ProgramAccount.from_data(json.loads((folder / "account.json").read_text()), origin="account.json")
        return CompiledProgram((folder / "program.txt").read_text(), account, said)


def _environment(order: ProgramOrder) -> dict[str, str]:
    """Compiling needs no device but the CPU's; kernels of our own would hide their work."""
    flags = {
        "cpu": f"--xla_force_host_platform_device_count={order.layout.num_devices}",
        "cuda": "--xla_gpu_autotune_level=0",
        "tpu": "",
    }[order.compiler]
    ours = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "TF_CPP_MIN_LOG_LEVEL": "1", "COLOSSUS_KERNELS": "off"}
    if order.compiler == "tpu":
        ours |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # the lock is for a chip, and none is used
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return inherited | ours


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _last_words(said: str) -> str:
    """The last line that says something; of a refusal by our own checks all its lines."""
    lines = [line for line in said.strip().splitlines() if line.strip()]
    return lines[-1][:400] if lines else "it said nothing"


def installed(compiler: Compiler) -> bool:
    """Whether the modules that a compiler needs are there; none is imported."""
    return all(_is_there(module) for module in _MODULES[compiler])


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
