"""Collectives over domains, pods and tori: worked by hand, and laws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossus.catalog.machines import load_machine
from colossus.estimate.collectives import all_to_all_s, gather_s, ring_bytes_per_s, send_s
from colossus.estimate.device import device_of
from colossus.estimate.shape import Device

SWITCHED = device_of(load_machine("llama-3-24k"), "h100-sxm", "bfloat16")
GB = 1e9
powers = st.sampled_from([1, 2, 4, 8, 16, 64, 256, 1024])


def torus(*dims: int, around: int = 4) -> Device:
    """Links of 1 GB/s each way without latency, and a network of 0.1 GB/s a chip."""
    names = dict(zip(("torus_x", "torus_y", "torus_z"), map(float, dims), strict=False))
    rates = {"scale_up_bytes_per_s": 2.0 * len(dims) * GB, "scale_out_bytes_per_s": 0.1 * GB, "scale_up_latency_s": 0.0, "scale_out_latency_s": 0.0}
    return replace(SWITCHED, domain_chips=float(np.prod(dims)), num_torus_dims=float(len(dims)), num_wraparound_chips=float(around), **names, **rates)


def seconds(device: Device, size: float, inner: float = 1.0) -> float:
    return float(gather_s(device, GB, np.array([float(size)]), np.array([float(inner)]))[0])


def exchange_s(device: Device, size: float, inner: float = 1.0) -> float:
    return float(all_to_all_s(device, GB, np.array([float(size)]), np.array([float(inner)]))[0])


def test_a_pipeline_that_leaves_the_domain_waits_for_its_message_over_the_network():
    device = device_of(load_machine("h100-sxm*64"), "h100-sxm", "bfloat16")
    inside, across = (float(send_s(device, 1e8, inner, stages)) for inner, stages in ((1.0, 8.0), (4.0, 16.0)))
    assert across == pytest.approx(1e8 / device.scale_out_bytes_per_s + device.scale_out_latency_s) and across > 5 * inside


def test_nodes_without_a_fabric_have_the_network_alone():
    device = device_of(load_machine("cpu*4"), "cpu", "float32")
    assert device.domain_chips == 1 and np.isfinite(float(gather_s(device, 1e9, 4.0, 1.0)))
    assert device.memory_bytes == pytest.approx(load_machine("cpu*4").node.memory_bytes)


def test_a_ring_that_leaves_a_pod_shares_its_uplinks():
    """Llama 3: pods of 3,072, 1:7 between. Groups of 2 stand 4,096 apart: one member a pod; of 16 ranks 512 apart six share the uplinks."""
    out = SWITCHED.scale_out_bytes_per_s
    rate = lambda size, inner: float(ring_bytes_per_s(SWITCHED, np.array([float(size)]), np.array([float(inner)]))[0])
    assert rate(2, 1024) == out and rate(2, 4096) == pytest.approx(out / 7)
    assert rate(16, 512) == pytest.approx(out * 6 / 7) and rate(64, 64) == pytest.approx(out)
    flat = replace(SWITCHED, oversubscription=1.0)
    assert float(all_to_all_s(SWITCHED, GB, np.array([6144.0]), 1.0)[0]) == pytest.approx(
        3.5 * float(all_to_all_s(flat, GB, np.array([6144.0]), 1.0)[0]), rel=0.01
    )
    assert float(send_s(SWITCHED, GB, 4096.0, 2.0)) == pytest.approx(7 * float(send_s(flat, GB, 4096.0, 2.0)), rel=0.01)


def test_gathers_on_a_torus_use_the_links_of_the_axis():
    """Scaling book: V / (2 links) around one dim, V / (4 links) around two, half the rate without the way around."""
    device = torus(16, 16, around=16)
    assert seconds(device, 16) == pytest.approx(15 / 16 / 2)
    assert seconds(device, 256) == pytest.approx(255 / 256 / 4)
    assert seconds(device, 8) == pytest.approx(7 / 8)  # a line: the end of it has one link
    assert seconds(device, 16, 16) == pytest.approx(15 / 16 / 2)  # the other dim, whole
    assert seconds(torus(8, 8, around=16), 8) == pytest.approx(7 / 8)  # too short to be joined
    assert seconds(torus(8, 8, around=4), 8) == pytest.approx(7 / 8 / 2)
    assert seconds(device, 4, 4) == pytest.approx(3 / 4 / (2 / 4))  # every fourth chip of a dim: four rings share its links


def test_a_slice_of_cubes_takes_the_shape_that_fits_the_axis():
    """TPU v4: 12 chips are a ring of their own in a slice of 12 x ..., not a line in 16."""
    assert seconds(torus(16, 16, 16), 12) == pytest.approx(11 / 12 / 2)
    assert seconds(torus(16, 16, 16), 512, 8) == pytest.approx(511 / 512 / 4)


def test_an_all_to_all_on_a_torus_crosses_the_middle():
    """A ring of n: n / 8 bytes over a link for each byte sent; a line: n / 4. Two dims: the longer one."""
    assert exchange_s(torus(16, 16, around=16), 16) == pytest.approx(16 / 8)
    assert exchange_s(torus(16, 16, around=16), 8) == pytest.approx(8 / 4)
    assert exchange_s(torus(16, 32, around=16), 512) == pytest.approx(32 / 8)


def test_beyond_a_slice_is_the_data_centre():
    """Two slices of 256: one member in each, 0.1 GB/s; 512 chips: all 256 share their cards."""
    device = torus(16, 16, around=16)
    assert seconds(device, 2, 256) == pytest.approx(1 / 2 / 0.1)
    assert seconds(device, 512) == pytest.approx(511 / 512 / 4)


def test_pods_of_the_catalog_are_tori_and_parts_of_them_smaller_ones():
    pod = load_machine("tpu-v4-pod")
    whole, part = device_of(pod, "tpu-v4", "bfloat16"), device_of(pod, "tpu-v4", "bfloat16", 64)
    assert (whole.torus_x, whole.torus_y, whole.torus_z) == (16, 16, 16) and (part.torus_x, part.torus_y, part.torus_z) == (4, 4, 4)
    assert (
        whole.num_torus_dims == 3 and SWITCHED.num_torus_dims == 0 and device_of(load_machine("tpu-v5e-pod"), "tpu-v5e", "bfloat16").num_wraparound_chips == 16
    )


@settings(max_examples=100, deadline=None)
@given(powers, powers, st.sampled_from([(16, 16), (4, 4, 4), (16, 16, 16), (8, 16, 32)]), st.sampled_from(["scale_up_bytes_per_s", "scale_out_bytes_per_s"]))
def test_more_bandwidth_is_never_slower_and_no_time_is_negative(size, inner, dims, figure):
    device = torus(*dims)
    faster = replace(device, **{figure: 2 * getattr(device, figure)})
    for time_s in (seconds, exchange_s):
        assert 0 <= time_s(faster, size, inner) <= time_s(device, size, inner) * (1 + 1e-9)
    assert seconds(device, size, inner) >= (size - 1) / size * GB / device.scale_up_bytes_per_s * (1 - 1e-9)


@settings(max_examples=100, deadline=None)
@given(powers, powers, st.floats(1, 16), st.sampled_from([512.0, 3072.0, np.inf]))
def test_oversubscription_never_helps(size, inner, factor, pod):
    flat = replace(SWITCHED, pod_chips=pod, oversubscription=1.0)
    thin = replace(flat, oversubscription=factor)
    assert seconds(thin, size, inner) >= seconds(flat, size, inner) and exchange_s(thin, size, inner) >= exchange_s(flat, size, inner)
    if size * inner <= pod:
        assert seconds(thin, size, inner) == seconds(flat, size, inner)
