"""The demo knowledge base: its size, its answers, its split, and that nothing but meaning tells useful passages."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.demo import build
from rankwright.data import load_examples

Row = dict[str, Any]

DEMO = Path(build.ASSETS)
NEWTON_STEPS = 15
FOLDS = 10


def rows(name: str) -> list[Row]:
    return [json.loads(line) for line in (DEMO / name).read_text(encoding="utf-8").splitlines()]


CORPUS = {row["doc_id"]: row for row in rows("corpus.jsonl")}
QUESTIONS = rows("questions.jsonl")


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def gold_texts(question: Row) -> list[str]:
    return [CORPUS[doc_id]["text"] for doc_id in question["relevance"]]


def holds(text: str, answer: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text) is not None


def test_the_shipped_files_are_what_the_sources_build() -> None:
    corpus, questions = build.build()
    assert list(CORPUS.values()) == corpus
    assert questions == QUESTIONS


def test_it_loads_in_our_own_format() -> None:
    dataset = load_examples(DEMO / "questions.jsonl", "jsonl", corpus=DEMO / "corpus.jsonl")
    assert (len(dataset.examples), len(dataset.corpus), dataset.skipped) == (len(QUESTIONS), len(CORPUS), 0)


def test_size() -> None:
    on_side = Counter(question["metadata"]["split"] for question in QUESTIONS)
    assert len(CORPUS) >= 400
    assert len(QUESTIONS) >= 450
    assert on_side["test"] >= 280
    assert set(on_side) == {"train", "dev", "test"}


def test_ids_questions_and_titles_are_distinct() -> None:
    assert len({question["query_id"] for question in QUESTIONS}) == len(QUESTIONS)
    assert len({question["question"] for question in QUESTIONS}) == len(QUESTIONS)
    assert len({row["title"].lower() for row in CORPUS.values()}) == len(CORPUS)


def test_shipped_passages_do_not_tell_their_role() -> None:
    assert {field for row in CORPUS.values() for field in row} == {"doc_id", "title", "text"}
    assert all(re.fullmatch(r"sundrel-\d{4}", doc_id) for doc_id in CORPUS)


@pytest.mark.parametrize("side", ["train", "dev", "test"])
def test_every_side_has_every_type_and_every_part(side: str) -> None:
    part_of = {new: old.split("-")[0] for old, new in build.numbered(build.read_rows("questions"), "sundrel-q").items()}
    here = [question for question in QUESTIONS if question["metadata"]["split"] == side]
    assert {question["metadata"]["type"] for question in here} == {"single", "two-hop", "comparison"}
    assert {part_of[question["query_id"]] for question in here} == set(build.PARTS)


def test_no_gold_passage_is_on_two_sides() -> None:
    sides_of: dict[str, set[str]] = {}
    for question in QUESTIONS:
        for doc_id in question["relevance"]:
            sides_of.setdefault(doc_id, set()).add(question["metadata"]["split"])
    assert all(len(sides) == 1 for sides in sides_of.values())


def test_one_gold_passage_for_single_questions_and_two_for_the_others() -> None:
    for question in QUESTIONS:
        assert len(question["relevance"]) == (1 if question["metadata"]["type"] == "single" else 2), question[
            "query_id"
        ]


def test_the_first_answer_stands_word_for_word_in_a_gold_passage() -> None:
    for question in QUESTIONS:
        answer = question["answers"][0]
        if answer not in ("yes", "no"):
            assert any(holds(text, answer) for text in gold_texts(question)), question["query_id"]


def test_the_answer_of_a_two_hop_question_stands_in_one_gold_passage_only() -> None:
    for question in QUESTIONS:
        if question["metadata"]["type"] == "two-hop":
            assert sum(holds(text, question["answers"][0]) for text in gold_texts(question)) == 1, question["query_id"]


def test_questions_do_not_hold_their_answer() -> None:
    for question in QUESTIONS:
        if question["metadata"]["type"] != "comparison":
            assert not holds(question["question"].lower(), question["answers"][0].lower()), question["query_id"]


def test_yes_and_no_are_balanced() -> None:
    counts = Counter(question["answers"][0] for question in QUESTIONS)
    assert counts["yes"] >= 12
    assert counts["no"] >= 12
    assert abs(counts["yes"] - counts["no"]) <= 4


def test_passages_share_no_sentence_template() -> None:
    """No run of five words stands in more than 2 % of the passages, and hardly two passages open alike."""
    runs: Counter[tuple[str, ...]] = Counter()
    for row in CORPUS.values():
        tokens = words(row["text"])
        runs.update({tuple(tokens[start : start + 5]) for start in range(len(tokens) - 4)})
    openings = Counter(tuple(words(row["text"])[:3]) for row in CORPUS.values())
    assert max(runs.values()) <= 0.02 * len(CORPUS)
    assert max(openings.values()) <= 4
    assert len(openings) >= 0.9 * len(CORPUS)


def surface(row: Row, position: int) -> list[float]:
    """What can be counted on a passage without understanding it."""
    text, tokens = row["text"], row["text"].split()
    return [
        len(text),
        len(tokens),
        sum(character.isdigit() for character in text),
        text.count(","),
        sum(text.count(quote) for quote in "\"'‘’"),
        text.count("?"),
        sum(character.isupper() for character in text),
        len(row["title"]),
        len(text) / len(tokens),
        position,
    ]


def logistic_regression(features_DF: np.ndarray, labels_D: np.ndarray) -> np.ndarray:
    """Weights of a logistic regression with a unit ridge penalty (none on the constant), by Newton steps."""
    ones_DF = np.column_stack([np.ones(len(features_DF)), features_DF])
    ridge = np.diag([1e-6] + [1.0] * features_DF.shape[1])
    weights = np.zeros(ones_DF.shape[1])
    for _ in range(NEWTON_STEPS):
        chance_D = 1 / (1 + np.exp(-ones_DF @ weights))
        curvature = (ones_DF * (chance_D * (1 - chance_D))[:, None]).T @ ones_DF + ridge
        weights -= np.linalg.solve(curvature, ones_DF.T @ (chance_D - labels_D) + ridge @ weights)
    return weights


def area_under_curve(scores_D: np.ndarray, labels_D: np.ndarray) -> float:
    """The chance that a useful passage scores above a useless one; ties count half."""
    above = scores_D[labels_D == 1][:, None] - scores_D[labels_D == 0][None, :]
    return float(np.mean((above > 0) + 0.5 * (above == 0)))


def held_out_area(features_DF: np.ndarray, labels_D: np.ndarray, folds_D: np.ndarray) -> float:
    """Area under the curve of scores for passages of clusters that the regression did not see."""
    scores_D = np.zeros(len(labels_D))
    for fold in range(FOLDS):
        seen_D = folds_D != fold
        middle, spread = features_DF[seen_D].mean(0), features_DF[seen_D].std(0) + 1e-9
        weights = logistic_regression((features_DF[seen_D] - middle) / spread, labels_D[seen_D])
        scores_D[~seen_D] = (features_DF[~seen_D] - middle) / spread @ weights[1:] + weights[0]
    return area_under_curve(scores_D, labels_D)


@pytest.fixture(scope="module")
def passages() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Surface features, whether useful, and the fold of the cluster, for every passage."""
    written = build.read_rows("passages")
    new_id = build.numbered(written, "sundrel-")
    place = {doc_id: position for position, doc_id in enumerate(CORPUS)}
    clusters = sorted({row["cluster"] for row in written})
    features = [surface(CORPUS[new_id[row["id"]]], place[new_id[row["id"]]]) for row in written]
    useful = [float(row["role"] == "useful") for row in written]
    folds = [clusters.index(row["cluster"]) % FOLDS for row in written]
    return np.array(features, float), np.array(useful), np.array(folds)


def test_no_cue_but_meaning_tells_useful_from_useless(passages: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    features_DF, useful_D, folds_D = passages
    area = held_out_area(features_DF, useful_D, folds_D)
    assert area < 0.6, f"surface features tell useful passages with an area under the curve of {area:.3f}"


def test_the_regression_finds_a_cue_where_there_is_one(passages: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    features_DF, useful_D, folds_D = passages
    planted_DF = features_DF.copy()
    planted_DF[:, 3] += 4 * useful_D  # four commas more in every useful passage
    assert held_out_area(planted_DF, useful_D, folds_D) > 0.8


def test_no_single_count_tells_useful_from_useless(passages: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    features_DF, useful_D, _ = passages
    for column_D in features_DF.T:
        assert abs(area_under_curve(column_D, useful_D) - 0.5) < 0.1


def test_roles_are_of_all_kinds_in_every_cluster() -> None:
    gold = {doc_id for question in QUESTIONS for doc_id in question["relevance"]}
    written = build.read_rows("passages")
    new_id = build.numbered(written, "sundrel-")
    in_order = sorted(written, key=lambda row: row["cluster"])
    assert {new_id[row["id"]] for row in written if row["role"] == "useful"} == gold
    starts = [0] + [i + 1 for i, (a, b) in enumerate(pairwise(in_order)) if a["cluster"] != b["cluster"]]
    for start, end in pairwise([*starts, len(in_order)]):
        roles = Counter(row["role"] for row in in_order[start:end])
        assert roles["useful"] == 3
        assert roles["misleading"] + roles["useless"] in (5, 6)
    assert Counter(row["role"] for row in written)["misleading"] >= 0.2 * len(written)
