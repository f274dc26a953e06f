"""RRPO: a ranking is a sequence of choices, the reader's answer after each choice is its reward, and the frozen
reference's greedy ranking is the baseline (Wu et al., ACL 2026, arXiv 2604.02091).

Differences from the paper, each an option: the ratio is taken against the policy that sampled, the advantage sums
r_t - V_t instead of GAE's deltas, and the KL is exact over the candidates (docs/rrpo.md).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankwright.algorithms.config import RRPOConfig
from rankwright.algorithms.guards import leak_share, policy_metrics
from rankwright.algorithms.rollout import (
    MINIMUM_READS,
    Readings,
    check_failed_reads,
    prefixes_of,
    read_prefixes,
    rewards_tensor,
)
from rankwright.errors import ConfigurationError
from rankwright.maths.plackett_luce import (
    entropy,
    greedy_rankings,
    gumbel_noise,
    sample_rankings,
    step_logprobs,
    step_mask,
)
from rankwright.maths.policy_gradient import (
    AdvantageWindow,
    clipped_surrogate,
    exact_kl,
    reference_advantages,
    relative_to_mean,
    sampled_kl,
)
from rankwright.types import Example, Reader, Reward

RECENT_READS = 300
"""Reads whose share of failed ones counts; over all reads, one that breaks after hours would go unnoticed for hours."""


@dataclass(frozen=True)
class Rollout:
    """What was sampled and how it was rewarded; all tensors without gradient."""

    reference_scores_QD: Tensor
    """Scores of the frozen reference, -inf on padding."""
    actions_QSK: Tensor
    """Candidate positions chosen, in order."""
    behaviour_logprobs_QSK: Tensor
    """Log-probability of each step under the policy that sampled."""
    advantages_QSK: Tensor
    """Scaled as the settings say; 0 where invalid."""
    valid_QSK: Tensor
    """Steps whose reads all succeeded."""
    taken_QK: Tensor
    """Steps that exist: short candidate lists have fewer."""
    metrics: Mapping[str, float]
    """What happened, for the log."""

    @property
    def teaches(self) -> bool:
        """False where all advantages are 0, as where every read failed: the KL alone must not move the weights."""
        return bool(self.advantages_QSK.any())


class RRPO:
    """The algorithm over a reader and a reward.

    Args:
        config: its settings.
        reader: answers from a prefix; put a cache around it.
        reward: prices the answer.
        seed: of the sampling noise, which is keyed by (seed, rollout, query, sample).
    """

    needs_reference = True

    def __init__(self, config: RRPOConfig, reader: Reader, reward: Reward, seed: int = 0) -> None:
        self.config = config
        self.reader = reader
        self.reward = reward
        self.seed = seed
        self.inner_epochs = config.inner_epochs
        self.window = AdvantageWindow(config.window)
        self.recent: deque[bool] = deque(maxlen=RECENT_READS)

    def check(self, examples: Sequence[Example]) -> None:
        """Any question with candidates will do."""

    def reads_per_question(self, candidates: int) -> int:
        """Upper bound of the reader calls that one visit of a question with so many candidates can cost:
        prefixes of the samples and of the reference, as far as there are that many different ones, and no document."""
        steps = range(1, self.config.train_k + 1)
        return sum(min(self.config.samples + 1, math.perm(candidates, t)) for t in steps) + 1

    @torch.no_grad()
    def collect(
        self, scores_QD: Tensor, reference_scores_QD: Tensor, examples: Sequence[Example], rollout_number: int
    ) -> Rollout:
        """Samples S rankings per question and has the reader answer after each of their first K documents.

        Args:
            scores_QD: the policy's scores, -inf on padding.
            reference_scores_QD: the frozen reference's.
            examples: the questions, in the order of the rows.
            rollout_number: counts rollouts of the run; part of the key of the noise.

        Raises:
            ReaderError: more of the recent reads failed than `max_failed_reads` allows.
            ConfigurationError: a reward below 0 with scale question.
        """
        config = self.config
        scores_QD = scores_QD.detach().float() / config.temperature
        reference_scores_QD = reference_scores_QD.to(scores_QD.device).float() / config.temperature
        query_ids = [example.query.query_id for example in examples]
        counts = [len(example.candidates) for example in examples]
        noise_QSD = gumbel_noise(self.seed, rollout_number, query_ids, config.samples, counts)
        actions_QSK = sample_rankings(scores_QD, noise_QSD, config.train_k)
        greedy_Q1K = greedy_rankings(reference_scores_QD, config.train_k)[:, None, :]
        taken_QK = step_mask(scores_QD, config.train_k)
        readings = self._read(examples, actions_QSK, greedy_Q1K, taken_QK)
        rewards_QSK = rewards_tensor(examples, actions_QSK, taken_QK, readings).to(scores_QD.device)
        values_QK = rewards_tensor(examples, greedy_Q1K, taken_QK, readings)[:, 0].to(scores_QD.device)
        no_document = [readings.rewards[query_id, ()] for query_id in query_ids]
        no_document_Q = torch.tensor([torch.nan if v is None else v for v in no_document], dtype=torch.float64)
        kept_Q = self._kept(rewards_QSK, no_document_Q.to(scores_QD.device))
        raw_QSK, valid_QSK = self._advantages(rewards_QSK, values_QK, taken_QK)
        advantage = _mean(raw_QSK[valid_QSK])
        if config.scale == "question":
            self._refuse_negative(rewards_QSK)
            raw_QSK, valid_QSK = self._advantages(*relative_to_mean(rewards_QSK), taken_QK)
        masked_steps = (taken_QK[:, None, :] & ~valid_QSK).sum()
        valid_QSK = valid_QSK & kept_Q[:, None, None]
        if config.scale == "window":
            advantages_QSK = self.window.standardise(raw_QSK, valid_QSK).float()
        else:
            advantages_QSK = torch.where(valid_QSK, raw_QSK, 0.0).float()
        last_QS = _last(rewards_QSK, taken_QK)
        metrics = {
            "reward": _mean(last_QS),
            "reference_reward": _mean(_last(values_QK[:, None, :], taken_QK)),
            "no_document_reward": _mean(no_document_Q),
            "advantage": advantage,
            "zero_variance_share": float((_spread(last_QS) == 0).double().mean()) if config.samples > 1 else math.nan,
            "reader_calls": float(readings.paid),
            "cache_hits": float(readings.hits),
            "failed_reads": float(readings.failed),
            "masked_steps": float(masked_steps),
            "dropped_share": float((~kept_Q).double().mean()),
            "reward_agreement": readings.agreement,
            "leak_share": leak_share(examples),
            "stale_share": getattr(self.reader, "stale_share", math.nan),
            **policy_metrics(scores_QD, reference_scores_QD),
        }
        behaviour_QSK = step_logprobs(scores_QD, actions_QSK)
        return Rollout(reference_scores_QD, actions_QSK, behaviour_QSK, advantages_QSK, valid_QSK, taken_QK, metrics)

    def loss(self, scores_QD: Tensor, rollout: Rollout) -> tuple[Tensor, dict[str, float]]:
        """-(clipped surrogate) + beta KL, and what to log.

        Args:
            scores_QD: the policy's scores of the same questions, with gradient.
            rollout: from `collect`; with one update per rollout the scores are the very ones that sampled.
        """
        config = self.config
        scores_QD = scores_QD.float() / config.temperature
        reference_QD = rollout.reference_scores_QD
        logprobs_QSK = step_logprobs(scores_QD, rollout.actions_QSK)
        reference_logprobs_QSK = step_logprobs(reference_QD, rollout.actions_QSK)
        anchor_QSK = reference_logprobs_QSK if config.ratio_anchor == "reference" else rollout.behaviour_logprobs_QSK
        gain, clipped_share = clipped_surrogate(
            logprobs_QSK, anchor_QSK, rollout.advantages_QSK, rollout.valid_QSK, epsilon=config.clip
        )
        if config.kl == "exact":
            kl = exact_kl(scores_QD, reference_QD).mean()
        else:
            taken_QSK = rollout.taken_QK[:, None, :].expand_as(logprobs_QSK)
            kl = sampled_kl(logprobs_QSK, reference_logprobs_QSK, taken_QSK).mean()
        loss = -gain + config.beta * kl
        detached = scores_QD.detach()
        documents = ~torch.isneginf(detached)
        metrics = {
            "kl": kl.item(),
            "entropy": entropy(detached).mean().item(),
            "clipped_share": clipped_share.item(),
            "score_spread": torch.stack(
                [row[keep].std(correction=0) for row, keep in zip(detached, documents, strict=True)]
            )
            .mean()
            .item(),
        }
        return loss, metrics

    def _read(self, examples: Sequence[Example], actions_QSK: Tensor, greedy_Q1K: Tensor, taken_QK: Tensor) -> Readings:
        """Every prefix of the samples and of the reference's ranking, and each question without documents."""
        sampled = prefixes_of(examples, actions_QSK, taken_QK)
        greedy = prefixes_of(examples, greedy_Q1K, taken_QK)
        readings = read_prefixes([*sampled, *greedy, *((e, ()) for e in examples)], self.reader, self.reward)
        self.recent.extend(readings.asked)
        if (reads := len(self.recent)) >= MINIMUM_READS:
            failed = reads - sum(self.recent)
            check_failed_reads(self.reader, failed, reads, self.config.max_failed_reads, "recent reads")
        return readings

    def _advantages(self, rewards_QSK: Tensor, values_QK: Tensor, taken_QK: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        return reference_advantages(
            rewards_QSK, values_QK, taken_QK, form=config.advantage, gamma=config.gamma, lam=config.lam
        )

    def _kept(self, rewards_QSK: Tensor, no_document_Q: Tensor) -> Tensor:
        """Which questions may teach, as `drop_closed_book` and `skip_unanimous` say; a failed read drops nothing."""
        kept_Q = torch.ones(len(rewards_QSK), dtype=torch.bool, device=rewards_QSK.device)
        if self.config.drop_closed_book:
            best_Q = rewards_QSK.nan_to_num(nan=-torch.inf).amax((1, 2))
            kept_Q &= ~(no_document_Q >= best_Q)
        if self.config.skip_unanimous:
            kept_Q &= (_spread(rewards_QSK.transpose(1, 2)) > 0).any(-1)
        return kept_Q

    def _refuse_negative(self, rewards_QSK: Tensor) -> None:
        least = rewards_QSK.nan_to_num().min().item()
        if least < 0:
            raise ConfigurationError(
                f"Reward '{self.reward.name}' gave {least:.4g}; with rrpo.scale question rewards must be at least 0, "
                "because they are divided by their mean. Add a constant to the reward, or use rrpo.scale window."
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold besides weights: the advantage window. The recent reads start anew on
        resume, or a reader that was mended would be stopped for its past."""
        return {"window": self.window.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state` gave."""
        self.window.restore(state["window"])


def _last(rewards: Tensor, taken_QK: Tensor) -> Tensor:
    """Reward of the longest prefix that exists, shape (Q, S)."""
    last_Q = taken_QK.sum(-1).clamp(min=1) - 1
    return rewards.gather(-1, last_Q[:, None, None].expand(-1, rewards.shape[1], 1)).squeeze(-1)


def _mean(values: Tensor) -> float:
    """Mean over finite values; NaN where there are none."""
    finite = values[torch.isfinite(values)]
    return finite.double().mean().item() if finite.numel() else float("nan")


def _spread(values: Tensor) -> Tensor:
    """Largest minus smallest finite value of each row (the last dimension); 0 where there is none."""
    low = values.nan_to_num(nan=torch.inf).amin(-1)
    high = values.nan_to_num(nan=-torch.inf).amax(-1)
    return (high - low).clamp(min=0).nan_to_num(posinf=0.0, neginf=0.0)
