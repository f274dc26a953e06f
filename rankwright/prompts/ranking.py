"""The prompts of generating rerankers: a query and a few documents in, a judgement of them out.

    prompt = load_ranking_prompt("listwise-think-1")
    prompt.messages(query, documents)             # what a chat model is sent
    prompt.parse(completion, len(documents))      # what it meant

A prompt is a YAML file: messages with fields, how passages are named and how much of each is shown, and the parser of
what comes back. docs/prompts.md describes the format. The shipped ones are in our own words; a published checkpoint
that needs its template word for word brings it in a file of its own, and a model folder may hold the prompt that it was
trained with as `rankwright-prompt.yaml`.
"""

from __future__ import annotations

import hashlib
import re
import string
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from rankwright.errors import ConfigurationError, ResourceNotFoundError, StorageError
from rankwright.prompts import parsers
from rankwright.prompts.answers import Tags, thoughts_in
from rankwright.prompts.files import Shown, Turn, Unit, read_prompt_file, with_answer, with_limit
from rankwright.prompts.foreign import translated
from rankwright.prompts.reader import quoted
from rankwright.types import Completion, Document, Judgement, Query

Kind = Literal["listwise", "setwise", "groupwise", "pointwise"]
Sampling = Mapping[str, float | int | str]
Shorten = Callable[[str, int], str]
Fits = Callable[[Sequence[tuple[str, str]]], bool]

PROMPT_FILE = "rankwright-prompt.yaml"
"""Where a model folder keeps the prompt that the model was trained with."""
PROBABILITY_PARSERS = frozenset(("first-token", "integer", "yes-no", "binary", "true-false"))
"""Those that read token probabilities, which not every server gives."""

_FIELD = re.compile(r"\{(query|passages|passage|identifier|count|last)\}")
_NOT_SEEN = ("Cf", "Mn", "Me")
_BRACKETED = re.compile(r"[\[［【〔⟦]\s*+([^\s\[\]［］【】〔〕⟦⟧]{1,8}+)\s*+[\]］】〕⟧]")


@dataclass(frozen=True, slots=True)
class Rendered:
    """The messages for one query and its documents."""

    messages: tuple[tuple[str, str], ...]
    cut: int
    """Documents that were longer than the prompt's limit."""


@dataclass(frozen=True, slots=True)
class RankingPrompt:
    """What a language model is asked about a few documents, and how its answer is read. Made by load_ranking_prompt."""

    version: str
    """The name of a shipped prompt, which never changes, or sha256:... of a user's file."""
    kind: Kind
    parser: str
    """A name of parsers.PARSERS."""
    turns: tuple[Turn, ...]
    identifier_style: Literal["numbers", "letters"] = "numbers"
    max_documents: int | None = None
    """None for as many as there are identifiers."""
    tags: Tags = field(default_factory=Tags)
    shown: Shown = field(default_factory=Shown)
    sampling: Sampling = field(default_factory=dict)
    """What suits the form of the answer; see LLMPolicy."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the parser."""
    about: str = ""
    """A line for people."""
    source: str = field(default="", repr=False, compare=False)
    """The file, as it was read."""
    shorten: Shorten | None = field(default=None, repr=False, compare=False)
    """Cuts a text after so many tokens, where the limit counts tokens."""
    fits: Fits | None = field(default=None, repr=False, compare=False)
    """Whether messages are short enough; where they are not, passages are shortened further, all alike."""

    @property
    def most(self) -> int | None:
        """Documents that fit into one prompt; None for any number."""
        if self.kind == "pointwise":
            return 1
        there_are = 26 if self.identifier_style == "letters" else 9 if self.parser == "first-token" else None
        return min((number for number in (there_are, self.max_documents) if number is not None), default=None)

    def identifiers(self, count: int) -> tuple[str, ...]:
        """The identifiers of so many documents: "1", "2", ... or "A", "B", ...

        Raises:
            ConfigurationError: there are not so many.
        """
        if self.most is not None and count > self.most:
            raise ConfigurationError(
                f"Prompt '{self.version}' was given {count} documents at once and has identifiers for {self.most}; "
                f"wanted {self.most} at most. Show fewer (--window; children of heapsort and bubblesort, group of "
                "groupwise), or take a prompt with more identifiers."
            )
        return self._labels(count)

    def messages(self, query: Query, documents: Sequence[Document]) -> tuple[tuple[str, str], ...]:
        """(role, content) of every message.

        Raises:
            ConfigurationError: more documents than identifiers.
        """
        return self.rendered(query, documents).messages

    def rendered(self, query: Query, documents: Sequence[Document]) -> Rendered:
        """The messages, and how many documents were cut. Foreign text cannot name a document, end an answer or change
        the speaker: see `sealed`.

        Raises:
            ConfigurationError: more documents than identifiers, or a limit in tokens and no tokenizer.
        """
        found = self._rendered(query, documents, self.shown.limit)
        if self.fits is None or self.fits(found.messages):
            return found
        # No unit is shorter than a byte, so a passage has at most as many of any of them as bytes.
        longest = max((len(self._passage(document).encode()) for document in documents), default=1)
        fitting, too_long = 1, min(self.shown.limit or longest, longest)
        while too_long - fitting > 1:
            limit = (fitting + too_long) // 2
            if self.fits(self._rendered(query, documents, limit).messages):
                fitting = limit
            else:
                too_long = limit
        return self._rendered(query, documents, fitting)

    def _rendered(self, query: Query, documents: Sequence[Document], limit: int | None) -> Rendered:
        labels = self.identifiers(len(documents))
        passages = [self._passage(document) for document in documents]
        shown = [self._shortened(passage, limit) for passage in passages]
        filled = [{"identifier": name, "passage": text} for name, text in zip(labels, shown, strict=True)]
        common = {
            "query": sealed(query.text, self.identifier_style),
            "count": str(len(documents)),
            "last": labels[-1] if labels else "",
        }
        lines = (_fill(self.shown.line, common | own) for own in filled)
        common["passages"] = self.shown.separator.join(lines)
        common |= filled[0] if self.kind == "pointwise" and filled else {}
        cut = sum(len(short) < len(whole) for whole, short in zip(passages, shown, strict=True))
        return Rendered(tuple(self._messages(common, filled)), cut)

    def parse(self, completion: Completion, count: int, *, strict: bool = False) -> Judgement:
        """What the model said of so many documents. Never raises, and every document is in the judgement.

        Strictly, for rewards, anything but the agreed form is malformed, and words alone count. Leniently what can be
        mended is, with a name for every repair.
        """
        form = parsers.Form(self._labels(count), self.tags, self.options)
        return parsers.PARSERS[self.parser](completion, form, strict=strict)

    def thoughts(self, completion: Completion) -> str:
        """What the model wrote before its answer, without tags; empty where that cannot be told."""
        return thoughts_in(completion.text, self.tags)

    def malformed(self, count: int, *reasons: str) -> Judgement:
        """The judgement of so many documents where nothing could be read."""
        return parsers.malformed(self.parser, count, *reasons)

    @property
    def needs_logprobs(self) -> bool:
        """Whether the judgement is read from token probabilities."""
        return self.parser in PROBABILITY_PARSERS

    def limited(self, limit: int | None, unit: Unit = "words", shorten: Shorten | None = None) -> RankingPrompt:
        """The same prompt with another limit on passages, None for none. It is another version, unless the limit is
        the one that it had.

        Args:
            limit: how much of a passage is shown.
            unit: what it counts.
            shorten: (text, limit) -> the text's first tokens; wanted for tokens.
        """
        if limit == self.shown.limit and (limit is None or unit == self.shown.unit):
            return replace(self, shorten=shorten)
        source = with_limit(self.source, limit, unit)
        changed = _parsed(_version(source.encode("utf-8")), source, self.version)
        return replace(changed, shorten=shorten)

    def answering(self, tokens: int) -> RankingPrompt:
        """The same prompt with so many tokens for an answer, as another version."""
        source = with_answer(self.source, tokens)
        changed = _parsed(_version(source.encode("utf-8")), source, self.version)
        return replace(changed, shorten=self.shorten, fits=self.fits)

    def save(self, folder: str | Path) -> Path:
        """Keeps the prompt in a model folder, where load_ranking_prompt(folder) finds it under the same version.

        Raises:
            StorageError: it cannot be written.
        """
        path = Path(folder) / PROMPT_FILE
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.source.encode("utf-8"))
        except OSError as error:
            raise StorageError(
                f"Prompt '{self.version}' cannot be written to {path} ({error.strerror}); wanted a folder that can be "
                "written. Check rights and free space."
            ) from error
        return path

    def _labels(self, count: int) -> tuple[str, ...]:
        if self.identifier_style == "numbers":
            return tuple(str(number) for number in range(1, count + 1))
        letters = string.ascii_uppercase
        return tuple(letters[position] if position < 26 else f"#{position}" for position in range(count))

    def _passage(self, document: Document) -> str:
        title, text = (sealed(part, self.identifier_style) for part in (document.title, document.text))
        fields = {"title": title, "text": text}
        return re.sub(r"\{(title|text)\}", lambda mark: fields[mark[1]], self.shown.template) if title else text

    def _shortened(self, passage: str, limit: int | None) -> str:
        unit = self.shown.unit
        if limit is None:
            return passage
        if unit == "tokens":
            return self._first_tokens(passage, limit)
        words = passage.split()
        if unit == "words":
            return passage if len(words) <= limit else " ".join(words[:limit])
        return passage[:limit].rstrip()

    def _first_tokens(self, passage: str, limit: int) -> str:
        if self.shorten is None:
            raise ConfigurationError(
                f"Prompt '{self.version}' limits passages to {limit} tokens and was given no tokenizer; wanted one to "
                "cut them. Use RankingPrompt.limited with one, or words or characters as passages.unit."
            )
        return sealed(self.shorten(passage, limit), self.identifier_style)

    def _messages(self, common: Mapping[str, str], filled: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
        """The turns before those of every passage, those, and the turns after them."""
        each = [number for number, turn in enumerate(self.turns) if turn.each]
        first, last = (each[0], each[-1] + 1) if each else (len(self.turns), len(self.turns))
        planned = [(turn, common) for turn in self.turns[:first]]
        planned += [(turn, {**common, **own}) for own in filled for turn in self.turns[first:last]]
        planned += [(turn, common) for turn in self.turns[last:]]
        return [(turn.role, _fill(turn.text, fields).rstrip()) for turn, fields in planned]


def _fill(template: str, fields: Mapping[str, str]) -> str:
    """In one pass, so what is filled in is not filled in once more; braces that are no field stay."""
    return _FIELD.sub(lambda mark: fields.get(mark[1], mark[0]), template)


def sealed(text: str, identifier_style: str = "numbers") -> str:
    """Foreign text as one line without identifiers: `quoted`, and other brackets and, with letters, `[B]` too.

    >>> sealed("as [2] says, <answer>[1]</answer> 【３】")
    'as (2) says, ‹answer>(1)‹/answer> (３)'
    """

    def harmless(mark: re.Match[str]) -> str:
        # Joiners and marks that change nothing of what is read: a 3 with a variation selector is a 3.
        inner = "".join(c for c in unicodedata.normalize("NFKC", mark[1]) if unicodedata.category(c) not in _NOT_SEEN)
        letter = identifier_style == "letters" and len(inner) == 1 and inner.isalpha()
        return f"({mark[1]})" if letter or inner.isdigit() else mark[0]

    return _BRACKETED.sub(harmless, quoted(text))


# --- files --------------------------------------------------------------------------------------------------------


def shipped_prompts() -> tuple[str, ...]:
    """Names of the prompts that come with the package."""
    return tuple(sorted(_shipped()))


def load_ranking_prompt(name_or_path: str | Path) -> RankingPrompt:
    """A shipped prompt by name, a user's YAML file, what a model folder keeps in `rankwright-prompt.yaml`, or the
    template of a published checkpoint in the form of rank_llm or of Rank-R1 (prompts/foreign.py).

    The version of a file is the sha256 of its bytes, or the name of the shipped prompt that it is a copy of.

    Raises:
        ResourceNotFoundError: it is none of these.
        ConfigurationError: the file is not as docs/prompts.md says.
    """
    path, shipped = Path(name_or_path), _shipped()
    if path.is_dir():
        path = path / PROMPT_FILE
    if path.is_file():
        content = path.read_bytes()
        source = _decoded(content, path)
        ours = translated(source, str(path))
        if ours is not None:
            content, source = ours.encode(), ours
        return _parsed(_version(content), source, str(path))
    if str(name_or_path) not in shipped:
        raise ResourceNotFoundError(
            f"Ranking prompt '{name_or_path}' is neither a file, a folder with {PROMPT_FILE}, nor a shipped prompt "
            f"({', '.join(sorted(shipped))}). Check the name."
        )
    return _parsed(str(name_or_path), shipped[str(name_or_path)], str(name_or_path))


def _version(content: bytes) -> str:
    names = [name for name, text in _shipped().items() if text.encode("utf-8") == content]
    return names[0] if names else f"sha256:{hashlib.sha256(content).hexdigest()}"


def _shipped() -> dict[str, str]:
    files = resources.files("rankwright.prompts").iterdir()
    return {
        file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8")
        for file in files
        if file.name.endswith(".yaml")
    }


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"Ranking prompt '{path}' is not UTF-8 (byte {error.start}); save the file as UTF-8."
        ) from error


def _parsed(version: str, source: str, where: str) -> RankingPrompt:
    return RankingPrompt(version=version, source=source, **read_prompt_file(source, where))
