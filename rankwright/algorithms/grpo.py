"""GRPO's two ends that are ours: questions become prompt rows, and a Reward becomes a TRL reward function.

The loop between them, from sampling to gradient, is TRL's (rankwright.tuning starts it). Imports no torch.

TRL hands a reward function the completions of its own process, in the order of the sampler. Rewards that compare the
documents or the rollouts of a question (ERank, Retro*) need them together: rows of a question stand side by side in a
generation, what all processes wrote is gathered before it is priced, and a question of which something is missing is an
error, never a reward of less.
"""

from __future__ import annotations

import math
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rankwright import processes
from rankwright.errors import RewardError, TrainingError
from rankwright.reading import MINIMUM_READS, finite
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
    ReadFailed,
    Reward,
    RewardValue,
)

NOT_READ = ReadFailed("not read", paid=False)
"""Whether and what a reader reads of a written ranking is the reward's business."""
_BEGUN = re.compile(r"<(?:think|thinking|thought|reason|reasoning)>(?=\s*\Z)", re.IGNORECASE)
RECENT = 300
"""Completions over which the share without a reward is taken."""
Gather = Callable[[list[Any]], list[Any]]
"""What every process gives, one list after the other in the order of the processes."""


class Prompt(Protocol):
    """What is needed here of a prompt (prompts.ranking.RankingPrompt)."""

    @property
    def kind(self) -> str:
        """listwise, setwise, groupwise or pointwise."""
        ...

    @property
    def parser(self) -> str:
        """Name of what reads the answer."""
        ...

    def identifiers(self, count: int) -> tuple[str, ...]:
        """Names of so many documents, in order."""
        ...

    def messages(self, query: Query, documents: Sequence[Document]) -> tuple[tuple[str, str], ...]:
        """(role, content) of the prompt about these documents."""
        ...

    def parse(self, completion: Completion, count: int, *, strict: bool = False) -> Judgement:
        """What a completion says of `count` documents."""
        ...


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


def prompt_rows(examples: Iterable[Example], prompt: Prompt, window: int, *, shorter: bool = False) -> PromptRows:
    """The prompts of questions about their first `window` candidates: one for each document with a pointwise prompt,
    else one for all.

    Args:
        examples: training questions with candidates.
        prompt: what the model is shown.
        window: documents of a question.
        shorter: keep questions with fewer candidates, two at least; else they are left out. Not with a pointwise
            prompt, with which all questions must have as many prompts.

    Raises:
        TrainingError: no question is left.
    """
    examples, each = list(examples), prompt.kind == "pointwise"
    fewest = 2 if shorter and not each else window
    usable = [example for example in examples if len(example.candidates) >= fewest]
    if not usable:
        raise TrainingError(
            f"None of the {len(examples)} training questions has {fewest} candidates (generating.window); wanted that "
            "many of each. Raise --depth, or lower generating.window."
        )
    rows: list[PromptRow] = []
    for example in usable:
        documents = example.candidates[:window]
        groups = [(document,) for document in documents] if each else [documents]
        rows += [PromptRow(example, group, prompt.messages(example.query, group)) for group in groups]
    return PromptRows(tuple(rows), len(rows) // len(usable))


def order_of(judgement: Judgement, count: int) -> tuple[int, ...]:
    """All positions of a prompt of `count` documents, best first: as written; the chosen one and then the others; by
    scores, those without one last, equal ones as they stood.

    >>> order_of(Choice(2), 3), order_of(Choice(None), 2), order_of(Permutation((1, 0)), 2)
    ((2, 0, 1), (0, 1), (1, 0))
    """
    if isinstance(judgement, Permutation):
        return judgement.order
    if isinstance(judgement, Choice):
        return tuple(sorted(range(count), key=lambda i: i != judgement.position))
    values = judgement.values
    return tuple(sorted(range(count), key=lambda i: (values[i] is None, -(values[i] or 0.0))))


@dataclass
class TRLReward:
    """A Reward as TRL calls one: a number for each completion of this process, None where there is none."""

    reward: Reward
    prompt: Prompt
    rows: PromptRows
    rollouts: int
    gather: Gather = lambda share: share
    begun: str = ""
    """What stands before every completion as its first word, though the model does not write it; see `begun_by`."""
    max_failed: float = 1.0
    """Largest share of the last RECENT completions that may have no reward, from the fiftieth on."""
    _recent: deque[bool] = field(default_factory=lambda: deque(maxlen=RECENT), repr=False)

    def __post_init__(self) -> None:
        self.__name__ = self.reward.name

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        row: Sequence[int],
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        mine = [
            (int(number), self.begun + text_of(completion)) for number, completion in zip(row, completions, strict=True)
        ]
        shares = self.gather([mine])
        written = [pair for share in shares for pair in share]
        check_complete([number for number, _ in written], self.rows, self.rollouts)
        values, metrics = processes.from_first(lambda: self.price(written))
        if log_metric is not None:
            for name, value in metrics.items():
                log_metric(name, value)
        begin = sum(len(share) for share in shares[: processes.rank()])
        return values[begin : begin + len(mine)]

    def price(self, written: Sequence[tuple[int, str]]) -> tuple[list[float | None], dict[str, float]]:
        """Rewards of whole questions, and for the log the shares of parse outcomes and of failed rewards, and the mean
        of each part of the reward.

        Args:
            written: row number and completion of each.

        Raises:
            RewardError: too many completions have no reward.
        """
        outcomes = [self._outcome(number, text) for number, text in written]
        paid = self.reward(outcomes)
        values = [finite(value.value) for value in paid]
        self._check_failures(values)
        named = Counter(outcome.judgement.outcome for outcome in outcomes if outcome.judgement)
        shares = {name: named[name] / len(outcomes) for name in ("ok", "repaired", "malformed")}
        failed = sum(value is None for value in values) / len(values)
        return values, {**shares, "failed_rewards": failed, **mean_parts(paid)}

    def _check_failures(self, values: Sequence[float | None]) -> None:
        self._recent.extend(value is None for value in values)
        failed, seen = sum(self._recent), len(self._recent)
        if seen >= MINIMUM_READS and failed > self.max_failed * seen:
            raise RewardError(
                f"Reward '{self.reward.name}' gave no value to {failed} of the last {seen} completions; at most "
                f"{self.max_failed:.0%} may have none (grpo.max_failed_rewards). Mend what it asks and go on with "
                "--resume."
            )

    def _outcome(self, number: int, text: str) -> Outcome:
        row = self.rows.rows[number]
        query = row.example.query
        judgement = self.prompt.parse(Completion(text), len(row.documents), strict=True)
        return Outcome(row.example, Context(query, row.documents), NOT_READ, 0, query.query_id, judgement, text)


def mean_parts(values: Sequence[RewardValue]) -> dict[str, float]:
    """`parts/NAME` -> mean of a part over the completions that have it.

    >>> mean_parts([RewardValue(1.0, {"rank": 0.5}), RewardValue(0.0, {"rank": 0.0, "tags": 1.0}), RewardValue(None)])
    {'parts/rank': 0.25, 'parts/tags': 1.0}
    """
    found: dict[str, list[float]] = {}
    for value in values:
        for name, part in value.parts.items():
            found.setdefault(f"parts/{name}", []).append(part)
    return {name: math.fsum(parts) / len(parts) for name, parts in found.items()}


def begun_by(prompt: str) -> str:
    """The tag at the end of a rendered prompt that opens thoughts: chat templates of models that always think write it,
    so that it is no part of what the model writes, and still belongs to the form of its answer.

    >>> begun_by("<|assistant|><think>\\n"), begun_by("<|assistant|>")
    ('<think>', '')
    """
    found = _BEGUN.search(prompt)
    return found[0] if found else ""


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
