from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import openai
import pytest

from tests.serve.api.doubles import Scripted, TinyModel, app, serving


@dataclass
class World:
    """A served double: change ``backend`` to change what it says."""

    url: str
    backend: Scripted
    model: TinyModel
    client: openai.OpenAI


@pytest.fixture(scope="session")
def model() -> TinyModel:
    return TinyModel()


@pytest.fixture(scope="session")
def _served(model: TinyModel) -> Iterator[World]:
    backend = Scripted(model.tokenizer)
    with serving(app(backend, model)) as url:
        yield World(url, backend, model, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0))


@pytest.fixture
def world(_served: World) -> World:
    fresh = Scripted(_served.model.tokenizer)
    vars(_served.backend).update(vars(fresh))
    return _served
