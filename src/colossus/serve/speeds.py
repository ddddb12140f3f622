"""How fast the engines read prompts and write answers, as the router sees it, and from it whether a new request is taken."""

from __future__ import annotations

from colossus.policy.admission import AdmissionState, Decision, decide
from colossus.serve.measures import Measures
from colossus.serve.settings import RouterSettings

_LEARN = 0.1  # weight of the newest observation
_RECENT_S = 10  # over which the speed of answers is taken
_FIRST_GUESS_TOKENS = 128.0  # length of an answer before one was seen


class Speeds:
    """Learns from requests, and asks ``policy.admission``."""

    def __init__(self, settings: RouterSettings, measures: Measures) -> None:
        self._settings = settings
        self._measures = measures
        self._prompt_tokens_per_s: float | None = None
        self._mean_answer_tokens: float | None = None

    def expected_tokens(self, max_tokens: int) -> int:
        """Of an answer that may have so many."""
        return min(max_tokens, round(self._mean_answer_tokens or _FIRST_GUESS_TOKENS))

    def learn_prompt(self, num_tokens: int, duration_s: float) -> None:
        """An engine with a place free came to a first token after it had read so many tokens of prompts."""
        if duration_s > 0:
            self._prompt_tokens_per_s = _learned(self._prompt_tokens_per_s, num_tokens / duration_s)

    def learn_answer(self, num_tokens: int) -> None:
        """A request ended by itself."""
        self._mean_answer_tokens = _learned(self._mean_answer_tokens, num_tokens)

    def admit(self, num_prompt_tokens: int, *, num_in_flight: int, num_waiting_prompt_tokens: int) -> Decision:
        """Of a new request."""
        settings = self._settings
        num_places = settings.num_replicas * settings.max_running
        seconds = self._measures.seconds(_RECENT_S)
        speed = self._prompt_tokens_per_s
        return decide(
            AdmissionState(
                prompt_tokens=num_prompt_tokens,
                waiting_prompt_tokens=num_waiting_prompt_tokens,
                num_waiting=max(0, num_in_flight - num_places),
                num_places=num_places,
                num_places_free=max(0, num_places - num_in_flight),
                max_waiting=settings.max_waiting,
                max_ttft_s=settings.max_ttft_s,
                prompt_tokens_per_s=None if speed is None else speed * settings.num_replicas,
                answer_tokens_per_s=sum(second.num_output_tokens for second in seconds) / len(seconds),
                mean_answer_tokens=self._mean_answer_tokens,
            )
        )


def _learned(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _LEARN * (value - mean)
