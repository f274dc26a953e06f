"""A reranker as a CrossEncoder of sentence-transformers, and a CrossEncoder as a reranker."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator

import rankwright
from rankwright.errors import ConfigurationError
from rankwright.integrations.sentence_transformers import cross_encoder, samples
from rankwright.rerankers.cross_encoder import CrossEncoderReranker
from rankwright.types import Document, Example, Query
from tests.integration_kit import Written
from tests.tiny_bert import save_cross_encoder

TEXTS = ["rain", "a river of rain", "the moon " * 40]
"""The last is longer than the model reads."""


def _opened(folder: Path, max_length: int = 24) -> CrossEncoderReranker:
    reranker = rankwright.load(save_cross_encoder(folder), max_length=max_length)
    assert isinstance(reranker, CrossEncoderReranker)
    return reranker


def _scores(reranker: CrossEncoderReranker) -> list[float]:
    ranking = reranker.rerank("where is rain?", TEXTS)
    of_id = dict(zip(ranking.doc_ids, ranking.scores, strict=True))
    return [of_id[str(i)] for i in range(len(TEXTS))]


def _predicted(encoder: CrossEncoder) -> list[float]:
    return encoder.predict([("where is rain?", text) for text in TEXTS]).tolist()


def test_an_open_reranker_becomes_a_cross_encoder_with_its_raw_scores(tmp_path: Path) -> None:
    reranker = _opened(tmp_path / "model")
    with torch.no_grad():  # as training does; the folder it came from has other weights now
        for weight in reranker.parameters():
            weight.mul_(1.5)
    expected = _scores(reranker)
    encoder = cross_encoder(reranker)
    assert _predicted(encoder) == pytest.approx(expected, abs=1e-5)
    assert [row["corpus_id"] for row in encoder.rank("where is rain?", TEXTS)] == sorted(
        range(3), key=lambda i: -expected[i]
    )
    assert _scores(reranker) == expected


def test_lora_updates_are_added_in_the_copy_alone(tmp_path: Path) -> None:
    reranker = _opened(tmp_path / "model")
    reranker.add_lora(2, 4)
    with torch.no_grad():
        for name, weight in reranker.named_parameters():
            if "lora_B" in name:
                weight.normal_(0.0, 0.5)
    expected, names = _scores(reranker), [name for name, _ in reranker.named_parameters()]
    assert _predicted(cross_encoder(reranker)) == pytest.approx(expected, abs=1e-4)
    assert [name for name, _ in reranker.named_parameters()] == names
    assert _scores(reranker) == expected


def test_a_cross_encoder_that_was_saved_is_a_reranker(tmp_path: Path) -> None:
    reranker = _opened(tmp_path / "model")
    encoder = cross_encoder(reranker)
    encoder.save_pretrained(str(tmp_path / "saved"))
    again = rankwright.load(tmp_path / "saved")
    assert isinstance(again, CrossEncoderReranker)
    assert _scores(again) == pytest.approx(_scores(reranker), abs=1e-5)


def test_only_a_cross_encoder_becomes_one() -> None:
    with pytest.raises(ConfigurationError, match="Model is a Written; wanted a cross-encoder"):
        cross_encoder(Written())  # pyright: ignore[reportArgumentType]


DOCUMENTS = (Document("a", "rain", "Wet"), Document("b", "a river of rain"), Document("c", "the moon", "Sky"))
EXAMPLES = [
    Example(Query("1", "where is rain?"), DOCUMENTS, relevance={"b": 2, "c": 0, "elsewhere": 1}),
    Example(Query("2", "where is the moon?"), DOCUMENTS[::-1], relevance={"c": 1, "a": 1}),
    Example(Query("3", "nothing?"), DOCUMENTS, relevance={"elsewhere": 1}),
]


def test_samples_are_candidates_with_titles_as_in_training() -> None:
    assert samples(EXAMPLES, "{title} / {text}") == [
        {
            "query": "where is rain?",
            "positive": ["a river of rain"],
            "documents": ["Wet / rain", "a river of rain", "Sky / the moon"],
        },
        {
            "query": "where is the moon?",
            "positive": ["Sky / the moon", "Wet / rain"],
            "documents": ["Sky / the moon", "a river of rain", "Wet / rain"],
        },
    ]
    assert samples(EXAMPLES)[0]["documents"] == ["Wet: rain", "a river of rain", "Sky: the moon"]
    with pytest.raises(ConfigurationError, match="None of 1 examples has a relevant candidate"):
        samples(EXAMPLES[2:])


def test_the_evaluator_measures_what_the_rankings_say(tmp_path: Path) -> None:
    reranker = _opened(tmp_path / "model", 64)
    evaluator = CrossEncoderRerankingEvaluator(samples(EXAMPLES, reranker.template), at_k=3)
    found = evaluator(cross_encoder(reranker))
    reciprocal, gains = [], []
    for example in EXAMPLES[:2]:
        order = reranker.rerank(example.query, example.candidates).doc_ids
        hits = [int(example.relevance.get(doc_id, 0) > 0) for doc_id in order]
        reciprocal.append(1 / (1 + hits.index(1)))
        ideal = sum(1 / math.log2(2 + i) for i in range(sum(hits)))
        gains.append(sum(hit / math.log2(2 + i) for i, hit in enumerate(hits)) / ideal)
    assert found["mrr@3"] == pytest.approx(sum(reciprocal) / 2)
    assert found["ndcg@3"] == pytest.approx(sum(gains) / 2)
