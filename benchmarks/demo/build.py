"""Builds the demo knowledge base from its five written parts: `python -m benchmarks.demo.build`.

`source/PART.passages.jsonl` and `source/PART.questions.jsonl` hold the prose with its cluster and, for passages, its
role (useful, useless, misleading). The two shipped files hold neither: passages are shuffled and numbered anew, and
questions carry the side they were put on. Whole clusters go to one side, so that no gold passage stands on two sides.
The same sources give the same bytes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent / "source"
ASSETS = Path(__file__).parents[2] / "rankwright" / "assets" / "demo"
PARTS = ("crafts", "culture", "land", "sea", "state")
SEED = 412

TEST_QUESTIONS_PER_PART = 56
"""Clusters go to the test side until a part has this many questions there: five parts make 280 or more."""
DEV_CLUSTERS = {"crafts": 2, "culture": 2, "land": 1, "sea": 1, "state": 2}
"""Eight clusters of about sixteen questions make a dev side of about 130."""

Row = dict[str, Any]


def read_rows(kind: str, source: Path = SOURCE) -> list[Row]:
    """All passages or all questions of the five parts, in the order they were written."""
    texts = ((source / f"{part}.{kind}.jsonl").read_text(encoding="utf-8") for part in PARTS)
    return [json.loads(line) for text in texts for line in text.splitlines() if line.strip()]


def numbered(rows: Sequence[Row], prefix: str) -> dict[str, str]:
    """A neutral new id for every row: its place after a seeded shuffle."""
    ids = [row["id"] for row in rows]
    random.Random(f"{SEED}-{prefix}").shuffle(ids)
    return {old: f"{prefix}{place:04d}" for place, old in enumerate(ids, start=1)}


def sides(questions: Sequence[Row]) -> dict[str, str]:
    """The side (train, dev or test) of every cluster; each part appears on all three."""
    sizes: dict[str, int] = {}
    for question in questions:
        sizes[question["cluster"]] = sizes.get(question["cluster"], 0) + 1
    side_of: dict[str, str] = {}
    for part in PARTS:
        clusters = sorted(cluster for cluster in sizes if cluster.startswith(f"{part}-"))
        random.Random(f"{SEED}-{part}").shuffle(clusters)
        side_of |= _sides_of_part(clusters, sizes, DEV_CLUSTERS[part])
    return side_of


def _sides_of_part(clusters: Sequence[str], sizes: Mapping[str, int], dev_clusters: int) -> dict[str, str]:
    side_of = dict.fromkeys(clusters[:dev_clusters], "dev")
    in_test = 0
    for cluster in clusters[dev_clusters:]:
        side_of[cluster] = "test" if in_test < TEST_QUESTIONS_PER_PART else "train"
        in_test += sizes[cluster]
    return side_of


def build(source: Path = SOURCE) -> tuple[list[Row], list[Row]]:
    """The rows of corpus.jsonl and of questions.jsonl."""
    passages, questions = read_rows("passages", source), read_rows("questions", source)
    doc_ids, query_ids = numbered(passages, "sundrel-"), numbered(questions, "sundrel-q")
    side_of = sides(questions)
    corpus = [{"doc_id": doc_ids[row["id"]], "title": row["title"], "text": row["text"]} for row in passages]
    asked = [
        {
            "query_id": query_ids[row["id"]],
            "question": row["question"],
            "answers": row["answers"],
            "relevance": {doc_ids[gold]: 1 for gold in row["gold"]},
            "metadata": {"type": row["type"], "split": side_of[row["cluster"]]},
        }
        for row in questions
    ]
    return sorted(corpus, key=lambda row: row["doc_id"]), sorted(asked, key=lambda row: row["query_id"])


def write(folder: Path = ASSETS) -> None:
    """Write both files into `folder`."""
    corpus, questions = build()
    folder.mkdir(parents=True, exist_ok=True)
    _write_rows(folder / "corpus.jsonl", corpus)
    _write_rows(folder / "questions.jsonl", questions)


def _write_rows(path: Path, rows: Iterable[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    write()
