"""The committed simulations: pages, pictures and an index under docs/gallery.

    make gallery

Reads benchmarks/gallery.toml, runs each command in this process with its results in a temporary folder, and writes docs/gallery. The same
code gives the same bytes.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path

from common import ROOT

from colossus.cli.main import cli
from colossus.report.simulation_words import verdict
from colossus.spec.simulation import Simulation

FOLDER = ROOT / "docs" / "gallery"
PICTURES = ("timeline", "power", "nodes")
HEAD = """# Simulated machines

Written by `make gallery` from `benchmarks/gallery.toml`: what `colossus simulate` and `colossus sweep` make of three machines, with every figure simulated. The
pages carry everything in them: open them from a clone in a browser. How to make such pages of one's own: [simulating.md](../simulating.md).
"""


def main() -> None:
    os.chdir(ROOT)  # commands name files as one does who stands there
    given = tomllib.loads((ROOT / "benchmarks" / "gallery.toml").read_text())
    FOLDER.mkdir(parents=True, exist_ok=True)
    sections = [simulated(case) for case in given["pages"]] + [swept(case) for case in given["sweeps"]] + [grown()]
    (FOLDER / "README.md").write_text(HEAD + "\n" + "\n".join(sections))
    print(FOLDER / "README.md")


def simulated(case: Mapping[str, str]) -> str:
    """Its page and pictures; what the index says of it."""
    with tempfile.TemporaryDirectory() as scratch:
        out = colossus("simulate", case, scratch, "--plots", f"{scratch}/plots")
        for picture in PICTURES:
            (FOLDER / f"{case['name']}-{picture}.svg").write_text((Path(scratch) / "plots" / f"{picture}.svg").read_text())
    told = verdict(Simulation.from_data(json.loads(out), origin=case["name"]))
    return f"## {case['title']}\n\n{told} [Page]({case['name']}.html)\n\n![Useful work and losses over time]({case['name']}-timeline.svg)\n\n```\ncolossus simulate {case['command']}\n```\n"


def swept(case: Mapping[str, str]) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        out = colossus("sweep", case, scratch, "--plots", f"{scratch}/plots")
        (FOLDER / f"{case['name']}.svg").write_text((Path(scratch) / "plots" / "sweep.svg").read_text())
    told = json.loads(out)["verdict"]
    return f"## {case['title']}\n\n{told} [Page]({case['name']}.html)\n\n![{case['title']}]({case['name']}.svg)\n\n```\ncolossus sweep {case['command']}\n```\n"


def grown() -> str:
    """The pages that gallery_build_out.py wrote."""
    pages = "\n".join(f"- [{page.stem.removeprefix('build-out-')}]({page.name})" for page in sorted(FOLDER.glob("build-out-*.html")))
    return f"## Sites that grow\n\nWhat `colossus build-out` makes of the catalog's sites: chips, power and money over time.\n\n{pages}\n"


def colossus(verb: str, case: Mapping[str, str], scratch: str, *more: str) -> str:
    """What the verb prints as JSON; its page goes to the gallery."""
    print(f"{verb} {case['name']} ...", file=sys.stderr)
    arguments = [verb, *shlex.split(case["command"]), "--json", "--runs", scratch, "--html", str(FOLDER / f"{case['name']}.html"), *more]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        cli.main(arguments, standalone_mode=False)
    return out.getvalue()


if __name__ == "__main__":
    main()
