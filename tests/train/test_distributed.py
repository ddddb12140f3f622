"""Gangs of real processes on a service in this one; members are killed and stopped for real."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from colossus.engine.coordination import CoordinationService

MEMBER = Path(__file__).with_name("gang_member.py")
SOURCE = Path(__file__).parents[2] / "src"
LIMIT_S = 120.0


class Member:
    """One worker process, seen from here."""

    def __init__(self, log: Path) -> None:
        ours, theirs = socket.socketpair()
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(SOURCE)}
        for name in ("PYTHONDONTWRITEBYTECODE", "XLA_FLAGS", "JAX_NUM_CPU_DEVICES"):  # one device each, whatever other tests want
            environment.pop(name, None)
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, str(MEMBER), str(theirs.fileno())], pass_fds=[theirs.fileno()], env=environment, stdout=out, stderr=out
            )
        theirs.close()
        self._line, self._rest = ours, b""

    def tell(self, do: str, **fields: Any) -> None:
        self._line.sendall((json.dumps({"do": do, **fields}) + "\n").encode())

    def hear(self, *what: str, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """The next message, which must be one of ``what``."""
        deadline = time.monotonic() + limit_s
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._line], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"nothing heard in {limit_s} s, wanted {what}: {self.words()}"
            data = self._line.recv(1 << 16)
            assert data, f"gone with {self.process.wait()}, wanted {what}: {self.words()}"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        message = json.loads(line)
        assert message["say"] in what, f"wanted {what}, heard {message}: {self.words()}"
        return message

    def ask(self, do: str, answer: str, **fields: Any) -> dict[str, Any]:
        self.tell(do, **fields)
        return self.hear(answer)

    def words(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]

    def kill(self) -> float:
        at = time.time()
        self.process.kill()
        return at

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.process.kill()
        self.process.wait()
        self._line.close()


class Host:
    """The supervisor's part: starts members, holds the service of the generation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.members: list[Member] = []
        self.service: CoordinationService | None = None

    def start(self, count: int) -> list[Member]:
        """Members that have imported JAX and stand by."""
        started = [Member(self.folder / f"{len(self.members) + i}.log") for i in range(count)]
        self.members += started
        for member in started:
            member.hear("imported")
        return started

    def form(self, gang: list[Member], **options: Any) -> list[dict[str, Any]]:
        """One generation: a new service, the old one down (its members have left or died), all join."""
        old, self.service = self.service, CoordinationService(len(gang), heartbeat_timeout_s=options.get("heartbeat_timeout_s", 10.0))
        if old is not None:
            old.shutdown(wait=False)
        for rank, member in enumerate(gang):
            member.tell("join", address=self.service.address, n=len(gang), rank=rank, **options)
        return [member.hear("joined") for member in gang]

    def end(self) -> None:
        for member in self.members:
            member.end()
        if self.service is not None:
            self.service.shutdown()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.end()


def ask_all(gang: list[Member], do: str, answer: str, **fields: Any) -> list[dict[str, Any]]:
    for member in gang:
        member.tell(do, **fields)
    return [member.hear(answer) for member in gang]


def check_sum(gang: list[Member]) -> None:
    n = len(gang)
    assert [m["value"] for m in ask_all(gang, "sum", "sum")] == [n * (n + 1) / 2] * n


def lose(gang: list[Member], rank: int) -> list[Member]:
    """Kills one rank mid-step; the survivors notice, by themselves or told by the watchdog, and leave."""
    ask_all(gang, "spin", "spinning")
    gang[rank].kill()
    gang[rank].process.wait()
    survivors = [member for member in gang if member is not gang[rank]]
    for member in survivors:
        member.tell("interrupt")
        heard = [member.hear("failed", "interrupted") for _ in range(2)]
        failed = next(m for m in heard if m["say"] == "failed")
        assert failed["peer"], failed
        member.ask("leave", "left")
    return survivors


def test_gang_of_two_meets_on_loopback_sums_and_leaves(host: Host) -> None:
    gang = host.start(2)
    joined = host.form(gang)
    assert [m["rank"] for m in joined] == [0, 1]
    assert len(joined[0]["devices"]) == 2
    ask_all(gang, "barrier", "met", name="compiled", timeout_s=60)
    check_sum(gang)
    assert [m["listeners"] for m in ask_all(gang, "stats", "stats")] == [["127.0.0.1"]] * 2
    ask_all(gang, "leave", "left")
    assert all(member.process.poll() is None for member in gang)


def test_one_process_needs_no_gang(host: Host) -> None:
    (member,) = host.start(1)
    member.ask("join", "joined", address=None, n=1, rank=0)
    check_sum([member])


@pytest.mark.slow
def test_restart_compiles_nothing_on_any_rank(host: Host, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    counts, losses = [], []
    for _ in range(2):
        gang = host.start(2)
        ask_all(gang, "cache", "cached", folder=cache)
        host.form(gang)
        built = ask_all(gang, "build", "built", how="compile")
        ask_all(gang, "barrier", "met", name="compiled", timeout_s=60)
        trained = ask_all(gang, "train", "trained", steps=2)
        counts.append([m["compilations"] for m in ask_all(gang, "stats", "stats")])
        losses.append([m["losses"] for m in trained])
        for member in gang:
            member.end()
    assert built[0]["compilations"] == built[1]["compilations"] == 0
    assert sum(counts[0]) > 0, counts
    assert counts[1] == [0, 0], counts
    assert losses[0] == losses[1] and losses[0][0] == losses[0][1]
    assert not [p for p in Path(cache).iterdir() if p.name.startswith(".j")]  # no half-written file


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_survivors_of_a_kill_form_a_gang_of_two_and_of_three(host: Host, victim: int) -> None:
    gang = host.start(3)
    host.form(gang)
    survivors = lose(gang, victim)
    host.form(survivors)
    check_sum(survivors)
    ask_all(survivors, "leave", "left")
    (spare,) = host.start(1)
    again = [*survivors[:victim], spare, *survivors[victim:]]
    host.form(again)
    check_sum(again)
    lose(again, (victim + 1) % 3)


@pytest.mark.slow
def test_every_survivor_of_kills_amid_training_lives_on(host: Host, tmp_path: Path) -> None:
    """Real messages are cut in the middle, which gloo does not survive by itself: see distributed.wait."""
    moments = random.Random(0)
    gang: list[Member] = []
    seen: dict[Member, int] = {}
    for generation in range(8):
        fresh = host.start(3 - len(gang))
        ask_all(fresh, "cache", "cached", folder=str(tmp_path / "cache"))
        gang = [*fresh, *gang]
        host.form(gang)
        ask_all(gang, "build", "built", how="compile")
        ask_all(gang, "barrier", "met", name="compiled", timeout_s=100)
        ask_all(gang, "march", "marching")
        time.sleep(moments.uniform(0, 0.5))  # the moment of the kill
        gang[generation % 2].kill()
        del gang[generation % 2]
        for member in gang:
            member.tell("interrupt")
        for member in gang:
            heard = [member.hear("failed", "interrupted", limit_s=30) for _ in range(2)]
            assert all(m["peer"] for m in heard if m["say"] == "failed"), heard
            member.tell("leave")
            if member.hear("left", "lost")["say"] == "lost":  # fenced off: too many abandoned backends
                member.process.wait()
            seen[member] = seen.get(member, 0) + 1
        gang = [member for member in gang if member.process.poll() is None]
    assert max(seen.values()) > 1


@pytest.mark.slow
def test_ten_generations_leak_nothing(host: Host) -> None:
    """One member lives through all of them, in gangs of two and three by turns, with different ranks dying."""
    gang = host.start(2)
    keeper = gang[0]
    seen = []
    for generation in range(10):
        while len(gang) < 2 + generation % 2:
            gang += host.start(1)
        host.form(gang)
        check_sum(gang)
        seen.append((len(gang), keeper.ask("stats", "stats")))
        victim = generation % len(gang)
        if gang[victim] is keeper:
            victim = (victim + 1) % len(gang)
        gang = lose(gang, victim)
        gang = gang[1:] + gang[:1]  # ranks change between generations
    for size in (2, 3):
        first, *_, last = [stats for n, stats in seen if n == size]
        assert last["fds"] <= first["fds"] + 1, seen
        assert last["threads"] <= first["threads"] + 2, seen
        assert last["rss_bytes"] - first["rss_bytes"] < 100e6, seen


@pytest.mark.slow
def test_stopped_peer_is_fenced_off_and_replaced(host: Host) -> None:
    """SIGSTOP: no socket closes, so nothing fails by itself; the watchdog interrupts each survivor."""
    gang = host.start(3)
    host.form(gang, heartbeat_timeout_s=2.0)
    ask_all(gang, "spin", "spinning")
    os.kill(gang[1].process.pid, signal.SIGSTOP)
    survivors = [gang[0], gang[2]]
    time.sleep(5)  # past the heartbeat timeout: the service holds rank 1 dead, and must not take the others along
    for member in survivors:
        assert member.process.poll() is None, member.words()
        member.tell("interrupt")
        heard = [member.hear("failed", "interrupted") for _ in range(2)]
        assert {m["say"] for m in heard} == {"failed", "interrupted"}
        assert next(m for m in heard if m["say"] == "failed")["peer"], heard
        member.ask("leave", "left")
    (spare,) = host.start(1)
    host.form([survivors[0], spare, survivors[1]])
    check_sum([survivors[0], spare, survivors[1]])
    os.kill(gang[1].process.pid, signal.SIGCONT)  # the stopped one wakes to a gang that left it behind
    check_sum([survivors[0], spare, survivors[1]])


@pytest.mark.slow
def test_results_are_bit_identical_after_reforming(host: Host, tmp_path: Path) -> None:
    gang = host.start(2)
    ask_all(gang, "cache", "cached", folder=str(tmp_path / "cache"))
    results = []
    for generation in range(3):
        host.form(gang)
        ask_all(gang, "build", "built", how="compile")
        ask_all(gang, "barrier", "met", name="compiled", timeout_s=60)
        results.append([(m["losses"], m["digest"]) for m in ask_all(gang, "train", "trained", steps=5)])
        survivors = lose(gang, generation % 2)
        (spare,) = host.start(1)
        spare.ask("cache", "cached", folder=str(tmp_path / "cache"))
        gang = [spare, *survivors] if generation % 2 == 0 else [*survivors, spare]
    assert results[0] == results[1] == results[2]


@pytest.mark.slow
def test_saved_executable_loads_on_every_rank_without_tracing(host: Host, tmp_path: Path) -> None:
    path = str(tmp_path / "step.bin")
    gang = host.start(2)
    host.form(gang)
    ask_all(gang, "build", "built", how="compile")
    gang[0].ask("save_executable", "saved", path=path)
    expected = [m["digest"] for m in ask_all(gang, "train", "trained", steps=3)]
    survivors = lose(gang, 0)
    (spare,) = host.start(1)
    gang = [spare, *survivors]
    host.form(gang)
    built = ask_all(gang, "build", "built", how="load", executable=path)
    ask_all(gang, "barrier", "met", name="loaded", timeout_s=60)
    assert [m["digest"] for m in ask_all(gang, "train", "trained", steps=3)] == expected
    assert [m["compilations"] for m in built] == [0, 0]


@pytest.mark.slow
def test_executable_of_another_gang_is_refused(host: Host, tmp_path: Path) -> None:
    path = str(tmp_path / "step.bin")
    (member,) = host.start(1)
    member.ask("join", "joined", address=None, n=1, rank=0)
    member.ask("build", "built", how="compile")
    member.ask("save_executable", "saved", path=path)
    member.ask("leave", "left")
    gang = [member, *host.start(1)]
    host.form(gang)
    failed = ask_all(gang, "build", "failed", how="load", executable=path)
    assert [m["type"] for m in failed] == ["ExecutableError"] * 2
    assert not failed[0]["peer"]


@pytest.mark.slow
def test_member_that_cannot_join_says_so_and_exits(host: Host) -> None:
    """One of two never comes: a typed error and the exit code of the caller's choice, not an abort."""
    (member,) = host.start(1)
    with CoordinationService(2) as service:
        member.tell("join", address=service.address, n=2, rank=0, timeout_s=2.0)
        assert "did not come together" in member.hear("lost")["text"]
        assert member.process.wait(timeout=LIMIT_S) == 75


@pytest.mark.slow
def test_member_whose_service_is_gone_cannot_be_saved(host: Host) -> None:
    """JAX ends such a process itself; the supervisor must not shut down a service that still has members."""
    (member,) = host.start(1)
    host.form([member])
    check_sum([member])
    host.service.shutdown()
    assert member.process.wait(timeout=LIMIT_S) == -signal.SIGABRT


@pytest.mark.slow
def test_late_rank_is_a_peer_failure_at_the_barrier(host: Host) -> None:
    gang = host.start(2)
    host.form(gang)
    failed = gang[0].ask("barrier", "failed", name="compiled", timeout_s=1)
    assert failed["peer"], failed


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["topology", "first meeting", "barrier"])
def test_interrupt_ends_a_wait_for_a_peer_that_never_comes(host: Host, phase: str) -> None:
    """What waits through the service, or for a peer's connection, ends at once too, and the process can be used again."""
    gang = host.start(2)
    if phase == "topology":
        host.service = CoordinationService(2)
        gang[1].tell("connect", address=host.service.address, rank=1)
        gang[0].tell("join", address=host.service.address, n=2, rank=0)
        gang[1].hear("connected")
    else:
        host.form(gang)
        gang[0].tell("sum") if phase == "first meeting" else gang[0].tell("barrier", name="b", timeout_s=100)
    begin = time.monotonic()
    heard: dict[str, Any] = {"say": "interrupted"}
    while heard["say"] != "failed":  # repeated: it may not have begun to wait
        gang[0].tell("interrupt")
        heard = gang[0].hear("interrupted", "failed")
        assert time.monotonic() - begin < 25, "nothing was interrupted"
    assert heard["peer"], heard
    gang[0].tell("leave")
    while gang[0].hear("interrupted", "left")["say"] != "left":
        pass
    host.form([gang[0], *host.start(1)])
    check_sum([gang[0], host.members[-1]])


@pytest.mark.slow
def test_program_from_the_cache_can_be_saved_again(host: Host, tmp_path: Path) -> None:
    path, cache = str(tmp_path / "step.bin"), str(tmp_path / "cache")
    digests = []
    gang = host.start(2)
    ask_all(gang, "cache", "cached", folder=cache)
    for how in ("compile", "compile", "load"):  # compiled; found in the cache, and saved; loaded
        host.form(gang)
        built = ask_all(gang, "build", "built", how=how, executable=path)
        if digests:
            assert [m["compilations"] for m in built] == [0, 0]
            if how == "compile":
                gang[1].ask("save_executable", "saved", path=path)
        ask_all(gang, "barrier", "met", name="built", timeout_s=60)
        digests.append([m["digest"] for m in ask_all(gang, "train", "trained", steps=2)])
        ask_all(gang, "leave", "left")
    assert digests[0] == digests[1] == digests[2]
