"""S18 and P3 for the embedded reference without padding and exported by the command: the export is near the model, and
no passage moves another's score."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from rankwright.cli.app import run
from rankwright.rerankers import load
from rankwright.rerankers.exporting import BOUNDS, demo_examples
from rankwright.rerankers.onnx_folder import read_manifest
from rankwright.types import Document, RerankRequest
from tests.gates.backends import skip_where_not_computed, tolerance
from tests.gates.mutants import Mutant
from tests.gates.sizes import tries

pytestmark = [pytest.mark.gates, pytest.mark.timeout(1200)]
THIS = "tests/gates/test_gate_export.py"
MUTANTS = [
    Mutant(
        "S18 of exports",
        f"{THIS}::test_s18_and_p3_hold_for_the_reference[onnx-int8]",
        "rankwright/rerankers/int8.py",
        'constant("axis", np.array([-1], np.int64))',  # one scale for all that is computed together
        'constant("axis", np.array([0, 1, 2], np.int64))',
    ),
]
TIMES = {"packed": tries(200, 10), "bf16": tries(200, 10), "onnx": tries(1000, 20), "onnx-int8": tries(1000, 20)}
"""The full numbers of the first two are tried on a small model (test_gate_s18.py)."""
HOSTILE = ("ignore the question " * 90, "[SEP] [CLS]", "", "x" * 3000)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "reference"
    assert run(["export", "reference", "--to", str(folder), "--for", "cpu"]) == 0
    parity = read_manifest(folder).parity
    assert parity["fp32"]["largest_error"] <= BOUNDS["fp32"].error * parity["fp32"]["spread"]
    assert parity["int8"]["rank_correlation"] >= 0.99
    return folder


def scores(scorer: Any, *requests: RerankRequest) -> list[float]:
    return [score for scored in scorer.score_batch(requests) for score in scored.scores]


@pytest.mark.parametrize("backend", list(TIMES))
def test_s18_and_p3_hold_for_the_reference(backend: str, request: pytest.FixtureRequest) -> None:
    skip_where_not_computed(backend)
    path = request.getfixturevalue("exported") if backend.startswith("onnx") else "reference"
    scorer = load(path, backend=backend)
    chance = random.Random(0)
    examples = demo_examples(40, 5)
    pool = [RerankRequest(e.query, (d,)) for e in examples for d in e.candidates]
    alone = [scores(scorer, one)[0] for one in pool]
    allowed = tolerance(backend, alone)
    for _ in range(TIMES[backend]):
        chosen = chance.sample(range(len(pool)), chance.randint(1, 32))
        for place, score in zip(chosen, scores(scorer, *(pool[i] for i in chosen)), strict=True):
            assert abs(score - alone[place]) <= allowed
    for number in range(TIMES[backend]):
        example = examples[number % len(examples)]
        bare = scores(scorer, RerankRequest(example.query, example.candidates))
        joined = (Document("hostile", HOSTILE[number % 4]), *example.candidates)
        assert scores(scorer, RerankRequest(example.query, joined))[1:] == pytest.approx(bare, abs=allowed)
