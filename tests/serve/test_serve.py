"""``colossus serve`` as a user starts it, with real engines of a tiny model: answers, kills under load, the end."""

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
from typing import Any

import openai
import pytest

from colossus.nn.hf_export import export_folder
from colossus.spec.model import ModelCard
from tests.serve.api.doubles import byte_tokenizer
from tests.serve.models import params_of

pytestmark = pytest.mark.slow
PATIENCE_S = 240.0


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A Hugging Face folder."""
    place = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer()
    tokenizer.save(str(place / "tokenizer.json"))
    card = ModelCard(
        vocab_size=tokenizer.get_vocab_size(), num_layers=2, model_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, ffn_dim=48,
        max_sequence_tokens=256, rope_theta=100.0,
    )  # fmt: skip
    export_folder(place / "tiny", card, params_of(card), place / "tokenizer.json")
    return place / "tiny"


def test_the_door_does_without_jax():
    """Whose import takes longer than a door's whole start, and whose memory a door has no use for."""
    code = "import sys, colossus.serve.door, colossus.serve.api.routes, colossus.serve.model, colossus.serve.page; sys.exit('jax' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


class Server:
    """The command, its address, its end."""

    def __init__(self, model: Path, runs: Path, *options: str) -> None:
        command = [sys.executable, "-m", "colossus.cli", "serve", str(model), "--runs", str(runs), "--json", *options]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        self.talk = (runs / "stderr").open("w+")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.talk, env=environment)
        text = b""
        for line in self.process.stdout:
            text += line
            if line == b"}\n":
                break
        assert text, (runs / "stderr").read_text()
        self.facts = json.loads(text)
        self.url = self.facts["address"]

    def stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/stats") as answer:
            return json.load(answer)

    def until(self, condition: Any) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while not condition(found := self.stats()):
            assert time.monotonic() < deadline, found
            time.sleep(0.1)
        return found

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.talk.close()


@contextlib.contextmanager
def serving(*arguments: Any):
    server = Server(*arguments)
    try:
        yield server
    finally:
        server.close()


def test_it_answers_and_ends(model, tmp_path):
    with serving(model, tmp_path, "--max-running", "4", "--max-step-tokens", "64", "--name", "mine") as server:
        client = openai.OpenAI(base_url=server.facts["base_url"], api_key="none", max_retries=0)
        assert [one.id for one in client.models.list()] == ["mine"]
        asked = {"model": "mine", "messages": [{"role": "user", "content": "hello world"}], "max_tokens": 12, "temperature": 0}
        whole = client.chat.completions.create(**asked)
        parts = list(client.chat.completions.create(**asked, stream=True))
        assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == whole.choices[0].message.content
        stats = server.until(lambda found: found["running"] == 0 and found["kv_used_fraction"] == 0)
        assert stats["num_output_tokens"] == 24 or whole.choices[0].finish_reason == "stop"
        assert stats["replicas"][0]["num_compilations"] == 0
        pid = stats["replicas"][0]["pid"]
        assert server.end() == 0
        assert not Path(f"/proc/{pid}").exists()
        folder = Path(server.facts["folder"])
        assert len((folder / "requests.jsonl").read_text().splitlines()) >= 3 and (folder / "logs" / "replica-0.log").exists()


def test_kills_under_load_lose_nothing_that_had_not_begun(model, tmp_path):
    """Whole answers are all right and equal to those of a quiet server; streams are right or end with an error event."""
    with serving(model, tmp_path, "--replicas", "2", "--max-running", "4", "--max-step-tokens", "64") as server:
        server.until(lambda found: all(one["state"] == "ready" for one in found["replicas"]))
        client = openai.AsyncOpenAI(base_url=server.facts["base_url"], api_key="none", max_retries=0, timeout=PATIENCE_S)
        asked = lambda number: {
            "model": "tiny", "prompt": f"the quick brown fox {number % 5}", "max_tokens": 40, "temperature": 1, "seed": number % 5, "extra_body": {"ignore_eos": True},
        }  # fmt: skip

        async def main():
            quiet = [(await client.completions.create(**asked(number))).choices[0].text for number in range(5)]
            stop, whole, streamed, broken = False, [0], [0], [0]

            async def ask(number):
                while not stop:
                    assert (await client.completions.create(**asked(number))).choices[0].text == quiet[number % 5]
                    whole[0] += 1

            async def listen(number):
                while not stop:
                    text = ""
                    try:
                        async for part in await client.completions.create(**asked(number), stream=True):
                            text += part.choices[0].text
                        assert text == quiet[number % 5]
                        streamed[0] += 1
                    except openai.APIError as error:
                        assert "lost after the answer had begun" in str(error)
                        assert quiet[number % 5].startswith(text)
                        broken[0] += 1

            clients = [asyncio.create_task(work(number)) for number in range(6) for work in (ask, listen)]
            for _ in range(4):
                await asyncio.sleep(1)
                ready = [one for one in (await asyncio.to_thread(server.stats))["replicas"] if one["state"] == "ready"]
                for victim in ready[:1]:
                    os.kill(victim["pid"], signal.SIGKILL)
            stop = True
            await asyncio.gather(*clients)
            assert whole[0] and streamed[0]

        asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
        stats = server.until(lambda found: all(one["state"] == "ready" for one in found["replicas"]) and found["kv_used_fraction"] == 0)
        assert stats["in_flight"] == stats["outstanding_tokens"] == 0
        assert sum(one["num_losses"] for one in stats["replicas"]) >= 2
        assert server.end() == 0
