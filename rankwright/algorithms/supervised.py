"""Learning from relevance labels with the listwise softmax loss: the rival of training from feedback, and the way the
embedded reference was warmed up."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rankwright.errors import TrainingError
from rankwright.maths.plackett_luce import entropy
from rankwright.maths.ranking_losses import softmax_loss
from rankwright.types import Example

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledBatch:
    """Labels of a batch, shaped like the scores."""

    labels_QD: Tensor
    """Relevance grades; 0 for unlabelled candidates and padding."""
    metrics: Mapping[str, float]
    labelled: int
    """Questions with a relevant candidate in the whole batch, of which this may be a part."""
    questions: int
    """Questions of the whole batch."""

    def rows(self, questions: Sequence[int], device: torch.device) -> LabelledBatch:
        """The part of some of its questions, by their positions."""
        return replace(self, labels_QD=self.labels_QD[questions].to(device))

    @property
    def teaches(self) -> bool:
        """False where no candidate is relevant: the loss has nothing to say."""
        return bool((self.labels_QD > 0).any())


class Supervised:
    """Listwise softmax cross-entropy on labelled candidates; has no reader and no state."""

    needs_reference = False
    inner_epochs = 1

    def reads_per_question(self, candidates: int) -> int:
        """Labels cost no reader call."""
        return 0

    def check(self, examples: Sequence[Example]) -> None:
        """Refuses questions without any relevant candidate, and tells the share of those that lack one.

        Raises:
            TrainingError: no question has one.
        """
        without = sum(not _has_relevant(example) for example in examples)
        if without == len(examples):
            labelled = sum(bool(example.relevance) for example in examples)
            raise TrainingError(
                f"None of the {len(examples)} training questions has a relevant candidate ({labelled} have labels); "
                "--method supervised learns from nothing else. Label candidates by their doc_id, raise --depth so "
                "that labelled passages are found, or train with --method rrpo, which needs no labels."
            )
        if without:
            logger.warning(
                "%d of %d training questions (%.0f%%) have no relevant candidate and teach nothing; raise --depth or "
                "label more passages.",
                without,
                len(examples),
                100 * without / len(examples),
            )

    def collect(
        self, scores_QD: Tensor, reference_scores_QD: Tensor, examples: Sequence[Example], rollout_number: int
    ) -> LabelledBatch:
        """Looks up the labels of the candidates."""
        labels_QD = torch.zeros_like(scores_QD, dtype=torch.float32)
        for q, example in enumerate(examples):
            for d, document in enumerate(example.candidates):
                labels_QD[q, d] = max(0, example.relevance.get(document.doc_id, 0))
        labelled = int((labels_QD.sum(-1) > 0).sum())
        metrics = {"without_relevant_share": 1 - labelled / len(examples)}
        return LabelledBatch(labels_QD, metrics, labelled, len(examples))

    def loss(self, scores_QD: Tensor, rollout: LabelledBatch) -> tuple[Tensor, dict[str, float]]:
        """The loss and what to log. In the mean over the parts of a batch every labelled question weighs the same."""
        labelled = int((rollout.labels_QD.sum(-1) > 0).sum())
        weight = labelled * rollout.questions / (max(rollout.labelled, 1) * len(scores_QD))
        loss = softmax_loss(scores_QD, rollout.labels_QD) * weight
        return loss, {"entropy": entropy(scores_QD.detach()).mean().item()}

    def state(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to put back."""


def _has_relevant(example: Example) -> bool:
    return any(example.relevance.get(document.doc_id, 0) > 0 for document in example.candidates)
