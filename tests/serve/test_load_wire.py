"""The load generator's HTTP: answers of every framing, cut anywhere, and servers that speak none."""

from __future__ import annotations

import asyncio

import pytest

from colossus.serve.load.client import _Listener
from colossus.serve.load.sample import Sample
from colossus.serve.load.wire import BrokenLine, lines
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


async def exchange(answer: bytes, step: int, num_requests: int = 1) -> tuple[Sample, tuple[int, str]]:
    """What a listener makes of an answer that comes ``step`` bytes at a time."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(num_requests):
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"Authorization: Bearer k\r\n" in head and b"Content-Length: 2\r\n" in head
            await reader.readexactly(2)
            for begin in range(0, len(answer), step):
                writer.write(answer[begin : begin + step])
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, lines(url, {"Authorization": "Bearer k"}) as opened:
        for _ in range(num_requests):
            sample = Sample(ask=Ask(number=0, prompt_tokens=3, output_tokens=4), arrival_s=0.0, sent_s=0.0)
            listener = _Listener(sample, lambda: 1.5)
            told = await opened.post("/v1/completions", b"{}", listener.take)
            assert listener.is_whole or told[0] != 200
    return sample, told


@pytest.mark.parametrize("answer", [CHUNKED, CLOSED, SIZED], ids=["chunked", "closed", "sized"])
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_an_answer_is_understood_however_it_is_framed_and_cut(answer, step):
    sample, told = asyncio.run(exchange(answer, step))
    assert told == (200, "") and sample.error is None
    assert sample.texts_s == [1.5] * 3 and sample.finish == "length" and sample.end_s == 1.5
    assert (sample.num_prompt_tokens, sample.num_output_tokens, sample.num_cached_tokens) == (3, 4, 2)


def test_a_connection_is_used_again():
    sample, _ = asyncio.run(exchange(CHUNKED, 50, num_requests=5))
    assert sample.tokens == 4


def test_a_refusal_is_told_with_its_words():
    refusal = b'HTTP/1.1 429 Too Many Requests\r\nContent-Length: 31\r\n\r\n{"error": {"message": "later"}}'
    _, told = asyncio.run(exchange(refusal, 9))
    assert told == (429, '{"error": {"message": "later"}}')


@pytest.mark.parametrize("answer", [b"220 mail.example.com ESMTP\r\n", CHUNKED[:120], b""], ids=["no http", "cut", "nothing"])
def test_what_is_no_answer_is_a_broken_line(answer):
    with pytest.raises(BrokenLine):
        asyncio.run(exchange(answer, 10))


def test_nobody_there_is_a_broken_line():
    async def go() -> None:
        async with lines("http://127.0.0.1:9", {}) as opened:
            await opened.post("/", b"", lambda piece: None)

    with pytest.raises(BrokenLine):
        asyncio.run(go())
