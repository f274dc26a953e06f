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


def weighted_ranknet_loss(scores_QD: Tensor, mask_QD: Tensor) -> Tensor:
    """Weighted RankNet (FIRST, Reddy et al. 2024, https://arxiv.org/abs/2406.15657): mean over all pairs i < j of
    log(1 + exp(s_j - s_i)) / (i + j), positions from 1; 0 where there is no pair.

    Args:
        scores_QD: raw scores, in the right order.
        mask_QD: False on padding.

    >>> loss = weighted_ranknet_loss(torch.tensor([[1.0, 1.0]]), torch.tensor([[True, True]]))
    >>> bool(torch.isclose(loss, torch.log(torch.tensor(2.0)) / 3))
    True
    """
    check_shapes(scores_QD="Q D", mask_QD="Q D")
    places = torch.arange(1, scores_QD.shape[1] + 1, device=scores_QD.device)
    pairs_QDD = (mask_QD[:, :, None] & mask_QD[:, None, :]) & (places[:, None] < places[None, :])
    if not pairs_QDD.any():
        return torch.where(mask_QD, scores_QD, 0.0).sum() * 0.0
    differences_QDD = scores_QD[:, None, :] - scores_QD[:, :, None]
    losses_QDD = torch.nn.functional.softplus(differences_QDD) / (places[:, None] + places[None, :])
    return losses_QDD[pairs_QDD].mean()
