"""The server's page: three static files, and the headers under which a browser runs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import NamedTuple

_POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",  # what would turn a text into markup raises instead
    "trusted-types 'none'",
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "; ".join(_POLICY),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
"""For every file of the page."""


class PageFile(NamedTuple):
    """One file as it is sent."""

    body: bytes
    media_type: str


def _asset(*names: str) -> bytes:
    return b"".join(resources.files("rankwright").joinpath("assets", name).read_bytes() for name in names)


FILES: Mapping[str, PageFile] = {
    "/": PageFile(_asset("page/index.html"), "text/html; charset=utf-8"),
    # The look of all pages, then what this one has of its own.
    "/page.css": PageFile(_asset("report.css", "page/page.css"), "text/css; charset=utf-8"),
    "/page.js": PageFile(_asset("page/page.js"), "text/javascript; charset=utf-8"),
}
"""Path -> file. They say nothing of the models, so they need no key."""
