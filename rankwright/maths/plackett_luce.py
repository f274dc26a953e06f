"""The Plackett-Luce distribution over rankings (Plackett 1975; Luce 1959).

A ranking is drawn one document at a time: step k chooses among the documents not chosen yet with probability softmax of
their scores. RRPO (arXiv 2604.02091) writes the step probability as p_c / (1 - sum of p over those already chosen);
here it is a masked log-softmax over the remaining scores, which is the same number without cancellation.

Padding documents have score -inf and are never chosen. Where a query has fewer documents than steps, the surplus steps
have action 0 and log-probability 0, and `step_mask` marks them as not taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from rankwright.maths import check_shapes


def step_mask(scores_QD: Tensor, steps: int) -> Tensor:
    """Which of the `steps` steps a query can take: bool of shape (Q, K), true while documents are left.

    >>> step_mask(torch.tensor([[1.0, 2.0], [1.0, -torch.inf]]), 2).tolist()
    [[True, True], [True, False]]
    """
    check_shapes(scores_QD="Q D")
    # Only -inf is padding. A NaN score counts as a document, so that a diverged policy shows in the loss.
    count_Q = (~torch.isneginf(scores_QD)).sum(-1)
    return torch.arange(steps, device=scores_QD.device)[None, :] < count_Q[:, None]


def gumbel_noise(seed: int, step: int, query_ids: Sequence[str], samples: int, counts: Sequence[int]) -> Tensor:
    """Standard Gumbel noise of shape (Q, S, D), keyed by seed, step, query and sample number; 0 on padding.

    Keyed noise makes a sampled ranking independent of batch composition, of the number of processes and of how often a
    run was interrupted: nothing has to be saved to go on exactly.

    Args:
        seed: of the run.
        step: of the run; each has its own noise.
        query_ids: one per query.
        samples: S.
        counts: documents of each query. D is the largest, but a query draws only for its own documents: the width of
            the batch must not decide what its second sample gets.

    >>> one, both = gumbel_noise(0, 1, ["b"], 2, [3]), gumbel_noise(0, 1, ["a", "b"], 2, [5, 3])
    >>> torch.equal(one[0], both[1, :, :3])
    True
    """
    width = max(counts)
    rows = []
    for query_id, documents in zip(query_ids, counts, strict=True):
        digest = hashlib.sha256(f"{seed}|{step}|{query_id}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        uniform = torch.rand(samples, documents, generator=generator, dtype=torch.float64)
        noise = -torch.log(-torch.log(uniform.clamp(1e-300, 1 - 1e-16)))
        rows.append(torch.nn.functional.pad(noise, (0, width - documents)))
    return torch.stack(rows)


FAR = 1e12
"""Beyond every perturbed score."""


def sample_rankings(scores_QD: Tensor, noise_QSD: Tensor, steps: int, shared: int = 0) -> Tensor:
    """actions_QSK: the first K documents of S rankings drawn without replacement.

    Adding Gumbel noise and sorting draws from Plackett-Luce exactly (Yellott 1977; Kool et al. 2019, arXiv 1903.06059).

    Args:
        scores_QD: raw scores, -inf on padding.
        noise_QSD: standard Gumbel noise.
        steps: K; surplus steps get action 0.
        shared: every second ranking takes over so many first documents of the one before it and goes on by its own
            noise. Each is still drawn from Plackett-Luce, since what follows a prefix does not depend on how the prefix
            was drawn; two of a pair are not independent.

    >>> sample_rankings(torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.0, 5.0]]]), 2).tolist()
    [[[1, 0], [2, 1]]]
    """
    check_shapes(scores_QD="Q D", noise_QSD="Q S D")
    perturbed_QSD = scores_QD.detach().double()[:, None, :] + noise_QSD.to(scores_QD.device)
    taken_Q1K = step_mask(scores_QD, steps)[:, None, :]
    if shared:
        second_QSD = perturbed_QSD[:, 1::2]
        first_QSK = _first(perturbed_QSD[:, ::2][:, : second_QSD.shape[1]], taken_Q1K, steps)
        for step in range(min(shared, steps)):
            chosen = first_QSK[..., step : step + 1]
            before_all = torch.full_like(chosen, steps - step, dtype=torch.float64) * FAR
            kept = second_QSD.gather(-1, chosen)
            second_QSD.scatter_(-1, chosen, torch.where(taken_Q1K[..., step : step + 1], before_all, kept))
    return _first(perturbed_QSD, taken_Q1K, steps)


def greedy_rankings(scores_QD: Tensor, steps: int) -> Tensor:
    """actions_QK: the K best documents, ties in input order.

    >>> greedy_rankings(torch.tensor([[1.0, 3.0, 3.0]]), 2).tolist()
    [[1, 2]]
    """
    check_shapes(scores_QD="Q D")
    return _first(scores_QD.detach(), step_mask(scores_QD, steps), steps)


def _first(keys: Tensor, taken: Tensor, steps: int) -> Tensor:
    order = torch.sort(keys, dim=-1, descending=True, stable=True).indices[..., :steps]
    if order.shape[-1] < steps:
        order = torch.nn.functional.pad(order, (0, steps - order.shape[-1]))
    return order.masked_fill(~taken.expand_as(order), 0)


def step_logprobs(scores_QD: Tensor, actions_QSK: Tensor) -> Tensor:
    """logprobs_QSK: log-probability of every step of given rankings, differentiable in the scores.

    log pi(a_k) = s_{a_k} - logsumexp over the documents not chosen before k.

    >>> scores = torch.tensor([[0.0, 0.0, 0.0]])
    >>> step_logprobs(scores, torch.tensor([[[2, 0]]])).exp()
    tensor([[[0.3333, 0.5000]]])
    """
    check_shapes(scores_QD="Q D", actions_QSK="Q S K")
    steps = actions_QSK.shape[-1]
    taken_QK = step_mask(scores_QD, steps)
    remaining = scores_QD.float()[:, None, :].expand(-1, actions_QSK.shape[1], -1)
    logprobs = []
    for k in range(steps):
        action = actions_QSK[..., k : k + 1]
        take_Q1 = taken_QK[:, None, k]
        # A step that is not taken must not see a row of -inf only: its softmax would put NaN into the gradient.
        safe = torch.where(take_Q1[..., None], remaining, torch.zeros_like(remaining))
        chosen = safe.gather(-1, action).squeeze(-1) - safe.logsumexp(-1)
        logprobs.append(torch.where(take_Q1, chosen, torch.zeros_like(chosen)))
        gone = torch.zeros_like(remaining, dtype=torch.bool).scatter(-1, action, True) & take_Q1[..., None]
        remaining = remaining.masked_fill(gone, -torch.inf)
    return torch.stack(logprobs, dim=-1)


def entropy(scores_QD: Tensor) -> Tensor:
    """Entropy in nats of the first step's softmax, shape (Q,); -inf on padding.

    >>> entropy(torch.tensor([[0.0, 0.0, 0.0, 0.0]])).item()  # ln 4
    1.3862943649291992
    """
    check_shapes(scores_QD="Q D")
    log_p = scores_QD.float().log_softmax(-1)
    return -(log_p.exp() * log_p.masked_fill(torch.isinf(log_p), 0.0)).sum(-1)
