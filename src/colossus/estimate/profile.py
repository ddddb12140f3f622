"""What a training program makes of a machine: few coefficients, each with a meaning, fitted on measurements.

The values are not here but under catalog/measured/, with date, number of runs and residual; ``colossus calibrate`` writes more.
"""

from __future__ import annotations

from dataclasses import dataclass

from colossus.estimate.shape import Numbers, Table


@dataclass(frozen=True, kw_only=True)
class Profile(Table):
    """Coefficients of one training program on one generation of chips in one precision; arrays for many at once."""

    # Of the chip, under a training load (power limits lower the clock below that of a GEMM measured alone).
    gemm_fraction: Numbers  # of the measured GEMM curve
    quantize: Numbers  # of the measured cost of casting GEMM inputs to 8 or 4 bits (m_half, n_half); 1 in 16 bits
    attention_fraction: Numbers  # of the 16-bit GEMM rate that attention reaches forward
    attention_backward: Numbers  # backward attention's time over 2.5 forwards (its FLOP)
    attention_half_tokens: Numbers  # sequence at which attention reaches half its rate
    attention_half_dim: Numbers  # head dim at which it does
    # Of the program.
    elementwise_passes: Numbers  # over the activations of a layer, against one write of each
    expert_passes: Numbers  # the same around experts: routing, permuting, gating
    score_passes: Numbers  # over the matrix of scores; 0 with flash attention
    expert_imbalance: Numbers  # the fullest expert's tokens over the mean
    layer_host_s: Numbers  # least time of one dense layer, forward and backward: launching its kernels
    expert_layer_host_s: Numbers
    selective_recompute: Numbers  # of a layer's forward pass that selective recompute does again
    head_passes: Numbers  # over float32 logits
    head_on_critical: Numbers  # of the head's time that a pipeline's last stage adds to every microbatch
    # Of its communication: the part that compute does not hide.
    tp_exposed: Numbers
    cp_cover: Numbers  # of the attention that runs beside the ring of keys and values
    cp_uncovered: Numbers  # of the ring that nothing covers (its first step)
    cp_step_s: Numbers  # of one step of the ring: its kernels' launches and tails
    ep_exposed: Numbers
    dualpipe_exposed: Numbers  # of it under DualPipe
    pp_exposed: Numbers
    dp_hidden: Numbers  # of a stage's backward pass under which gradients and weights travel
    fsdp_hidden: Numbers  # of the step's compute that hides gathering weights
    fsdp_exposed: Numbers  # of that gathering that nothing hides
    gradient_bytes: Numbers  # a gradient's bytes on the wire
    # Of the whole.
    step_overhead_s: Numbers
    jitter_per_doubling: Numbers  # the slowest rank's lead over the mean, for each doubling beyond 8 chips
