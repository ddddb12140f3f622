"""Links that an axis of a layout uses on a torus (TPU slices), where every chip has two links along each dim.

Source: "How to scale your model" (jax-ml.github.io/scaling-book), chapters TPUs and sharded matrices; N. Jouppi et al., TPU v4,
arXiv 2304.01433, section 2: a dim has links around it only where it is long enough (whole cubes of 4 in v4; 16 in v5e).

Axes are laid inner to outer over the dims in order: an axis of ``size`` that starts ``inner`` chips apart takes a run of each dim
that it reaches, ``stride`` chips from one member to the next; strided groups share a dim's links. Where slices are joined of cubes by
optical switches (v4, v5p, v7), the slice is taken in the shape whose dims end where the axis begins or ends, if a dim of whole
cubes can. Ignored: twisted tori, and meshes that a compiler folds otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from colossus.estimate.shape import Device, Numbers

_WHOLE = 0.999  # dims may be roots


def runs(device: Device, size: Numbers, inner: Numbers) -> Iterator[tuple[Numbers, Numbers, Numbers]]:
    """Of each dim: the members of one group along it, the chips between two of them, and the links that one member has there."""
    before: Numbers = 1.0
    for length in _lengths(device, np.where(inner > 1, inner, size)):
        low, high = np.maximum(inner, before), np.minimum(inner * size, before * length)
        members = np.maximum(high / low, 1.0)
        stride = np.maximum(low / before, 1.0)
        around = (members * stride >= _WHOLE * length) & (length >= device.num_wraparound_chips)
        yield members, stride, np.where(members > 1, np.where(around, 2.0, 1.0) / stride, 0.0)
        before = before * length


def _lengths(device: Device, border: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """The dims, reshaped where they can be so that one or two of them hold ``border`` chips."""
    edge, whole = device.num_wraparound_chips, device.torus_x * device.torus_y * device.torus_z
    cubes = (device.num_torus_dims == 3) & (device.torus_x > edge) & (border >= edge)
    one, two = cubes & (border * edge**2 <= whole), cubes & (border * edge <= whole) & (border >= edge**2)
    root, rest = np.sqrt(border), np.sqrt(whole / border)
    return (
        np.where(one, border, np.where(two, root, device.torus_x)),
        np.where(one, rest, np.where(two, root, device.torus_y)),
        np.where(one, rest, np.where(two, whole / border, device.torus_z)),
    )


def link_bytes_per_s(device: Device) -> Numbers:
    """One link, one way."""
    return device.scale_up_bytes_per_s / np.maximum(2 * device.num_torus_dims, 1.0)


def ring_bytes_per_s(device: Device, size: Numbers, inner: Numbers) -> Numbers:
    """Rate at which a member of a gather receives: all its links at once, in both directions around each dim."""
    links = sum(number for _, _, number in runs(device, size, inner))
    return link_bytes_per_s(device) * np.where(links > 0, links, 1.0)


def all_to_all_factor(device: Device, size: Numbers, inner: Numbers) -> Numbers:
    """Seconds for each byte that a member sends in all: half of it crosses the middle of the worst dim, over that dim's links.

    On a ring of n: n / 2 members send half each way over two links, so n / 8 of a link's time for a byte.
    """
    worst: Numbers = 0.0
    for members, _, links in runs(device, size, inner):
        worst = np.maximum(worst, np.where(links > 0, members / (4 * np.maximum(links, 1e-30)), 0.0))
    return worst / link_bytes_per_s(device)


def hops(device: Device, size: Numbers, inner: Numbers) -> Numbers:
    """Chips that a message of a gather passes one after the other: half-way around each dim."""
    return sum(np.where(members > 1, members * stride / 2, 0.0) for members, stride, _ in runs(device, size, inner))
