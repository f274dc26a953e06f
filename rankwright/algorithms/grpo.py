"""GRPO's two ends that are ours: questions become prompt rows, and a Reward becomes a TRL reward function.

The loop between them, from sampling to gradient, is TRL's (rankwright.tuning starts it). Imports no torch.

TRL hands a reward function the completions of its own process, in the order of the sampler. Rewards that compare the
documents or the rollouts of a question (ERank, Retro*) need them together: rows of a question stand side by side in a
generation, what all processes wrote is gathered before it is priced, and a question of which something is missing is an
error, never a reward of less.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rankwright import processes
from rankwright.errors import ConfigurationError, TrainingError
from rankwright.reading import priced
from rankwright.types import (
    Choice,
    Completion,
    Context,
    Document,
    Example,
    Judgement,
    Outcome,
    Permutation,
    Query,
    Reader,
    ReadFailed,
    ReadResult,
    Reward,
)

NOT_ASKED = ReadFailed("no reader asked", paid=False)
Gather = Callable[[list[Any]], list[Any]]
"""What every process gives, one list after the other in the order of the processes."""


@dataclass(frozen=True)
class PromptRow:
    """One prompt of a question."""

    example: Example
    documents: tuple[Document, ...]
    """As they stand in it, in order."""
    messages: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class PromptRows:
    """All prompts of a training set, those of a question side by side."""

    rows: tuple[PromptRow, ...]
    per_question: int
    """Prompts of each question, the same for all."""

    @property
    def questions(self) -> int:
        """Questions that they are of."""
        return len(self.rows) // self.per_question

    def columns(self) -> list[dict[str, Any]]:
        """Rows of a data set as TRL wants them; `row` comes back to the reward function."""
        return [
            {"prompt": [{"role": role, "content": text} for role, text in row.messages], "row": number}
            for number, row in enumerate(self.rows)
        ]


def prompt_rows(
    examples: Iterable[Example],
    prompt: RankingPrompt,
    window: int,
    cut: Callable[[Document], Document] = lambda document: document,
) -> PromptRows:
    """The prompts of questions about their first `window` candidates: one for each document with a pointwise prompt,
    else one for all. Questions with fewer candidates are left out.

    Args:
        examples: training questions with candidates.
        prompt: what the model is shown.
        window: documents of a question.
        cut: shortens a passage.

    Raises:
        TrainingError: no question is left.
    """
    examples = list(examples)
    usable = [example for example in examples if len(example.candidates) >= window]
    if not usable:
        raise TrainingError(
            f"None of the {len(examples)} training questions has {window} candidates (generating.window); wanted that "
            "many of each. Raise --depth, or lower generating.window."
        )
    rows: list[PromptRow] = []
    for example in usable:
        documents = tuple(cut(document) for document in example.candidates[:window])
        groups = [(document,) for document in documents] if prompt.kind == "pointwise" else [documents]
        rows += [PromptRow(example, group, prompt.messages(example.query, group)) for group in groups]
    return PromptRows(tuple(rows), len(rows) // len(usable))


def order_of(judgement: Judgement) -> tuple[int, ...]:
    """Positions in the prompt, best first: as written; the chosen one and then the others; by scores, those without
    one last, equal ones as they stood.

    >>> order_of(Choice(2)), order_of(Choice(None)), order_of(Permutation((1, 0)))
    ((2,), (), (1, 0))
    """
    if isinstance(judgement, Permutation):
        return judgement.order
    if isinstance(judgement, Choice):
        return () if judgement.position is None else (judgement.position,)
    scored = [i for i, value in enumerate(judgement.values) if value is not None]
    missing = [i for i, value in enumerate(judgement.values) if value is None]
    return (*sorted(scored, key=lambda i: -(judgement.values[i] or 0.0)), *missing)


@dataclass
class TRLReward:
    """A Reward as TRL calls one: a number for each completion of this process, None where there is none.

    With a reader, it reads the first `top_k` documents of what was written, and the reward prices its answer; of a
    malformed completion nothing is read and the reward is 0, because there is no ranking (ours: no paper rewards
    generated rankings so). A reading that failed has no reward.
    """

    reward: Reward
    prompt: RankingPrompt
    rows: PromptRows
    rollouts: int
    reader: Reader | None = None
    top_k: int = 1
    gather: Gather = lambda share: share
    metrics: Counter[str] = field(default_factory=Counter)
    """Since they were last taken: outcomes by name, `failed_rewards`, `reader_calls`, `completions`."""

    def __post_init__(self) -> None:
        if self.reader is not None and self.prompt.kind == "pointwise":
            raise ConfigurationError(
                f"Reward {self.reward.name} pays the answer after a ranking, and a pointwise prompt ranks nothing by "
                "itself; wanted a prompt for several documents. Give generating.prompt, or another --reward."
            )
        self.__name__ = self.reward.name

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        row: Sequence[int],
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        mine = [(int(number), text_of(completion)) for number, completion in zip(row, completions, strict=True)]
        shares = self.gather([mine])
        written = [pair for share in shares for pair in share]
        check_complete([number for number, _ in written], self.rows, self.rollouts)
        values, metrics = processes.from_first(lambda: (self.price(written), self.take_metrics()))
        if log_metric is not None:
            for name, value in metrics.items():
                log_metric(name, value)
        begin = sum(len(share) for share in shares[: processes.rank()])
        return values[begin : begin + len(mine)]

    def price(self, written: Sequence[tuple[int, str]]) -> list[float | None]:
        """Rewards of whole questions.

        Args:
            written: row number and completion of each.
        """
        judged = [self._judged(*pair) for pair in written]
        results = self._read(judged)
        outcomes = [
            Outcome(
                one.row.example,
                Context(one.row.example.query, one.row.documents),
                result,
                len(order_of(one.judgement)[: self.top_k]),
                one.row.example.query.query_id,
                one.judgement,
                one.text,
            )
            for one, result in zip(judged, results, strict=True)
        ]
        values = priced(outcomes, self.reward)
        if self.reader is not None:
            malformed = [one.judgement.outcome == "malformed" for one in judged]
            values = [0.0 if bad else value for bad, value in zip(malformed, values, strict=True)]
        self.metrics.update(one.judgement.outcome for one in judged)
        self.metrics.update(completions=len(judged), failed_rewards=sum(value is None for value in values))
        return values

    def _judged(self, number: int, text: str) -> _Judged:
        row = self.rows.rows[number]
        return _Judged(row, text, self.prompt.parse(Completion(text), len(row.documents), strict=True))

    def _read(self, judged: Sequence[_Judged]) -> list[ReadResult]:
        """An answer for each; equal contexts are read once."""
        if self.reader is None:
            return [NOT_ASKED] * len(judged)
        contexts = [one.read(self.top_k) for one in judged]
        distinct = list(dict.fromkeys(context for context in contexts if context.documents))
        answers = dict(zip(distinct, self.reader.answer(distinct) if distinct else [], strict=True))
        self.metrics.update(reader_calls=sum(answer.paid for answer in answers.values()))
        return [answers.get(context, NOT_ASKED) for context in contexts]

    def take_metrics(self) -> dict[str, float]:
        """Shares of outcomes and failures, and calls, since this was last asked."""
        count = self.metrics["completions"]
        names = ("ok", "repaired", "malformed", "failed_rewards")
        taken = {name: self.metrics[name] / count for name in names} if count else {}
        taken |= {"reader_calls": float(self.metrics["reader_calls"])} if self.reader is not None else {}
        self.metrics.clear()
        return taken


@dataclass(frozen=True)
class _Judged:
    row: PromptRow
    text: str
    judgement: Judgement

    def read(self, top_k: int) -> Context:
        """What the reader is given; no documents where nothing well-formed was written."""
        order = () if self.judgement.outcome == "malformed" else order_of(self.judgement)[:top_k]
        return Context(self.row.example.query, tuple(self.row.documents[i] for i in order))


def text_of(completion: Any) -> str:
    """The words of a completion, which TRL gives as text or as a list of messages."""
    return completion if isinstance(completion, str) else "".join(str(message["content"]) for message in completion)


def check_complete(numbers: Sequence[int], rows: PromptRows, rollouts: int) -> None:
    """Whether whole questions are there: each prompt of each question with all its rollouts.

    Raises:
        TrainingError: something of a question is missing, or there twice.
    """
    found = Counter(numbers)
    for first in {number - number % rows.per_question for number in numbers}:
        for number in range(first, first + rows.per_question):
            if found[number] != rollouts:
                question = rows.rows[number].example.query.query_id
                raise TrainingError(
                    f"Question '{question}' came to its reward with {found[number]} completions of prompt "
                    f"{number - first + 1} of {rows.per_question}; wanted {rollouts} of each. A question may not be "
                    "divided between generations: check that the sampler is rankwright's."
                )
