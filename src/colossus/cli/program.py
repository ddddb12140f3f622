"""``colossus plan --read-program``: compiles the real train step for the machine and holds the closed forms against it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from colossus.plan.question import Asked
    from colossus.spec.layout import Layout
    from colossus.spec.plan import MemoryEstimate
    from colossus.spec.program import Compiler, ProgramOrder, ProgramReading

# Bytes over axes that no formula foresees are listed from this share of all on.
_WORTH_FRACTION = 0.01


def program_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--read-program`` and what belongs to it."""
    for option in (
        click.option("--compile-timeout", type=click.FloatRange(min=1), default=600.0, show_default=True, help="Seconds the compiler may take."),
        click.option(
            "--read-layout", metavar="AXES", help="Compile this layout, e.g. dp=2,fsdp=64,tp=8,remat=full; default the plan's best that the trainer runs."
        ),
        click.option("--read-program", is_flag=True, help="Compile the real train step for the machine, here and without it, and read what it does."),
    ):
        function = option(function)
    return function


def show_program(asked: Asked, options: dict[str, Any], *, as_json: bool) -> None:
    """Compiles, reads, compares and prints."""
    from colossus.cli.common import print_json, talk

    question = asked.question
    layout = parse_layout(options["read_layout"]) if options["read_layout"] else _planned_layout(asked)
    talk().print(f"compiling the train step of {asked.model} for {question.num_chips:,} x {question.chip}: {layout.describe()}")
    order, reading = read(asked, layout, timeout_s=options["compile_timeout"])
    rows = comparison(order, reading)
    if as_json:
        print_json(
            reading.to_data() | {"sequences": order.num_sequences, "against": [dict(zip(("figure", "read", "closed_form"), row, strict=True)) for row in rows]}
        )
        return
    _print_reading(order, reading, rows)


def _planned_layout(asked: Asked) -> Layout:
    from colossus.plan.program import trainable_layout

    return trainable_layout(asked.question)


def parse_layout(text: str) -> Layout:
    """``dp=2,fsdp=64,tp=8,remat=full`` as a layout."""
    from colossus.spec.errors import Problem, SpecError
    from colossus.spec.layout import Layout

    data: dict[str, Any] = {}
    for pair in text.split(","):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            raise SpecError("--read-layout", [Problem(path="--read-layout", value=repr(text), rule="must look like dp=2,fsdp=64,tp=8,remat=full")])
        data[name] = int(value) if value.isdecimal() else value
    return Layout.from_data(data, origin="--read-layout")


def read(asked: Asked, layout: Layout, *, timeout_s: float) -> tuple[ProgramOrder, ProgramReading]:
    """By the chip's own compiler where it is installed and lives, else by the CPU's, and says so."""
    compiler, target, why_not = _compiler(asked)
    if compiler == "cpu":
        return _read_by(asked, layout, "cpu", None, why_not, timeout_s)
    from colossus.spec.errors import EngineError

    try:
        return _read_by(asked, layout, compiler, target, None, timeout_s)
    except EngineError as error:
        return _read_by(asked, layout, "cpu", None, f"{error}; read from the CPU's program instead", timeout_s)


def _read_by(asked: Asked, layout: Layout, compiler: Compiler, target: str | None, note: str | None, timeout_s: float) -> tuple[ProgramOrder, ProgramReading]:
    from colossus.engine.compiler import MAX_MADE_UP_DEVICES, compile_program
    from colossus.estimate.program import read_program
    from colossus.plan.program import program_order

    order = program_order(asked.question, layout, compiler, MAX_MADE_UP_DEVICES, target)
    made = compile_program(order, timeout_s=timeout_s)
    reading = read_program(made.text, order, made.account, made.errors)
    notes = [*([note] if note else []), *_notes(order, layout, asked.question.precision)]
    return order, reading.model_copy(update={"notes": notes})


def _notes(order: ProgramOrder, layout: Layout, precision: str) -> list[str]:
    """How what was compiled differs from what will run."""
    from colossus.spec.job import Precision
    from colossus.spec.units import format_quantity

    notes = []
    if order.layout != layout:
        notes.append(f"compiled with dp {order.layout.dp} instead of {layout.dp}: a device's work is the same, only sums over dp have fewer members")
    if precision != order.precision.value:
        notes.append(f"compiled in {order.precision.value}: the trainer does not compute in {precision}")
    if order.precision is Precision.BFLOAT16 and order.compiler == "cpu":
        notes.append("the CPU's compiler sends and keeps bfloat16 as float32")
    if order.precision is Precision.BFLOAT16 and order.platform == "gpu":
        scores = planned_memory(order, "plain").total_bytes - planned_memory(order, "gpu").total_bytes
        notes.append(f"attention is compiled in its plain form: the chip's kernel keeps no scores, {format_quantity(scores, 'B', binary=True)} of the peak")
    return notes


def planned_memory(order: ProgramOrder, platform: str) -> MemoryEstimate:
    """The closed form of memory. ``platform`` "gpu" has attention kernels, "plain" has none."""
    from colossus.estimate.memory import train_memory

    return train_memory(
        order.card, order.layout, num_sequences=order.num_sequences, sequence_tokens=order.sequence_tokens,
        precision=order.precision, optimizer=order.optimizer.kind, platform=platform,
    )  # fmt: skip


def _compiler(asked: Asked) -> tuple[Compiler, str | None, str | None]:
    """Which compiler to ask, its description of the chip, and why it is only the CPU's where it is."""
    from colossus.catalog.targets import load_target
    from colossus.engine.compiler import installed
    from colossus.plan.program import TPU_DIMS

    chip, kind = asked.question.chip, asked.question.machine.node.chip.kind
    target = load_target(chip)
    if kind == "cpu":
        return "cpu", None, None
    if kind == "gpu" and target and installed("cuda"):
        return "cuda", target, None
    if chip in TPU_DIMS and installed("tpu"):
        return "tpu", None, None
    missing = "pip install 'colossus[aot]' brings it" if chip in TPU_DIMS or target else "none can be asked for it yet"
    return "cpu", None, f"read from the CPU's program: no compiler for {chip} here ({missing}); its messages and memory differ from the chip's own"


def comparison(order: ProgramOrder, reading: ProgramReading) -> list[tuple[str, float, float]]:
    """(figure, as read, in closed form) of one device."""
    from colossus.estimate.trainer import step_flop, step_traffic
    from colossus.spec.job import Precision

    batch = (order.num_sequences, order.sequence_tokens)
    on_cpu = order.compiler == "cpu"
    need = planned_memory(order, "cpu" if order.platform == "cpu" else "plain")
    sent = Precision.FLOAT32 if on_cpu else order.precision
    expected = step_traffic(order.card, order.layout, *batch, sent, adds_before_sending=not on_cpu, scatters_embedding=order.compiler == "cuda")
    read_bytes = reading.bytes_by_axes()
    found = {axes: num_bytes for axes, num_bytes in read_bytes.items() if axes in expected or num_bytes > _WORTH_FRACTION * sum(read_bytes.values())}
    rows = [
        ("FLOP", float(reading.flop_per_device), step_flop(order.card, order.layout, *batch)),
        ("peak memory", float(reading.memory.peak_bytes), need.total_bytes),
    ]
    rows += [(f"bytes over {axes}", float(found.get(axes, 0)), expected.get(axes, 0.0)) for axes in dict.fromkeys([*expected, *found])]
    return rows


def _print_reading(order: ProgramOrder, reading: ProgramReading, rows: list[tuple[str, float, float]]) -> None:
    from colossus.cli.common import paper

    console = paper()
    account = reading.memory
    how = f"compiled in {account.compile_s:.0f} s within {account.compiler_memory_bytes / 1e9:.1f} GB"
    console.print(f"{order.layout.describe()} on {order.layout.num_devices:,} devices, {order.num_sequences:,} x {order.sequence_tokens:,} tokens; {how}\n")
    console.print(_comparison_table(rows))
    console.print()
    console.print(_collectives_table(reading))
    if reading.loops:
        console.print("\nloops: " + ", ".join(f"{loop.num_times} turns" for loop in reading.loops))
    for kind, lines in (("warning", reading.warnings), ("note", reading.notes)):
        for line in lines:
            console.print(f"{kind}: {line}")


def _comparison_table(rows: list[tuple[str, float, float]]) -> Any:
    from rich.table import Table

    from colossus.spec.units import format_quantity

    table = Table("a device, a step", "as compiled", "closed form", "", box=None, padding=(0, 2, 0, 0))
    for name, found, expected in rows:
        unit, binary = ("FLOP", False) if name == "FLOP" else ("B", True)
        off = f"{found / expected - 1:+.1%}" if expected else "not foreseen"
        table.add_row(name, format_quantity(found, unit, binary=binary), format_quantity(expected, unit, binary=binary), off)
    return table


def _collectives_table(reading: ProgramReading) -> Any:
    from rich.table import Table

    from colossus.spec.units import format_quantity

    table = Table("collective", "over", "of", "times", "payload", box=None, padding=(0, 2, 0, 0))
    for one in reading.collectives:
        table.add_row(one.opcode, one.axes, f"{one.num_in_group:,}", f"{one.num_times:,}", format_quantity(one.payload_bytes, "B", binary=True))
    return table
