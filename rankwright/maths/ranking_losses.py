"""Losses that learn a ranking from labels."""

from __future__ import annotations

import torch
from torch import Tensor

from rankwright.maths import check_shapes


def softmax_loss(scores_QD: Tensor, labels_QD: Tensor) -> Tensor:
    """Listwise softmax cross-entropy (ListNet top-1, Cao et al. 2007): -sum of y/sum(y) log softmax(s), mean over
    queries that have a relevant document; 0 where none has.

    Args:
        scores_QD: raw scores, -inf on padding.
        labels_QD: relevance grades >= 0, 0 on padding.

    >>> loss = softmax_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    >>> bool(torch.isclose(loss, torch.log(torch.tensor(2.0))))
    True
    """
    check_shapes(scores_QD="Q D", labels_QD="Q D")
    total_Q = labels_QD.sum(-1)
    usable = total_Q > 0
    if not usable.any():
        return torch.where(torch.isinf(scores_QD), 0.0, scores_QD).sum() * 0.0
    target = labels_QD / total_Q.clamp(min=1e-12)[:, None]
    log_p = scores_QD.float().log_softmax(-1)
    per_query = -torch.where(target > 0, target * log_p, 0.0).sum(-1)
    return per_query[usable].mean()
