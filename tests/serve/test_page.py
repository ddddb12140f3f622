"""The page at ``/`` in a real browser, against a scripted server."""

from __future__ import annotations

import asyncio
import math
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from colossus.serve.page import FILES, HEADERS, content
from tests.serve.browser import CHROMIUM, Page, browsing
from tests.serve.scripted import SCRIPT, Script, serving

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
# Where to leave pictures for people to look at.
SHOTS = os.environ.get("COLOSSUS_TEST_SHOTS")


async def _file(request: web.Request) -> web.Response:
    data, kind, _ = content(request.match_info.get("name", "index.html"))
    return web.Response(body=data, headers=HEADERS | {"Content-Type": kind})


async def _stats(request: web.Request) -> web.Response:
    script: Script = request.app[SCRIPT]
    if script.key and request.headers.get("Authorization") != f"Bearer {script.key}":
        return web.json_response({"error": {"message": "key"}}, status=401)
    return web.json_response(stats(len(script.bodies)))


def stats(num_requests: int) -> dict[str, Any]:
    """As ``/stats`` has it; ``num_requests`` makes it move."""
    now = time.time()
    wave = [0.5 + 0.5 * math.sin((now + second) / 9) for second in range(120)]
    history = [
        {
            "age_s": 120 - second,
            "running": None if second < 20 else round(30 * high),
            "waiting": None if second < 20 else round(12 * max(0, high - 0.6)),
            "kv_used_fraction": None if second < 20 else 0.6 * high,
            "output_tokens_per_s": round(1400 * high),
            "prompt_tokens_per_s": round(500 * high),
            "num_ended": 3,
            "num_refused": 0,
            "ttft_p50_s": None if second % 17 < 3 else 0.04 + 0.1 * high,
            "itl_p50_s": 0.02,
        }
        for second, high in enumerate(wave)
    ]
    replica = {
        "pid": 12,
        "generation": 1,
        "running": 9,
        "waiting": 1,
        "kv_used_fraction": 0.31,
        "num_steps": 99,
        "num_compilations": 0,
        "outstanding_tokens": 800,
    }
    return {
        "model": "scripted",
        "time_s": now,
        "uptime_s": 3725.0,
        "ready": True,
        "draining": False,
        "running": 18,
        "waiting": 2,
        "in_flight": 20,
        "outstanding_tokens": 1600,
        "output_tokens_per_s": 1234.5 + num_requests,
        "prompt_tokens_per_s": 321.0,
        "kv_used_fraction": 0.315,
        "prefix_hit_fraction": 0.42,
        "draft_accepted_fraction": None,
        "ttft_s": {"p50": 0.052, "p90": 0.11, "p99": 0.4},
        "itl_s": {"p50": 0.019, "p90": 0.025, "p99": 0.061},
        "e2e_s": {"p50": 2.4, "p90": 3.1, "p99": 4.75},
        "num_ended": {"stop": num_requests, "length": 100, "abort": 1, "error": 0},
        "num_refused": 3,
        "num_retries": 0,
        "num_output_tokens": 123456,
        "num_prompt_tokens": 65432,
        "engine": {
            "model": "scripted",
            "max_sequence_tokens": 2048,
            "vocab_size": 500,
            "num_pages": 4096,
            "page_tokens": 16,
            "weights": "int8",
            "cache": "bfloat16",
            "device": "cpu",
            "start_s": 7.5,
            "num_programs": 24,
        },
        "replicas": [
            {"index": 0, "state": "ready", "text": "", "num_losses": 0, **replica},
            {"index": 1, "state": "starting", "text": "compiling program 9 of 24", "num_losses": 2, **replica},
        ],
        "history": history,
    }


def with_page(**more: Any) -> Script:
    return Script(page=[web.get("/", _file), web.get("/page/{name}", _file), web.get("/stats", _stats)], **more)


def look(script: Script, visit: Any) -> None:
    """Opens the page, does what the test does there, and wants no error of the page."""

    async def go() -> None:
        async with browsing() as page:
            await page.size(1280, 860)
            await page.open(script.url + "/")
            await page.until("document.getElementById('model').textContent === 'scripted'")
            await visit(page)
            assert not page.errors, page.errors

    with serving(script):
        asyncio.run(go())


async def shot(page: Page, name: str) -> None:
    if SHOTS:
        await page.screenshot(Path(SHOTS) / f"{name}.png")


async def say(page: Page, text: str) -> None:
    await page.click("#said")
    await page.type(text)
    await page.enter()


REPLY = """Hello! Here is **bold**, *leaning* and `code`.

1. first
2. second with a [link](https://example.com/a_(b))

```python
def f(x):
    return x ** 2
```

> said by another

### A heading
- one
- two
"""


@in_browser
def test_an_answer_streams_and_the_numbers_move():
    async def visit(page: Page) -> None:
        await page.until("document.querySelector('#state').textContent === 'ready'")
        before = await page.eval("document.querySelector('#numbers .value').textContent")
        await say(page, "Tell me.\nPlease.")
        await page.until("document.querySelector('.turn.model .text').textContent.includes('Hello')")
        assert await page.eval("!document.getElementById('stop').hidden && document.querySelector('.waiting') !== null")
        await page.until("document.querySelector('.turn.model .meta') !== null")
        assert await page.eval("document.querySelector('.turn.user .text').textContent") == "Tell me.\nPlease."
        shape = "document.querySelector('.turn.model .text')"
        assert await page.eval(f"{shape}.querySelector('pre code').textContent") == "def f(x):\n    return x ** 2"
        assert await page.eval(f"[...{shape}.querySelectorAll('li')].length") == 4
        assert await page.eval(f"{shape}.querySelector('a').href") == "https://example.com/a_(b)"
        assert await page.eval(f"{shape}.querySelector('strong').textContent + {shape}.querySelector('em').textContent") == "boldleaning"
        assert "tokens/s" in await page.eval("document.querySelector('.meta').textContent")
        await page.until(f"document.querySelector('#numbers .value').textContent !== {before!r}")
        assert await page.eval("document.querySelectorAll('#numbers .chart .line').length") >= 5
        assert await page.eval("document.querySelectorAll('#replicas li').length") == 2
        assert "52 ms" in await page.eval("document.getElementById('latency').textContent")
        await shot(page, "light")
        await page.dark(True)
        await shot(page, "dark")

    look(with_page(reply=REPLY, gap_s=0.02), visit)


@in_browser
def test_what_a_model_says_is_never_markup():
    attack = (
        "<img src=x onerror=window.hit=1> <script>window.hit=2</script> [a](javascript:window.hit=3) "
        '**<b onmouseover=window.hit=4>bold</b>** `<i>` [x](https://e.com/"onclick=window.hit=5)\n```\n</code><script>window.hit=6</script>\n```\n'
    )

    async def visit(page: Page) -> None:
        await say(page, "<img src=x onerror=window.hit=7>")
        await page.until("document.querySelector('.turn.model .meta') !== null")
        assert await page.eval("document.querySelectorAll('#talk img, #talk script, #talk b, #talk i, #talk [onclick], #talk [onerror]').length") == 0
        assert await page.eval("[...document.querySelectorAll('#talk a')].every((a) => a.protocol === 'https:')")
        assert await page.eval("window.hit === undefined")
        assert "<script>window.hit=2</script>" in await page.eval("document.querySelector('.turn.model .text').textContent")

    look(with_page(reply=attack), visit)


@in_browser
def test_stop_ends_the_answer_and_the_talk_goes_on_with_settings():
    script = with_page(reply=" ".join(map(str, range(2000))), gap_s=0.03)

    async def visit(page: Page) -> None:
        await say(page, "count")
        await page.until("document.querySelector('.turn.model .text').textContent.includes('3')")
        await page.click("#stop")
        await page.until("document.querySelector('.meta').textContent.includes('stopped')")
        deadline = time.monotonic() + 30
        while script.num_gone < 1:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        script.reply, script.gap_s = "done", 0.0
        await page.eval("document.getElementById('settings').open = true")
        for name, value in (("system", "Be brief."), ("temperature", "0.5"), ("top_k", "7"), ("max_tokens", "20")):
            await page.eval(f"document.getElementById('{name}').value = '{value}'")
        await shot(page, "settings")
        await say(page, "again")
        await page.until("document.querySelectorAll('.meta').length === 2")
        await page.click("#fresh")
        await page.until("!document.getElementById('empty').hidden && document.querySelectorAll('.turn').length === 0")

    look(script, visit)
    body = script.bodies[1]
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "user"]
    assert (body["temperature"], body["top_k"], body["max_tokens"]) == (0.5, 7, 20) and "seed" not in body and body["model"] == "scripted"


@in_browser
def test_a_key_is_asked_for_and_stays_in_memory():
    script = with_page(key="right", reply="fine")

    async def visit() -> None:
        async with browsing() as page:
            await page.open(script.url + "/")
            for value in ("wrong", "right"):
                await page.until("document.getElementById('key').open")
                await page.eval("document.getElementById('key-value').focus()")
                await page.type(value)
                await shot(page, f"key-{value}")
                await page.enter()
                if value == "wrong":
                    await page.until("!document.getElementById('key-wrong').hidden")
            await page.until("document.getElementById('model').textContent === 'scripted'")
            await say(page, "hello")
            await page.until("document.querySelector('.turn.model .text').textContent.includes('fine')")
            assert await page.eval("localStorage.length + sessionStorage.length + document.cookie.length") == 0
            await page.until("document.querySelector('#state').textContent === 'ready'")
            # The browser itself notes each 401.
            assert all("401" in error for error in page.errors), page.errors

    with serving(script):
        asyncio.run(visit())


@in_browser
def test_failures_are_told_in_the_talk():
    script = with_page(fail={0: 429, 1: 400}, error_after=1, reply="one two three")

    async def visit() -> None:
        async with browsing() as page:
            await page.open(script.url + "/")
            await page.until("document.getElementById('model').textContent === 'scripted'")
            for number, words in enumerate(("busy (429)", "scripted 400", "scripted failure"), 1):
                await say(page, "try")
                await page.until(f"document.querySelectorAll('.turn.model .meta').length === {number}")
                assert words in await page.eval("[...document.querySelectorAll('.turn .wrong')].at(-1).textContent")

    with serving(script):
        asyncio.run(visit())


@in_browser
def test_a_narrow_screen_shows_one_view_at_a_time_and_nothing_is_cut():
    async def visit(page: Page) -> None:
        await page.size(390, 800)
        await say(page, "w" * 300)
        await page.until("document.querySelector('.turn.model .meta') !== null")
        assert await page.eval("document.documentElement.scrollWidth") <= 390
        await shot(page, "narrow-chat")
        await page.click("#show-engine")
        await page.until("document.getElementById('chat').offsetHeight === 0 && document.getElementById('engine').offsetHeight > 300")
        assert await page.eval("document.documentElement.scrollWidth") <= 390
        await shot(page, "narrow-engine")
        box = await page.eval("(() => { const b = document.querySelector('.chart').getBoundingClientRect(); return [b.x + b.width / 2, b.y + 20] })()")
        await page.move(*box)
        await page.until("document.getElementById('tip').textContent.includes('s ago')")

    look(with_page(), visit)


@in_browser
def test_a_server_that_goes_away_is_seen():
    async def go() -> None:
        async with browsing() as page:
            with serving(with_page()) as script:
                await page.open(script.url + "/")
                await page.until("document.querySelector('#state').textContent === 'ready'")
            await page.until("document.querySelector('#state').textContent === 'unreachable'")

    asyncio.run(go())


def test_the_files_are_whole_and_ask_for_nothing_from_outside():
    index = content("index.html")[0].decode()
    assert set(re.findall(r'(?:src|href)="page/([^"]+)"', index)) <= set(FILES)
    assert not re.search(r"<style|\sstyle=|<script>|\son\w+=", index)
    for name in FILES:
        text = content(name)[0].decode()
        assert not re.search(r"(?:src|href|from|url\()\s*=?\s*[\"']?(?:https?:)?//", text), name
        assert "innerHTML" not in text and "eval(" not in text, name
        for imported in re.findall(r'from "\./([^"]+)"', text):
            assert imported in FILES


async def get(app: Any, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    """One request to an ASGI application, without a socket."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    told = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": told, "scheme": "http"}
    await app({**scope, "http_version": "1.1", "server": ("x", 80), "client": ("y", 1)}, receive, send)
    start = sent[0]
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return start["status"], {name.decode(): value.decode() for name, value in start["headers"]}, body


def test_the_routes_carry_the_policy_and_know_what_is_fresh():
    from starlette.applications import Starlette

    from colossus.serve.page import routes

    async def go() -> None:
        app = Starlette(routes=routes())
        status, headers, body = await get(app, "/", {})
        assert status == 200 and headers["content-type"].startswith("text/html") and body == content("index.html")[0]
        assert "script-src 'self'" in headers["content-security-policy"] and "unsafe" not in headers["content-security-policy"]
        for name in FILES:
            assert (await get(app, f"/page/{name}", {}))[0] == 200
        again = await get(app, "/", {"If-None-Match": headers["etag"]})
        assert again[0] == 304 and not again[2]
        for name in ("__init__.py", "../__init__.py", "nothing.js"):
            assert (await get(app, f"/page/{name}", {}))[0] == 404

    asyncio.run(go())
