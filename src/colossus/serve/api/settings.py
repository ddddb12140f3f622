"""What the API allows, and how it learns whose a request is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from starlette.requests import Request


@dataclass(frozen=True, kw_only=True)
class ApiSettings:
    """Limits of the API.

    :param model_name: under which the model is served; None takes the model's own.
    :param max_choices: answers that one body may ask for, all its prompts together.
    :param max_inputs: texts that one body may want embedded.
    :param max_body_bytes: of one body.
    """

    model_name: str | None = None
    max_choices: int = 128
    max_inputs: int = 2048
    max_body_bytes: int = 16 * 2**20
    created_s: int = field(default_factory=lambda: int(time.time()))


def owner_of(request: Request) -> str:
    """The API key's name, which the door's key check leaves in ``scope["state"]["owner"]``."""
    return str(request.scope.get("state", {}).get("owner") or "")
