"""The prose that the embedded reader learns from: verbatim answers, no title twice, nothing of the demo's world."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.embedded import sets

FOLDER = Path(sets.__file__).parent / "prose"
DEMO = Path(sets.__file__).parents[2] / "rankwright" / "assets" / "demo"
CLUSTERS: list[dict[str, Any]] = [
    json.loads(line) for path in sorted(FOLDER.glob("*.jsonl")) for line in path.read_text("utf-8").splitlines()
]
PLACES = ("Sundrel", "Veldane", "Gullhaven", "Marrowby", "Skarrow", "Lunnet", "Ironmere", "Fennimore", "Hask Point")
PASSAGES = [passage for cluster in CLUSTERS for passage in cluster["passages"]]


def test_size() -> None:
    assert len(CLUSTERS) >= 150
    assert sum(len(cluster["questions"]) for cluster in CLUSTERS) == len(sets.prose()) >= 1500


def test_answers_are_copied_from_a_gold_passage() -> None:
    for question in sets.prose():
        if set(question.answers) <= {"yes", "no"}:
            continue
        texts = [f"{d.title}: {d.text}" for d in question.gold]
        assert [a for a in question.answers if not any(a in text for text in texts)] == [], question.text


def test_no_passage_or_question_stands_twice() -> None:
    assert max(Counter(passage["text"] for passage in PASSAGES).values()) == 1
    keys = [question.key for question in sets.prose()]
    assert len(keys) == len(set(keys))


def test_it_does_not_tell_of_the_demos_world() -> None:
    corpus = [json.loads(line) for line in (DEMO / "corpus.jsonl").read_text("utf-8").splitlines()]
    text = "\n".join(f"{p['title']}\n{p['text']}" for p in PASSAGES)
    assert {p["title"] for p in PASSAGES} & {row["title"] for row in corpus} == set()
    assert [place for place in PLACES if place in text] == []
