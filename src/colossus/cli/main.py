"""``colossus``: finds the verb, runs it, and turns our errors into words. A verb's module is imported when it is called."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import TYPE_CHECKING

import click

from colossus import __version__

if TYPE_CHECKING:
    from colossus.spec.errors import ColossusError

# verb -> what it does, as ``--help`` lists it; each lives in the module of its name.
VERBS = {
    "machine": "Describe and measure the machine this runs on.",
    "train": "Train a network from a job file, through failures, to the end.",
    "resume": "Go on with a run that was stopped or killed.",
    "sample": "Generate text with a trained model.",
    "serve": "Serve a model to many users, over an OpenAI-compatible API.",
    "chat": "Talk with a model or a server, in the terminal.",
    "bench": "Load-test a server: latencies, tokens a second, goodput.",
    "report": "Show what a run came to, in the terminal and as a page.",
    "compare": "Show two runs side by side.",
    "export": "Write a trained model as a Hugging Face folder.",
    "plan": "Say which layout a job gets, here or on any machine, and what it takes.",
    "simulate": "Play a job's months on any machine: faults, recovery, power, money.",
    "sweep": "Simulate with some values varied, and name the best.",
    "build-out": "Play out how a site grows: chips, power, money and compute by day.",
    "machines": "List machines and nodes that can be planned for, with sources.",
    "chips": "List accelerators: memory, bandwidth, peaks, power, with sources.",
    "models": "List models: parameters, layers, width, context, with sources.",
    "validate": "Hold estimates against published training runs.",
    "calibrate": "Fit the estimates' coefficients to measured runs.",
}


# What a file system says about a place that a user chose; any other OSError is a mistake of ours.
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)


class Verbs(click.Group):
    """Commands that are imported when they are named, so that ``--help`` answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        return importlib.import_module(f"colossus.cli.{name.replace('-', '_')}").command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from colossus.spec.errors import nearest

            ctx.fail(f"no verb {args[0]!r}; {nearest(args[0], VERBS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.command(cls=Verbs)
@click.version_option(__version__, prog_name="colossus")
def cli() -> None:
    """An AI supercomputer as software: trains large neural networks on a network of machines, through failures.

    Start with: colossus train recipes/shakespeare.toml
    """


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 an error said in words, 2 wrong usage, 130 interrupted."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA's own log is for developers; workers write it to the run's logs
    try:
        ended = cli.main(standalone_mode=False)  # click returns the code of an Exit
        sys.exit(ended if isinstance(ended, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:  # the reader of stdout, say head, is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        told = _as_told(error)
        if told is None:
            raise
        click.echo(f"error: {told}", err=True)
        if told.hint:
            click.echo(f"\nhint: {told.hint}", err=True)
        sys.exit(1)


def _as_told(error: Exception) -> ColossusError | None:
    """The error as a user is told it; None for one that is ours to mend."""
    from colossus.spec.errors import ColossusError, StorageError

    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "free some room; what was complete is whole: colossus resume and colossus report go on from it"
        return StorageError(f"{error.strerror}: {error.filename or 'the run folder'}", hint=hint)
    if isinstance(error, OSError) and error.errno in _REFUSED and error.filename is not None:
        return StorageError(f"{error.filename2 or error.filename}: {error.strerror}", hint="give it the right permissions, or use another place")
    return error if isinstance(error, ColossusError) else None
