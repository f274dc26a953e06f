"""The language: words have a hidden class, a query names a topic, and a topic likes classes more or less.

A passage is three words and a value: `w07 w21 w30 v14`. A word's class is its number modulo 4. Words of class 0 are
worth 1 to every topic and those of class 3 nothing; even topics like class 1 and odd ones class 2, which are worth 2 to
them and nothing to the others. What a passage is worth to a query is the sum over its words, 0 to 6; the grade is 0 up
to 2, then one more for each, at most 3. The best order is that by worth, so nDCG of any order is known. Nothing of this
can be read off the surface: classes and likes have to be learned. A query has a second word, a value, which means
nothing, as much in real queries does.

Pairs of topic and value are divided: questions of the test side and of the dev side have queries that no training
question has.

A completion thinks before it answers, as the papers' models do: for each passage the level that it thinks it is worth,
then the answer that follows from these levels, in one of five forms: the order of all, the best one, a score for each,
and for a passage alone a grade or, without a thought, 0 or 1.

The teacher of the warm-up is partly wrong: it adds noise to the worth, and of four of the eight topics it knows for two
questions out of three the kind wrongly. Who learns to say what it says most often orders those wrongly; what it says
the third time is right. The answer to a question is the value of its best passage; the reader answers with the value of
the best passage that it is given.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rankwright.prompts.ranking import RankingPrompt, load_ranking_prompt
from rankwright.types import Answer, Context, Document, Example, Query, ReadResult

TOPICS = tuple(f"t{number}" for number in range(8))
WORDS = tuple(f"w{number:02}" for number in range(32))
LEVELS = tuple(f"s{number}" for number in range(7))
GRADES = (0, 2, 3, 5, 7, 8, 10)
"""A level on the scale of 0 to 10 that integers and JSON scores have."""
KINDS = ("listwise", "setwise", "groupwise", "integer", "binary")
"""Forms of the answer; a prompt lies beside this file for each."""
ALONE = ("integer", "binary")
"""Those about one passage."""
VALUES = tuple(f"v{number:02}" for number in range(32))
CLASSES = 4
AFFINITY = ((1, 2, 0, 0), (1, 0, 2, 0))
"""What a word of each class is worth to an even topic and to an odd one."""
MISLED = (1, 2, 5, 6)
"""Topics of which the teacher is mostly wrong."""
MISTAKEN = 2 / 3
"""Share of their questions in which it is."""
PASSAGE_WORDS = 3
WINDOWS = (6, 7, 8)
TEACHER_NOISE = 0.5
"""Standard deviation; neighbouring worths differ by 1."""
Side = Literal["train", "dev", "test"]


def likes(topic: str, word: str, *, misled: bool = False) -> int:
    """How much a topic likes a word; with `misled` what the teacher thinks where it is wrong.

    >>> likes("t0", "w00"), likes("t0", "w01"), likes("t1", "w01"), likes("t2", "w01", misled=True)
    (1, 2, 0, 0)
    """
    number = int(topic[1:])
    wrong = misled and number in MISLED
    return AFFINITY[(number + wrong) % 2][int(word[1:]) % CLASSES]


def worth(query: str, passage: str, *, misled: bool = False) -> int:
    """What a passage is worth to a query, 0 to 6.

    >>> worth("t0 v09", "w00 w04 w08 v01"), worth("t0 v09", "w01 w05 w09 v01"), worth("t1 v09", "w01 w05 w06 v01")
    (3, 6, 2)
    """
    topic = query.split()[0]
    return sum(likes(topic, word, misled=misled) for word in passage.split()[:PASSAGE_WORDS])


def grade(value: int) -> int:
    """Relevance of a worth, 0 to 3.

    >>> [grade(value) for value in range(7)]
    [0, 0, 0, 1, 2, 3, 3]
    """
    return max(0, min(3, value - 2))


def side_of(query: str) -> Side:
    """Whom a query belongs to: a quarter to the test side, an eighth to the dev side.

    >>> side_of("t0 v04"), side_of("t0 v02"), side_of("t0 v01")
    ('test', 'dev', 'train')
    """
    number = sum(int(word[1:]) for word in query.split())
    return "test" if number % 4 == 0 else "dev" if number % 8 == 2 else "train"


def questions(count: int, seed: int, *, side: Side = "train", window: int | None = None) -> list[Example]:
    """Questions with their candidates in random order, at least one of which has a grade, if there are two.

    Args:
        count: how many.
        seed: decides them, together with `side`.
        side: whose queries they have.
        window: documents of each; None draws it out of WINDOWS.
    """
    draw = random.Random(f"{seed} {side}")
    found: list[Example] = []
    while len(found) < count:
        text = f"{draw.choice(TOPICS)} {draw.choice(VALUES)}"
        size = window or draw.choice(WINDOWS)
        values = draw.sample(VALUES, size)
        passages = [" ".join([*draw.choices(WORDS, k=PASSAGE_WORDS), value]) for value in values]
        worths = [worth(text, passage) for passage in passages]
        if side_of(text) == side and (grade(max(worths)) or size == 1):
            found.append(_example(f"{side}{seed}-{len(found)}", text, passages, worths))
    return found


def _example(query_id: str, text: str, passages: Sequence[str], worths: Sequence[int]) -> Example:
    documents = tuple(Document(str(number), passage) for number, passage in enumerate(passages))
    best = tuple(passage.split()[-1] for passage, value in zip(passages, worths, strict=True) if value == max(worths))
    relevance = {document.doc_id: grade(value) for document, value in zip(documents, worths, strict=True)}
    return Example(Query(query_id, text), documents, best, relevance)


def true_levels(example: Example) -> tuple[int, ...]:
    """What each candidate is worth."""
    return tuple(worth(example.query.text, document.text) for document in example.candidates)


def taught_levels(example: Example, seed: int) -> tuple[int, ...]:
    """What the partly wrong teacher thinks of each candidate."""
    draw = random.Random(f"{seed} {example.query.query_id}")
    misled = draw.random() < MISTAKEN
    thought = [
        worth(example.query.text, document.text, misled=misled) + draw.gauss(0, TEACHER_NOISE)
        for document in example.candidates
    ]
    return tuple(max(0, min(len(LEVELS) - 1, round(value))) for value in thought)


def order_by(levels: Sequence[int]) -> tuple[int, ...]:
    """Positions by level, best first, equal ones as they stand.

    >>> order_by((1, 3, 3))
    (1, 2, 0)
    """
    return tuple(sorted(range(len(levels)), key=lambda position: -levels[position]))


class PerfectReader:
    """Answers with the value of the best passage that it is given."""

    name = "ranking-language"

    def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
        return [Answer(self._one(context)) for context in contexts]

    def _one(self, context: Context) -> str:
        best = max(context.documents, key=lambda document: worth(context.query.text, document.text), default=None)
        return best.text.split()[-1] if best else ""


# --- prompts and answers


def prompt(kind: str = "listwise") -> RankingPrompt:
    """A prompt of a few words: the file of this kind beside this one."""
    return load_ranking_prompt(Path(__file__).with_name(f"{kind}.yaml"))


def written(levels: Sequence[int], kind: str = "listwise") -> str:
    """The completion that thinks these levels and answers in the form of `kind` what follows from them.

    >>> written((1, 0, 4))
    '<think> [1] s1 [2] s0 [3] s4 </think> <answer> [3] > [1] > [2] </answer>'
    >>> written((1, 0, 4), "setwise")
    '<think> [1] s1 [2] s0 [3] s4 </think> <answer> [3] </answer>'
    >>> written((1, 4), "groupwise")
    '<reason> [1] s1 [2] s4 </reason> <answer> { "[1]": 2 , "[2]": 7 } </answer>'
    >>> written((4,), "integer"), written((4,), "binary")
    ('<think> [1] s4 </think> <answer> 7 </answer>', '1')
    """
    if kind == "binary":
        return str(int(grade(levels[0]) > 0))
    thought = " ".join(f"[{number}] {LEVELS[level]}" for number, level in enumerate(levels, 1))
    tag = "reason" if kind == "groupwise" else "think"
    return f"<{tag}> {thought} </{tag}> <answer> {_said(levels, kind)} </answer>"


def _said(levels: Sequence[int], kind: str) -> str:
    if kind == "integer":
        return str(GRADES[levels[0]])
    if kind == "groupwise":
        pairs = (f'"[{number}]": {GRADES[level]}' for number, level in enumerate(levels, 1))
        return f"{{ {' , '.join(pairs)} }}"
    order = order_by(levels)[: 1 if kind == "setwise" else None]
    return " > ".join(f"[{position + 1}]" for position in order)
