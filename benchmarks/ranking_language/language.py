"""The language: words have a hidden class, a query names two topics, and a topic likes classes more or less.

A passage is three words and a value: `w07 w21 w30 v14`. A word's class is its number modulo 4. Topic t likes a word of
class c by AFFINITY[(c - t) modulo 4]. What a passage is worth to a query is the sum over its words and both topics, 0
to 12; the grade is 0 up to 5, then one more for every two. The best order is that by worth, so nDCG of any order is
known. Nothing of this can be read off the surface: classes and likes have to be learned, and no word of the query
stands in a passage.

Pairs of topics are divided: held-out questions have pairs that no training question has.

The teacher of the warm-up is partly wrong: it adds noise to the worth, and for two of the eight topics it takes the
second best class for the best one. The answer to a question is the value of its best passage; the reader answers with
the value of the best passage that it is given.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from rankwright.prompts.ranking import RankingPrompt, load_ranking_prompt
from rankwright.types import Answer, Context, Document, Example, Query, ReadResult

TOPICS = tuple(f"t{number}" for number in range(8))
WORDS = tuple(f"w{number:02}" for number in range(32))
VALUES = tuple(f"v{number:02}" for number in range(32))
CLASSES = 4
AFFINITY = (2, 1, 0, 0)
MISLED = (2, 5)
"""Topics that the teacher knows wrongly."""
MISLED_AFFINITY = (1, 2, 0, 0)
PASSAGE_WORDS = 3
WINDOWS = (6, 7, 8)
TEACHER_NOISE = 1.0
"""Standard deviation; neighbouring worths differ by 1."""


def likes(topic: str, word: str, *, misled: bool = False) -> int:
    """How much a topic likes a word; with `misled` what the teacher thinks.

    >>> likes("t0", "w00"), likes("t0", "w01"), likes("t2", "w02"), likes("t2", "w02", misled=True)
    (2, 1, 2, 1)
    """
    number = int(topic[1:])
    table = MISLED_AFFINITY if misled and number in MISLED else AFFINITY
    return table[(int(word[1:]) - number) % CLASSES]


def worth(query: str, passage: str, *, misled: bool = False) -> int:
    """What a passage is worth to a query, 0 to 12.

    >>> worth("t0 t4", "w00 w04 w08 v01"), worth("t0 t1", "w02 w03 w07 v01")
    (12, 1)
    """
    words = passage.split()[:PASSAGE_WORDS]
    return sum(likes(topic, word, misled=misled) for topic in query.split() for word in words)


def grade(value: int) -> int:
    """Relevance of a worth, 0 to 3.

    >>> [grade(value) for value in (0, 5, 6, 7, 8, 9, 10, 12)]
    [0, 0, 1, 1, 2, 2, 3, 3]
    """
    return max(0, min(3, (value - 4) // 2))


def is_held_out(query: str) -> bool:
    """Whether a pair of topics is kept for the comparison: about a quarter of them.

    >>> is_held_out("t0 t4"), is_held_out("t4 t0"), is_held_out("t0 t1")
    (True, True, False)
    """
    return sum(int(topic[1:]) for topic in query.split()) % 4 == 0


def questions(count: int, seed: int, *, held_out: bool = False, window: int | None = None) -> list[Example]:
    """Questions with their candidates in random order, at least one of which has a grade.

    Args:
        count: how many.
        seed: decides them, together with `held_out`.
        held_out: of held-out pairs of topics.
        window: documents of each; None draws it out of WINDOWS.
    """
    draw = random.Random(f"{seed} {held_out}")
    found: list[Example] = []
    while len(found) < count:
        text = f"{draw.choice(TOPICS)} {draw.choice(TOPICS)}"
        size = window or draw.choice(WINDOWS)
        values = draw.sample(VALUES, size)
        passages = [" ".join([*draw.choices(WORDS, k=PASSAGE_WORDS), value]) for value in values]
        worths = [worth(text, passage) for passage in passages]
        if is_held_out(text) == held_out and grade(max(worths)):
            found.append(_example(f"{'h' if held_out else 'q'}{seed}-{len(found)}", text, passages, worths))
    return found


def _example(query_id: str, text: str, passages: Sequence[str], worths: Sequence[int]) -> Example:
    documents = tuple(Document(str(number), passage) for number, passage in enumerate(passages))
    best = tuple(passage.split()[-1] for passage, value in zip(passages, worths, strict=True) if value == max(worths))
    relevance = {document.doc_id: grade(value) for document, value in zip(documents, worths, strict=True)}
    return Example(Query(query_id, text), documents, best, relevance)


def best_order(example: Example) -> tuple[int, ...]:
    """Positions of the candidates by worth, equal ones as they stand."""
    worths = [worth(example.query.text, document.text) for document in example.candidates]
    return tuple(sorted(range(len(worths)), key=lambda position: -worths[position]))


def taught_order(example: Example, seed: int) -> tuple[int, ...]:
    """What the partly wrong teacher says is the order."""
    draw = random.Random(f"{seed} {example.query.query_id}")
    thought = [
        worth(example.query.text, document.text, misled=True) + draw.gauss(0, TEACHER_NOISE)
        for document in example.candidates
    ]
    return tuple(sorted(range(len(thought)), key=lambda position: -thought[position]))


class PerfectReader:
    """Answers with the value of the best passage that it is given."""

    name = "ranking-language"

    def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
        return [Answer(self._one(context)) for context in contexts]

    def _one(self, context: Context) -> str:
        best = max(context.documents, key=lambda document: worth(context.query.text, document.text), default=None)
        return best.text.split()[-1] if best else ""


# --- prompts and answers, in the form of the listwise and the setwise prompt


def prompt(kind: str = "listwise") -> RankingPrompt:
    """A prompt of a few words: listwise.yaml or setwise.yaml beside this file."""
    return load_ranking_prompt(Path(__file__).with_name(f"{kind}.yaml"))


def written(query: str, order: Sequence[int], kind: str = "listwise") -> str:
    """The completion that says this order: the thought repeats the query.

    >>> written("t1 t2", (2, 0, 1))
    '<think> t1 t2 </think> <answer> [3] > [1] > [2] </answer>'
    >>> written("t1 t2", (2, 0, 1), "setwise")
    '<think> t1 t2 </think> <answer> [3] </answer>'
    """
    said = order[:1] if kind == "setwise" else order
    return f"<think> {query} </think> <answer> {' > '.join(f'[{position + 1}]' for position in said)} </answer>"
