"""The one event schema: what a real run and a simulation write, line by line, into ``events.jsonl``.

A line is ``{"time_s", "kind", "scope", "payload"}``: seconds since the Unix epoch (simulated clocks: since the start),
a kind of KINDS, who it concerns (attempt, rank), and exactly the fields that KINDS names for the kind.
A line torn by a kill or a full disk is skipped by the reader; every later line starts afresh.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# kind -> field -> meaning. A field that ends in "?" may be absent or null.
KINDS: dict[str, dict[str, str]] = {
    "run_started": {
        "name": "the job's name",
        "num_workers": "worker processes of the gang",
        "num_steps": "steps the job asks for",
        "layout": "mesh axes, remat and microbatches",
        "platform": "cpu, gpu or tpu",
        "tokens_per_step?": "training tokens of one step",
        "model_flop_per_token?": "model FLOP (forward and backward, no recompute) of one token",
        "peak_flop_per_s?": "measured or datasheet peak of the cores or accelerators that the workers use, together",
        "peak_how?": "how the peak was obtained",
        "planned?": "what the plan says of step time and its parts, memory, checkpoints and compiling, to be held against the run",
    },
    "data_ready": {
        "num_tokens": "training tokens in the shards",
        "num_validation_tokens": "tokens held out",
        "vocab_size": "entries of the tokenizer",
        "cached": "true when the shards were already there",
        "duration_s": "time it took",
    },
    "attempt_started": {
        "attempt": "1 for the first launch of the gang, one more each time it is formed anew",
        "num_workers": "size of this gang",
        "how": "start (new processes), standby (pre-started ones) or reform (survivors stayed)",
        "pids": "process ids by rank, of the first 1,024",
    },
    "worker_phase": {
        "phase": "joined, compiled or restored, in this order",
        "duration_s": "time it took",
        "compilations?": "programs compiled in this phase, not taken from the cache",
        "step?": "step of the state, where the phase has one",
        "source?": "where the state (init, disk or ram) or the compiled step (traced or kept) came from",
    },
    "standby_ready": {"pid": "process that has imported everything and waits to take a dead worker's rank"},
    "step": {
        "step": "optimizer steps done",
        "loss": "training loss of the step over the whole batch, of a language model in nats per token (null when not finite)",
        "grad_norm": "global gradient norm before clipping (null when not finite)",
        "learning_rate": "applied rate",
        "duration_s": "wall time of the step",
        "data_s": "of it, waiting for the batch",
        "blocked_s": "of it, blocked by checkpoints",
        "memory_bytes": "peak memory of the busiest device so far (CPU: resident set of rank 0)",
        "applied": "false when the guard skipped the update",
        "metrics?": "what the program's own loss reported",
    },
    "steps": {
        "from_step": "optimizer steps done before a span of equal steps, which a simulation tells as one",
        "to_step": "steps done at its end; spans end where the state is saved that a later gang goes on from",
        "duration_s": "wall time of the span, the sum of the parts below",
        "productive_s": "of it, what the same steps take without any loss",
        "blocked_s": "of it, blocked by checkpoints inside it, also by those that events of their own tell",
        "straggler_s": "of it, waiting for slow chips or a congested network",
        "power_cap_s": "of it, slowed because the site could not draw more",
        "fewer_nodes_s": "of it, slowed because the gang had fewer nodes than planned",
        "num_saves": "checkpoints in it, to memory or disk, that no event of their own tells",
    },
    "waiting": {
        "duration_s": "time that the gang stood still until enough nodes were there, at its end",
        "reason": "what it waited for",
        "is_planned?": "true where the time was for maintenance",
    },
    "step_parts": {
        "step": "the step that rank 0 profiled, once in a run; starting and reading the profile lie beside its duration",
        "parts_s": "its seconds by part: gemm, attention, head, elementwise, communication, optimizer and overhead; they add up to its operations' span",
    },
    "evaluation": {
        "step": "steps done",
        "loss": "mean validation loss (null when not finite)",
        "perplexity?": "exp(loss), for token models",
        "duration_s": "time it took",
        "metrics?": "what the program itself reported",
    },
    "bad_step": {
        "step": "the step whose update was skipped",
        "reason": "non-finite or spike",
        "loss": "its loss (null when not finite)",
        "in_a_row": "bad steps in a row so far",
    },
    "rollback": {"from_step": "where the run stood", "to_step": "the good checkpoint it went back to", "reason": "why"},
    "checkpoint_started": {"step": "state's step", "tier": "disk or ram", "blocked_s": "time the step loop stood still"},
    "checkpoint_saved": {"step": "state's step", "tier": "disk", "duration_s": "start to committed", "size_bytes": "on disk"},
    "checkpoint_rejected": {"step": "state's step", "reason": "what was damaged"},
    "checkpoint_failed": {"step": "state's step", "reason": "e.g. disk full; older ones stay"},
    "interval_chosen": {
        "interval_steps": "steps between disk checkpoints from now on",
        "save_s": "measured time of a save",
        "step_s": "measured time of a step",
        "mtbf_s": "time between failures assumed or observed",
    },
    "fault": {
        "cause": "killed (by a signal), exited, hung, or peer (a collective failed though all live)",
        "rank?": "whose, the first where there are several",
        "detail": "in words",
        "detected_s": "time from the fault to its detection where known, else 0",
        "node?": "the node it took, where nodes are told apart",
        "component?": "what failed: gpu, hbm, nvlink, nic, optics, switch, host, power_supply, cooling, storage, software, operator or unknown",
    },
    "recovery": {
        "action": "what the policy decided: reform, restart, shrink or give_up",
        "reason": "why",
        "num_workers": "size of the next gang",
    },
    "recovered": {
        "from_step": "steps done when the fault came",
        "to_step": "step of the state that training went on from",
        "lost_steps": "steps done twice",
        "downtime_s": "the fault to the first step of the new gang begun",
        "detect_s": "fault to detection",
        "start_s": "detection to all workers joined",
        "compile_s": "from there to programs ready",
        "restore_s": "from there to the state restored",
        "first_step_s": "the first step itself",
        "compilations": "programs compiled anew, over all ranks",
    },
    "injected": {"what": "a fault made on purpose, e.g. SIGKILL", "rank": "whose", "pid": "whose"},
    "run_ended": {"status": "done, interrupted or failed", "step": "steps done", "reason?": "why, where not done"},
}


# kind -> fields that it must have, fields that it may have
_FIELDS = {
    kind: (frozenset(name for name in fields if not name.endswith("?")), frozenset(name.removesuffix("?") for name in fields)) for kind, fields in KINDS.items()
}


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of ``events.jsonl``."""

    time_s: float
    kind: str
    payload: dict[str, Any]
    scope: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fields = _FIELDS.get(self.kind)
        if fields is None:
            raise ValueError(f"unknown event kind {self.kind!r}")
        required, names = fields
        if not required <= self.payload.keys() <= names:
            raise ValueError(f"{self.kind}: missing {required - self.payload.keys()}, unknown {self.payload.keys() - names}")

    def to_line(self) -> str:
        data = {"time_s": self.time_s, "kind": self.kind, "scope": self.scope, "payload": self.payload}
        return json.dumps(data, separators=(",", ":"), allow_nan=False)


def append_events(path: Path, events: list[Event]) -> None:
    """Appends whole lines in one write, so that concurrent writers and kills cannot interleave them.

    A preceding torn line is closed first. Raises OSError when the disk refuses.
    """
    text = "".join(event.to_line() + "\n" for event in events)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        data = ("\n" * torn + text).encode()
        if os.write(descriptor, data) < len(data):
            raise OSError(errno.ENOSPC, "only a part of the events could be written", str(path))
    finally:
        os.close(descriptor)


def _read(data: dict[str, Any]) -> Event:
    """An event as its constructor makes it, at half the cost: logs have hundreds of thousands."""
    event = object.__new__(Event)
    event.__dict__.update(time_s=data["time_s"], kind=data["kind"], payload=data["payload"], scope=data["scope"])
    event.__post_init__()
    return event


def read_events(path: Path, *, offset: int = 0) -> Iterator[Event]:
    """The events of a file from a byte offset on; torn, foreign or unknown lines are skipped."""
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            try:
                data = json.loads(line.decode())
                yield _read(data)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
