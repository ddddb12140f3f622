"""Writes docs/events.md and this folder's goldens anew: ``python tests/report/renew.py``, then look at the difference."""

from __future__ import annotations

from pathlib import Path

from colossus.report import summarize
from colossus.report.record import Timeline
from colossus.report.schema import events_markdown
from colossus.spec.event import read_events

DATA = Path(__file__).parent / "data"
ROOT = Path(__file__).parents[2]
LOG, GOLDEN = DATA / "killed.jsonl", DATA / "killed.report.json"
EVENTS_PAGE = ROOT / "docs" / "events.md"


def main() -> None:
    EVENTS_PAGE.parent.mkdir(exist_ok=True)
    EVENTS_PAGE.write_text(events_markdown(), encoding="utf-8")
    GOLDEN.write_text(golden(), encoding="utf-8")


def golden() -> str:
    """The report of ``killed.jsonl`` without its timeline, which is long and follows from the same ledger."""
    return summarize(read_events(LOG)).model_copy(update={"timeline": Timeline()}).to_json()


if __name__ == "__main__":
    main()
