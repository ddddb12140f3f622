"""POST /v1/embeddings: texts to vectors of length 1, each the mean of the model's last hidden states."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from colossus.serve.api.body import read_body
from colossus.serve.api.completions import Prompt, encode_prompts, num_texts
from colossus.serve.api.errors import ApiError, to_json
from colossus.serve.api.fields import Body, refused
from colossus.serve.api.generation import last_outputs
from colossus.serve.api.sampling import check_tokens, room
from colossus.serve.api.sending import WholeAnswer
from colossus.serve.api.service import Asked, Service
from colossus.serve.request import Request, Sampling


class EmbeddingBody(Body):
    model: str | None = None
    input: Prompt
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None
    dimensions: Annotated[None, refused("is not offered: the model was not trained for shorter vectors")] = None


class EmbeddingsEndpoint:
    """The path's handler."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def handle(self, request: HttpRequest) -> Response:
        body = await read_body(request, EmbeddingBody, max_bytes=self._service.settings.max_body_bytes)
        requests = await self._requests(body, Asked.of(request, "embd-"))
        return WholeAnswer(lambda: self._complete(body, requests))

    async def _requests(self, body: EmbeddingBody, asked: Asked) -> list[Request]:
        service = self._service
        service.check_model(body.model)
        bounds = service.bounds
        if (num_inputs := num_texts(body.input)) > service.settings.max_inputs:
            raise ApiError(f"{num_inputs} inputs are more than the {service.settings.max_inputs} that one request may have", param="input")
        prompts = await encode_prompts(service, body.input, add_special_tokens=True, param="input")
        for prompt in prompts:
            check_tokens(prompt, bounds, "input")
            room(len(prompt), 1, bounds, param="input")
        return [
            Request(id=f"{asked.id}-{place}", prompt=tuple(prompt), sampling=Sampling(max_tokens=1), owner=asked.owner, arrival_s=asked.arrival_s, embed=True)
            for place, prompt in enumerate(prompts)
        ]

    async def _complete(self, body: EmbeddingBody, requests: list[Request]) -> bytes:
        outputs = await last_outputs(self._service.backend, requests)
        num_tokens = sum(len(request.prompt) for request in requests)
        entries = [
            {"object": "embedding", "index": index, "embedding": _written(output.embedding or (), body.encoding_format)} for index, output in enumerate(outputs)
        ]
        usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        return to_json({"object": "list", "data": entries, "model": self._service.model_name, "usage": usage})


def _written(vector: Sequence[float], form: str | None) -> Any:
    """As numbers, or as little-endian float32 in base64."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if form == "base64" else list(vector)
