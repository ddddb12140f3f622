"""One table from logical axes to mesh axes, and what follows from it.

Every dim of a parameter or an activation has a logical name ("model", "heads", "batch", ...); ``RULES`` says over which
mesh axes that name is cut. Nothing else in ``nn`` knows the mesh's axes, but for the collectives inside shard_map.

- dp copies the weights and cuts the batch. fsdp cuts both: a weight's model dim is stored cut and gathered where it is
  used (ZeRO 3, Rajbhandari et al. 2020). tp cuts heads, feed-forward and vocabulary (Megatron, Shoeybi et al. 2019); between
  blocks, where nothing is left to cut by feature, it cuts the sequence (Korthikanti et al. 2022, sequence parallelism).
- Room for later: pp takes ``layers`` (stages of the stacked dim), cp takes ``sequence`` (ring attention) and joins
  ``sequence_parallel``, ep takes ``experts`` (re-cutting fsdp x tp). Each is a new value in this table and a new axis in MESH_AXES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from math import prod
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from colossus.nn.parameters import param_axes, param_shapes
from colossus.spec.cuts import check_layout
from colossus.spec.errors import Problem, SpecError, nearest
from colossus.spec.layout import MESH_AXES, Layout
from colossus.spec.model import ModelCard

__all__ = [
    "RULES", "Rules", "abstract_mesh", "batch_spec", "check_layout", "constrain", "fallback_specs", "make_mesh", "param_axes",
    "param_specs", "per_device", "place", "shardings", "tree_specs", "whole_sequences",
]  # fmt: skip

Logical = str | None


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Mesh axes for each logical axis; an empty tuple leaves the dim whole on every device."""

    batch: tuple[str, ...] = ("dp", "fsdp")
    sequence: tuple[str, ...] = ()
    sequence_parallel: tuple[str, ...] = ("tp",)
    layers: tuple[str, ...] = ()
    model: tuple[str, ...] = ("fsdp",)
    heads: tuple[str, ...] = ("tp",)
    kv_heads: tuple[str, ...] = ("tp",)
    head_dim: tuple[str, ...] = ()
    ffn: tuple[str, ...] = ("tp",)
    vocab: tuple[str, ...] = ("tp",)
    experts: tuple[str, ...] = ()

    def spec(self, logical: Sequence[Logical], shape: Sequence[int], sizes: Mapping[str, int]) -> P:
        """The PartitionSpec of an array. A dim named in ``WHOLE_IF_UNEVEN`` stays whole where its size does not divide."""
        return P(*(self._entry(name, dim, sizes) for name, dim in zip(logical, shape, strict=True)))

    def _entry(self, name: Logical, dim: int, sizes: Mapping[str, int]) -> str | tuple[str, ...] | None:
        axes = () if name is None else tuple(axis for axis in self._axes(name) if axis in sizes)
        if not axes or (name in WHOLE_IF_UNEVEN and dim % prod(sizes[axis] for axis in axes)):
            return None
        return axes[0] if len(axes) == 1 else axes

    def _axes(self, name: str) -> tuple[str, ...]:
        if name not in (names := [field.name for field in fields(self)]):
            problem = Problem(path="axes", value=repr(name), rule="is not a logical axis", hint=nearest(name, names))
            raise SpecError("logical axes of the network", [problem])
        return () if name == "sequence_parallel" and _SEQUENCES_ARE_WHOLE.get() else getattr(self, name)


# Fewer key/value heads than tp are copied; one token, when generating, has no sequence to cut.
WHOLE_IF_UNEVEN = ("kv_heads", "sequence_parallel")
RULES = Rules()
_SEQUENCES_ARE_WHOLE: ContextVar[bool] = ContextVar("sequences_are_whole", default=False)


@contextmanager
def whole_sequences() -> Iterator[None]:
    """Inside, ``sequence_parallel`` cuts nothing: one all-reduce ends a block where there were a scatter and a gather.

    A step of serving has so few tokens that the number of messages counts, not their bytes.
    """
    token = _SEQUENCES_ARE_WHOLE.set(True)
    try:
        yield
    finally:
        _SEQUENCES_ARE_WHOLE.reset(token)


def make_mesh(layout: Layout, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The mesh of a layout over ``devices`` (default: all); use it with ``jax.set_mesh(mesh)``.

    An axis may take part of a torus' side: fsdp 8 x tp 4 x dp 2 on a TPU slice of 4x4x4.
    """
    given = jax.devices() if devices is None else devices
    placed = create_device_mesh(layout.axis_sizes, given[: layout.num_devices], allow_split_physical_axes=True)
    return jax.sharding.Mesh(placed, MESH_AXES, axis_types=_AUTO)


def abstract_mesh(layout: Layout) -> AbstractMesh:
    """A mesh without devices, for lowering a program for a machine that is not here."""
    return AbstractMesh(layout.axis_sizes, MESH_AXES, axis_types=_AUTO)


_AUTO = (AxisType.Auto,) * len(MESH_AXES)


def current_sizes() -> dict[str, int]:
    """Axis sizes of the mesh in use; empty where none is set or it has a single device."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    return sizes if prod(sizes.values()) > 1 else {}


def axis_size(axis: str) -> int:
    """Size of a mesh axis, 1 where no mesh is in use."""
    return current_sizes().get(axis, 1)


def on_one_shard() -> bool:
    """Whether this is traced inside ``per_device``, where arrays are a device's own parts and nothing is left to lay out."""
    types = jax.sharding.get_abstract_mesh().axis_types
    return bool(types) and all(kind is AxisType.Manual for kind in types)


def constrain(x: jax.Array, *logical: Logical) -> jax.Array:
    """Asks the partitioner to lay ``x`` out as the table says; nothing where no mesh is in use."""
    sizes = {} if on_one_shard() else current_sizes()
    return jax.lax.with_sharding_constraint(x, RULES.spec(logical, x.shape, sizes)) if sizes else x


def per_device(function: Callable[..., Any], inputs: Sequence[Sequence[Logical]], outputs: Any) -> Callable[..., Any]:
    """``function`` run on every device's own shards (shard_map over all axes) where a mesh is in use, as it is elsewhere.

    ``inputs``: a tuple of logical axes for each argument. ``outputs``: a PartitionSpec for each result, made by ``spec_of``.
    Inside, collectives name the mesh axes.
    """
    sizes = current_sizes()
    if not sizes or on_one_shard():
        return function

    def call(*arguments: Any) -> Any:
        in_specs = tuple(_mention_all(RULES.spec(axes, x.shape, sizes), sizes) for axes, x in zip(inputs, arguments, strict=True))
        out_specs = jax.tree.map(lambda spec: _mention_all(spec, sizes), outputs, is_leaf=lambda node: isinstance(node, P))
        return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)(*arguments)

    return call


def _mention_all(spec: P, sizes: Mapping[str, int]) -> P:
    """``spec`` with the axes of size 1 on its first dim: the gradient sums over every axis that a spec leaves out."""
    if not len(spec):
        return spec
    entries = [(entry,) if isinstance(entry, str) else tuple(entry or ()) for entry in spec]
    used = {axis for entry in entries for axis in entry}
    alone = tuple(axis for axis in sizes if sizes[axis] == 1 and axis not in used)
    return P(*((*entries[0], *alone), *entries[1:]))


def spec_of(logical: Sequence[Logical], shape: Sequence[int]) -> P:
    """The PartitionSpec of an array on the mesh in use."""
    return RULES.spec(logical, shape, current_sizes())


def param_specs(card: ModelCard, layout: Layout) -> Any:
    """A PartitionSpec for every parameter of a card's tree."""
    return tree_specs(param_axes(card), param_shapes(card), layout)


def tree_specs(axes: Any, shapes: Any, layout: Layout) -> Any:
    """PartitionSpecs for any tree of arrays (or ShapeDtypeStructs) whose logical axes are declared beside it."""
    sizes = dict(zip(MESH_AXES, layout.axis_sizes, strict=True))
    return jax.tree.map(lambda leaf, names: RULES.spec(names, leaf.shape, sizes), shapes, axes)


def fallback_specs(shapes: Any, layout: Layout) -> Any:
    """PartitionSpecs for a network that declares no axes: the largest dim that fsdp divides is cut, else nothing is."""
    return jax.tree.map(lambda leaf: _largest_dim_spec(leaf.shape, layout.fsdp), shapes)


def _largest_dim_spec(shape: tuple[int, ...], fsdp: int) -> P:
    fitting = [dim for dim, size in enumerate(shape) if size % fsdp == 0 and size > 0]
    if fsdp == 1 or not fitting:
        return P()
    chosen = max(fitting, key=lambda dim: shape[dim])
    return P(*("fsdp" if dim == chosen else None for dim in range(len(shape))))


def shardings(mesh: jax.sharding.Mesh | AbstractMesh, specs: Any) -> Any:
    """``specs`` as NamedShardings on a mesh, for ``in_shardings``, ``out_shardings`` and ``device_put``."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda node: isinstance(node, P))


def batch_spec(ndim: int = 2) -> P:
    """The PartitionSpec of a batch whose first dim is the examples, whatever the rest."""
    return P(RULES.batch, *(None,) * (ndim - 1))


def place(mesh: jax.sharding.Mesh, specs: Any, tree: Any) -> Any:
    """Host arrays, equal in every process, as global arrays on the mesh; each process hands over its own shards only."""
    return jax.tree.map(lambda x, spec: _place(np.asarray(x), NamedSharding(mesh, spec)), tree, specs)


def _place(host: np.ndarray, sharding: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
