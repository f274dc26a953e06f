"""How scores order the candidates of a question, against the order in which those came."""

from __future__ import annotations

import torch
from torch import Tensor

from rankwright.maths import check_shapes


def input_order(scores_QD: Tensor) -> tuple[Tensor, Tensor]:
    """Rank correlation with the input order, and share of ties, over all pairs of a question's candidates.

    The correlation is Kendall's tau-a (Kendall 1938, doi:10.1093/biomet/30.1-2.81): pairs that the scores put in the
    order of the input minus pairs that they put the other way, by all pairs; a tie counts for neither.

    Args:
        scores_QD: -inf on padding.

    Returns:
        correlation_Q from -1 to 1 and tied_Q from 0 to 1; NaN for a question with fewer than two candidates.

    >>> [values.tolist() for values in input_order(torch.tensor([[3.0, 2.0, 1.0], [1.0, 1.0, 2.0]]))]
    [[1.0, -0.6666666865348816], [0.0, 0.3333333432674408]]
    """
    check_shapes(scores_QD="Q D")
    real_QD = ~torch.isneginf(scores_QD)
    earlier_DD = torch.ones(scores_QD.shape[1], scores_QD.shape[1], dtype=torch.bool, device=scores_QD.device).triu(1)
    pairs_QDD = real_QD[:, :, None] & real_QD[:, None, :] & earlier_DD
    signs_QDD = torch.where(pairs_QDD, scores_QD[:, :, None] - scores_QD[:, None, :], 0.0).sign()
    count_Q = pairs_QDD.sum((1, 2)).float()
    return signs_QDD.sum((1, 2)) / count_Q, ((signs_QDD == 0) & pairs_QDD).sum((1, 2)) / count_Q
