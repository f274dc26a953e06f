"""Credit for every rank of a generated list, and its comparison between lists of one prompt: Rank-GRPO (ConvRec-R1,
arXiv 2510.20150).

Valid on lists drawn from the policy that is trained. Gains are those of what stands at each rank: 0 for what is no
candidate, stood above already, or could not be read.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rankwright.maths import check_shapes

ReturnForm = Literal["dcg", "exponential", "own"]


def rank_returns(gains_QSK: Tensor, *, form: ReturnForm = "own", decay: float = 2.0) -> Tensor:
    """What each rank is worth, shape (Q, S, K): no rank is paid for what stands above it.

    - dcg:         r_k = sum over j >= k of rel_j / log2(j + 1)  (the paper's log_decay),
    - exponential: r_k = sum over j >= k of rel_j / decay^(j-k),
    - own:         r_k = rel_k  (exponential with an endless decay: exp_inf, which the authors found the most stable).

    Args:
        gains_QSK: relevance of the document at rank k, 0 where there is none.
        form: one of the three above.
        decay: Gamma of `exponential`, above 1; 2 is ours.

    >>> gains = torch.tensor([[[0.0, 1.0, 1.0]]])
    >>> [rank_returns(gains, form=form).flatten().tolist() for form in ("own", "exponential")]
    [[0.0, 1.0, 1.0], [0.75, 1.5, 1.0]]
    """
    check_shapes(gains_QSK="Q S K")
    if form == "own":
        return gains_QSK.clone()
    if form == "dcg":
        ranks_K = torch.arange(1, gains_QSK.shape[-1] + 1, dtype=gains_QSK.dtype, device=gains_QSK.device)
        return (gains_QSK / torch.log2(ranks_K + 1)).flip(-1).cumsum(-1).flip(-1)
    if form != "exponential":
        raise ValueError(f"Form of returns is '{form}'; wanted dcg, exponential or own.")
    if not decay > 1:
        raise ValueError(f"Decay of returns is {decay}; wanted above 1.")
    returns_QSK = gains_QSK.clone()
    for k in reversed(range(gains_QSK.shape[-1] - 1)):
        returns_QSK[..., k] += returns_QSK[..., k + 1] / decay
    return returns_QSK


def rank_advantages(returns_QSK: Tensor, *, epsilon: float = 1e-4) -> Tensor:
    """How much better each rank is than the same rank of the prompt's other lists, shape (Q, S, K):
    A_k = (r_k - mean) / (deviation + epsilon), both over the S lists at rank k.

    The deviation is the unbiased one (S - 1), as TRL's GRPO has it; which one the authors take is not known to us.

    Args:
        returns_QSK: NaN where a list has no reward; it does not count and gets 0, and so does the only one that has.
        epsilon: 1e-4 in the paper.

    >>> rank_advantages(torch.tensor([[[2.0, 5.0], [1.0, 5.0], [0.0, 5.0]]]), epsilon=0.0).tolist()
    [[[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]]]
    """
    check_shapes(returns_QSK="Q S K")
    known = torch.isfinite(returns_QSK)
    count = known.sum(1, keepdim=True)
    returns = torch.where(known, returns_QSK, 0.0)
    mean = returns.sum(1, keepdim=True) / count.clamp(min=1)
    away = torch.where(known, returns - mean, 0.0)
    deviation = (away.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return torch.where(away == 0, 0.0, away / (deviation + epsilon))
