"""Where the time of one step went, by kind of work, from XLA's own profiler: what a plan's parts are held against.

At each moment the operations that run share it evenly, so that the parts add up to the time from the first operation's start to the
last one's end, however many threads there are; what no operation covers is overhead. Processors only: on an accelerator XLA
fuses across these kinds.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax

# Kinds by what an operation calls or is called, first match wins; by the scope that it was written in; all else moves numbers about.
_CALLS = (
    ("attention", r"colossus_attention"),
    ("head", r"colossus_cross_entropy"),
    ("gemm", r"colossus_matmul|^dot|gemm|matmul"),
    ("communication", r"all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"),
)
_OPTIMIZER_SCOPE = "optimizer"
# What these run is seen itself, while they last.
_CONTROL_FLOW = frozenset({"while", "call", "conditional"})
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*)$", re.MULTILINE)
_OPCODE = re.compile(r" ([a-z][a-z-]*)\(")
_TARGET, _SCOPE = re.compile(r'custom_call_target="(\w+)"'), re.compile(r'op_name="([^"]*)"')

Span = tuple[str, int, int]  # an operation's name, and its first and last nanosecond


class StepProfile:
    """One step's seconds by part; {} where the profiler could not be used or saw nothing."""

    def __init__(self) -> None:
        self.parts_s: dict[str, float] = {}

    def read(self, folder: str, program: Any) -> None:
        kinds = kinds_of(program.as_text() or "")
        spans = [span for path in Path(folder).rglob("*.xplane.pb") for span in _operations(jax.profiler.ProfileData.from_file(str(path)))]
        named = ((kinds.get(name, kind_of(name)), start, end) for name, start, end in spans)
        self.parts_s = shares_s((kind, start, end) for kind, start, end in named if kind is not None)


@contextlib.contextmanager
def profiled(program: Any) -> Iterator[StepProfile]:
    """Profiles what runs inside, which is a call of the compiled ``program``. Nothing that fails in profiling ends the step."""
    profile = StepProfile()
    with contextlib.ExitStack() as stack:
        folder = None
        with contextlib.suppress(Exception):  # a full disk, a profile under way
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="colossus-profile-", ignore_cleanup_errors=True))
            jax.profiler.start_trace(folder)
        try:
            yield profile
        finally:
            with contextlib.suppress(Exception):
                jax.profiler.stop_trace()
        if folder is not None:
            with contextlib.suppress(Exception):
                profile.read(folder, program)


def kind_of(name: str, scope: str = "") -> str:
    found = next((kind for kind, pattern in _CALLS if re.search(pattern, name)), "gemm" if scope.endswith("/dot_general") else None)
    return found or ("optimizer" if f"/{_OPTIMIZER_SCOPE}/" in scope else "elementwise")


def kinds_of(text: str) -> dict[str, str | None]:
    """The kind of each instruction of a compiled program; None for control flow, which takes no time but its body's."""
    found: dict[str, str | None] = {}
    for name, rest in _INSTRUCTION.findall(text):
        opcode, target, scope = _OPCODE.search(rest), _TARGET.search(rest), _SCOPE.search(rest)
        is_control = opcode is not None and opcode[1] in _CONTROL_FLOW
        found[name] = None if is_control else kind_of(target[1] if target else name, scope[1] if scope else "")
    return found


def shares_s(spans: Iterable[Span]) -> dict[str, float]:
    """Seconds by kind: every moment between the first start and the last end is divided among the spans that hold it."""
    edges = sorted((at, change, kind) for kind, start, end in spans if end > start for at, change in ((start, 1), (end, -1)))
    running: Counter[str] = Counter()
    seconds: dict[str, float] = {}
    for (at, change, kind), (until, _, _) in pairwise(edges):
        running[kind] += change
        width_s, total = (until - at) / 1e9, sum(running.values())
        for name, number in (running if total else {"overhead": 1}).items():
            seconds[name] = seconds.get(name, 0.0) + width_s * number / max(total, 1)
    return {name: value for name, value in seconds.items() if value > 0}


def _operations(data: Any) -> Iterator[Span]:
    """Events that name an instruction of the program."""
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                if any(name == "hlo_op" for name, _ in event.stats):
                    yield str(event.name), int(event.start_ns), int(event.start_ns + event.duration_ns)
