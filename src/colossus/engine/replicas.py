"""Engines that serve, as processes of this machine: their cores or devices, their logs, their end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from colossus.engine.machine import usable_accelerators, usable_cores
from colossus.engine.process import worker_environment
from colossus.spec.errors import EngineError

PROGRAM = ("-m", "colossus.serve.worker")


@dataclass(eq=False, kw_only=True)
class LocalReplica:
    """A process, the first of a group of its own."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def exit_code(self) -> int | None:
        return self.process.poll()

    def kill(self) -> None:
        """The whole group; without waiting."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def last_words(self, num_lines: int = 8) -> str:
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 8192))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(line[:300] for line in lines[-num_lines:])


class LocalReplicas:
    """Starts engines' processes (``serve.replicas.Launcher``). ``options``: JSON that the program reads."""

    def __init__(self, folder: Path, options: str, shares: list[Share], *, program: tuple[str, ...] = PROGRAM) -> None:
        self._logs = folder / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._options = options
        self._shares = shares
        self._program = program

    def start(self, index: int, generation: int, socket: Path) -> LocalReplica:
        """See ``Launcher``. All processes of one place write to one log."""
        log, share = self._logs / f"replica-{index}.log", self._shares[index]
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, *self._program, str(socket), str(index), str(generation), self._options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # the terminal's Ctrl-C is for the door alone
                env=os.environ | share.environment,
            )
        if share.cores:
            with contextlib.suppress(OSError):  # before it has any threads, which take after the first
                os.sched_setaffinity(process.pid, share.cores)
        return LocalReplica(process=process, log=log)


@dataclass(frozen=True, kw_only=True)
class Share:
    """What of the machine one replica gets. No cores: all of them."""

    cores: tuple[int, ...]
    environment: dict[str, str]
    words: str
    kind: str = "cpu"


def shares(num_replicas: int, *, devices_each: int = 1) -> list[Share]:
    """The machine's accelerators, or cores where there are none, in equal parts. Raises EngineError where accelerators do not suffice."""
    found = usable_accelerators()
    if found is None:
        return _core_shares(num_replicas)
    chip, num_chips = found
    if num_replicas * devices_each > num_chips:
        words = f"{num_replicas} replicas of {devices_each} devices need {num_replicas * devices_each}, and there are {num_chips} x {chip.name}"
        raise EngineError(words, hint=f"--replicas {max(1, num_chips // devices_each)}")
    return [_device_share(chip.kind, chip.name, index, devices_each) for index in range(num_replicas)]


def _core_shares(num_replicas: int) -> list[Share]:
    cores = usable_cores()
    each = len(cores) // num_replicas
    environment = worker_environment("cpu")
    if num_replicas == 1 or each == 0 or not hasattr(os, "sched_setaffinity"):
        words = f"all {len(cores)} cores" + (f", shared by {num_replicas} replicas: fewer would serve as much" if each == 0 else "")
        return [Share(cores=(), environment=environment, words=words)] * num_replicas
    own = [tuple(cores[index * each : (index + 1) * each]) for index in range(num_replicas)]
    return [Share(cores=part, environment=environment, words=f"cores {', '.join(map(str, part))}") for part in own]


def _device_share(kind: str, name: str, index: int, devices_each: int) -> Share:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else None
    numbers = range(index * devices_each, (index + 1) * devices_each)
    own = ",".join(names[number] if names else str(number) for number in numbers)
    variable = "CUDA_VISIBLE_DEVICES" if kind == "gpu" else "TPU_VISIBLE_CHIPS"
    return Share(cores=(), environment=worker_environment(kind) | {variable: own}, words=f"{name} {own}", kind=kind)
