"""A train step lowered for a machine that is not here, and the work that the lowered program holds.

``lower`` needs no device and no memory for the weights: the mesh is abstract, the arrays are shapes. ``count_flop`` walks the
StableHLO that comes out, before XLA's own optimisation: a loop's body counts times its trip count, the body of a shard_map
times its devices. So it is what the program really says, the blocks above attention's diagonal and what remat does again
included; only GEMMs count (``stablehlo.dot_general``, ``chlo.ragged_dot``). Custom calls are opaque: their names are returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import jax
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import chlo, sdy, stablehlo

from colossus.nn import sharding
from colossus.spec.errors import ColossusError, SpecError
from colossus.spec.layout import Layout
from colossus.spec.model import ModelCard


@dataclass(frozen=True)
class FlopCount:
    """FLOP of a lowered program on all devices together, and the custom calls that could not be looked into."""

    total_flop: int
    opaque_calls: tuple[str, ...] = ()


def lower(step: Callable[..., Any], arguments: tuple[Any, ...], layout: Layout, *, platform: str = "cuda") -> jax.stages.Lowered:
    """``jit(step)`` on shapes with shardings (see ``abstract``), for a platform that need not be installed."""
    with jax.sharding.use_abstract_mesh(sharding.abstract_mesh(layout)):
        return jax.jit(step).trace(*arguments).lower(lowering_platforms=(platform,))


def abstract(shapes: Any, specs: Any, layout: Layout) -> Any:
    """ShapeDtypeStructs of global arrays, each with its sharding on the layout's abstract mesh."""
    placed = sharding.shardings(sharding.abstract_mesh(layout), specs)
    return jax.tree.map(lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, placed)


def require_layout(card: ModelCard, layout: Layout, num_sequences: int, sequence_tokens: int) -> None:
    """Raises SpecError with everything the layout cannot cut."""
    if problems := sharding.check_layout(card, layout, num_sequences, sequence_tokens):
        raise SpecError(f"layout {layout.describe()}", problems)


def count_flop(lowered: jax.stages.Lowered) -> FlopCount:
    """The GEMM FLOP of a lowered program."""
    module: Any = lowered.compiler_ir("stablehlo")
    walker = _Walker()
    with module.context:
        for op in module.body.operations:
            walker.declare(op.operation)
        return FlopCount(walker.function("main"), tuple(sorted(walker.opaque)))


@dataclass
class _Walker:
    """Adds up one module: functions once each, by name."""

    functions: dict[str, Any] = field(default_factory=dict)
    mesh_sizes: dict[str, dict[str, int]] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    opaque: set[str] = field(default_factory=set)

    def declare(self, op: Any) -> None:
        if op.name == "func.func":
            self.functions[_text(op, "sym_name")] = op
        elif op.name == "sdy.mesh":
            axes = sdy.MeshAttr(op.attributes["mesh"]).axes
            self.mesh_sizes[_text(op, "sym_name")] = {axis.name: axis.size for axis in map(sdy.MeshAxisAttr, axes)}

    def function(self, name: str) -> int:
        if name not in self.counted:
            self.counted[name] = self.regions(self.functions[name].regions)
        return self.counted[name]

    def regions(self, regions: Iterable[Any]) -> int:
        return sum(self.operation(op.operation) for region in regions for block in region for op in block)

    def operation(self, op: Any) -> int:
        match op.name:
            case "stablehlo.dot_general":
                return _dot_flop(op)
            case "chlo.ragged_dot":
                return _ragged_dot_flop(op)
            case "func.call":
                return self.function(ir.FlatSymbolRefAttr(op.attributes["callee"]).value)
            case "stablehlo.while":
                inside = self.regions(op.regions)
                return inside * _trip_count(op) if inside else 0
            case "stablehlo.case" | "stablehlo.if":
                return max(self.regions([region]) for region in op.regions)
            case "sdy.manual_computation":
                return self.regions(op.regions) * self.manual_devices(op)
            case "stablehlo.custom_call":
                self.opaque.add(_text(op, "call_target_name"))
                return 0
        return self.regions(op.regions)

    def manual_devices(self, op: Any) -> int:
        """Devices that run the body of a shard_map, each on its own shards."""
        sizes = next(iter(self.mesh_sizes.values()))
        axes: Any = sdy.ManualAxesAttr(op.attributes["manual_axes"])
        return prod(sizes[getattr(axis, "value", axis)] for axis in axes)


def _text(op: Any, attribute: str) -> str:
    return str(ir.StringAttr(op.attributes[attribute]).value)


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(ir.RankedTensorType(value.type).shape)


def _dot_flop(op: Any) -> int:
    """2 x every element of the result x the summed dims."""
    numbers = stablehlo.DotDimensionNumbers(op.attributes["dot_dimension_numbers"])
    lhs = _shape(op.operands[0])
    return 2 * prod(_shape(op.results[0])) * prod(lhs[dim] for dim in numbers.lhs_contracting_dimensions)


def _ragged_dot_flop(op: Any) -> int:
    """Each row meets its own group's matrix only: 2 x rows x inputs x outputs, whichever of them the result holds."""
    numbers = chlo.RaggedDotDimensionNumbers(op.attributes["ragged_dot_dimension_numbers"])
    lhs, result = _shape(op.operands[0]), _shape(op.results[0])
    contracting = tuple(numbers.lhs_contracting_dimensions)
    per_group = prod(result) * prod(lhs[dim] for dim in contracting)
    sums_rows = set(numbers.lhs_ragged_dimensions) <= set(contracting)
    return 2 * per_group // (_shape(op.operands[2])[-1] if sums_rows else 1)


def _trip_count(op: Any) -> int:
    """Turns of a counted loop, as ``lax.scan`` makes it: from a constant, while below a constant, by a constant."""
    condition, body = (region.blocks[0] for region in op.regions)
    test = _producer(condition.operations[len(condition.operations) - 1].operands[0])
    if test is None or test.name != "stablehlo.compare" or "LT" not in str(test.attributes["comparison_direction"]):
        raise ColossusError(f"the trip count of a loop is not plain from the program: {test}")
    index = ir.BlockArgument(test.operands[0]).arg_number
    step = _producer(body.operations[len(body.operations) - 1].operands[index])
    first, bound = _constant(op.operands[index], op), _constant(test.operands[1], op)
    stride = 1 if step is None or step.name != "stablehlo.add" else _constant(step.operands[1], op)
    return -(-(bound - first) // stride)


def _producer(value: Any) -> Any:
    """The operation that made a value, None for an argument of a block."""
    return None if isinstance(value.owner, ir.Block) else value.owner


def _constant(value: Any, loop: Any) -> int:
    """An integer constant, looked up outside the loop where the loop carries it unchanged."""
    if isinstance(value.owner, ir.Block):
        value = loop.operands[ir.BlockArgument(value).arg_number]
    producer = _producer(value)
    if producer is None or producer.name != "stablehlo.constant":
        raise ColossusError(f"the trip count of a loop is not a constant: {value}")
    return int(ir.DenseIntElementsAttr(producer.attributes["value"])[0])
