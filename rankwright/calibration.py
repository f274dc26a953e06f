"""A temperature and a threshold for a model's scores, fitted on labelled pairs that it was not trained on.

The APIs show `sigmoid(score / temperature)` (rankwright/scale.py). The temperature is the one under which the labels
are likeliest (temperature scaling: Guo et al., "On Calibration of Modern Neural Networks", 2017,
https://arxiv.org/abs/1706.04599); the threshold is the value on that scale at which calling a pair relevant has the
largest F1. Both keep the order and leave raw scores as they are. They hold for pairs like those they were fitted on:
with 100 candidates of which one is relevant, probabilities are lower than with 10.

A temperature moves no score across 0. Where few pairs are relevant and many of the others score above 0, it can only
push all towards 0.5. One that is better neither than none nor than saying 0.5 of every pair (log loss ln 2) is not
written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rankwright.data.files import replace_text
from rankwright.errors import ConfigurationError, DataError, ModelError, StorageError
from rankwright.metrics.labels import labels_of
from rankwright.rerankers.onnx_folder import MANIFEST, is_export, read_manifest
from rankwright.rerankers.ranking import DEFAULT_TEMPLATE, Scorer, checked
from rankwright.types import Example, RerankRequest, Scored

OWN = "rankwright"
FEWEST = 10
"""Pairs that each half of the questions needs, relevant and not relevant ones among them."""
_WIDEST = 1e3
"""Temperatures are looked for between the spread of the scores divided by this and times this."""
_REQUESTS_AT_ONCE = 8
"""Few, so that progress is told every few seconds on a processor, where a question may take two."""
EVEN = math.log(2)
"""Log loss of saying 0.5 of every pair."""


@dataclass(frozen=True)
class Calibration:
    """What was fitted, and how well it holds on questions that it was not fitted on."""

    temperature: float
    """What raw scores are divided by before the sigmoid; what the model had before, where none was `fitted`."""
    fitted: bool
    """Whether the temperature was fitted here. It is not where one of the other half is better neither than 1 nor than
    saying 0.5 of every pair."""
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
    log_loss_share: float
    """The same, where the share of relevant pairs of the other half is said of every pair."""
    f1: float
    """There, of the threshold fitted on the other half."""

    @property
    def doubt(self) -> str:
        """Why the temperature was not written, or should not be trusted, and what to do; empty where all is well."""
        if not self.fitted:
            earlier = "" if self.temperature == 1 else " of before (rankwright calibrate --remove takes it out)"
            return (
                f"No temperature was fitted, it stays {self.temperature:.4g}{earlier}: with one of the other half log "
                f"loss goes from {self.log_loss_before:.4f} to {self.log_loss_after:.4f}, and saying 0.5 of every pair "
                f"has {EVEN:.4f}. A temperature moves no score across 0: it cannot say that {self.relevant} of "
                f"{self.pairs} pairs are relevant where the scores lie too high or too low for that. Give candidates "
                "of which more are relevant (a smaller --depth), or use these scores for the order and with the "
                "threshold, not as probabilities."
            )
        if self.log_loss_after < self.log_loss_share:
            return ""
        return (
            "As probabilities these numbers are no better than saying of every pair the share that is relevant (log "
            f"loss {self.log_loss_share:.4f}): use them for the order and with the threshold, or take both out again "
            "(rankwright calibrate --remove)."
        )


def calibrate(
    scorer: Scorer, examples: Sequence[Example], *, progress: Callable[[int, int], None] | None = None
) -> Calibration:
    """Fits a temperature and a threshold; every second question checks what the others give, then all are used. The
    threshold alone, where the check finds the temperature better neither than 1 nor than 0.5 for every pair.

    Args:
        scorer: any reranker that scores.
        examples: questions with candidates and relevance labels or answers; those without a relevant candidate count.
        progress: is told how many questions of how many are scored.

    Raises:
        DataError: too few pairs, or only one kind of them, or scores that do not rise with the labels.
        ModelError: a score is not finite.
    """
    filled = [example for example in examples if example.candidates and (example.relevance or example.answers)]
    score_P, label_P, odd_P = _scored(scorer, filled, progress or (lambda done, total: None))
    _check_halves(label_P, odd_P, len(filled))
    tried, whole = best_temperature(score_P[~odd_P], label_P[~odd_P]), best_temperature(score_P, label_P)
    after = log_loss(score_P[odd_P], label_P[odd_P], tried)
    before = log_loss(score_P[odd_P], label_P[odd_P], 1.0)
    fitted = math.isfinite(tried) and math.isfinite(whole) and after < max(EVEN, before)
    if not fitted:
        _check_rising(score_P, label_P)
        tried = whole = scorer.temperature  # the scale that will hold
    threshold = best_threshold(score_P[~odd_P], label_P[~odd_P], tried)
    share = float(label_P[~odd_P].mean())
    return Calibration(
        temperature=whole,
        fitted=fitted,
        threshold=best_threshold(score_P, label_P, whole),
        questions=len(filled),
        pairs=len(score_P),
        relevant=int(label_P.sum()),
        log_loss_before=before,
        log_loss_after=after,
        log_loss_share=float(-np.log(np.where(label_P[odd_P], share, 1 - share)).mean()),
        f1=_f1(_probability(score_P[odd_P], tried) >= threshold, label_P[odd_P]),
    )


def _scored(
    scorer: Scorer, examples: Sequence[Example], progress: Callable[[int, int], None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each of P pairs: its raw score, whether it is relevant, whether its question is every second one."""
    requests = [RerankRequest(example.query, example.candidates) for example in examples]
    found: list[Scored] = []
    for start in range(0, len(requests), _REQUESTS_AT_ONCE):
        found += scorer.score_batch(requests[start : start + _REQUESTS_AT_ONCE])
        progress(len(found), len(requests))
    scores, labels, odd = [], [], []
    for number, (example, request, scored) in enumerate(zip(examples, requests, found, strict=True)):
        grades = labels_of(example)
        scores += checked(scorer.name, request, scored).scores
        labels += [grades.get(document.doc_id, 0) > 0 for document in request.documents]
        odd += [number % 2 == 1] * len(request.documents)
    return np.array(scores), np.array(labels, bool), np.array(odd, bool)


def _check_halves(label_P: np.ndarray, odd_P: np.ndarray, questions: int) -> None:
    for name, half_P in {"first": ~odd_P, "second": odd_P}.items():
        relevant = int(label_P[half_P].sum())
        if half_P.sum() < FEWEST or not 0 < relevant < half_P.sum():
            raise DataError(
                f"The {name} half of the {questions} labelled questions has {half_P.sum()} pairs, {relevant} of them "
                f"relevant; wanted at least {FEWEST} of both kinds. Give more questions with candidates."
            )


def _check_rising(score_P: np.ndarray, label_P: np.ndarray) -> None:
    """A threshold alone needs scores that are higher where a pair is relevant."""
    relevant, others = float(score_P[label_P].mean()), float(score_P[~label_P].mean())
    if relevant <= others:
        raise DataError(
            f"Scores of {label_P.sum()} relevant pairs average {relevant:.3g}, of the others {others:.3g}; wanted "
            "relevant ones above, else neither a temperature nor a threshold says anything. Check the labels, or use "
            "raw scores."
        )


def best_temperature(score_P: np.ndarray, label_P: np.ndarray) -> float:
    """The temperature under which the labels of P pairs are likeliest; infinity, which makes 0.5 of every score, where
    none is better.

    Args:
        score_P: raw scores.
        label_P: whether each pair is relevant.
    """
    from scipy.optimize import minimize_scalar

    spread = float(np.abs(score_P).max()) or 1.0
    low, high = np.log(spread / _WIDEST), np.log(spread * _WIDEST)
    found = minimize_scalar(
        lambda log: log_loss(score_P, label_P, float(np.exp(log))), bounds=(low, high), method="bounded"
    )
    return math.inf if high - found.x < 0.1 else float(np.exp(found.x))


def best_threshold(score_P: np.ndarray, label_P: np.ndarray, temperature: float) -> float:
    """The value of sigmoid(score / temperature) from which on P pairs are best called relevant, by F1.

    Args:
        score_P: raw scores.
        label_P: whether each pair is relevant.
        temperature: of the scale that the threshold is for.
    """
    return _best_threshold(_probability(score_P, temperature), label_P)


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
    with _writable(folder):
        if is_export(folder):
            changed = replace(
                read_manifest(folder), temperature=calibration.temperature, threshold=calibration.threshold
            )
            replace_text(folder / MANIFEST, json.dumps(asdict(changed), indent=2) + "\n")
        else:
            _write_config(folder / "config.json", calibration, source)
        _write_card(folder / "README.md", _card_text(calibration, source))


def remove_calibration(folder: Path) -> bool:
    """Takes temperature and threshold out of a folder again, and their part out of its card.

    Args:
        folder: of a model or an export.

    Returns:
        Whether there were any.

    Raises:
        ConfigurationError, ModelError, StorageError: as `write_calibration`.
    """
    with _writable(folder):
        there = _remove_from_manifest(folder) if is_export(folder) else _remove_from_config(folder / "config.json")
        if there:
            _write_card(folder / "README.md", "")
    return there


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Names the folder in the error of one that cannot be written."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"Model folder {folder} cannot be written ({error.strerror}); wanted a writable one. Copy it, and "
            "calibrate the copy."
        ) from error


def _remove_from_manifest(folder: Path) -> bool:
    manifest = read_manifest(folder)
    bare = replace(manifest, temperature=1.0, threshold=None)
    if bare == manifest:
        return False
    replace_text(folder / MANIFEST, json.dumps(asdict(bare), indent=2) + "\n")
    return True


def _remove_from_config(path: Path) -> bool:
    with _config_of(path) as config:
        own = config.get(OWN, {})
        there = [name for name in _FITTED if own.pop(name, None) is not None]
    if there:
        replace_text(path, json.dumps(config, indent=2) + "\n")
    return bool(there)


_FITTED = ("temperature", "threshold", "calibration")
"""What is ours under `rankwright` in config.json."""


@contextmanager
def _config_of(path: Path) -> Iterator[dict[str, Any]]:
    """A model's config, to be changed here; what is of another shape is named."""
    if not path.is_file():
        raise ConfigurationError(
            f"Model {path.parent} is no folder with a config.json; wanted one that can be written. Save the model "
            "there first; the embedded reference can be exported (rankwright export reference --to DIR --for cpu)."
        )
    try:
        yield json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, AttributeError, TypeError) as error:
        raise ModelError(f"File {path} is damaged ({error}); wanted a model's config. Save the model again.") from error


def _write_config(path: Path, calibration: Calibration, source: str) -> None:
    with _config_of(path) as config:
        own = config.setdefault(OWN, {"kind": "cross_encoder", "template": DEFAULT_TEMPLATE})
        if calibration.fitted or calibration.temperature != 1:
            own["temperature"] = calibration.temperature
        else:  # 1 is what holds without an entry
            own.pop("temperature", None)
        own["threshold"] = calibration.threshold
        own["calibration"] = {"source": source, **asdict(calibration)}
    replace_text(path, json.dumps(config, indent=2) + "\n")


HEADING = "## Scale of the scores"


def _write_card(path: Path, text: str) -> None:
    """Puts a part of its own into the card, in the place of an earlier one, or takes that out where the text is empty;
    a folder without card gets none."""
    if not path.is_file():
        return
    before, _, behind = path.read_text(encoding="utf-8").partition(f"\n{HEADING}\n")
    rest = behind.partition("\n## ")
    after = f"\n## {rest[2]}" if rest[1] else ""
    own = f"\n{HEADING}\n\n{text}\n" if text else ""
    replace_text(path, before.rstrip("\n") + "\n" + own + after)


def _card_text(c: Calibration, source: str) -> str:
    on = f"{c.pairs} pairs ({c.relevant} relevant) of {c.questions} questions of `{source}`"
    told = (
        f"log loss {c.log_loss_before:.4f} -> {c.log_loss_after:.4f} (always saying the share of relevant pairs: "
        f"{c.log_loss_share:.4f})"
    )
    scale = (
        f"`sigmoid(score / {c.temperature:.4g})` was fitted on {on}"
        if c.fitted
        else f"No temperature fits {on}, so `sigmoid(score / {c.temperature:.4g})` is no probability"
    )
    return (
        f"Raw scores are logits. {scale}; a pair is best called relevant from {c.threshold:.3g} on. On the half of the "
        f"questions that the other half was fitted without: {told}, F1 {c.f1:.3f}."
    )
