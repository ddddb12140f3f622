"""The platform that a program is traced for: this process's own, unless it is compiled ahead of time for another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_TARGET: ContextVar[str | None] = ContextVar("target", default=None)


def platform() -> str:
    """One of cpu, gpu and tpu."""
    return _TARGET.get() or jax.default_backend()


@contextmanager
def tracing_for(name: str) -> Iterator[None]:
    """Inside, networks choose as they would on that platform."""
    token = _TARGET.set(name)
    try:
        yield
    finally:
        _TARGET.reset(token)
