"""Which devices a collective joins, in the spellings that XLA prints, and which mesh axes that is.

Devices are counted as positions on the mesh, outermost axis slowest. Groups of one collective are alike, so that one is enough.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod

_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_COUNTED = re.compile(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)")
_IOTA = re.compile(r"(?:\[[\d,]+\]<=)?\[([\d,]+)\](?:T\(([\d,]+)\))?")
_NAMED = re.compile(r"replica_groups=\{?\s*@?\w*mesh\[([^\]]*)\](?:,?\s*device_ids=\((.*?)\)(?=\s*\{))?\s*\{([^}]*)\}")
_PAIRS = re.compile(r"source_target_pairs=\{(.*?\})\}")
_AXIS = re.compile(r"'?([\w.]+)'?=(\d+)")
_PART = re.compile(r"'?([\w.]+)'?(?::\((\d+)\)(\d+))?")


def group_of(attributes: str, num_devices: int) -> list[int]:
    """Positions of the devices of one group; of a permute those that the first device's ring passes."""
    if found := _LISTED.search(attributes):
        return _numbers(found[1])
    if found := _COUNTED.search(attributes):
        count = _numbers(found[1][1 : found[1].index("]")])
        return list(iota(found[1], count[-1]))
    if found := _NAMED.search(attributes):
        return _named(found[1], found[2], found[3])
    if found := _PAIRS.search(attributes):
        return _ring(found[1])
    return list(range(num_devices))


def axes_of(group: Sequence[int], mesh: Mapping[str, int]) -> str:
    """Mesh axes along which the group's devices differ, joined by ``+``; "none" for a group of one."""
    sizes = list(mesh.values())
    places = [unravel(position, sizes) for position in group]
    differing = [axis for dim, axis in enumerate(mesh) if len({place[dim] for place in places}) > 1]
    return "+".join(differing) or "none"


def unravel(position: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """Coordinates of a position, the last dim fastest."""
    place = []
    for size in reversed(sizes):
        position, rest = divmod(position, size)
        place.append(rest)
    return tuple(reversed(place))


def iota(text: str, count: int) -> Iterator[int]:
    """The first ``count`` numbers of ``[...]<=[dims]T(order)``, the first part left out in a mesh: 0 .. n-1 shaped as dims, transposed, read in order."""
    found = _IOTA.match(text)
    assert found is not None, text
    dims = _numbers(found[1])
    order = _numbers(found[2]) if found[2] else list(range(len(dims)))
    turned = [dims[dim] for dim in order]
    strides = [prod(dims[dim + 1 :]) for dim in order]
    for index in range(count):
        yield sum(place * stride for place, stride in zip(unravel(index, turned), strides, strict=True))


def _named(axes: str, device_ids: str | None, parts: str) -> list[int]:
    """``mesh['a'=2,'b'=4] {'b':(1)2}``: the devices along the named axes, or parts of axes, from the first device."""
    sizes = {name: int(size) for name, size in _AXIS.findall(axes)}
    strides = {name: prod(list(sizes.values())[place + 1 :]) for place, name in enumerate(sizes)}
    group = [0]
    for name, before, size in _PART.findall(parts):
        num = int(size) if size else sizes[name]
        stride = strides[name] * (sizes[name] // (int(before) * num) if size else 1)
        group = [member + place * stride for member in group for place in range(num)]
    if device_ids is None:
        return group
    order = list(iota(device_ids, prod(sizes.values()))) if "[" in device_ids else _numbers(device_ids)
    return [order[member] for member in group]


def _ring(text: str) -> list[int]:
    """The devices that a message passes when it is sent on and on, from the first source."""
    targets = {int(source): int(target) for source, target in re.findall(r"\{(\d+),(\d+)\}", text)}
    start = next((source for source, target in targets.items() if source != target), next(iter(targets), 0))
    ring = [start]
    while (following := targets.get(ring[-1])) is not None and following not in ring:
        ring.append(following)
    return ring


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]
