"""What the trainer's own kernels reach of a processor's GEMM peak and memory bandwidth, where they were not measured there."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def usual_kernels() -> dict[str, Any]:
    """Fractions, sizes and latencies of ``measured/processors.toml``."""
    return tomllib.loads((files("colossus.catalog") / "measured" / "processors.toml").read_text(encoding="utf-8"))
