"""Traces of real requests as asks: our JSONL, Azure's LLM inference CSV, Mooncake's JSONL, BurstGPT's CSV. The kind is told by its first line.

- ours: ``{"at_s": 0.5, "prompt_tokens": 128, "output_tokens": 64}`` a line, ``at_s`` from the start.
- Azure: ``TIMESTAMP,ContextTokens,GeneratedTokens`` (Patel et al., ISCA 2024).
- Mooncake: ``timestamp`` in ms, ``input_length``, ``output_length``, ``hash_ids`` of blocks of 512 tokens (Qin et al., FAST 2025).
- BurstGPT: ``Timestamp`` in s, ``Request tokens``, ``Response tokens`` among its columns (Wang et al., 2024); failed ones answered nothing and are left out.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from colossus.serve.load.errors import TraceError
from colossus.serve.load.workload import Ask

_KINDS = "ours (JSONL with at_s, prompt_tokens, output_tokens), Azure's CSV, Mooncake's JSONL, BurstGPT's CSV"
_HINT = f"kinds known: {_KINDS}; see docs/serving-load.md"


def read_trace(path: Path, num_requests: int | None = None) -> list[Ask]:
    """The first requests of a trace, by time, beginning at 0."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            asks = list(islice(_asks(path, lines), num_requests))
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}", hint="name a trace file; see docs/serving-load.md") from None
    except UnicodeDecodeError:
        raise TraceError(f"{path} is not text", hint=_HINT) from None
    if not asks:
        raise TraceError(f"{path} holds no requests", hint=_HINT)
    asks.sort(key=lambda ask: ask.at_s or 0.0)
    begin_s = asks[0].at_s or 0.0
    return [replace(ask, number=number, at_s=(ask.at_s or 0.0) - begin_s) for number, ask in enumerate(asks)]


def _asks(path: Path, lines: Iterable[str]) -> Iterator[Ask]:
    numbered = _said(path, lines)
    number, first = next(numbered, (0, ""))
    if not first:
        return
    if first.startswith("{"):
        yield _line(path, number, lambda: _from_json(json.loads(first)))
        for number, line in numbered:
            yield _line(path, number, lambda line=line: _from_json(json.loads(line)))
        return
    columns = [name.strip() for name in first.split(",")]
    read = _from_azure if "ContextTokens" in columns else _from_burst if "Request tokens" in columns else None
    if read is None:
        raise TraceError(f"{path}, line {number}: {first[:80]!r} begins no trace of a known kind", hint=_HINT)
    for number, line in numbered:
        row = dict(zip(columns, next(csv.reader([line])), strict=False))
        ask = _line(path, number, lambda row=row: read(row))
        if ask.output_tokens > 0:
            yield ask


def _said(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line.strip()


def _line(path: Path, number: int, read: Any) -> Ask:
    try:
        return read()
    except KeyError as error:
        raise TraceError(f"{path}, line {number}: {error} is missing", hint=_HINT) from None
    except (ValueError, TypeError) as error:
        raise TraceError(f"{path}, line {number}: {error}", hint=_HINT) from None


def _from_json(data: dict[str, Any]) -> Ask:
    if "input_length" in data:
        blocks = tuple(int(block) for block in data.get("hash_ids", ()))
        prompt, output = _tokens(data["input_length"]), _tokens(data["output_length"])
        return Ask(number=0, at_s=float(data["timestamp"]) / 1e3, prompt_tokens=prompt, output_tokens=output, blocks=blocks)
    return Ask(number=0, at_s=float(data["at_s"]), prompt_tokens=_tokens(data["prompt_tokens"]), output_tokens=_tokens(data["output_tokens"]))


def _from_azure(row: dict[str, str]) -> Ask:
    at_s = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
    return Ask(number=0, at_s=at_s, prompt_tokens=_tokens(row["ContextTokens"]), output_tokens=_tokens(row["GeneratedTokens"]))


def _from_burst(row: dict[str, str]) -> Ask:
    prompt, output = _tokens(row["Request tokens"]), int(float(row["Response tokens"]))
    return Ask(number=0, at_s=float(row["Timestamp"]), prompt_tokens=prompt, output_tokens=output)


def _tokens(value: Any) -> int:
    """At least one, which a server wants."""
    return max(1, int(float(value)))
