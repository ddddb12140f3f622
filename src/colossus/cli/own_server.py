"""A server of one's own for as long as a verb needs it: ``colossus serve`` as a process on a free port."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from colossus.spec.errors import EngineError

_START_S, _END_S = 600.0, 20.0
_LAST_WORDS = 15  # lines of a server that did not start
_TICK_S = 0.2
_ERROR = "error: "
# Asks Linux to end the server in order when its parent dies, however that came; elsewhere it would stay.
_START = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != int(sys.argv.pop(1)):
        sys.exit(1)
from colossus.cli.main import main
main()
"""


@contextlib.contextmanager
def own_server(model: str, options: Sequence[str] = (), tell: Callable[[str], None] = lambda line: None) -> Iterator[dict[str, Any]]:
    """What ``colossus serve --json`` says when it is ready, ``address`` among it; the server ends with the block, or with this process.

    ``tell`` gets what it says meanwhile. Raises EngineError with its last words when it does not start.
    """
    command = [sys.executable, "-c", _START, str(os.getpid()), "serve", model, "--port", "0", "--json", *options]
    with tempfile.TemporaryFile() as talk:
        # A session of its own: Ctrl-C is for the chat alone.
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=talk, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            said = _ready(process, talk, tell)
            if said is None:
                raise _failure(model, process, _lines(talk))
            yield said
        finally:
            _end(process)


def _failure(model: str, process: subprocess.Popen[bytes], lines: Sequence[str]) -> EngineError:
    """In the server's own words."""
    from colossus.spec.errors import EngineError

    words, _, hint = "\n".join(_error_of(lines)).partition("hint: ")
    return EngineError(
        f"{model} could not be served: {words.strip() or f'it ended with code {process.poll()}'}", hint=hint.strip() or f"see: colossus serve {model}"
    )


def _error_of(lines: Sequence[str]) -> list[str]:
    """From the server's last ``error: `` (click writes ``Error: ``) on; without one, all its last words."""
    told = list(lines[-_LAST_WORDS:])
    begins = [place for place, line in enumerate(told) if line.lower().startswith(_ERROR)]
    if not begins:
        return told
    return [told[begins[-1]][len(_ERROR) :], *told[begins[-1] + 1 :]]


def _ready(process: subprocess.Popen[bytes], talk: IO[bytes], tell: Callable[[str], None]) -> dict[str, Any] | None:
    """Reads stdout until it holds a whole JSON object; None where the server ended before."""
    assert process.stdout is not None
    text, told, deadline_s = b"", 0, time.monotonic() + _START_S
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while time.monotonic() < deadline_s:
            if selector.select(_TICK_S):
                piece = os.read(process.stdout.fileno(), 65536)
                if not piece:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(_END_S)
                    return None
                text += piece
                with contextlib.suppress(ValueError):
                    found = json.loads(text)
                    return found if isinstance(found, dict) else None
            lines = _lines(talk)
            for line in lines[told:]:
                tell(line)
            told = len(lines)
    return None


def _lines(talk: IO[bytes]) -> list[str]:
    """All whole lines that the server has said."""
    return os.pread(talk.fileno(), 1 << 20, 0).decode(errors="replace").splitlines()


def _end(process: subprocess.Popen[bytes]) -> None:
    """In order, else at once."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()
