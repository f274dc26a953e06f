"""The file format of ranking prompts: YAML, every field checked, a wrong one named. docs/prompts.md describes it."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import yaml

from rankwright.errors import ConfigurationError
from rankwright.prompts.answers import Tags

KINDS: Mapping[str, tuple[str, ...]] = {
    "listwise": ("permutation", "first-token"),
    "setwise": ("label",),
    "groupwise": ("json-scores",),
    "pointwise": ("integer", "yes-no", "binary", "true-false"),
}
"""The parsers that a prompt of each kind may have."""
Unit = Literal["characters", "words", "tokens"]

_KEYS = frozenset(
    ("about", "kind", "parser", "identifiers", "max_documents", "thinking", "answer", "passages", "messages")
)
_KEYS |= {"sampling", "options"}
_PASSAGE_KEYS = frozenset(("template", "line", "separator", "limit", "unit"))
_NAME = re.compile(r"[a-z][a-z_]*")


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a prompt."""

    role: str
    text: str
    """With fields in braces."""
    each: bool = False
    """Once for every passage, together with the turns beside it for which this is so."""


@dataclass(frozen=True, slots=True)
class Shown:
    """How passages are shown."""

    template: str = "{title}: {text}"
    """A passage with a title; without one it is its bare text."""
    line: str = "[{identifier}] {passage}"
    """What {passages} has for each of them."""
    separator: str = "\n"
    limit: int | None = None
    """How much of a passage is shown; None for all of it."""
    unit: Unit = "words"
    """Tokens are those of a tokenizer that is given to `RankingPrompt.limited`."""


def read_prompt_file(source: str, where: str) -> dict[str, Any]:
    """The fields of a RankingPrompt out of the text of a file; `where` names it in errors.

    Raises:
        ConfigurationError: naming the field, what was found and what was wanted.
    """
    found = _Fields(where, "", _yaml(source, where))
    found.known(_KEYS)
    kind = found.one_of("kind", tuple(KINDS))
    parser = found.one_of("parser", KINDS[kind])
    fields = {
        "about": found.text("about", ""),
        "kind": kind,
        "parser": parser,
        "identifier_style": found.one_of("identifiers", ("numbers", "letters"), "numbers"),
        "max_documents": found.whole("max_documents"),
        "tags": Tags(found.name("thinking"), found.name("answer")),
        "shown": _shown(found.group("passages")),
        "turns": _turns(found),
        "sampling": _sampling(found.group("sampling")),
        "options": _options(found.group("options"), parser),
    }
    _check_fields(found, fields)
    return fields


def _yaml(source: str, where: str) -> Mapping[str, Any]:
    try:
        read = yaml.safe_load(source)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that does not exist
        raise ConfigurationError(
            f"Ranking prompt '{where}' is not YAML ({' '.join(str(error).split())[:200]}); wanted the fields of "
            "docs/prompts.md. Correct the file."
        ) from error
    if not isinstance(read, dict):
        raise ConfigurationError(
            f"Ranking prompt '{where}' holds {type(read).__name__}; wanted the fields of docs/prompts.md, kind, parser "
            "and messages among them. Correct the file."
        )
    return read


def with_limit(source: str, limit: int | None, unit: Unit) -> str:
    """The text of a prompt file with another limit on passages."""
    fields = yaml.safe_load(source)
    passages = {**(fields.get("passages") or {}), "limit": limit, "unit": unit}
    return yaml.safe_dump({**fields, "passages": passages}, sort_keys=False, allow_unicode=True, width=120)


def with_answer(source: str, tokens: int) -> str:
    """The text of a prompt file with another limit on answers."""
    fields = yaml.safe_load(source)
    sampling = {**(fields.get("sampling") or {}), "max_tokens": tokens}
    return yaml.safe_dump({**fields, "sampling": sampling}, sort_keys=False, allow_unicode=True, width=120)


@dataclass(frozen=True, slots=True)
class _Fields:
    """A mapping of the file, with errors that say where in it."""

    where: str
    prefix: str
    values: Mapping[Any, Any]

    def wrong(self, name: str, wanted: str) -> ConfigurationError:
        found = f"is {_short(self.values[name])!r}" if name in self.values else "is missing"
        return ConfigurationError(
            f"Field '{self.prefix}{name}' of ranking prompt '{self.where}' {found}; wanted {wanted}. Correct the file."
        )

    def known(self, names: frozenset[str]) -> None:
        unknown = next((name for name in self.values if name not in names), None)
        if unknown is not None:
            raise self.wrong(unknown, f"one of {', '.join(sorted(names)) or 'no fields'}")

    def one_of(self, name: str, allowed: tuple[str, ...], default: str | None = None) -> Any:
        value = self.values.get(name, default)
        if value not in allowed:
            raise self.wrong(name, " or ".join(allowed))
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self.values.get(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, "text")
        return value

    def whole(self, name: str, default: int | None = None) -> int | None:
        value = self.values.get(name, default)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise self.wrong(name, "a whole number from 1 on")
        return value

    def name(self, name: str) -> str:
        value = self.text(name, "")
        if value and not _NAME.fullmatch(value):
            raise self.wrong(name, "the name of a tag in small letters, as think for <think>")
        return value

    def group(self, name: str) -> _Fields:
        value = self.values.get(name) or {}
        if not isinstance(value, dict):
            raise self.wrong(name, "named fields")
        return _Fields(self.where, f"{name}.", value)

    def rows(self, name: str) -> list[_Fields]:
        value = self.values.get(name)
        if not isinstance(value, list) or not value or not all(isinstance(row, dict) for row in value):
            raise self.wrong(name, "a list of messages, each with role and text")
        return [_Fields(self.where, f"{self.prefix}{name}.{number}.", row) for number, row in enumerate(value, start=1)]


def _short(value: object) -> str:
    """A value for a message. Not str: lists of lists that a file names and repeats would fill the memory."""
    return (value if isinstance(value, str) else reprlib.repr(value))[:80]


def _shown(group: _Fields) -> Shown:
    group.known(_PASSAGE_KEYS)
    default = Shown()
    template = group.text("template", default.template)
    if "{text}" not in template:
        raise group.wrong("template", "a text with {text} and, where there is one, {title}")
    return Shown(
        template,
        group.text("line", default.line),
        group.text("separator", default.separator),
        group.whole("limit"),
        group.one_of("unit", get_args(Unit), default.unit),
    )


def _turns(found: _Fields) -> tuple[Turn, ...]:
    turns: list[Turn] = []
    for row in found.rows("messages"):
        if "each" not in row.values:
            turns.append(_turn(row, each=False))
            continue
        row.known(frozenset(("each",)))
        if any(turn.each for turn in turns):
            raise row.wrong("each", "only one list of messages for every passage")
        turns += [_turn(inner, each=True) for inner in row.rows("each")]
    return tuple(turns)


def _turn(row: _Fields, *, each: bool) -> Turn:
    row.known(frozenset(("role", "text")))
    role = row.text("role")
    if not _NAME.fullmatch(role):
        raise row.wrong("role", "system, user or assistant")
    return Turn(role, row.text("text"), each)


def _sampling(group: _Fields) -> dict[str, float | int | str]:
    for name, value in group.values.items():
        if not isinstance(name, str) or not isinstance(value, float | int | str):
            raise group.wrong(name, "a number, text, true or false")
    return dict(group.values)


def _is_scale(value: object) -> bool:
    return isinstance(value, list) and [type(end) for end in value] == [int, int] and 0 <= value[0] < value[1] <= 1000


_SCALE = ([0, 10], _is_scale, "its least and greatest integer, as [0, 10]")
_VERDICT = {
    "forms": ("any", ("any", "exact").__contains__, "any or exact"),
    "text_verdict": (False, lambda value: isinstance(value, bool), "true or false"),
}
_SCORE = (("logit", "probability").__contains__, "logit or probability")
OPTIONS: Mapping[str, Mapping[str, tuple[Any, Callable[[Any], bool], str]]] = {
    "permutation": {},
    "label": {},
    "json-scores": {"scale": _SCALE},
    "integer": {
        "scale": _SCALE,
        "score": ("weighted", ("weighted", "expected").__contains__, "weighted or expected"),
    },
    "yes-no": {"score": ("probability", *_SCORE), **_VERDICT},
    "true-false": {"score": ("probability", *_SCORE), **_VERDICT},
    "binary": {"score": ("logit", *_SCORE), **_VERDICT},
    "first-token": {"token": (1, lambda value: type(value) is int and value in (1, 2), "1 or 2")},
}
"""Options of every parser: default, whether a value is one, what is wanted."""


def _options(group: _Fields, parser: str) -> dict[str, Any]:
    group.known(frozenset(OPTIONS[parser]))
    chosen: dict[str, Any] = {}
    for name, (default, allowed, wanted) in OPTIONS[parser].items():
        value = group.values.get(name, default)
        if isinstance(value, dict) or not allowed(value):
            raise group.wrong(name, wanted)
        chosen[name] = value
    return chosen


def _check_fields(found: _Fields, fields: Mapping[str, Any]) -> None:
    """The query is asked, the passages are shown, and what shows them names them."""
    turns, shown = fields["turns"], fields["shown"]
    whole = "".join(turn.text for turn in turns)
    each = "".join(turn.text for turn in turns if turn.each)
    pointwise = fields["kind"] == "pointwise"
    shows = [each] if each else [shown.line] if "{passages}" in whole else [whole] if pointwise else [""]
    if "{query}" not in whole:
        raise found.wrong("messages", "the field {query} in one of them")
    if "{passage}" not in shows[0]:
        raise found.wrong("messages", "the passages, as {passages} in one of them or {passage} in those of each")
    if not pointwise and "{identifier}" not in shows[0]:
        raise found.wrong("messages", "the field {identifier} beside every {passage}")
