"""The door over HTTP: its own paths, keys, quotas, sizes, slow and vanished clients, drain."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from colossus.serve.door import Door, Talk
from colossus.serve.keys import new_key
from colossus.serve.settings import DoorSettings, Quota, RouterSettings
from colossus.spec.errors import EngineError
from tests.serve.clusters import PATIENCE_S, answer, ask, launcher, until
from tests.serve.doors import serving

LOCAL = "127.0.0.1"


def run(coroutine):
    asyncio.run(asyncio.wait_for(coroutine, 120))


async def raw(served, data, *, close=False):
    """Sends bytes; reader and writer."""
    reader, writer = await asyncio.open_connection(LOCAL, int(served.url.rpartition(":")[2]))
    writer.write(data)
    await writer.drain()
    if close:
        writer.close()
    return reader, writer


async def answered(reader):
    return await asyncio.wait_for(reader.read(), PATIENCE_S)


def post(body: bytes, *headers: str, length: int | None = None) -> bytes:
    head = ["POST /v1/say HTTP/1.1", "host: localhost", f"content-length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


async def error_of(response):
    data = await response.json()
    assert set(data["error"]) == {"message", "type", "param", "code"}
    return data["error"]


def test_its_own_paths(tmp_path):
    async def main():
        async with serving(tmp_path, wait=False, start_s=0.5) as served:
            get = lambda path: served.http.get(served.url + path)
            assert (await get("/health")).status == 200
            starting = await get("/ready")
            assert starting.status == 503 and (await starting.json())["status"] == "starting"
            response = await served.say()
            assert response.status == 503 and "starting" in (await error_of(response))["message"]
            await until(lambda: served.door.router.is_ready)
            assert (await get("/ready")).status == 200
            assert "version" in await (await get("/version")).json()
            assert await (await get("/")).text() == "the page"
            response = await served.say(4, 5)
            assert (await response.json())["tokens"] == answer(ask((4, 5)))
            text = await (await get("/metrics")).text()
            assert 'vllm:generation_tokens_total{model_name="tiny"} 5.0' in text
            stats = await (await get("/stats")).json()
            assert stats["num_output_tokens"] == 5 and stats["replicas"][0]["state"] == "ready" and stats["ttft_s"]["p50"] > 0
            missing = await get("/nothing")
            assert missing.status == 404 and (await error_of(missing))["type"] == "not_found_error"

    run(main())


def test_a_fault_inside_is_an_answer_without_inner_words_and_a_line_for_us(tmp_path):
    async def main():
        async with serving(tmp_path) as served:
            response = await served.http.get(f"{served.url}/v1/fail")
            assert response.status == 500 and "inner" not in (await error_of(response))["message"]
            assert any("ZeroDivisionError: inner words" in line for line in served.talk)
            assert (await served.say()).status == 200

    run(main())


def test_requests_have_names_and_lines(tmp_path):
    async def main():
        log = tmp_path / "requests.jsonl"
        async with serving(tmp_path, DoorSettings(request_log=log, drain_s=0.2)) as served:
            response = await served.say(headers={"x-request-id": "mine-1"})
            assert response.headers["x-request-id"] == "mine-1"
            for bad in ("no spaces", "x" * 200, '"quote"'):
                assert (await served.say(headers={"x-request-id": bad})).headers["x-request-id"].startswith("req-")
            await served.http.get(f"{served.url}/health")
        first, *others = map(json.loads, log.read_text().splitlines())
        assert (first["id"], first["route"], first["status"], first["prompt_tokens"], first["output_tokens"]) == ("mine-1", "/v1/say", 200, 3, 5)
        assert 0 < first["ttft_s"] <= first["e2e_s"]
        assert len(others) == 3

    run(main())


def test_keys(tmp_path):
    async def main():
        file = tmp_path / "keys"
        ann = new_key("ann", file)
        async with serving(tmp_path, DoorSettings(api_keys=file, drain_s=0.2)) as served:
            for headers in ({}, {"authorization": "Bearer sk-colossus-wrong"}, {"authorization": f"Basic {ann}"}, {"authorization": "Bearer \xff"}):
                response = await served.say(headers=headers)
                assert response.status == 401 and (await error_of(response))["code"] == "invalid_api_key"
            assert (await served.http.get(f"{served.url}/stats")).status == 401
            assert (await served.http.get(f"{served.url}/metrics")).status == 401
            assert (await served.http.get(f"{served.url}/health")).status == 200
            assert (await served.http.get(f"{served.url}/")).status == 200
            assert (await served.http.get(f"{served.url}/page/unknown.js")).status == 404
            mine = {"authorization": f"Bearer {ann}"}
            assert (await served.say(headers=mine)).status == 200
            assert await (await served.http.get(f"{served.url}/v1/whose", headers=mine)).text() == "ann"
            bob = new_key("bob", file)  # while it runs
            file.write_text("".join(line for line in file.read_text().splitlines(keepends=True) if line.startswith("bob")))

            async def bob_is_known():
                return (await served.say(headers={"authorization": f"Bearer {bob}"})).status == 200

            deadline = time.monotonic() + PATIENCE_S
            while not await bob_is_known():
                assert time.monotonic() < deadline
            assert (await served.say(headers=mine)).status == 401

    run(main())


def test_quotas_are_each_keys_own(tmp_path):
    async def main():
        file = tmp_path / "keys"
        ann, bob = ({"authorization": f"Bearer {new_key(name, file)}"} for name in ("ann", "bob"))
        settings = DoorSettings(api_keys=file, quota=Quota(requests_per_minute=3, tokens_per_minute=1000), drain_s=0.2)
        async with serving(tmp_path, settings) as served:
            assert [(await served.say(headers=ann)).status for _ in range(3)] == [200] * 3
            refused = await served.say(headers=ann)
            assert refused.status == 429 and 1 <= int(refused.headers["retry-after"]) <= 20
            assert (await error_of(refused))["type"] == "rate_limit_error"
            assert (await served.say(headers=bob, max_tokens=1200)).status == 200
            refused = await served.say(headers=bob)
            assert refused.status == 429 and "tokens per minute" in (await error_of(refused))["message"]

    run(main())


def test_concurrency_of_one_key(tmp_path):
    async def main():
        settings = DoorSettings(quota=Quota(num_concurrent=2), drain_s=0.2)
        async with serving(tmp_path, settings, token_s=0.01) as served:
            slow = [asyncio.create_task(served.say(max_tokens=50)) for _ in range(2)]
            await until(lambda: served.door.router.num_requests == 2)
            assert (await served.say()).status == 429
            assert [response.status for response in await asyncio.gather(*slow)] == [200, 200]
            assert (await served.say()).status == 200

    run(main())


def test_a_full_queue_is_429_with_a_time_to_come_back(tmp_path):
    async def main():
        async with serving(tmp_path, routing=RouterSettings(max_running=1, max_waiting=1), token_s=0.01, max_running=1) as served:
            tasks = [asyncio.create_task(served.say(max_tokens=50)) for _ in range(12)]
            statuses = sorted([response.status for response in await asyncio.gather(*tasks)])
            assert statuses == [200] * 2 + [429] * 10
            assert served.door.measures.num_refused == 10

    run(main())


def test_bodies_too_large_or_never_whole(tmp_path):
    async def main():
        settings = DoorSettings(max_body_bytes=1000, body_timeout_s=0.3, drain_s=0.2)
        async with serving(tmp_path, settings) as served:
            assert (await served.http.post(f"{served.url}/v1/say", data=b"x" * 1001)).status == 413

            async def chunks():
                for _ in range(100):
                    yield b"x" * 100

            assert (await served.http.post(f"{served.url}/v1/say", data=chunks())).status == 413
            reader, writer = await raw(served, post(b'{"prompt"', length=500))
            assert b"408" in (await answered(reader)).splitlines()[0]
            writer.close()
            await raw(served, post(b'{"prompt"', length=500), close=True)
            for junk in (b"\x00\x01\x02\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST /v1/say HTTP/1.1\r\ncontent-length: -5\r\n\r\n", b"\r\n" * 50):
                _, writer = await raw(served, junk)
                writer.close()
            assert (await served.say()).status == 200

    run(main())


def test_bodies_that_are_still_coming_are_counted(tmp_path):
    async def main():
        settings = DoorSettings(max_held_bytes=1000, body_timeout_s=5, drain_s=0.2)
        async with serving(tmp_path, settings) as served:
            _, first = await raw(served, post(b"x" * 600, length=700))
            await asyncio.sleep(0.1)
            reader, second = await raw(served, post(b"x" * 600, length=700))
            assert b"503" in (await answered(reader)).splitlines()[0]
            first.close()
            second.close()
            await until(lambda: len(served.door.connections) <= 1)
            assert (await served.http.post(f"{served.url}/v1/say", data=b"x" * 600)).status == 500  # taken, and no JSON

    run(main())


def test_heads_that_never_end(tmp_path):
    async def main():
        async with serving(tmp_path, DoorSettings(header_timeout_s=0.3, drain_s=0.2)) as served:
            for data in (b"", b"GET /health HTTP/1.1\r\nhost: x\r\n", b"GET /health HTTP/1.1\r\nx: " + b"y" * 200_000):
                reader, _ = await raw(served, data)
                with contextlib.suppress(ConnectionResetError):
                    assert b"200" not in await answered(reader)
            assert (await served.say()).status == 200

    run(main())


@pytest.mark.parametrize("piece", [b"x-more: " + b"y" * 5000 + b"\r\n", b"y" * 5000])
def test_trailers_that_never_end(tmp_path, piece):
    async def main():
        async with serving(tmp_path) as served:
            head = f"POST /v1/say HTTP/1.1\r\nhost: {LOCAL}\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{{\r\n0\r\n".encode()
            _, writer = await raw(served, head + b"x-first: ")

            async def flood():
                for _ in range(10_000):
                    writer.write(piece)
                    await writer.drain()

            with pytest.raises(ConnectionError):
                await flood()
            writer.close()

            async def tiny():
                for letter in json.dumps({"prompt": [1, 2, 3], "max_tokens": 2}) + " " * 20_000:
                    yield letter.encode()

            assert (await served.http.post(f"{served.url}/v1/say", data=tiny())).status == 200  # a body in tiny chunks is one

    run(main())


def test_too_many_connections(tmp_path):
    async def main():
        async with serving(tmp_path, DoorSettings(max_connections=5, drain_s=0.2)) as served:
            held = [await raw(served, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n") for _ in range(5)]
            for reader, _ in held:
                await reader.readline()
            reader, _ = await raw(served, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert (await answered(reader)).startswith(b"HTTP/1.1 503")
            for _, writer in held:
                writer.close()
            await until(lambda: len(served.door.connections) == 0)
            assert (await served.say()).status == 200

    run(main())


def test_a_client_that_leaves_ends_its_request(tmp_path):
    async def main():
        async with serving(tmp_path, token_s=0.005) as served:
            for stream in (True, False):
                body = json.dumps({"prompt": [1], "max_tokens": 100_000, "stream": stream}).encode()
                _, writer = await raw(served, post(body))
                await until(lambda: served.door.router.num_requests == 1)
                writer.close()
                await until(lambda: served.door.router.num_requests == 0)
            stats = served.door.fleet.replicas[0]
            await until(lambda: stats.stats.num_running == 0 and stats.stats.num_waiting == 0)

    run(main())


def test_a_client_that_does_not_read_is_cut(tmp_path):
    async def main():
        async with serving(tmp_path, DoorSettings(stall_timeout_s=0.5, drain_s=0.2)) as served:
            body = json.dumps({"prompt": [1], "max_tokens": 100_000, "stream": True, "pad": 100_000}).encode()
            _, writer = await raw(served, post(body))
            writer.transport.pause_reading()
            await until(lambda: served.door.router.num_requests == 1)
            await until(lambda: served.door.router.num_requests == 0)
            assert not served.door.connections
            writer.close()

    run(main())


def test_foreign_pages_and_foreign_names(tmp_path):
    async def main():
        async with serving(tmp_path) as served:
            evil = await served.say(headers={"origin": "https://evil.example"})
            assert evil.status == 403 and "access-control-allow-origin" not in evil.headers
            for origin in ("null", "http://[", "http://" + "x" * 1000):
                assert (await served.say(headers={"origin": origin})).status == 403
            assert (await served.say(headers={"host": "evil.example"})).status == 421
            assert (await served.say(headers={"origin": served.url})).status == 200
        async with serving(tmp_path, DoorSettings(cors_origins=("https://friend.example",), drain_s=0.2)) as served:
            friend = await served.say(headers={"origin": "https://friend.example"})
            assert friend.status == 200 and friend.headers["access-control-allow-origin"] == "https://friend.example"
            asked = {"origin": "https://friend.example", "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
            assert (await served.http.options(f"{served.url}/v1/say", headers=asked)).status == 200
            assert (await served.say(headers={"origin": "https://evil.example"})).status == 403

    run(main())


@pytest.mark.slow
def test_engines_that_cannot_start_end_the_door_in_words(tmp_path):
    async def main():
        for options, words in (
            ({"fails_for_good": "no such model: x"}, "no such model: x"),
            ({"fails_before_hello": "disk full"}, "no such device: disk full"),
        ):
            with pytest.raises(EngineError, match=words):
                async with serving(tmp_path, **options):
                    pass

    run(main())


def test_a_start_that_fails_is_told_once(tmp_path):
    async def main():
        said = []
        talk = Talk(say=said.append, complain=said.append)
        made = launcher(tmp_path, fails_for_good="too small\nhint: a larger one")
        with pytest.raises(EngineError, match="too small") as caught:
            await Door("tiny", made, settings=DoorSettings(), routing=RouterSettings(), talk=talk).run([], [])
        assert caught.value.hint == "a larger one" and "too small" not in " ".join(said)

    run(main())


@pytest.mark.slow
def test_failed_starts_are_tried_again(tmp_path):
    async def main():
        async with serving(tmp_path, num_failing_starts=2) as served:
            assert served.door.fleet.replicas[0].generation == 3
            assert (await served.say()).status == 200

    run(main())


# A door that is a process


class Program:
    def __init__(self, folder: Path, **options):
        root = Path(__file__).parents[2]
        environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'src'}"}
        command = [sys.executable, "-m", "tests.serve.doors", str(folder), json.dumps(options)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)
        self.url = self.process.stdout.readline().strip()
        assert self.url, self.process.stderr.read()
        self.door = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()


def engine_pids(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if any(b"scripted_worker.py" in word for word in words) and any(json.dumps(str(folder)).encode() in word for word in words) and state != "Z":
            found.append(int(entry.name))
    return found


def ready_pids(url: str) -> list[int]:
    with urllib.request.urlopen(f"{url}/stats") as answer:
        return sorted(one["pid"] for one in json.load(answer)["replicas"] if one["state"] == "ready")


async def stream(url, max_tokens):
    """(tokens, the last event) of a stream that is read to its end."""
    import aiohttp

    async with aiohttp.ClientSession() as http, http.post(f"{url}/v1/say", json={"prompt": [1], "max_tokens": max_tokens, "stream": True}) as response:
        events = [json.loads(line[6:]) async for line in response.content if line.startswith(b"data: {")]
    return [token for one in events for token in one.get("tokens", [])], events[-1]


def test_drain_lets_running_requests_end(tmp_path):
    async def main():
        with Program(tmp_path, token_s=0.01, mark=str(tmp_path)) as program:
            assert engine_pids(tmp_path)
            running = asyncio.create_task(stream(program.url, 100))
            await asyncio.sleep(0.3)
            program.process.send_signal(signal.SIGTERM)
            import aiohttp

            async with aiohttp.ClientSession() as http:
                deadline = time.monotonic() + PATIENCE_S
                while (await http.get(f"{program.url}/ready")).status != 503:
                    assert time.monotonic() < deadline
                refused = await http.post(f"{program.url}/v1/say", json={})
                assert refused.status == 503 and refused.headers["connection"] == "close"
            made, last = await running
            assert len(made) == 100 and last["finish"] == "length"
            assert await asyncio.to_thread(program.process.wait, PATIENCE_S) == 0
            assert not engine_pids(tmp_path)

    run(main())


@pytest.mark.slow
def test_drain_has_an_end(tmp_path):
    async def main():
        with Program(tmp_path, token_s=0.01, mark=str(tmp_path), door={"drain_s": 0.5}) as program:
            running = asyncio.create_task(stream(program.url, 100_000))
            await asyncio.sleep(0.3)
            program.process.send_signal(signal.SIGTERM)
            _, last = await running
            assert last["finish"] == "error" and "stopped" in last["error"]
            assert await asyncio.to_thread(program.process.wait, PATIENCE_S) == 0
            assert not engine_pids(tmp_path)

    run(main())


@pytest.mark.slow
def test_a_second_signal_ends_at_once(tmp_path):
    async def main():
        with Program(tmp_path, token_s=0.01, ignores_stop=True, mark=str(tmp_path), door={"drain_s": 300}) as program:
            running = asyncio.create_task(stream(program.url, 100_000))
            await asyncio.sleep(0.3)
            program.process.send_signal(signal.SIGINT)
            await asyncio.sleep(0.2)
            assert program.process.poll() is None
            program.process.send_signal(signal.SIGINT)
            await asyncio.gather(running, return_exceptions=True)
            assert await asyncio.to_thread(program.process.wait, PATIENCE_S) == 130
            assert not engine_pids(tmp_path)

    run(main())


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True])
def test_no_engine_outlives_a_killed_door(tmp_path, stopped):
    with Program(tmp_path, token_s=0.01, mark=str(tmp_path), routing={"num_replicas": 2}) as program:
        deadline = time.monotonic() + PATIENCE_S
        while len(ready_pids(program.url)) < 2:
            assert time.monotonic() < deadline
        pids = engine_pids(tmp_path)
        assert sorted(pids) == ready_pids(program.url)
        if stopped:
            os.kill(pids[0], signal.SIGSTOP)
        program.process.kill()
        while engine_pids(tmp_path):
            assert time.monotonic() < deadline, engine_pids(tmp_path)
