"""The chips of the catalog: sources, dates, plausible figures, and names as drivers give them."""

from __future__ import annotations

import pytest

from colossus.catalog.chips import chip_names, load_chip, load_chip_entry, match_device_name
from colossus.catalog.reliability import node_mtbf_s
from colossus.spec.errors import CatalogError
from colossus.spec.machine import How


@pytest.mark.parametrize("name", chip_names())
def test_every_figure_has_its_source_and_date(name):
    chip = load_chip(name)
    figures = [chip.memory_bytes, chip.memory_bandwidth_bytes_per_s, chip.power_w, *chip.peak_flop_per_s.values()]
    for figure in filter(None, figures):
        assert figure.source and figure.date and figure.how is How.DATASHEET and figure.value > 0
    assert chip.memory_bytes and 10e9 < chip.memory_bytes.value < 400e9
    assert chip.memory_bandwidth_bytes_per_s and 0.5e12 < chip.memory_bandwidth_bytes_per_s.value < 25e12
    assert 1e14 < chip.peak_flop_per_s["bfloat16"].value < 1e16
    assert load_chip_entry(name).device_names


def test_the_required_chips_are_here():
    assert {"h100-sxm", "h200-sxm", "a100-80", "b200", "tpu-v5e", "tpu-v5p", "tpu-v6e"} <= set(chip_names())


@pytest.mark.parametrize(
    ("device", "name"),
    [("NVIDIA H200", "h200-sxm"), ("NVIDIA H100 80GB HBM3", "h100-sxm"), ("NVIDIA A100-SXM4-80GB", "a100-80"), ("NVIDIA B200", "b200")]
    + [("TPU v5 lite", "tpu-v5e"), ("TPU v5", "tpu-v5p"), ("TPU v5p", "tpu-v5p"), ("TPU v6 lite", "tpu-v6e")],
)
def test_names_that_drivers_give(device, name):
    assert match_device_name(device) == load_chip(name)


def test_unknown_devices_and_names():
    assert match_device_name("NVIDIA H100 PCIe") is None
    with pytest.raises(CatalogError) as error:
        load_chip("h100-smx")
    assert "h100-sxm" in str(error.value.hint)


def test_the_prior_for_a_nodes_failures():
    """419 interruptions of 2048 nodes in 54 days: 3.79 per 1000 node-days."""
    assert node_mtbf_s() == pytest.approx(86400 * 1000 / 3.789, rel=1e-3)
