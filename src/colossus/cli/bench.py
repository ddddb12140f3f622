"""``colossus bench``: a load test of any OpenAI-compatible server, ours or another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from colossus.cli.common import ADDRESS, json_option, paper, print_json, talk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from colossus.serve.load.run import Load, Order
    from colossus.serve.load.sample import Sample
    from colossus.serve.load.workload import Ask
    from colossus.spec.load import LoadTest, Objectives

_RATE_S = 30.0  # how long an open loop lasts where nobody says how many requests
_MOST_AT_ONCE = 1_000_000  # requests of one load; keeps the prompts of loads apart


class Numbers(click.ParamType[Any]):
    """``1,8,32``."""

    name = "n[,n...]"

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            found = tuple(self.kind(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} must be numbers with commas between, e.g. 1,8,32", param, ctx)
        if not all(0 < number < float("inf") for number in found):
            self.fail(f"{value!r} must be numbers above 0", param, ctx)
        return found


class Slo(click.ParamType[Any]):
    """``ttft=0.5,tpot=0.05``."""

    name = "name=seconds[,...]"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if isinstance(value, dict):
            return value
        found: dict[str, float] = {}
        for part in str(value).split(","):
            name, _, text = part.strip().partition("=")
            if name not in ("ttft", "tpot", "e2e"):
                self.fail(f"{name!r} is no objective; valid: ttft, tpot, e2e, in seconds, e.g. ttft=0.5,tpot=0.05", param, ctx)
            try:
                found[f"{name}_s"] = float(text)
            except ValueError:
                self.fail(f"{part.strip()!r} must look like {name}=0.5 (seconds)", param, ctx)
        return found


class Result(click.ParamType[Any]):
    """NAME=FILE: a result that ``--json`` printed."""

    name = "result"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        from colossus.spec.errors import SpecError
        from colossus.spec.load import LoadTest

        if not isinstance(value, str):
            return value
        name, _, file = value.rpartition("=")
        try:
            return name or Path(file).stem, LoadTest.from_data(json.loads(Path(file).read_bytes()), origin=file)
        except OSError as error:
            self.fail(f"{file}: {error.strerror}; give a file that 'colossus bench URL --json > FILE' wrote", param, ctx)
        except (ValueError, SpecError) as error:
            self.fail(f"{file} is no result of 'colossus bench URL --json': {str(error).splitlines()[0]}", param, ctx)


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    folder, file = click.Path(path_type=Path), click.Path(path_type=Path, dir_okay=False)
    for option in reversed(
        [
            click.option("--model", help="Of those the server lists; default the first."),
            click.option("--concurrency", type=Numbers(int), help="Closed loop: so many clients that wait for their answers, e.g. 1,8,32."),
            click.option("--rate", type=Numbers(float), help="Open loop: so many Poisson arrivals a second, whatever the server does."),
            click.option("--trace", type=file, help="Lengths, and without --rate or --concurrency arrivals too, of a trace: ours, Azure, Mooncake, BurstGPT."),
            click.option("--requests", "num_requests", type=click.IntRange(1, _MOST_AT_ONCE), help="Of each load. Default: 4 a client, 30 s of arrivals, all."),
            click.option("--prompt-tokens", type=click.IntRange(1), default=128, show_default=True),
            click.option("--output-tokens", type=click.IntRange(1), default=128, show_default=True),
            click.option("--distribution", type=click.Choice(["fixed", "uniform", "lognormal"]), default="fixed", show_default=True, help="Of both lengths."),
            click.option("--sigma", type=click.FloatRange(0, 3), default=0.8, show_default=True, help="Of lognormal lengths' logarithm."),
            click.option("--shared-prefix", type=click.IntRange(0), default=0, metavar="TOKENS", help="All prompts begin with the same so many tokens."),
            click.option("--time-scale", type=click.FloatRange(0, min_open=True), default=1.0, help="Arrivals of a trace so many times as far apart."),
            click.option("--length-scale", type=click.FloatRange(0, min_open=True), default=1.0, help="Prompts and answers so many times as long."),
            click.option("--endpoint", type=click.Choice(["completions", "chat"]), default="completions", show_default=True),
            click.option("--slo", type=Slo(), help="What a good answer keeps, e.g. ttft=0.5,tpot=0.05 (seconds); gives goodput."),
            click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True),
            click.option("--stop-early", is_flag=True, help="Let the model end its answers; else ignore_eos keeps their length."),
            click.option("--warmup", type=click.IntRange(0), help="Requests before each load that are left out; default as many as clients, 8 at most."),
            click.option(
                "--timeout", "timeout_s", type=click.FloatRange(0, min_open=True), default=600.0, show_default=True, help="Of one request, in seconds."
            ),
            click.option("--seed", type=int, default=0, show_default=True, help="Of lengths, prompts and arrivals."),
            click.option("--api-key", envvar="COLOSSUS_API_KEY", help="Default: COLOSSUS_API_KEY."),
            click.option("--html", "page", type=folder, help="Write the result as one page."),
            click.option("--plots", metavar="FOLDER", type=folder, help="Write every plot as SVG, and as PNG where colossus[png] is installed."),
            click.option("--beside", type=Result(), multiple=True, metavar="NAME=FILE", help="Another server's result (--json), in table, page and plots too."),
            click.option("--samples", metavar="FILE", type=file, help="Write every request with all its times as JSONL."),
        ]
    ):
        function = option(function)
    return function


@click.command("bench")
@click.argument("url")
@_options
@json_option
def command(
    url: str, page: Path | None, plots: Path | None, samples: Path | None, beside: Sequence[tuple[str, LoadTest]], as_json: bool, **options: Any
) -> None:
    """Load-test the server at URL: latencies (TTFT, TPOT, ITL, E2E), tokens a second, goodput.

    URL: of any OpenAI-compatible server: ours, vLLM, llama.cpp. Without --concurrency, --rate or --trace: 1, 8 and 32 clients.
    """
    _check_url(url)
    others = _others(beside)
    order = _order(url, options)
    kept: list[str] = []
    test = _run(order, None if samples is None else lambda label, found: kept.extend(_lines(label, found)))
    if samples is not None:
        from colossus.cli.files import write_file

        write_file(samples, "".join(kept), what="samples")
    _write(test, others, page, plots)
    if as_json:
        print_json(test.to_data())
    else:
        _show(test, others)
    _check_answers(test)


def _others(beside: Sequence[tuple[str, LoadTest]]) -> dict[str, LoadTest]:
    others = dict(beside)
    if len(others) < len(beside):
        names = [name for name, _ in beside]
        twice = next(name for name in names if names.count(name) > 1)
        raise click.UsageError(f"--beside: two results are called {twice!r}; give names of their own: --beside NAME=FILE")
    return others


def _check_url(url: str) -> None:
    if not ADDRESS.fullmatch(url):
        words = f"{url!r} is no address of a server, as bench wants it, e.g. http://127.0.0.1:8000"
        raise click.UsageError(f"{words}; to test a model, start a server first: colossus serve {url}, then: colossus bench 127.0.0.1:8000")


def _check_answers(test: LoadTest) -> None:
    """A test without any answer is a failure, shown as it may be."""
    if any(point.num_completed for point in test.points):
        return
    from colossus.report.load_words import failed
    from colossus.serve.load.errors import ServerError

    kinds = "; ".join(f"{point.label}: {failed(point)}" for point in test.points)
    raise ServerError(f"every request failed ({kinds})", hint="the server's own log says more; --samples FILE keeps each error's words")


def _order(url: str, options: dict[str, Any]) -> Order:
    from colossus.serve.load.client import Endpoint
    from colossus.serve.load.run import Order
    from colossus.spec.load import Objectives

    if options["rate"] and options["concurrency"]:
        raise click.UsageError("--rate (open loop) and --concurrency (closed loop) exclude each other; run it twice")
    loads, workload = _loads(options)
    objectives: Objectives = Objectives.from_data(options["slo"] or {}, origin="--slo")
    return Order(
        url=url,
        loads=loads,
        workload=workload,
        model=options["model"],
        api_key=options["api_key"],
        endpoint=Endpoint(options["endpoint"]),
        objectives=objectives,
        seed=options["seed"],
        num_warmup_requests=options["warmup"],
        temperature=options["temperature"],
        ignore_eos=not options["stop_early"],
        timeout_s=options["timeout_s"],
        lengths=None if options["trace"] else _mean_lengths(options),
    )


def _mean_lengths(options: dict[str, Any]) -> tuple[int, int]:
    prompt, output = (max(1, round(options[name] * options["length_scale"])) for name in ("prompt_tokens", "output_tokens"))
    return prompt, output


def _loads(options: dict[str, Any]) -> tuple[list[Load], str]:
    """What is played, and its workload in words."""
    from colossus.serve.load.run import Load
    from colossus.serve.load.workload import numbered, poisson, unplaced

    make, workload = _asks(options)
    if options["trace"] and not (options["rate"] or options["concurrency"]):
        return [Load(label="the trace's arrivals", asks=make(None))], workload
    loads = []
    for place, rate in enumerate(options["rate"] or ()):
        asks = poisson(make(max(32, round(rate * _RATE_S))), rate, options["seed"])
        loads.append(Load(label=f"{rate:g} requests/s", asks=numbered(asks, place * _MOST_AT_ONCE), offered_requests_per_s=rate))
    for place, clients in enumerate(() if loads else options["concurrency"] or (1, 8, 32)):
        asks = unplaced(make(max(16, 4 * clients)))
        label = "1 client" if clients == 1 else f"{clients} clients"
        loads.append(Load(label=label, asks=numbered(asks, place * _MOST_AT_ONCE), num_clients=clients))
    return loads, workload


def _asks(options: dict[str, Any]) -> tuple[Callable[[int | None], Sequence[Ask]], str]:
    """How asks are made, given how many where nobody said so; and what they are."""
    from colossus.serve.load.traces import read_trace
    from colossus.serve.load.workload import Distribution, Lengths, make_asks, scaled

    wanted, seed, scale = options["num_requests"], options["seed"], options["length_scale"]
    if options["trace"]:
        asks = scaled(read_trace(options["trace"], wanted), time_factor=options["time_scale"], length_factor=scale)
        named = (
            options["trace"].name
            + (f", lengths x {scale:g}" if scale != 1 else "")
            + (f", times x {options['time_scale']:g}" if options["time_scale"] != 1 else "")
        )
        return lambda _: asks, f"{len(asks)} requests of {named}"
    lengths = Lengths(
        prompt_tokens=options["prompt_tokens"],
        output_tokens=options["output_tokens"],
        distribution=Distribution(options["distribution"]),
        sigma=options["sigma"],
        shared_tokens=options["shared_prefix"],
    )
    return lambda number: scaled(make_asks(lengths, wanted or number or 1, seed), length_factor=scale), lengths.words()


def _run(order: Order, keep: Callable[[str, Sequence[Sample]], None] | None) -> LoadTest:
    import asyncio

    from rich.progress import Progress

    from colossus.serve.load.run import run

    with Progress(console=talk(), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def tell(label: str, ended: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bar.add_task(label, total=total)
            bar.update(tasks[label], completed=ended)

        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(run(order, tell, keep))


def _loop_factory() -> Callable[[], Any] | None:
    """uvloop where there is one: the client shares the server's cores."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _lines(label: str, samples: Sequence[Sample]) -> list[str]:
    from dataclasses import asdict

    return [json.dumps({"load": label} | asdict(sample)) + "\n" for sample in sorted(samples, key=lambda sample: sample.arrival_s)]


def _write(test: LoadTest, others: dict[str, LoadTest], page: Path | None, plots: Path | None) -> None:
    from colossus.cli.files import write_file
    from colossus.cli.plots import write_plots
    from colossus.report.load_page import page as load_page
    from colossus.report.load_plots import beside, charts, svgs
    from colossus.report.load_words import named

    if page is not None:
        write_file(page, load_page(test, others), what="page")
    if plots is not None:
        write_plots(plots, svgs(charts(test) + (beside(named(test, others)) if others else [])))


def _show(test: LoadTest, others: dict[str, LoadTest]) -> None:
    from rich.table import Table

    from colossus.report import load_words as words

    console = paper()
    console.print(words.verdict(test))
    console.print(words.terms(test))
    tables = [[words.header(test), *(words.row(test, point) for point in test.points)]]
    if others:
        tables.append([words.beside_header(), *words.beside_rows(words.named(test, others))])
    for rows in tables:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        console.print()
        for row in rows:
            console.print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), soft_wrap=True)
    for point in test.points:
        table = Table(*words.PERCENTILES, box=None, padding=(0, 2, 0, 0), header_style="dim")
        for row in words.percentile_rows(point):
            table.add_row(*row)
        console.print(f"\n{point.label}")
        console.print(table)
    console.print()
    for note in (*test.notes, *words.beside_notes(test, others), words.client_words(test.points), words.warm_up_words(test.points)):
        console.print(f"- {note}")
