"""From a socket to the end of the process: binding, running, draining, and giving up a scorer that is lost."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from rankwright.engine import Engine
from rankwright.errors import ConfigurationError, UnavailableError
from rankwright.server.protocol import BoundedProtocol
from rankwright.server.settings import ServerSettings

log = logging.getLogger("rankwright.server")

BACKLOG = 2048
KEEP_ALIVE = 75
"""Seconds; longer than the minute for which load balancers keep theirs, or they would send into closed connections."""


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that listens nowhere yet, so that a port in use is known before a model is loaded.

    Raises:
        ConfigurationError: the port is in use, may not be had, or the host is not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio turns Nagle's algorithm off: it would hold every answer back for 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)  # two processes may bind where neither listens yet
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigurationError(_why_not_bound(host, port, error)) from error
    return listener


def _why_not_bound(host: str, port: int, error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return f"Port {port} of {host} is in use; wanted a free one. Give another with --port, or end what uses it."
    if number == errno.EACCES:
        return f"Port {port} may not be used by this user; wanted one from 1024 on. Give another with --port."
    return f"Host {host} with port {port} cannot be served on ({error}); wanted an address of this machine. See --host."


class Server(uvicorn.Server):
    """uvicorn's server, with an eye on the engine."""

    def __init__(self, config: uvicorn.Config, engine: Engine, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.engine, self.on_ready = engine, on_ready
        self.lost, self.told = "", False

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        health = self.engine.health()
        if health.lost and not self.lost:
            self.lost = health.reason
            if self.engine.scorers:  # else run raises why the model could not be opened
                log.error("giving up: %s", health.reason)
            self.engine.drain()
        if health.ready and not self.told:
            self.told = True
            self.on_ready()
        return await super().on_tick(counter) or bool(self.lost)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or Ctrl-C: what was admitted is answered, nothing else is; a second Ctrl-C ends at once."""
        self.engine.drain()
        super().handle_exit(sig, frame)
        self._captured_signals.clear()  # or it would be raised again after a clean end


def run(
    app: FastAPI,
    engine: Engine,
    settings: ServerSettings,
    listener: socket.socket,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Serves until a signal comes or the engine is lost.

    Args:
        app: answers, made by create_app.
        engine: scores; it is started here.
        settings: limits.
        listener: a bound socket.
        on_ready: called once, when the models are open and warm.

    Raises:
        RankwrightError: the model could not be opened; UnavailableError: the engine was lost.
    """
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=max(1, round(settings.drain)),
        timeout_keep_alive=KEEP_ALIVE,
        backlog=BACKLOG,
    )
    server = Server(config, engine, on_ready)
    engine.start()
    server.run([listener])
    ended = engine.close()
    if engine.error is not None and not engine.scorers:
        raise engine.error
    failure = UnavailableError(
        f"Scoring was given up: {server.lost}. Start the server again; if it happens again, look at the log and at the "
        "machine's memory."
    )
    if not ended or app.state.answers.reading:
        _leave(str(failure) if server.lost else "", failure.exit_code if server.lost else 0)
    if server.lost:
        raise failure


def _leave(message: str, code: int) -> None:
    """Ends the process around a thread that still scores, tokenises or reads: Python's own end would wait or crash."""
    if message:
        print(f"rankwright: {message}", file=sys.stderr)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code)


__all__ = ["Server", "bound_socket", "run"]
