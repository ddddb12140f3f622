"""A worker process: ``python -m colossus.train.worker RUN LINE_FD PARENT_PID RAM_FDS``, started by a supervisor.

It imports everything, says so, and waits for an order to join a gang. When a peer is lost it drops the gang and waits
for the next order, in the same process; when it cannot be saved it exits, and the supervisor starts another.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from colossus.spec.errors import ColossusError, EngineError
from colossus.spec.run import Run
from colossus.train import control as codes
from colossus.train.control import Control


class Worker:
    """The main thread of the process; ``Control``'s threads call ``stop`` and ``interrupt`` beside it."""

    def __init__(self, run: Run, descriptor: int, parent: int, ram_blocks: list[tuple[int, int]]) -> None:
        self._run = run
        self._blocks = ram_blocks
        self._session: Any = None
        self._stop_requested = False
        self._stepping = False
        self._control = Control(descriptor, parent, on_stop=self._stop, on_reform=self._interrupt)

    def main(self) -> int:
        begin = time.perf_counter()
        _import_all()
        job = self._run.load_job()
        if not self._control.has_order:
            _rehearse()
        self._control.say("phase", phase="imported", duration_s=time.perf_counter() - begin)
        while True:
            order = self._control.next_order()
            code = self._serve(job, order)
            if code is not None:
                return code

    def _serve(self, job: Any, order: dict[str, Any]) -> int | None:
        """One gang. None: its peers are lost and this process waits for the next one."""
        from colossus.train import distributed

        self._control.attempt = order["attempt"]
        try:
            self._join(order)
            self._train(job, order)
            return codes.EXIT_DONE
        except Exception as error:
            if isinstance(error, distributed.GangError) or not distributed.is_peer_failure(error):
                return self._fail(error)
            with contextlib.suppress(OSError):
                print(f"lost a peer: {str(error)[:300]}", file=sys.stderr)
        if self._session is not None:
            self._session.abandon()
        self._session = None
        self._control.say("peer_failure")
        gc.collect()
        return None

    def _join(self, order: dict[str, Any]) -> None:
        from colossus.train import distributed

        begin = time.perf_counter()
        if order["cores"] and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, order["cores"])
        enter = distributed.reform if order["do"] == "reform" else distributed.join
        enter(
            order["address"],
            order["num_workers"],
            order["rank"],
            platform=os.environ.get("JAX_PLATFORMS", "cpu"),
            heartbeat_timeout_s=order["native_heartbeat_s"],
        )
        distributed.share_compilation_cache(self._run.folder.parent / ".cache" / "xla")
        self._control.say("phase", phase="joined", duration_s=time.perf_counter() - begin)

    def _train(self, job: Any, order: dict[str, Any]) -> None:
        from colossus.train.loop import Interrupted
        from colossus.train.session import Session

        self._session = Session(self._run, job, order, ram_blocks=self._blocks, say=self._control.say)
        if self._stop_requested:
            self._session.stop()
        try:
            step, status = self._session.run(self._progress), "done"
        except Interrupted as stopped:
            step, status = stopped.step, "interrupted"
        self._control.say("ended", status=status, step=step)

    def _progress(self, step: int, step_s: float) -> None:
        self._control.say("step", step=step, step_s=step_s)

    def _fail(self, error: Exception) -> int:
        from colossus.train.loop import Diverged

        permanent = isinstance(error, ColossusError | Diverged) and not isinstance(error, EngineError)
        text = str(error) if permanent else f"{type(error).__name__}: {error}"
        hint = error.hint if isinstance(error, ColossusError) else None
        self._control.say("failed", error=" ".join(text.split())[:500], hint=hint, permanent=permanent)
        with contextlib.suppress(OSError):  # the log may lie on the disk that is full
            traceback.print_exc()
        return codes.EXIT_PERMANENT if permanent else codes.EXIT_FAILED

    def _stop(self) -> None:
        self._stop_requested = True
        if self._session is not None:
            self._session.stop()

    def _interrupt(self) -> None:
        from colossus.train import distributed

        distributed.interrupt()


def _import_all() -> None:
    """All that a session needs, so that a standby has nothing left to load."""
    import orbax.checkpoint  # noqa: F401

    import colossus.train.language
    import colossus.train.session  # noqa: F401


def _rehearse() -> None:
    """Compiles and runs a trifle in a gang of one and leaves it: what JAX and XLA set up once, a standby has behind it."""
    import jax

    from colossus.train import distributed

    distributed.join(None, 1, 0, platform="cpu")  # an accelerator's memory belongs to the gang
    jax.jit(lambda x: x @ x)(jax.numpy.ones((8, 8))).block_until_ready()
    distributed.leave()


def main(arguments: list[str]) -> int:
    folder, descriptor, parent, blocks = arguments
    pairs = [(int(first), int(second)) for first, _, second in (pair.partition(",") for pair in blocks.split(";") if pair)]
    return Worker(Run(Path(folder)), int(descriptor), int(parent), pairs).main()


if __name__ == "__main__":
    code = main(sys.argv[1:])
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # a gang's native threads must not delay or spoil the exit
