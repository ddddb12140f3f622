"""One line of JSON for each request, in a file that is cut when it grows."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from colossus.serve.calls import Call

STDERR = Path("-")
_MOST_BYTES = 64 << 20


class RequestLog:
    """``-`` writes to stderr. A file of 64 MiB becomes ``NAME.1`` and a new one is begun. A full disk loses lines, not requests."""

    def __init__(self, path: Path, *, most_bytes: int = _MOST_BYTES) -> None:
        self._path = path
        self._most_bytes = most_bytes
        self._file: TextIO = sys.stderr if path == STDERR else path.open("a", buffering=1)
        self._num_bytes = 0 if path == STDERR else path.stat().st_size

    def write(self, call: Call) -> None:
        """What became of a call."""
        line = json.dumps(entry(call), separators=(",", ":")) + "\n"
        with contextlib.suppress(OSError, ValueError):
            self._file.write(line)
            self._num_bytes += len(line)
            if self._path != STDERR and self._num_bytes > self._most_bytes:
                self._turn()

    def close(self) -> None:
        if self._path != STDERR:
            with contextlib.suppress(OSError):
                self._file.close()

    def _turn(self) -> None:
        self._file.close()
        self._path.replace(self._path.with_name(self._path.name + ".1"))
        self._file, self._num_bytes = self._path.open("a", buffering=1), 0


def entry(call: Call) -> dict[str, Any]:
    """A call as its line has it; ``status`` None: its client left before an answer."""
    now = time.monotonic()
    data: dict[str, Any] = {
        "time_s": round(time.time(), 3),
        "id": call.id,
        "owner": call.owner,
        "method": call.method,
        "route": call.route,
        "status": call.status,
        "prompt_tokens": call.num_prompt_tokens,
        "cached_tokens": call.num_cached_tokens,
        "output_tokens": call.num_output_tokens,
        "ttft_s": None if call.first_output_s is None else round(call.first_output_s - call.started_s, 6),
        "e2e_s": round(now - call.started_s, 6),
    }
    return data if call.error is None else data | {"error": call.error[:300]}
