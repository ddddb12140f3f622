"""Builds the C++ kernels on demand, once per (sources, flags, jaxlib, CPU), into a cache folder.

The library is made in a temporary file and moved into place, so a reader never sees half of one; a lock file makes
processes that start together build once. Nothing here raises: whatever is missing becomes `Unavailable(reason)`.
"""

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
COMPILERS = ("g++", "clang++", "c++")
FLAGS = (
    "-O3", "-std=c++17", "-fPIC", "-shared", "-pthread", "-fno-math-errno", "-fno-trapping-math",
    "-ffp-contract=fast", "-w",
)  # fmt: skip
BUILD_TIMEOUT_S = 600

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Unavailable:
    """Why there is no compiled library."""

    reason: str


@functools.cache
def library() -> ctypes.CDLL | Unavailable:
    """The compiled kernels, built now if the cache has none for this machine; warns once where it cannot."""
    if os.environ.get("COLOSSUS_KERNELS", "").lower() in ("off", "0", "false"):
        return Unavailable(reason="COLOSSUS_KERNELS=off")
    try:
        path = build(cache_folder())
        loaded = path if isinstance(path, Unavailable) else ctypes.CDLL(str(path))
    except OSError as error:
        loaded = Unavailable(reason=f"{type(error).__name__}: {error}")
    if isinstance(loaded, Unavailable):
        log.warning("no compiled CPU kernels, plain JAX is used instead: %s", loaded.reason)
    return loaded


def cache_folder() -> Path:
    """`$COLOSSUS_CACHE_DIR`, else a folder in this Python's prefix if it can be written, else `~/.cache/colossus`."""
    if chosen := os.environ.get("COLOSSUS_CACHE_DIR"):
        return Path(chosen) / "kernels"
    in_prefix = Path(sys.prefix) / "var" / "colossus" / "kernels"
    with contextlib.suppress(OSError):
        in_prefix.mkdir(parents=True, exist_ok=True)
        if os.access(in_prefix, os.W_OK):
            return in_prefix
    return Path.home() / ".cache" / "colossus" / "kernels"


def build(folder: Path) -> Path | Unavailable:
    """Path of the library in `folder`, compiled first if it is not there."""
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    target = folder / f"libcolossus-{_key()}.so"
    if target.exists():
        return target
    if compiler is None:
        return Unavailable(reason=f"no C++ compiler: none of {', '.join(COMPILERS)} is on PATH")
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(target.with_suffix(".lock")):
        return target if target.exists() else _compile(compiler, target)


def _compile(compiler: str, target: Path) -> Path | Unavailable:
    import jax

    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        command = [compiler, *_flags(), f"-I{jax.ffi.include_dir()}", *map(str, _sources("*.cc")), "-o", str(made)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            return Unavailable(reason=f"{compiler} took over {BUILD_TIMEOUT_S} s")
        if done.returncode != 0:
            return Unavailable(reason=f"{compiler} failed ({done.returncode}): {done.stderr[-2000:]}")
        os.replace(made, target)
    return target


def _sources(pattern: str) -> list[Path]:
    return sorted(FOLDER.glob(pattern))


def _flags() -> tuple[str, ...]:
    native = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
    return (*FLAGS, native)


def _key() -> str:
    """Hash of all that the machine code depends on, so that a copied cache is never run on another CPU."""
    import jaxlib.version

    digest = hashlib.sha256()
    for path in _sources("*.cc") + _sources("*.h"):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(repr((_flags(), jaxlib.version.__version__, _cpu())).encode())
    return digest.hexdigest()[:20]


def _cpu() -> tuple[str, ...]:
    """Model and instruction sets of this CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return (platform.machine(), platform.processor())
    pairs = [line.partition(":") for line in reversed(lines)]
    fields = {name.strip(): value.strip() for name, colon, value in pairs if colon}
    return (platform.machine(), *(fields.get(name, "") for name in ("model name", "flags", "Features", "CPU part")))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on `path`; without fcntl (not on POSIX) only os.replace protects."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
