"""``colossus machines``: the machines and nodes of the catalog."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from colossus.cli.common import json_option, print_json

if TYPE_CHECKING:
    from colossus.catalog.machines import MachineEntry
    from colossus.cli.catalog import Fact
    from colossus.spec.machine import Machine


@click.command("machines")
@click.argument("name", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the machines of the catalog, or show all that is known of the machine NAME, with sources.

    NAME may also be a count of chips, e.g. h100-sxm*64, or of the chips of a node's kind: gb200-nvl72*144 is two racks. Power is that of the site
    at full load: nodes, network, and the building's overhead.
    """
    from colossus.catalog.machines import load_machine_entry, machine_names

    if name is None:
        _list({known: load_machine_entry(known) for known in machine_names()}, as_json=as_json)
        return
    if name == "this":
        from colossus.spec.errors import CatalogError

        raise CatalogError("'this' is not in the catalog: it is the machine you stand on", hint="colossus machine")
    _show(name, load_machine_entry(name), as_json=as_json)


def site_power_w(machine: Machine) -> float | None:
    """Nodes at full load and the network between domains, times PUE; None where the nodes' power is not known.

    A network of unknown power counts as nothing.
    """
    site, node_w = machine.site, machine.node.power_w
    if node_w is None or site is None or site.pue is None:
        return None
    network_w = site.network_w_per_chip.value if site.network_w_per_chip else 0.0
    return (machine.num_nodes * node_w.value + machine.num_chips * network_w) * site.pue.value


def _list(entries: dict[str, MachineEntry], *, as_json: bool) -> None:
    from colossus.catalog.nodes import node_names
    from colossus.cli.catalog import show_all
    from colossus.cli.common import paper

    rows = [_row(name, entry) for name, entry in entries.items()]
    if as_json:
        print_json(rows)
        return
    header = ("", "chip", "network, one way a chip", "chips", "nodes", "domain", "power")
    filed = [row for row in rows if row["id"] not in node_names()]
    for title, some in (("machine", filed), ("one domain of nodes", [row for row in rows if row not in filed])):
        show_all((title, *header[1:]), [_cells(row) for row in some], words=3)
        paper().print()
    paper().print("Also so many chips of a kind: CHIP*COUNT or NODE*COUNT, COUNT in chips, e.g. h100-sxm*64. This machine: colossus machine.")


def _row(name: str, entry: MachineEntry) -> dict[str, Any]:
    """Plain numbers of one machine in base units."""
    machine = entry.to_machine()
    up, out = machine.scale_up, machine.scale_out
    return {
        "id": name,
        "name": machine.name,
        "chip": _chip(entry),
        "num_chips": machine.num_chips,
        "node": entry.node,
        "num_nodes": machine.num_nodes,
        "domain_chips": up.num_chips if up else None,
        "torus_dims": up.torus_dims if up else None,
        "network": _network(entry),
        "network_bytes_per_s_per_chip": out.bandwidth_bytes_per_s_per_chip.value if out else None,
        "num_tiers": out.num_tiers if out else None,
        "site_power_w": site_power_w(machine),
    }


def _chip(entry: MachineEntry) -> str:
    from colossus.catalog.nodes import load_node_entry

    return load_node_entry(entry.node).chip


def _network(entry: MachineEntry) -> str | None:
    from colossus.catalog.nodes import load_node_entry

    links = entry.scale_out.links or load_node_entry(entry.node).scale_out
    return links.network if links else None


def _cells(row: dict[str, Any]) -> list[str]:
    from colossus.cli.catalog import UNKNOWN
    from colossus.spec.units import format_quantity

    rate = row["network_bytes_per_s_per_chip"]
    domain = " x ".join(map(str, row["torus_dims"])) if row["torus_dims"] else f"{row['domain_chips']:,}" if row["domain_chips"] else UNKNOWN
    network = f"{row['network']} {format_quantity(rate, 'B/s')}" if rate else UNKNOWN
    power = UNKNOWN if row["site_power_w"] is None else format_quantity(row["site_power_w"], "W")
    return [row["id"], row["chip"], network, f"{row['num_chips']:,}", f"{row['num_nodes']:,}", domain, power]


def _show(name: str, entry: MachineEntry, *, as_json: bool) -> None:
    from colossus.cli.catalog import show_one

    machine = entry.to_machine()
    if as_json:
        about = {"id": name, "source": entry.source, "date": entry.date, "how": entry.how.value, "notes": entry.notes}
        print_json(about | {key: value for key, value in _row(name, entry).items() if key != "node"} | machine.to_data())
        return
    show_one(f"{name}: {machine.name}" if name != machine.name else name, entry.notes, list(_facts(name, entry, machine)))


def _facts(name: str, entry: MachineEntry, machine: Machine) -> Iterator[Fact]:
    from colossus.catalog.nodes import load_node_entry
    from colossus.cli.catalog import Fact, Origin, facts_of
    from colossus.spec.units import format_quantity

    node = load_node_entry(entry.node)
    whole = Origin(how=entry.how.value, source=entry.source, date=entry.date)
    of_node = Origin(how=node.how.value, source=node.source, date=node.date)
    yield Fact(name="chips", value=f"{machine.num_chips:,} {node.chip}", origin=whole)
    yield Fact(name="nodes", value=f"{machine.num_nodes:,} {entry.node}", origin=whole)
    if machine.scale_up:
        yield from facts_of(machine.scale_up, whole, prefix="scale up ")
    if machine.scale_out:
        yield Fact(name="scale out network", value=str(_network(entry)), origin=whole)
        yield from facts_of(machine.scale_out, whole, prefix="scale out ")
    yield from facts_of(machine.node, of_node, prefix="node ")
    if machine.site:
        yield from facts_of(machine.site, whole, prefix="site ")
    power_w = site_power_w(machine)
    if power_w is not None:
        origin = Origin(how="estimated", source="(nodes x their power + chips x the network's) x PUE", date=entry.date)
        yield Fact(name="site power at full load", value=format_quantity(power_w, "W"), origin=origin)
