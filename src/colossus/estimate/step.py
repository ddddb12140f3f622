"""Time of one optimizer step in parts that add up, in closed form, for one layout or for arrays of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from colossus.estimate import layer
from colossus.estimate.collectives import gather_s, send_s
from colossus.estimate.layer import Gemms, Pass
from colossus.estimate.profile import Profile
from colossus.estimate.shape import Cut, Device, Numbers, Shape, stage_imbalance

_BYTES = 2
# A layer takes the longer of its device time and of launching it; the power joins the two smoothly.
_JOIN = 6.0
# AdamW reads gradient, master and two moments and writes master, moments and the 16-bit weight: 4 * 4 + 3 * 4 + 2 bytes.
_OPTIMIZER_BYTES = 30


@dataclass(frozen=True, kw_only=True)
class StepParts:
    """Seconds of a step by cause; their sum is the step. All are of the slowest pipeline stage."""

    gemm_s: Numbers
    attention_s: Numbers
    elementwise_s: Numbers
    recompute_s: Numbers
    head_s: Numbers
    host_s: Numbers
    tp_s: Numbers
    cp_s: Numbers
    ep_s: Numbers
    pp_s: Numbers
    bubble_s: Numbers
    dp_s: Numbers
    optimizer_s: Numbers
    overhead_s: Numbers
    jitter_s: Numbers

    @property
    def step_s(self) -> Numbers:
        return sum(vars(self).values())


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """One kind of layer: compute by kind, communication as it is exposed."""

    gemm: Pass
    attention: Pass
    elementwise: Pass
    tp: Pass
    cp: Pass
    ep: Pass
    host_s: Numbers

    def recompute_s(self, cut: Cut, profile: Profile) -> Numbers:
        forward_s = sum(part.forward_s for part in (self.gemm, self.attention, self.elementwise, self.tp, self.cp, self.ep))
        return forward_s * (cut.recompute + cut.selective * profile.selective_recompute)

    def device_s(self, cut: Cut, profile: Profile) -> Numbers:
        return sum(part.both_s for part in (self.gemm, self.attention, self.elementwise, self.tp, self.cp, self.ep)) + self.recompute_s(cut, profile)

    def excess_s(self, cut: Cut, profile: Profile) -> Numbers:
        """What launching adds to the device's time."""
        device_s = self.device_s(cut, profile)
        longest = np.maximum(device_s, self.host_s)
        return longest * ((device_s / longest) ** _JOIN + (self.host_s / longest) ** _JOIN) ** (1 / _JOIN) - device_s


def step_parts(shape: Shape, cut: Cut, device: Device, profile: Profile) -> StepParts:
    """The parts of a step: layers, head, pipeline, gradients, optimizer, and what grows with the machine."""
    kinds = [(_dense_layer(shape, cut, device, profile), shape.num_dense_layers), (_moe_layer(shape, cut, device, profile), shape.num_moe_layers)]
    rounds = cut.num_microbatches / cut.pp * stage_imbalance(shape, cut)

    def total(part_s: list[Numbers]) -> Numbers:
        return rounds * sum(seconds * count for seconds, (_, count) in zip(part_s, kinds, strict=True))

    layers = {
        **{f"{name}_s": total([getattr(kind, name).both_s for kind, _ in kinds]) for name in ("gemm", "attention", "elementwise", "tp", "cp", "ep")},
        "recompute_s": total([kind.recompute_s(cut, profile) for kind, _ in kinds]),
        "host_s": total([kind.excess_s(cut, profile) for kind, _ in kinds]),
    }
    stage_s = sum(layers.values()) / cut.num_microbatches
    once_s = _head_s(shape, cut, device, profile) * np.where(cut.pp > 1, profile.head_on_critical, 1.0)
    send = np.where(cut.pp > 1, 2 * send_s(device, cut.tokens / cut.tp * shape.model_dim * _BYTES, cut.tp * cut.cp * cut.dp), 0.0)
    parts = {
        **layers,
        "head_s": cut.num_microbatches * once_s,
        "pp_s": profile.pp_exposed * send * cut.num_microbatches * cut.virtual_stages,
        "bubble_s": (cut.pp - 1) * (stage_s + send) / cut.virtual_stages,
    }
    compute_s = sum(parts.values())
    parts["dp_s"] = np.where(cut.weights_sharded > 0, _fsdp_s(shape, cut, device, profile, compute_s), _dp_s(shape, cut, device, profile, stage_s))
    parts["optimizer_s"] = _optimizer_s(shape, cut, device)
    parts["overhead_s"] = profile.step_overhead_s + np.zeros_like(compute_s)
    spread = profile.jitter_per_doubling * np.log2(np.maximum(cut.num_chips / 8, 1.0))
    return StepParts(**parts, jitter_s=sum(parts.values()) * spread)


def _dense_layer(shape: Shape, cut: Cut, device: Device, profile: Profile) -> _Layer:
    gemm = Gemms(device=device, profile=profile, cut=cut)
    width = (shape.ffn_inputs + 1) * shape.ffn_dim / cut.tp
    nothing = Pass(forward_s=0.0, backward_s=0.0)
    core = layer.attention_core(shape, cut, device, profile)
    return _Layer(
        gemm=layer.attention_projections(shape, cut, gemm) + layer.feed_forward(shape, cut, gemm, shape.ffn_dim),
        attention=core,
        elementwise=layer.elementwise(layer.attention_width(shape, cut) + width, cut.tokens, device, profile.elementwise_passes),
        tp=layer.tensor_parallel(shape, cut, device, is_moe=False) * profile.tp_exposed,
        cp=layer.context_parallel(shape, cut, device, core),
        ep=nothing,
        host_s=profile.layer_host_s,
    )


def _moe_layer(shape: Shape, cut: Cut, device: Device, profile: Profile) -> _Layer:
    gemm = Gemms(device=device, profile=profile, cut=cut)
    core = layer.attention_core(shape, cut, device, profile)
    shared = layer.feed_forward(shape, cut, gemm, np.maximum(shape.shared_dim, 1.0)) * (shape.shared_dim > 0)
    around = layer.elementwise(layer.expert_width(shape), cut.tokens / cut.tp, device, profile.elementwise_passes * profile.expert_passes)
    return _Layer(
        gemm=layer.attention_projections(shape, cut, gemm) + shared + layer.experts(shape, cut, gemm, profile),
        attention=core,
        elementwise=layer.elementwise(layer.attention_width(shape, cut), cut.tokens, device, profile.elementwise_passes) + around,
        tp=layer.tensor_parallel(shape, cut, device, is_moe=True) * profile.tp_exposed,
        cp=layer.context_parallel(shape, cut, device, core),
        ep=layer.expert_parallel(shape, cut, device) * profile.ep_exposed,
        host_s=profile.expert_layer_host_s,
    )


def _head_s(shape: Shape, cut: Cut, device: Device, profile: Profile) -> Numbers:
    """Logits, loss and both gradients in 16 bits, and passes over float32 logits, for one microbatch."""
    logits = cut.tokens * shape.vocab_size / cut.tp
    return 6 * logits * shape.model_dim / (device.attention_flop_per_s * profile.gemm_fraction) + profile.head_passes * logits * 16 / device.memory_bytes_per_s


def _held(shape: Shape, cut: Cut) -> tuple[Numbers, Numbers]:
    """Weights of one rank's stage before data parallelism cuts them: all but experts, and experts."""
    return (shape.dense_params + shape.table_params) / cut.tp / cut.pp, shape.expert_params / cut.ep / cut.pp


def _replicas(cut: Cut) -> tuple[Numbers, Numbers]:
    """Ranks that hold the same weights: of all but the experts, and of the experts."""
    data = cut.dp * cut.cp
    return data, np.maximum(data * cut.tp / cut.ep, 1.0)


def _dp_s(shape: Shape, cut: Cut, device: Device, profile: Profile, stage_s: Numbers) -> Numbers:
    """Gradients out and weights (or gradients again) back, once a step, less what the last backward pass hides."""
    (dense, routed), (data, expert_data) = _held(shape, cut), _replicas(cut)
    wire = profile.gradient_bytes + _BYTES
    travel_s = gather_s(device, dense * wire, data, cut.tp) + gather_s(device, routed * wire, expert_data, np.maximum(cut.ep, 1.0))
    hidden_s = profile.dp_hidden * stage_s / cut.virtual_stages * np.where(cut.pp > 1, 1.0, 2 / 3)
    return np.maximum(travel_s - hidden_s, 0.03 * travel_s)


def _fsdp_s(shape: Shape, cut: Cut, device: Device, profile: Profile, compute_s: Numbers) -> Numbers:
    """ZeRO 3: weights gathered forward and backward and gradients scattered for every microbatch, beside the compute."""
    (dense, routed), (data, expert_data) = _held(shape, cut), _replicas(cut)
    one_s = gather_s(device, dense * _BYTES, data, cut.tp) + gather_s(device, routed * _BYTES, expert_data, np.maximum(cut.ep, 1.0))
    travel_s = 3 * one_s * cut.num_microbatches
    return np.maximum(travel_s - profile.fsdp_hidden * compute_s, profile.fsdp_exposed * travel_s)


def _optimizer_s(shape: Shape, cut: Cut, device: Device) -> Numbers:
    (dense, routed), (data, expert_data) = _held(shape, cut), _replicas(cut)
    sharded = np.maximum(cut.weights_sharded, cut.optimizer_sharded) > 0
    held = dense / np.where(sharded, data, 1.0) + routed / np.where(sharded, expert_data, 1.0)
    return _OPTIMIZER_BYTES * held / device.memory_bytes_per_s
