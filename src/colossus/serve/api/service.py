"""What every path of the API works with: the backend, the model's text side, the limits; bodies to tasks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from starlette.requests import Request as HttpRequest

from colossus.serve.api.errors import ApiError, no_such_model
from colossus.serve.api.fields import Drawing
from colossus.serve.api.generation import Reader, Task
from colossus.serve.api.sampling import Bounds, of_choice
from colossus.serve.api.settings import ApiSettings, owner_of
from colossus.serve.api.text import Text, TextModel
from colossus.serve.backend import Backend
from colossus.serve.detokenize import Stops
from colossus.serve.grammar import Grammars
from colossus.serve.request import Request, Sampling


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One HTTP request that asks for answers: its id (``chatcmpl-...``), whose it is, when it came."""

    id: str
    owner: str
    arrival_s: float

    @classmethod
    def of(cls, request: HttpRequest, prefix: str) -> Asked:
        return cls(id=f"{prefix}{secrets.token_hex(12)}", owner=owner_of(request), arrival_s=time.time())

    @property
    def created_s(self) -> int:
        return int(self.arrival_s)


class Service:
    """One served model behind its API."""

    def __init__(self, backend: Backend, model: TextModel, settings: ApiSettings) -> None:
        self.backend, self.settings = backend, settings
        self.text = Text(model)
        self.grammars = Grammars(model)
        self.model_name = settings.model_name or model.name
        self._end_ids, self._default = model.end_ids, model.default_sampling

    @property
    def bounds(self) -> Bounds:
        """Raises Unavailable while no engine is ready."""
        info = self.backend.info
        return Bounds(max_sequence_tokens=info.max_sequence_tokens, vocab_size=info.vocab_size, end_ids=self._end_ids, default=self._default)

    def check_model(self, name: str | None) -> None:
        """A body may leave the model out; another one's name is refused."""
        if name is not None and name != self.model_name:
            raise no_such_model(name, self.model_name)

    def check_choices(self, body: Drawing, num_prompts: int) -> None:
        """Refuses a body that asks for too many answers."""
        num = body.n or 1
        if num * num_prompts > self.settings.max_choices:
            words = f"{num_prompts} prompts with n = {num} are more than the {self.settings.max_choices} answers that one request may have"
            raise ApiError(words, param="n")

    def tasks(
        self, asked: Asked, body: Drawing, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling], *, show: Collection[int] = (), silent: bool = False
    ) -> list[Task]:
        """n answers to each prompt, in order: n requests for each, alike but for their seeds.

        :param show: special tokens that are written out all the same.
        """
        num = body.n or 1
        self.check_choices(body, len(prompts))
        return [
            self._task(asked, body, prompt, of_choice(sampling, choice), place * num + choice, show=show, silent=silent)
            for place, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True))
            for choice in range(num)
        ]

    def _task(self, asked: Asked, body: Drawing, prompt: Sequence[int], sampling: Sampling, index: int, *, show: Collection[int], silent: bool) -> Task:
        request = Request(
            id=f"{asked.id}-{index}",
            prompt=tuple(prompt),
            sampling=sampling,
            owner=asked.owner,
            priority=body.priority or 0,
            cache_salt=body.cache_salt or "",
            arrival_s=asked.arrival_s,
            shares_prompt=index % (body.n or 1) > 0,
        )
        special = self.text.vocabulary.special
        skip = frozenset() if body.skip_special_tokens is False else special - frozenset(show)
        detokenizer = self.text.vocabulary.detokenizer(prompt, skip=skip)
        stops = Stops(body.stops, keep=bool(body.include_stop_str_in_output)) if body.stops else None
        reader = Reader(detokenizer, stops, request=request, own_stop_ids=frozenset(body.stop_token_ids or ()), silent=silent)
        return Task(index=index, request=request, reader=reader)
