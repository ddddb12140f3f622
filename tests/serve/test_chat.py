"""``colossus chat`` through a pipe and on a terminal (a real pseudo-terminal), against a scripted server."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import aclosing, contextmanager

import pytest
from click.testing import CliRunner

from colossus.cli.chat import took
from colossus.cli.main import cli
from colossus.serve.load.conversation import Answer, Conversation, Style
from colossus.serve.load.errors import ServerError
from colossus.serve.load.server import Server, connections
from tests.serve.scripted import Script, serving

PATIENCE_S = 60.0


def chat(script: Script, said: str, *arguments: str):
    return CliRunner().invoke(cli, ["chat", script.url, *arguments], input=said)


def test_each_line_of_a_pipe_is_answered_on_stdout():
    with serving(Script()) as script:
        done = chat(script, "hello there\n\nand again\n", "--system", "Be brief.", "--temperature", "0", "--max-tokens", "9")
    assert done.exit_code == 0, done.output
    assert done.stdout == "hello there \nand again \n"
    assert script.bodies[0]["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello there"}]
    assert [message["content"] for message in script.bodies[1]["messages"]] == ["Be brief.", "hello there", "hello there ", "and again"]
    assert script.bodies[0]["temperature"] == 0 and script.bodies[0]["max_tokens"] == 9 and "top_p" not in script.bodies[0]


def test_json_has_a_line_for_each_answer():
    with serving(Script(reply="one two")) as script:
        done = chat(script, "a\nb\n", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["text"] for line in lines] == ["one two ", "one two "] and lines[0]["num_tokens"] == 2 and lines[0]["finish"] == "stop"


def test_slash_is_text_where_nobody_types():
    with serving(Script()) as script:
        assert chat(script, "/help\n").stdout == "/help \n"


@pytest.mark.parametrize(("script", "words"), [(Script(fail={0: 429}), "429"), (Script(error_after=1), "scripted failure"), (Script(cut_after=1), "broke off")])
def test_a_failed_answer_in_a_pipe_ends_in_words(script, words):
    with serving(script):
        done = chat(script, "one two three\n")
    assert isinstance(done.exception, ServerError) and words in str(done.exception)


def test_a_key_is_sent_and_its_lack_is_told():
    with serving(Script(key="secret")) as script:
        assert "--api-key" in (chat(script, "a\n").exception.hint or "")
        assert chat(script, "a\n", "--api-key", "secret").stdout == "a \n"
    assert script.headers[0]["Authorization"] == "Bearer secret"


def test_a_model_that_cannot_be_served_is_told_with_its_last_words():
    done = subprocess.run(
        [sys.executable, "-m", "colossus.cli", "chat", "/no/such/model"], capture_output=True, text=True, input="a\n", timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr and done.stderr.count("there is no model") == 1


def test_a_stopped_answer_stays_in_the_conversation_and_the_server_hears_of_it():
    async def talk(script: Script) -> Conversation:
        conversation = Conversation(server=Server(url=script.url, model="scripted"))
        async with connections() as session, aclosing(conversation.ask(session, "a b c d e f")) as pieces:
            async for piece in pieces:
                if piece == "b ":
                    break
        return conversation

    with serving(Script(gap_s=0.05)) as script:
        conversation = asyncio.run(talk(script))
        wait_for(lambda: script.num_gone == 1)
    assert conversation.exchanges == [("a b c d e f", "a b ")]


def test_what_no_longer_fits_is_forgotten_oldest_first():
    async def talk(script: Script) -> Conversation:
        conversation = Conversation(server=Server(url=script.url, model="scripted"), style=Style(seed=1))
        conversation.exchanges = [("old", "older"), ("new", "newer")]
        async with connections() as session:
            text = [piece async for piece in conversation.ask(session, "now")]
        assert text == ["now "]
        return conversation

    with serving(Script(fail={0: 400}, fail_words="longer than the context")) as script:
        conversation = asyncio.run(talk(script))
    assert conversation.exchanges == [("new", "newer"), ("now", "now ")] and conversation.last.num_forgotten == 1


def test_what_an_answer_took_is_said():
    answer = Answer(text="x", began_s=1.0, first_s=1.12, end_s=2.12, num_tokens=36, finish="length", num_forgotten=1)
    assert took(answer) == "36 tokens, first after 120 ms, 35 tokens/s, cut at its longest, 1 earlier exchange forgotten to make room"


# --- a terminal


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        self.leader, follower = os.openpty()
        environment = {**os.environ, "TERM": "dumb", "COLUMNS": "200"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "colossus.cli", *arguments],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - a shell tells what runs in its background to ignore it
        )
        os.close(follower)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.leader, text.encode())

    def until(self, words: str) -> str:
        """What it says until ``words``, them included; they are then behind us."""
        deadline = time.monotonic() + PATIENCE_S
        while words not in self.seen:
            assert time.monotonic() < deadline, f"no {words!r} in {self.seen!r}"
            if select.select([self.leader], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.leader, 65536).decode(errors="replace")
                except OSError:
                    raise AssertionError(f"it ended without {words!r}: {self.seen!r}") from None
        before, _, self.seen = self.seen.partition(words)
        return before + words


@contextmanager
def terminal(*arguments: str):
    opened = Terminal(*arguments)
    try:
        yield opened
    finally:
        if opened.process.poll() is None:
            opened.process.kill()
        opened.process.wait()
        os.close(opened.leader)


def wait_for(condition) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_talk_on_a_terminal(tmp_path):
    with serving(Script()) as script, terminal("chat", script.url, "--system", "Be brief.") as screen:
        screen.until("> ")
        screen.type("good morning\n")
        screen.until("good morning \r\n")
        screen.until("2 tokens")
        screen.until("> ")
        for typed, answer in (
            ("/help", "Ctrl-D"),
            ("/hlep", "did you mean"),
            ("/system", "Be brief."),
            ("/set top_k 5", "top_k = 5"),
            ("/set top_k x", "no number"),
            ("/set topk 5", "did you mean"),
        ):
            screen.type(typed + "\n")
            screen.until(answer)
            screen.until("> ")
        screen.type(f"/save {tmp_path}/talk.json\n")
        screen.until("talk.json")
        screen.until("> ")
        screen.type("/reset\n")
        screen.until("forgotten")
        screen.until("> ")
        screen.type("two \\\nlines\n")
        screen.until("tokens")
        screen.until("> ")  # an end of input before the prompt's own mode is lost
        screen.type("\x04")
        assert screen.process.wait(PATIENCE_S) == 0
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert [message["role"] for message in saved["messages"]] == ["system", "user", "assistant"] and saved["top_k"] == 5
    assert script.bodies[-1]["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "two \nlines"}]


def test_ctrl_c_stops_the_answer_and_not_the_program():
    with serving(Script(gap_s=0.1, reply=" ".join(map(str, range(1000))))) as script, terminal("chat", script.url) as screen:
        screen.until("> ")
        screen.type("count\n")
        screen.until("3 ")
        os.killpg(screen.process.pid, signal.SIGINT)
        screen.until("stopped")
        wait_for(lambda: script.num_gone == 1)
        screen.until("> ")
        os.killpg(screen.process.pid, signal.SIGINT)
        screen.until("leaves")
        screen.until("> ")
        screen.type("/exit\n")
        assert screen.process.wait(PATIENCE_S) == 0


def test_a_refusal_on_a_terminal_does_not_end_the_talk():
    with serving(Script(fail={0: 429})) as script, terminal("chat", script.url) as screen:
        screen.until("> ")
        screen.type("a\n")
        screen.until("the server is busy")
        screen.until("> ")
        screen.type("b\n")
        screen.until("b \r\n")
