"""The reader's prompt: question and passages in, a short answer out.

A prompt is one user message, because not every chat model knows a system role. Passages are hostile until proven
otherwise: each becomes exactly one line, so none can end itself, begin another passage, or start a line that looks like
a question or a change of speaker; what could be read as a passage number or as a model's control token is rewritten.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from rankwright.errors import ConfigurationError, ResourceNotFoundError
from rankwright.types import Context, Document

NO_ANSWER = "NO ANSWER"
"""What a reader writes when the passages do not hold the answer; agreed between prompt and parser."""
NO_PASSAGES = "(none)"
FIELDS = {"reader": ("{passages}", "{question}"), "query2doc": ("{question}",)}
"""What a prompt of each kind must hold; the names of shipped prompts begin with their kind."""

_FIELD = re.compile(r"\{(passages|question)\}")
_INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]"
)
"""Control characters and format characters that no script needs; the last range can hide a whole ASCII text."""
_NUMBER_OR_TAG = re.compile(r"\[\s*(/?\s*(?:\d+|[A-Z_]{2,}))\s*\]")
_OPENING = re.compile(r"<(?=[\w/|<!｜])")

THINKING = re.compile(r"\A(?:.*</think>|\s*<think>.*\Z)", re.DOTALL)
"""Up to the last closing tag (a server's template may have written the opening one); the whole where none closes."""
_WORDS, _SAYS = r"(?:(?:the|short|final)\s+)*answer", r"\s*(?::|\bis\b:?)"
_PREFIX = re.compile(
    rf"\A(?:\#+\s*)?(?:(?P<mark>\*\*?|__?){_WORDS}(?:{_SAYS}\s*(?P=mark)|(?P=mark)(?:{_SAYS})?)|{_WORDS}(?:{_SAYS}|\Z))\s*",
    re.IGNORECASE,
)
"""Also with emphasis that ends before the answer, and as a heading above it."""
_CITATIONS = re.compile(r"(?:\s*\[\d+(?:\s*,\s*\d+)*\])+(?=\s*\.?\s*\Z)")
_NO_ANSWER = re.compile(rf"\A{NO_ANSWER}\s*(?:[.:,;!(—–-].*)?\Z", re.IGNORECASE)
_QUOTES = (('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"), ("«", "»"), ("`", "`"), ("**", "**"), ("*", "*"))


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt text under a version that stands in every cache key and signature."""

    version: str
    """The name of a shipped prompt, which never changes, or sha256:... of a user's file."""
    text: str
    """Holds the fields of its kind."""
    kind: str = "reader"
    """One of FIELDS."""

    def __post_init__(self) -> None:
        fields = FIELDS[self.kind]
        missing = [field for field in fields if field not in self.text]
        if missing:
            raise ConfigurationError(
                f"{self.kind.capitalize()} prompt '{self.version}' does not hold {' and '.join(missing)}; "
                f"write {' and '.join(fields)} into its text."
            )


def load_prompt(name_or_path: str | Path = "reader-1", kind: str = "reader") -> Prompt:
    """A shipped prompt by name, or a user's UTF-8 text file by path, whose version is the sha256 of its bytes.

    Raises ResourceNotFoundError for neither, ConfigurationError for a file that is no UTF-8 or lacks a field of the
    kind.
    """
    path = Path(name_or_path)
    if path.is_file():
        content = path.read_bytes()
        try:
            return Prompt(f"sha256:{hashlib.sha256(content).hexdigest()}", content.decode("utf-8"), kind)
        except UnicodeDecodeError as error:
            raise ConfigurationError(
                f"{kind.capitalize()} prompt '{path}' is not UTF-8 (byte {error.start}); save the file as UTF-8."
            ) from error
    shipped = _shipped(kind)
    if str(name_or_path) not in shipped:
        raise ResourceNotFoundError(
            f"{kind.capitalize()} prompt '{name_or_path}' is neither a file nor a shipped prompt "
            f"({', '.join(sorted(shipped))}). Check the path."
        )
    return Prompt(str(name_or_path), shipped[str(name_or_path)], kind)


def _shipped(kind: str) -> dict[str, str]:
    files = [file for file in resources.files("rankwright.prompts").iterdir() if file.name.endswith(".txt")]
    return {
        file.name.removesuffix(".txt"): file.read_text(encoding="utf-8")
        for file in files
        if file.name.startswith(f"{kind}-")
    }


def render(prompt: Prompt, context: Context) -> str:
    """The message for one context. Fields are filled in one pass, so a question that says {passages} stays as it is."""
    values = {"passages": _numbered(context.documents), "question": quoted(context.query.text)}
    return _FIELD.sub(lambda match: values[match[1]], prompt.text).rstrip()


def _numbered(documents: Sequence[Document]) -> str:
    lines = [f"[{number}] {_passage(document)}" for number, document in enumerate(documents, start=1)]
    return "\n".join(lines) or NO_PASSAGES


def _passage(document: Document) -> str:
    title = quoted(document.title)
    return f"{title} | {quoted(document.text)}" if title else quoted(document.text)


def quoted(text: str) -> str:
    """Foreign text as one harmless line.

    Whitespace of every kind becomes single spaces and invisible characters go; `[3]` and `[INST]` become `(3)` and
    `(INST)`; the bracket that opens `<|im_start|>`, `</s>` or `<start_of_turn>` becomes `‹`, since tokenizers read such
    words inside a message as real control tokens. "a < b" and "[sic]" stay. Lone surrogates become question marks.
    """
    text = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    text = _INVISIBLE.sub("", text)
    text = _NUMBER_OR_TAG.sub(r"(\1)", text)
    return _OPENING.sub("‹", text)


def parse_answer(text: str) -> str | None:
    """The short answer in what a model wrote: "" for an agreed NO ANSWER, None where nothing is left.

    Leaves out everything up to the last </think>, "Answer:" and the like, everything after the first line, citations
    such as [2] at the end, and surrounding quotes or emphasis.
    """
    lines = [line.strip() for line in THINKING.sub("", text).splitlines()]
    for line in lines:
        answer = _bare(line)
        if answer:
            return "" if _NO_ANSWER.match(answer) else answer
    return None


def _bare(line: str) -> str:
    """The line without its wrapping, which may come in any order and number: **Answer: "Paris" [1]**."""
    while True:
        shorter = _CITATIONS.sub("", _PREFIX.sub("", _unquoted(line))).strip()
        if shorter == line:
            return line
        line = shorter


def _unquoted(line: str) -> str:
    for opening, closing in _QUOTES:
        wrapped = len(line) >= len(opening) + len(closing) and line.startswith(opening) and line.endswith(closing)
        inner = line[len(opening) : len(line) - len(closing)] if wrapped else ""
        if wrapped and opening not in inner and closing not in inner:
            return inner.strip()
    return line
