"""Time of one optimizer step in parts that add up, in closed form, for one layout or for arrays of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from colossus.estimate import layer
from colossus.estimate.collectives import send_s
from colossus.estimate.context import context_parallel
from colossus.estimate.footprint import kept_bytes
from colossus.estimate.layer import Gemms
from colossus.estimate.passes import Pass
from colossus.estimate.pipeline import bubble_s, is_dualpipe, is_folded
from colossus.estimate.profile import Profile
from colossus.estimate.shape import Cut, Device, Numbers, Shape, outer_stage_layers, stage_layers
from colossus.estimate.sharding import activation_wait_s, optimizer_s, state_travel_s, weights_s

# A layer takes the longer of its device time and of launching it; the power joins the two smoothly.
_JOIN = 6.0


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
    offload_s: Numbers
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

    @property
    def forward_s(self) -> Numbers:
        return sum(part.forward_s for part in (self.gemm, self.attention, self.elementwise, self.tp, self.cp, self.ep))

    @property
    def weight_s(self) -> Numbers:
        """Of the backward pass, the products that give the weights' gradients: half of them."""
        return self.gemm.backward_s / 2

    def recompute_s(self, cut: Cut, profile: Profile) -> Numbers:
        return self.forward_s * (cut.recompute + cut.selective * profile.selective_recompute)

    def device_s(self, cut: Cut, profile: Profile) -> Numbers:
        return sum(part.both_s for part in (self.gemm, self.attention, self.elementwise, self.tp, self.cp, self.ep)) + self.recompute_s(cut, profile)

    def excess_s(self, cut: Cut, profile: Profile) -> Numbers:
        """What launching adds to the device's time."""
        device_s = self.device_s(cut, profile)
        longest = np.maximum(device_s, self.host_s)
        return longest * ((device_s / longest) ** _JOIN + (self.host_s / longest) ** _JOIN) ** (1 / _JOIN) - device_s


def step_parts(shape: Shape, cut: Cut, device: Device, profile: Profile) -> StepParts:
    """The parts of a step: layers, head, pipeline, gradients, optimizer, and what grows with the machine."""
    kinds = list(zip((_dense_layer(shape, cut, device, profile), _moe_layer(shape, cut, device, profile)), stage_layers(shape, cut), strict=True))

    def total(part_s: list[Numbers]) -> Numbers:
        return cut.num_microbatches * sum(seconds * count for seconds, (_, count) in zip(part_s, kinds, strict=True))

    layers = {
        **{f"{name}_s": total([getattr(kind, name).both_s for kind, _ in kinds]) for name in ("gemm", "attention", "elementwise", "tp", "cp", "ep")},
        "recompute_s": total([kind.recompute_s(cut, profile) for kind, _ in kinds]),
        "host_s": total([kind.excess_s(cut, profile) for kind, _ in kinds]),
    }
    stage_s = sum(layers.values()) / cut.num_microbatches
    wait_s = activation_wait_s(cut, device, kept_bytes(shape, cut), stage_s)
    once_s = _head_on_critical_s(shape, cut, profile, _head_s(shape, cut, device, profile), stage_s + wait_s)
    send = np.where(cut.pp > 1, 2 * send_s(device, cut.tokens / cut.tp * shape.model_dim * cut.value_bytes, cut.tp * cut.cp * cut.dp, cut.pp), 0.0)
    parts = {
        **layers,
        "head_s": cut.num_microbatches * once_s,
        "pp_s": profile.pp_exposed * send * cut.num_microbatches * cut.virtual_stages * np.where(is_folded(cut), 2.0, 1.0),
        "bubble_s": _idle_s(cut, stage_s + send, wait_s, total([kind.forward_s for kind, _ in kinds]), total([kind.weight_s for kind, _ in kinds]), layers),
    }
    compute_s = sum(parts.values()) + cut.num_microbatches * wait_s
    parts["dp_s"] = weights_s(shape, cut, device, profile, stage_s + wait_s, compute_s)
    parts["offload_s"] = cut.num_microbatches * wait_s + state_travel_s(shape, cut, device)
    parts["optimizer_s"] = optimizer_s(shape, cut, device)
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
        elementwise=layer.elementwise(layer.attention_width(shape, cut) + width, cut.tokens, cut, device, profile.elementwise_passes),
        tp=layer.tensor_parallel(shape, cut, device, is_moe=False) * profile.tp_exposed,
        cp=context_parallel(shape, cut, device, profile, core),
        ep=nothing,
        host_s=profile.layer_host_s,
    )


def _moe_layer(shape: Shape, cut: Cut, device: Device, profile: Profile) -> _Layer:
    gemm = Gemms(device=device, profile=profile, cut=cut)
    core = layer.attention_core(shape, cut, device, profile)
    shared = layer.feed_forward(shape, cut, gemm, np.maximum(shape.shared_dim, 1.0)) * (shape.shared_dim > 0)
    around = layer.elementwise(layer.expert_width(shape), cut.tokens / cut.tp, cut, device, profile.elementwise_passes * profile.expert_passes)
    gemms = layer.attention_projections(shape, cut, gemm) + shared + layer.experts(shape, cut, gemm, profile)
    travel = layer.expert_parallel(shape, cut, device)
    return _Layer(
        gemm=gemms,
        attention=core,
        elementwise=layer.elementwise(layer.attention_width(shape, cut), cut.tokens, cut, device, profile.elementwise_passes) + around,
        tp=layer.tensor_parallel(shape, cut, device, is_moe=True) * profile.tp_exposed,
        cp=context_parallel(shape, cut, device, profile, core),
        ep=travel * _expert_share(cut, profile, travel.both_s, gemms.both_s + core.both_s),
        host_s=profile.expert_layer_host_s,
    )


def _expert_share(cut: Cut, profile: Profile, travel_s: Numbers, compute_s: Numbers) -> Numbers:
    """Of the experts' all-to-all, what shows. DualPipe runs it under the compute of a microbatch that goes the other way."""
    dual = np.maximum(1 - compute_s / np.maximum(travel_s, 1e-30), profile.dualpipe_exposed)
    return np.where(is_dualpipe(cut), dual, profile.ep_exposed)


def _idle_s(cut: Cut, stage_s: Numbers, wait_s: Numbers, forward_s: Numbers, weight_s: Numbers, layers: dict[str, Numbers]) -> Numbers:
    """The bubble: all of a microbatch's time in a stage, messages included, goes forward, to inputs' or to weights' gradients; what
    launching and waiting for the host add goes as the products do."""
    share, added_s = weight_s / layers["gemm_s"], layers["host_s"] / cut.num_microbatches + wait_s
    weight_s = weight_s / cut.num_microbatches + share * added_s
    forward_s = forward_s / cut.num_microbatches + (1 - 2 * share) * added_s
    return bubble_s(cut, forward_s, stage_s + wait_s - forward_s - weight_s, weight_s)


def _head_s(shape: Shape, cut: Cut, device: Device, profile: Profile) -> Numbers:
    """Logits, loss and both gradients in 16 bits, and passes over float32 logits, for one microbatch."""
    logits = cut.tokens * shape.vocab_size / cut.tp
    return 6 * logits * shape.model_dim / (device.attention_flop_per_s * profile.gemm_fraction) + profile.head_passes * logits * 16 / device.memory_bytes_per_s


def _head_on_critical_s(shape: Shape, cut: Cut, profile: Profile, head_s: Numbers, stage_s: Numbers) -> Numbers:
    """The head's time that every microbatch waits for: all of it without a pipeline; in the last stage what exceeds the layers it lacks."""
    excess_s = np.maximum(head_s - (1 - outer_stage_layers(shape, cut)) * stage_s, 0.0)
    return np.where(cut.pp > 1, profile.head_on_critical * excess_s, head_s)
