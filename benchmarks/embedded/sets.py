"""The question sets of the data folder as one shape: question, answers, gold passages, further passages of the row."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from rankwright.metrics.answer import normalise
from rankwright.types import Document

ROOT = Path(os.environ.get("RANKWRIGHT_DATA", Path(__file__).parents[3] / "shared" / "data"))


@dataclass(frozen=True)
class Question:
    """One question of one set."""

    set_name: str
    text: str
    answers: tuple[str, ...]
    gold: tuple[Document, ...]
    others: tuple[Document, ...] = field(default=())
    """Passages that came with the question and are not gold."""

    @property
    def key(self) -> str:
        """Stable id in the split file: set and a hash of the question."""
        return f"{self.set_name}:{hashlib.sha256(self.text.encode()).hexdigest()[:12]}"


def document(title: str, text: str) -> Document:
    """A document whose id is a hash of its content, so that equal passages are one."""
    return Document(hashlib.sha256(f"{title}\n{text}".encode()).hexdigest()[:16], text.strip(), title.strip())


def _nq_open() -> Iterable[Question]:
    with gzip.open(ROOT / "nq_open" / "nq-open-oracle.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            gold = tuple(document(c["title"], c["text"]) for c in row["ctxs"] if c["isgold"])
            yield Question("nq_open", row["question"], tuple(row["answers"]), gold)


def _xquad() -> Iterable[Question]:
    data = json.loads((ROOT / "xquad_en" / "xquad.en.json").read_text(encoding="utf-8"))["data"]
    for article in data:
        for paragraph in article["paragraphs"]:
            gold = (document(article["title"].replace("_", " "), paragraph["context"]),)
            for qa in paragraph["qas"]:
                yield Question("xquad_en", qa["question"], tuple({a["text"]: 1 for a in qa["answers"]}), gold)


def _hotpot_row(name: str, row: dict[str, Any]) -> Question:
    if isinstance(row["context"], dict):
        context = list(zip(row["context"]["title"], row["context"]["sentences"], strict=True))
        titles = set(row["supporting_facts"]["title"])
    else:
        context, titles = row["context"], {fact[0] for fact in row["supporting_facts"]}
    pairs = [
        (title in titles, document(title, "".join(s if s.startswith(" ") else " " + s for s in sentences)))
        for title, sentences in context
    ]
    return Question(
        name,
        row["question"],
        (row["answer"],),
        tuple(d for gold, d in pairs if gold),
        tuple(d for gold, d in pairs if not gold),
    )


def _hotpot(which: str) -> Iterable[Question]:
    for line in (ROOT / "hotpotqa" / f"{which}.jsonl").read_text(encoding="utf-8").splitlines():
        yield _hotpot_row(f"hotpotqa/{which}", json.loads(line))


def _2wiki() -> Iterable[Question]:
    for row in json.loads((ROOT / "2wikimultihopqa" / "train.json").read_text(encoding="utf-8")):
        yield _hotpot_row("2wikimultihopqa", row)


def _musique() -> Iterable[Question]:
    for row in json.loads((ROOT / "musique" / "train.json").read_text(encoding="utf-8")):
        pairs = [(p["is_supporting"], document(p["title"], p["paragraph_text"])) for p in row["paragraphs"]]
        yield Question(
            "musique",
            row["question"],
            (row["answer"], *row["answer_aliases"]),
            tuple(d for gold, d in pairs if gold),
            tuple(d for gold, d in pairs if not gold),
        )


def prose() -> list[Question]:
    """Our own invented prose with questions (Apache-2.0), clusters of three passages; all of it is the reader's, so the
    split file does not divide it."""
    questions = []
    for path in sorted((Path(__file__).parent / "prose").glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            cluster = [document(p["title"], p["text"]) for p in row["passages"]]
            for item in row["questions"]:
                gold = tuple(cluster[i] for i in item["gold"])
                others = tuple(d for d in cluster if d not in gold)
                questions.append(Question("prose", item["question"], tuple(item["answers"]), gold, others))
    return questions


LOADERS = {
    "nq_open": _nq_open,
    "xquad_en": _xquad,
    "hotpotqa/train": lambda: _hotpot("train"),
    "hotpotqa/dev": lambda: _hotpot("dev"),
    "2wikimultihopqa": _2wiki,
    "musique": _musique,
}
"""The sets that the split file divides."""
SHARED_WORDS = 0.8
"""Two passages with one title are the same where they share so many of the shorter one's words."""


@cache
def load_set(name: str) -> tuple[Question, ...]:
    """All questions of one set, in file order."""
    return tuple(LOADERS[name]())


def load_sets(names: Iterable[str]) -> list[Question]:
    """All questions of several sets."""
    return [question for name in names for question in load_set(name)]


def side(name: str, sets: Iterable[str] = LOADERS) -> list[Question]:
    """The questions of one side of the split file; on the test side without those whose gold passages training saw."""
    keys = set(json.loads((Path(__file__).parent / "split.json").read_text(encoding="utf-8"))[name])
    if name == "test":
        keys -= set(json.loads((Path(__file__).parent / "shown.json").read_text(encoding="utf-8")))
    return [question for question in load_sets(sets) if question.key in keys]


def passages(questions: Iterable[Question]) -> dict[str, Document]:
    """doc_id -> passage of all that comes with the questions."""
    return {d.doc_id: d for question in questions for d in (*question.gold, *question.others)}


def passages_for(name: str, sets: Iterable[str]) -> list[Document]:
    """What training on one side may show: passages of the sets that are gold for no question of another side."""
    own = {question.key for question in side(name, sets)}
    questions = load_sets(sets)
    elsewhere = {d.doc_id for question in questions if question.key not in own for d in question.gold}
    return [d for doc_id, d in passages(questions).items() if doc_id not in elsewhere]


class Shown:
    """Whether a passage stands among others, word for word or nearly: sets cut and print the same article differently,
    so that ids, which are hashes, do not tell."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self.texts: set[str] = set()
        self.by_title: dict[str, list[Counter[str]]] = defaultdict(list)
        for document in documents:
            self.texts.add(normalise(document.text))
            if title := normalise(document.title):
                self.by_title[title].append(Counter(normalise(document.text).split()))

    def __contains__(self, document: Document) -> bool:
        text = normalise(document.text)
        if text in self.texts:
            return True
        words = Counter(text.split())
        return any(
            (words & other).total() >= SHARED_WORDS * min(words.total(), other.total())
            for other in self.by_title.get(normalise(document.title), ())
        )


def scifact_corpus() -> list[Document]:
    """All abstracts of SciFact."""
    rows = _scifact_rows("corpus_train.csv")
    return [Document(row["doc_id"], " ".join(sentences(row["abstract"])), row["title"]) for row in rows]


def scifact_test() -> list[tuple[str, str, dict[str, int]]]:
    """query_id, claim and labels (doc_id -> grade) of the BEIR test side."""
    labels: dict[str, dict[str, int]] = {}
    path = ROOT / "scifact" / "qrels.beir-v1.0.0-scifact.test.txt"
    for line in path.read_text(encoding="utf-8").splitlines():
        query_id, _, doc_id, grade = line.split()
        labels.setdefault(query_id, {})[doc_id] = int(grade)
    texts = {row["id"]: row["claim"] for row in _scifact_rows("claims_validation.csv")}
    return [(query_id, texts[query_id], of) for query_id, of in labels.items()]


def scifact_training() -> tuple[list[Document], list[tuple[str, set[str]]]]:
    """Abstracts and training claims with the ids of the abstracts that they cite; nothing that the test labels name."""
    tested = {doc_id for _, _, labels in scifact_test() for doc_id in labels}
    cited = {row["claim"]: set(re.findall(r"\d+", row["cited_doc_ids"])) for row in _scifact_rows("claims_train.csv")}
    corpus = [d for d in scifact_corpus() if d.doc_id not in tested]
    return corpus, [(claim, ids) for claim, ids in cited.items() if not tested & ids]


def _scifact_rows(name: str) -> list[dict[str, str]]:
    with zipfile.ZipFile(ROOT / "scifact" / "scifact.zip") as archive:
        return list(csv.DictReader(io.StringIO(archive.read(name).decode("utf-8"))))


def sentences(listed: str) -> list[str]:
    """The abstracts stand in the file as printed arrays of quoted sentences, one a line, without commas."""
    return [line.strip().strip("[]").strip()[1:-1].replace("' '", " ").strip() for line in listed.splitlines()]
