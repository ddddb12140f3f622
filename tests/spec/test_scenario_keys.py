"""Short names of a scenario's values mean the value that a reader would expect, or are refused."""

from __future__ import annotations

import pytest

from colossus.spec.errors import SpecError
from colossus.spec.scenario_keys import assignment, paths, resolve


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("spares", "recovery.num_spares"),
        ("recovery.spares", "recovery.num_spares"),
        ("checkpoint.interval", "checkpoint.interval_s"),
        ("interval", "checkpoint.interval_s"),
        ("memory_interval", "checkpoint.memory_interval_s"),
        ("recovery", "recovery.kind"),
        ("swap", "recovery.swap"),
        ("swap.mean", "recovery.swap.mean_s"),
        ("horizon", "horizon_s"),
        ("power.limit", "power.limit_w"),
        ("jitter", "stragglers.jitter_fraction"),
        ("faults", "faults"),
        ("fault_factor", "fault_factor"),
        (" seed ", "seed"),
    ],
)
def test_short_names(text, path):
    assert resolve(text) == path


@pytest.mark.parametrize("path", [path for path in paths() if path != "recovery"])
def test_full_names_are_themselves(path):
    assert resolve(path) == path


@pytest.mark.parametrize(("text", "told"), [("sapres", "spares"), ("checkpoint.intervall", "checkpoint.interval"), ("mean_s", "may mean")])
def test_wrong_names_are_refused_with_the_nearest(text, told):
    with pytest.raises(SpecError, match=told):
        resolve(text)


def test_assignments_are_written_in_full():
    assert assignment("interval=30min") == "checkpoint.interval_s=30min"
    assert assignment("spares=all") == "recovery.num_spares=off"
    assert assignment("spares") == "spares"
