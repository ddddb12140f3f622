"""Calling the command line in this process, as a user would type it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from colossus.cli.main import main


def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of ``colossus ARGUMENTS``."""
    monkeypatch.setattr(sys, "argv", ["colossus", *map(str, arguments)])
    capsys.readouterr()
    code = 0
    try:
        main()
    except SystemExit as ending:
        code = int(ending.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def write_job(folder: Path, text: Path, **changes: str) -> Path:
    """A small decoder's job on a text file."""
    lines = {
        "name": '"small"',
        "num_steps": "30",
        "model": '"llama-3m"',
        "data": f'{{ sources = ["{text}"], vocab_size = 300 }}',
        "batch": "{ num_sequences = 4, sequence_tokens = 16 }",
        "optimizer": "{ warmup_steps = 2 }",
    } | changes
    path = folder / "job.toml"
    path.write_text("\n".join(f"{key} = {value}" for key, value in lines.items()) + "\n")
    return path
