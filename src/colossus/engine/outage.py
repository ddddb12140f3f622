"""From a fault to the next useful step: what each part of it took."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Outage:
    """One standstill. Times are the supervisor's monotonic clock; a phase's mark is when the last rank reached it."""

    at_s: float
    detected_s: float
    from_step: int
    to_step: int = 0
    num_compilations: int = 0
    marks: dict[str, float] = field(default_factory=dict)

    def reached(self, phase: str, now_s: float, message: dict[str, Any]) -> None:
        """A rank finished a phase."""
        self.marks[phase] = now_s
        self.num_compilations += message.get("compilations", 0)
        if phase == "restored":
            self.to_step = message["step"]
            self.from_step = max(self.from_step, self.to_step)  # a resumed run that had not stepped yet lost nothing

    def payload(self, now_s: float) -> dict[str, Any]:
        """The ``recovered`` event, at the end of the first step of the new gang.

        Phases follow one another: joined, compiled, restored, first step. One that was not told counts as instantaneous.
        """
        joined = self.marks.get("joined", self.detected_s)
        compiled = max(self.marks.get("compiled", joined), joined)
        restored = max(self.marks.get("restored", compiled), compiled)
        return {
            "from_step": self.from_step,
            "to_step": self.to_step,
            "lost_steps": self.from_step - self.to_step,
            "downtime_s": restored - self.at_s,
            "detect_s": self.detected_s - self.at_s,
            "start_s": joined - self.detected_s,
            "compile_s": compiled - joined,
            "restore_s": restored - compiled,
            "first_step_s": now_s - restored,
            "compilations": self.num_compilations,
        }
