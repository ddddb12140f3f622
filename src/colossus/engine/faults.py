"""What is wrong with a gang, read off its workers: exits, silence, stalls, and the words that go with them."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterable, Mapping

from colossus.engine.process import Worker
from colossus.policy.recovery import Fault
from colossus.spec.job import RecoverySpec

# How long survivors' word of a lost peer waits for the peer's own exit, so that the fault is laid to the right rank.
_BLAME_S = 1.0
# A step that takes this many times the usual one, and at least this long, is a hang although all workers beat.
_STALL_FACTOR = 20.0
_STALL_S = 60.0


def exited(culprits: Mapping[int, Worker]) -> Fault:
    """What the exits of workers say: the first cause, in words."""
    worker = next(iter(culprits.values()))
    code = worker.exit_code or 0
    if worker.failure is not None:
        permanent = bool(worker.failure.get("permanent"))
        return Fault(cause="exited", detail=worker.failure["error"], ranks=tuple(culprits), permanent=permanent)
    if code < 0:
        with contextlib.suppress(ValueError):
            return Fault(cause="killed", detail=f"by {signal.Signals(-code).name}", ranks=tuple(culprits))
    return Fault(cause="exited", detail=f"with code {code}", ranks=tuple(culprits))


def among_living(gang: Iterable[Worker], silent: Mapping[int, Worker], spec: RecoverySpec, *, now: float, waited_s: float) -> Fault | None:
    """A fault although every process lives. ``silent``: those that did not beat in time, by rank; of them alone each is looked at.

    ``waited_s``: since a survivor said that a peer is lost, 0 where none did.
    """
    hung = {rank: worker for rank, worker in silent.items() if is_silent(worker, spec, now)}
    if hung:
        silence_s = max(now - worker.last_beat_s for worker in hung.values())
        return Fault(cause="hung", detail=f"no sign of life for {silence_s:.1f} s", ranks=tuple(hung))
    if waited_s > _BLAME_S:
        return Fault(cause="peer", detail="a collective failed though every worker lives", ranks=())
    if _all_stalled(gang, spec, now):
        return Fault(cause="hung", detail="all workers beat but no step ends", ranks=())
    return None


def is_silent(worker: Worker, spec: RecoverySpec, now: float) -> bool:
    """Before its program is compiled a worker runs the user's code, which may hold Python's lock for long: patience, unless it is stopped."""
    silence_s = now - worker.last_beat_s
    if silence_s <= spec.heartbeat_timeout_s:
        return False
    patient = not worker.ready or worker.phase == "joined"
    return not patient or silence_s > spec.startup_timeout_s or worker.is_stopped()


def _all_stalled(gang: Iterable[Worker], spec: RecoverySpec, now: float) -> bool:
    """Ends at the first that is not, which in a gang that steps is the first of all."""
    some = False
    for worker in gang:
        some = True
        if not _is_stalled(worker, spec, now):
            return False
    return some


def _is_stalled(worker: Worker, spec: RecoverySpec, now: float) -> bool:
    limit = max(_STALL_S, _STALL_FACTOR * worker.step_s) if worker.phase == "stepping" else spec.startup_timeout_s
    return worker.ready and now - worker.last_progress_s > limit


def advice(culprits: dict[int, Worker]) -> str:
    """What the workers at fault advise themselves; of those that could not say anything, the last words in their logs."""
    hints = [worker.failure["hint"] for worker in culprits.values() if worker.failure and worker.failure["hint"]]
    if hints:
        return hints[0]
    words = {rank: worker.last_words() for rank, worker in culprits.items() if not (worker.failure and worker.failure["permanent"])}
    return "\n".join(f"last words of rank {rank}:\n{text}" for rank, text in words.items() if text)
