"""The chips of the catalog: what is required, plausible figures, order between generations, and names as drivers give them."""

from __future__ import annotations

import pytest

from colossus.catalog.chips import ChipEntry, chip_names, load_chip, load_chip_entry, match_device_name
from colossus.catalog.networks import load_network
from colossus.catalog.nodes import load_node_entry
from colossus.catalog.reliability import node_mtbf_s
from colossus.spec.errors import CatalogError, SpecError
from colossus.spec.machine import How

REQUIRED = {
    *("v100-sxm2-32", "a100-40", "a100-80", "h100-sxm", "h100-pcie", "h100-nvl", "h100-sxm-96-500w", "h200-sxm", "h800", "b200", "b300"),
    *("gb200", "gb300", "mi250x", "mi300x", "mi325x", "mi355x", "tpu-v3", "tpu-v4", "tpu-v5e", "tpu-v5p", "tpu-v6e", "tpu-v7"),
    *("trainium1", "trainium2", "gaudi2", "l40s", "rtx-4090", "rtx-pro-6000", "cpu"),
}
DTYPES = {"float64", "float32", "tensorfloat32", "bfloat16", "float16", "float8", "float4", "int8"}
ACCELERATORS = [name for name in chip_names() if load_chip(name).kind != "cpu"]


def peak(name: str, dtype: str = "bfloat16") -> float:
    return load_chip(name).peak_flop_per_s[dtype].value


def test_the_required_chips_are_here() -> None:
    assert set(chip_names()) >= REQUIRED


@pytest.mark.parametrize("name", ACCELERATORS)
def test_figures_are_plausible(name: str) -> None:
    chip = load_chip(name)
    assert chip.memory_bytes and 16e9 < chip.memory_bytes.value < 320e9
    assert chip.memory_bandwidth_bytes_per_s and 0.5e12 < chip.memory_bandwidth_bytes_per_s.value < 10e12
    assert chip.power_w is None or 150 < chip.power_w.value < 1500
    assert set(chip.peak_flop_per_s) <= DTYPES
    half = chip.peak_flop_per_s.get("bfloat16") or chip.peak_flop_per_s["float16"]
    assert 1e14 < half.value < 3e15
    assert load_chip_entry(name).device_names


@pytest.mark.parametrize("name", ACCELERATORS)
def test_fewer_bits_are_never_slower(name: str) -> None:
    peaks = load_chip(name).peak_flop_per_s
    order = [peaks[dtype].value for dtype in ("float32", "tensorfloat32", "bfloat16", "float8", "float4") if dtype in peaks]
    assert order == sorted(order)


@pytest.mark.parametrize("name", chip_names())
def test_links_and_usual_node_are_in_the_catalog(name: str) -> None:
    entry = load_chip_entry(name)
    assert entry.links is None or load_network(entry.links.network)
    assert load_node_entry(entry.node).chip == name


@pytest.mark.parametrize(
    "chain",
    [
        ("v100-sxm2-32", "a100-40", "a100-80", "h100-sxm", "h200-sxm", "b200"),
        ("mi250x", "mi300x", "mi325x", "mi355x"),
        ("tpu-v3", "tpu-v4", "tpu-v5p", "tpu-v7"),
        ("tpu-v5e", "tpu-v6e"),
        ("trainium1", "trainium2"),
        ("h100-pcie", "h100-nvl"),
    ],
)
def test_memory_gets_faster_from_generation_to_generation(chain: tuple[str, ...]) -> None:
    rates = [figure.value for name in chain if (figure := load_chip(name).memory_bandwidth_bytes_per_s)]
    assert rates == sorted(set(rates))


def test_what_differs_between_parts_of_one_die() -> None:
    assert peak("h100-pcie") < peak("h100-nvl") < peak("h100-sxm") == peak("h200-sxm") == peak("h800") < peak("b200") < peak("gb200")
    assert peak("b300", "float4") == pytest.approx(1.5 * peak("b200", "float4"))
    h800, h100 = load_chip_entry("h800").links, load_chip_entry("h100-sxm").links
    assert h800 and h100 and h800.bandwidth().value == 200e9 < h100.bandwidth().value == 450e9


def test_a_figure_of_its_own_keeps_its_own_source() -> None:
    chip = load_chip("h100-sxm-96-500w")
    assert chip.power_w and chip.power_w.value == 500 and "torchtitan" in chip.power_w.source and chip.power_w.date == "2024-12"
    assert "white paper" in chip.peak_flop_per_s["bfloat16"].source
    assert (memory := load_chip("h200-sxm").memory_bytes) and memory.value == 143771 * 2**20 and memory.how is How.MEASURED


@pytest.mark.parametrize(
    ("device", "name"),
    [("NVIDIA H200", "h200-sxm"), ("NVIDIA H100 80GB HBM3", "h100-sxm"), ("NVIDIA A100-SXM4-80GB", "a100-80"), ("NVIDIA B200", "b200")]
    + [("TPU v5 lite", "tpu-v5e"), ("TPU v5", "tpu-v5p"), ("TPU v5p", "tpu-v5p"), ("TPU v6 lite", "tpu-v6e"), ("TPU7x", "tpu-v7"), ("TPU v4", "tpu-v4")]
    + [("NVIDIA H100 PCIe", "h100-pcie"), ("NVIDIA H100 NVL", "h100-nvl"), ("NVIDIA B300 SXM6 AC", "b300"), ("Tesla V100-SXM2-32GB", "v100-sxm2-32")]
    + [("AMD Instinct MI300X", "mi300x"), ("NVIDIA GB200", "gb200"), ("NVIDIA GeForce RTX 4090", "rtx-4090")],
)
def test_names_that_drivers_give(device: str, name: str) -> None:
    assert match_device_name(device) == load_chip(name)


def test_unknown_devices_and_names() -> None:
    assert match_device_name("NVIDIA H100 PCIe of another planet") is None
    with pytest.raises(CatalogError, match="no chip 'h100-smx'") as error:
        load_chip("h100-smx")
    assert "h100-sxm" in str(error.value.hint)


@pytest.mark.parametrize("name", chip_names())
def test_dump_then_load_is_identity(name: str) -> None:
    entry = load_chip_entry(name)
    assert ChipEntry.from_data(entry.to_data(), origin=name) == entry


@pytest.mark.parametrize(
    ("key", "given", "rule"),
    [
        ("power_w", "0 W", "above zero"),
        ("power_w", -1.0, "above zero"),
        ("power_w", "many", "not a quantity in W"),
        ("power_w", {"value": "700 W", "source": "a data sheet"}, "needs the date"),
        ("power_w", {"value": "700 W", "source": "", "date": "2024-03"}, "needs a source"),
        ("power_w", {"source": "a data sheet", "date": "2024-03"}, "above zero"),
        ("peak_flop_per_s", {"bfloat16": "989 TB/s"}, "not a quantity in FLOP/s"),
        ("peak_flop_per_s", {}, "at least 1 item"),
        ("kind", "npu", "'cpu', 'gpu', 'tpu' or 'accelerator'"),
        ("bandwidth", "1 TB/s", "not a known key"),
    ],
)
def test_bad_figures_are_refused(key: str, given: object, rule: str) -> None:
    with pytest.raises(SpecError, match=rule):
        ChipEntry.from_data(load_chip_entry("h100-sxm").to_data() | {key: given}, origin="chip.toml")


@pytest.mark.parametrize("key", ["source", "date"])
def test_a_file_without_source_or_date_is_refused(key: str) -> None:
    data = load_chip_entry("h100-sxm").to_data()
    del data[key]
    with pytest.raises(SpecError, match=f"{key} = .*is required"):
        ChipEntry.from_data(data, origin="chip.toml")


def test_the_prior_for_a_nodes_failures() -> None:
    """419 interruptions of 2048 nodes in 54 days: 3.79 per 1000 node-days."""
    assert node_mtbf_s() == pytest.approx(86400 * 1000 / 3.789, rel=1e-3)
