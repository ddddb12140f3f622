"""What was seen of one request."""

from __future__ import annotations

from dataclasses import dataclass, field

from colossus.serve.load.workload import Ask


@dataclass(slots=True)
class Sample:
    """Times are seconds of the client's clock after the test's start.

    :param arrival_s: when it was meant to be sent; latencies count from here, so that a stalled server or client is not forgiven.
    :param texts_s: when each event with text came.
    :param error: its kind (``429``, ``timeout``, ...), None where it was answered.
    """

    ask: Ask
    arrival_s: float
    sent_s: float
    end_s: float = 0.0
    texts_s: list[float] = field(default_factory=list)
    num_prompt_tokens: int | None = None
    num_cached_tokens: int = 0
    num_output_tokens: int | None = None
    finish: str | None = None
    error: str | None = None
    detail: str = ""

    @property
    def tokens(self) -> int:
        """By the server's count, else one for each event with text."""
        return len(self.texts_s) if self.num_output_tokens is None else self.num_output_tokens

    @property
    def ttft_s(self) -> float:
        return (self.texts_s[0] if self.texts_s else self.end_s) - self.arrival_s

    @property
    def e2e_s(self) -> float:
        return self.end_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        return (self.e2e_s - self.ttft_s) / (self.tokens - 1) if self.tokens > 1 else None
