"""A real Chromium for the tests of pages, and a server that plays `rankwright serve` for one of them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from rankwright.server.page import FILES, HEADERS
from tests.cli_kit import body_of, reply, serving

NAMES = ("chromium", "chromium-browser", "google-chrome")
NO_BROWSER = "there is no Chromium here; make browser installs one"
WIDE, PHONE = {"width": 1200, "height": 900}, {"width": 360, "height": 740}


def browser_path() -> str | None:
    """The first Chromium on the path."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def absent(environment: Mapping[str, str] = os.environ) -> None:
    """Skips the test, or fails it where continuous integration has promised a browser."""
    if environment.get("CI") or environment.get("RANKWRIGHT_CI"):
        pytest.fail(f"{NO_BROWSER}, and continuous integration must not pass without", pytrace=False)
    pytest.skip(NO_BROWSER)


class Window:
    """A page in a context of its own (storage, scheme, size), with all that went wrong in it."""

    def __init__(self, context: Any) -> None:
        self.page = context.new_page()
        self.page.set_default_timeout(15_000)
        self.requests: list[str] = []
        self.problems: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on("console", self._hear)
        self.page.on("dialog", self._refuse)

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"{message.type}: {message.text}")

    def _refuse(self, dialog: Any) -> None:
        self.problems.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def overflow(self) -> int:
        """Pixels that would have to be scrolled sideways."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def structure(self) -> list[str]:
        """Every element with the names of its attributes, in order."""
        return self.page.evaluate(
            "[...document.querySelectorAll('*')].map((e) => [e.tagName, ...e.getAttributeNames().sort()].join(' '))"
        )

    def background(self) -> tuple[int, ...]:
        """Red, green and blue below the text."""
        written = self.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        return tuple(int(part) for part in written.removeprefix("rgb(").removesuffix(")").split(","))

    def focused(self) -> str:
        """What the keyboard would reach: id, else name and value, else the words of the element."""
        return self.page.evaluate(
            "(({id, name, value, textContent}) => id || (name ? `${name}=${value}` : textContent))"
            "(document.activeElement)"
        )

    def tab_to(self, wanted: str, *, most: int = 60) -> None:
        """Presses Tab until this has the focus."""
        for _ in range(most):
            self.page.keyboard.press("Tab")
            if self.focused() == wanted:
                return
        raise AssertionError(f"{most} times Tab do not reach '{wanted}'")


@contextmanager
def chromium() -> Iterator[Callable[..., Window]]:
    """A function that opens windows of one browser process; takes `size`, `scheme` and `javascript`."""
    path = browser_path()
    if path is None:
        absent()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path)

        def open_window(*, size: Any = WIDE, scheme: Any = "light", javascript: bool = True) -> Window:
            return Window(browser.new_context(viewport=size, color_scheme=scheme, java_script_enabled=javascript))

        try:
            yield open_window
        finally:
            browser.close()


@dataclass
class StandIn:
    """What a server of the page says."""

    key: str | None = "right-key"
    models: Sequence[str] = ("straight", "reversed")
    reader: Mapping[str, Any] | None = field(default_factory=lambda: {"name": "stub reader", "top_k": 2})
    answer: str | None = "an answer"
    """None: the read fails."""
    refusal: tuple[int, str, Mapping[str, str]] | None = None
    """Status, message and headers with which /v1/rerank refuses."""
    truncated: Sequence[int] = ()
    """Passages, by number, that were cut."""
    documents: int = 100
    asked: list[Mapping[str, Any]] = field(default_factory=list)
    """Bodies of /v1/rerank and /answer."""

    def scores(self, model: str, count: int) -> list[float]:
        """Of the passages in order: falling by 1 from 2 on, or for the second model rising to it."""
        falling = [2.0 - i for i in range(count)]
        return falling if model == self.models[0] else falling[::-1]

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        """One request."""
        if request.path in FILES:
            body, media_type = FILES[request.path]
            reply(request, body, 200, **{"content-type": media_type, **HEADERS})
        elif self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            body_of(request)
            self._refuse(request, 401, "There is no valid key.", {})
        elif request.path == "/info":
            models = [{"name": name, "backend": "stub", "max_length": 128} for name in self.models]
            limits = {"documents": self.documents}
            reply(request, {"version": "0", "models": models, "reader": self.reader, "limits": limits})
        else:
            self._work(request)

    def _work(self, request: BaseHTTPRequestHandler) -> None:
        asked = json.loads(body_of(request))
        self.asked.append(asked)
        if self.refusal:
            self._refuse(request, *self.refusal)
        elif request.path == "/v1/rerank":
            reply(request, self._ranked(asked))
        elif request.path == "/answer" and self.answer is not None:
            reply(request, {"answer": self.answer, "reader": "stub reader"})
        else:
            self._refuse(request, 502, "The reader failed: timeout.", {})

    def _ranked(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        scores = self.scores(asked["model"], len(asked["documents"]))
        results = [
            {
                "index": index,
                "relevance_score": 1 / (1 + 2.718281828459045**-score),
                "score_raw": score,
                "truncated": index in self.truncated,
                "tokens": 7,
            }
            for index, score in sorted(enumerate(scores), key=lambda pair: -pair[1])
        ]
        timing = {"queue_ms": 0.25, "score_ms": 12.0}
        return {"model": asked["model"], "results": results, "usage": {"total_tokens": 70}, "timing": timing}

    def _refuse(self, request: BaseHTTPRequestHandler, status: int, message: str, headers: Mapping[str, str]) -> None:
        error = {"type": "stub", "message": message, "param": None, "request_id": "request-7"}
        reply(request, {"error": error}, status, **headers)


@contextmanager
def standing_in(**said: Any) -> Iterator[tuple[str, StandIn]]:
    """The address of such a server, and the server to change what it says."""
    server = StandIn(**said)
    with serving(server.handle) as address:
        yield f"{address}/", server
