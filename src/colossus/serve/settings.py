"""What the door is told at its start, and how an engine's options travel to its process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from colossus.serve.options import CachePrecision, EngineOptions, WeightPrecision


@dataclass(frozen=True, kw_only=True)
class RouterSettings:
    """Limits of the router and patience with engines.

    :param max_waiting: requests beyond those that the engines run at once; more are refused with 429.
    :param max_ttft_s: a request that would wait longer for its first token is refused with 429; None takes all that the queue holds.
    :param request_timeout_s: from arrival to the last token.
    :param hang_s: an engine that has work and says nothing for so long is taken for hung, and killed.
    :param start_silence_s: the same for one that starts; compiling says little.
    """

    num_replicas: int = 1
    max_running: int = 64
    max_waiting: int = 512
    max_ttft_s: float | None = None
    request_timeout_s: float = 600.0
    hang_s: float = 30.0
    start_silence_s: float = 900.0


@dataclass(frozen=True, kw_only=True)
class Quota:
    """What each API key may use, or everybody together where there are no keys; None is no limit."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    num_concurrent: int | None = None


@dataclass(frozen=True, kw_only=True)
class DoorSettings:
    """The HTTP side.

    :param port: None takes a free one.
    :param api_keys: file of ``name sha256hex`` lines; None asks for no key.
    :param max_held_bytes: of all bodies together, those that are still coming included.
    :param max_connections: open at once; one more is told 503 and closed.
    :param stall_timeout_s: a client that takes nothing of what was sent to it for so long is cut.
    :param drain_s: how long running requests may go on after the first SIGTERM.
    :param otlp_endpoint: where traces go (OTLP over HTTP), e.g. http://127.0.0.1:4318/v1/traces; None makes none.
    :param request_log: a line of JSON for each request; None writes none.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    api_keys: Path | None = None
    quota: Quota = Quota()
    max_body_bytes: int = 8 << 20
    max_held_bytes: int = 512 << 20
    max_connections: int = 4096
    header_timeout_s: float = 20.0
    body_timeout_s: float = 60.0
    keep_alive_s: float = 75.0
    stall_timeout_s: float = 60.0
    drain_s: float = 30.0
    cors_origins: tuple[str, ...] = ()
    otlp_endpoint: str | None = None
    request_log: Path | None = None


def options_to_json(options: EngineOptions) -> str:
    """Engine options as a worker's command line takes them."""
    return json.dumps(asdict(options) | {"model": str(options.model)})


def options_from_json(text: str) -> EngineOptions:
    """The other way."""
    data: dict[str, Any] = json.loads(text)
    kinds = {"model": Path(data["model"]), "weights": WeightPrecision(data["weights"]), "cache": CachePrecision(data["cache"])}
    return EngineOptions(**(data | kinds))
