"""From what a step brought to what its requests get."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from colossus.nn.sampling import Logprobs
from colossus.serve.programs import Outputs
from colossus.serve.request import Finish, Output, TokenLogprob
from colossus.serve.schedule import Plan
from colossus.serve.sequence import Sequence
from colossus.serve.shapes import Key


@dataclass(kw_only=True, slots=True)
class Flight:
    """A step on its way: what was asked, and what will come.

    :param num_preemptions: of each sequence when the step began.
    """

    plan: Plan
    key: Key
    outputs: Outputs
    num_preemptions: list[int]
    dispatched_s: float

    def drawn(self) -> list[list[int]]:
        """Tokens of each row, in order; waits for the device. Guesses that were held against them are cut to those that came true."""
        plan, count = self.plan, len(self.plan.slots)
        tokens = np.asarray(self.outputs.tokens)
        if plan.drafts is None:
            columns: list[list[int]] = tokens[: plan.num_steps, :count].T.tolist()
            return columns
        rows = tokens.reshape(self.key.num_rows, self.key.num_outputs)[:count].tolist()
        return [row[: num_true(guess, row) + 1] for guess, row in zip(plan.drafts, rows, strict=True)]


def num_true(guess: list[int], drawn: list[int]) -> int:
    """How many guessed tokens are those that were drawn, up to the first that is not."""
    return next((place for place, token in enumerate(guess) if token != drawn[place]), len(guess))


class LogprobTable:
    """Log-probabilities of a step, on the host."""

    def __init__(self, logprobs: Logprobs) -> None:
        self._own, self._rank, self._ids, self._top = (np.asarray(part) for part in logprobs)

    def entry(self, place: int, token: int, num_top: int) -> TokenLogprob:
        top = zip(self._ids[place, :num_top].tolist(), self._top[place, :num_top].tolist(), strict=True)
        return TokenLogprob(token=token, logprob=float(self._own[place]), rank=int(self._rank[place]), top=tuple(top))


def answer(sequence: Sequence, tokens: list[int], finish: Finish | None, logprobs: tuple[TokenLogprob, ...] | None) -> Output:
    """What is new of a request; on its first output also what is known of its prompt."""
    first, sequence.first_output = sequence.first_output, False
    scored = first and sequence.request.sampling.num_prompt_logprobs is not None
    return Output(
        id=sequence.request.id,
        tokens=tuple(tokens),
        logprobs=logprobs,
        prompt_logprobs=tuple(sequence.scores) if scored else None,
        num_cached_tokens=sequence.num_cached if first else None,
        finish=finish,
    )


def embedding(sequence: Sequence) -> Output:
    """The mean over the prompt, of length 1."""
    assert sequence.hidden_sum is not None
    length = float(np.linalg.norm(sequence.hidden_sum)) or 1.0
    vector = tuple((sequence.hidden_sum / length).tolist())
    return Output(id=sequence.request.id, embedding=vector, num_cached_tokens=0, finish=Finish.STOP)


def failure(request_id: str, words: str) -> Output:
    return Output(id=request_id, finish=Finish.ERROR, error=words)
