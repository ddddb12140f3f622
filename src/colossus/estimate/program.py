"""Reading a compiled train step: FLOP, loops and collectives of one device, and what nobody asked for.

Instructions inside a loop count as often as it turns. Of a conditional's branches the dearest counts. Work inside other
custom calls than products is not seen; nn/lowering.py names them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from colossus.estimate.groups import axes_of, group_of
from colossus.estimate.hlo import Computation, Instruction, Module, operand_arrays, parse_module, product_flop, trip_count
from colossus.spec.job import Precision
from colossus.spec.layout import MESH_AXES
from colossus.spec.program import Collective, ProgramAccount, ProgramLoop, ProgramOrder, ProgramReading
from colossus.spec.units import format_quantity

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute", "collective-broadcast")
# What a trainer that gathers, scatters and sums never asks for.
_UNASKED = ("all-to-all", "ragged-all-to-all", "collective-permute", "collective-broadcast")
# Below this share of all messages' bytes an unasked one is not worth a word.
_WORTH_FRACTION = 0.01


class Message(NamedTuple):
    """A collective instruction: what it does, over which axes, on how much."""

    opcode: str
    axes: str
    num_in_group: int
    payload_bytes: int
    source: str
    float32_bytes: int
    channel: str = ""


@dataclass
class Totals:
    """What running a computation once amounts to. ``loops``: source and turns; ``endless``: loops of unknown length."""

    flop: int = 0
    messages: Counter[Message] = field(default_factory=Counter)
    loops: Counter[str] = field(default_factory=Counter)
    endless: int = 0

    def add_fused(self, other: Totals) -> None:
        """A TPU's compiler spreads one message over several fusions, from its start to its end: a channel counts once."""
        seen = {message.channel for message in self.messages if message.channel}
        news = Counter({message: count for message, count in other.messages.items() if message.channel not in seen})
        self.add(replace(other, messages=news))

    def add(self, other: Totals, times: int = 1) -> None:
        self.flop += times * other.flop
        self.endless += other.endless
        for mine, theirs in ((self.messages, other.messages), (self.loops, other.loops)):
            for key, count in theirs.items():
                mine[key] += times * count  # type: ignore[index]


def read_program(text: str, order: ProgramOrder, account: ProgramAccount, errors: str = "") -> ProgramReading:
    """Everything at once. ``text``: the compiled program; ``errors``: what the compiler said on stderr."""
    mesh = dict(zip(MESH_AXES, order.layout.axis_sizes, strict=True))
    totals = _Walker(parse_module(text), mesh).computation()
    reading = ProgramReading(
        compiler=order.compiler,
        layout=order.layout,
        flop_per_device=totals.flop,
        memory=account,
        collectives=_collectives(totals.messages),
        loops=[ProgramLoop(num_times=count, source=source) for source, count in totals.loops.most_common()],
    )
    return reading.model_copy(update={"warnings": [*_warnings(order, reading, totals), *rematerializations(errors)]})


@dataclass
class _Walker:
    module: Module
    mesh: Mapping[str, int]
    done: dict[str, Totals] = field(default_factory=dict)

    def computation(self, name: str | None = None) -> Totals:
        name = self.module.entry if name is None else name
        if name not in self.done:
            self.done[name] = Totals()
            body = self.module.computations.get(name, {})
            for instruction in body.values():
                self.instruction(self.done[name], instruction, body)
        return self.done[name]

    def instruction(self, totals: Totals, instruction: Instruction, body: Computation) -> None:
        opcode = instruction.opcode.removesuffix("-start")
        if opcode in COLLECTIVES:
            totals.messages[self.message(opcode, instruction, body)] += 1
        elif opcode == "while":
            self.loop(totals, instruction, body)
        elif opcode == "conditional":
            totals.add(max((self.computation(name) for name in _branches(instruction)), key=lambda branch: (branch.flop, len(branch.messages))))
        elif opcode.endswith(("-done", "-update")):
            return
        else:
            totals.flop += product_flop(instruction, body)
            called = instruction.attribute("calls") or (instruction.attribute("to_apply") if opcode == "call" else None)
            if called:
                inside = self.computation(called.lstrip("%"))
                (totals.add_fused if opcode == "fusion" else totals.add)(inside)

    def loop(self, totals: Totals, instruction: Instruction, around: Computation) -> None:
        inside = self.computation(instruction.attribute("body") or "")
        turns = trip_count(instruction, around, self.module)
        totals.add(inside, turns or 1)
        if not inside.flop and not inside.messages:
            return
        totals.endless += turns is None
        totals.loops[instruction.source] += turns or 1

    def message(self, opcode: str, instruction: Instruction, body: Computation) -> Message:
        group = group_of(instruction.attributes, _product(self.mesh))
        sent = list(instruction.result) if opcode == "all-reduce" else operand_arrays(instruction, body)  # a TPU's may round what it sums
        times = len(group) if opcode == "all-gather" else 1
        payload, wide = (times * sum(array.num_bytes for array in part) for part in (sent, [array for array in sent if array.dtype == "f32"]))
        channel = instruction.attribute("channel_id") or ""
        return Message(opcode, axes_of(group, self.mesh), len(group), payload, instruction.source, wide, channel)


def _branches(instruction: Instruction) -> list[str]:
    listed = instruction.attribute("branch_computations")
    names = listed.split(",") if listed else [instruction.attribute(f"{which}_computation") or "" for which in ("true", "false")]
    return [name.strip().lstrip("%") for name in names]


def _product(mesh: Mapping[str, int]) -> int:
    total = 1
    for size in mesh.values():
        total *= size
    return total


def _collectives(messages: Counter[Message]) -> list[Collective]:
    """Messages of one kind together, those with most bytes first."""
    kinds: dict[tuple[str, str, int], list[tuple[Message, int]]] = {}
    for message, count in messages.items():
        kinds.setdefault((message.opcode, message.axes, message.num_in_group), []).append((message, count))
    found = [
        Collective(
            opcode=opcode,
            axes=axes,
            num_in_group=size,
            payload_bytes=sum(message.payload_bytes * count for message, count in group),
            num_times=sum(count for _, count in group),
            float32_bytes=sum(message.float32_bytes * count for message, count in group),
            source=max(group, key=lambda one: one[0].payload_bytes * one[1])[0].source,
        )
        for (opcode, axes, size), group in kinds.items()
        if size > 1
    ]
    return sorted(found, key=lambda one: -one.payload_bytes)


def _warnings(order: ProgramOrder, reading: ProgramReading, totals: Totals) -> list[str]:
    wide = [] if order.compiler == "cpu" or order.precision is Precision.FLOAT32 else _wide(reading.collectives)
    return [*_unasked(reading.collectives), *wide, *_other_work(reading), *_unseen(reading, totals)]


def _wide(collectives: list[Collective]) -> list[str]:
    """Where the compiler gathers first and rounds then, though the trainer rounds first (a CPU's has no bfloat16 to send)."""
    everything = sum(one.payload_bytes for one in collectives)
    return [
        f"{format_quantity(one.float32_bytes, 'B', binary=True)} a step are gathered over {one.axes} in float32 and only then rounded: twice the bytes"
        for one in collectives
        if one.opcode == "all-gather" and one.float32_bytes > _WORTH_FRACTION * everything
    ]


def _unasked(collectives: list[Collective]) -> list[str]:
    everything = sum(one.payload_bytes for one in collectives)
    worth = [one for one in collectives if one.opcode in _UNASKED and one.payload_bytes > _WORTH_FRACTION * everything]
    return [
        f"{one.opcode} that nobody asked for: {format_quantity(one.payload_bytes, 'B', binary=True)} a step over {one.axes} of {one.num_in_group}"
        + (f", most of it from {one.source}" if one.source else "")
        for one in worth
    ]


def _other_work(reading: ProgramReading) -> list[str]:
    written = reading.memory.written_flop / reading.layout.num_devices
    if not written or abs(reading.flop_per_device / written - 1) < 0.02:
        return []
    share = reading.flop_per_device / written - 1
    what = "more: work is done on several devices at once" if share > 0 else "less: some of it is in calls that cannot be read, or is not needed"
    return [f"the compiled program does {abs(share):.1%} {what} ({format_quantity(reading.flop_per_device, 'FLOP')} a device)"]


def _unseen(reading: ProgramReading, totals: Totals) -> list[str]:
    found = [f"{totals.endless} loops of unknown length are counted once"] if totals.endless else []
    if reading.memory.opaque_calls:
        found.append(f"work inside {', '.join(reading.memory.opaque_calls)} is not counted")
    return found


def rematerializations(errors: str) -> list[str]:
    """Tensors that the partitioner copies whole to every device, since it knows no other way from one cut to the next."""
    lines = [line for line in errors.splitlines() if "Involuntary full rematerialization" in line]
    kinds = Counter(found[1] if (found := re.search(r"HLO operation:? %?[\w.\-]+ = (\w+\[[\d,]*\])", line)) else "a tensor" for line in lines)
    return [f"involuntary full rematerialization, {count} times: {what} is copied whole to every device and cut anew" for what, count in kinds.most_common(8)]
