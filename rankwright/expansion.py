"""Query expansion before retrieval: a language model guesses a passage, and retrieval searches with question and guess.

    llm = CachedLLM(HTTPLLM("NAME", "http://localhost:8000/v1"), store)
    examples = with_candidates(examples, Query2Doc(BM25(corpus), llm), depth=100)

Only the retriever sees the expanded query: examples keep the question as it was asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from rankwright.errors import ConfigurationError, ReaderError
from rankwright.prompts import Prompt, ask_for_passage, load_prompt, parse_passage
from rankwright.types import LLM, Completion, CompletionFailed, CompletionResult, Document, LLMRequest, Query, Retriever

PROMPT = "query2doc-1"
SAMPLING: Mapping[str, float | int | str] = {"max_tokens": 256, "temperature": 0.0}
"""Room for the few sentences that the prompt asks for, and the same ones every time as far as the server allows."""
REPEATS = 5
"""The paper's n."""
MAX_FAILED = 0.05
_QUESTIONS_AT_ONCE = 128

Passage: TypeAlias = str | CompletionFailed
"""What a language model wrote for a question, or why there is nothing."""


class Query2Doc:
    """A Retriever that searches with the question, repeated, and a passage that a language model wrote for it.

    q+ = concat({q} x n, d'), n = 5: the repetition keeps the few words of the question from drowning in those of the
    passage. For retrievers that count words, as BM25 does. Wang, Yang and Wei, "Query2doc: Query Expansion with Large
    Language Models", EMNLP 2023, arXiv 2303.07678; the prompt is our own.

    A question is asked once in the lifetime of the object. One that got no passage is searched as it is.

    Args:
        retriever: what is searched with the expanded query.
        llm: writes the passages; wrapped in CachedLLM to keep them.
        prompt: default the shipped one.
        repeats: n.
        sampling: of every request.
        max_failed: largest share of questions without a passage.
        known: passages, or failures, of before; these questions are not asked.

    Raises:
        ConfigurationError: repeats is below 1, or max_failed outside 0 to 1.
    """

    def __init__(
        self,
        retriever: Retriever,
        llm: LLM,
        prompt: Prompt | None = None,
        *,
        repeats: int = REPEATS,
        sampling: Mapping[str, float | int | str] = SAMPLING,
        max_failed: float = MAX_FAILED,
        known: Mapping[str, Passage] | None = None,
    ) -> None:
        if repeats < 1 or not 0 <= max_failed <= 1:
            raise ConfigurationError(
                f"Query2Doc was given repeats={repeats} and max_failed={max_failed}; wanted 1 or more repeats and a "
                f"share from 0 to 1. Leave them out for {REPEATS} and {MAX_FAILED}."
            )
        self._retriever = retriever
        self._llm = llm
        self._prompt = prompt or load_prompt(PROMPT, "query2doc")
        self._repeats = repeats
        self._sampling = tuple(sorted(sampling.items()))
        self._max_failed = max_failed
        self._passages: dict[str, Passage] = dict(known or {})

    @property
    def name(self) -> str:
        """The retriever and how its queries are expanded, as it belongs in a signature."""
        searched = getattr(self._retriever, "name", type(self._retriever).__name__)
        sampling = "".join(f",{name}={value}" for name, value in self._sampling)
        how = f"{self._llm.name},prompt={self._prompt.version},n={self._repeats}{sampling}"
        return f"{searched}+query2doc({how})"

    @property
    def passages(self) -> Mapping[str, Passage]:
        """Question -> its passage or failure, for all questions so far."""
        return self._passages

    @property
    def failed(self) -> int:
        """Questions so far that got no passage."""
        return sum(isinstance(passage, CompletionFailed) for passage in self._passages.values())

    def retrieve(self, queries: Sequence[Query], depth: int) -> list[tuple[Document, ...]]:
        """For each query the retriever's documents of the expanded one.

        Raises:
            ReaderError: see expand.
        """
        return self._retriever.retrieve(self.expand(queries), depth)

    def expand(self, queries: Sequence[Query], progress: Callable[[int, int], None] | None = None) -> list[Query]:
        """The queries with the texts to search with, in order; unchanged where there is no passage.

        Args:
            queries: as asked.
            progress: called with (questions done, questions to ask).

        Raises:
            ReaderError: the model cannot be used, or gave no passage to more questions than allowed.
        """
        new = list(dict.fromkeys(query.text for query in queries if query.text not in self._passages))
        total = len(self._passages) + len(new)
        for start in range(0, len(new), _QUESTIONS_AT_ONCE):
            batch = new[start : start + _QUESTIONS_AT_ONCE]
            self._passages.update(zip(batch, self._written(batch), strict=True))
            self._check_failures(total)
            if progress is not None:
                progress(start + len(batch), len(new))
        return [Query(query.query_id, self._expanded(query.text)) for query in queries]

    def _written(self, questions: Sequence[str]) -> Iterator[Passage]:
        requests = [passage_request(question, self._prompt, dict(self._sampling)) for question in questions]
        return map(_passage, self._llm.complete(requests))

    def _expanded(self, question: str) -> str:
        passage = self._passages[question]
        return question if isinstance(passage, CompletionFailed) else " ".join([question] * self._repeats + [passage])

    def _check_failures(self, total: int) -> None:
        if self.failed <= self._max_failed * total:
            return
        reasons = Counter(found.reason for found in self._passages.values() if isinstance(found, CompletionFailed))
        reason, times = reasons.most_common(1)[0]
        raise ReaderError(
            f"Query expansion by '{self._llm.name}' failed for {self.failed} of {total} questions, most often with "
            f"'{reason}' ({times} times); at most {self._max_failed:.0%} may fail. Correct the cause and give the same "
            "command again: passages in the cache are kept (--set expansion.max_failed=SHARE lets more fail)."
        )


def passage_request(question: str, prompt: Prompt, sampling: Mapping[str, float | int | str] = SAMPLING) -> LLMRequest:
    """What a language model is asked about a question."""
    return LLMRequest((("user", ask_for_passage(prompt, question)),), tuple(sorted(sampling.items())), prompt.version)


def _passage(completion: CompletionResult) -> Passage:
    if isinstance(completion, Completion):
        return parse_passage(completion.text) or CompletionFailed("empty text", completion.paid)
    return completion
