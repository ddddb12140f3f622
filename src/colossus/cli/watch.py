"""Progress while a run trains: bars on a terminal, a line every few seconds elsewhere; always on stderr."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from colossus.cli.common import talk
from colossus.spec.run import Run
from colossus.spec.units import format_quantity

_REDRAW_S = 0.2
_LINES_EVERY_S = 5.0


class Watch:
    """Follows the run's events; ``update`` is called often and draws when it is time. Nothing that fails here ends the run.

    ``clock``: what the events' times are of, where that is not the wall clock. ``is_brief``: faults are counted, not told one by one.
    """

    def __init__(self, run: Run, *, clock: Callable[[], float] = time.time, is_brief: bool = False) -> None:
        from colossus.report.live import Follower, PlainLines

        self._follower = Follower(run.events)
        self._console = talk()
        self._lines = PlainLines(every_s=_LINES_EVERY_S)
        self._live: Any = None
        self._clock = clock
        self._is_brief = is_brief
        self._drawn_s = 0.0
        self._said = 0

    def __enter__(self) -> Watch:
        self._console.print(f"run: {self._follower.path.parent}")
        if self._console.is_terminal:
            from rich.live import Live

            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._safely(self._draw)
        if self._live is not None:
            self._safely(self._live.stop)

    def update(self) -> None:
        if time.monotonic() - self._drawn_s >= _REDRAW_S:
            self._safely(self._draw)

    def _safely(self, show: Callable[[], None]) -> None:
        try:
            show()
        except Exception as error:  # noqa: BLE001
            self._drawn_s = math.inf
            self._console.print(f"progress can no longer be shown ({type(error).__name__}: {error}); the run goes on")

    def _draw(self) -> None:
        from colossus.report.live import progress

        self._drawn_s = time.monotonic()
        state = self._follower.poll()
        if self._is_brief:
            state.notes.clear()
        if self._live is None:
            for line in self._lines.take(state, now_s=self._clock()):
                self._console.print(line)
            return
        for note in state.notes[self._said :]:
            self._console.print(f"• {note}")
        self._said = len(state.notes)
        self._live.update(progress(state, now_s=self._clock()), refresh=True)


@contextlib.contextmanager
def data_progress() -> Iterator[Callable[[Any], None]]:
    """A bar for readying the corpus; silent when there is nothing to do."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    words = {"tokenizer": "training the tokenizer", "tokens": "turning text into tokens", "waiting": "another process prepares this corpus"}
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"), TimeRemainingColumn())
    with Progress(*columns, console=talk(), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(progress: Any) -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bars.add_task(words.get(progress.stage, progress.stage), total=progress.total_bytes, done="")
            bars.update(tasks[progress.stage], completed=progress.done_bytes, done=format_quantity(progress.done_bytes, "B"))

        yield show
