"""Engines' processes: what of the machine they get, how they are watched, and what becomes of those that do not keep to the rules."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from colossus.engine import replicas as local
from colossus.engine.machine import usable_cores
from colossus.engine.replicas import LocalReplica
from colossus.policy.restart import MAX_FAILED_STARTS
from colossus.serve.frames import MAX_FRAME_BYTES, Frames, frame
from colossus.serve.options import EngineOptions, WeightPrecision
from colossus.serve.replicas import State
from colossus.serve.settings import RouterSettings, options_from_json, options_to_json
from colossus.spec.errors import EngineError
from colossus.spec.machine import Chip
from tests.serve.clusters import answer, ask, cluster, collect, lives, tokens, until


def test_frames_come_whole_however_they_are_cut():
    messages = [{"kind": "a", "x": [1, 2, {"y": b"\x00" * 300}]}, {"kind": "b"}, {"kind": "c", "text": "größe"}]
    data = b"".join(map(frame, messages))
    for size in (1, 2, 3, 7, 64, len(data)):
        frames = Frames()
        assert [message for start in range(0, len(data), size) for message in frames.feed(data[start : start + size])] == messages


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x01\xc1", b"\x00\x00\x00\x01\x01", b"GET / HTTP/1.1\r\n\r\n"])
def test_what_is_no_frame_is_an_error(data):
    with pytest.raises(EngineError):
        Frames().feed(data + b"x" * 16)
    assert int.from_bytes(b"GET ", "big") > MAX_FRAME_BYTES


def test_options_survive_their_command_line(tmp_path):
    options = EngineOptions(model=tmp_path / "m", weights=WeightPrecision.INT8, max_running=3, kv_bytes=5, prefix_caching=False)
    assert options_from_json(options_to_json(options)) == options


def test_cores_are_shared_out_whole():
    cores = usable_cores()
    (alone,) = local.shares(1)
    assert alone.cores == () and str(len(cores)) in alone.words
    if len(cores) > 1:
        first, second = local.shares(2)
        assert first.cores and not set(first.cores) & set(second.cores)
        assert len(first.cores) == len(second.cores) == len(cores) // 2
    crowd = local.shares(len(cores) + 1)
    assert all(share.cores == () and "shared by" in share.words for share in crowd)


def test_devices_are_shared_out_by_name(monkeypatch):
    monkeypatch.setattr(local, "usable_accelerators", lambda: (Chip(name="H100", kind="gpu"), 4))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in local.shares(2, devices_each=2)] == ["0,1", "2,3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,5,3,1")
    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in local.shares(3)] == ["7", "5", "3"]
    with pytest.raises(EngineError, match="need 6") as caught:
        local.shares(3, devices_each=2)
    assert caught.value.hint == "--replicas 2"


def test_an_engine_runs_on_its_own_cores(tmp_path):
    async def main():
        async with cluster(tmp_path) as made:
            pid = made.fleet.replicas[0].process.pid
            assert os.getpgid(pid) == pid != os.getpgid(0)
            assert (tmp_path / "logs" / "replica-0.log").exists()

    asyncio.run(main())


def test_one_that_speaks_nonsense_is_ended_and_replaced(tmp_path):
    async def main():
        async with cluster(tmp_path) as made:
            replica = made.fleet.replicas[0]
            replica.line.data_received(b"\xff" * 64)
            first = replica.info
            await until(lambda: replica.generation == 2 and replica.state is State.READY)
            assert made.router.info is replica.info is not first
            assert tokens(await collect(made.router, request := ask())) == answer(request)

    asyncio.run(main())


def test_strangers_on_the_socket_harm_nobody(tmp_path):
    async def main():
        async with cluster(tmp_path) as made:
            for hello in ({"kind": "hello", "index": 0, "generation": 1, "pid": 1}, {"kind": "hello", "index": 99, "generation": 1}, {"kind": "outputs"}):
                _, writer = await asyncio.open_unix_connection(str(made.fleet._folder / "door"))
                writer.write(frame(hello) + b"\xff" * 20)
                await writer.drain()
                writer.close()
            assert tokens(await collect(made.router, request := ask())) == answer(request)
            assert made.fleet.replicas[0].generation == 1

    asyncio.run(main())


@pytest.mark.slow
def test_one_that_cannot_start_is_given_up_with_its_last_words(tmp_path):
    async def main():
        async with cluster(tmp_path, wait=False, fails_before_hello="cuda is gone") as made:
            await until(lambda: made.fleet.failure)
            assert "cuda is gone" in made.fleet.failure and "code 1" in made.fleet.failure
            assert made.fleet.replicas[0].generation == MAX_FAILED_STARTS

    asyncio.run(main())


def test_one_that_starts_too_long_is_tried_again(tmp_path):
    async def main():
        async with cluster(tmp_path, RouterSettings(start_silence_s=0.5), wait=False, start_s=60) as made:
            await until(lambda: made.fleet.replicas[0].generation == 2)
            assert "said nothing" in made.fleet.replicas[0].text

    asyncio.run(main())


def test_one_that_cannot_even_be_started_is_tried_again(tmp_path, monkeypatch):
    async def main():
        async with cluster(tmp_path) as made:
            replica, launcher = made.fleet.replicas[0], made.fleet._launcher
            start, failures = launcher.start, [OSError(24, "Too many open files")] * 2

            def starved(*place):
                if failures:
                    raise failures.pop()
                return start(*place)

            monkeypatch.setattr(launcher, "start", starved)
            made.kill(0)
            await until(lambda: replica.generation == 4 and replica.state is State.READY)
            assert not failures and tokens(await collect(made.router, request := ask())) == answer(request)

    asyncio.run(main())


def test_a_killed_process_that_takes_its_time_holds_nobody_up(tmp_path, monkeypatch):
    """As one whose device is still at work; its place stays empty for so long."""

    async def main():
        async with cluster(tmp_path, RouterSettings(hang_s=0.3)) as made:
            replica, kill = made.fleet.replicas[0], LocalReplica.kill
            monkeypatch.setattr(LocalReplica, "kill", lambda process: None)
            os.kill(replica.process.pid, signal.SIGSTOP)
            waiting = asyncio.create_task(collect(made.router, request := ask()))
            await until(lambda: replica.num_losses == 1)
            await asyncio.sleep(0.2)
            assert replica.generation == 1 and not replica.is_ready and lives(replica)
            monkeypatch.undo()
            kill(replica.process)
            assert tokens(await waiting) == answer(request) and replica.generation == 2

    asyncio.run(main())


def test_a_forced_stop_leaves_nothing(tmp_path):
    async def main():
        async with cluster(tmp_path, ignores_stop=True) as made:
            folder, started_s = made.fleet._folder, time.monotonic()
            await made.fleet.stop(lambda: True)
            assert time.monotonic() - started_s < 2 and not lives(made.fleet.replicas[0]) and not folder.exists()

    asyncio.run(main())


def test_one_that_ignores_stop_is_ended_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("colossus.serve.replicas._STOP_S", 0.2)

    async def main():
        async with cluster(tmp_path, ignores_stop=True) as made:
            replica = made.fleet.replicas[0]
            await made.fleet.stop()
            assert not lives(replica) and replica.process.exit_code == -9

    asyncio.run(main())
