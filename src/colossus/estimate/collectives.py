"""Times of collectives over the tiers that an axis crosses (alpha-beta model; Thakur et al. 2005, Hockney 1994).

``num_bytes`` is what every rank ends up with (all-gather), starts from (reduce-scatter, all-reduce) or sends in all
(all-to-all). An axis has a span: the product of the axes inside it and itself, laid out over neighbouring chips.
Inside a scale-up domain the links of the chip carry a ring; on a torus those that the axis uses (``estimate/torus.py``). Across
domains a ring enters and leaves each domain once, so that all members of the group in one domain share their network cards.
Across pods it enters and leaves each pod once: members in one pod share its uplinks, which are fewer by the oversubscription
(Llama 3, arXiv 2407.21783, 3.3.1: 1:7 between pods of 3,072, which a sum over many members of a pod does not feel).
"""

from __future__ import annotations

import numpy as np

from colossus.estimate import torus
from colossus.estimate.shape import Device, Numbers


def ring_bytes_per_s(device: Device, size: Numbers, inner: Numbers) -> Numbers:
    """Bytes per second and rank of a ring over ``size`` ranks that stand ``inner`` chips apart."""
    inside = _scale_up_bytes_per_s(device, size, inner)
    across = np.minimum(inside, device.scale_out_bytes_per_s * _members(device.domain_chips, size, inner))
    beyond = np.minimum(across, device.scale_out_bytes_per_s * _members(device.pod_chips, size, inner) / device.oversubscription)
    span = size * inner
    return np.where(span <= device.domain_chips, inside, np.where(span <= device.pod_chips, across, beyond))


def latency_s(device: Device, size: Numbers, inner: Numbers) -> Numbers:
    """Latency of one step between neighbours, of the slowest tier that is crossed."""
    return np.where(size * inner <= device.domain_chips, device.scale_up_latency_s, device.scale_out_latency_s)


def gather_s(device: Device, num_bytes: Numbers, size: Numbers, inner: Numbers) -> Numbers:
    """All-gather or reduce-scatter; an all-reduce is two of them. Latency grows with log2: trees serve small messages; on a torus with the hops."""
    share = (size - 1) / size
    steps = np.ceil(np.log2(np.maximum(size, 1.0)))
    if np.any(device.num_torus_dims):
        steps = np.where(device.num_torus_dims > 0, np.maximum(steps, torus.hops(device, size, inner)), steps)
    return np.where(size > 1, num_bytes * share / ring_bytes_per_s(device, size, inner) + steps * latency_s(device, size, inner), 0.0)


def all_to_all_s(device: Device, num_bytes: Numbers, size: Numbers, inner: Numbers, kept: Numbers = 1.0) -> Numbers:
    """Every rank sends an equal part to every other. What stays in the domain goes over its links, the rest over the network.

    ``kept``: of what leaves a domain, the part that is sent where copies for one domain travel once.
    """
    members, in_pod = (_members(chips, size, inner) for chips in (device.domain_chips, device.pod_chips))
    inside = num_bytes * (members - 1) / size / device.scale_up_bytes_per_s
    if np.any(device.num_torus_dims):
        across = num_bytes * members / size * torus.all_to_all_factor(device, members, inner)
        inside = np.where(device.num_torus_dims > 0, across, inside)
    outside = kept * num_bytes * (size - members) / size / device.scale_out_bytes_per_s
    beyond = kept * num_bytes * (size - in_pod) / size / (device.scale_out_bytes_per_s / device.oversubscription)
    return np.where(size > 1, np.maximum(np.maximum(inside, outside), beyond) + latency_s(device, size, inner), 0.0)


def send_s(device: Device, num_bytes: Numbers, inner: Numbers, size: Numbers = 2.0) -> Numbers:
    """A message to the next of ``size`` stages, ``inner`` chips away: the slowest of them, which may leave its pod."""
    near = inner * size <= device.domain_chips
    uplinks = np.minimum(1.0, np.maximum(1.0, device.pod_chips / inner) / device.oversubscription)
    out = device.scale_out_bytes_per_s * np.where(inner * size > device.pod_chips, uplinks, 1.0)
    rate = np.where(near, _scale_up_bytes_per_s(device, 2.0, inner), out)
    return num_bytes / rate + np.where(near, device.scale_up_latency_s, device.scale_out_latency_s)


def _members(chips: Numbers, size: Numbers, inner: Numbers) -> Numbers:
    """Of a group, those among so many neighbouring chips."""
    return np.maximum(1.0, np.minimum(size, chips / inner))


def _scale_up_bytes_per_s(device: Device, size: Numbers, inner: Numbers) -> Numbers:
    if not np.any(device.num_torus_dims):
        return device.scale_up_bytes_per_s
    return np.where(device.num_torus_dims > 0, torus.ring_bytes_per_s(device, size, inner), device.scale_up_bytes_per_s)
