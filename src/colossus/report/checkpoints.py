"""Counts checkpoints: kept, failed, rejected; what they took and how long steps stood still for them."""

from __future__ import annotations

from typing import Any

from colossus.report.record import CheckpointRecord


class Checkpoints:
    """Follows the checkpoint events of one run."""

    def __init__(self) -> None:
        self.interval_steps: int | None = None
        self._saved: list[tuple[int, float, float, float]] = []
        self._blocked_s: dict[int, float] = {}
        self._num_in_ram = self._num_in_spans = 0
        self._total_blocked_s = 0.0
        self._failed: list[str] = []
        self._rejected: list[str] = []
        self._ratios: list[tuple[float, float]] = []

    def started(self, payload: dict[str, Any]) -> None:
        self._total_blocked_s += payload["blocked_s"]
        if payload["tier"] == "ram":
            self._num_in_ram += 1
        else:
            self._blocked_s[payload["step"]] = payload["blocked_s"]

    def spanned(self, payload: dict[str, Any]) -> None:
        """A span of steps tells of its own saves by their number alone."""
        self._num_in_spans += payload["num_saves"]
        if payload["num_saves"]:
            self._total_blocked_s += payload["blocked_s"]

    def saved(self, payload: dict[str, Any], *, time_s: float) -> None:
        self._saved.append((int(payload["step"]), time_s, payload["duration_s"], payload["size_bytes"]))
        blocked_s = self._blocked_s.pop(payload["step"], None)
        if blocked_s is not None:
            self._ratios.append((blocked_s, payload["duration_s"]))

    def failed(self, payload: dict[str, Any]) -> None:
        self._failed.append(f"step {payload['step']} not saved: {payload['reason']}")

    def rejected(self, payload: dict[str, Any]) -> None:
        self._rejected.append(f"step {payload['step']} damaged: {payload['reason']}")

    def record(self) -> CheckpointRecord:
        number = len(self._saved)
        saving_s = sum(duration_s for _, duration_s in self._ratios)
        return CheckpointRecord(
            num_saved=number,
            num_in_ram=self._num_in_ram,
            num_in_spans=self._num_in_spans,
            num_failed=len(self._failed),
            num_rejected=len(self._rejected),
            saved_steps=[step for step, *_ in self._saved],
            saved_times_s=[time_s for _, time_s, *_ in self._saved],
            mean_size_bytes=sum(row[3] for row in self._saved) / number if number else None,
            mean_duration_s=sum(row[2] for row in self._saved) / number if number else None,
            blocked_s=self._total_blocked_s,
            blocked_fraction=sum(blocked_s for blocked_s, _ in self._ratios) / saving_s if saving_s else None,
            interval_steps=self.interval_steps,
            problems=self._failed + self._rejected,
        )
