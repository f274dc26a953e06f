"""What supervised fine-tuning teaches: the completion that says the best judgement which relevance labels allow, in the
form that the prompt's own strict parser reads. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from rankwright.algorithms.grpo import Prompt, PromptRow, PromptRows
from rankwright.errors import ConfigurationError, DataError
from rankwright.types import Choice, Completion, Document, Example, Judgement, Permutation

TOP = 10
"""Highest score of prompts that ask for one, 0 to 10."""
WORDS = {False: ("no", "0", "false"), True: ("yes", "1", "true")}
FRAMES = (
    "{}",
    "<answer>{}</answer>",
    "<think>\n\n</think>\n{}",
    "<think>\n\n</think>\n<answer>{}</answer>",
    "<reason>\n\n</reason>\n<answer>{}</answer>",
    "<reason>\n\n</reason>\n<answer>\n```json\n{}\n```\n</answer>",
)
"""Where a prompt may want its answer. Thoughts are empty, because labels have none, unless the data has a teacher's."""
EMPTY_THOUGHTS = re.compile(r"^<(think|reason)>\n\n</\1>")


def label_order(documents: Sequence[Document], example: Example) -> tuple[int, ...]:
    """Positions, best first: as a teacher ordered them, where one did; then by grade, equal grades as they stand.

    >>> from rankwright.types import Query
    >>> documents = (Document("a", ""), Document("b", ""), Document("c", ""))
    >>> label_order(documents, Example(Query("q", ""), relevance={"c": 2, "b": 2}))
    (1, 2, 0)
    >>> label_order(documents, Example(Query("q", ""), relevance={"c": 2, "b": 2}, order=("a", "c")))
    (0, 2, 1)
    """
    rank_of = {doc_id: rank for rank, doc_id in enumerate(example.order)}
    ids = [document.doc_id for document in documents]
    grades = [example.relevance.get(doc_id, 0) for doc_id in ids]
    return tuple(sorted(range(len(ids)), key=lambda i: (rank_of.get(ids[i], len(rank_of)), -grades[i])))


def targets(rows: PromptRows, prompt: Prompt) -> list[str]:
    """The completion of each prompt row.

    Raises:
        ConfigurationError: the prompt's parser reads none of our forms, so labels cannot teach it.
        DataError: a teacher's thoughts hide the answer from the prompt's parser.
    """
    highest = max((grade for row in rows.rows for grade in row.example.relevance.values()), default=0)
    return [_target(row, prompt, max(highest, 1)) for row in rows.rows]


def _target(row: PromptRow, prompt: Prompt, highest: int) -> str:
    if prompt.parser == "first-token":  # it reads probabilities, and its prompt asks for bare letters
        return _said(row, prompt, highest)[-1]
    for text in _texts(row, prompt, highest):
        if _reads(prompt, text, row):
            taught = _with_thoughts(text, row, prompt)
            if taught == text or _reads(prompt, taught, row):
                return taught
            raise DataError(
                f"Thoughts of question '{row.example.query.query_id}' cannot stand before its answer: with them the "
                f"prompt of kind {prompt.kind} does not read it. Wanted thoughts without tags; correct the field "
                "'thoughts'."
            )
    raise ConfigurationError(
        f"Prompt of kind {prompt.kind} reads none of the forms in which relevance labels can be written; wanted an "
        "order, a label, scores as JSON, a number, or a word. Give another generating.prompt."
    )


def _reads(prompt: Prompt, text: str, row: PromptRow) -> bool:
    judgement = prompt.parse(Completion(text), len(row.documents), strict=True)
    return judgement.outcome == "ok" and _means(judgement, row)


def _with_thoughts(text: str, row: PromptRow, prompt: Prompt) -> str:
    """A teacher's thoughts in the place of none. They are about all candidates, so not for a pointwise prompt, nor for
    fewer than the teacher had.

    >>> EMPTY_THOUGHTS.sub(lambda tag: f"<{tag[1]}>so</{tag[1]}>", "<think>\\n\\n</think>\\n[1]")
    '<think>so</think>\\n[1]'
    """
    thoughts = row.example.thoughts.strip()
    if not thoughts or prompt.kind == "pointwise" or len(row.documents) < len(row.example.candidates):
        return text
    return EMPTY_THOUGHTS.sub(lambda tag: f"<{tag[1]}>\n{thoughts}\n</{tag[1]}>", text)


def _texts(row: PromptRow, prompt: Prompt, highest: int) -> Iterator[str]:
    return (frame.format(said) for said in _said(row, prompt, highest) for frame in FRAMES)


def _said(row: PromptRow, prompt: Prompt, highest: int) -> list[str]:
    """What is to be said, in the ways in which a prompt of this kind may want it."""
    grades = [row.example.relevance.get(document.doc_id, 0) for document in row.documents]
    if prompt.kind == "pointwise":
        return [str(round(TOP * grades[0] / highest)), *WORDS[grades[0] > 0]]
    names = prompt.identifiers(len(row.documents))
    if prompt.kind == "groupwise":
        scores = {name: round(TOP * grade / highest) for name, grade in zip(names, grades, strict=True)}
        return [json.dumps({f"[{name}]": score for name, score in scores.items()}), json.dumps(scores)]
    order = label_order(row.documents, row.example)
    said = order[:1] if prompt.kind == "setwise" else order
    return [" > ".join(f"[{names[i]}]" for i in said), " > ".join(names[i] for i in said)]


def _means(judgement: Judgement, row: PromptRow) -> bool:
    """Whether what was read is what the labels say."""
    grades = [row.example.relevance.get(document.doc_id, 0) for document in row.documents]
    order = label_order(row.documents, row.example)
    if isinstance(judgement, Permutation):
        return judgement.order == order
    if isinstance(judgement, Choice):
        return judgement.position == order[0]
    if None in judgement.values:
        return False
    pairs = [(grade, value or 0.0) for grade, value in zip(grades, judgement.values, strict=True)]
    return all((one[0] > other[0]) <= (one[1] > other[1]) for one in pairs for other in pairs)
