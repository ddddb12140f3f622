"""Disk checkpoints: any layout reads any other's, damage is found, unfinished ones do not count."""

import json

import jax
import numpy as np
import pytest

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


def test_jax_sees_the_fake_devices():
    assert jax.device_count() == 8
