"""The cache folder: one preparation of a corpus at a time, put in place whole, and a full disk told plainly."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from colossus.spec.errors import DataError, StorageError
from colossus.train.data import shards

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


def find(folder: Path) -> shards.Index | None:
    """The index of a whole corpus; None for a missing folder and for one that lost a file, which is then made anew."""
    try:
        index = shards.load_index(folder)
    except DataError:
        return None
    return index if (folder / shards.TOKENIZER).is_file() else None


@contextmanager
def storage_errors(cache: Path) -> Iterator[None]:
    """Reading errors are DataError by now; what the system still refuses is writing."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            free = shutil.disk_usage(cache).free
            raise StorageError(
                f"the disk of {cache} is full ({free / 1e6:.0f} MB free): the corpus was not written, older ones are unharmed",
                hint="free some space (tokens take about half the text's bytes) or put the cache on another disk",
            ) from None
        raise StorageError(f"cannot write to {cache}: {error.strerror or error}", hint="give a cache folder that can be written") from None


@contextmanager
def lock(cache: Path, key: str, on_wait: Callable[[], None]) -> Iterator[bool]:
    """Waits for other preparations of this corpus. False where the file system knows no locks: the later rename then loses."""
    with (cache / f".{key}.lock").open("w") as file:
        try:
            _acquire(file, on_wait)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            yield False
        else:
            yield True


def _acquire(file: TextIO, on_wait: Callable[[], None]) -> None:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        on_wait()
        fcntl.flock(file, fcntl.LOCK_EX)


def temporary_folder(folder: Path) -> Path:
    """A new hidden folder beside ``folder``, on the same file system."""
    return Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.tmp"))


def remove_stale(folder: Path) -> None:
    """Removes what preparations that were killed left beside ``folder``; only whoever holds its lock may."""
    for stale in folder.parent.glob(f".{folder.name}.tmp*"):
        shutil.rmtree(stale, ignore_errors=True)


def publish(temporary: Path, folder: Path) -> None:
    """Puts a finished folder in its place, on the disk for good. A whole one that came first stays, a damaged one goes."""
    temporary.chmod(0o755)
    _sync(temporary)
    try:
        temporary.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if find(folder) is None:
            _replace(temporary, folder)
    _sync(folder.parent)


def _replace(temporary: Path, folder: Path) -> None:
    damaged = temporary_folder(folder)
    folder.rename(damaged)
    temporary.rename(folder)
    shutil.rmtree(damaged, ignore_errors=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
