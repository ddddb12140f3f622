"""``colossus serve``: a model to many users, over an OpenAI-compatible API."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from colossus.cli.common import json_option, paper, print_json, runs_option, talk

if TYPE_CHECKING:
    import socket

    from colossus.engine.replicas import Share
    from colossus.serve.options import EngineOptions
    from colossus.serve.settings import DoorSettings, RouterSettings

_GIB = 2**30
_MIB = 2**20
_POSITIVE = click.FloatRange(0, min_open=True)


def _new_key(context: click.Context, parameter: click.Parameter, value: tuple[str, str] | None) -> None:
    """``--new-key`` does its work and ends."""
    if value is None:
        return
    from colossus.serve.keys import new_key

    name, file = value
    key = new_key(name, Path(file))
    talk().print(f"the key of {name}; {file} holds only its hash, so it cannot be shown again:")
    sys.stdout.write(key + "\n")
    context.exit(0)


@click.command("serve")
@click.argument("model")
@click.option("--on", "place", type=click.Choice(["local"]), default="local", show_default=True, help="Where engines run.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others than loopback need --api-keys.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port; none or 0 takes a free one.")
@click.option("--name", help="Name of the model in the API; default: its own.")
@click.option("--replicas", type=click.IntRange(1, 256), default=1, show_default=True, help="Engines behind one door.")
@click.option("--tp", type=click.IntRange(1), default=1, show_default=True, help="Devices that share each layer of an engine.")
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="Processes that hold an engine's devices.")
@click.option("--weights", type=click.Choice(["float32", "bfloat16", "int8"]), help="Numbers of the weights; default: float32 on a CPU, else bfloat16.")
@click.option("--cache", type=click.Choice(["float32", "bfloat16", "int8"]), help="Numbers of the KV cache; default: as the weights, float32 for int8 ones.")
@click.option("--max-running", type=click.IntRange(1, 4096), default=64, show_default=True, help="Requests that an engine works on at once.")
@click.option(
    "--max-step-tokens",
    type=click.IntRange(16),
    default=512,
    show_default=True,
    help="Tokens that one step computes at most; fewer where answers under way would wait long.",
)
@click.option("--max-sequence-tokens", type=click.IntRange(2), help="Prompt and answer together; default: the model's limit.")
@click.option("--kv-gib", type=_POSITIVE, help="Memory of an engine's KV cache; default: for --max-running, at most 1/8 of free memory (1/2 on a GPU or TPU).")
@click.option("--no-prefix-caching", is_flag=True, help="Compute every prompt whole.")
@click.option("--draft-tokens", type=click.IntRange(0, 32), default=0, show_default=True, help="Tokens guessed ahead by looking up the prompt.")
@click.option("--policy", type=click.Choice(["fcfs", "priority", "shortest", "fair"]), default="fcfs", show_default=True, help="Order of waiting requests.")
@click.option("--max-waiting", type=click.IntRange(0), default=512, show_default=True, help="Requests that may wait; more are refused with 429.")
@click.option("--ttft-slo", "max_ttft_s", type=_POSITIVE, metavar="SECONDS", help="Refuse what would wait longer for its first token.")
@click.option("--request-timeout-s", type=_POSITIVE, default=600.0, show_default=True, help="From arrival to the last token.")
@click.option("--api-keys", type=click.Path(path_type=Path), help="File of keys; see --new-key.")
@click.option("--new-key", nargs=2, metavar="NAME FILE", is_eager=True, expose_value=False, callback=_new_key, help="Make a key, print it once, and end.")
@click.option("--no-auth", is_flag=True, help="Listen beyond loopback without keys.")
@click.option("--requests-per-minute", type=_POSITIVE, help="Of each key.")
@click.option("--tokens-per-minute", type=_POSITIVE, help="Of each key, prompts and answers together.")
@click.option("--max-concurrent", type=click.IntRange(1), help="Requests at once of each key.")
@click.option("--max-body-mib", type=_POSITIVE, default=8.0, show_default=True, help="Of one request.")
@click.option("--max-connections", type=click.IntRange(1), default=4096, show_default=True, help="Open at once.")
@click.option("--cors-origin", "cors_origins", multiple=True, metavar="ORIGIN", help="Web pages that may use this server; may be repeated.")
@click.option("--drain-s", type=click.FloatRange(0), default=30.0, show_default=True, help="How long running requests may go on after SIGTERM.")
@click.option(
    "--log", "log", type=click.Path(path_type=Path), metavar="FILE", help="Where a line for each request goes, - is stderr; default: the server's folder."
)
@click.option("--otlp-endpoint", metavar="URL", help="Send traces there, e.g. http://127.0.0.1:4318/v1/traces.")
@runs_option
@json_option
def command(model: str, **options: Any) -> None:
    """Serve MODEL: a run of ours, a Hugging Face folder, a GGUF file, or smollm2.

    Says its address, and how to use it, when it is ready. SIGTERM or Ctrl-C lets running requests end; a second one ends at once.
    """
    from colossus.cli.serving import check_exposure, find_model

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    check_exposure(options["host"], options["api_keys"], no_auth=options["no_auth"])
    found = find_model(model, options["runs"], talk().print)
    from colossus.serve.model import open_model

    served = open_model(found.path)
    code = _serve(served, options["name"] or found.name or served.name, found.path, options)
    if code:
        raise click.exceptions.Exit(code)


def _serve(served: Any, name: str, path: Path, options: dict[str, Any]) -> int:
    """What can be refused is refused before the first word and the first file."""
    from colossus.cli.serving import serve_folder
    from colossus.engine.replicas import shares
    from colossus.serve.http import listen
    from colossus.serve.keys import Keys

    parts = shares(options["replicas"], devices_each=options["tp"])
    settings = _door(options)
    if settings.api_keys is not None:
        Keys(settings.api_keys)
    with contextlib.closing(listen(settings)) as listener:
        folder = serve_folder(options["runs"], name)
        settings = replace(settings, request_log=options["log"] or folder / "requests.jsonl")
        return _open(_Place(name=name, model=path, folder=folder, parts=parts), served, settings, listener, options)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where and as what a model is served."""

    name: str
    model: Path
    folder: Path
    parts: list[Share]


def _open(place: _Place, served: Any, settings: DoorSettings, listener: socket.socket, options: dict[str, Any]) -> int:
    import asyncio

    import uvloop

    from colossus.cli.serving import facts, greeting
    from colossus.engine.replicas import LocalReplicas
    from colossus.serve.api.routes import routes
    from colossus.serve.api.settings import ApiSettings
    from colossus.serve.door import Door, Talk
    from colossus.serve.page import routes as page_routes
    from colossus.serve.settings import options_to_json

    name, folder, parts = place.name, place.folder, place.parts
    if served.chat_template is None:
        talk().print(f"{name} has no chat template: conversations are told to it as plain ChatML, which it may not have been trained on")
    for index, part in enumerate(parts):
        talk().print(f"engine {index}: {part.words}; log {folder / 'logs' / f'replica-{index}.log'}")

    def ready(address: str) -> None:
        if options["as_json"]:
            print_json(facts(address, name, folder))
        else:
            paper().print(greeting(address, name, needs_key=options["api_keys"] is not None), soft_wrap=True)

    door = Door(
        name,
        LocalReplicas(folder, options_to_json(_engine(place.model, options, parts[0].kind)), parts),
        settings=settings,
        routing=_routing(options),
        talk=Talk(ready=ready, say=talk().print, complain=talk().print),
    )
    api = routes(door.router, served, ApiSettings(model_name=name, max_body_bytes=int(options["max_body_mib"] * _MIB)))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(door.run(list(api), list(page_routes()), listener))


def _engine(path: Path, options: dict[str, Any], kind: str) -> EngineOptions:
    from colossus.engine.machine import usable_memory_bytes
    from colossus.serve.options import CachePrecision, EngineOptions, WeightPrecision

    weights = WeightPrecision(options["weights"] or ("float32" if kind == "cpu" else "bfloat16"))
    plain = CachePrecision.FLOAT32 if weights is WeightPrecision.INT8 else CachePrecision(weights.value)
    return EngineOptions(
        model=path,
        weights=weights,
        cache=CachePrecision(options["cache"]) if options["cache"] else plain,
        max_sequence_tokens=options["max_sequence_tokens"],
        max_running=options["max_running"],
        max_step_tokens=options["max_step_tokens"],
        kv_bytes=None if options["kv_gib"] is None else int(options["kv_gib"] * _GIB),
        host_memory_bytes=usable_memory_bytes() // options["replicas"],
        prefix_caching=not options["no_prefix_caching"],
        num_draft_tokens=options["draft_tokens"],
        policy=options["policy"],
        tp=options["tp"],
        processes=options["processes"],
    )


def _door(options: dict[str, Any]) -> DoorSettings:
    from colossus.serve.settings import DoorSettings, Quota

    quota = Quota(requests_per_minute=options["requests_per_minute"], tokens_per_minute=options["tokens_per_minute"], num_concurrent=options["max_concurrent"])
    return DoorSettings(
        host=options["host"],
        port=options["port"] or None,
        api_keys=options["api_keys"],
        quota=quota,
        max_body_bytes=int(options["max_body_mib"] * _MIB),
        max_connections=options["max_connections"],
        drain_s=options["drain_s"],
        cors_origins=options["cors_origins"],
        otlp_endpoint=options["otlp_endpoint"],
    )


def _routing(options: dict[str, Any]) -> RouterSettings:
    from colossus.serve.settings import RouterSettings

    return RouterSettings(
        num_replicas=options["replicas"],
        max_running=options["max_running"],
        max_waiting=options["max_waiting"],
        max_ttft_s=options["max_ttft_s"],
        request_timeout_s=options["request_timeout_s"],
    )
