"""Tokens used, as OpenAI counts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from colossus.serve.api.generation import Task, Whole


class Usage:
    """Of one HTTP request: each prompt once, however many answers it has; all answers."""

    def __init__(self, tasks: Sequence[Task], num_choices: int) -> None:
        self.num_prompt_tokens = sum(len(task.request.prompt) for task in tasks[::num_choices])
        self.num_answer_tokens = 0
        self._num_choices = num_choices
        self._num_cached: dict[int, int] = {}

    def add(self, index: int, num_tokens: int, num_cached_tokens: int | None) -> None:
        """More of answer ``index``. Of n answers to a prompt, the first tells what was cached before they came."""
        self.num_answer_tokens += num_tokens
        if num_cached_tokens is not None and index % self._num_choices == 0:
            self._num_cached[index] = num_cached_tokens

    def add_all(self, wholes: Sequence[Whole]) -> None:
        for index, done in enumerate(wholes):
            self.add(index, done.num_tokens, done.num_cached_tokens)

    @property
    def num_cached_tokens(self) -> int:
        return sum(self._num_cached.values())

    def to_data(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_answer_tokens,
            "total_tokens": self.num_prompt_tokens + self.num_answer_tokens,
            "prompt_tokens_details": {"cached_tokens": self.num_cached_tokens},
        }
