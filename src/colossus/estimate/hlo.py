"""XLA's text of a compiled program as instructions: names, types, operands, and the FLOP of products.

The text is what ``compiled.as_text()`` prints on the CPU, CUDA and TPU back ends. Only what the reading needs is understood.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod

_WIDTHS = {"pred": 1, "token": 0, "opaque": 0, "bf16": 2, "c64": 8, "c128": 16}
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_TRIPS = re.compile(r'known_trip_count\\?":\s*\{\\?"n\\?":\\?"(\d+)')
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<= ]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_PARENTHESIS = re.compile(r"[()]")
# Products that a GPU's program hands to a library.
_GEMM_CALLS = ("__cublas$gemm", "__cublas$lt$matmul", "__cublas$lt$matmul$f8", "__triton_gemm")


@dataclass(frozen=True)
class Array:
    """Type and dims of one array."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return prod(self.dims) * _bits(self.dtype) // 8


@dataclass(frozen=True)
class Instruction:
    """One line of a computation. ``attributes``: the text behind the operands."""

    name: str
    result: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool = False

    def attribute(self, name: str) -> str | None:
        """The value of ``name={...}`` or ``name=word``, without its braces."""
        found = re.search(rf"\b{name}=(?:\{{([^{{}}]*)\}}|%?([\w.\-$]+|\"[^\"]*\"))", self.attributes)
        return None if found is None else (found[1] if found[1] is not None else found[2].strip('"'))

    @property
    def source(self) -> str:
        """The name that the instruction has in the traced function, "" where the compiler dropped it."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


Computation = dict[str, Instruction]


@dataclass(frozen=True)
class Module:
    """A program's computations by name, and which of them it begins with."""

    computations: dict[str, Computation]
    entry: str


def parse_module(text: str) -> Module:
    """Every computation of the text; a line that is no instruction is passed over."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line[:1] in (" ", "\t"):
            if current is not None and (instruction := parse_instruction(line)):
                current[instruction.name] = instruction
        elif header := _HEADER.match(line):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
    return Module(computations, entry)


def parse_instruction(line: str) -> Instruction | None:
    """``%name = type opcode(operands), attributes``."""
    if not (head := _INSTRUCTION.match(line)):
        return None
    rest = head[3]
    end = _close(rest, 0) if rest.startswith("(") else rest.find(" ")
    call = rest[end:].lstrip()
    if (start := call.find("(")) < 1:
        return None
    stop = _close(call, start)
    return Instruction(head[2], tuple(arrays(rest[:end])), call[:start], _operands(call[start + 1 : stop - 1]), call[stop:], bool(head[1]))


def _operands(text: str) -> tuple[str, ...]:
    """Operands by name; their types, where printed, stand with the instructions that made them."""
    if "%" in text:
        return tuple(_NAME.findall(text))
    return tuple(part.split()[-1] for part in text.split(",") if part.strip())


def _close(text: str, start: int) -> int:
    """The place behind the parenthesis that closes the one at ``start``."""
    depth = 0
    for found in _PARENTHESIS.finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.end()
    return len(text)


def arrays(text: str) -> Iterator[Array]:
    """The arrays of a type, a tuple's in order."""
    for found in _ARRAY.finditer(text):
        yield Array(found[1], tuple(int(dim.strip(" <=")) for dim in found[2].split(",") if dim.strip()))


def _bits(dtype: str) -> int:
    if dtype in _WIDTHS:
        return 8 * _WIDTHS[dtype]
    found = re.match(r"[a-z]+(\d+)", dtype)
    return int(found[1]) if found else 0


def operand_arrays(instruction: Instruction, computation: Computation) -> list[Array]:
    """What the operands hold."""
    return [array for name in instruction.operands if name in computation for array in computation[name].result]


def trip_count(loop: Instruction, around: Computation, module: Module) -> int | None:
    """Turns of a loop: told by the compiler, or as ``lax.scan`` counts, from a constant while below a constant; None else."""
    if found := _TRIPS.search(loop.attributes):
        return int(found[1])
    condition = module.computations.get(loop.attribute("condition") or "", {})
    body = module.computations.get(loop.attribute("body") or "", {})
    test = next((one for one in condition.values() if one.opcode == "compare" and one.attribute("direction") == "LT"), None)
    if test is None:
        return None
    counter, bound = condition[test.operands[0]], _constant(condition, test.operands[1])
    place = counter.attribute("index")
    if place is None or bound is None:
        return None
    first = _constant(around, around[loop.operands[0]].operands[int(place)]) or 0
    return -(-(bound - first) // _stride(body, int(place)))


def _stride(body: Computation, place: int) -> int:
    """By how much a turn counts up: 1 where the addition is hidden in a fusion."""
    root = next((one for one in body.values() if one.is_root), None)
    added = body.get(root.operands[place]) if root is not None and root.opcode == "tuple" else None
    if added is None or added.opcode != "add":
        return 1
    return next((value for name in added.operands if (value := _constant(body, name)) is not None), 1)


def _constant(computation: Computation, name: str) -> int | None:
    """An integer constant, also behind a copy."""
    instruction = computation.get(name)
    while instruction is not None and instruction.opcode in ("copy", "bitcast") and instruction.operands:
        instruction = computation.get(instruction.operands[0])
    known = instruction is not None and instruction.opcode == "constant" and instruction.operands and instruction.operands[0].lstrip("-").isdigit()
    return int(instruction.operands[0]) if known and instruction is not None else None


def product_flop(instruction: Instruction, computation: Computation) -> int:
    """FLOP of a matrix product, however the back end writes it; 0 of anything else."""
    if instruction.opcode == "dot":
        return _dot_flop(instruction, computation, instruction.attribute("lhs_contracting_dims") or "")
    if instruction.opcode == "convolution":
        return _convolution_flop(instruction, computation)
    if instruction.opcode == "custom-call" and instruction.attribute("custom_call_target") in _GEMM_CALLS:
        found = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes)
        return _dot_flop(instruction, computation, found[1].replace('"', "") if found else "")
    return 0


def _dot_flop(instruction: Instruction, computation: Computation, summed: str) -> int:
    """2 x every element of the result x the summed dims."""
    lhs = computation[instruction.operands[0]].result[0].dims
    return 2 * prod(instruction.result[0].dims) * prod(lhs[int(dim)] for dim in summed.split(",") if dim)


def _convolution_flop(instruction: Instruction, computation: Computation) -> int:
    """A TPU writes products as convolutions, batch dims as windows that meet one element each: only met pairs count."""
    found = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if found is None:
        raise ValueError(f"the dims of a convolution cannot be read: {instruction.attributes[:200]}")
    labels = found.groups()
    lhs, rhs = (computation[name].result[0].dims for name in instruction.operands[:2])
    dims = (lhs, rhs, instruction.result[0].dims)
    size = lambda which, label: dims[which][labels[which].index(label)]
    window = {key: value.split("x") for key, value in re.findall(r"(\w+)=([\w\-]+)", instruction.attribute("window") or "")}
    met = 1
    for place, label in enumerate(sorted(filter(str.isdigit, labels[1]))):
        low = int(window["pad"][place].split("_")[0]) if "pad" in window else 0
        stride, lhs_dilation, rhs_dilation = (int(window[key][place]) if key in window else 1 for key in ("stride", "lhs_dilate", "rhs_dilate"))
        met *= met_pairs(*(size(which, label) for which in range(3)), low, stride, lhs_dilation, rhs_dilation)
    return 2 * met * size(1, "i") * size(2, "f") * size(2, "b")


@lru_cache
def met_pairs(lhs: int, rhs: int, out: int, low: int, stride: int, lhs_dilation: int, rhs_dilation: int) -> int:
    """Pairs of an output and a kernel position that meet an element of the input, and neither padding nor a gap."""
    if rhs == 1 and low == 0 and lhs_dilation == 1:
        return out
    spread = (lhs - 1) * lhs_dilation + 1
    total = 0
    for kernel in range(rhs):
        shift = kernel * rhs_dilation - low
        total += sum(1 for o in range(out) if 0 <= o * stride + shift < spread and (o * stride + shift) % lhs_dilation == 0)
    return total
