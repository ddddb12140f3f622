"""A client that leaves ends its requests at once, whatever it was waiting for."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.serve.api.conftest import World
from tests.serve.api.doubles import send

ASK = [{"role": "user", "content": "hi"}]


def connect(url: str, path: str, body: Any) -> socket.socket:
    host, port = urlsplit(url).hostname, urlsplit(url).port
    raw = json.dumps(body).encode()
    line = socket.create_connection((host, port), timeout=10)
    line.sendall(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(raw)) + raw)
    return line


def until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end_s, "it did not come to be within 10 s"
        threading.Event().wait(0.005)


@pytest.mark.parametrize(
    ("path", "body", "num_requests"),
    [
        ("/v1/chat/completions", {"messages": ASK, "stream": True}, 1),
        ("/v1/chat/completions", {"messages": ASK, "stream": True, "n": 3}, 3),
        ("/v1/chat/completions", {"messages": ASK}, 1),
        ("/v1/chat/completions", {"messages": ASK, "n": 3}, 3),
        ("/v1/completions", {"prompt": ["a", "b"], "stream": True, "max_tokens": 500}, 2),
        ("/v1/responses", {"input": "hi", "stream": True}, 1),
        ("/v1/responses", {"input": "hi"}, 1),
    ],
)
def test_leaving_aborts(world: World, path: str, body: Any, num_requests: int) -> None:
    world.backend.pause_s, world.backend.say = 0.01, lambda request: [70] * 900
    with connect(world.url, path, body) as line:
        if body.get("stream"):
            assert b"200 OK" in line.recv(100)
        until(lambda: len(world.backend.running) == num_requests)
    until(lambda: not world.backend.running)
    assert len(world.backend.aborted) == num_requests


def test_leaving_before_the_first_token_aborts(world: World) -> None:
    world.backend.pause_s = 30
    for body in ({"messages": ASK, "stream": True}, {"messages": ASK}):
        with connect(world.url, "/v1/chat/completions", body):
            until(lambda: len(world.backend.running) == 1)
        until(lambda: not world.backend.running)


def test_leaving_an_embedding(world: World) -> None:
    world.backend.pause_s = 30
    with connect(world.url, "/v1/embeddings", {"input": ["a", "b"]}):
        until(lambda: len(world.backend.running) == 2)
    until(lambda: not world.backend.running)


def test_half_a_body_is_no_request(world: World) -> None:
    host, port = urlsplit(world.url).hostname, urlsplit(world.url).port
    with socket.create_connection((host, port), timeout=10) as line:
        line.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert send(f"{world.url}/v1/completions", {"prompt": "x"}).status == 200
    assert len(world.backend.requests) == 1
