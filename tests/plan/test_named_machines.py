"""Plans for named machines stay near what was published of such jobs: benchmarks/named_machines.py, whose page a person reads."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import named_machines  # noqa: E402

CASES = tomllib.loads((ROOT / "benchmarks" / "named_machines.toml").read_text())["cases"]
# Published figures hold restarts, other programs and other ways to count; beyond this a plan makes no sense.
FACTOR = 2.6


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['machine']}: {case['job']}")
def test_a_plan_is_near_what_was_published(case):
    found = named_machines.worked_out(case)
    assert case["comment"] and all(one["source"] for one in case["published"])
    for one in found["published"]:
        assert 1 / FACTOR < one["ratio"] < FACTOR, one
    assert sum(found["parts_s"].values()) > 0 and "layout" in found["words"]


def test_every_named_machine_is_looked_at():
    from colossus.catalog.machines import MachineEntry

    small_pods = {"tpu-v5e-pod", "tpu-v6e-pod"}  # of 256 chips, of which nothing of this kind was published
    assert set(MachineEntry.names()) - small_pods <= {case["machine"] for case in CASES}


def test_the_page_names_every_case():
    text = named_machines.PAGE.read_text()
    assert all(case["job"] in text for case in CASES)
