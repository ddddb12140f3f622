"""Files that a user asks for by name."""

from __future__ import annotations

from pathlib import Path

from colossus.cli.common import talk


def write_file(path: Path, text: str, *, what: str) -> None:
    """Writes the whole file, with the folders above it, and says so; raises StorageError where that is refused."""
    write_bytes(path, text.encode(), what=what)


def write_bytes(path: Path, data: bytes, *, what: str) -> None:
    """The same of bytes."""
    from colossus.spec.errors import StorageError
    from colossus.spec.run import write_atomic

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    except OSError as error:
        raise StorageError(f"{what} cannot be written to {path}: {error.strerror or error}", hint="name a file in a folder that can be written to") from None
    talk().print(f"{what}: {path}")
