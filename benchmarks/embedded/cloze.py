"""Questions made from passages alone: a sentence with one phrase taken out and some of its words dropped.

1,683 questions are few for a span head that starts from nothing. Cloze questions (Lewis et al. 2019, arXiv 1906.04980,
section 2) teach it first to find the sentence that a question is about and to copy the kind of phrase that is asked
for.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

from bm25s.stopwords import STOPWORDS_EN_PLUS

from benchmarks.embedded.sets import Question
from rankwright.types import Document

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'“‘(]?[A-Z0-9])")
WORD = re.compile(r"\w[\w'’.-]*\w|\w")
STOPWORDS = frozenset(STOPWORDS_EN_PLUS)
DROPPED = 0.3
"""Share of the other words that a question leaves out, so that it is no copy of the sentence."""


def phrases(sentence: str) -> list[tuple[int, int, str]]:
    """Begin, end and question word of the runs of words that may be asked for: names, numbers, content words."""
    runs: list[list[re.Match[str]]] = []
    for match in WORD.finditer(sentence):
        kind = _kind(match[0])
        joined = runs and sentence[runs[-1][-1].end() : match.start()] == " " and _kind(runs[-1][-1][0]) == kind
        if kind and joined and len(runs[-1]) < 4:
            runs[-1].append(match)
        elif kind:
            runs.append([match])
    asked = {"name": "who", "number": "how many", "word": "what"}
    found = []
    for run in runs:
        text = sentence[run[0].start() : run[-1].end()]
        if run[0].start() == 0 and len(run) == 1:  # a capital at the beginning says nothing
            continue
        kind = _kind(run[0][0])
        word = "when" if kind == "number" and re.fullmatch(r"1\d{3}|20\d{2}", text) else asked[kind]
        found.append((run[0].start(), run[-1].end(), word))
    return found


def _kind(word: str) -> str:
    if word.lower() in STOPWORDS or (len(word) < 2 and not word.isdigit()):
        return ""
    if word[0].isdigit():
        return "number"
    return "name" if word[0].isupper() else "word"


def cloze(document: Document, rng: random.Random) -> Question | None:
    """A question on one phrase of one sentence; None where the passage has no sentence of eight words."""
    sentences = [s for s in SENTENCE_END.split(document.text) if len(s.split()) >= 8]
    choices = [(s, phrase) for s in sentences for phrase in phrases(s)]
    if not choices:
        return None
    # Most real questions ask for names, numbers and years; most phrases are other words.
    special = [choice for choice in choices if choice[1][2] != "what"]
    sentence, (begin, end, word) = rng.choice(special if special and rng.random() < 0.6 else choices)
    if word == "who" and rng.random() < 0.5:
        word = rng.choice(("what", "which", "where"))
    before = [w for w in sentence[:begin].split() if rng.random() >= DROPPED]
    after = [w for w in sentence[end:].split() if rng.random() >= DROPPED]
    words = [word, *before, *after] if rng.random() < 0.7 else [*before, word, *after]
    return Question("cloze", " ".join(words).rstrip(".,;") + "?", (sentence[begin:end],), (document,))


def cloze_questions(documents: Iterable[Document], rng: random.Random) -> list[Question]:
    """One question for every passage that has a sentence to ask about."""
    return [question for document in documents if (question := cloze(document, rng)) is not None]
