"""Whether a new request is taken, so that those taken still get their first token in time.

The time to first token of a request that comes now is estimated from what waits before it and the speeds measured lately:
``ttft_s = waiting prompt tokens / prompt speed + (wait for a place)``. Where every place is taken, one comes free every
``mean answer tokens / (speed of one answer) / places`` seconds. What is ignored: prefixes that the cache will give for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

_LEAST_RETRY_S = 1.0
_LONGEST_RETRY_S = 120.0


@dataclass(frozen=True, kw_only=True)
class AdmissionState:
    """What a server knows when a request comes. Speeds are None until they are measured.

    :param prompt_tokens: of the new request.
    :param waiting_prompt_tokens: of all that wait or are being read before it.
    :param num_places: requests that can run at once.
    :param num_places_free: of them.
    :param prompt_tokens_per_s: read, all engines together.
    :param answer_tokens_per_s: drawn, all engines together.
    :param mean_answer_tokens: of requests that ended.
    :param max_ttft_s: the objective; None takes everything the queue holds.
    :param max_waiting: length of the queue at most.
    """

    prompt_tokens: int
    waiting_prompt_tokens: int
    num_waiting: int
    num_places: int
    num_places_free: int
    max_waiting: int
    max_ttft_s: float | None = None
    prompt_tokens_per_s: float | None = None
    answer_tokens_per_s: float | None = None
    mean_answer_tokens: float | None = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether it is taken, and why not; then when to come back."""

    admitted: bool
    reason: str
    ttft_s: float | None = None  # as estimated; None before anything was measured
    retry_after_s: float | None = None


def decide(state: AdmissionState) -> Decision:
    """Refuses what would stand in a full queue, or would get its first token too late. An empty server refuses nothing."""
    ttft_s = estimated_ttft_s(state)
    if state.num_waiting >= state.max_waiting and not _idle(state):
        reason = f"{state.num_waiting} requests wait already, {state.max_waiting} at most may"
        return _refused(reason, ttft_s, _place_wait_s(state) or _LEAST_RETRY_S)
    if ttft_s is None or state.max_ttft_s is None or ttft_s <= state.max_ttft_s or _idle(state):
        return Decision(admitted=True, reason="taken", ttft_s=ttft_s)
    reason = f"the first token would come after {ttft_s:.3g} s, the objective is {state.max_ttft_s:.3g} s"
    return _refused(reason, ttft_s, ttft_s - state.max_ttft_s)


def estimated_ttft_s(state: AdmissionState) -> float | None:
    """Of a request that comes now; None before anything was measured."""
    if not state.prompt_tokens_per_s:
        return None
    return (state.waiting_prompt_tokens + state.prompt_tokens) / state.prompt_tokens_per_s + _place_wait_s(state)


def _place_wait_s(state: AdmissionState) -> float:
    """Until a place is free for the request: of those before it each needs one too."""
    num_needed = state.num_waiting + 1 - state.num_places_free
    if num_needed <= 0 or not state.answer_tokens_per_s or state.mean_answer_tokens is None:
        return 0.0
    return num_needed * state.mean_answer_tokens / state.answer_tokens_per_s


def _idle(state: AdmissionState) -> bool:
    return state.num_waiting == 0 and state.num_places_free == state.num_places


def _refused(reason: str, ttft_s: float | None, wait_s: float) -> Decision:
    retry_after_s = min(max(wait_s, _LEAST_RETRY_S), _LONGEST_RETRY_S)
    return Decision(admitted=False, reason=reason, ttft_s=ttft_s, retry_after_s=retry_after_s)
