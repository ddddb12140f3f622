"""Measured runs as CSV rows: which to take, and what in them cannot be read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from colossus.catalog.published import PublishedRun

# Columns that hold numbers; an empty cell is a number that was not published. Those of the second list may be 0: absent.
_COUNTS = ("layers", "hidden", "heads", "seq_len", "n_accel", "micro_batch", "global_batch_seqs", "peak_mem_gib")
_OTHERS = (
    *("kv_heads", "head_dim", "ffn_hidden", "vocab", "experts", "topk", "moe_ffn_hidden", "tp", "pp", "cp", "ep", "vpp"),
    *("tflops_per_accel", "step_time_s", "tokens_per_s_per_accel"),
)
_MOST_TOLD = 8


def chosen_runs(file: Path | None, tier: str) -> list[PublishedRun]:
    """The rows of a tier, of the catalog or of a file; raises DataError where there are none or ids are not unique."""
    from colossus.catalog.published import read_published
    from colossus.spec.errors import DataError

    runs = read_published(file)
    if not runs:
        raise DataError(f"{file} has no rows below its header")
    twice = [repr(name) for name, times in Counter(run.id for run in runs).items() if times > 1 or not name]
    if twice:
        raise DataError(f"{file}: every row needs an id of its own; these come twice or are empty: {', '.join(twice[:_MOST_TOLD])}")
    chosen = [run for run in runs if tier == "all" or run.text("tier") == tier]
    if not chosen:
        tiers = sorted({run.text("tier") or "none" for run in runs})
        raise DataError(f"{file or 'the catalog'} has no rows of tier {tier}", hint=f"tiers there: {', '.join(tiers)}; --tier all takes every row")
    return chosen


def unreadable(runs: Sequence[PublishedRun]) -> dict[str, str]:
    """By id, the first cell of a row that holds no number where one belongs, in words."""
    told = {run.id: next(filter(None, (_wrong(run, column) for column in (*_COUNTS, *_OTHERS))), None) for run in runs}
    return {name: words for name, words in told.items() if words is not None}


def _wrong(run: PublishedRun, column: str) -> str | None:
    from colossus.spec.errors import DataError

    try:
        value = run.get(column)
    except DataError as error:
        return str(error)
    if value is None or (math.isfinite(value) and (value > 0 or (value == 0 and column in _OTHERS))):
        return None
    return f"row {run.id}: {column} = {run.text(column)!r} must be a finite number above zero"


def refuse(bad: Mapping[str, str], *, origin: str) -> None:
    """Raises DataError that names the rows of ``bad``, if there are any."""
    from colossus.spec.errors import DataError

    if not bad:
        return
    told = "\n  ".join(list(bad.values())[:_MOST_TOLD])
    more = f"\n  and {len(bad) - _MOST_TOLD} more" if len(bad) > _MOST_TOLD else ""
    noun = "row" if len(bad) == 1 else "rows"
    raise DataError(
        f"{origin}: {len(bad)} {noun} without a usable number where one belongs\n  {told}{more}", hint="leave a cell empty where nothing was published"
    )
