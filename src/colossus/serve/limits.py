"""How much each key may use: requests and tokens a minute, and requests at once."""

from __future__ import annotations

import time
from collections.abc import Callable

from colossus.serve.settings import Quota
from colossus.spec.errors import ColossusError

_MINUTE_S = 60.0
_SOON_S = 1.0


class LimitError(ColossusError):
    """An owner's quota is used up for now; come back after ``retry_after_s``."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Bucket:
    """A token bucket: fills at ``per_minute``, holds at most a minute's worth. It may go into debt, where the price is known only afterwards."""

    def __init__(self, per_minute: float, now: Callable[[], float]) -> None:
        self._per_s = per_minute / _MINUTE_S
        self._most = max(1.0, per_minute)
        self._now = now
        self._level = self._most
        self._seen_s = now()

    def wait_s(self, least: float = 1.0) -> float:
        """Until it holds ``least``; 0 where it does."""
        self._fill()
        return max(0.0, (min(least, self._most) - self._level) / self._per_s)

    def take(self, amount: float) -> None:
        self._fill()
        self._level -= amount

    def _fill(self) -> None:
        now = self._now()
        self._level = min(self._most, self._level + (now - self._seen_s) * self._per_s)
        self._seen_s = now


class Owner:
    """One key's use; an ``Account`` for its calls."""

    def __init__(self, quota: Quota, now: Callable[[], float]) -> None:
        self._quota = quota
        self._requests = None if quota.requests_per_minute is None else Bucket(quota.requests_per_minute, now)
        self._tokens = None if quota.tokens_per_minute is None else Bucket(quota.tokens_per_minute, now)
        self.num_running = 0

    def enter(self) -> None:
        """A request begins; ``leave`` must follow. Raises LimitError."""
        most = self._quota.num_concurrent
        if most is not None and self.num_running >= most:
            words = "1 request" if self.num_running == 1 else f"{self.num_running} requests"
            raise LimitError(f"this key has {words} under way, the most it may have at once", retry_after_s=_SOON_S)
        if self._requests is not None and (wait_s := self._requests.wait_s()) > 0:
            raise LimitError(f"this key has used its {self._quota.requests_per_minute:g} requests per minute", retry_after_s=wait_s)
        if self._tokens is not None and (wait_s := self._tokens.wait_s()) > 0:
            raise LimitError(f"this key has used its {self._quota.tokens_per_minute:g} tokens per minute", retry_after_s=wait_s)
        if self._requests is not None:
            self._requests.take(1)
        self.num_running += 1

    def leave(self) -> None:
        self.num_running -= 1

    def spend(self, num_tokens: int) -> None:
        if self._tokens is not None:
            self._tokens.take(num_tokens)


class Limits:
    """Owners by name, each with the same quota."""

    def __init__(self, quota: Quota, now: Callable[[], float] = time.monotonic) -> None:
        self._quota = quota
        self._now = now
        self._owners: dict[str, Owner] = {}

    def of(self, name: str) -> Owner:
        """Names come from the key file, so they are few."""
        if name not in self._owners:
            self._owners[name] = Owner(self._quota, self._now)
        return self._owners[name]
