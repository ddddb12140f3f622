"""The load generator's reading of streams: answers of every framing, cut anywhere, and servers that speak no HTTP."""

from __future__ import annotations

import asyncio

import pytest

from colossus.serve.load.client import Endpoint, Target, ask_server
from colossus.serve.load.prompts import Prompts
from colossus.serve.load.sample import Sample
from colossus.serve.load.server import Server, connections
from colossus.serve.load.workload import Ask

STREAM = (
    b'data: {"choices":[{"text":"a \\"finish_reason\\": \\"stop\\", \\"usage\\": {}"}],"usage":null}\n\n'
    b'data: {"choices": [{"text": "", "finish_reason": null}]}\n\n: a comment\n\n'
    b'data: {"choices": [{"delta": {"content": "b"}, "finish_reason": null}]}\r\n\r\n'
    b'data: {"choices":[{"text":"c","finish_reason":"length"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":2}}}\n\ndata: [DONE]\n\n'
)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%s\r\n0\r\n\r\n" % (len(STREAM), STREAM)
CLOSED = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + STREAM
SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(STREAM), STREAM)
REFUSAL = b'HTTP/1.1 429 Too Many Requests\r\nContent-Length: 31\r\n\r\n{"error": {"message": "later"}}'


async def ask(url: str, num_requests: int = 1) -> list[Sample]:
    server = Server(url=url, model="m", api_key="k")
    target = Target(server=server, endpoint=Endpoint.COMPLETIONS, prompts=Prompts(pool=(1, 2, 3), seed=0, as_text=False))
    samples = [Sample(ask=Ask(number=number, prompt_tokens=3, output_tokens=4), arrival_s=0.0, sent_s=0.0) for number in range(num_requests)]
    async with connections("k") as session:
        for sample in samples:
            await ask_server(session, target, sample, lambda: 1.5)
    return samples


async def exchange(answer: bytes, step: int, num_requests: int = 1) -> tuple[list[Sample], int]:
    """What becomes of an answer that comes ``step`` bytes at a time; over how many connections."""
    num_connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_connections
        num_connections += 1
        for _ in range(num_requests):
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"Authorization: Bearer k\r\n" in head
            await reader.readexactly(int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0]))
            for begin in range(0, len(answer), step):
                writer.write(answer[begin : begin + step])
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        samples = await ask(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", num_requests)
    return samples, num_connections


@pytest.mark.parametrize("answer", [CHUNKED, CLOSED, SIZED], ids=["chunked", "closed", "sized"])
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_an_answer_is_understood_however_it_is_framed_and_cut(answer: bytes, step: int) -> None:
    [sample], _ = asyncio.run(exchange(answer, step))
    assert sample.error is None
    assert sample.texts_s == [1.5] * 3 and sample.finish == "length" and sample.end_s == 1.5
    assert (sample.num_prompt_tokens, sample.num_output_tokens, sample.num_cached_tokens) == (3, 4, 2)


def test_a_connection_is_used_again() -> None:
    samples, num_connections = asyncio.run(exchange(CHUNKED, 50, num_requests=5))
    assert [sample.tokens for sample in samples] == [4] * 5 and num_connections == 1


def test_a_refusal_is_told_with_its_words() -> None:
    [sample], _ = asyncio.run(exchange(REFUSAL, 9))
    assert (sample.error, sample.detail) == ("429", "later")


@pytest.mark.parametrize("answer", [b"220 mail.example.com ESMTP\r\n", CHUNKED[:120], b""], ids=["no http", "cut", "nothing"])
def test_what_is_no_answer_is_a_broken_connection(answer: bytes) -> None:
    [sample], num_connections = asyncio.run(exchange(answer, 10))
    assert sample.error == "connection" and sample.detail and num_connections == 1


@pytest.mark.parametrize("event", [b"null", b'"ping"', b'{"choices": [null]}', b"{"])
def test_what_is_no_event_fails_its_request_alone(event: bytes) -> None:
    body = b"data: " + event + b"\n\n"
    [sample], _ = asyncio.run(exchange(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body), 10))
    assert sample.error == "no event"


def test_nobody_there_is_a_broken_connection() -> None:
    [sample] = asyncio.run(ask("http://127.0.0.1:9"))
    assert sample.error == "connection"
