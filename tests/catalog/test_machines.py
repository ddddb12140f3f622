"""Machines by name and by count: totals, tiers, sites, and what is said to a name or a count that does not work."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossus.catalog.machines import MachineEntry, load_machine, load_machine_entry, machine_names
from colossus.spec.errors import CatalogError, SpecError
from colossus.spec.machine import Machine

CHIPS = {
    "social-10k": 10_000,
    "colossus-100k": 100_000,
    "colossus-200k": 200_000,
    "colossus-2-550k": 550_000,
    "colossus-2-1m": 1_000_000,
    "llama-3-24k": 24_576,
    "megascale-12k": 12_288,
    "dgx-superpod-h100": 1016,
    "dgx-superpod-b200": 256,
    "tpu-v4-pod": 4096,
    "tpu-v5p-pod": 8960,
    "tpu-v5e-pod": 256,
    "tpu-v6e-pod": 256,
    "tpu-v7-pod": 9216,
    "dgx-a100": 8,
    "dgx-h100": 8,
    "dgx-b200": 8,
    "gb200-nvl72": 72,
}


@pytest.mark.parametrize(("name", "num_chips"), CHIPS.items())
def test_the_required_machines_have_their_chips(name: str, num_chips: int) -> None:
    assert name in machine_names()
    assert load_machine(name).num_chips == num_chips


@pytest.mark.parametrize("name", machine_names())
def test_every_machine_loads_and_dumps(name: str) -> None:
    machine = load_machine(name)
    assert Machine.from_data(machine.to_data(), origin=name) == machine
    assert machine.site and machine.site.pue and 1 < machine.site.pue.value < 2
    assert machine.site.energy_usd_per_j and machine.site.carbon_kg_co2e_per_j
    assert machine.scale_up is None or machine.scale_up.num_chips <= max(machine.num_chips, machine.node.num_chips)


def test_networks_of_the_named_machines() -> None:
    llama, colossus, megascale = (load_machine(name).scale_out for name in ("llama-3-24k", "colossus-100k", "megascale-12k"))
    assert llama and (llama.pod_chips, llama.oversubscription, llama.num_tiers) == (3072, 7, 3)
    assert colossus and colossus.num_tiers == 3 and colossus.bandwidth_bytes_per_s_per_chip.value == 50e9
    assert megascale and megascale.bandwidth_bytes_per_s_per_chip.value == 25e9
    assert (pod := load_machine("tpu-v5p-pod").scale_up) and pod.torus_dims == (16, 20, 28)


def facility_mw(machine: Machine) -> float:
    site = machine.site
    assert site and site.pue and site.network_w_per_chip and machine.node.power_w
    return (machine.num_nodes * machine.node.power_w.value + machine.num_chips * site.network_w_per_chip.value) * site.pue.value / 1e6


@pytest.mark.parametrize(("name", "low", "high"), [("colossus-100k", 100, 181), ("colossus-200k", 200, 361), ("colossus-2-550k", 1000, 1494)])
def test_power_of_a_site_is_between_what_was_reported_and_estimated(name: str, low: float, high: float) -> None:
    """Reported and Epoch's figures: facts 007 to 019 and 038 of the published facts."""
    assert low < facility_mw(load_machine(name)) < high


def test_simplifications_are_said() -> None:
    assert "50,000 H200" in (load_machine_entry("colossus-200k").notes or "")
    assert "assumption" in (load_machine_entry("social-10k").notes or "")


@pytest.mark.parametrize(
    ("name", "num_nodes", "domain_chips", "torus_dims"),
    [
        ("h100-sxm*64", 8, 8, None),
        ("dgx-h100 * 64", 8, 8, None),
        ("gb200*8", 2, 8, None),
        ("gb200*72", 18, 72, None),
        ("gb200*256", 64, 64, None),
        ("gb200-nvl72*144", 36, 72, None),
        ("gb200*76", 19, 72, None),
        ("tpu-v5p*512", 128, 512, (8, 8, 8)),
        ("tpu-v4*6144", 1536, 3072, (12, 16, 16)),
        ("tpu-v5e*1_024", 256, 256, (16, 16)),
    ],
)
def test_so_many_chips_of_a_kind(name: str, num_nodes: int, domain_chips: int, torus_dims: tuple[int, ...] | None) -> None:
    machine = load_machine(name)
    assert machine.num_nodes == num_nodes
    assert machine.scale_up and machine.scale_up.num_chips == domain_chips and machine.scale_up.torus_dims == torus_dims


@given(st.integers(1, 300_000))
def test_any_whole_number_of_nodes_is_a_machine(num_nodes: int) -> None:
    machine = load_machine(f"gb200*{4 * num_nodes}")
    assert machine.num_nodes == num_nodes and machine.scale_up
    assert machine.scale_up.num_chips <= 72 and machine.scale_up.num_chips % 4 == 0


def test_a_counted_machine_has_the_usual_network_and_prices() -> None:
    machine = load_machine("h100-sxm*1024")
    assert machine.scale_out and machine.scale_out.num_tiers == 2 and machine.scale_out.bandwidth_bytes_per_s_per_chip.value == 50e9
    assert machine.site and machine.site.rent_usd_per_s_per_chip and machine.site.purchase_usd_per_chip
    assert machine.site.rent_usd_per_s_per_chip.value == pytest.approx(2.95 / 3600)


def test_a_machine_of_processors() -> None:
    machine = load_machine("cpu*4")
    assert (machine.num_chips, machine.num_devices, machine.scale_up) == (4, 224, None)
    assert machine.memory_bytes_per_device == 512e9 / 56


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("colosus-100k", "no machine 'colosus-100k'", "colossus-100k"),
        ("h100-smx*8", "no chip or node 'h100-smx'", "h100-sxm"),
        ("h100-sxm*12", "12 chips do not fill whole nodes: dgx-h100 has 8", "h100-sxm*8 or h100-sxm*16"),
        ("gb200*3", "3 chips do not fill whole nodes", "gb200*4"),
        ("h100-sxm*0", "'0' is not a number of chips", "h100-sxm*64"),
        ("h100-sxm*many", "'many' is not a number of chips", "h100-sxm*64"),
        ("h100-sxm*-8", "'-8' is not a number of chips", "h100-sxm*64"),
        ("h100-sxm*", "'' is not a number of chips", "h100-sxm*64"),
        ("h100-sxm", "'h100-sxm' is a chip", "h100-sxm*64"),
        ("../nodes/dgx-h100", "no machine '../nodes/dgx-h100'", "dgx-h100"),
    ],
)
def test_names_and_counts_that_do_not_work(name: str, message: str, hint: str) -> None:
    with pytest.raises(CatalogError) as error:
        load_machine(name)
    assert message in str(error.value) and hint in str(error.value.hint)


def test_a_file_that_contradicts_itself_is_refused() -> None:
    data = load_machine_entry("tpu-v4-pod").to_data()
    with pytest.raises(SpecError, match="hold 4096 chips, not num_chips = 4000"):
        MachineEntry.from_data(data | {"scale_up": {"num_chips": 4000, "torus_dims": [16, 16, 16]}}, origin="pod.toml")
    with pytest.raises(CatalogError, match="no line of prices/regions.toml 'texsa'"):
        MachineEntry.from_data(data | {"site": {"region": "texsa"}}, origin="pod.toml").to_machine()
