"""The page at ``/``: a chat and a live view of the engine, as static files that need nothing from outside."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

_KINDS = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
FILES = ("page.css", "page.js", "chat.js", "engine.js", "charts.js", "markdown.js", "icon.svg")
# No inline script or style, nothing from elsewhere, no frame around it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@cache
def content(name: str) -> tuple[bytes, str, str]:
    """(bytes, media type, entity tag) of one file."""
    data = files(__name__).joinpath(name).read_bytes()
    return data, _KINDS[name.rpartition(".")[2]], f'"{hashlib.sha256(data).hexdigest()[:16]}"'


def routes() -> list[Route]:
    """``/`` and ``/page/NAME``, one each, to stand beside the API; they ask for no key, for they tell nothing."""
    from starlette.routing import Route

    places = {"/": "index.html"} | {f"/page/{name}": name for name in FILES}
    return [Route(path, _endpoint(name), methods=["GET"], include_in_schema=False) for path, name in places.items()]


def _endpoint(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return _answer(request, name)

    return answer


def _answer(request: Request, name: str) -> Response:
    from starlette.responses import Response

    data, kind, tag = content(name)
    headers = HEADERS | {"ETag": tag}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=kind, headers=headers)
