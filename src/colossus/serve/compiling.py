"""Compiled programs: kept on the disk between starts, and counted, since after its warm-up an engine compiles nothing."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"
_num_compiled = 0


def num_compiled() -> int:
    """Programs that this process has compiled, or read from the disk, since this was asked first."""
    _listen()
    return _num_compiled


def keep_compiled_programs(folder: Path) -> None:
    """From now on each program of this process is read from ``folder`` if it is there, and written there if not."""
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@functools.cache
def _listen() -> None:
    jax.monitoring.register_event_duration_secs_listener(_on_duration)


def _on_duration(event: str, duration_secs: float, **_: Any) -> None:
    global _num_compiled
    _num_compiled += event == _COMPILED and duration_secs >= 0
