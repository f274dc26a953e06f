"""Strategies over prompts, parsers and a cache: a language model that reads grades out of the words of its prompt."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from rankwright.llms.cache import CachedLLM, ReadStore
from rankwright.prompts.ranking import load_ranking_prompt
from rankwright.rerankers.generating import LLMPolicy
from rankwright.strategies import (
    BubbleSort,
    Groupwise,
    HeapSort,
    LLMReranker,
    Pointwise,
    Sliding,
    Strategy,
    TopK,
    run_strategies,
)
from rankwright.types import Completion, CompletionFailed, CompletionResult, Document, LLMRequest, Query, RerankRequest

PAIRS = [
    (Sliding(window=8, stride=4), "listwise-1"),
    (TopK(top_k=4, window=8), "listwise-1"),
    (HeapSort(children=7, top_k=4), "setwise-1"),
    (HeapSort(children=7, top_k=4), "listwise-1"),
    (BubbleSort(children=7, top_k=4), "setwise-1"),
    (Groupwise(group=8), "groupwise-1"),
    (Pointwise(), "pointwise-integer-1"),
]
GRADES = [3, 9, 0, 7, 5, 1, 8, 2, 10, 4, 6, 0, 1, 2, 3, 1, 0, 2, 1, 0]


class ReadingLLM:
    """Knows that a passage that says `grade 7` has grade 7, and answers in the form that it was asked for."""

    name = "reading"

    def __init__(self, breaks_after: int | None = None) -> None:
        self.calls = 0
        self.breaks_after = breaks_after

    def complete(self, requests: Sequence[LLMRequest]) -> list[CompletionResult]:
        results: list[CompletionResult] = []
        for request in requests:
            self.calls += 1
            broken = self.breaks_after is not None and self.calls > self.breaks_after
            results.append(CompletionFailed("timeout") if broken else _said(_answer(request)))
        return results


def _said(text: str) -> Completion:
    """With log probabilities, as if every word and number were a token of which the model was sure."""
    tokens = re.findall(r"\d+|\D+", text)
    return Completion(text, 100, 10, top_logprobs=tuple({token: 0.0} for token in tokens))


def _answer(request: LLMRequest) -> str:
    words = "\n".join(content for _, content in request.messages)
    alone = re.search(r"Passage: grade (\d+)", words)
    if alone:
        return f"<think>easy</think><answer>{alone[1]}</answer>"
    grades = {label: int(grade) for label, grade in re.findall(r"\[(\d+)\] grade (\d+)", words)}
    best = sorted(grades, key=lambda label: -grades[label])
    if request.prompt_version.startswith("setwise"):
        return f"[{best[0]}]"
    if request.prompt_version.startswith("groupwise"):
        return f"<reason>-</reason><answer>{json.dumps({f'[{label}]': grades[label] for label in grades})}</answer>"
    return " > ".join(f"[{label}]" for label in best)


def requests_of(queries: int) -> list[RerankRequest]:
    found = []
    for number in range(queries):
        grades = random.Random(number).sample(GRADES, len(GRADES))
        documents = tuple(Document(f"d{i}", f"grade {grade}") for i, grade in enumerate(grades))
        found.append(RerankRequest(Query(f"q{number}", f"what is {number}?"), documents))
    return found


def first_grades(request: RerankRequest, doc_ids: Sequence[str]) -> list[int]:
    text_of = {document.doc_id: document.text for document in request.documents}
    return [int(text_of[doc_id].split()[1]) for doc_id in doc_ids[:4]]


@pytest.mark.parametrize(("strategy", "prompt"), PAIRS, ids=lambda part: str(getattr(part, "name", part)))
def test_a_model_that_can_read_finds_the_best(strategy: Strategy, prompt: str) -> None:
    llm, requests = ReadingLLM(), requests_of(3)
    reranker = LLMReranker(LLMPolicy(llm, load_ranking_prompt(prompt)), strategy)
    for request, ranking in zip(requests, reranker.rerank_batch(requests), strict=True):
        assert first_grades(request, ranking.doc_ids) == [10, 9, 8, 7]
    assert reranker.report.outcomes == {"ok": llm.calls}
    assert (reranker.report.calls, reranker.report.input_tokens) == (llm.calls, 100 * llm.calls)
    assert prompt in reranker.name


@pytest.mark.parametrize(("strategy", "prompt"), PAIRS, ids=lambda part: str(getattr(part, "name", part)))
def test_a_run_that_was_cut_off_goes_on_where_it_was(tmp_path: Path, strategy: Strategy, prompt: str) -> None:
    """The model fails from the fifth call on: what it answered before is not asked again, the result is the same."""

    def run(llm: ReadingLLM, max_failed: float = 0.0) -> tuple[list[tuple[str, ...]], int]:
        with ReadStore(tmp_path / "calls.sqlite") as store:
            policy = LLMPolicy(CachedLLM(llm, store), load_ranking_prompt(prompt))
            rankings, report = run_strategies(strategy, policy, requests_of(2), max_failed=max_failed)
            return [ranking.doc_ids for ranking in rankings], report.paid

    whole = ReadingLLM()
    rankings, _ = run_strategies(strategy, LLMPolicy(whole, load_ranking_prompt(prompt)), requests_of(2))
    run(ReadingLLM(breaks_after=4), max_failed=1.0)
    rest = ReadingLLM()
    found, paid = run(rest)
    assert found == [ranking.doc_ids for ranking in rankings]
    assert rest.calls == paid < whole.calls
    assert run(ReadingLLM(breaks_after=0)) == (found, 0)
