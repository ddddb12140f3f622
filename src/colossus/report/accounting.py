"""Reads the time of every event and gives it, through the ledger, to a cause.

Events are written at the end of what they tell, so each claims the time that led to it. Training is in one of three
states: INIT until the first step, STEPPING, and DOWN from a fault to the next step; the state names the time that no
event claims. Two things wait for the next event before they are placed: a fault (a step may span it, when the dead
process was not needed) and time blocked by a checkpoint (it may lie inside the next step, which tells it again as its
``blocked_s``; counted once).
"""

from __future__ import annotations

from enum import Enum

from colossus.report.ledger import MICRO, Ledger
from colossus.spec.causes import Cause
from colossus.spec.event import KINDS, Event


class State(Enum):
    INIT = 0
    STEPPING = 1
    DOWN = 2


_BACKGROUND = {State.INIT: Cause.INIT_START, State.STEPPING: Cause.OTHER, State.DOWN: Cause.RESTART}
# phase -> cause before the first step, and after it
_PHASES = {
    "joined": (Cause.INIT_START, Cause.RESTART),
    "restored": (Cause.RESTORE, Cause.RESTORE),
    "compiled": (Cause.INIT_COMPILE, Cause.RECOMPILE),
}


# Parts of a span of steps that bring no progress, in the order in which they are placed.
_WAITS = {"straggler_s": Cause.STRAGGLER, "power_cap_s": Cause.POWER_CAP, "fewer_nodes_s": Cause.FEWER_NODES}


def micros(seconds: object) -> int:
    """Whole microseconds of a payload's duration; 0 for what is absent, negative or no number."""
    return max(0, round(seconds * MICRO)) if isinstance(seconds, (int, float)) else 0


def steps_in(payload: dict) -> int:
    """How many steps a span holds; one where its writer says nonsense."""
    return max(1, int(payload["to_step"]) - int(payload["from_step"]))


class Accountant:
    """Follows one run; ``see`` takes its events in time order, each with its microsecond of run time."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.state = State.INIT
        self._blocked_us: list[tuple[int, int]] = []
        self._fault_us: tuple[int, int] | None = None
        self._injected_us: int | None = None
        self._saved_us: int | None = None
        self._told_us = 0
        self._step_us = 0
        self._end_us = 0
        self._handlers = {kind: getattr(self, f"_{kind}", None) for kind in KINDS}

    @property
    def stepping(self) -> bool:
        return self.state is State.STEPPING

    def see(self, event: Event, at_us: int) -> None:
        self._end_us = max(self._end_us, at_us)
        handler = self._handlers.get(event.kind)
        if handler is not None:
            handler(event.payload, at_us)

    def rewind(self, to_step: int) -> None:
        self.ledger.rewind(to_step)

    def finish(self) -> None:
        """Closes the books at the last event; what follows is a new session of the same run, starting in INIT."""
        self._settle(self._end_us)
        if self._saved_us is not None and self.state is State.STEPPING:
            self.ledger.fill(self._saved_us, Cause.CHECKPOINT)
        self.ledger.fill(self._end_us, _BACKGROUND[self.state])
        self.state = State.INIT
        self._injected_us = self._saved_us = None

    def _step(self, payload: dict, at_us: int) -> None:
        cause = Cause.PRODUCTIVE if payload["applied"] else Cause.BAD_STEPS
        untold_us = max(0, micros(payload["blocked_s"]) - self._told_us)
        self._work(payload, at_us, {Cause.DATA_WAIT: micros(payload["data_s"])}, cause, step=int(payload["step"]), untold_us=untold_us)

    def _steps(self, payload: dict, at_us: int) -> None:
        waits_us = {cause: micros(payload[name]) for name, cause in _WAITS.items()}
        start_us = at_us - micros(payload["duration_s"])
        inside_us = sum(end - begin for begin, end in self._blocked_us if begin >= start_us)
        untold_us = max(0, micros(payload["blocked_s"]) - inside_us)
        self._work(payload, at_us, waits_us, Cause.PRODUCTIVE, step=int(payload["to_step"]), num_steps=steps_in(payload), untold_us=untold_us)

    def _work(self, payload: dict, at_us: int, waits_us: dict[Cause, int], cause: Cause, *, step: int, num_steps: int = 1, untold_us: int) -> None:
        """Places steps that end now: their waits, the time blocked by checkpoints (``untold_us`` by those without an event), and the rest as ``cause``."""
        start_us = at_us - micros(payload["duration_s"])
        if self._fault_us and start_us <= self._fault_us[0]:
            self._fault_us = None
            self.state = State.STEPPING
        inside_us = self._settle(start_us)
        self.ledger.fill(start_us, _BACKGROUND[self.state])
        blocked_us = inside_us + untold_us
        self._told_us = 0
        for wait, wait_us in (*waits_us.items(), (Cause.CHECKPOINT, blocked_us)):
            if wait_us:
                self.ledger.fill(min(at_us, self.ledger.now_us + wait_us), wait)
        self.ledger.fill(at_us, cause, step, num_steps=num_steps)
        self.state = State.STEPPING
        self._step_us = (at_us - start_us) // num_steps
        self._injected_us = self._saved_us = None

    def _evaluation(self, payload: dict, at_us: int) -> None:
        self._claim(at_us - micros(payload["duration_s"]), at_us, Cause.EVALUATION)

    def _waiting(self, payload: dict, at_us: int) -> None:
        cause = Cause.PLANNED_STOP if payload.get("is_planned") else Cause.WAIT_NODES
        self._claim(at_us - micros(payload["duration_s"]), at_us, cause)

    def _data_ready(self, payload: dict, at_us: int) -> None:
        self._claim(at_us - micros(payload["duration_s"]), at_us, Cause.INIT_DATA)

    def _checkpoint_started(self, payload: dict, at_us: int) -> None:
        blocked_us = micros(payload["blocked_s"])
        self._blocked_us.append((at_us - blocked_us, at_us))
        self._told_us += blocked_us

    def _checkpoint_saved(self, payload: dict, at_us: int) -> None:
        self._saved_us = at_us

    def _worker_phase(self, payload: dict, at_us: int) -> None:
        causes = _PHASES.get(payload["phase"])
        if self.state is State.STEPPING or causes is None:
            return
        cause = causes[self.state is not State.INIT]
        if payload.get("source") == "init" and cause is Cause.RESTORE:
            cause = Cause.INIT_STATE
        self._settle(at_us)
        self.ledger.fill(at_us, cause)

    def _injected(self, payload: dict, at_us: int) -> None:
        self._injected_us = at_us

    def _fault(self, payload: dict, at_us: int) -> None:
        struck_us = self._struck_us(at_us, micros(payload["detected_s"]))
        if self.state is State.STEPPING:
            self._fault_us = (struck_us, at_us)
        elif self._fault_us is None or (micros(payload["detected_s"]) and struck_us >= self._fault_us[1]):
            self._claim(struck_us, at_us, Cause.DETECT)
        self.state = State.DOWN

    def _struck_us(self, at_us: int, detected_us: int) -> int:
        """When the fault struck: as told, else when it was injected, else at most one step after the last one."""
        if detected_us:
            return at_us - detected_us
        if self._injected_us is not None:
            return self._injected_us
        return min(at_us, self.ledger.now_us + self._step_us) if self.state is State.STEPPING else at_us

    def _recovery(self, payload: dict, at_us: int) -> None:
        self._down(at_us)

    def _attempt_started(self, payload: dict, at_us: int) -> None:
        self._down(at_us)

    def _rollback(self, payload: dict, at_us: int) -> None:
        self._settle(at_us)
        self.ledger.fill(at_us, Cause.RESTORE)

    def _down(self, at_us: int) -> None:
        if self.state is State.STEPPING:
            self.state = State.DOWN
        self._claim(at_us, at_us, Cause.RESTART)

    def _claim(self, start_us: int, end_us: int, cause: Cause) -> None:
        self._settle(start_us, inside=False)
        self.ledger.fill(start_us, _BACKGROUND[self.state])
        self.ledger.fill(end_us, cause)

    def _settle(self, start_us: int, *, inside: bool = True) -> int:
        """Places what waited, before a claim that begins at ``start_us``; gives the blocked time that lies inside it."""
        if self._fault_us is not None:
            struck_us, detected_us = self._fault_us
            self._fault_us = None
            self._place_blocked(struck_us, Cause.LOST_WORK)
            self.ledger.fill(struck_us, Cause.LOST_WORK)
            self.ledger.fill(detected_us, Cause.DETECT)
        if not self._blocked_us:
            return 0
        later = [(begin, end) for begin, end in self._blocked_us if inside and begin >= start_us]
        self._place_blocked(start_us if inside else None, _BACKGROUND[self.state])
        self._blocked_us = []
        return sum(end - begin for begin, end in later)

    def _place_blocked(self, before_us: int | None, background: Cause) -> None:
        for begin, end in self._blocked_us:
            if before_us is None or begin < before_us:
                self.ledger.fill(begin, background)
                self.ledger.fill(end, Cause.CHECKPOINT)
