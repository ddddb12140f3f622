"""Times of collectives over the tiers that an axis crosses (alpha-beta model; Thakur et al. 2005, Hockney 1994).

``num_bytes`` is what every rank ends up with (all-gather), starts from (reduce-scatter, all-reduce) or sends in all
(all-to-all). An axis has a span: the product of the axes inside it and itself, laid out over neighbouring chips.
Inside a scale-up domain the links of the chip carry a ring. Across domains a ring enters and leaves each domain once,
so that all members of the group in one domain share their network cards.
"""

from __future__ import annotations

import numpy as np

from colossus.estimate.shape import Device, Numbers


def ring_bytes_per_s(device: Device, size: Numbers, inner: Numbers) -> Numbers:
    """Bytes per second and rank of a ring over ``size`` ranks that stand ``inner`` chips apart."""
    members = np.maximum(1.0, np.minimum(size, device.domain_chips / inner))  # of the group in one domain
    across = np.minimum(device.scale_up_bytes_per_s, device.scale_out_bytes_per_s * members)
    return np.where(size * inner <= device.domain_chips, device.scale_up_bytes_per_s, across)


def latency_s(device: Device, size: Numbers, inner: Numbers) -> Numbers:
    """Latency of one step between neighbours, of the slowest tier that is crossed."""
    return np.where(size * inner <= device.domain_chips, device.scale_up_latency_s, device.scale_out_latency_s)


def gather_s(device: Device, num_bytes: Numbers, size: Numbers, inner: Numbers) -> Numbers:
    """All-gather or reduce-scatter; an all-reduce is two of them. Latency grows with log2: trees serve small messages."""
    share = (size - 1) / size
    steps = np.ceil(np.log2(np.maximum(size, 1.0)))
    return np.where(size > 1, num_bytes * share / ring_bytes_per_s(device, size, inner) + steps * latency_s(device, size, inner), 0.0)


def all_to_all_s(device: Device, num_bytes: Numbers, size: Numbers, inner: Numbers) -> Numbers:
    """Every rank sends an equal part to every other. What stays in the domain goes over its links, the rest over the network."""
    members = np.maximum(1.0, np.minimum(size, device.domain_chips / inner))
    inside = num_bytes * (members - 1) / size / device.scale_up_bytes_per_s
    outside = num_bytes * (size - members) / size / device.scale_out_bytes_per_s
    return np.where(size > 1, np.maximum(inside, outside) + latency_s(device, size, inner), 0.0)


def send_s(device: Device, num_bytes: Numbers, inner: Numbers) -> Numbers:
    """A message to the next stage, ``inner`` chips away."""
    near = inner < device.domain_chips
    rate = np.where(near, device.scale_up_bytes_per_s, device.scale_out_bytes_per_s)
    return num_bytes / rate + np.where(near, device.scale_up_latency_s, device.scale_out_latency_s)
