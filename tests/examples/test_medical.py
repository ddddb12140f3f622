"""The medical example: nobody judges a patient it learned from, and its run does what its docstring says."""

import jax
import numpy as np
import pytest

from colossus.train.registry import load_file
from tests.examples.conftest import ROOT

FILE = ROOT / "examples" / "medical.py"


@pytest.fixture(scope="module")
def example():
    return load_file(FILE)


@pytest.fixture(scope="module")
def program(example):
    return example.program(num_sequences=142, seed=0, num_members=1, width=4)


@pytest.fixture(scope="module")
def batches(program):
    rows = np.arange(142)
    return program.dataset.batch(0, rows), program.dataset.validation_batch(0, rows)


def test_folds_are_stratified_and_cover_everyone(program, example):
    patients = program.dataset.validation
    assert patients["measured"].shape == (569, 30)
    share = [patients["malignant"][patients["fold"] == fold].mean() for fold in range(example.NUM_FOLDS)]
    assert np.ptp(share) < 0.03
    assert ((patients["logistic"] >= 0) & (patients["logistic"] <= 1)).all()


def test_a_patient_is_judged_by_the_one_group_that_never_saw_him_or_her(program):
    train, judged = program.dataset.train["judge"], program.dataset.validation["judge"]
    assert ((train > 0) & (judged > 0)).sum() == 0
    np.testing.assert_array_equal(judged.sum(1), 1)
    np.testing.assert_allclose(train.sum(1), 1, rtol=1e-6)


def test_a_blind_group_learns_nothing_from_its_patients(program, example, batches):
    train, _ = batches
    params = program.init(jax.random.key(0))
    blind = {name: array[train["fold"] == 3] for name, array in train.items()}
    grads = jax.jit(jax.grad(lambda params: program.loss(params, blind)[0]))(params)
    assert all(np.abs(leaf[3]).max() == 0 for leaf in jax.tree.leaves(grads))
    assert all(np.abs(leaf[4]).max() > 0 for leaf in jax.tree.leaves(grads))


def test_scales_come_from_the_training_part(example):
    patients, (mean, _) = example.read_patients(0)
    seen = patients["measured"][patients["fold"] != 2]
    np.testing.assert_allclose(mean[2], seen.mean(0), rtol=1e-4)


@pytest.mark.slow
def test_is_level_with_logistic_regression(colossus, script, tmp_path):
    report = colossus(FILE)
    found = report["final_metrics"]
    assert found["logistic_log_loss"] == pytest.approx(0.077, abs=0.002)
    assert found["network_log_loss"] < found["logistic_log_loss"] + 0.002
    assert found["network_errors_fraction"] < 0.035
    lines = script(str(FILE), str(tmp_path / "runs" / "medical-1")).splitlines()
    assert lines[0].startswith("network_log_loss 0.06")
    ahead, error = float(lines[2].split()[3].rstrip(",")), float(lines[2].split()[-1])
    assert abs(ahead) < 2 * error, "the docstring says that the difference is within chance"
