"""Disk checkpoints: any layout reads any other's, damage is found, unfinished ones do not count."""

import json
import threading
import time

import jax
import numpy as np
import pytest

from colossus.spec.errors import CheckpointError
from colossus.spec.job import CheckpointSpec
from colossus.spec.layout import Layout
from colossus.train import checkpoint
from colossus.train.checkpoint import DiskTier
from tests.train.test_ram import LAYOUTS, abstract, state_on


@pytest.fixture
def folder(tmp_path):
    """Steps 10 and 20, saved by one process on eight devices."""
    tier, saved = DiskTier(tmp_path, generation=1), []
    tier.on_saved = lambda step, duration_s, size_bytes: saved.append((step, size_bytes))
    tier.on_failed = lambda step, reason: pytest.fail(reason)
    for step in (10, 20):
        tier.save(step, state_on(LAYOUTS[2], seed=step), {"guard": {"mean": float(step)}})
    tier.wait()
    assert [step for step, size in saved if size > 0] == [10, 20]
    return tmp_path


@pytest.mark.parametrize("read", [LAYOUTS[0], LAYOUTS[1], LAYOUTS[3]], ids=Layout.describe)
def test_any_layout_reads_any_other(folder, read):
    target = state_on(read, seed=1)
    restored = DiskTier(folder, generation=2).restore(20, abstract(target))
    for name, leaf in state_on(LAYOUTS[2], seed=20).items():
        np.testing.assert_array_equal(restored[name], leaf)
        assert restored[name].sharding == target[name].sharding
    assert checkpoint.read_meta(folder, 20) == {"guard": {"mean": 20.0}}


def test_newest_whole_one_is_chosen(folder):
    assert checkpoint.newest_good_step(folder) == 20
    assert checkpoint.newest_good_step(folder, before=20) == 10


def flip_a_byte(folder):
    largest = max((folder / "step-00000020").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else -1)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)


def cut_a_file(folder):
    file = next(path for path in sorted((folder / "step-00000020").rglob("*")) if path.is_file())
    file.write_bytes(file.read_bytes()[:-1])


def lose_a_file(folder):
    next(path for path in (folder / "step-00000020").rglob("*") if path.is_file()).unlink()


def spoil_the_manifest(folder):
    (folder / "step-00000020.json").write_text("{")


def lose_the_manifest(folder):
    (folder / "step-00000020.json").unlink()


@pytest.mark.parametrize("harm", [flip_a_byte, cut_a_file, lose_a_file, spoil_the_manifest, lose_the_manifest])
def test_a_damaged_checkpoint_is_passed_over(folder, harm):
    harm(folder)
    told = []
    assert checkpoint.newest_good_step(folder, on_damaged=lambda step, reason: told.append(step)) == 10
    assert told == ([] if harm is lose_the_manifest else [20])
    np.testing.assert_array_equal(DiskTier(folder, generation=2).restore(10, abstract(state_on(LAYOUTS[1])))["a"], state_on(LAYOUTS[2], seed=10)["a"])


def test_unfinished_ones_are_removed_and_finished_ones_kept(folder):
    lose_the_manifest(folder)
    (folder / "step-00000030.orbax-checkpoint-tmp").mkdir()
    checkpoint.remove_unfinished(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000010", "step-00000010.json"]


def test_retention(folder):
    checkpoint.prune(folder, CheckpointSpec(keep_last=1))
    assert checkpoint.saved_steps(folder) == [20] and not (folder / "step-00000010").exists()


def test_manifest_names_every_file(folder):
    manifest = json.loads((folder / "step-00000020.json").read_text())
    files = {str(path.relative_to(folder / "step-00000020")) for path in (folder / "step-00000020").rglob("*") if path.is_file()}
    assert set(manifest["files"]) == files and manifest["step"] == 20


def test_room_is_asked_for_before_saving(tmp_path, monkeypatch):
    tier = DiskTier(tmp_path, generation=1)
    assert tier.room_problem(state_on(LAYOUTS[0])) is None
    usage = checkpoint.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage._replace(free=10))
    assert "disk full" in (tier.room_problem(state_on(LAYOUTS[0])) or "")


@pytest.fixture
def slow(monkeypatch):
    """(reached, go on): a commit stands still between its checksums and its manifest."""
    reached, go_on = threading.Event(), threading.Event()

    def stand_still(path):
        reached.set()
        go_on.wait(60)
        return 1, "as of then"

    monkeypatch.setattr(checkpoint, "_digest", stand_still)
    yield reached, go_on
    go_on.set()


def test_an_abandoned_save_leaves_no_manifest_behind(tmp_path, slow):
    tier, told = DiskTier(tmp_path, generation=1), []
    tier.on_saved = tier.on_failed = lambda *what: told.append(what)
    tier.save(10, state_on(LAYOUTS[0]), {})
    assert slow[0].wait(60)
    tier.abandon()
    checkpoint.remove_unfinished(tmp_path)  # the next gang begins
    slow[1].set()
    tier.wait()
    assert not checkpoint.saved_steps(tmp_path)
    assert not told


def test_who_waits_for_a_save_says_so_as_long_as_a_save_may_take(tmp_path, slow, monkeypatch):
    monkeypatch.setattr(checkpoint, "_WAIT_S", 0.02)
    tier, said = DiskTier(tmp_path, generation=1), []
    tier.on_wait = lambda: said.append(time.monotonic())
    tier.save(10, state_on(LAYOUTS[0]), {})
    assert slow[0].wait(60)
    threading.Timer(0.5, slow[1].set).start()
    tier.wait()
    assert len(said) > 5
    assert checkpoint.saved_steps(tmp_path) == [10]


def test_a_save_that_is_stuck_keeps_nobody_quiet_for_ever(tmp_path, slow, monkeypatch):
    monkeypatch.setattr(checkpoint, "_WAIT_S", 0.02)
    tier, said = DiskTier(tmp_path, generation=1), []
    tier.on_wait = lambda: said.append(time.monotonic())
    tier.save(10, state_on(LAYOUTS[0]), {})
    tier.patience_s = 0.1
    threading.Timer(0.5, slow[1].set).start()
    begin = time.monotonic()
    tier.wait()
    assert said[-1] < begin + 0.2


def test_a_large_state_may_take_long_to_save(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(checkpoint, "_make_writer", lambda generation, patience_s: given.append(patience_s))
    tier = DiskTier(tmp_path, generation=1)
    tier._orbax({"w": jax.ShapeDtypeStruct((8 * 10**9, 3), np.float32)})  # 8 G parameters and their moments
    assert given == [tier.patience_s]
    assert given[0] > 2.5 * 3600


def test_parameters_are_restored_alone(tmp_path):
    params, moments = ({name: state_on(LAYOUTS[2], seed=seed)[name] for name in "abc"} for seed in (1, 2))
    tier = DiskTier(tmp_path, generation=1)
    tier.save(10, {"params": params, "opt_state": (moments, moments)}, {})
    tier.wait()
    sizes = {path: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    wanted = abstract({name: state_on(LAYOUTS[1])[name] for name in "abc"})
    restored = checkpoint.restore_params(tmp_path, 10, wanted)
    for name, leaf in params.items():
        np.testing.assert_array_equal(restored[name], leaf)
        assert restored[name].sharding == wanted[name].sharding
    assert sizes == {path: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="'more'"):
        checkpoint.restore_params(tmp_path, 10, {**wanted, "more": wanted["a"]})


def test_jax_sees_the_fake_devices():
    assert jax.device_count() == 8
