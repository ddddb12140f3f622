"""Sites that grow: what is built is counted once, what has no power is dark, and what others published is met."""

from __future__ import annotations

import datetime
import json
import re
import tomllib
from importlib.resources import files
from itertools import pairwise

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from colossus.catalog.scenarios import load_scenario
from colossus.catalog.sites import GrowingSite, load_site, site_names
from colossus.report import build_out_words as words
from colossus.report.build_out_page import page
from colossus.spec.build_out import BuildOut
from colossus.spec.errors import CatalogError, ColossusError, SpecError
from colossus.twin.build_out import Asked, play
from tests.cli.calling import call

JOB = Asked(model="a model", flop_per_token=2.4e12, total_tokens=15e12)


def played(name: str = "colossus-1", **options) -> BuildOut:
    return play(load_site(name), load_scenario(), **options)


def data(name: str = "colossus-1") -> dict:
    return tomllib.loads((files("colossus.catalog") / "sites" / f"{name}.toml").read_text())


def changed(**changes) -> GrowingSite:
    return GrowingSite.from_data(data() | changes, origin="mine.toml")


@pytest.mark.parametrize("name", site_names())
def test_every_site_plays_out_and_dumps(name):
    found = played(name, job=JOB)
    assert BuildOut.from_data(found.to_data(), origin=name) == found == played(name, job=JOB)
    assert load_site(name) == GrowingSite.from_data(load_site(name).to_data(), origin=name)
    days = range(found.num_days)
    assert all(found.supply_w(day) == min(found.grid_w[day], found.substation_w[day]) + found.turbines_w[day] for day in days)
    assert all(0 <= found.num_dark_chips[day] <= found.all_chips(day) for day in days)
    assert all(found.site_w[day] <= found.supply_w(day) * (1 + 1e-9) for day in days)
    for spent in found.spent_usd.values():
        assert all(before <= after + 1e-6 for before, after in pairwise(spent))
    assert found.energy_j[-1] == pytest.approx(sum(found.site_w) * 86400)
    assert found.total_flop[-1] == pytest.approx(sum(found.flop_per_s) * 86400) == pytest.approx(found.job.num_tokens[-1] * 2.4e12)


def test_a_hundred_thousand_stand_after_122_days_and_as_many_more_after_92():
    found = played()
    chips = [found.all_chips(day) for day in range(found.num_days)]
    assert chips[0] == 0 and chips[122] == 100_000 and chips[122 + 92] == 200_000 == chips[-1] and chips[121] < 100_000
    assert found.day(122) == datetime.date(2024, 9, 2)


@pytest.mark.parametrize(("name", "published"), [("colossus-1", {45e6, 181e6, 361e6}), ("colossus-2", {299e6, 1494e6})])
def test_facility_power_by_date_is_what_epoch_has_within_a_tenth(name, published):
    compared = [one for one in played(name).compared if one.published_w]
    assert {one.published_w for one in compared} == published
    assert all(one.ratio == pytest.approx(1, abs=0.1) for one in compared), compared


def test_the_second_sites_first_phase_needs_what_was_told_of_it():
    """170 MW for 110,000 GB200 (fact-035); nothing was fitted on it."""
    found = played("colossus-2")
    assert found.need_w[found.index(datetime.date(2025, 10, 19))] == pytest.approx(170e6, rel=0.1)


def test_chips_beyond_the_supply_stand_dark_until_it_comes():
    found = played("colossus-2")
    longest = max(found.shortages, key=lambda one: one.num_dark_chips_at_most)
    assert longest.limit == "turbines" and "41 permanent turbines" in longest.waits_for
    begin, end = found.index(longest.begin), found.index(longest.end)
    assert found.num_dark_chips[begin] > 0 == found.num_dark_chips[begin - 1] and found.num_dark_chips[end] > 0 == found.num_dark_chips[end + 1]
    assert all(found.need_w[day] > found.supply_w(day) for day in range(begin, end + 1))
    assert 0.59 < longest.speed_fraction < 1


def substation_late() -> dict:
    """A contract of the whole power from the first day, through a substation that comes later."""
    return {
        "sources": [
            {"name": "contract", "kind": "grid", "date": "2024-05-03", "power_w": "400 MW", "source": "test"},
            {"name": "old", "kind": "substation", "date": "2024-05-03", "power_w": "20 MW", "source": "test"},
            {"name": "new", "kind": "substation", "date": "2025-01-01", "power_w": "380 MW", "source": "test"},
        ]
    }


def test_a_substation_can_be_what_is_waited_for():
    found = play(changed(**substation_late()), load_scenario())
    (shortage,) = found.shortages
    assert (shortage.limit, shortage.waits_for) == ("substation", "new, 2025-01-01") and shortage.end == datetime.date(2024, 12, 31)
    assert "the substation" in words.verdict(found)


def test_swings_are_left_where_no_battery_is():
    found = played()
    before, after = (found.index(datetime.date(2025, month, 15)) for month in (4, 5))
    assert found.swing_left_w[before] == found.swing_w[before] > 20e6 and found.swing_left_w[after] == 0 < found.swing_w[after]


def test_what_growth_gains_a_job():
    job = played(job=JOB).job
    assert job.begin == datetime.date(2024, 7, 23) and job.done < job.done_ungrown
    assert job.num_tokens[-1] > 5 * job.num_ungrown_tokens[-1] and job.num_tokens[:101] == job.num_ungrown_tokens[:101]
    never = played(job=Asked(model="a model", flop_per_token=1e20, total_tokens=1e15)).job
    assert never.done is None


@settings(max_examples=20, deadline=None)
@given(st.floats(0.05, 1.0), st.floats(0.05, 1.0))
def test_more_mfu_is_never_less_compute_and_moves_nothing_else(one, other):
    low, high = (played(mfu_fraction=mfu) for mfu in sorted((one, other)))
    assert low.total_flop[-1] <= high.total_flop[-1] * (1 + 1e-12) and low.site_w == high.site_w and low.spent_usd == high.spent_usd


@settings(max_examples=20, deadline=None)
@given(st.floats(0.0, 4e8), st.floats(0.0, 4e8))
def test_more_power_never_darkens_a_chip(one, other):
    dark = []
    for power_w in sorted((one, other)):
        sources = [{"name": kind, "kind": kind, "date": "2024-05-03", "power_w": power_w, "source": "test"} for kind in ("grid", "substation")]
        dark.append(play(changed(sources=sources), load_scenario()).num_dark_chips)
    assert all(more <= less for less, more in zip(*dark, strict=True))


def phases(*numbers: int, dates: tuple[str, ...] = ("2024-06-01", "2024-07-01")) -> list[dict]:
    return [{"date": day, "node": "hgx-h100", "num_chips": number, "source": "test"} for day, number in zip(dates, numbers, strict=True)]


def source(**changes) -> list[dict]:
    return [{"name": "grid", "kind": "grid", "date": "2024-05-03", "power_w": "100 MW", "source": "test"} | changes]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"phases": phases(2000, 1000)}, "cannot shrink: hgx-h100 has 2,000 chips on 2024-06-01 and 1,000 on 2024-07-01"),
        ({"phases": phases(1000, 2000, dates=("2024-07-01", "2024-06-01"))}, "in order of their dates"),
        ({"phases": phases(1000, 2000, dates=("2024-01-01", "2024-06-01"))}, "a phase of 2024-01-01 is before begin 2024-05-03"),
        ({"phases": []}, "at least 1"),
        ({"phases": phases(-8, 1000)}, "greater than or equal to 0"),
        ({"end": "2024-05-03"}, "end 2024-05-03 must be after begin 2024-05-03"),
        ({"end": "2124-05-03"}, "more than 30 years"),
        ({"end": "soon"}, "date"),
        ({"sources": source(power_w="-5 MW")}, "power -5 MW is below zero"),
        ({"sources": source(power_w=-5e6)}, "greater than or equal to 0"),
        ({"sources": source(until="2024-05-01")}, "not after its beginning"),
        ({"sources": source(kind="battery")}, "says stored_j"),
        ({"sources": source(kind="coal")}, "'grid', 'substation', 'turbines' or 'battery'"),
        ({"sources": source(kind="battery", stored_j="5 apples")}, "kWh, MWh, GWh"),
        ({"mfu_fraction": 1.4}, "less than or equal to 1"),
        ({"pahses": []}, "is not a known key"),
    ],
)
def test_a_wrong_site_is_told_what_is_wrong(changes, told):
    with pytest.raises(SpecError) as raised:
        changed(**changes)
    assert told in str(raised.value) and "mine.toml" in str(raised.value)


def test_an_unknown_node_or_site_gives_the_nearest():
    with pytest.raises(ColossusError) as raised:
        changed(phases=[{"date": "2024-06-01", "node": "hgx-h10", "num_chips": 8, "source": "test"}])
    assert "hgx-h100" in (raised.value.hint or str(raised.value))
    with pytest.raises(CatalogError) as raised:
        load_site("colosus-2")
    assert "colossus-2" in raised.value.hint


def test_the_verb_shows_lists_and_writes(capsys, monkeypatch, tmp_path):
    code, out, _ = call(capsys, monkeypatch, "build-out")
    assert code == 0 and all(name in out for name in site_names())
    code, out, err = call(capsys, monkeypatch, "build-out", "colossus-2", "--job", "llama-3.1-405b", "--tokens", "15.6e12", "--html", tmp_path / "page.html")
    assert code == 0 and "where power is the limit" in out and "41 permanent turbines" in out and "page.html" in err
    assert "llama-3.1-405b" in (tmp_path / "page.html").read_text()
    code, out, _ = call(capsys, monkeypatch, "build-out", "social-llm-10k", "--json", "--mfu", "0.3")
    assert code == 0 and json.loads(out)["mfu_fraction"] == 0.3


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("colosus-1",), 1, "colossus-1"),
        (("colossus-1", "--mfu", "40"), 1, "at most 1"),
        (("colossus-1", "--job", "lama-3-8b"), 1, "llama-3-8b"),
        (("colossus-1", "--tokens", "1e12"), 2, "--job"),
        (("nowhere.toml",), 1, "does not exist"),
    ],
)
def test_the_verb_says_what_is_wrong(capsys, monkeypatch, arguments, code, told):
    found, out, err = call(capsys, monkeypatch, "build-out", *arguments)
    assert (found, out) == (code, "") and told in err and "Traceback" not in err


def test_a_site_of_ones_own_is_played_out(capsys, monkeypatch, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(tomli_w.dumps(data() | substation_late()))
    code, out, err = call(capsys, monkeypatch, "build-out", path)
    assert code == 0, err
    assert "new, 2025-01-01" in out


@pytest.mark.parametrize("name", site_names())
def test_the_page_is_whole_and_small(name):
    drawn = page(played(name, job=JOB))
    assert len(drawn) < 400_000 and "http" not in drawn.replace("http://www.w3.org/2000/svg", "") and drawn.count("<svg") == 10
    assert "simulated" in drawn and "Sources of power" in drawn and not re.search(r"\b(nan|inf)\b", drawn)


def test_every_site_has_its_page_in_the_gallery():
    """benchmarks/gallery_build_out.py makes them anew."""
    from tests.twin.test_power import BENCHMARKS

    folder = BENCHMARKS.parent / "docs" / "gallery"
    assert {f"build-out-{name}.html" for name in site_names()} <= {path.name for path in folder.iterdir()}


def test_a_site_whose_chips_come_after_its_end_is_refused_with_the_day():
    with pytest.raises(SpecError, match=r"the first phase, of 2024-08-11, is after end 2024-06-01.*end on 2024-08-11 or later"):
        changed(end="2024-06-01")


def test_sources_of_one_name_are_two():
    """A second source never takes the first one's place; its ``until`` ends it."""
    first = next(source for source in data()["sources"] if source["kind"] == "turbines")
    before, after = played(), play(changed(sources=[*data()["sources"], first]), load_scenario())
    day = before.index(datetime.date.fromisoformat(str(first["date"])))
    assert after.turbines_w[day] > before.turbines_w[day] > 0 and after.turbines_w[-1] >= before.turbines_w[-1]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_endless_watts_are_refused(value):
    sources = data()["sources"]
    with pytest.raises(SpecError, match="must be a finite number"):
        changed(sources=[sources[0] | {"power_w": value}, *sources[1:]])


@pytest.mark.parametrize("tokens", ["nan", "inf"])
def test_endless_tokens_are_refused(capsys, monkeypatch, tokens):
    code, _, err = call(capsys, monkeypatch, "build-out", "colossus-1", "--job", "llama-3-8b", "--tokens", tokens)
    assert code == 1 and f"--tokens = {tokens}: must be a finite number" in err
