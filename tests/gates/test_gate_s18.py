"""Gate S18: a document's score does not depend on who shares its batch."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest

import rankwright
from rankwright.engine import EngineSettings
from rankwright.types import Document, Query, RerankRequest
from tests.cli_kit import make_model
from tests.gates.mutants import Mutant
from tests.gates.sizes import tries
from tests.server_kit import started

pytestmark = [pytest.mark.gates, pytest.mark.timeout(600)]

THIS = "tests/gates/test_gate_s18.py"
ENGINE = "rankwright/engine.py"
ZIP = "in zip(places, scored.scores,"
MUTANTS = [
    Mutant("S18", THIS, ENGINE, ZIP, "in zip(places[::-1], scored.scores,"),
    Mutant("S18", THIS, ENGINE, "whole.documents[there[0][1] : there[-1][1] + 1]", "whole.documents[0 : len(there)]"),
]
TOLERANCE = 1e-5
WORDS = ["Door", "door", "stands", "in", "a", "wall", "is", "painted", "The", "the", "key", "of", "What"]


def text(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(1, 60)))


def test_scores_are_those_of_a_document_alone(tmp_path: Path) -> None:
    """1,000 rounds of up to six requests at once, with up to 32 documents of mixed lengths between them."""
    draw = random.Random(0)
    model = rankwright.load(make_model(tmp_path / "tiny"))
    alone: dict[tuple[str, str], float] = {}

    def score_alone(query: str, passage: str) -> float:
        if (query, passage) not in alone:
            request = RerankRequest(Query("0", query), (Document("0", passage),))
            alone[query, passage] = model.score_batch([request])[0].scores[0]
        return alone[query, passage]

    queries, passages = [text(draw) for _ in range(5)], [text(draw) for _ in range(60)]
    worst, swapped = 0.0, 0
    with started(model, EngineSettings(batch_documents=32, turn=5)) as engine:
        for _ in range(tries(1000, 40)):
            requests = []
            for _ in range(draw.randint(1, 6)):
                chosen = draw.sample(passages, draw.randint(1, 12))
                documents = tuple(Document(str(i), passage) for i, passage in enumerate(chosen))
                requests.append(RerankRequest(Query("0", draw.choice(queries)), documents))
            futures = [engine.submit("stub", [request]) for request in requests]
            replies = [future.result(60) for future in futures]  # all, for a model has no two callers at once
            for request, reply in zip(requests, replies, strict=True):
                (scored,) = reply.scored
                single = [score_alone(request.query.text, d.text) for d in request.documents]
                worst = max([worst, *(abs(a - b) for a, b in zip(scored.scores, single, strict=True))])
                order = sorted(range(len(single)), key=lambda i: -single[i])
                for a, b in pairwise(order):
                    swapped += single[a] - single[b] > 2 * TOLERANCE and scored.scores[a] <= scored.scores[b]
    print(f"S18: largest difference {worst:.2e}, {len(alone)} pairs, {swapped} swapped")
    assert worst <= TOLERANCE
    assert swapped == 0
