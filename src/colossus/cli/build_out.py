"""``colossus build-out``: a site that grows, played out day by day."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from colossus.cli.common import json_option, paper, print_json

if TYPE_CHECKING:
    from colossus.catalog.sites import GrowingSite
    from colossus.spec.build_out import BuildOut
    from colossus.twin.build_out import Asked


@click.command("build-out")
@click.argument("site", metavar="SITE", required=False)
@click.option("--job", metavar="MODEL", help="A model of the catalog that trains on all that runs: its tokens by date, and what growth gains it.")
@click.option("--tokens", type=click.FloatRange(min=0, min_open=True), help="How many tokens the job wants: when it has them, with growth and without.")
@click.option("--sequence-tokens", type=click.IntRange(min=2), default=8192, show_default=True, help="Tokens of a sequence of the job.")
@click.option("--mfu", type=float, help="Fraction of the 16-bit peak that training reaches; default: the site's own.")
@click.option("--html", "page", type=click.Path(path_type=Path), help="Write one self-contained page with plots.")
@json_option
def command(site: str | None, job: str | None, tokens: float | None, sequence_tokens: int, mfu: float | None, page: Path | None, as_json: bool) -> None:
    """Play out how SITE grows: chips, power and money by day, the compute it delivers, and when grid, substation or turbines are the limit.

    SITE: a name of the catalog (without SITE they are listed), or a .toml file of one's own like those in catalog/sites.
    """
    from colossus.catalog.scenarios import load_scenario
    from colossus.twin.build_out import play

    if site is None:
        _list(as_json=as_json)
        return
    asked = _asked(job, tokens, sequence_tokens)
    found = play(_load(site), load_scenario(), mfu_fraction=mfu, job=asked)
    if page:
        from colossus.cli.files import write_file
        from colossus.report.build_out_page import page as drawn

        write_file(page, drawn(found), what="page")
    if as_json:
        print_json(found.to_data())
        return
    _print(found)


def _load(name: str) -> GrowingSite:
    from colossus.catalog.sites import GrowingSite, load_site
    from colossus.spec.base import read_toml

    path = Path(name)
    return GrowingSite.from_data(read_toml(path), origin=name) if path.suffix == ".toml" or path.is_file() else load_site(name)


def _asked(job: str | None, tokens: float | None, sequence_tokens: int) -> Asked | None:
    if job is None:
        if tokens is not None:
            raise click.UsageError("--tokens is of a job: name one with --job")
        return None
    if tokens is not None and not math.isfinite(tokens):
        from colossus.spec.errors import Problem, SpecError

        raise SpecError("build-out", [Problem(path="--tokens", value=f"{tokens:g}", rule="must be a finite number", hint="e.g. --tokens 15e12")])
    from colossus.catalog.models import load_model
    from colossus.estimate.flop import train_flop
    from colossus.twin.build_out import Asked

    flop_per_token = train_flop(load_model(job), 1, sequence_tokens).model_flop / sequence_tokens
    return Asked(model=job, flop_per_token=flop_per_token, total_tokens=tokens)


def _list(*, as_json: bool) -> None:
    from colossus.catalog.sites import load_site, site_names
    from colossus.cli.catalog import show_all

    sites = {name: load_site(name) for name in site_names()}
    if as_json:
        print_json([{"id": name, "name": site.name, "begin": str(site.begin), "end": str(site.end)} for name, site in sites.items()])
        return
    show_all(("site", "name", "from", "to"), [(name, site.name, str(site.begin), str(site.end)) for name, site in sites.items()], words=2)


def _print(found: BuildOut) -> None:
    from colossus.cli.catalog import show_all
    from colossus.report import build_out_words as words

    console = paper()
    console.print(found.name)
    console.print(words.verdict(found) + "\n")
    show_all(words.TABLE_HEADER, words.table_rows(found))
    console.print()
    show_all(("", "", ""), words.figures(found), words=3)
    if found.shortages:
        console.print("\nwhere power is the limit")
        show_all(words.LIMIT_HEADER, words.limit_rows(found), words=7)
    if found.compared:
        console.print("\nagainst what others published")
        show_all(words.COMPARED_HEADER, words.compared_rows(found), words=6)
    for note in found.notes:
        console.print(f"note: {note}")
