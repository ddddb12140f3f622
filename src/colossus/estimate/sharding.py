"""What happens once a step or once a microbatch to weights, gradients and optimizer state: ZeRO 0 to 3, HSDP, offload.

ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054): 1 shards the optimizer's state over the ranks that hold the same weights, 2
the gradients too, 3 (FSDP, Zhao et al. 2023, 2304.11277) all. HSDP (the same, 3.2.2) shards inside groups of neighbours and
copies over groups. Offload (ZeRO-Offload, Ren et al. 2021, 2101.06840): gradients go to the host, which updates, and weights
come back. Ignored: an optimizer whose state is neither AdamW's nor in 32 bits.
"""

from __future__ import annotations

import numpy as np

from colossus.estimate.collectives import gather_s
from colossus.estimate.pipeline import is_dualpipe
from colossus.estimate.profile import Profile
from colossus.estimate.shape import Cut, Device, Numbers, Shape

# Of the travel of gradients that shows however long the backward pass is: its last bucket.
_SHOWN = 0.03
# AdamW reads gradient, master and two moments and writes master, moments and the 16-bit weight: 4 * 4 + 3 * 4 + 2 bytes.
_OPTIMIZER_BYTES = 30


def held(shape: Shape, cut: Cut) -> tuple[Numbers, Numbers]:
    """Weights of one rank's stage before data parallelism cuts them: all but experts, and experts."""
    return (shape.dense_params + shape.table_params) / cut.tp / cut.pp, shape.expert_params / cut.ep / cut.pp


def replicas(cut: Cut) -> tuple[Numbers, Numbers]:
    """Ranks that hold the same weights: of all but the experts, and of the experts."""
    data = cut.dp * cut.cp
    return data, np.maximum(data * cut.tp / cut.ep, 1.0)


def shards(cut: Cut) -> tuple[Numbers, Numbers]:
    """Ranks over which state is sharded: all replicas, or a group of them (HSDP)."""
    data, expert_data = replicas(cut)
    return data / cut.replica_groups, np.maximum(expert_data / cut.replica_groups, 1.0)


def gradient_rounds(cut: Cut) -> Numbers:
    """How often in a step gradients are scattered: once, or with ZeRO 2 after every microbatch; interleaved stages take pp microbatches in a row."""
    rounds = np.where(cut.virtual_stages > 1, cut.num_microbatches / cut.pp, cut.num_microbatches)
    return np.where(cut.gradients_sharded > 0, np.maximum(rounds, 1.0), 1.0)


def weights_s(shape: Shape, cut: Cut, device: Device, profile: Profile, stage_s: Numbers, compute_s: Numbers) -> Numbers:
    """Communication of weights and gradients that shows: as FSDP where state is sharded beyond ZeRO 1, without a pipeline."""
    as_fsdp = (cut.weights_sharded > 0) | ((cut.gradients_sharded > 0) & (cut.pp == 1))
    return np.where(as_fsdp, fsdp_s(shape, cut, device, profile, compute_s), dp_s(shape, cut, device, profile, stage_s))


def dp_s(shape: Shape, cut: Cut, device: Device, profile: Profile, stage_s: Numbers) -> Numbers:
    """Gradients out and weights (or gradients again) back, once a step, less what the last backward pass hides. ZeRO 2 in a pipeline
    scatters more often; each further round is hidden by its own microbatches at most."""
    parts, ranks = held(shape, cut), replicas(cut)
    inner = (cut.tp, np.maximum(cut.ep, 1.0))
    copies = np.where(is_dualpipe(cut), 2.0, 1.0)
    travel = lambda wire: sum(gather_s(device, copies * wire * part, size, near) for part, size, near in zip(parts, ranks, inner, strict=True))
    once_s, round_s = travel(profile.gradient_bytes + cut.value_bytes), travel(profile.gradient_bytes)
    hidden_s = profile.dp_hidden * stage_s / cut.virtual_stages * np.where(cut.pp > 1, 1.0, 2 / 3)
    shown = lambda seconds: np.maximum(seconds - hidden_s, _SHOWN * seconds)
    return shown(once_s) + (gradient_rounds(cut) - 1) * shown(round_s)


def fsdp_s(shape: Shape, cut: Cut, device: Device, profile: Profile, compute_s: Numbers) -> Numbers:
    """ZeRO 3: weights gathered forward and backward and gradients scattered for every microbatch, beside the compute; over HSDP's groups once a step.

    ZeRO 2 as FSDP does it (SHARD_GRAD_OP) keeps the weights after their first use: one gather a step.
    """
    (dense, routed), (data, expert_data) = held(shape, cut), shards(cut)
    inner = np.maximum(cut.ep, 1.0)
    travel = lambda wire: gather_s(device, dense * wire, data, cut.tp) + gather_s(device, routed * wire, expert_data, inner)
    gather_once_s, scatter_once_s = travel(cut.value_bytes), travel(np.maximum(profile.gradient_bytes, cut.value_bytes))
    groups = cut.replica_groups
    across_s = gather_s(device, dense / data * profile.gradient_bytes, groups, cut.tp * data)
    across_s = across_s + gather_s(device, routed / expert_data * profile.gradient_bytes, groups, inner * expert_data)
    gathers = np.where(cut.weights_sharded > 0, 2 * cut.num_microbatches, 1.0)
    travel_s = gather_once_s * gathers + scatter_once_s * cut.num_microbatches + 2 * across_s
    return np.maximum(travel_s - profile.fsdp_hidden * compute_s, profile.fsdp_exposed * travel_s)


def updated(shape: Shape, cut: Cut) -> Numbers:
    """Weights that one rank's optimizer updates."""
    (dense, routed), (data, expert_data) = held(shape, cut), shards(cut)
    sharded = np.maximum(cut.weights_sharded, cut.optimizer_sharded) > 0
    return dense / np.where(sharded, data, 1.0) + routed / np.where(sharded, expert_data, 1.0)


def optimizer_s(shape: Shape, cut: Cut, device: Device) -> Numbers:
    """Bound by memory: the chip's, or with offload the host's."""
    rate = np.where(cut.optimizer_offload > 0, device.host_memory_bytes_per_s, device.memory_bytes_per_s)
    return _OPTIMIZER_BYTES * updated(shape, cut) / rate


def activation_wait_s(cut: Cut, device: Device, kept_bytes: Numbers, microbatch_s: Numbers) -> Numbers:
    """By how much a microbatch is longer because ``kept_bytes`` of activations travel to the host and back beside it."""
    return cut.activation_offload * np.maximum(2 * kept_bytes / device.host_bytes_per_s - microbatch_s, 0.0)


def state_travel_s(shape: Shape, cut: Cut, device: Device) -> Numbers:
    """Gradients to the host and weights back, after the last backward pass."""
    return cut.optimizer_offload * updated(shape, cut) * 2 * cut.value_bytes / device.host_bytes_per_s
