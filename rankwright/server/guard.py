"""What stands before every route: names of hosts, origins, keys; and after it: a line in the log, a count, an answer
where something failed."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from pydantic_core import to_json
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rankwright.server.metrics import Metrics
from rankwright.server.problems import Problem
from rankwright.server.settings import ServerSettings

log = logging.getLogger("rankwright.server")

LEFT = 499
"""The code of a request whose client left before its answer; it exists in log and metrics alone."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SAFE = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


class Guard:
    """Middleware, outermost.

    Args:
        app: what is guarded.
        settings: keys and host names.
        metrics: counts answers.
        probes: need no key, and are answered under any host name: a load balancer asks by address.
        open_paths: need no key.
        routes: known paths, for labels; anything else is "other".
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ServerSettings,
        metrics: Metrics,
        probes: Collection[str],
        open_paths: Collection[str],
        routes: Callable[[], Collection[str]],
    ) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._probes, self._routes = frozenset(probes), routes
        self._open = self._probes | frozenset(open_paths)
        self._keys = [key.encode() for key in settings.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, begun, status = Headers(scope=scope), time.monotonic(), 0
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._answer(scope, headers, receive, noted)
        except ClientDisconnect:
            status = LEFT
        except asyncio.CancelledError:  # the server's patience with its last requests is over
            if not status:
                await problem_response(scope, Problem(503, "The server is ending.", retry_after=1))(
                    scope, receive, noted
                )
        except Exception:
            log.exception("request %s failed", request_id)
            if not status:
                failure = Problem(500, "The server failed on this request.")
                await problem_response(scope, failure)(scope, receive, noted)
        finally:
            self._note(scope, status or LEFT, time.monotonic() - begun, request_id)

    async def _answer(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        try:
            self._check(scope, headers)
        except Problem as problem:
            await problem_response(scope, problem)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        if scope["path"] not in self._probes and not self._settings.is_host_allowed(headers.get("host", "")):
            raise Problem(421, "This server is not known under that host name; see --allowed-host.")
        origin = headers.get("origin")
        if origin is not None and not self._is_own(origin, headers):
            raise Problem(403, "Pages of other sites may not use this server.")
        if self._keys and scope["path"] not in self._open and not self._has_key(headers):
            raise Problem(
                401,
                "There is no valid key in the header Authorization; wanted `Authorization: Bearer KEY`.",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _is_own(self, origin: str, headers: Headers) -> bool:
        try:
            return urlsplit(origin).netloc == headers.get("host")
        except ValueError:  # no address
            return False

    def _has_key(self, headers: Headers) -> bool:
        """Every key is compared, in a time that does not tell how much of one was right."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        sent = given.strip().encode("latin-1")
        return sum([secrets.compare_digest(sent, key) for key in self._keys]) > 0 and scheme.lower() == "bearer"

    def _note(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        route = scope["path"] if scope["path"] in self._routes() else "other"
        self._metrics.answered(route, status, seconds)
        level = logging.DEBUG if scope["method"] == "GET" and status < 400 else logging.INFO  # probes come every second
        log.log(level, "%s %s %d %.0f ms %s", scope["method"], route, status, 1000 * seconds, request_id)


def problem_response(scope: Scope, problem: Problem, *, tei: bool = False) -> Response:
    """A problem as an answer."""
    body = problem.body(scope["state"]["request_id"], tei=tei)
    return json_response(body, problem.status, problem.headers)


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON, which nobody stores or takes for something else."""
    return Response(to_json(content), status, {**_SAFE, **(headers or {})}, "application/json")
