"""The page for people at `/`: files that are sent as they are. What it shows comes from the API.

Everything that the page needs is in `memserve/api/http/static/`. A browser is told to load nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as Path

SCRIPTS = ("page", "gateway", "ask", "status", "requests", "receipt", "draw")
FILES = {
    "/": ("index.html", "text/html"),
    "/page/page.css": ("page.css", "text/css"),
    **{f"/page/{name}.js": (f"{name}.js", "text/javascript") for name in SCRIPTS},
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""By path: a file of the package, and what it is."""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Asked for again each time, so that a page never meets the API of another version.
    "cache-control": "no-cache",
}


def page_routes() -> list[Path]:
    """They need no key: the files say nothing of a tenant or of this gateway."""
    return [Path(path, _sender(name, kind)) for path, (name, kind) in FILES.items()]


def _sender(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = files("memserve.api.http").joinpath("static", name).read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**HEADERS, "etag": tag}

    async def send(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=kind)

    return send
