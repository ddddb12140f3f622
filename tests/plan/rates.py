"""Rates of a made-up gang of two, for tests of plans and their calibration."""

from __future__ import annotations

from colossus.spec.kernels import GangRates

RATES = GangRates(
    num_workers=2,
    gemm_flop_per_s=1e11,
    gemm_halves=(30.0, 40.0, 20.0),
    attention_flop_per_s=8e10,
    attention_halves=(100.0, 20.0),
    head_flop_per_s=9e10,
    head_halves=(15.0,),
    elementwise_bytes_per_s=1e10,
    slices_bytes_per_s=8e9,
    update_bytes_per_s=2e10,
    reduce_bytes_per_s=6e8,
    gather_bytes_per_s=1.2e9,
    rest_fraction=0.05,
    compile_s=3.0,
    lower_fraction=0.95,
    upper_fraction=1.1,
    residual_fraction=0.02,
)
