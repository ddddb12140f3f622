"""``colossus chat``: talk with a model in the terminal, or through a pipe."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from colossus.cli.common import ADDRESS, json_option, talk

if TYPE_CHECKING:
    import asyncio

    import aiohttp

    from colossus.serve.load.conversation import Conversation, Style

HELP = {
    "/help": "these words",
    "/reset": "forget the conversation",
    "/system TEXT": "set the system prompt and begin anew; without TEXT, show it",
    "/save FILE": "write the conversation as JSON, as the API takes it",
    "/set NAME VALUE": "temperature, top_p, top_k, max_tokens or seed; VALUE off leaves it to the server",
    "/exit": "leave; so does Ctrl-D",
}
_KINDS: dict[str, type] = {"temperature": float, "top_p": float, "top_k": int, "max_tokens": int, "seed": int}


@click.command("chat")
@click.argument("model_or_url", metavar="MODEL|URL")
@click.option("--model", help="Of those that URL lists; default the first.")
@click.option("--system", help="The system prompt.")
@click.option("--temperature", type=click.FloatRange(0))
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True))
@click.option("--top-k", type=click.IntRange(1))
@click.option("--max-tokens", type=click.IntRange(1), help="Of one answer.")
@click.option("--seed", type=int, help="The same answers to the same words.")
@click.option("--serve-option", "serve_options", multiple=True, metavar="OPTION", help="Passed to colossus serve MODEL, e.g. --serve-option=--weights=int8.")
@click.option("--api-key", envvar="COLOSSUS_API_KEY", help="Default: COLOSSUS_API_KEY.")
@json_option
def command(model_or_url: str, model: str | None, system: str | None, api_key: str | None, as_json: bool, **options: Any) -> None:
    """Talk with MODEL (a run, a Hugging Face folder, a GGUF file, smollm2), which is served for as long, or with the server at URL.

    Ctrl-C stops an answer, Ctrl-D leaves, /help lists commands. Where stdin is no terminal, each line is answered on stdout.
    """
    from colossus.serve.load.conversation import Style

    serve_options = options.pop("serve_options")
    style = Style(**options)
    if ADDRESS.fullmatch(model_or_url):
        _talk(model_or_url, model, system, api_key, style, as_json=as_json)
        return
    from colossus.cli.own_server import own_server

    with _status(f"starting {model_or_url}") as tell, contextlib.ExitStack() as stack:
        said = stack.enter_context(own_server(model_or_url, serve_options, tell))
        stay = stack.pop_all()
    with stay:
        _talk(said["address"], model, system, api_key, style, as_json=as_json)


@contextlib.contextmanager
def _status(words: str) -> Iterator[Callable[[str], None]]:
    """A spinner with the newest words; one line where stderr is no terminal."""
    console = talk()
    if not sys.stderr.isatty():
        console.print(words)
        yield lambda line: None
        return
    with console.status(words) as status:
        yield lambda line: status.update(f"{words}: {line}")


def _talk(url: str, model: str | None, system: str | None, api_key: str | None, style: Style, *, as_json: bool) -> None:
    """A loop for the whole talk, in which each answer is one run, so that Ctrl-C ends the answer."""
    import asyncio

    from colossus.serve.load.conversation import Conversation
    from colossus.serve.load.server import connections, find_server

    with asyncio.Runner() as runner:
        opened = connections(api_key)
        session = runner.run(opened.__aenter__())
        try:
            server = runner.run(find_server(session, url, model, api_key))
            room = Room(runner, session, Conversation(server=server, style=style, system=system), as_json=as_json)
            room.hold()
        finally:
            runner.run(opened.__aexit__(None, None, None))


class Room:
    """Reads what the user says, shows what the model answers."""

    def __init__(self, runner: asyncio.Runner, session: aiohttp.ClientSession, conversation: Conversation, *, as_json: bool) -> None:
        self.runner, self.session, self.conversation = runner, session, conversation
        self.as_json = as_json
        self.is_terminal = sys.stdin.isatty()
        self.console = talk()

    def hold(self) -> None:
        """Until the user leaves or stdin ends."""
        if self.is_terminal:
            self.console.print(f"{self.conversation.server.model} at {self.conversation.server.url}; /help for commands, Ctrl-D to leave")
        for line in self._lines():
            if self.is_terminal and line.startswith("/"):
                if not self._command(line):
                    return
            elif line.strip():
                self._answer(line)

    def _lines(self) -> Iterator[str]:
        """What the user says; on a terminal, a line that ends in a backslash goes on."""
        if not self.is_terminal:
            yield from (line.rstrip("\n") for line in sys.stdin)
            return
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives input() a history and editing
        said = ""
        while True:
            try:
                line = input("... " if said else "> ")
            except EOFError:
                sys.stdout.write("\n")
                return
            except KeyboardInterrupt:
                said = ""
                self.console.print("\nCtrl-D or /exit leaves")
                continue
            if line.endswith("\\"):
                said += line[:-1] + "\n"
                continue
            yield said + line
            said = ""

    def _answer(self, text: str) -> None:
        """Streams one answer; what a server refuses is told, and on a terminal the talk goes on."""
        from colossus.spec.errors import ColossusError

        try:
            self.runner.run(self._stream(text))
        except KeyboardInterrupt:
            if not self.is_terminal:
                raise
            self._note("stopped")
            return
        except ColossusError as error:
            if not self.is_terminal:
                raise
            self._note(f"error: {error}" + (f" ({error.hint})" if error.hint else ""))
            return
        self._told(text)

    async def _stream(self, text: str) -> None:
        from contextlib import aclosing

        async with aclosing(self.conversation.ask(self.session, text)) as pieces:
            async for piece in pieces:
                if not self.as_json:
                    sys.stdout.write(piece)
                    sys.stdout.flush()

    def _told(self, text: str) -> None:
        """The end of an answer: its line end or its JSON, and on a terminal what it took."""
        answer = self.conversation.last
        if self.as_json:
            data = {"prompt": text, "text": answer.text, "finish": answer.finish, "num_tokens": answer.num_tokens, "ttft_s": answer.ttft_s}
            sys.stdout.write(json.dumps(data | {"tokens_per_s": answer.tokens_per_s}) + "\n")
        else:
            sys.stdout.write("\n")
        sys.stdout.flush()
        if self.is_terminal:
            self.console.print(took(answer), style="dim")

    def _note(self, words: str) -> None:
        sys.stdout.write("\n")
        sys.stdout.flush()
        self.console.print(words)

    def _command(self, line: str) -> bool:
        """False to leave."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name in ("/exit", "/quit", "/bye"):
            return False
        if name == "/help":
            for each, meaning in HELP.items():
                self.console.print(f"  {each:18}{meaning}")
        elif name == "/reset":
            self.conversation.exchanges.clear()
            self.console.print("the conversation is forgotten")
        elif name == "/system":
            self._system(rest)
        elif name == "/save":
            self._save(rest)
        elif name == "/set":
            self.console.print(self._set(rest))
        else:
            from colossus.spec.errors import nearest

            self.console.print(f"no command {name!r}; {nearest(name, [each.split()[0] for each in HELP])}")
        return True

    def _system(self, text: str) -> None:
        if not text:
            self.console.print(self.conversation.system or "there is no system prompt")
            return
        self.conversation.system = text
        self.conversation.exchanges.clear()
        self.console.print("set; the conversation begins anew")

    def _save(self, name: str) -> None:
        from colossus.cli.files import write_file
        from colossus.spec.errors import StorageError

        if not name:
            self.console.print("say where: /save FILE")
            return
        data = {"model": self.conversation.server.model, "messages": self.conversation.messages()} | self.conversation.style.body()
        try:
            write_file(Path(name).expanduser(), json.dumps(data, indent=2, ensure_ascii=False) + "\n", what="conversation")
        except StorageError as error:
            self.console.print(f"error: {error}")

    def _set(self, text: str) -> str:
        from dataclasses import replace

        from colossus.spec.errors import nearest

        name, _, value = text.partition(" ")
        if name not in _KINDS:
            return f"no setting {name!r}; {nearest(name, _KINDS)}; now: {self.conversation.style.body() or 'the server decides all'}"
        try:
            given = None if value.strip() == "off" else _KINDS[name](value)
        except ValueError:
            return f"{value!r} is no number; e.g. /set {name} {1 if _KINDS[name] is int else 0.7}"
        self.conversation.style = replace(self.conversation.style, **{name: given})
        return f"{name} is left to the server" if given is None else f"{name} = {given}"


def took(answer: Any) -> str:
    """``42 tokens, first after 120 ms, 35 tokens/s``."""
    from colossus.report.words import count, duration

    parts = [] if answer.num_tokens is None else [count(answer.num_tokens, "token")]
    parts += [] if answer.ttft_s is None else [f"first after {duration(answer.ttft_s)}"]
    parts += [] if answer.tokens_per_s is None else [f"{answer.tokens_per_s:.0f} tokens/s"]
    parts += ["cut at its longest"] if answer.finish == "length" else []
    parts += [f"{count(answer.num_forgotten, 'earlier exchange')} forgotten to make room"] if answer.num_forgotten else []
    return ", ".join(parts)
