"""A toy world with a known best ranking: documents are integers, and the reader answers correctly only when document 7
is among those it is given. The policy has one learnable score per integer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rankwright.types import Answer, Context, Document, Example, Query, Ranking, ReadFailed, ReadResult, RerankRequest

DOCUMENTS = tuple(Document(str(i), f"integer {i}") for i in range(10))


def examples(count: int) -> list[Example]:
    """Questions that all have the same ten candidates and the answer "seven"."""
    return [Example(Query(f"q{i}", "where is it?"), DOCUMENTS, ("seven",), {"7": 1}) for i in range(count)]


class ToyReader:
    """Answers "seven" if document 7 is given; fails on every `fail_every`-th reading."""

    name = "toy"

    def __init__(self, fail_every: int = 0) -> None:
        self.fail_every = fail_every
        self.calls = 0

    def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
        results: list[ReadResult] = []
        for context in contexts:
            self.calls += 1
            if self.fail_every and self.calls % self.fail_every == 0:
                results.append(ReadFailed("planned"))
            else:
                results.append(Answer("seven" if any(d.doc_id == "7" for d in context.documents) else ""))
        return results


class ToyPolicy(nn.Module):
    """score(document i) = a learnable number; starts with 7 at the bottom."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.linspace(1.0, 0.0, 10).index_fill(0, torch.tensor([7]), -0.5))
        self.name = "toy"

    def forward(self, requests: Sequence[RerankRequest]) -> Tensor:
        return torch.stack([self.scores[torch.tensor([int(d.doc_id) for d in r.documents])] for r in requests])

    @torch.no_grad()
    def rerank_batch(self, requests: Sequence[RerankRequest]) -> list[Ranking]:
        rankings = []
        for request in requests:
            row = self([request])[0].tolist()
            order = sorted(range(len(row)), key=lambda i: -row[i])
            ids = tuple(request.documents[i].doc_id for i in order)
            rankings.append(Ranking(request.query.query_id, ids, tuple(row[i] for i in order)))
        return rankings
