"""What the page at ``/`` shows of the engine, as JSON: now, the last minute, and second by second."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from colossus.serve.backend import EngineInfo, Unavailable
from colossus.serve.measures import HISTORY_S, WINDOW_S, Measures, Second, Spread, percentiles
from colossus.serve.replicas import Fleet, Replica, totals
from colossus.serve.request import EngineStats
from colossus.serve.router import Router

_RATE_S = 5  # over which tokens per second are taken: shorter jumps, longer lags


class Summary:
    """Reads the router, the fleet and the measures."""

    def __init__(self, model_name: str, fleet: Fleet, router: Router, measures: Measures) -> None:
        self._model = model_name
        self._fleet = fleet
        self._router = router
        self._measures = measures
        self._past: dict[int, dict[str, Any]] = {}

    def tick(self) -> None:
        """Notes the load of this second, for the history."""
        running, waiting, used = self._load()
        self._measures.note_load(running, waiting, used)

    def data(self) -> dict[str, Any]:
        """The JSON of GET /stats. Fractions are of 1; percentiles are None where nothing happened in the last minute."""
        running, waiting, used = self._load()
        measures, last = self._measures, self._measures.seconds(WINDOW_S)
        recent = self._measures.seconds(_RATE_S + 1)[:-1] or last
        return {
            "model": self._model,
            "time_s": time.time(),
            "uptime_s": time.monotonic() - measures.started_s,
            "ready": self._router.is_ready,
            "draining": self._router.is_closed,
            "running": running,
            "waiting": waiting,
            "in_flight": self._router.num_requests,
            "outstanding_tokens": self._router.num_outstanding_tokens,
            "output_tokens_per_s": sum(second.num_output_tokens for second in recent) / len(recent),
            "prompt_tokens_per_s": sum(second.num_prompt_tokens for second in recent) / len(recent),
            "kv_used_fraction": used,
            "prefix_hit_fraction": self._hit_fraction(),
            "draft_accepted_fraction": self._accepted_fraction(),
            "ttft_s": _named([second.first_token for second in last]),
            "itl_s": _named([second.token for second in last]),
            "e2e_s": _named([second.request for second in last]),
            "num_ended": {finish.value: count for finish, count in measures.ended.items()},
            "num_refused": measures.num_refused,
            "num_retries": measures.num_retries,
            "num_output_tokens": measures.num_output_tokens,
            "num_prompt_tokens": measures.num_prompt_tokens,
            "engine": self._info(),
            "replicas": [self._replica(replica) for replica in self._fleet.replicas],
            "history": self._history(),
        }

    def _history(self) -> list[dict[str, Any]]:
        """Seconds that are over; what was said of one before is said again."""
        now, over = time.monotonic(), self._measures.seconds(HISTORY_S + 1)[:-1]
        known, self._past = self._past, {}
        for second in over:
            self._past[second.time_s] = known.get(second.time_s) or _second(second)
        return [{"age_s": now - time_s} | data for time_s, data in self._past.items()]

    def _stats(self) -> list[EngineStats]:
        return [replica.stats for replica in self._fleet.replicas if replica.stats is not None]

    def _load(self) -> tuple[int, int, float]:
        stats = self._stats()
        used = sum(one.num_used_pages for one in stats) / max(1, sum(one.num_pages for one in stats))
        return sum(one.num_running for one in stats), sum(one.num_waiting for one in stats) + self._router.num_parked, used

    def _total(self, name: str) -> float:
        return sum(totals(replica)[name] for replica in self._fleet.replicas)

    def _hit_fraction(self) -> float | None:
        cached, computed = self._total("num_cached_tokens"), self._total("num_prompt_tokens")
        return cached / (cached + computed) if cached + computed else None

    def _accepted_fraction(self) -> float | None:
        drafted = self._total("num_drafted_tokens")
        return self._total("num_accepted_tokens") / drafted if drafted else None

    def _info(self) -> dict[str, Any] | None:
        try:
            info: EngineInfo = self._router.info
        except Unavailable:
            return None
        return asdict(info)

    def _replica(self, replica: Replica) -> dict[str, Any]:
        stats = replica.stats
        return {
            "index": replica.index,
            "state": replica.state.value,
            "text": replica.text,
            "pid": replica.process.pid if replica.process is not None else None,
            "generation": replica.generation,
            "num_losses": replica.num_losses,
            "running": stats.num_running if stats is not None else 0,
            "waiting": stats.num_waiting if stats is not None else 0,
            "kv_used_fraction": stats.num_used_pages / max(1, stats.num_pages) if stats is not None else 0.0,
            "num_steps": stats.num_steps if stats is not None else 0,
            "num_compilations": stats.num_compilations if stats is not None else 0,
            "outstanding_tokens": self._router.outstanding_tokens(replica),
        }


def _named(spreads: list[Spread]) -> dict[str, float | None]:
    return dict(zip(("p50", "p90", "p99"), percentiles(spreads) or (None, None, None), strict=True))


def _median(spread: Spread) -> float | None:
    found = percentiles([spread], (0.5,))
    return found[0] if found else None


def _second(second: Second) -> dict[str, Any]:
    running, waiting, used = second.load or (None, None, None)
    return {
        "running": running,
        "waiting": waiting,
        "kv_used_fraction": used,
        "output_tokens_per_s": second.num_output_tokens,
        "prompt_tokens_per_s": second.num_prompt_tokens,
        "num_ended": second.num_ended,
        "num_refused": second.num_refused,
        "ttft_p50_s": _median(second.first_token),
        "itl_p50_s": _median(second.token),
    }
