"""Compiled programs kept for the gang's next forming: loading them skips tracing, which costs more than all else then.

They serve one supervisor's session only, in which neither the code nor the job can change.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from colossus.nn import kernels
from colossus.spec.layout import Layout
from colossus.train import distributed


@dataclass(frozen=True, kw_only=True)
class Programs:
    """The compiled step, and the state's shapes and shardings."""

    step: Any
    abstract: Any


class KeptPrograms:
    """The programs of one session and layout, in one file of ``folder``."""

    def __init__(self, folder: Path, session: str, layout: Layout) -> None:
        self._folder = folder
        self._file = folder / f"{session}-{layout.digest()}"

    def load(self, mesh: Mesh) -> Programs | None:
        """What was kept, or None where there is nothing that fits this process."""
        try:
            step, shapes, calls_kernels = pickle.loads(self._file.read_bytes())
            if calls_kernels:
                kernels.unavailable()  # registers them; a program that calls what is not there cannot be loaded
            abstract = jax.tree.map(lambda leaf: leaf.on(mesh), shapes, is_leaf=lambda node: isinstance(node, _Leaf))
            return Programs(step=distributed.load_executable(step), abstract=abstract)
        except Exception:  # noqa: BLE001 - whatever is wrong with the file, compiling serves too
            return None

    def save(self, programs: Programs) -> None:
        """Keeps them, from a thread of its own; what cannot be kept is compiled again, that is all."""
        threading.Thread(target=self._save, args=(programs,), daemon=True, name="keep-programs").start()

    def _save(self, programs: Programs) -> None:
        with contextlib.suppress(OSError, distributed.ExecutableError):
            shapes = jax.tree.map(lambda leaf: _Leaf(leaf.shape, leaf.dtype, leaf.sharding.spec), programs.abstract)
            data = pickle.dumps((distributed.save_executable(programs.step), shapes, kernels.in_use()))
            self._folder.mkdir(exist_ok=True)
            for stale in self._folder.iterdir():
                stale.unlink(missing_ok=True)
            part = self._folder / f".{os.getpid()}.part"
            part.write_bytes(data)
            part.replace(self._file)


@dataclass(frozen=True)
class _Leaf:
    shape: tuple[int, ...]
    dtype: Any
    spec: Any

    def on(self, mesh: Mesh) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.shape, self.dtype, sharding=NamedSharding(mesh, self.spec))
