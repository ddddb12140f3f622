"""The event schema as a page for people, made from KINDS, so that it cannot lag behind the program."""

from __future__ import annotations

from colossus.spec.event import KINDS

_HEAD = """# Events

What happened in a run is in its `events.jsonl`, one JSON object a line, written by the supervisor and the workers as it happens:

```json
{"time_s": 1790000000.25, "kind": "step", "scope": {"rank": 0}, "payload": {"step": 1, "loss": 8.3}}
```

`time_s` is seconds since the Unix epoch (in a simulation: since its start), at the end of what the line tells. `scope` says
whom it concerns (attempt, rank). `payload` has exactly the fields of its kind; those marked *may be absent* also may be null.
A real run and a simulation write the same kinds, and `colossus report` reads both. A line torn by a kill is skipped by every reader.

This page is generated: `{command}` renews it.

"""
COMMAND = "python tests/report/renew.py"


def events_markdown() -> str:
    """The whole of ``docs/events.md``."""
    return _HEAD.replace("{command}", COMMAND) + "\n".join(_section(kind, fields) for kind, fields in KINDS.items())


def _section(kind: str, fields: dict[str, str]) -> str:
    rows = [f"| `{name.removesuffix('?')}` | {meaning}{' (may be absent)' if name.endswith('?') else ''} |" for name, meaning in fields.items()]
    return "\n".join([f"## {kind}", "", "| field | meaning |", "|---|---|", *rows, ""])
