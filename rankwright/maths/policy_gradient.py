"""Advantages, the clipped objective and divergences of RRPO (Wu et al., ACL 2026, arXiv 2604.02091).

Valid on rankings drawn from the policy that `old_logprobs_QSK` belong to. r_t is the *level* of the answer quality
after the first t documents, not its increment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from rankwright.maths import check_shapes

AdvantageForm = Literal["gae", "anchored", "marginal"]
GroupScale = Literal["mean", "deviation"]


def generalised_advantages(
    rewards_QSK: Tensor,
    values_QBK: Tensor,
    taken_QK: Tensor,
    *,
    form: AdvantageForm = "anchored",
    gamma: float = 1.0,
    lam: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Advantages of sampled rankings against a baseline per position, and where they are valid.

    A_t = sum over j >= t of (gamma lam)^(j-t) delta_j (Schulman et al. 2016, arXiv 1506.02438, eq. 16), with

    - gae:      delta_t = r_t + gamma V_{t+1} - V_t, V_{K+1} = 0 (as RRPO prints it; the upper index K is ours),
    - anchored: delta_t = r_t - V_t,
    - marginal: delta_t = (r_t - r_{t-1}) - (V_t - V_{t-1}), r_0 = V_0 = 0.

    Args:
        rewards_QSK: reward of the prefix of t documents; NaN where the read failed.
        values_QBK: baseline of position t, for each sample (B = S) or for all of a question (B = 1), as in RRPO that of
            the frozen reference's greedy prefix; NaN where a read that it needs failed.
        taken_QK: steps that exist (short candidate lists have fewer).
        form: one of the three above.
        gamma, lam: discount and GAE's lambda.

    Returns:
        advantages_QSK with 0 where invalid, and valid_QSK: false on steps that were not taken and on every step whose
        advantage would need a failed read.

    >>> rewards, values, taken = torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[0.5, 0.5]]]), torch.ones(1, 2) > 0
    >>> [generalised_advantages(rewards, values, taken, form=f)[0].tolist() for f in ("gae", "anchored", "marginal")]
    [[[[0.5, 0.5]]], [[[0.0, 0.5]]], [[[0.5, 1.0]]]]
    """
    check_shapes(rewards_QSK="Q S K", values_QBK="Q B K", taken_QK="Q K")
    taken_QSK = taken_QK[:, None, :].expand_as(rewards_QSK)
    values_QSK = values_QBK.expand_as(rewards_QSK)
    rewards = torch.where(taken_QSK, rewards_QSK, 0.0)
    values = torch.where(taken_QSK, values_QSK, 0.0)
    # NaN x 0 is NaN: with gamma or gamma lam = 0 a failed later read must not reach an earlier step.
    if form == "gae":
        following = torch.nn.functional.pad(values[..., 1:], (0, 1))
        deltas = rewards - values + (gamma * following if gamma else 0.0)
    elif form == "anchored":
        deltas = rewards - values
    elif form == "marginal":
        gains = rewards - values
        deltas = gains - torch.nn.functional.pad(gains[..., :-1], (1, 0))
    else:
        raise ValueError(f"Advantage form is '{form}'; wanted gae, anchored or marginal.")
    deltas = torch.where(taken_QSK, deltas, 0.0)
    advantages = torch.zeros_like(deltas)
    carry = torch.zeros_like(deltas[..., 0])
    for t in reversed(range(deltas.shape[-1])):
        carry = deltas[..., t] + (gamma * lam * carry if gamma * lam else 0.0)
        advantages[..., t] = carry
    valid_QSK = taken_QSK & torch.isfinite(advantages)
    return torch.where(valid_QSK, advantages, 0.0), valid_QSK


def group_baseline(rewards_QSK: Tensor) -> Tensor:
    """Mean reward of a question's samples at each position, shape (Q, 1, K), as in GRPO (Shao et al. 2024, arXiv
    2402.03300, section 4.1.1).

    Args:
        rewards_QSK: NaN where the read failed; it does not count.

    >>> group_baseline(torch.tensor([[[1.0], [0.0], [0.0], [0.0]]])).tolist()
    [[[0.25]]]
    """
    check_shapes(rewards_QSK="Q S K")
    first_Q1K = _first_known(rewards_QSK)
    return first_Q1K + (rewards_QSK - first_Q1K).nanmean(1, keepdim=True)


def _first_known(rewards_QSK: Tensor) -> Tensor:
    """The first reward at each position that is one. Means are taken of distances to it: that of like rewards is then
    exactly the reward, and their advantage exactly 0, which a mean of 0.1, 0.1 and 0.1 is not."""
    first_Q1K = torch.isfinite(rewards_QSK).int().argmax(1, keepdim=True)
    return rewards_QSK.gather(1, first_Q1K).nan_to_num()


def leave_one_out_baseline(rewards_QSK: Tensor) -> Tensor:
    """Mean reward of the question's *other* samples at each position, shape (Q, S, K) (Kool et al. 2019, "Buy 4
    REINFORCE samples, get a baseline for free!"; RLOO, Ahmadian et al. 2024, arXiv 2402.14740, eq. 8).

    Independent of the sample it is subtracted from, so the gradient stays unbiased; the group's mean shrinks it by
    (S - 1) / S.

    Args:
        rewards_QSK: NaN where the read failed; it does not count. Where no other sample has a reward the baseline is
            NaN, too.

    >>> leave_one_out_baseline(torch.tensor([[[1.0], [0.0], [0.5]]])).flatten().tolist()
    [0.25, 0.75, 0.5]
    """
    check_shapes(rewards_QSK="Q S K")
    known, first_Q1K = torch.isfinite(rewards_QSK), _first_known(rewards_QSK)
    distances = torch.where(known, rewards_QSK - first_Q1K, 0.0)
    others = known.sum(1, keepdim=True) - known.to(distances.dtype)
    mean = first_Q1K + (distances.sum(1, keepdim=True) - distances) / others.clamp(min=1)
    return torch.where(others > 0, mean, torch.nan)


def group_unit(rewards_QSK: Tensor, by: GroupScale) -> Tensor:
    """What rewards and baseline of a question are multiplied by at each position, shape (Q, 1, K); 0 where there is
    nothing to learn.

    - mean: 1 / mean reward of the samples. With the group's mean as baseline an advantage (r - mean) / mean climbs
      log E[r] instead of E[r], the better the more samples there are (MaxRL, Tajwar et al. 2026, arXiv 2602.02710): a
      question whose good rankings are still rare weighs as much as one that is nearly solved. It is at most S - 1.
    - deviation: 1 / standard deviation (of the population) of their rewards (GRPO, Shao et al. 2024, arXiv 2402.03300).

    Args:
        rewards_QSK: for `mean` at least 0; NaN where the read failed, which does not count.
        by: one of the two.

    >>> rewards = torch.tensor([[[1.0], [0.0], [0.0], [0.0]]])
    >>> unit = group_unit(rewards, "mean")
    >>> ((rewards - group_baseline(rewards)) * unit).flatten().tolist()
    [3.0, -1.0, -1.0, -1.0]
    """
    check_shapes(rewards_QSK="Q S K")
    size = mean = rewards_QSK.nanmean(1, keepdim=True)
    if by == "deviation":
        size = (rewards_QSK - mean).square().nanmean(1, keepdim=True).sqrt()
        # Rounding leaves a spread of about 1e-17 where all rewards are equal.
        size = torch.where(size <= 1e-9, 0.0, size)
    return torch.where(size == 0, 0.0, 1 / size)


class AdvantageWindow:
    """Standardises advantages by the mean and deviation of the most recent ones (RRPO: a sliding window).

    Args:
        size: how many recent advantages are kept.
        epsilon: added to the deviation.
    """

    def __init__(self, size: int = 512, epsilon: float = 1e-6) -> None:
        self.values: deque[float] = deque(maxlen=size)
        self.epsilon = epsilon

    def standardise(self, advantages_QSK: Tensor, valid_QSK: Tensor) -> Tensor:
        """(A - mean) / (std + epsilon) after adding the batch to the window; 0 where invalid."""
        check_shapes(advantages_QSK="Q S K", valid_QSK="Q S K")
        self.values.extend(advantages_QSK[valid_QSK].double().tolist())
        if not self.values:
            return torch.zeros_like(advantages_QSK)
        window = torch.tensor(list(self.values), dtype=torch.float64)
        mean, deviation = window.mean().item(), window.std(correction=0).item()
        standard = (advantages_QSK - mean) / (deviation + self.epsilon)
        return torch.where(valid_QSK, standard, 0.0)

    def state(self) -> list[float]:
        """The window's content, for a checkpoint."""
        return list(self.values)

    def restore(self, values: Sequence[float]) -> None:
        """Puts back what `state` gave."""
        self.values.clear()
        self.values.extend(values)


def clipped_surrogate(
    logprobs_QSK: Tensor, old_logprobs_QSK: Tensor, advantages_QSK: Tensor, valid_QSK: Tensor, *, epsilon: float
) -> tuple[Tensor, Tensor]:
    """The clipped objective to maximise and the share of clipped steps.

    Per ranking (1/k) sum over its valid steps of min(rho A, clip(rho, 1 - eps, 1 + eps) A) with rho = pi / pi_old
    (Schulman et al. 2017, arXiv 1707.06347, eq. 7), averaged over all rankings. A ranking without valid steps counts 0.

    Args:
        logprobs_QSK: of the policy, with gradient.
        old_logprobs_QSK: of the ratio's anchor: the behaviour policy or the frozen reference.
        advantages_QSK: constants.
        valid_QSK: steps that count.
        epsilon: clip range.

    Returns:
        Two scalars: the objective, with gradient, and the share of valid steps whose ratio lies outside the clip range.

    >>> new, old = torch.tensor([[[0.5]]]).log(), torch.tensor([[[0.25]]]).log()  # twice as likely as before
    >>> gain, clipped = clipped_surrogate(new, old, torch.ones(1, 1, 1), new < 0, epsilon=0.2)
    >>> round(gain.item(), 4), clipped.item()
    (1.2, 1.0)
    """
    check_shapes(logprobs_QSK="Q S K", old_logprobs_QSK="Q S K", advantages_QSK="Q S K", valid_QSK="Q S K")
    # An infinite ratio times a zero gradient would be NaN; e^60 is far beyond every clip and fits into float32.
    ratio = (logprobs_QSK - old_logprobs_QSK.detach()).clamp(max=60).exp()
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    gain = torch.minimum(ratio * advantages_QSK, clipped * advantages_QSK)
    gain = torch.where(valid_QSK, gain, 0.0)
    steps = valid_QSK.sum(-1).clamp(min=1)
    share = ((ratio != clipped) & valid_QSK).sum() / valid_QSK.sum().clamp(min=1)
    return (gain.sum(-1) / steps).mean(), share.detach()


def exact_kl(scores_QD: Tensor, reference_scores_QD: Tensor) -> Tensor:
    """KL(pi || reference) of the first step's softmax over all candidates, shape (Q,); -inf on padding in both.

    >>> scores = torch.tensor([[0.0, 0.0]])
    >>> exact_kl(scores, scores).item(), round(exact_kl(scores, torch.tensor([[3.0, 1.0]]).log()).item(), 4)
    (0.0, 0.1438)
    """
    check_shapes(scores_QD="Q D", reference_scores_QD="Q D")
    log_p, log_q = scores_QD.float().log_softmax(-1), reference_scores_QD.float().log_softmax(-1)
    padding = torch.isinf(scores_QD)
    difference = torch.where(padding, 0.0, log_p.masked_fill(padding, 0.0) - log_q.masked_fill(padding, 0.0))
    return (log_p.exp() * difference).sum(-1)


def sampled_kl(logprobs_QSK: Tensor, reference_logprobs_QSK: Tensor, taken_QSK: Tensor) -> Tensor:
    """Low-variance estimate of KL(pi || reference) on sampled steps: exp(d) - d - 1, d = log reference - log pi (k3 of
    Schulman 2020, joschu.net/blog/kl-approx.html); mean over steps taken, shape (Q,).

    >>> pi, reference = torch.tensor([[[0.5]]]).log(), torch.tensor([[[0.25]]]).log()
    >>> round(sampled_kl(pi, reference, torch.ones(1, 1, 1, dtype=torch.bool)).item(), 4)  # 1/2 + ln 2 - 1
    0.1931
    """
    check_shapes(logprobs_QSK="Q S K", reference_logprobs_QSK="Q S K", taken_QSK="Q S K")
    d = torch.where(taken_QSK, reference_logprobs_QSK - logprobs_QSK, 0.0)
    estimate = d.exp() - d - 1
    return estimate.sum((1, 2)) / taken_QSK.sum((1, 2)).clamp(min=1)
