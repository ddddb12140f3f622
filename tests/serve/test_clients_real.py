"""Chat, load test and page against the real thing: ``colossus serve`` of a tiny model, started as ``colossus chat MODEL`` starts it."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from colossus.cli.main import cli
from colossus.cli.own_server import own_server
from tests.serve.browser import CHROMIUM, browsing

pytest.importorskip("colossus.serve.engine")
pytestmark = pytest.mark.slow
OPTIONS = ("--max-running", "4", "--max-step-tokens", "64", "--max-sequence-tokens", "128")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    try:
        from serve_models import Shape, make
    finally:
        sys.path.pop(0)
    return make(Shape("tiny", 2, 64, 2, 128), tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def address(model, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    with own_server(str(model), [*OPTIONS, "--runs", str(runs)]) as said:
        yield said["address"]
    assert not [each for each in psutil.process_iter(["cmdline"]) if str(runs) in " ".join(each.info["cmdline"] or [])]


def test_bench_measures_it(address):
    done = CliRunner().invoke(cli, ["bench", address, "--concurrency", "1,3", "--requests", "6", "--prompt-tokens", "20", "--output-tokens", "12", "--json"])
    assert done.exit_code == 0, done.output
    for point in json.loads(done.stdout)["points"]:
        assert not point["errors"] and point["num_prompt_tokens"] == 120 and point["num_output_tokens"] == 72 and point["counted_by"] == "usage"


def test_chat_prompts_have_exact_counts(address):
    done = CliRunner().invoke(
        cli, ["bench", address, "--concurrency", "1", "--requests", "2", "--prompt-tokens", "60", "--output-tokens", "4", "--endpoint", "chat", "--json"]
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    # Words are of one token each only where the tokenizer knows them; a note says so where it does not.
    assert told["points"][0]["num_output_tokens"] == 8 and (told["points"][0]["num_prompt_tokens"] == 120 or "notes" in told)


def test_chat_talks_through_a_pipe_and_forgets_what_no_longer_fits(address):
    done = CliRunner().invoke(cli, ["chat", address, "--max-tokens", "30", "--temperature", "0", "--json"], input="abc def\n" * 4)
    assert done.exit_code == 0, done.output
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == 4 and all(answer["text"] and answer["num_tokens"] <= 30 for answer in answers)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_the_page_talks_and_its_numbers_move(address):
    async def visit() -> None:
        async with browsing() as page:
            await page.open(address + "/")
            await page.until("!document.getElementById('send').disabled")
            await page.click("#said")
            await page.type("abc def")
            await page.enter()
            await page.until("document.querySelector('.turn.model .meta') !== null")
            assert await page.eval("document.querySelector('.turn.model .text').textContent.length") > 0
            await page.until("document.getElementById('latency').textContent.includes('ms')")
            await page.until("[...document.querySelectorAll('#facts dd')].some((each) => /^[1-9]\\d* requests/.test(each.textContent))")
            assert not page.errors, page.errors

    asyncio.run(visit())
