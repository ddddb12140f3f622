"""Numbers of chips side by side: what is looked at, the front that no choice beats, and what a deadline chooses."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import colossus
from colossus.plan.answer import answer
from colossus.plan.counts import chip_counts, choose_chips, halves, on_more_chips, whole_counts
from colossus.plan.front import dominates, pareto
from colossus.plan.question import deadline_s
from colossus.plan.search import cuts, filled_chips
from colossus.plan.whatif import best_step_s
from colossus.spec.answer import Answer
from colossus.spec.errors import InfeasibleError, SpecError
from colossus.spec.plan import Infeasible
from colossus.spec.units import format_duration
from tests.plan.asking import question

DAY_S = 86400.0


@settings(deadline=None, max_examples=60)
@given(nodes=st.integers(1, 4000), sequences=st.integers(1, 5000), is_whole=st.booleans())
def test_counts_are_whole_nodes_or_within_one_and_the_job_fills_each(nodes, sequences, is_whole):
    asked = replace(question("llama-3-8b", "h100-sxm*8"), num_chips=8 * nodes, num_sequences=sequences, is_whole=is_whole)
    counts, filled = chip_counts(asked), filled_chips(asked)[0]
    assert counts == sorted(set(counts), reverse=True) and set(counts) - {8 * nodes} <= set(filled)
    assert all(count % 8 == 0 or count < 8 for count in counts)
    assert is_whole or counts[0] == 8 * nodes
    assert set(whole_counts(asked)) <= set(counts)


@given(chips=st.integers(1, 10**6), node=st.sampled_from([1, 4, 8, 16]))
def test_halves_are_as_chips_may_be_asked_for(chips, node):
    chips = chips if chips <= node else chips - chips % node
    found = halves(chips, node)
    assert found[0] == chips and found[-1] == 1 and found == sorted(set(found), reverse=True)
    assert all(size <= node or size % node == 0 for size in found)
    assert all(small <= large / 2 and (large / 2 < node or small > large / 2 - node) for large, small in pairwise(found))


@settings(deadline=None, max_examples=20)
@given(chips=st.integers(1, 48), sequences=st.integers(1, 24))
def test_a_number_is_filled_just_where_there_are_cuts_and_no_more_than_all_are_useful(chips, sequences):
    asked = replace(question("llama-3-8b", "h100-sxm*48"), num_sequences=sequences)
    counts, useful = filled_chips(asked)
    assert (chips in counts) == ((chips % 8 == 0 or chips < 8) and len(cuts(replace(asked, num_chips=chips)).tp) > 0)
    assert (useful > 0).all() and (useful <= counts).all()


@pytest.mark.parametrize(
    ("model", "machine", "others"), [("llama-3-8b", "dgx-superpod-h100", (992, 896, 512, 640)), ("llama-3.1-405b", "colossus-100k", (99_328, 98_304))]
)
def test_of_an_odd_machine_the_fastest_number_of_chips_is_taken_and_the_rest_are_spares(model, machine, others):
    asked = question(model, machine, sequences=512)
    found = answer(asked, name="x", total_tokens=1e12)
    assert isinstance(found, Answer) and any("spares" in note for note in found.notes)
    for chips in others:
        assert found.best.step_s <= best_step_s(replace(asked, num_chips=chips)), chips


def test_good_numbers_are_not_crowded_out_by_the_halves_of_an_odd_one():
    counts = chip_counts(question("llama-3-8b", "dgx-superpod-h100", sequences=512))
    assert {768, 512, 256, 128, 64} <= set(counts) and not {62, 31, 124} & set(counts)


def test_a_deadline_that_fewer_chips_meet_is_met():
    asked = question("llama-3-8b", "dgx-superpod-h100", sequences=512)
    fewer = answer(replace(asked, num_chips=512, is_whole=False), name="x", total_tokens=161e9)
    assert isinstance(answer(asked, name="x", total_tokens=161e9, deadline_s=fewer.best.time_to_train_s), Answer)


def test_hints_are_priced_on_the_machine_that_they_name():
    small = question("llama-3-8b", "gb200-nvl72*8", sequences=512)
    larger = on_more_chips(small, 64)
    assert larger.device.domain_chips == 64 and larger.machine.num_chips == 64
    assert on_more_chips(small, 66) is None and on_more_chips(replace(small, num_chips=1), 2).machine is small.machine
    fastest_s = answer(small, name="x", total_tokens=1e11).best.time_to_train_s
    told = answer(small, name="x", total_tokens=1e11, deadline_s=fastest_s / 6).fit
    enough = int(told.split("gb200*")[1].split("'")[0])
    there = answer(question("llama-3-8b", f"gb200*{enough}", sequences=512, chips=enough), name="x", total_tokens=1e11)
    assert format_duration(there.best.time_to_train_s) in told


def test_no_choice_of_the_front_beats_another_and_each_left_out_is_beaten():
    asked = question("llama-3-8b", "h100-sxm*64", sequences=96)
    front = pareto(asked, 1e10)
    assert [choice.time_to_train_s for choice in front] == sorted(choice.time_to_train_s for choice in front)
    assert len(front) > 3 and not any(dominates(one, other) for one in front for other in front)
    kept = {choice.num_chips for choice in front}
    for chips in set(chip_counts(asked)) - kept:
        alone = answer(replace(asked, num_chips=chips, is_whole=False), name="x", total_tokens=1e10)
        assert isinstance(alone, Infeasible) or any(dominates(choice, alone.best) for choice in front)
    assert {24, 48} & set(chip_counts(asked))  # whole nodes between the halves: 96 sequences have a divisor of 3


def test_where_no_rent_is_known_chip_hours_stand_for_money():
    front = pareto(question("llama-3-8b", "trn2", sequences=64), 1e9)
    assert front


@pytest.mark.parametrize("objective", ["cost", "energy"])
def test_the_cheapest_that_ends_in_time(objective):
    asked = question("llama-3-8b", "h100-sxm*64", sequences=512)
    unhurried = answer(asked, name="x", total_tokens=1e11, objective=objective)
    hurried = answer(asked, name="x", total_tokens=1e11, objective=objective, deadline_s=unhurried.best.time_to_train_s / 3)
    assert isinstance(hurried, Answer) and isinstance(unhurried, Answer)
    assert hurried.best.time_to_train_s <= hurried.deadline_s and hurried.num_chips > unhurried.num_chips
    for chips in chip_counts(asked):
        step_s = best_step_s(replace(asked, num_chips=chips))
        in_time = step_s is not None and step_s / hurried.best.step_s * hurried.best.time_to_train_s <= hurried.deadline_s
        assert not in_time or chips * step_s >= hurried.num_chips * hurried.best.step_s * (1 - 1e-9)


def test_chips_that_the_objective_leaves_are_no_spares():
    found = colossus.plan("llama-3-8b", "h100-sxm*64", tokens=1e11, objective="cost")
    assert found.num_chips < 64 and not any("spares" in note for note in found.notes)


def test_a_deadline_that_cannot_be_met_says_the_fastest_and_how_many_chips_would_do():
    asked = question("llama-3-70b", "h100-sxm*64", sequences=512)
    fastest_s = answer(asked, name="x", total_tokens=1e11).best.time_to_train_s
    found = answer(asked, name="x", total_tokens=1e11, deadline_s=fastest_s / 3)
    assert isinstance(found, Infeasible) and "on 64 chips" in found.reason
    enough = int(found.fit.split("h100-sxm*")[1].split("'")[0])
    larger = replace(question("llama-3-70b", f"h100-sxm*{enough}", sequences=512), num_chips=enough)
    assert answer(larger, name="x", total_tokens=1e11).best.time_to_train_s <= fastest_s / 3
    fewer = float(found.fit.split("--tokens ")[1])
    assert answer(asked, name="x", total_tokens=fewer).best.time_to_train_s <= fastest_s / 3 * 1.01
    never = answer(asked, name="x", total_tokens=1e13, deadline_s=1.0)
    assert isinstance(never, Infeasible) and "--tokens" in never.fit and "chips would do" not in never.fit


def test_chips_of_the_machine_that_were_not_asked_for_are_offered_first():
    asked = question("llama-3-8b", "h100-sxm*64", sequences=512, chips=16)
    fastest_s = answer(asked, name="x", total_tokens=1e11).best.time_to_train_s
    found = answer(asked, name="x", total_tokens=1e11, deadline_s=fastest_s / 1.8)
    assert isinstance(found, Infeasible) and "--chips 32" in found.fit


def test_without_objective_and_deadline_all_chips_are_taken():
    asked = question("llama-3-8b", "h100-sxm*64")
    for deadline in (None, 1e9):
        part, candidates = choose_chips(asked, 1e9, objective="time", deadline_s=deadline)
        assert part.num_chips == 64 and candidates.fits.any()


@pytest.mark.parametrize(("given", "seconds"), [("30d", 30 * DAY_S), ("1.5 h", 5400.0), (60, 60.0), (None, None)])
def test_deadlines_are_read(given, seconds):
    assert deadline_s(given) == seconds


@pytest.mark.parametrize("given", ["soon", "0s", "-3d", "30", "", 0, -1.0, float("nan"), float("inf"), "1e999d"])
def test_deadlines_that_are_none_are_refused(given):
    with pytest.raises(SpecError, match="--deadline"):
        deadline_s(given)


def test_the_python_door_takes_a_deadline():
    found = colossus.plan("llama-3-8b", "h100-sxm*64", tokens=1e11, objective="cost", deadline="20d")
    assert found.deadline_s == 20 * DAY_S and found.best.time_to_train_s <= 20 * DAY_S
    with pytest.raises(InfeasibleError, match="the fastest takes"):
        colossus.plan("llama-3-8b", "h100-sxm*64", tokens=1e11, deadline="1h")
