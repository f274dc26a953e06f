"""A saved model in sentence-transformers 5.1, which needs transformers below 5 and so an environment of its own.

`make interop-st5` runs `python -m tests.interop_st5 write DIR` in .venv and `python tests/interop_st5.py check DIR` in
.venv-st5: raw scores must be equal to 1e-5.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

PAIRS = [
    ("rain", "it rains on the moon"),
    ("where does the river end?", "Rivers: the river ends in the sea"),
    ("long", "a passage " * 60),
]


def write(folder: Path) -> None:
    """A tiny model as rankwright saves it, with its raw scores."""
    from rankwright import load
    from rankwright.types import Document, Query, RerankRequest
    from tests.tiny_bert import save_cross_encoder

    reranker = load(save_cross_encoder(folder / "plain"))
    reranker.save(folder / "saved")
    requests = [RerankRequest(Query("q", question), (Document("d", text),)) for question, text in PAIRS]
    scores = [ranking.scores[0] for ranking in reranker.rerank_batch(requests)]
    (folder / "expected.json").write_text(json.dumps(scores), encoding="utf-8")


def check(folder: Path) -> None:
    """Opens it in CrossEncoder and compares."""
    import sentence_transformers
    from sentence_transformers import CrossEncoder

    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    found = CrossEncoder(str(folder / "saved")).predict(PAIRS).tolist()
    worst = max(abs(a - b) for a, b in zip(expected, found, strict=True))
    print(f"sentence-transformers {sentence_transformers.__version__}: largest difference {worst:.2e}")
    if worst > 1e-5:
        sys.exit(f"Raw scores differ: expected {expected}, found {found}")


if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1]](Path(sys.argv[2]))
