"""Builds the C++ kernels on demand, once per (sources, flags, jaxlib, CPU), into a cache folder.

The library is made in a temporary file and moved into place, so a reader never sees half of one; a lock file makes
processes that start together build once. Nothing here raises: whatever is missing becomes `Unavailable(reason)`.
`$COLOSSUS_KERNELS_ARCH` names another instruction set than this CPU's own, in the compiler's words (`x86-64`, `haswell`).
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
COMPILERS = ("g++", "clang++", "c++")
FLAGS = (
    "-O3", "-std=c++17", "-fPIC", "-pthread", "-fno-math-errno", "-fno-trapping-math",
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
    """Path of the library in `folder`, compiled first if it is not there.

    Where every compiler fails, a note in `folder` says why and keeps these same compilers from being tried again.
    """
    target = folder / f"libcolossus-{_key()}.so"
    if target.exists():
        return target
    compilers = _compilers()
    if not compilers:
        return Unavailable(reason=f"no C++ compiler: none of {', '.join(COMPILERS)} is on PATH")
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(target.with_suffix(".lock")):
        return target if target.exists() else _compile(compilers, target)


def _compile(compilers: dict[str, str], target: Path) -> Path | Unavailable:
    import jax

    note = target.with_suffix(f".{hashlib.sha256(repr(list(compilers)).encode()).hexdigest()[:8]}.failed")
    if note.exists():
        return Unavailable(reason=note.read_text())
    reasons = []
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        for compiler in compilers.values():
            failure = _compile_with(compiler, f"-I{jax.ffi.include_dir()}", made)
            if failure is None:
                os.replace(made, target)
                return target
            reasons.append(failure)
        made.write_text("\n".join([*reasons, f"Once that is mended, delete {note} to have it tried again."]))
        os.replace(made, note)
    return Unavailable(reason=note.read_text())


def _compile_with(compiler: str, include: str, made: Path) -> str | None:
    """Each source for itself, as many at a time as there are cores, then all linked; why it failed if it did."""
    objects = {source: made.with_name(f"{source.stem}.o") for source in _sources("*.cc")}

    def compile_one(source: Path) -> str | None:
        return _run(compiler, *_flags(), "-c", include, str(source), "-o", str(objects[source]))[1]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        failures = [failure for failure in pool.map(compile_one, objects) if failure is not None]
    return failures[0] if failures else _run(compiler, *_flags(), "-shared", *map(str, objects.values()), "-o", str(made))[1]


def _compilers() -> dict[str, str]:
    """Version to path of the compilers on PATH, in order of preference and each but once: c++ is often g++ again."""
    found: dict[str, str] = {}
    for path in filter(None, map(shutil.which, COMPILERS)):
        version, _ = _run(path, "--version")
        found.setdefault(version.partition(" ")[2], path)  # less the first word, the name it was called by
    return found


def _run(*command: str) -> tuple[str, str | None]:
    """What a command printed, and why it failed if it did."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=BUILD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return "", f"{command[0]} took over {BUILD_TIMEOUT_S} s"
    except OSError as error:
        return "", f"{command[0]}: {error}"
    return done.stdout, f"{command[0]} failed ({done.returncode}): {done.stderr[-2000:]}" if done.returncode else None


def _sources(pattern: str) -> list[Path]:
    return sorted(FOLDER.glob(pattern))


def _flags() -> tuple[str, ...]:
    option = "-mcpu" if platform.machine() in ("aarch64", "arm64") else "-march"
    return (*FLAGS, f"{option}={os.environ.get('COLOSSUS_KERNELS_ARCH') or 'native'}")


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
