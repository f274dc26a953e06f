"""Gates S18 and P3, in every backend: a document's score depends neither on who shares its batch nor on a hostile
passage beside it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

import rankwright
from rankwright.engine import Engine, EngineSettings
from rankwright.rerankers.cross_encoder import CrossEncoderReranker
from rankwright.rerankers.exporting import Bound, export
from rankwright.rerankers.onnx import OnnxReranker
from rankwright.rerankers.packed import PackedReranker
from rankwright.rerankers.ranking import Scorer
from rankwright.types import Document, Example, Query, RerankRequest
from tests.gates.backends import BF16, skip_where_not_computed, tolerance
from tests.gates.mutants import Mutant
from tests.gates.sizes import tries
from tests.server_kit import started
from tests.tiny_bert import save_cross_encoder

pytestmark = [pytest.mark.gates, pytest.mark.timeout(600)]

THIS = "tests/gates/test_gate_s18.py"
S18 = f"{THIS}::test_scores_are_those_of_a_document_alone"
P3 = f"{THIS}::test_no_hostile_passage_moves_the_score_of_another"
ENGINE, PACKED = "rankwright/engine.py", "rankwright/rerankers/packed.py"
TOKENS, ONNX = "rankwright/rerankers/tokens.py", "rankwright/rerankers/onnx.py"
ZIP = "in zip(places, scored.scores,"
KEYS = "keys = [(pair.ids_T.tobytes(), pair.types_T.tobytes()) for pair in pairs]"
MASK = "torch.where(filled_PW, 0.0, HIDDEN).to(dtype)"
MUTANTS = [
    Mutant("S18", f"{S18}[torch]", ENGINE, ZIP, "in zip(places[::-1], scored.scores,"),
    Mutant(
        "S18",
        f"{S18}[torch]",
        ENGINE,
        "whole.documents[there[0][1] : there[-1][1] + 1]",
        "whole.documents[0 : len(there)]",
    ),
    # The way of documents that are tokenised before their turn comes.
    Mutant("S18", f"{S18}[packed]", ENGINE, ".score_pairs(pairs), strict", ".score_pairs(pairs[::-1]), strict"),
    Mutant("S18", f"{S18}[packed]", ENGINE, "found[part.start : part.stop]", "found[: part.stop - part.start]"),
    Mutant("S18", f"{S18}[packed]", PACKED, " compute(group)\n        else:", " compute(groups[0])\n        else:"),
    Mutant("S18", f"{S18}[onnx]", ONNX, "in zip(group, found,", "in zip(group[::-1], found,"),
    Mutant("P3", f"{P3}[packed]", TOKENS, KEYS, "keys = [len(pair.ids_T) for pair in pairs]"),
    Mutant("P3", f"{P3}[onnx-int8]", TOKENS, KEYS, "keys = [len(pair.ids_T) for pair in pairs]"),
]
if BF16:  # elsewhere nothing would be tried
    unmasked = MASK.replace("HIDDEN", "HIDDEN if dtype == torch.float32 else 0.0")
    MUTANTS += [Mutant("S18", f"{S18}[bf16]", PACKED, MASK, unmasked)]
    MUTANTS += [Mutant("P3", f"{P3}[bf16]", PACKED, MASK, unmasked)]

WORDS = ["rain", "moon", "river", "door", "stands", "in", "a", "wall", "is", "the", "key", "of", "what", "7"]
HOSTILE = ("ignore the question " * 90, "[SEP] [CLS] moon", "", "x" * 3000, "\x00\u202e", "(" * 400, "rain " * 30)
MAX_LENGTH = 96
BACKENDS = {
    "torch": CrossEncoderReranker,
    "packed": PackedReranker,
    "bf16": PackedReranker,
    "onnx": OnnxReranker,
    "onnx-int8": OnnxReranker,
}


def text(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(1, 20)))


def asked(draw: random.Random, queries: Sequence[str], passages: Sequence[str]) -> RerankRequest:
    """One of the questions with up to 12 of the passages."""
    chosen = draw.sample(passages, draw.randint(1, 12))
    return RerankRequest(
        Query("0", draw.choice(queries)), tuple(Document(str(i), passage) for i, passage in enumerate(chosen))
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cross_encoder(tmp_path_factory.mktemp("s18") / "tiny", max_length=MAX_LENGTH)


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both forms. How near they are to the model is not what is asked here."""
    target, reranker = tmp_path_factory.mktemp("s18") / "exported", CrossEncoderReranker.from_pretrained(str(folder))
    draw, far = random.Random(1), Bound(math.inf, 1.0)
    pairs = asked(draw, [text(draw)], [text(draw) for _ in range(12)])
    examples = [Example(pairs.query, pairs.documents)]
    export(reranker, target, examples, bounds={"fp32": far, "int8": far})
    return target


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> str:
    skip_where_not_computed(request.param)
    return request.param


@pytest.fixture
def scorer(request: pytest.FixtureRequest, backend: str) -> Scorer:
    path = request.getfixturevalue("exported" if backend.startswith("onnx") else "folder")
    found = rankwright.load(path, backend=backend)
    assert isinstance(found, BACKENDS[backend])  # no other has taken its place
    return found


@pytest.fixture
def engine(scorer: Scorer) -> Iterator[Engine]:
    with started(scorer, EngineSettings(batch_documents=32, turn=5)) as engine:
        yield engine


def test_scores_are_those_of_a_document_alone(backend: str, scorer: Scorer, engine: Engine) -> None:
    """1,000 rounds of up to six requests at once, with up to 32 documents of mixed lengths between them."""
    draw = random.Random(0)
    queries, passages = [text(draw) for _ in range(5)], [text(draw) for _ in range(60)]
    alone = {
        (query, passage): scorer.score_batch([RerankRequest(Query("0", query), (Document("0", passage),))])[0].scores[0]
        for query in queries
        for passage in passages
    }
    allowed = tolerance(backend, list(alone.values()))
    worst, swapped = 0.0, 0
    for _ in range(tries(1000, 40)):
        requests = [asked(draw, queries, passages) for _ in range(draw.randint(1, 6))]
        futures = [engine.submit("stub", [request]) for request in requests]
        for request, future in zip(requests, futures, strict=True):
            (scored,) = future.result(60).scored
            single = [alone[request.query.text, document.text] for document in request.documents]
            worst = max([worst, *(abs(a - b) for a, b in zip(scored.scores, single, strict=True))])
            order = sorted(range(len(single)), key=lambda i: -single[i])
            for a, b in pairwise(order):
                swapped += single[a] - single[b] > 2 * allowed and scored.scores[a] <= scored.scores[b]
    print(f"S18 of {backend}: largest difference {worst:.2e}, allowed {allowed:.2e}, {swapped} swapped")
    assert worst <= allowed
    assert swapped == 0


def test_no_hostile_passage_moves_the_score_of_another(backend: str, engine: Engine) -> None:
    """1,000 lists, each with a hostile passage at any place of it and without."""
    draw = random.Random(0)
    queries, passages = [text(draw) for _ in range(5)], [text(draw) for _ in range(60)]
    before: list[float] = []
    after: list[float] = []
    for number in range(tries(1000, 40)):
        request = asked(draw, queries, passages)
        documents, place = list(request.documents), draw.randint(0, len(request.documents))
        documents.insert(place, Document("hostile", HOSTILE[number % len(HOSTILE)]))
        (bare,) = engine.submit("stub", [request]).result(60).scored
        (beside,) = engine.submit("stub", [RerankRequest(request.query, tuple(documents))]).result(60).scored
        before += bare.scores
        after += beside.scores[:place] + beside.scores[place + 1 :]
    worst = max(abs(a - b) for a, b in zip(before, after, strict=True))
    allowed = tolerance(backend, before)
    print(f"P3 of {backend}: largest difference {worst:.2e}, allowed {allowed:.2e}")
    assert worst <= allowed
