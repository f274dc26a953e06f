"""What a generating reranker wrote, as a judgement: a permutation, a choice, or scores.

Every parser reads strictly or leniently. Strictly, for rewards: the words alone count, and anything but the agreed form
is malformed. Leniently, for inference: what can be mended is mended, each repair has a name that can be counted, and
token probabilities are used where the form calls for them. No text makes a parser raise, and every judgement is full:
all documents of the prompt are in it.

Ids are only taken from the answer, never from the thoughts before it, and 0 is no id. What a published parser does
otherwise stands in docs/prompts.md.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rankwright.prompts import probabilities
from rankwright.prompts.answers import NO_ANSWER, TAGS_NOT_AS_AGREED, Span, Tags, lenient_span, strict_span
from rankwright.types import Choice, Completion, Judgement, Permutation, Scores

FORM_NOT_AS_AGREED = "form not as agreed"
NO_ID = "no id"
ID_MISSING = "id missing"
ID_REPEATED = "id repeated"
ID_OUT_OF_RANGE = "id out of range"
ID_LEADING_ZERO = "leading zero"
ID_LOWER_CASE = "lower case"
LOOK_ALIKES = "look-alike characters"
BRACKETS_MISSING = "brackets missing"
OTHER_SEPARATORS = "other separators"
WORDS_AROUND = "words around"
SEVERAL_LABELS = "several labels"
JSON_BROKEN = "json broken"
JSON_NESTED = "json nested"
BRACE_MISSING = "brace missing"
SEVERAL_OBJECTS = "several objects"
KEY_FORM = "key form"
SCORE_AS_TEXT = "score as text"
SCORE_NOT_A_NUMBER = "score is no number"
SCORE_OUT_OF_RANGE = "score out of range"
SCORE_NOT_AN_INTEGER = "score is no integer"
NO_SCORE = "no score"
SEVERAL_SCORES = "several scores"
NO_VERDICT = "no verdict"
VERDICT_FROM_TEXT = "verdict from text"
NO_PROBABILITY = "no probability"
NO_LOGPROBS = "no logprobs"

OPENING, CLOSING = frozenset("[(【（［〔"), frozenset("])】）］〕")
_DECORATION = OPENING | CLOSING | frozenset("*`'\"“”‘’_#")
_NOUNS = frozenset(("passage", "document", "doc", "text", "candidate", "id", "identifier", "label"))
"""What may stand before an identifier without ending a chain."""
_SEPARATORS = frozenset((">", "≻", "›", "→", "»", "=", "->", "=>", ">>", "&gt;"))
_PIECE = re.compile(r"[^\W_]++|(?<![^\W_])-\d++|&gt;|[-=]?+>++|\S")
_LISTED = re.compile(r"^[ \t]*+(?:[-*•]|\d{1,3}[.):])?[ \t*_]*+(\[\s*+[^\W_]++\s*+\])", re.MULTILINE)
_NUMBERED = re.compile(r"[ \t]*+\d{1,3}[.):][ \t]*+(\d{1,9})[ \t]*+")
"""A line that counts the places and names a bare identifier: 1. 3"""
_NOTE = re.compile(r"(?<=\])[ \t]{0,3}\([^()\[\]>\n]{1,80}+\)(?=[ \t]{0,3}(?:>|$))", re.MULTILINE)
"""What is said of an identifier between it and the next: [3] (score 9) > [1]"""
_FENCED = re.compile(r"```[a-z]*+\s(.*?)```", re.DOTALL | re.IGNORECASE)
_STRICT_FENCE = re.compile(r"```(?:json)?\s(.*)```", re.DOTALL)
_STRICT_CHAIN = re.compile(r"\[[^\W_]{1,9}\](?:\s*+>\s*+\[[^\W_]{1,9}\])*+", re.ASCII)
_BARE_CHAIN = re.compile(r"[^\W_]{1,9}(?:\s*+>\s*+[^\W_]{1,9})*+", re.ASCII)
_PAIR = re.compile(
    r"(?<![^\W_])([^\W_]{1,9})(?![^\W_])[\])】］]*+[\"'”’]?\s*+:\s*+[\"'“‘]?(-?\d++(?:\.\d++)?+)(?![\d.]|[eE][-+]?\d)"
)
_NUMBER = re.compile(r"-?\d{1,9}(?:\.\d{1,9})?")
_NUMBERS = re.compile(r"(?<![\w.,-])(\d++)(?:\.0++)?+(?![\w%]|[.,]\d)")
_OUT_OF = re.compile(r"(?<=\d)\s{0,3}(?:/|out of|of)\s{0,3}(\d++)", re.IGNORECASE)
_OBJECTS_TRIED = 50
"""Opening braces from which a JSON object is tried to be read."""


@dataclass(frozen=True, slots=True)
class Form:
    """What was agreed with the model about the answer to one prompt."""

    labels: tuple[str, ...]
    """The identifiers of the prompt's documents, in order."""
    tags: Tags = field(default_factory=Tags)
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the parser: see OPTIONS in files.py."""


class Parser(Protocol):
    """Reads a completion; one for every name in PARSERS."""

    def __call__(self, completion: Completion, form: Form, *, strict: bool) -> Judgement:
        """A full judgement of the form's documents, whatever the text."""
        ...


# --- permutations and labels --------------------------------------------------------------------------------------


def permutation(completion: Completion, form: Form, *, strict: bool) -> Permutation:
    """An order written as `[2] > [1] > [3]`.

    Leniently: the longest chain of ids joined by `>` (of equally long ones the last); without a chain, ids in brackets
    that begin lines, or ids without any words. What repeats an id or is none goes, missing ids follow in the order of
    the prompt.

    >>> permutation(Completion("[3] > [1] > [3]"), Form(("1", "2", "3")), strict=False)
    Permutation(order=(2, 0, 1), outcome='repaired', repairs=('id repeated', 'id missing'))
    """
    if strict:
        return _strict_permutation(completion.text, form, _STRICT_CHAIN)
    span = lenient_span(completion.text, form.tags)
    if span.text is None:
        return unordered(form, *span.repairs)
    said, look_alikes = _normalised(span.text)
    found, repairs = _listed(said, form, span)
    return ordered(found, form, (*span.repairs, *look_alikes, *repairs))


def _strict_permutation(text: str, form: Form, chain: re.Pattern[str]) -> Permutation:
    inside = strict_span(text, form.tags)
    if inside is None:
        return unordered(form, TAGS_NOT_AS_AGREED)
    if not chain.fullmatch(inside):
        return unordered(form, FORM_NOT_AS_AGREED)
    read = ordered(re.findall(r"\w+", inside), form)
    return read if read.outcome == "ok" else unordered(form, *read.repairs)


def ordered(found: Sequence[str], form: Form, repairs: Iterable[str] = ()) -> Permutation:
    """The permutation that begins with these labels; those that repeat or are none are left out, those that are
    missing follow in the order of the prompt."""
    positions = {label: position for position, label in enumerate(form.labels)}
    order, wrong = dict[int, None](), list(repairs)
    for label in found:
        position = positions.get(label)
        if position is None:
            wrong.append(ID_OUT_OF_RANGE)
        elif position in order:
            wrong.append(ID_REPEATED)
        else:
            order[position] = None
    if form.labels and not order:
        return unordered(form, *wrong, *(() if found else (NO_ID,)))
    if len(order) < len(form.labels):
        wrong.append(ID_MISSING)
    missing = (position for position in range(len(form.labels)) if position not in order)
    return Permutation((*order, *missing), "repaired" if wrong else "ok", _once(wrong))


def unordered(form: Form, *reasons: str) -> Permutation:
    """Nothing could be read: the order of the prompt."""
    return Permutation(tuple(range(len(form.labels))), "malformed", _once(reasons))


def label(completion: Completion, form: Form, *, strict: bool) -> Choice:
    """The best document as `[3]`.

    Leniently: words around it, and a chain `[3] > [1]`, whose first one counts; two labels otherwise are no choice.

    >>> label(Completion("The best is [2]."), Form(("1", "2", "3")), strict=False)
    Choice(position=1, outcome='repaired', repairs=('words around',))
    """
    if strict:
        return _strict_label(completion.text, form)
    span = lenient_span(completion.text, form.tags)
    if span.text is None:
        return Choice(None, "malformed", span.repairs)
    said, look_alikes = _normalised(span.text)
    repairs = (*span.repairs, *look_alikes)
    read = _chosen(_items(said, form), _has_words(said, form), span)
    if isinstance(read, str):
        return Choice(None, "malformed", _once((*repairs, read)))
    chosen, more = read
    if chosen not in form.labels:
        return Choice(None, "malformed", _once((*repairs, *more, ID_OUT_OF_RANGE)))
    if said.strip() != f"[{chosen}]" and not more:
        more = (WORDS_AROUND,)
    wrong = _once((*repairs, *more))
    return Choice(form.labels.index(chosen), "repaired" if wrong else "ok", wrong)


def _strict_label(text: str, form: Form) -> Choice:
    inside = strict_span(text, form.tags)
    if inside is None:
        return Choice(None, "malformed", (TAGS_NOT_AS_AGREED,))
    if not (inside.startswith("[") and inside.endswith("]")):
        return Choice(None, "malformed", (FORM_NOT_AS_AGREED,))
    if inside[1:-1] not in form.labels:
        return Choice(None, "malformed", (ID_OUT_OF_RANGE if inside[1:-1].isalnum() else FORM_NOT_AS_AGREED,))
    return Choice(form.labels.index(inside[1:-1]))


@dataclass(frozen=True, slots=True)
class _Item:
    """What looks like an identifier, whether or not a document has it."""

    label: str
    bracketed: bool
    chain: int
    """Number of the chain `a > b > c` that it belongs to."""
    mended: tuple[str, ...]


def _items(text: str, form: Form) -> list[_Item]:
    """All that looks like identifiers, in order of appearance, with the chains that `>` makes of them."""
    pieces = _PIECE.findall(text)
    items: list[_Item] = []
    chain, joined, separators = 0, False, ()
    for number, piece in enumerate(pieces):
        if piece in _DECORATION or piece.lower() in _NOUNS:
            continue
        if piece in _SEPARATORS or set(piece) == {">"}:
            joined, separators = True, () if piece == ">" else (OTHER_SEPARATORS,)
            continue
        read = _identifier(piece, form)
        if read is None:
            chain, joined = chain + 1, False
            continue
        if not joined:
            chain += 1
        bracketed = 0 < number < len(pieces) - 1 and pieces[number - 1] in OPENING and pieces[number + 1] in CLOSING
        square = bracketed and pieces[number - 1] == "[" and pieces[number + 1] == "]"
        mended = (*read[1], *(separators if joined else ()), *(() if square else (BRACKETS_MISSING,)))
        items.append(_Item(read[0], bracketed, chain, mended))
        joined, separators = False, ()
    return items


def _identifier(piece: str, form: Form) -> tuple[str, tuple[str, ...]] | None:
    """The piece as an identifier of the form's kind, and what was mended in it; None for other words."""
    if form.labels and form.labels[0].isalpha():
        if len(piece) != 1 or not (piece.isascii() and piece.isalpha()):
            return None
        return (piece.upper(), (ID_LOWER_CASE,)) if piece.islower() else (piece, ())
    if piece.startswith("-") and piece[1:].isdecimal():
        return piece, ()
    if not (piece.isascii() and piece.isdigit()):
        return None
    bare = piece.lstrip("0") or "0"
    return bare, (ID_LEADING_ZERO,) if bare != piece else ()


def _has_words(text: str, form: Form) -> bool:
    return any(piece[0].isalnum() and _identifier(piece, form) is None for piece in _PIECE.findall(text))


def _listed(text: str, form: Form, span: Span) -> tuple[list[str], tuple[str, ...]]:
    """Labels of a ranking in the order in which it names them, and the repairs."""
    text, notes = _NOTE.subn("", text)
    items, has_words = _items(text, form), bool(notes) or _has_words(text, form)
    chain = _longest_chain(items)
    if len(chain) > 1:
        return _said(chain, *((WORDS_AROUND,) if len(chain) < len(items) or has_words else ()))
    if not span.trusted:
        return [], (NO_ANSWER,)
    if has_words:  # "[3] is off topic, [1] is not" mentions passages and does not rank them
        lines = _items("\n".join(_LISTED.findall(text)), form)
        return _said(lines, WORDS_AROUND, OTHER_SEPARATORS) if len(lines) > 1 else ([], (NO_ID,))
    lines = [line for line in text.splitlines() if line.strip()]
    places = [_NUMBERED.fullmatch(line) for line in lines]
    if len(lines) > 1 and all(places):  # the first number of each line is a place
        items = _items("\n".join(place[1] for place in places if place), form)
    named = [item for item in items if item.bracketed] or items
    numbered = (WORDS_AROUND,) if len(named) < len(items) else ()
    return _said(named, *numbered, *((OTHER_SEPARATORS,) if len(items) > 1 else ()))


def _said(items: Sequence[_Item], *repairs: str) -> tuple[list[str], tuple[str, ...]]:
    return [item.label for item in items], (*repairs, *(name for item in items for name in item.mended))


def _longest_chain(items: Sequence[_Item]) -> list[_Item]:
    chains: dict[int, list[_Item]] = {}
    for item in items:
        before = chains.setdefault(item.chain, [])
        if item.bracketed and not any(one.bracketed for one in before):
            before.clear()  # bare numbers before the first bracket are something else: grade 9 > [1]
        before.append(item)
    return max(reversed(chains.values()), key=len, default=[])


def _chosen(items: Sequence[_Item], has_words: bool, span: Span) -> tuple[str, tuple[str, ...]] | str:
    """The one label of a choice and the repairs, or why there is none."""
    if not span.trusted and (has_words or not items):
        return NO_ANSWER
    bracketed = [item for item in items if item.bracketed]
    candidates = bracketed or list(items)
    if not candidates:
        return NO_ID
    chain = _longest_chain(items)
    if len(chain) > 1:
        return chain[0].label, (SEVERAL_LABELS, *chain[0].mended)
    if len({item.label for item in candidates}) > 1:
        return SEVERAL_LABELS
    return candidates[0].label, candidates[0].mended


# --- scores -------------------------------------------------------------------------------------------------------


def json_scores(completion: Completion, form: Form, *, strict: bool) -> Scores:
    """A JSON object of integers by identifier, `{"[1]": 7, "[2]": 0}`; option `scale`, the least and greatest.

    Leniently: a missing brace, broken JSON whose pairs can still be told, other forms of keys. A number outside of the
    scale, NaN and true are no scores; a document without a score has None.

    >>> json_scores(Completion('{"[1]": 7, "[2]": true'), Form(("1", "2"), options={"scale": (0, 10)}), strict=False)
    Scores(values=(7.0, None), outcome='repaired', repairs=('brace missing', 'score is no number', 'id missing'))
    """
    if strict:
        return _strict_scores(completion.text, form)
    span = lenient_span(completion.text, form.tags)
    if span.text is None:
        return unscored(form, *span.repairs)
    said, look_alikes = _normalised(span.text)
    pairs, repairs = _pairs(said, form, span)
    return _scored(pairs, form, (*span.repairs, *look_alikes, *repairs))


def unscored(form: Form, *reasons: str) -> Scores:
    """Nothing could be read: no document has a score."""
    return Scores((None,) * len(form.labels), "malformed", _once(reasons))


def _strict_scores(text: str, form: Form) -> Scores:
    inside = strict_span(text, form.tags)
    if inside is None:
        return unscored(form, TAGS_NOT_AS_AGREED)
    fenced = _STRICT_FENCE.fullmatch(inside)
    pairs = _object(fenced[1].strip() if fenced else inside)
    if pairs is None:
        return unscored(form, JSON_BROKEN)
    values = dict(pairs)
    if len(values) < len(pairs):
        return unscored(form, ID_REPEATED)
    if values.keys() != {f"[{name}]" for name in form.labels}:
        return unscored(form, KEY_FORM)
    low, high = form.options["scale"]
    if any(type(value) is not int or not low <= value <= high for value in values.values()):
        return unscored(form, SCORE_OUT_OF_RANGE)
    return Scores(tuple(float(values[f"[{name}]"]) for name in form.labels))


def _object(text: str) -> list[tuple[str, Any]] | None:
    """The pairs of a text that is one JSON object and nothing else."""
    read = _decoded(text, 0)
    return read[0] if read is not None and not text[read[1] :].strip() and text.startswith("{") else None


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with all its pairs, repeated keys too."""


_DECODER = json.JSONDecoder(object_pairs_hook=_Pairs, parse_constant=lambda _: None)


def _decoded(text: str, start: int) -> tuple[_Pairs, int] | None:
    """The JSON object that begins here, and where it ends."""
    try:
        read, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):  # also an integer of 5000 digits
        return None
    return (read, end) if isinstance(read, _Pairs) else None


def _pairs(text: str, form: Form, span: Span) -> tuple[list[tuple[str, Any]], tuple[str, ...]]:
    """Key and value of every score, however broken the JSON around them, and the repairs."""
    fences = _FENCED.findall(text)
    body = fences[-1] if fences else text
    objects = list(_objects(body))
    if objects:
        inner = [_innermost(one, form) for one in objects]
        scored = [number for number, one in enumerate(inner) if any(_key(key, form) for key, _ in one)]
        number = scored[-1] if scored else -1
        last = inner[number]
        nested = (JSON_NESTED,) if last is not objects[number] else ()
        return last, (*((SEVERAL_OBJECTS,) if len(objects) > 1 else ()), *nested, *_around(body, fences))
    begin = body.rfind("{")
    closed = _decoded(body[begin:].rstrip().rstrip(",") + "}", 0) if begin >= 0 else None
    if closed:
        return closed[0], (BRACE_MISSING,)
    if not span.trusted:
        return [], (NO_ANSWER,)
    return [(found[1], _as_number(found[2])) for found in _PAIR.finditer(body)], (JSON_BROKEN,)


def _around(body: str, fences: Sequence[str]) -> tuple[str, ...]:
    """A fence is agreeable, words are counted."""
    text = body.strip()
    return () if text.startswith("{") and text.endswith("}") and len(fences) < 2 else (WORDS_AROUND,)


def _objects(text: str) -> Iterator[_Pairs]:
    """The JSON objects in a text, outermost ones only."""
    position = -1
    for _ in range(_OBJECTS_TRIED):
        position = text.find("{", position + 1)
        if position < 0:
            return
        read = _decoded(text, position)
        if read is not None:
            yield read[0]
            position = read[1] - 1


def _innermost(pairs: _Pairs, form: Form) -> _Pairs:
    """The object that holds the scores, where others are wrapped around it."""
    while not any(_key(key, form) for key, _ in pairs):
        inner = [value for _, value in pairs if isinstance(value, _Pairs)]
        if len(inner) != 1:
            break
        pairs = inner[0]
    return pairs


def _scored(pairs: Sequence[tuple[str, Any]], form: Form, repairs: Iterable[str]) -> Scores:
    values: dict[str, float] = {}
    wrong = list(repairs)
    for key, value in pairs:
        name = _key(key, form)
        if name not in form.labels:
            wrong.append(KEY_FORM if name is None else ID_OUT_OF_RANGE)
            continue
        if key != f"[{name}]" and JSON_BROKEN not in wrong:
            wrong.append(KEY_FORM)
        if name in values:
            wrong.append(ID_REPEATED)
            continue
        score, mended = _score(value, form)
        wrong += mended
        if score is not None:
            values[name] = score
    if form.labels and not values:
        return unscored(form, *wrong, NO_SCORE)
    if len(values) < len(form.labels):
        wrong.append(ID_MISSING)
    return Scores(tuple(map(values.get, form.labels)), "repaired" if wrong else "ok", _once(wrong))


def _key(key: str, form: Form) -> str | None:
    """The identifier in a key such as "[1]", "1" or "Document 1"; None unless it is the only one."""
    found = [item.label for item in _items(key[:100], form)]
    return found[0] if len(found) == 1 else None


def _score(value: object, form: Form) -> tuple[float | None, tuple[str, ...]]:
    """A JSON value as a score of the scale, and what was mended or why it is none."""
    mended: tuple[str, ...] = ()
    if isinstance(value, str):
        value, mended = _as_number(_without_scale(value[:40], form).strip()), (SCORE_AS_TEXT,)
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        return None, (SCORE_NOT_A_NUMBER,)
    low, high = form.options["scale"]
    if not low <= value <= high:
        return None, (SCORE_OUT_OF_RANGE,)
    return float(value), (*mended, *(() if isinstance(value, int) else (SCORE_NOT_AN_INTEGER,)))


def _without_scale(text: str, form: Form) -> str:
    """7/10 and 7 out of 10 as 7, where the scale ends with 10: a 4/5 is no 4 of such a scale."""
    greatest = str(form.options["scale"][1])
    return _OUT_OF.sub(lambda said: "" if said[1] == greatest else said[0], text)


def _is_finite(value: float) -> bool:
    return isinstance(value, int) or math.isfinite(value)


def _as_number(text: str) -> int | float | None:
    """The number that a short text is; None for other texts and for numbers of ten digits and more."""
    if not _NUMBER.fullmatch(text):
        return None
    return float(text) if "." in text else int(text)


def integer(completion: Completion, form: Form, *, strict: bool) -> Scores:
    """An integer s of the option `scale`. Strictly the score is s; leniently it is s times its probability.

    With the option `score: expected`, which is ours, it is the expected value over the integers of the scale instead.
    Without token probabilities the score is s, which is a repair. Source: ERank (arXiv 2509.00520) for s times P(s).
    """
    if strict:
        return _strict_integer(completion.text, form)
    span = lenient_span(completion.text, form.tags)
    if span.text is None:
        return unscored(form, *span.repairs)
    said, look_alikes = _normalised(span.text)
    repairs = (*span.repairs, *look_alikes)
    read = _one_integer(said.strip(), form, span)
    if isinstance(read, str):
        return unscored(form, *repairs, read)
    value, mended = read
    weighted = probabilities.weighted_integer(completion, value, form.tags, form.options)
    repairs = (*repairs, *mended, *((NO_PROBABILITY,) if weighted is None else ()))
    return _one(float(value) if weighted is None else weighted, form, repairs)


def _strict_integer(text: str, form: Form) -> Scores:
    inside = strict_span(text, form.tags)
    if inside is None:
        return unscored(form, TAGS_NOT_AS_AGREED)
    low, high = form.options["scale"]
    allowed = {str(value): value for value in range(low, high + 1)}
    return _one(float(allowed[inside]), form) if inside in allowed else unscored(form, FORM_NOT_AS_AGREED)


def _one_integer(text: str, form: Form, span: Span) -> tuple[int, tuple[str, ...]] | str:
    """The one number in a text, if it is of the scale, and the repairs; else why there is none."""
    found = {number.lstrip("0") or "0" for number in _NUMBERS.findall(_without_scale(text, form))}
    if len(found) != 1:
        return SEVERAL_SCORES if found else NO_SCORE
    if not span.trusted and any(piece[0].isalpha() for piece in _PIECE.findall(text)):
        return NO_ANSWER
    low, high = form.options["scale"]
    (number,) = found
    value = _as_number(number)
    if not isinstance(value, int) or not low <= value <= high:
        return SCORE_OUT_OF_RANGE
    return value, () if text == str(value) else (WORDS_AROUND,)


def _one(value: float, form: Form, repairs: Iterable[str] = ()) -> Scores:
    """The score of a prompt with one document."""
    wrong = _once(repairs)
    values = tuple(value if position == 0 else None for position in range(len(form.labels)))
    return Scores(values, "repaired" if wrong else "ok", wrong)


# --- scores from probabilities ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """A parser of a verdict in one of two words, whose score is that of the first word's probability.

    Option `score`: `logit`, the difference of the two log probabilities; `probability`, P(first) / (P(first) +
    P(second)), in double precision. Option `text_verdict`: without token probabilities the words count as 1 and 0,
    which is a repair; without this option they count as nothing. Strictly words are all that counts: 1 and 0.
    Option `forms`: `any` takes a word with or without capitals and blanks, `exact` only as it is spelled here.
    """

    positive: str
    negative: str

    def __call__(self, completion: Completion, form: Form, *, strict: bool) -> Scores:
        words = {self.positive: 1.0, self.negative: 0.0}
        if strict:
            inside = strict_span(completion.text, form.tags)
            if inside is None:
                return unscored(form, TAGS_NOT_AS_AGREED)
            return _one(words[inside], form) if inside in words else unscored(form, FORM_NOT_AS_AGREED)
        if not completion.top_logprobs:
            return self._from_text(completion.text, words, form)
        read = probabilities.verdict(completion, (self.positive, self.negative), form.tags, form.options)
        return unscored(form, *read.repairs) if read.score is None else _one(read.score, form, read.repairs)

    def _from_text(self, text: str, words: Mapping[str, float], form: Form) -> Scores:
        if not form.options.get("text_verdict"):
            return unscored(form, NO_LOGPROBS)
        span = lenient_span(text, form.tags)
        said = [piece.lower() for piece in _PIECE.findall(_normalised(span.text or "")[0]) if piece[0].isalnum()]
        verdicts = {word for word in said if word in words}
        if len(verdicts) != 1 or (len(said) > 1 and not span.trusted):
            return unscored(form, *span.repairs, NO_VERDICT)
        around = (WORDS_AROUND,) if len(said) > 1 else ()
        return _one(words[verdicts.pop()], form, (*span.repairs, *around, VERDICT_FROM_TEXT))


def first_token(completion: Completion, form: Form, *, strict: bool) -> Permutation:
    """Identifiers by their probability as the first token; the words behind it play no part.

    Strictly words are all that counts, as everywhere: the whole order, `B > A > C`, which is what a model is taught.
    Of several tokens that are the same identifier (with a blank or bracket before it) the likeliest counts. Identifiers
    that the server does not list follow in the order of the prompt, which is a repair.
    Option `token`: which token it is, 1 by default; 2 where a model writes the bracket first.
    Source: FIRST (arXiv 2406.15657).
    """
    if strict:
        return _strict_permutation(completion.text, form, _BARE_CHAIN)
    if not completion.top_logprobs:
        return unordered(form, NO_LOGPROBS)
    position = form.options.get("token", 1) - 1
    if position >= len(completion.top_logprobs):
        return unordered(form, NO_ID)
    found = probabilities.first_identifiers(completion.top_logprobs[position], form.labels)
    return ordered(found, form)


PARSERS: Mapping[str, Parser] = {
    "permutation": permutation,
    "first-token": first_token,
    "label": label,
    "json-scores": json_scores,
    "integer": integer,
    "yes-no": Verdict("yes", "no"),
    "binary": Verdict("1", "0"),
    "true-false": Verdict("true", "false"),
}


def malformed(parser: str, count: int, *reasons: str) -> Judgement:
    """The judgement of so many documents by a prompt with this parser, where nothing was read."""
    form = Form(tuple(map(str, range(1, count + 1))))
    if parser in ("permutation", "first-token"):
        return unordered(form, *reasons)
    return Choice(None, "malformed", _once(reasons)) if parser == "label" else unscored(form, *reasons)


# --- characters ---------------------------------------------------------------------------------------------------


def _normalised(text: str) -> tuple[str, tuple[str, ...]]:
    """The text with ASCII in the place of digits, letters, brackets and > that only look like it, and the repair."""
    if text.isascii():
        return text, ()
    plain = "".join(map(_plain, text))
    return plain, (LOOK_ALIKES,) if plain != text else ()


def _plain(character: str) -> str:
    if character.isascii():
        return character
    digit = unicodedata.digit(character, None)
    if digit is not None:
        return str(digit)
    folded = unicodedata.normalize("NFKC", character)
    looks_alike = len(folded) == 1 and folded.isascii() and not folded.isspace()
    return folded if looks_alike else character


def _once(repairs: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(repairs))
