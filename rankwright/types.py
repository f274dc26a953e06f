"""The vocabulary of rankwright: frozen nouns and the protocols of the plug points.

Axes in names, everywhere: Q queries in a batch, S sampled rankings of a query, D candidate documents, K ranking
positions (steps), T tokens. So `scores_QD`, `actions_QSK`, `rewards_QSK`.

This module imports neither torch nor numpy: whoever needs only the nouns pays nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, runtime_checkable

from rankwright.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Query:
    """A question as the user asked it."""

    query_id: str
    """Unique inside one data set."""
    text: str
    """The question, unchanged."""


@dataclass(frozen=True, slots=True)
class Document:
    """One passage of the corpus."""

    doc_id: str
    """Unique inside one corpus."""
    text: str
    """The passage, unchanged."""
    title: str = ""
    """Empty where the source has none; a document without a title is its bare text."""


@dataclass(frozen=True, slots=True)
class Example:
    """One question with what is known about it: the unit that data loaders produce and trainers consume."""

    query: Query
    candidates: tuple[Document, ...] = ()
    """First-stage candidates, best first; empty until a retriever has run."""
    answers: tuple[str, ...] = ()
    """Accepted answers, any of which counts; empty where only labels are known."""
    relevance: Mapping[str, int] = field(default_factory=dict)
    """doc_id -> relevance grade; empty where no labels are known."""
    first_stage: Mapping[str, float] = field(default_factory=dict)
    """doc_id -> score that the first stage gave a candidate; empty where none is known."""
    order: tuple[str, ...] = ()
    """doc_ids in a teacher's order, best first, each once; empty where nobody ordered them."""
    thoughts: str = ""
    """What a teacher thought before it judged the candidates as they stand; empty where nobody wrote it down."""


class ScoredDoc(NamedTuple):
    """One line of a run, in the field names that ir_measures reads."""

    query_id: str
    doc_id: str
    score: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """The documents of one query, best first."""

    query_id: str
    doc_ids: tuple[str, ...]
    scores: tuple[float, ...]
    """Raw scores of the reranker in the order of doc_ids, never rescaled."""

    def __post_init__(self) -> None:
        if len(self.doc_ids) != len(self.scores):
            raise ConfigurationError(
                f"Ranking of query '{self.query_id}' has {len(self.doc_ids)} doc_ids and {len(self.scores)} scores; "
                "give one score for every doc_id."
            )

    def best(self, top_k: int | None) -> Ranking:
        """Only the first top_k documents; all for None."""
        return Ranking(self.query_id, self.doc_ids[:top_k], self.scores[:top_k])

    def documents(self, candidates: Sequence[str | Document]) -> tuple[Document, ...]:
        """The ranked documents, best first, out of the candidates that were ranked.

        Raises:
            ConfigurationError: one of them is not among the candidates.
        """
        by_id = {document.doc_id: document for document in as_documents(candidates)}
        missing = next((doc_id for doc_id in self.doc_ids if doc_id not in by_id), None)
        if missing is not None:
            raise ConfigurationError(
                f"Ranking of query '{self.query_id}' has document '{missing}', which is not among the {len(by_id)} "
                "candidates given; wanted those that were ranked."
            )
        return tuple(by_id[doc_id] for doc_id in self.doc_ids)

    def scored_docs(self) -> list[ScoredDoc]:
        """Rows for ir_measures. Scores are replaced by descending ranks, because metric engines break ties
        differently."""
        n = len(self.doc_ids)
        return [ScoredDoc(self.query_id, doc_id, float(n - i)) for i, doc_id in enumerate(self.doc_ids)]


@dataclass(frozen=True, slots=True)
class Context:
    """What a reader is given: a question and the passages chosen for it, in reading order."""

    query: Query
    documents: tuple[Document, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a reader said. An empty text is a real answer: the reader found nothing."""

    text: str
    paid: bool = True
    """False where a cache answered: no reader call was made."""


@dataclass(frozen=True, slots=True)
class ReadFailed:
    """The reader gave no usable answer. Never a reward of 0: losses mask it, metrics count it."""

    reason: str
    """Short class of the failure, for example `timeout`, `http 500`, `empty text`."""
    paid: bool = True
    """False where no reader call was made, for example for a prompt that is too long to send."""


ReadResult = Answer | ReadFailed


ParseOutcome = Literal["ok", "repaired", "malformed"]
"""How a model's words became a judgement: as they stand, after repairs, or not at all."""


@dataclass(frozen=True, slots=True)
class Permutation:
    """An order of the documents of one prompt."""

    order: tuple[int, ...]
    """Positions in the prompt from 0, best first, each exactly once; the prompt's own order where malformed."""
    outcome: ParseOutcome = "ok"
    repairs: tuple[str, ...] = ()
    """What was mended, or why nothing could be read; short words that can be counted, for example `id missing`."""


@dataclass(frozen=True, slots=True)
class Scores:
    """A score for every document of one prompt."""

    values: tuple[float | None, ...]
    """One a document, larger is better; None where none could be read, never 0 in its place."""
    outcome: ParseOutcome = "ok"
    repairs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """The best document of one prompt."""

    position: int | None
    """In the prompt, from 0; None where none could be read."""
    outcome: ParseOutcome = "ok"
    repairs: tuple[str, ...] = ()


Judgement = Permutation | Scores | Choice

CALL_FAILED = "call failed: "
"""How the only repair of a judgement begins whose call came to nothing; the reason stands behind it."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A judgement of one prompt's documents, and what it took."""

    judgement: Judgement
    """Malformed, with CALL_FAILED and the reason in `repairs`, where the call failed."""
    input_tokens: int | None = None
    """Billed prompt tokens; None where they are not known."""
    output_tokens: int | None = None
    paid: bool = True
    """False where a cache answered, or nothing was sent."""
    thoughts: str = ""
    """What was written before the answer, without the tags around it; empty where that is not known."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one reading of a rollout came to; the input of a reward."""

    example: Example
    context: Context
    """Query and documents as the reader got them, in order; for a generated ranking those of its prompt, in order."""
    result: ReadResult
    position: int
    """1-based step of the ranking whose prefix was read; 0 for a reading without documents."""
    group_id: str
    """Equal for all rollouts of one question."""
    judgement: Judgement | None = None
    """What a generating reranker wrote, read strictly; None for sampled rankings of a scoring one."""
    completion: str = ""
    """The words themselves, for rewards of their form."""


@dataclass(frozen=True, slots=True)
class RewardValue:
    """The price of one outcome."""

    value: float | None
    """None where no reward can be given (failed read, failed reward function); never 0 in its place."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Components by name, for logs."""


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """One query and the documents to order."""

    query: Query
    documents: tuple[Document, ...]
    first_stage: Mapping[str, float] = field(default_factory=dict, hash=False)
    """doc_id -> score of the first stage, for fusion with it; empty where none is known."""

    def __post_init__(self) -> None:
        if len({document.doc_id for document in self.documents}) < len(self.documents):
            doc_id, times = Counter(document.doc_id for document in self.documents).most_common(1)[0]
            raise DataError(
                f"doc_id '{doc_id}' stands {times} times among the documents of query '{self.query.query_id}'; wanted "
                "every doc_id once. Remove the repetitions or give ids of their own; a plain string has its position."
            )


@dataclass(frozen=True, slots=True)
class Scored:
    """What one request's documents got, in the order they were given."""

    scores: tuple[float, ...]
    """Raw logits of fp32, never rescaled."""
    tokens: tuple[int, ...]
    """Tokens read of each pair, after cutting; a prompt that holds several documents is shared out among them."""
    cut: tuple[bool, ...]
    """Whether the pair was cut to fit into the model."""


@dataclass(frozen=True, slots=True)
class LLMRequest:
    """One call of a chat model."""

    messages: tuple[tuple[str, str], ...]
    """(role, content) pairs, in order."""
    sampling: tuple[tuple[str, float | int | str], ...] = (("max_tokens", 64), ("temperature", 0.0))
    """Sampling parameters, sorted by name; all of them are part of the cache key."""
    prompt_version: str = ""
    """Name and version of the prompt text that made the messages."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What a chat model wrote."""

    text: str
    input_tokens: int | None = None
    """Billed prompt tokens; None where the server does not say."""
    output_tokens: int | None = None
    paid: bool = True
    """False where a cache answered."""
    top_logprobs: tuple[Mapping[str, float], ...] = ()
    """For every token written, itself first, then the likeliest tokens, with their log probabilities; empty where not
    asked for (`logprobs`, `top_logprobs` in the sampling)."""


@dataclass(frozen=True, slots=True)
class CompletionFailed:
    """The call came to nothing after all retries."""

    reason: str
    paid: bool = True
    """False where nothing was sent."""
    detail: str = field(default="", compare=False)
    """What else is known, for a message: sizes, or the server's own words. Failures are counted by `reason` alone."""
    input_tokens: int | None = field(default=None, compare=False)
    """Billed prompt tokens of all attempts; None where one of them is not known."""
    output_tokens: int | None = field(default=None, compare=False)


CompletionResult = Completion | CompletionFailed


@runtime_checkable
class Retriever(Protocol):
    """First stage: candidates for a query from a corpus."""

    def retrieve(self, queries: Sequence[Query], depth: int) -> list[tuple[Document, ...]]:
        """For each query at most `depth` documents, best first."""
        ...


@runtime_checkable
class LLM(Protocol):
    """Text in, text out. A cache around an LLM is an LLM."""

    @property
    def name(self) -> str:
        """Model (and endpoint) as it belongs in a cache key and in a signature."""
        ...

    def complete(self, requests: Sequence[LLMRequest]) -> list[CompletionResult]:
        """One result per request, in order; failures are values."""
        ...


@runtime_checkable
class Reader(Protocol):
    """Answers a question from passages. A cache around a reader is a reader."""

    @property
    def name(self) -> str:
        """Identity of the reader as it belongs in a signature."""
        ...

    def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
        """One result per context, in order; failures are values."""
        ...


class Reward(Protocol):
    """Prices outcomes. It is given all rollouts of a question together. A weighted sum of rewards is a reward."""

    @property
    def name(self) -> str: ...

    def __call__(self, outcomes: Sequence[Outcome]) -> list[RewardValue]:
        """One value per outcome, in order."""
        ...


@runtime_checkable
class Reranker(Protocol):
    """Orders documents for a query."""

    @property
    def name(self) -> str: ...

    def rerank_batch(self, requests: Sequence[RerankRequest]) -> list[Ranking]:
        """One ranking per request, in order, holding every document of the request."""
        ...

    def rerank(self, query: str | Query, documents: Sequence[str | Document], top_k: int | None = None) -> Ranking:
        """The one-request convenience over rerank_batch."""
        ...


class ScoringPolicy(Protocol):
    """A Reranker that is an nn.Module: scores come only through its forward, so a trainer may wrap it."""

    def __call__(self, requests: Sequence[RerankRequest]) -> Tensor:
        """scores_QD with gradient, padded with -inf where a query has fewer documents."""
        ...


@runtime_checkable
class GeneratingPolicy(Protocol):
    """A language model and a prompt that judge a few documents at once; how a long list is covered is a strategy's."""

    @property
    def name(self) -> str:
        """Model, prompt version and sampling, as they belong in a signature."""
        ...

    def judge(self, windows: Sequence[RerankRequest]) -> list[Judged]:
        """One judgement per window, in order, each from one call; windows do not depend on each other."""
        ...


def as_query(query: str | Query) -> Query:
    """A plain string becomes a Query with id "0"."""
    return query if isinstance(query, Query) else Query("0", query)


def as_documents(documents: Sequence[str | Document]) -> tuple[Document, ...]:
    """Plain strings become Documents whose id is their position: "0", "1", ...

    Raises:
        ConfigurationError: one text instead of a list, or an element that is neither string nor Document.
    """
    if isinstance(documents, str | bytes | Document | Mapping):  # iterated, these are letters, numbers or keys
        raise ConfigurationError(
            f"Documents are one {type(documents).__name__}; wanted a list of strings or Documents. "
            "Put a single document into a list of its own."
        )
    return tuple(d if isinstance(d, Document) else Document(str(i), _text(d, i)) for i, d in enumerate(documents))


def _text(found: object, position: int) -> str:
    if isinstance(found, str):
        return found
    raise ConfigurationError(
        f"Document at position {position} is a value of type {type(found).__name__}; wanted a string or a Document. "
        "Give its text, or Document(doc_id, text)."
    )
