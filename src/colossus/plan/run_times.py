"""Real runs of this machine as its twin needs them: how long each part of their lives took, read off their events."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from colossus.spec.errors import DataError
from colossus.spec.event import Event
from colossus.spec.times import RunTimes

# What a run without a fault, an evaluation or a checkpoint does not tell, as a share of what it does.
_GUESSES: dict[str, tuple[str, float]] = {
    "standby_s": ("import_s", 1.3),
    "reform_s": ("join_s", 3.0),
    "kept_s": ("compile_s", 0.05),
    "restore_ram_s": ("copy_s", 1.0),
    "restore_disk_s": ("save_s", 1.0),
    "first_evaluation_s": ("evaluation_s", 1.0),
    "evaluation_s": ("first_evaluation_s", 1.0),
    "last_save_s": ("save_s", 1.0),
    "last_blocked_s": ("blocked_s", 1.0),
    "save_s": ("last_save_s", 1.0),
    "blocked_s": ("last_blocked_s", 1.0),
}
_NEEDED = ("import_s", "join_s", "standby_s", "reform_s", "first_step_s")
_LEAST_STEPS = 3


@dataclass
class Lived:
    """What one run's events tell: samples by the names of RunTimes, and facts that are no times."""

    samples: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    facts: dict[str, int] = field(default_factory=dict)
    steps_s: list[float] = field(default_factory=list)


def times_of(logs: Sequence[Sequence[Event]], *, known: RunTimes | None, **about: Any) -> RunTimes:
    """Of several runs the middle of each one's mean. ``known``: what was learned before of what these do not tell. DataError where they have no steps."""
    lived = [_Reader().read(events) for events in logs]
    lived = [one for one in lived if len(one.steps_s) >= _LEAST_STEPS]
    if not lived:
        raise DataError(f"no run has {_LEAST_STEPS} steps or more, so none tells how long things take", hint="train for some more steps")
    names = {name for one in lived for name in one.samples}
    found: dict[str, Any] = {name: median(fmean(one.samples[name]) for one in lived if one.samples[name]) for name in names}
    found["step_s"] = median(fmean(one.steps_s) for one in lived)
    found["step_excess_fraction"] = median(fmean(one.steps_s) / median(one.steps_s) - 1 for one in lived)
    found |= {name: value for one in lived for name, value in one.facts.items()}
    before = {} if known is None else {name: value for name, value in known.to_data().items() if name.endswith("_s")}
    found = before | found
    for name, (like, share) in _GUESSES.items():
        if name not in found and like in found:
            found[name] = share * found[like]
    rest = dict.fromkeys(
        ("init_s", "compile_s", "copy_s", "save_s", "blocked_s", "last_save_s", "last_blocked_s", "restore_ram_s", "restore_disk_s", "kept_s"), 0.0
    )
    if untold := sorted(name for name in _NEEDED if name not in found):
        raise DataError(f"no run tells {', '.join(untold)}", hint="the log of a whole run is needed, from its start to some steps")
    return RunTimes.from_data(rest | found | about, origin="times of runs")


class _Reader:
    """Follows a run's first session, gang by gang; of the times that all ranks tell, the last one's counts."""

    def __init__(self) -> None:
        self.lived = Lived()
        self.how = ""
        self.is_first_gang = False
        self.at: dict[str, float] = {}
        self.last_kind = ""
        self.last_s = self.last_step_s = 0.0
        self.num_gang_steps = self.num_gang_evaluations = 0
        self.disk: tuple[float, float] | None = None
        self.saves: list[tuple[float, float]] = []
        self.phases: dict[str, dict[str, Any]] = {}

    def read(self, events: Sequence[Event]) -> Lived:
        for event in sorted(events, key=lambda event: event.time_s):
            if event.kind == "run_started" and self.at:
                break
            handler = getattr(self, f"_{event.kind}", None)
            if handler is not None:
                handler(event.time_s, event.payload)
            if event.kind != "worker_phase":
                self.last_kind = event.kind
            self.last_s = event.time_s
        self._last_save()
        return self.lived

    def _add(self, name: str, seconds: float) -> None:
        self.lived.samples[name].append(max(0.0, seconds))

    def _run_started(self, time_s: float, payload: dict[str, Any]) -> None:
        self.at["run"] = time_s

    def _data_ready(self, time_s: float, payload: dict[str, Any]) -> None:
        self._add("data_s" if payload["cached"] else "cold_data_s", payload["duration_s"])
        self.lived.facts |= {name: payload[name] for name in ("num_tokens", "num_validation_tokens", "vocab_size")}

    def _attempt_started(self, time_s: float, payload: dict[str, Any]) -> None:
        if "gang" not in self.at and "run" in self.at:
            self._add("launch_s", time_s - self.at["run"])
        self.is_first_gang = "gang" not in self.at
        self.at["gang"], self.how = time_s, payload["how"]
        self.phases, self.num_gang_steps, self.num_gang_evaluations = {}, 0, 0

    def _worker_phase(self, time_s: float, payload: dict[str, Any]) -> None:
        told = self.phases.setdefault(payload["phase"], {"began_s": time_s - payload["duration_s"]})
        told |= {"at_s": time_s, "source": payload.get("source"), "compiled": told.get("compiled", 0) + (payload.get("compilations") or 0)}

    def _close_phases(self) -> None:
        """At a gang's first step: what its start was made of."""
        joined, compiled, restored = (self.phases.get(name) for name in ("joined", "compiled", "restored"))
        if joined is None or compiled is None or restored is None:
            return
        if self.how == "start" and self.is_first_gang:
            self._add("import_s", joined["began_s"] - self.at["gang"])
            self._add("join_s", joined["at_s"] - joined["began_s"])
        elif self.how == "reform":
            self._add("reform_s", joined["at_s"] - self.at["gang"])
        is_cold = compiled["compiled"] > 0
        compile_name = "kept_s" if compiled["source"] == "kept" else "cold_compile_s" if is_cold else "compile_s"
        self._add(compile_name, compiled["at_s"] - joined["at_s"])
        names = {"init": "cold_init_s" if is_cold else "init_s", "ram": "restore_ram_s", "disk": "restore_disk_s"}
        self._add(names[restored["source"]], restored["at_s"] - compiled["at_s"])
        if is_cold:  # the only ones there are, until a warm run tells better
            self.lived.samples.setdefault("compile_s", [compiled["at_s"] - joined["at_s"]])
            if restored["source"] == "init":
                self.lived.samples.setdefault("init_s", [restored["at_s"] - compiled["at_s"]])

    def _step(self, time_s: float, payload: dict[str, Any]) -> None:
        self.num_gang_steps += 1
        if self.num_gang_steps == 1:
            self._close_phases()
            if "restored" in self.phases:
                self._add("first_step_s", time_s - self.phases["restored"]["at_s"])
            if self.is_first_gang:  # later ones may have to wait before they are started
                self.at["standby"] = time_s
        else:
            self.lived.steps_s.append(payload["duration_s"])
            self._add("data_wait_s", payload["data_s"])
            if self.last_kind == "step":
                self._add("between_s", time_s - payload["duration_s"] - self.last_step_s)
        self.last_step_s = time_s

    def _step_parts(self, time_s: float, payload: dict[str, Any]) -> None:
        self._add("profile_s", time_s - self.last_step_s)

    def _standby_ready(self, time_s: float, payload: dict[str, Any]) -> None:
        if "standby" in self.at:
            self._add("standby_s", time_s - self.at.pop("standby"))

    def _evaluation(self, time_s: float, payload: dict[str, Any]) -> None:
        self.num_gang_evaluations += 1
        self._add("first_evaluation_s" if self.num_gang_evaluations == 1 else "evaluation_s", payload["duration_s"])

    def _checkpoint_started(self, time_s: float, payload: dict[str, Any]) -> None:
        if payload["tier"] == "ram":
            self._add("copy_s", payload["blocked_s"])
        else:
            self.disk = time_s, payload["blocked_s"]

    def _checkpoint_saved(self, time_s: float, payload: dict[str, Any]) -> None:
        if self.disk is not None:
            self.saves.append((self.disk[1], payload["duration_s"]))
            self.at["saved"] = time_s
        self.lived.facts["save_bytes"] = payload["size_bytes"]
        self.disk = None

    def _fault(self, time_s: float, payload: dict[str, Any]) -> None:
        if payload["cause"] == "killed" and payload["detected_s"]:
            self._add("exit_s", payload["detected_s"])

    def _run_ended(self, time_s: float, payload: dict[str, Any]) -> None:
        if "saved" in self.at:
            self._add("end_s", time_s - self.at["saved"])

    def _last_save(self) -> None:
        """The last one waits for nothing else, and nothing waits beside it."""
        for blocked_s, save_s in self.saves[:-1]:
            self._add("blocked_s", blocked_s)
            self._add("save_s", save_s)
        if self.saves:
            self._add("last_blocked_s", self.saves[-1][0])
            self._add("last_save_s", self.saves[-1][1])
