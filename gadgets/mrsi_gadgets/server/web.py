"""The server seen from outside: /health, /metrics for Prometheus, and a live page fed by server-sent events.

It runs in a thread of the supervisor, on a port of its own on loopback, answers only requests that name this machine,
and changes nothing: whoever reads it cannot start, stop or alter a scan.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import threading
from collections.abc import AsyncIterator
from importlib import resources

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mrsi_gadgets.errors import ConfigError
from mrsi_gadgets.server.monitor import Monitor

log = logging.getLogger("mrsi.web")
USUAL_PORT = 9080
_HOSTS = ["127.0.0.1", "localhost", "[::1]"]
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_HEARTBEAT_S = 5.0
_POLL_S = 0.25
_STOP_S = 5.0
_NUMBER = re.compile(r"[0-9]{1,18}")
_READERS = 20
"""Pages that may be open at once."""
_CONNECTIONS = 64
"""Connections that may be open at once: they share descriptors with those of scanners."""
_FIRST_REQUEST_S = 10.0
"""A connection that has asked nothing for so long is closed."""


def application(monitor: Monitor) -> Starlette:
    """Return the web application of a monitor."""
    page = resources.files("mrsi_gadgets.server").joinpath("page.html").read_text(encoding="utf-8")
    readers = asyncio.Semaphore(_READERS)

    def index(request: Request) -> Response:
        return HTMLResponse(page, headers=_HEADERS)

    def health(request: Request) -> Response:
        return JSONResponse(monitor.health(), headers=_HEADERS)

    def metrics(request: Request) -> Response:
        return Response(generate_latest(monitor.registry), media_type=CONTENT_TYPE_LATEST)

    def pictures(request: Request) -> Response:
        number = request.path_params["number"]
        found = monitor.pictures(int(number)) if _NUMBER.fullmatch(number) else None
        if found is None:
            return JSONResponse({"error": "this session is not kept"}, status_code=404, headers=_HEADERS)
        return JSONResponse(found, headers=_HEADERS)

    async def events(request: Request) -> Response:
        if readers.locked():
            return JSONResponse({"error": "too many pages are open"}, status_code=503, headers=_HEADERS)
        return StreamingResponse(_events(monitor, request, readers), media_type="text/event-stream", headers=_HEADERS)

    return Starlette(
        routes=[
            Route("/", index),
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/events", events),
            Route("/sessions/{number}", pictures),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=_HOSTS)],
    )


async def _events(monitor: Monitor, request: Request, readers: asyncio.Semaphore) -> AsyncIterator[str]:
    """Yield the sessions that change, as server-sent events; a comment now and then shows that the server lives."""
    if readers.locked():  # several were asked for at once
        return
    async with readers:
        seen, quiet = 0, 0.0
        while not monitor.closed and not await request.is_disconnected():
            version = monitor.changes(seen, 0.0)
            if version > seen:
                for summary in monitor.sessions_changed(seen):
                    yield f"event: session\ndata: {json.dumps(summary, allow_nan=False)}\n\n"
                seen, quiet = version, 0.0
            elif quiet >= _HEARTBEAT_S:
                yield f"event: alive\ndata: {json.dumps(monitor.health())}\n\n"
                quiet = 0.0
            await asyncio.sleep(_POLL_S)
            quiet += _POLL_S


def _protocol() -> type[asyncio.Protocol]:
    """Return uvicorn's protocol with bounds on connections that ask nothing; uvicorn itself waits for ever."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Bounded(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > _CONNECTIONS:
                transport.abort()
            self.loop.call_later(_FIRST_REQUEST_S, self.close_unless_asked)

        def close_unless_asked(self) -> None:
            if self.cycle is None:
                self.transport.abort()

    return Bounded


def is_free(port: int) -> bool:
    """Tell whether a port of this machine can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class WebServer:
    """The application on a port of this machine, in a thread.

    Parameters
    ----------
    monitor
        What is shown.
    port
        Where; 0: any free port.

    Raises
    ------
    ConfigError
        The port is not free.
    """

    def __init__(self, monitor: Monitor, port: int) -> None:
        import uvicorn

        self._monitor = monitor
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind(("127.0.0.1", port))
            self._socket.listen(_READERS)
        except OSError as problem:
            self._socket.close()
            raise ConfigError(
                f"the page cannot be served on port {port} ({problem.strerror or problem}); choose another with "
                "--web-port"
            ) from problem
        self.port = int(self._socket.getsockname()[1])
        config = uvicorn.Config(
            application(monitor), log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=2,
            http=_protocol(),
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        # its signal handlers are for the main thread, which this is not
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="web", daemon=True
        )

    def start(self) -> None:
        """Begin to answer; who asks before the thread has started waits for it."""
        self._thread.start()
        log.info("page, /health and /metrics on http://127.0.0.1:%d", self.port)

    def stop(self) -> None:
        """Stop answering; open pages are told that nothing more comes."""
        self._monitor.close()
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(_STOP_S)
        self._socket.close()
