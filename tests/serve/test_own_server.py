"""The server that ``colossus chat MODEL`` starts for itself: it is there when it is ready, and gone with who started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from colossus.cli import own_server as module
from colossus.spec.errors import EngineError

PATIENCE_S = 30.0
# Stands for ``colossus serve``: says its pid where the real one says its address; the first lines are the real ones.
GUARD = module._START.partition("from colossus")[0]
READY = (
    GUARD
    + """
import json, os, pathlib, sys, time
print("loading", file=sys.stderr, flush=True)
time.sleep(0.5)
print(json.dumps({"address": "http://127.0.0.1:1", "pid": os.getpid(), "arguments": sys.argv[1:]}, indent=2), flush=True)
time.sleep(600)
"""
)
FAILING = 'import sys; print("error: no such model", file=sys.stderr); print("hint: give another", file=sys.stderr); sys.exit(1)'


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def wait_for(condition) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_is_there_for_the_block_and_says_what_it_does(monkeypatch):
    monkeypatch.setattr(module, "_START", READY)
    lines: list[str] = []
    with module.own_server("some-model", ["--weights=int8"], lines.append) as said:
        assert said["address"] == "http://127.0.0.1:1" and not gone(said["pid"])
        assert said["arguments"] == ["serve", "some-model", "--port", "0", "--json", "--weights=int8"]
    assert gone(said["pid"]) and lines == ["loading"]


def test_an_error_in_the_block_ends_it_too(monkeypatch):
    monkeypatch.setattr(module, "_START", READY)
    with pytest.raises(KeyboardInterrupt), module.own_server("m") as said:
        raise KeyboardInterrupt
    assert gone(said["pid"])


def test_its_last_words_are_told_when_it_does_not_start(monkeypatch):
    monkeypatch.setattr(module, "_START", FAILING)
    with pytest.raises(EngineError, match="no such model") as error, module.own_server("m"):
        pass
    assert error.value.hint == "give another"


def test_wrong_usage_is_told_without_the_usage_around_it(monkeypatch):
    words = "Usage: colossus serve [OPTIONS] MODEL\\nTry ...\\n\\nError: Invalid value for --weights"
    monkeypatch.setattr(module, "_START", f'import sys; print("{words}", file=sys.stderr); sys.exit(2)')
    with pytest.raises(EngineError) as error, module.own_server("m"):
        pass
    assert str(error.value) == "m could not be served: Invalid value for --weights"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_it_dies_with_a_parent_that_is_killed(tmp_path: Path):
    told = tmp_path / "pid"
    program = f"""
import pathlib, time
from colossus.cli import own_server as module
module._START = {READY!r}
with module.own_server("m") as said:
    pathlib.Path({str(told)!r}).write_text(str(said["pid"]))
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        try:
            wait_for(lambda: told.exists() and told.read_text())
        finally:
            parent.kill()
    pid = int(told.read_text())
    try:
        wait_for(lambda: gone(pid))
    except AssertionError:
        os.kill(pid, signal.SIGKILL)
        raise
