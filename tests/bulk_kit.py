"""What the tests of reranking in bulk share: inputs of any size, and rerankers that give away how they were asked."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from rankwright.data import write_jsonl
from rankwright.types import Document, Example, Query, Ranking, RerankRequest

PAIRS = 12
"""Of a batch: few, so that small inputs have many."""
PASSAGES = 1000
"""Different ones at most."""


def score_of(query_id: str, doc_id: str) -> float:
    """A number that belongs to the two."""
    return zlib.crc32(f"{query_id} {doc_id}".encode()) / 2**32


def examples(count: int, words: int = 1) -> Iterator[Example]:
    """Questions with one to seven candidates, whose texts have so many words and one."""
    for number in range(count):
        which = [(number + i) % PASSAGES for i in range(1 + number % 7)]
        documents = tuple(Document(f"d{one}", "passage " * words + str(one), f"title {one}") for one in which)
        stage = {document.doc_id: float(-rank) for rank, document in enumerate(documents)}
        yield Example(Query(f"q{number}", f"question {number}?"), documents, (f"answer {number}",), {}, stage)


def write_rows(path: Path, count: int, words: int = 1) -> Path:
    """The questions in our own format."""
    write_jsonl(path, examples(count, words))
    return path


def write_run(folder: Path, count: int) -> tuple[Path, Path]:
    """The questions as (run, BEIR folder); candidates of the run stand best first by score alone."""
    beir = folder / "beir"
    beir.mkdir(parents=True)
    seen: dict[str, Document] = {}
    with (folder / "bm25.run").open("w", encoding="utf-8") as run, (beir / "queries.jsonl").open("w") as queries:
        for example in examples(count):
            query_id = example.query.query_id
            queries.write(f'{{"_id": "{query_id}", "text": "{example.query.text}"}}\n')
            for document in reversed(example.candidates):
                seen[document.doc_id] = document
                run.write(f"{query_id} Q0 {document.doc_id} 1 {example.first_stage[document.doc_id]} bm25\n")
    rows = (f'{{"_id": "{d.doc_id}", "title": "", "text": "{d.text}"}}\n' for d in seen.values())
    (beir / "corpus.jsonl").write_text("".join(rows), "utf-8")
    return folder / "bm25.run", beir


class Stub:
    """Scores by `score_of`. What it was asked stands in `asked`; it fails at questions named in `fails`."""

    name = "stub"

    def __init__(self, fails: Sequence[str] = (), error: Exception | None = None) -> None:
        self.fails, self.error = frozenset(fails), error or ValueError("planned")
        self.asked: list[tuple[str, ...]] = []

    def rerank_batch(self, requests: Sequence[RerankRequest]) -> list[Ranking]:
        ids = tuple(request.query.query_id for request in requests)
        self.asked.append(ids)
        if self.fails & set(ids):
            raise self.error
        return [self._ranking(request, self._shift(ids)) for request in requests]

    def rerank(self, query: object, documents: object, top_k: int | None = None) -> Ranking:
        raise NotImplementedError

    def _shift(self, ids: Sequence[str]) -> float:
        return 0.0

    def _ranking(self, request: RerankRequest, shift: float) -> Ranking:
        scores = {d.doc_id: score_of(request.query.query_id, d.doc_id) + shift for d in request.documents}
        order = sorted(scores, key=lambda doc_id: -scores[doc_id])
        return Ranking(request.query.query_id, tuple(order), tuple(scores[doc_id] for doc_id in order))


class Companionable(Stub):
    """Its scores show which questions were scored together, as those of a model with padding do in their last bits."""

    name = "companionable"

    def _shift(self, ids: Sequence[str]) -> float:
        return zlib.crc32(" ".join(ids).encode()) / 2**32
