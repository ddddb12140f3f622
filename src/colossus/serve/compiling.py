"""Compiled programs: kept on the disk between starts, and counted, since after its warm-up an engine compiles nothing."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import pickle
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable
from jaxlib import xla_client

import colossus
from colossus.nn import target
from colossus.nn.kernels import build, ffi

_COMPILED = "/jax/core/compile/backend_compile_duration"
_FOUND = "/jax/compilation_cache/cache_hits"
_SOURCES = ("nn/**/*.py", "nn/kernels/*.cc", "nn/kernels/*.h", "serve/programs.py", "serve/shapes.py", "serve/sequence.py")
_MAX_STORE_BYTES = 4_000_000_000  # programs used longest ago go first
_counts = {"compiled": 0, "found": 0}
log = logging.getLogger(__name__)


def num_compiled() -> int:
    """Programs that this process compiled since this was asked first, those found in JAX's own cache included."""
    _listen()
    return _counts["compiled"]


@functools.cache
def _listen() -> None:
    jax.monitoring.register_event_duration_secs_listener(_on_duration)
    jax.monitoring.register_event_listener(_on_event)


def _on_duration(event: str, duration_secs: float, **_: Any) -> None:
    _counts["compiled"] += event == _COMPILED and duration_secs >= 0


def _on_event(event: str, **_: Any) -> None:
    _counts["found"] += event == _FOUND


class ProgramStore:
    """Compiled programs in a folder. One that is found is neither traced nor lowered nor compiled, which for a deep model is most of a start.

    A program is found only where everything it was made from is the same: what ``mark`` says, the sources, JAX, and this machine.
    Files are pickles, which run code when they are read: the folder must be one's own, as that of the compiled kernels is.
    """

    def __init__(self, mark: str, devices: Sequence[Any]) -> None:
        if target.platform() == "cpu":
            ffi.unavailable()  # registers the kernels, which programs that are read back call by name
        single = jax.process_count() == 1  # programs of a gang name its devices
        self._folder = build.cache_folder().parent / "programs" if single else None
        self._devices = list(devices)
        self._mark = hashlib.sha256(repr((mark, [device.id for device in devices], _surroundings())).encode()).hexdigest()

    def get_or_make(self, name: str, lower: Callable[[], Any]) -> Any:
        """The program of this name; ``lower`` begins it where there is none yet."""
        _listen()
        path = None if self._folder is None else self._folder / f"{hashlib.sha256((self._mark + name).encode()).hexdigest()[:32]}.program"
        if path is not None and (found := _load(path, self._devices)) is not None:
            return found
        num_found = _counts["found"]
        compiled = lower().compile()
        # What JAX's cache gave has lost some of its functions and cannot be saved again (jax 0.10.2, CPU).
        if path is not None and _counts["found"] == num_found:
            _save(path, compiled)
        return compiled


def _surroundings() -> tuple[Any, ...]:
    devices = jax.devices()
    topology = xla_client.get_topology_for_devices(devices)
    machine = devices[0].client.platform_version, len(devices), topology.fingerprint()
    return jax.__version__, machine, os.environ.get("XLA_FLAGS"), ffi.in_use(), _sources()


@functools.cache
def _sources() -> str:
    """Hash of the code that programs are traced from."""
    root, digest = Path(colossus.__file__).parent, hashlib.sha256()
    for path in sorted(path for pattern in _SOURCES for path in root.glob(pattern)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _load(path: Path, devices: list[Any]) -> Any:
    """None where there is no whole file of it."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    try:
        payload, in_tree, out_tree = pickle.loads(data)
        loaded = serialize_executable.deserialize_and_load(payload, in_tree, out_tree, execution_devices=devices)
        os.utime(path)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a file, the program can be made anew
        log.warning("compiled program %s cannot be read, it is made anew: %s", path, error)
        path.unlink(missing_ok=True)
        return None
    return loaded


def _save(path: Path, compiled: Any) -> None:
    try:
        data = pickle.dumps(serialize_executable.serialize(compiled))
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(data)
        os.replace(file.name, path)
        _prune(path.parent)
    except Exception as error:  # noqa: BLE001 - a full disk or a backend that cannot do it: the program itself is there
        log.warning("compiled program is not kept in %s: %s", path.parent, error)


def _prune(folder: Path) -> None:
    files = sorted(((path.stat().st_mtime, path.stat().st_size, path) for path in folder.glob("*.program")), reverse=True)
    total_bytes = 0
    for _, num_bytes, path in files:
        total_bytes += num_bytes
        if total_bytes > _MAX_STORE_BYTES:
            path.unlink(missing_ok=True)
