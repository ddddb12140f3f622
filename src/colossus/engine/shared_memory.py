"""Anonymous shared memory that lives as long as the supervisor or any of its workers, and is freed by the kernel then."""

from __future__ import annotations

import os
import tempfile


def anonymous_block() -> int:
    """A descriptor of an empty block: memory on Linux, elsewhere a file that has no name any more. The owner closes it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("colossus-ram", 0)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
