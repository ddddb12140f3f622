"""The estimates hold on the published runs, and the thresholds can fail."""

from __future__ import annotations

from dataclasses import replace

import pytest

from colossus.catalog.measured import load_coefficients
from colossus.catalog.published import PublishedRun, read_published
from colossus.plan.calibrate import fit
from colossus.plan.published import case_of
from colossus.plan.validate import validate
from colossus.spec.errors import DataError

RUNS = [run for run in read_published() if run.text("tier") == "A"]


def test_the_thresholds_hold_on_every_published_run():
    found = validate(RUNS, load_coefficients())
    assert not found.problems() and len(found.rows) == len(RUNS) > 490
    assert 0.85 <= found.whole.inside_fraction <= 0.95


def test_a_wrong_coefficient_is_found():
    good = load_coefficients()
    wrong = replace(good, factors={**good.factors, "all": {"all": {**good.factors["all"]["all"], "attention_backward": 5.0}}})
    assert any("median error" in problem for problem in validate(RUNS, wrong).problems())


def test_layouts_that_ran_and_do_not_fit_are_counted():
    good = load_coefficients()
    hungry = replace(good, factors={**good.factors, "all": {"all": {**good.factors["all"]["all"], "activation_factor": 3.0}}})
    assert any("called infeasible" in problem for problem in validate(RUNS, hungry).problems())


def test_sweeps_say_how_good_the_choice_is():
    found = validate(RUNS, load_coefficients())
    sweep = next(sweep for sweep in found.sweeps if "gpt-39.1B" in sweep.name)
    assert sweep.num_rows == 47 and sweep.rank_correlation > 0.8 and 0 <= sweep.chosen_over_best_fraction <= 0.05


def test_rows_that_contradict_themselves_are_named_not_crashed_on():
    row = RUNS[0].cells
    broken = [
        PublishedRun({**row, "id": name, **change}) for name, change in (("heads", {"kv_heads": "5"}), ("chips", {"tp": "7"}), ("task", {"task": "lora"}))
    ]
    found = validate(broken, load_coefficients())
    assert [bool(row.reason and row.id in row.reason) for row in found.rows] == [True] * 3
    with pytest.raises(DataError, match="not a number"):
        case_of(PublishedRun({**row, "layers": "many"}))


def test_a_fit_moves_towards_its_runs_and_keeps_the_rest():
    """Runs twice as slow as estimated: the fit halves the error, and chips that it did not see keep their values."""
    cases = [case_of(run) for run in RUNS if run.group == "torchtitan"][:8]
    slower = [replace(case, step_s=1.3 * case.step_s) for case in cases]
    before = load_coefficients()
    after = fit(slower, before)
    assert abs(after.error_fraction).mean() < 0.15
    assert after.coefficients.factors["chip"]["gb200"] == before.factors["chip"]["gb200"]


@pytest.mark.parametrize(
    ("change", "words"), [({"zero_stage": "shards of glass"}, "zero_stage"), ({"precision": "fp77"}, "precision"), ({"global_batch_seqs": "1"}, "replicas")]
)
def test_words_that_no_pattern_knows_are_no_guess(change, words):
    with pytest.raises(DataError, match=words):
        case_of(PublishedRun({**RUNS[0].cells, **change}))


@pytest.mark.parametrize(
    ("words", "stage"), [("ZeRO-3", 3), ("zero3", 3), ("FSDP2 8", 3), ("ZeRO-1", 1), ("stage2", 2), ("fsdp SHARD_GRAD_OP (zero2)", 2), ("0", 0)]
)
def test_zero_stages_are_read_as_they_are_written(words, stage):
    cut = case_of(PublishedRun({**RUNS[0].cells, "zero_stage": words})).cut
    assert (cut.weights_sharded, cut.gradients_sharded, cut.optimizer_sharded) == (stage == 3, stage == 2, stage in (1, 2))
