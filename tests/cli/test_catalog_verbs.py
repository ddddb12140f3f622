"""``colossus chips``, ``machines`` and ``models``: every entry is listed, every figure names its source, wrong names find the right ones."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from colossus.catalog.chips import chip_names, load_chip_entry
from colossus.catalog.machines import load_machine, machine_names
from colossus.catalog.models import load_model_entry, model_names
from colossus.cli.catalog import in_billions, said
from colossus.cli.machines import site_power_w
from colossus.cli.main import VERBS
from tests.cli.calling import call

NAMES = {"chips": chip_names, "machines": machine_names, "models": model_names}
# A table that a dumb terminal can still hold.
WIDEST = 110


@pytest.fixture
def show(capsys, monkeypatch):
    def do(*arguments: object) -> str:
        code, out, err = call(capsys, monkeypatch, *arguments)
        assert code == 0, err
        assert not err
        return out

    return do


@pytest.mark.parametrize("verb", NAMES)
def test_every_entry_is_listed(show, verb):
    out = show(verb)
    assert all(any(line.startswith(f"{name} ") for line in out.splitlines()) for name in NAMES[verb]())
    assert "…" not in out and max(map(len, out.splitlines())) <= WIDEST
    rows = json.loads(show(verb, "--json"))
    assert [row["id"] for row in rows] == NAMES[verb]()


@pytest.mark.parametrize(("verb", "name"), [(verb, name) for verb, names in NAMES.items() for name in names()])
def test_every_entry_can_be_shown(show, verb, name):
    out = show(verb, name)
    assert out.startswith(name)
    data = json.loads(show(verb, name, "--json"))
    assert data["id"] == name and data["source"] and data["date"]


def test_a_chip_with_its_figures_and_where_they_come_from(show):
    row = next(row for row in json.loads(show("chips", "--json")) if row["id"] == "h100-sxm")
    assert (row["peak_16_bit_flop_per_s"], row["peak_8_bit_flop_per_s"], row["peak_4_bit_flop_per_s"]) == (989.4e12, 1978.9e12, None)
    assert (row["memory_bandwidth_bytes_per_s"], row["power_w"], row["link_bandwidth_bytes_per_s"]) == (3.35e12, 700, 450e9)
    out = " ".join(show("chips", "h100-sxm").split())
    for words in ("datasheet, 2023-03: NVIDIA H100", "measured, 2026-11: nvidia-smi", "memory 79.6 GiB", "bfloat16 GEMM", "rent per chip 2.95 USD/h"):
        assert words in out
    data = json.loads(show("chips", "h100-sxm", "--json"))
    assert data["memory_bytes"]["how"] == "measured" and data["prices"]["rent_usd_per_s_per_chip"]["date"] == "2026-05"
    assert data["measured_gemm"]["curves"]["bfloat16"]["flop_per_s"] > 0.5 * 989e12 and data["measured_gemm"]["source"]


@pytest.mark.parametrize("name", chip_names())
def test_every_figure_of_a_chip_is_shown(show, name):
    out = " ".join(show("chips", name).split())
    entry = load_chip_entry(name)
    for dtype, peak in entry.peak_flop_per_s.items():
        assert f"{dtype} peak {said('peak_flop_per_s', peak.value)[1]}" in out
        assert f"{peak.date}: {' '.join(peak.source.split())}" in out


def test_a_machine_of_so_many_chips(show):
    data = json.loads(show("machines", "h100-sxm*64", "--json"))
    assert (data["num_chips"], data["num_nodes"], data["network"]) == (64, 8, "infiniband-ndr")
    assert load_machine("h100-sxm*64").to_data().items() <= data.items()


def test_power_is_that_of_nodes_and_network_times_overhead(show):
    machine = load_machine("colossus-100k")
    assert machine.node.power_w and machine.site and machine.site.pue and machine.site.network_w_per_chip
    it_w = 12_500 * machine.node.power_w.value + 100_000 * machine.site.network_w_per_chip.value
    assert site_power_w(machine) == pytest.approx(it_w * machine.site.pue.value)
    rows = {row["id"]: row for row in json.loads(show("machines", "--json"))}
    assert rows["colossus-100k"]["site_power_w"] == site_power_w(machine)
    assert rows["tpu-v4-pod"]["site_power_w"] is None and rows["tpu-v4-pod"]["torus_dims"] == [16, 16, 16]


def test_a_model_with_its_counts(show):
    data = json.loads(show("models", "mixtral-8x7b", "--json"))
    assert data["num_parameters"] == pytest.approx(46.7e9, rel=0.01) and data["num_active_parameters"] == pytest.approx(12.9e9, rel=0.01)
    assert sum(data["parameters"].values()) == data["num_parameters"]
    assert load_model_entry("mixtral-8x7b").source in "".join(show("models", "mixtral-8x7b").split("\n"))


@pytest.mark.parametrize(
    ("verb", "name", "nearest"),
    [
        ("chips", "h10-sxm", "h100-sxm"),
        ("machines", "colosus-100k", "colossus-100k"),
        ("machines", "h100-sxm", "h100-sxm*64"),
        ("machines", "h100-sxm*12", "h100-sxm*16"),
        ("machines", "this", "colossus machine"),
        ("models", "lama-3-8b", "llama-3-8b"),
    ],
)
def test_an_unknown_name_gives_the_nearest(capsys, monkeypatch, verb, name, nearest):
    code, out, err = call(capsys, monkeypatch, verb, name)
    assert (code, out) == (1, "")
    assert nearest in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("name", "value", "label", "text"),
    [
        ("power_w", 700.0, "power", "700 W"),
        ("rent_usd_per_s_per_chip", 2.5 / 3600, "rent per chip", "2.5 USD/h"),
        ("energy_usd_per_j", 0.08 / 3.6e6, "energy", "0.08 USD/kWh"),
        ("carbon_kg_co2e_per_j", 0.4 / 3.6e6, "carbon", "400 gCO2e/kWh"),
        ("latency_s", 2.7e-6, "latency", "2.7 us"),
        ("memory_bytes", 2**40, "memory", "1 TiB"),
        ("num_layers", 32, "layers", "32"),
        ("scale up torus_dims", (16, 16), "scale up torus dims", "16 x 16"),
        ("tie_embeddings", True, "tie embeddings", "yes"),
    ],
)
def test_figures_are_said_with_their_unit(name, value, label, text):
    assert said(name, value) == (label, text)


def test_parameters_are_said_as_people_count_them():
    assert [in_billions(number) for number in (999, 1.35e8, 8.03e9, 1.01e12)] == ["999", "135 M", "8.03 B", "1.01 T"]


@pytest.mark.parametrize("verb", ["chips", "machines", "models", "validate", "calibrate"])
def test_help_imports_nothing_heavy(verb):
    words = f"import sys; from colossus.cli.main import cli; cli.main([{verb!r}, '--help'], standalone_mode=False)"
    check = words + "; heavy = {'jax', 'numpy', 'scipy', 'pydantic', 'rich'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert verb in VERBS


def test_the_catalog_needs_no_numbers_library(monkeypatch):
    check = "import sys; from colossus.cli.main import cli; [cli.main([verb], standalone_mode=False) for verb in ('chips', 'machines', 'models')]"
    done = subprocess.run([sys.executable, "-c", check + "; sys.exit('numpy' in sys.modules or 'jax' in sys.modules)"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
