"""Text into HTML: the one place where text becomes markup, so the one place to check.

A child of `tag` is escaped unless it is `Html`, and only this package makes `Html`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Html(str):
    """Text that is already HTML. Nothing that came from data may be wrapped in it without `escape`."""


def escape(text: str) -> Html:
    """The text as it may stand between tags and inside quoted attributes.

    Control characters and lone surrogates have no place in HTML; a mark in their stead shows that something was there.
    """
    return Html(html.escape(printable(text), quote=True))


def printable(text: str) -> str:
    """The text with a mark in place of every character that has no place in HTML."""
    return _UNPRINTABLE.sub("\ufffd", text)


def join(parts: Iterable[str]) -> Html:
    """The parts one after the other, escaped where they are plain text."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts))


def tag(name: str, *children: str, **attributes: str | None) -> Html:
    """An element. Children and attribute values are escaped; `class_` becomes class and `data_value` data-value."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def quoted(text: str) -> Html:
    """A word or line that came from data, kept from changing the direction or width of what surrounds it."""
    return tag("bdi", text, class_="data")


def signed(value: float) -> str:
    """A difference with its sign and three decimals."""
    return f"{value:+.3f}".replace("-", "\u2212") if round(value, 3) else "0.000"


def shortened(text: str, characters: int) -> str:
    """The text, cut after at most so many characters: between words, or inside a word that is longer than that."""
    if len(text) <= characters:
        return text
    whole_words = text[: characters + 1].rpartition(" ")[0].rstrip()
    return (whole_words or text[:characters]) + " …"


def tone(word: str) -> str:
    """The CSS class of a verdict."""
    return word if word in ("better", "worse") else "open"
