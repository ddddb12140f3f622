"""Nodes and networks of the catalog: what is required, what they add up to, the shapes of tori, tiers of switches."""

from __future__ import annotations

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossus.catalog.chips import load_chip_entry
from colossus.catalog.networks import Links, load_network, network_names
from colossus.catalog.nodes import load_node, load_node_entry, node_names
from colossus.spec.errors import CatalogError

REQUIRED_NODES = {
    *("dgx-a100", "dgx-h100", "dgx-h200", "dgx-b200", "dgx-b300", "hgx-h800", "mi300x-8", "gb200-nvl72", "gb300-nvl72", "trn2", "gaudi2-8"),
    *("tpu-v3-host", "tpu-v4-host", "tpu-v5e-host", "tpu-v5p-host", "tpu-v6e-host", "tpu-v7-host", "l40s-8", "rtx-4090-8"),
}
REQUIRED_NETWORKS = {
    *("infiniband-hdr", "infiniband-ndr", "infiniband-xdr", "roce-400g", "spectrum-x-400g", "efa-v2", "efa-v3"),
    *("nvlink-3", "nvlink-4", "nvlink-5", "ici-v3", "ici-v4", "ici-v5e", "ici-v5p", "ici-v6e", "ici-v7"),
}


def test_the_required_nodes_and_networks_are_here() -> None:
    assert set(node_names()) >= REQUIRED_NODES
    assert set(network_names()) >= REQUIRED_NETWORKS


@pytest.mark.parametrize("name", node_names())
def test_a_node_is_plausible_and_its_parts_exist(name: str) -> None:
    entry, node = load_node_entry(name), load_node(name)
    assert 1 <= node.num_chips <= 16 and 16 <= node.num_cores <= 512 and 128e9 < node.memory_bytes < 4e12
    chip_power = node.chip.power_w
    assert node.power_w is None or (chip_power and 1 <= node.power_w.value / (node.num_chips * chip_power.value) < 2.2)
    assert entry.scale_out and 1e9 < entry.scale_out.bandwidth().value <= 100e9
    links = entry.domain_links
    assert (links is None) == (node.chip.kind == "cpu")
    assert links is None or 30e9 < links.bandwidth().value <= 900e9
    # A domain is whole nodes, or a node is whole domains.
    assert entry.domain is None or entry.domain.num_chips % node.num_chips == 0 or node.num_chips % entry.domain.num_chips == 0


@pytest.mark.parametrize("name", network_names())
def test_a_network_is_plausible(name: str) -> None:
    network = load_network(name)
    assert 10e9 < network.bandwidth_bytes_per_s_per_link.value <= (450e9 if name == "nvlink-c2c" else 128e9)
    assert 0.5e-6 <= network.latency_s.value <= 20e-6


def test_rates_that_everybody_knows() -> None:
    rates = {"v100-sxm2-32": 150, "a100-80": 300, "h100-sxm": 450, "b200": 900, "mi300x": 448, "tpu-v4": 300, "tpu-v5p": 600}
    for chip, gigabytes in rates.items():
        links = load_chip_entry(chip).links
        assert links and links.bandwidth().value == gigabytes * 1e9
    assert [load_network(f"infiniband-{rate}").bandwidth_bytes_per_s_per_link.value for rate in ("hdr", "ndr", "xdr")] == [25e9, 50e9, 100e9]
    assert (out := load_node_entry("dgx-h100").scale_out) and out.bandwidth().value == 50e9
    assert (domain := load_node_entry("gb200-nvl72").domain) and domain.num_chips == 72


@pytest.mark.parametrize(("num_chips", "tiers"), [(1, 1), (64, 1), (65, 2), (2048, 2), (2049, 3), (65_536, 3), (65_537, 4)])
def test_tiers_of_a_clos_of_64_ports(num_chips: int, tiers: int) -> None:
    assert Links(network="infiniband-ndr", num_links_per_chip=1).num_tiers(num_chips) == tiers


@pytest.mark.parametrize(
    ("node", "num_chips", "dims"),
    [("tpu-v4-host", 4, (1, 2, 2)), ("tpu-v4-host", 64, (4, 4, 4)), ("tpu-v5p-host", 384, (4, 8, 12)), ("tpu-v5p-host", 1024, (8, 8, 16))]
    + [("tpu-v5p-host", 8960, (16, 20, 28)), ("tpu-v7-host", 9216, (16, 24, 24)), ("tpu-v5e-host", 8, (2, 4)), ("tpu-v5e-host", 128, (8, 16))],
)
def test_slices_have_the_shapes_of_the_documentation(node: str, num_chips: int, dims: tuple[int, ...]) -> None:
    domain = load_node_entry(node).domain
    assert domain and domain.torus_dims(num_chips) == dims


@given(st.integers(1, 2000).map(lambda nodes: 4 * nodes), st.sampled_from(["tpu-v5e-host", "tpu-v5p-host"]))
def test_torus_dims_multiply_to_the_chips(num_chips: int, node: str) -> None:
    domain = load_node_entry(node).domain
    assert domain and (dims := domain.torus_dims(num_chips))
    assert prod(dims) == num_chips and list(dims) == sorted(dims)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(CatalogError, match="no node 'dgx-h10'") as error:
        load_node("dgx-h10")
    assert "dgx-h100" in str(error.value.hint)
    with pytest.raises(CatalogError, match="no network") as error:
        load_network("infiniband-mdr")
    assert "infiniband-ndr" in str(error.value.hint)
