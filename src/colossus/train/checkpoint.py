"""Checkpoints on disk: Orbax writes them asynchronously, a manifest of checksums commits them.

``checkpoints/step-00000100/`` is Orbax's; ``checkpoints/step-00000100.json``, written last and atomically, names every
file of it with size and SHA-256 and holds what else a resume needs. A checkpoint without its manifest was never
finished; one whose files differ from it is damaged. Both are passed over, with a reason.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from colossus.policy import checkpoint as checkpoint_policy
from colossus.spec.errors import CheckpointError
from colossus.spec.job import CheckpointSpec
from colossus.spec.run import write_atomic
from colossus.spec.units import format_quantity

_PREFIX = "step-"
# Room that a save wants beyond the bytes of the state: metadata, and a margin for whoever else writes.
_ROOM_FACTOR = 1.1
# A save that takes longer than this, and is slower than that (bytes of all ranks together), is stuck.
_LEAST_PATIENCE_S = 600.0
_SLOWEST_BYTES_PER_S = 1e7
_WAIT_S = 5.0


def saved_steps(folder: Path) -> list[int]:
    """Steps with a manifest, oldest first."""
    return sorted(int(path.stem.removeprefix(_PREFIX)) for path in folder.glob(f"{_PREFIX}*.json"))


def read_meta(folder: Path, step: int) -> dict[str, Any]:
    return _read_manifest(folder, step)["meta"]


def damage(folder: Path, step: int) -> str | None:
    """What is wrong with a saved step, None when every file is as its manifest says."""
    try:
        manifest = _read_manifest(folder, step)
    except (OSError, ValueError, KeyError) as error:
        return f"manifest unreadable: {error}"
    root = _data_folder(folder, step)
    with ThreadPoolExecutor(4) as pool:
        checks = pool.map(lambda item: _differs(root / item[0], *item[1]), manifest["files"].items())
        return next((reason for reason in checks if reason), None)


def newest_good_step(folder: Path, *, before: int | None = None, on_damaged: Callable[[int, str], None] | None = None) -> int | None:
    """The newest saved step whose files are whole, None where there is none; tells each damaged one it passes over."""
    for step in reversed(saved_steps(folder)):
        if before is not None and step >= before:
            continue
        reason = damage(folder, step)
        if reason is None:
            return step
        if on_damaged is not None:
            on_damaged(step, reason)
    return None


def prune(folder: Path, spec: CheckpointSpec) -> None:
    """Deletes the checkpoints that the policy does not keep."""
    for step in checkpoint_policy.expendable(saved_steps(folder), keep_last=spec.keep_last, keep_every=spec.keep_every_steps):
        remove_step(folder, step)


def remove_step(folder: Path, step: int) -> None:
    """Removes the manifest first, so that a kill between leaves no manifest without data."""
    (folder / f"{_name(step)}.json").unlink(missing_ok=True)
    shutil.rmtree(_data_folder(folder, step), ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Removes what killed saves left behind; only while no save is under way."""
    committed = {_name(step) for step in saved_steps(folder)}
    for path in folder.glob(f"{_PREFIX}*"):
        if path.is_dir() and path.name not in committed:
            shutil.rmtree(path, ignore_errors=True)


class DiskTier:
    """Saves and restores the state of one gang. All ranks call ``save`` for the same steps; rank 0 commits.

    ``on_saved(step, duration_s, size_bytes)`` and ``on_failed(step, reason)`` are called on rank 0 from a thread,
    ``on_wait()`` every few seconds while a caller waits for a save, for ``patience_s`` at the most: what takes longer is
    stuck. ``generation`` keeps the barriers of different gangs of one run apart.
    """

    def __init__(self, folder: Path, *, generation: int, is_leader: bool = True) -> None:
        self._folder = folder
        self._generation = generation
        self._is_leader = is_leader
        self._abandoned = False
        self._lock = threading.Lock()  # held while the folder's list of checkpoints changes, or the gang is abandoned
        self.patience_s = _LEAST_PATIENCE_S
        self.on_wait: Callable[[], None] = lambda: None
        self.on_saved: Callable[[int, float, int], None] = lambda *_: None
        self.on_failed: Callable[[int, str], None] = lambda *_: None
        self._writer: Any = None
        self._thread: threading.Thread | None = None
        self.failure: str | None = None  # of the last save
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def room_problem(self, state: Any) -> str | None:
        """Why a save would not fit on the disk now; asked by rank 0 before all ranks begin."""
        need = _ROOM_FACTOR * sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._folder).free
        if free >= need:
            return None
        return f"disk full: a checkpoint needs {format_quantity(need, 'B')}, {format_quantity(free, 'B')} are free at {self._folder}"

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> float:
        """Starts a save and returns the seconds that the caller stood still; waits for the one before, if any."""
        begin = time.perf_counter()
        self.wait()
        started = time.perf_counter()
        failure: Exception | None = None
        try:
            self._orbax(state).save(self._folder.absolute() / _name(step), args=_save_args(state), force=True)
        except Exception as error:  # noqa: BLE001 - whatever Orbax raises, older checkpoints stay and training goes on
            failure = error
        blocked_s = time.perf_counter() - begin
        self._thread = threading.Thread(target=self._finish, args=(step, meta, started, failure), daemon=True)
        self._thread.start()
        return blocked_s

    def abandon(self) -> None:
        """The gang is gone: a save that is still under way touches nothing any more, and calls nobody."""
        with self._lock:
            self._abandoned = True

    def wait(self) -> None:
        """Until the save under way, if any, has ended."""
        begin = time.perf_counter()
        while self._thread is not None and self._thread.is_alive():
            if time.perf_counter() - begin < self.patience_s:
                self.on_wait()
            self._thread.join(_WAIT_S)

    def restore(self, step: int, abstract: Any) -> Any:
        """The state of a saved step, in the shapes, dtypes and shardings of ``abstract``: any layout reads any other's."""
        import orbax.checkpoint as ocp

        return self._orbax(abstract).restore(_data_folder(self._folder.absolute(), step), args=ocp.args.StandardRestore(abstract))

    def _orbax(self, state: Any) -> Any:
        if self._writer is None:
            self.patience_s = _patience_s(state)
            self._writer = _make_writer(self._generation, self.patience_s)
        return self._writer

    def _finish(self, step: int, meta: dict[str, Any], started: float, failure: Exception | None) -> None:
        try:
            if failure is not None:
                raise failure
            self._writer.wait_until_finished()
            if self._is_leader:
                files = _listed(_data_folder(self._folder, step))
                with self._lock:
                    if not self._abandoned:
                        _commit(self._folder, step, meta, files)
                        self.on_saved(step, time.perf_counter() - started, sum(size for size, _ in files.values()))
            self.failure = None
        except Exception as error:  # noqa: BLE001 - see save
            self._writer = None
            self.failure = _why(error, self._folder)
            with self._lock:
                if self._is_leader and not self._abandoned:
                    remove_unfinished(self._folder)
                    self.on_failed(step, self.failure)


def restore_params(folder: Path, step: int, abstract: Any) -> Any:
    """The parameters of a saved step, alone: the optimizer's moments, twice their size, are not read."""
    import orbax.checkpoint as ocp

    item = {"params": abstract}
    arguments = ocp.args.PyTreeRestore(item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True)
    params = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(_data_folder(folder.absolute(), step), args=arguments)["params"]
    absent = [jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(params) if not isinstance(leaf, jax.Array)]
    if absent:  # Orbax hands back what was asked for
        raise CheckpointError(f"step {step} in {folder} holds no parameters {', '.join(absent[:8])}", hint="is it a checkpoint of this network?")
    return params


def _patience_s(state: Any) -> float:
    """How long a save of ``state`` may take; whatever hangs beside it is the supervisor's to find."""
    return _LEAST_PATIENCE_S + sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) / _SLOWEST_BYTES_PER_S


def _make_writer(generation: int, patience_s: float) -> Any:
    """Orbax's asynchronous checkpointer for a gang."""
    import orbax.checkpoint as ocp
    from orbax.checkpoint._src.futures import signaling_client, synchronization

    # Orbax keeps the first gang's client, and numbers its saves by a counter of the process and waits on keys with that
    # number: a survivor that has saved before and a fresh peer would wait for each other forever. Every gang begins anew.
    signaling_client.get_signaling_client.cache_clear()
    synchronization.OperationIdGenerator._operation_id_counter = iter(range(1, 1 << 62))
    synchronization.OperationIdGenerator._operation_id = 0
    return ocp.AsyncCheckpointer(
        ocp.StandardCheckpointHandler(),
        async_options=ocp.options.AsyncOptions(timeout_secs=round(patience_s)),
        multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=f"generation{generation}"),
    )


def _save_args(state: Any) -> Any:
    import orbax.checkpoint as ocp

    return ocp.args.StandardSave(state)


def _listed(root: Path) -> dict[str, tuple[int, str]]:
    """Size and checksum of every file under ``root``."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    with ThreadPoolExecutor(2) as pool:
        return {str(path.relative_to(root)): entry for path, entry in zip(files, pool.map(_digest, files), strict=True)}


def _commit(folder: Path, step: int, meta: dict[str, Any], files: dict[str, tuple[int, str]]) -> None:
    """Writes the manifest; from then on the checkpoint counts."""
    manifest = {"schema": 1, "step": step, "meta": meta, "files": files}
    write_atomic(folder / f"{_name(step)}.json", json.dumps(manifest, indent=1) + "\n")


def _why(error: Exception, folder: Path) -> str:
    """A full disk in plain words, whatever library met it; else the error's own."""
    text = " ".join(str(error).split())
    full = os.strerror(errno.ENOSPC)
    return f"the disk is full ({full}) at {folder}" if full in text else text[:400]


def _digest(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        os.fsync(file.fileno())
    return path.stat().st_size, digest.hexdigest()


def _differs(path: Path, size: int, digest: str) -> str | None:
    try:
        found_size = path.stat().st_size
        if found_size != size:
            return f"{path.name} has {found_size} bytes instead of {size}"
        return None if _digest(path)[1] == digest else f"{path.name} differs from its checksum"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"


def _read_manifest(folder: Path, step: int) -> dict[str, Any]:
    return json.loads((folder / f"{_name(step)}.json").read_text())


def _name(step: int) -> str:
    return f"{_PREFIX}{step:08d}"


def _data_folder(folder: Path, step: int) -> Path:
    return folder / _name(step)
