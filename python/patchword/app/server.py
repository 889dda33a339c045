# SPDX-License-Identifier: Apache-2.0
"""The web server of the page: routes, and the guards that every request passes first."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from patchword.app.limits import Limits
from patchword.app.workbench import BusyError, ForgottenError, Workbench
from patchword.errors import ConfigError, PatchwordError

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.datastructures import FormData, UploadFile
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
except ModuleNotFoundError as error:
    raise ConfigError(
        f"app: the package {error.name!r} must be installed. "
        "pip install 'patchword[app]' brings it."
    ) from error

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# The only files that can be fetched, by their whole path: no name of a request reaches the disk.
_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_FORM_FIELDS = 8


def create_app(
    workbench: Workbench | None = None, *, allowed_hosts: tuple[str, ...] = ("*",)
) -> Starlette:
    """The page as an ASGI application.

    Args:
        workbench: What computes; a new one by default.
        allowed_hosts: Values of the ``Host`` header that are answered. On a loopback address name
            it here, else a foreign page could reach the server through a name of its own.
    """
    bench = workbench if workbench is not None else Workbench()

    async def locate(request: Request) -> Response:
        async with _form(request, bench.limits) as form:
            picture = await _file(form, "picture")
            words, kind = _text(form, "words"), _text(form, "kind")
            threshold = _number(form, "threshold")
        return JSONResponse(await run_in_threadpool(bench.locate, picture, words, kind, threshold))

    async def relabel(request: Request) -> Response:
        async with _form(request, bench.limits) as form:
            key, threshold = _text(form, "key"), _number(form, "threshold")
        return JSONResponse(await run_in_threadpool(bench.relabel, key, threshold))

    async def match(request: Request) -> Response:
        async with _form(request, bench.limits) as form:
            pictures = [await _file(form, f"picture{i}") for i in (0, 1)]
        return JSONResponse(await run_in_threadpool(bench.match, *pictures))

    return Starlette(
        routes=[
            *(Route(path, _static, methods=["GET"]) for path in _PAGE),
            Route("/api/locate", locate, methods=["POST"]),
            Route("/api/relabel", relabel, methods=["POST"]),
            Route("/api/match", match, methods=["POST"]),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts)),
            Middleware(_Guards, max_bytes=bench.limits.max_bytes),
        ],
        exception_handlers={
            PatchwordError: _answer(400),
            BusyError: _answer(503),
            ForgottenError: _answer(410),
            HTTPException: _http_error,
        },
    )


def serve(*, host: str = "127.0.0.1", port: int = 7860, limits: Limits | None = None) -> None:
    """Serve the page until interrupted.

    Args:
        host: Address to listen on; the default can be reached from this machine only.
        port: TCP port; 0 takes a free one.
        limits: Bounds of one request.
    """
    allowed: tuple[str, ...] = ("*",)
    if is_loopback(host):
        allowed = ("127.0.0.1", "localhost", "::1", "[::1]", host)
    else:
        logger.warning(
            "app: %s can be reached from other machines, and whoever reaches it can use it.", host
        )
    app = create_app(Workbench(limits), allowed_hosts=allowed)
    uvicorn.run(app, host=host, port=port, log_level="warning", server_header=False)


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class _Guards:
    """Refuses bodies over the limit and posts from foreign pages; adds the security headers."""

    def __init__(self, app: Any, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        seen = 0

        async def counted() -> MutableMapping[str, Any]:
            # A body may come in pieces with no length announced, so the pieces are counted.
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_bytes:
                raise HTTPException(413, self._too_large())
            return message

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    *((k.lower().encode(), v.encode()) for k, v in _HEADERS.items()),
                ]
            await send(message)

        if refusal is not None:
            await refusal(scope, receive, guarded)
            return
        await self.app(scope, counted, guarded)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> Response | None:
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.max_bytes:
            return JSONResponse({"error": self._too_large()}, 413)
        origin = headers.get(b"origin")
        if scope["method"] == "POST" and origin is not None:
            host = headers.get(b"host", b"").decode("latin-1")
            if urlsplit(origin.decode("latin-1")).netloc != host:
                return JSONResponse({"error": "app: only this page itself may post here."}, 403)
        return None

    def _too_large(self) -> str:
        megabytes = self.max_bytes / 1024**2
        return f"app: a request must have at most {megabytes:g} MiB. Send a smaller picture."


async def _static(request: Request) -> Response:
    name, kind = _PAGE[request.url.path]
    data = resources.files("patchword.app").joinpath("page", name).read_bytes()
    return Response(data, headers={"content-type": kind})


def _form(request: Request, limits: Limits) -> Any:
    return request.form(
        max_files=2, max_fields=_FORM_FIELDS, max_part_size=limits.max_words * limits.max_phrase * 4
    )


async def _file(form: FormData, name: str) -> bytes:
    value = form.get(name)
    if not isinstance(value, UploadFile):
        raise ConfigError(f"app: {name} must be a picture file, got none.")
    return await value.read()


def _text(form: FormData, name: str) -> str:
    value = form.get(name)
    if not isinstance(value, str):
        raise ConfigError(f"app: {name} must be given as text, got none.")
    return value


def _number(form: FormData, name: str) -> float:
    text = _text(form, name)
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"app: {name} must be a number, got {text[:20]!r}.") from None


def _answer(status: int) -> Callable[[Request, Exception], Response]:
    def respond(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, status)

    return respond


def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)
