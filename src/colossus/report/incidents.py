"""Groups faults, decisions and returns to work into incidents: one for each time that training stood still."""

from __future__ import annotations

from typing import Any

from colossus.report.ledger import MICRO, Ledger
from colossus.report.record import FaultRecord, Incident
from colossus.spec.causes import Cause

_PARTS = {"detect_s": Cause.DETECT, "start_s": Cause.RESTART, "restore_s": Cause.RESTORE, "compile_s": Cause.RECOMPILE, "wait_s": Cause.WAIT_NODES}


class Incidents:
    """Open from the first fault to the next step. The parts of its downtime are those that the ledger gave meanwhile.

    Where the log has no phases of workers (a simulation may leave them out), what ``recovered`` tells stands instead.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._rows: list[dict[str, Any]] = []
        self._open = False
        self._untold: list[dict[str, Any]] = []
        self._injected: list[Any] = []

    def given_us(self) -> dict[str, int]:
        """What the ledger has given so far to the parts of any downtime."""
        return {name: self._ledger.given_us(cause) for name, cause in _PARTS.items()}

    def injected(self, payload: dict[str, Any]) -> None:
        self._injected.append(payload["rank"])

    def fault(self, payload: dict[str, Any], *, time_s: float, step: int, idle_since_s: float, given_us: dict[str, int]) -> None:
        rank = payload.get("rank")
        injected = rank in self._injected
        if injected:
            self._injected.remove(rank)
        record = FaultRecord(
            time_s=time_s,
            cause=str(payload["cause"]),
            rank=rank,
            detail=str(payload["detail"]),
            detected_s=payload["detected_s"],
            injected=injected,
            node=payload.get("node"),
            component=payload.get("component"),
        )
        if not self._open:
            row = {"time_s": time_s, "faults": [], "actions": [], "from_step": step, "idle_since_s": idle_since_s, "given_us": given_us}
            self._rows.append(row)
            self._untold.append(row)
            self._open = True
        self._rows[-1]["faults"].append(record)

    def recovery(self, payload: dict[str, Any]) -> None:
        if not self._rows:
            return
        row = self._rows[-1]
        row["actions"].append(str(payload["action"]))
        row["reason"], row["num_workers"] = str(payload["reason"]), payload["num_workers"]

    def attempt(self, how: str) -> None:
        if self._open:
            self._rows[-1]["how"] = how

    def rewound(self, *, from_step: int, to_step: int, lost_steps: int, lost_us: int) -> None:
        """Steps after ``to_step`` will be done again; the incident that is open, if any, is why."""
        if self._open:
            row = self._rows[-1]
            row.update(from_step=max(from_step, row["from_step"]), to_step=to_step)
            row["lost_steps"] = row.get("lost_steps", 0) + lost_steps
            row["lost_s"] = row.get("lost_s", 0.0) + lost_us / MICRO

    def phase(self, payload: dict[str, Any]) -> None:
        """A worker is further on its way back."""
        if self._open:
            row = self._rows[-1]
            row["compilations"] = row.get("compilations", 0) + (payload.get("compilations") or 0)

    def step(self, *, step: int, begun_s: float, duration_s: float) -> None:
        """A step was done, so the incident is over."""
        if self._open:
            row = self._rows[-1]
            row.update(finished=True, to_step=step - 1, first_step_s=duration_s)
            row["downtime_s"] = max(0.0, round(begun_s - row["idle_since_s"], 6))
            if "compilations" in row:
                row.update(self._parts(row["given_us"]))
        self._open = False

    def recovered(self, payload: dict[str, Any]) -> None:
        """What the supervisor measured, where the log tells no phases."""
        if self._untold:
            row = self._untold.pop()
            self._untold.clear()
            for name in (*_PARTS, "compilations", "downtime_s", "first_step_s"):
                if name in payload:
                    row.setdefault(name, payload[name])

    def _parts(self, before_us: dict[str, int]) -> dict[str, float]:
        parts_s = {name: (after_us - before_us[name]) / MICRO for name, after_us in self.given_us().items()}
        return {name: seconds for name, seconds in parts_s.items() if seconds or name != "wait_s"}

    def close_session(self) -> None:
        self._open = False
        self._injected.clear()

    def records(self) -> list[Incident]:
        return [_record(row) for row in self._rows]


def _record(row: dict[str, Any]) -> Incident:
    return Incident(**{name: value for name, value in row.items() if name not in ("idle_since_s", "given_us")})
