"""A temperature and a threshold for a model's scores, fitted on labelled pairs that it was not trained on.

The APIs show `sigmoid(score / temperature)` (rankwright/scale.py). The temperature is the one under which the labels
are likeliest (temperature scaling: Guo et al., "On Calibration of Modern Neural Networks", 2017,
https://arxiv.org/abs/1706.04599); the threshold is the value on that scale at which calling a pair relevant has the
largest F1. Both keep the order and leave raw scores as they are. They hold for pairs like those they were fitted on:
with 100 candidates of which one is relevant, probabilities are lower than with 10.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rankwright.data.files import replace_text
from rankwright.errors import ConfigurationError, DataError, ModelError, StorageError
from rankwright.metrics.labels import labels_of
from rankwright.rerankers.onnx_folder import MANIFEST, is_export, read_manifest
from rankwright.rerankers.ranking import DEFAULT_TEMPLATE, Scorer, checked
from rankwright.types import Example, RerankRequest

OWN = "rankwright"
FEWEST = 10
"""Pairs that each half of the questions needs, relevant and not relevant ones among them."""
_WIDEST = 1e3
"""Temperatures are looked for between the spread of the scores divided by this and times this."""


@dataclass(frozen=True)
class Calibration:
    """What was fitted, and how well it holds on questions that it was not fitted on."""

    temperature: float
    """What raw scores are divided by before the sigmoid."""
    threshold: float
    """Least value on that scale at which a pair is best called relevant."""
    questions: int
    pairs: int
    relevant: int
    """Pairs with a relevant document."""
    log_loss_before: float
    """On one half of the questions: mean of -log(probability of the label), with temperature 1."""
    log_loss_after: float
    """The same with a temperature that was fitted on the other half."""
    f1: float
    """There, of the threshold fitted on the other half."""


def calibrate(scorer: Scorer, examples: Sequence[Example]) -> Calibration:
    """Fits a temperature and a threshold; every second question checks what the others give, then all are used.

    Args:
        scorer: any reranker that scores.
        examples: questions with candidates and relevance labels or answers; those without a relevant candidate count.

    Raises:
        DataError: too few pairs, or only one kind of them, or scores that do not rise with the labels.
        ModelError: a score is not finite.
    """
    filled = [example for example in examples if example.candidates and (example.relevance or example.answers)]
    requests = [RerankRequest(example.query, example.candidates) for example in filled]
    scores, labels, question = [], [], []
    for number, (example, request, scored) in enumerate(
        zip(filled, requests, scorer.score_batch(requests), strict=True)
    ):
        grades = labels_of(example)
        scores += checked(scorer.name, request, scored).scores
        labels += [grades.get(document.doc_id, 0) > 0 for document in request.documents]
        question += [number] * len(request.documents)
    score_P, label_P, odd_P = np.array(scores), np.array(labels, bool), np.array(question, int) % 2 == 1
    for name, half_P in {"first": ~odd_P, "second": odd_P}.items():
        relevant = int(label_P[half_P].sum())
        if half_P.sum() < FEWEST or not 0 < relevant < half_P.sum():
            raise DataError(
                f"The {name} half of the {len(filled)} labelled questions has {half_P.sum()} pairs, {relevant} of them "
                f"relevant; wanted at least {FEWEST} of both kinds. Give more questions with candidates."
            )
    tried = fit(score_P[~odd_P], label_P[~odd_P])
    temperature, threshold = fit(score_P, label_P)
    return Calibration(
        temperature,
        threshold,
        len(filled),
        len(score_P),
        int(label_P.sum()),
        log_loss(score_P[odd_P], label_P[odd_P], 1.0),
        log_loss(score_P[odd_P], label_P[odd_P], tried[0]),
        _f1(_probability(score_P[odd_P], tried[0]) >= tried[1], label_P[odd_P]),
    )


def fit(score_P: np.ndarray, label_P: np.ndarray) -> tuple[float, float]:
    """Temperature and threshold for P pairs.

    Args:
        score_P: raw scores.
        label_P: whether each pair is relevant; both kinds are there.

    Raises:
        DataError: no temperature is best, because scores do not rise with the labels.
    """
    from scipy.optimize import minimize_scalar

    spread = float(np.abs(score_P).max()) or 1.0
    low, high = np.log(spread / _WIDEST), np.log(spread * _WIDEST)
    found = minimize_scalar(
        lambda log: log_loss(score_P, label_P, float(np.exp(log))), bounds=(low, high), method="bounded"
    )
    if high - found.x < 0.1:
        raise DataError(
            f"Scores of {label_P.sum()} relevant pairs average {score_P[label_P].mean():.3g}, of the others "
            f"{score_P[~label_P].mean():.3g}; wanted scores on both sides of 0, relevant ones above, else no "
            "temperature makes them probabilities. Check the labels, or use raw scores."
        )
    temperature = float(np.exp(found.x))
    return temperature, _best_threshold(_probability(score_P, temperature), label_P)


def log_loss(score_P: np.ndarray, label_P: np.ndarray, temperature: float) -> float:
    """Mean of -log(probability of the label)."""
    signed_P = np.where(label_P, score_P, -score_P) / temperature
    return float(np.logaddexp(0, -signed_P).mean())


def _probability(score_P: np.ndarray, temperature: float) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -score_P / temperature))


def _best_threshold(probability_P: np.ndarray, label_P: np.ndarray) -> float:
    """The least probability that counts as relevant at the largest F1; of several the largest, in the middle of the gap
    below it."""
    order = np.argsort(-probability_P, kind="stable")
    values, hits = probability_P[order], np.cumsum(label_P[order])
    f1 = 2 * hits / (np.arange(1, len(values) + 1) + label_P.sum())
    last_of_its_value = np.append(values[1:] < values[:-1], True)
    best = int(np.argmax(np.where(last_of_its_value, f1, -1)))
    below = values[best + 1] if best + 1 < len(values) else 0.0
    return float((values[best] + below) / 2)


def _f1(called_P: np.ndarray, label_P: np.ndarray) -> float:
    return float(2 * (called_P & label_P).sum() / max(called_P.sum() + label_P.sum(), 1))


# --- into the model's folder ----------------------------------------------------------------------------------------


def write_calibration(folder: Path, calibration: Calibration, source: str) -> None:
    """Writes temperature and threshold into a folder: an export's manifest, or `rankwright` in config.json, and the
    card.

    Args:
        folder: of a model or an export.
        calibration: what was fitted.
        source: on what, for the card.

    Raises:
        ConfigurationError: it is no such folder.
        ModelError: its config.json is damaged.
        StorageError: it cannot be written.
    """
    try:
        if is_export(folder):
            manifest = read_manifest(folder)
            changed = replace(manifest, temperature=calibration.temperature, threshold=calibration.threshold)
            replace_text(folder / MANIFEST, json.dumps(asdict(changed), indent=2) + "\n")
        else:
            _write_config(folder / "config.json", calibration, source)
        _write_card(folder / "README.md", calibration, source)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"Model folder {folder} cannot be written ({error.strerror}); wanted a writable one. Copy it, and "
            "calibrate the copy."
        ) from error


def _write_config(path: Path, calibration: Calibration, source: str) -> None:
    if not path.is_file():
        raise ConfigurationError(
            f"Model {path.parent} is no folder with a config.json; wanted one that can be written. Save the model "
            "there first; the embedded reference can be exported (rankwright export reference --to DIR --for cpu)."
        )
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        own = config.setdefault(OWN, {"kind": "cross_encoder", "template": DEFAULT_TEMPLATE})
        own |= {"temperature": calibration.temperature, "threshold": calibration.threshold}
        own["calibration"] = {"source": source, **asdict(calibration)}
    except (ValueError, AttributeError, TypeError) as error:
        raise ModelError(f"File {path} is damaged ({error}); wanted a model's config. Save the model again.") from error
    replace_text(path, json.dumps(config, indent=2) + "\n")


HEADING = "## Scale of the scores"


def _write_card(path: Path, calibration: Calibration, source: str) -> None:
    """Puts a part of its own into the card, in the place of an earlier one; a folder without card gets none."""
    if not path.is_file():
        return
    before, _, behind = path.read_text(encoding="utf-8").partition(f"\n{HEADING}\n")
    rest = behind.partition("\n## ")
    after = f"\n## {rest[2]}" if rest[1] else ""
    c = calibration
    text = (
        f"\n{HEADING}\n\nRaw scores are logits. `sigmoid(score / {c.temperature:.4g})` was fitted on {c.pairs} pairs "
        f"({c.relevant} relevant) of {c.questions} questions of `{source}`; a pair is best called relevant from "
        f"{c.threshold:.3g} on. On the half of the questions that the other half was fitted without: log loss "
        f"{c.log_loss_before:.4f} -> {c.log_loss_after:.4f}, F1 {c.f1:.3f}.\n"
    )
    replace_text(path, before.rstrip("\n") + "\n" + text + after)
