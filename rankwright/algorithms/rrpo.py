"""RRPO: a ranking is a sequence of choices, the reader's answer after each choice is its reward, and the frozen
reference's greedy ranking is the baseline (Wu et al., ACL 2026, arXiv 2604.02091).

Differences from the paper, each an option: the ratio is taken against the policy that sampled, the advantage sums
r_t - V_t instead of GAE's deltas, and the KL is exact over the candidates (docs/rrpo.md). Its rivals differ
from it only in where the baseline comes from and in what counts as one action.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from rankwright.algorithms.config import RRPOConfig
from rankwright.algorithms.critic import Critic, returns
from rankwright.algorithms.guards import leak_share, policy_metrics
from rankwright.algorithms.rollout import prefix_lengths, prefixes_of, rewards_tensor
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
    generalised_advantages,
    group_baseline,
    group_unit,
    leave_one_out_baseline,
    sampled_kl,
)
from rankwright.reading import (
    MINIMUM_READS,
    NOTHING_READ,
    Readings,
    check_failed_reads,
    check_missing_rewards,
    read_prefixes,
)
from rankwright.types import Example, Reader, Reward

RECENT_READS = 300
"""Reads whose share of failed ones counts, and answers whose share without a reward does; over all of them, a reader
that breaks after hours would go unnoticed for hours."""


@dataclass(frozen=True)
class Rollout:
    """What was sampled and how it was rewarded; all tensors without gradient."""

    reference_scores_QD: Tensor
    """Scores of the frozen reference, -inf on padding."""
    actions_QSK: Tensor
    """Candidate positions chosen, in order."""
    behaviour_logprobs_QSK: Tensor
    """Log-probability of each step under the policy that sampled."""
    advantages_QSA: Tensor
    """Of each action (A = K, or 1 where the ranking is one), scaled as the settings say; 0 where invalid."""
    valid_QSA: Tensor
    """Actions whose reads all succeeded."""
    taken_QK: Tensor
    """Steps that exist: short candidate lists have fewer."""
    metrics: Mapping[str, float]
    """What happened, for the log."""

    def rows(self, questions: Sequence[int], device: torch.device) -> Rollout:
        """The part of some of its questions, by their positions."""
        tensors = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **{name: tensor[questions].to(device) for name, tensor in tensors.items()})

    @property
    def teaches(self) -> bool:
        """False where all advantages are 0, as where every read failed: the KL alone must not move the weights."""
        return bool(self.advantages_QSA.any())


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
        self.critic = Critic(config.train_k, seed) if config.values_from == "critic" else None
        self.recent: deque[bool] = deque(maxlen=RECENT_READS)
        self.valued: deque[bool] = deque(maxlen=RECENT_READS)

    def check(self, examples: Sequence[Example]) -> None:
        """Any question with candidates will do."""

    def reads_per_question(self, candidates: int) -> int:
        """Upper bound of the reader calls that one visit of a question with so many candidates can cost:
        prefixes of the samples and of the reference, as far as there are that many different ones, and no document,
        unless `read_closed_book` leaves that out."""
        config = self.config
        lengths = [min(config.train_k, candidates)] if config.action == "ranking" else range(1, config.train_k + 1)
        return sum(min(self._different(t) + 1, math.perm(candidates, t)) for t in lengths) + config.read_closed_book

    def _different(self, length: int) -> int:
        """Prefixes of that length that the samples can have."""
        samples = self.config.samples
        return samples - samples // 2 if length <= self.config.shared_steps else samples

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
            RewardError: more of the recent answers have no reward than it allows.
            ConfigurationError: a reward below 0 with scale question.
        """
        config = self.config
        scores_QD = scores_QD.detach().float() / config.temperature
        reference_scores_QD = reference_scores_QD.to(scores_QD.device).float() / config.temperature
        query_ids = [example.query.query_id for example in examples]
        counts = [len(example.candidates) for example in examples]
        visit = rollout_number if config.noise == "rollout" else 0
        noise_QSD = gumbel_noise(self.seed, visit, query_ids, config.samples, counts)
        actions_QSK = sample_rankings(scores_QD, noise_QSD, config.train_k, config.shared_steps)
        greedy_Q1K = greedy_rankings(reference_scores_QD, config.train_k)[:, None, :]
        taken_QK = step_mask(scores_QD, config.train_k)
        lengths_QA = prefix_lengths(taken_QK, whole=config.action == "ranking")
        taken_QA = lengths_QA > 0
        readings, read_QSK = self._read(examples, actions_QSK, greedy_Q1K, lengths_QA)
        rewards_QSA = rewards_tensor(examples, read_QSK, lengths_QA, readings).to(scores_QD.device)
        greedy_Q1A = rewards_tensor(examples, greedy_Q1K, lengths_QA, readings).to(scores_QD.device)
        no_document = [readings.rewards.get((query_id, ())) for query_id in query_ids]
        no_document_Q = torch.tensor([torch.nan if v is None else v for v in no_document], dtype=torch.float64)
        kept_Q = self._kept(rewards_QSA, no_document_Q.to(scores_QD.device))
        values_QBA, critic_metrics = self._values(rewards_QSA, greedy_Q1A, reference_scores_QD, actions_QSK, taken_QA)
        raw_QSA, valid_QSA = self._advantages(rewards_QSA, values_QBA, taken_QA)
        masked_steps = (taken_QA[:, None, :] & ~valid_QSA).sum()
        valid_QSA = valid_QSA & kept_Q[:, None, None]
        if config.scale == "window":
            advantages_QSA = self.window.standardise(raw_QSA, valid_QSA).float()
        else:
            advantages_QSA = torch.where(valid_QSA, raw_QSA, 0.0).float()
        last_QS = _last(rewards_QSA, taken_QA)
        against_reference, compared = self._advantages(rewards_QSA, greedy_Q1A, taken_QA, scaled=False)
        metrics = {
            "reward": _mean(last_QS),
            "reference_reward": _mean(_last(greedy_Q1A, taken_QA)),
            "no_document_reward": _mean(no_document_Q),
            "advantage": _mean(against_reference[compared]),
            "zero_variance_share": _mean((_spread(last_QS) == 0)[torch.isfinite(last_QS).sum(-1) > 1].double()),
            "reader_calls": float(readings.paid),
            "cache_hits": float(readings.hits),
            "failed_reads": float(readings.failed),
            "masked_steps": float(masked_steps),
            "dropped_share": float((~kept_Q).double().mean()),
            "spared_share": float((read_QSK != actions_QSK).any(-1).double().mean()),
            **critic_metrics,
            "reward_agreement": readings.agreement,
            "leak_share": leak_share(examples),
            "stale_share": getattr(self.reader, "stale_share", math.nan),
            **policy_metrics(scores_QD, reference_scores_QD),
        }
        behaviour_QSK = step_logprobs(scores_QD, actions_QSK)
        return Rollout(reference_scores_QD, actions_QSK, behaviour_QSK, advantages_QSA, valid_QSA, taken_QK, metrics)

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
            self._of_actions(logprobs_QSK),
            self._of_actions(anchor_QSK),
            rollout.advantages_QSA,
            rollout.valid_QSA,
            epsilon=config.clip,
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

    def _of_actions(self, logprobs_QSK: Tensor) -> Tensor:
        """Log-probabilities of the actions; that of a whole ranking is the sum over its steps."""
        return logprobs_QSK.sum(-1, keepdim=True) if self.config.action == "ranking" else logprobs_QSK

    def _read(
        self, examples: Sequence[Example], actions_QSK: Tensor, greedy_Q1K: Tensor, lengths_QA: Tensor
    ) -> tuple[Readings, Tensor]:
        """The prefixes of the samples and of the reference's ranking, and each question without documents. Also the
        rankings whose rewards the samples get: their own, or the reference's where `read_first` spares them."""
        first = self.config.read_first or self.config.samples
        at_once_QRK = torch.cat([actions_QSK[:, :first], greedy_Q1K], 1)
        closed_book = [(example, ()) for example in examples if self.config.read_closed_book]
        readings = self._ask([*prefixes_of(examples, at_once_QRK, lengths_QA), *closed_book])
        if first == self.config.samples:
            return readings, actions_QSK
        rewards_QRA = rewards_tensor(examples, at_once_QRK, lengths_QA, readings)
        alike_Q = (rewards_QRA == rewards_QRA[:, :1]).all(2).all(1)  # a failed read is NaN, which is like nothing
        spared_QS = alike_Q[:, None] & (torch.arange(self.config.samples) >= first)
        read_QSK = torch.where(spared_QS[:, :, None].to(actions_QSK.device), greedy_Q1K, actions_QSK)
        others = prefixes_of(examples, read_QSK[:, first:], lengths_QA)
        return self._ask(others, readings), read_QSK

    def _ask(self, prefixes: Sequence[tuple[Example, tuple[int, ...]]], before: Readings = NOTHING_READ) -> Readings:
        """Readings of prefixes, with those of before; stops the run where too many of the recent ones failed or got no
        reward."""
        readings = read_prefixes(prefixes, self.reader, self.reward, before)
        allowed = self.config.max_failed_reads
        self.recent.extend(readings.asked[len(before.asked) :])
        self.valued.extend(readings.valued[len(before.valued) :])
        if (reads := len(self.recent)) >= MINIMUM_READS:
            check_failed_reads(self.reader, reads - sum(self.recent), reads, allowed, "recent reads")
        if (answers := len(self.valued)) >= MINIMUM_READS:
            check_missing_rewards(self.reward, answers - sum(self.valued), answers, allowed, "recent answers")
        return readings

    def _values(
        self,
        rewards_QSA: Tensor,
        greedy_Q1A: Tensor,
        reference_scores_QD: Tensor,
        actions_QSK: Tensor,
        taken_QA: Tensor,
    ) -> tuple[Tensor, dict[str, float]]:
        """The baseline, for each sample or for all of a question, and what a critic has to tell."""
        if self.critic is not None:
            features = self.critic.features(reference_scores_QD, actions_QSK)[:, :, : taken_QA.shape[-1]]
            values_QSA = self.critic.values(features).to(rewards_QSA.device)
            wanted_QSA = returns(rewards_QSA, self.config.gamma).cpu()
            return values_QSA, {"critic_error": self.critic.learn(features, wanted_QSA, taken_QA.cpu())}
        match self.config.values_from:
            case "group":
                return group_baseline(rewards_QSA), {}
            case "leave_one_out":
                return leave_one_out_baseline(rewards_QSA), {}
            case "reference":
                return greedy_Q1A, {}
            case _:
                return torch.zeros_like(greedy_Q1A), {}

    def _advantages(
        self, rewards_QSA: Tensor, values_QBA: Tensor, taken_QA: Tensor, *, scaled: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Advantages, where asked for in the question's own unit, and where they are valid."""
        config = self.config
        if scaled and config.scale in ("question", "deviation"):
            if config.scale == "question":
                self._refuse_negative(rewards_QSA)
            unit_Q1A = group_unit(rewards_QSA, "mean" if config.scale == "question" else "deviation")
            rewards_QSA, values_QBA = rewards_QSA * unit_Q1A, values_QBA * unit_Q1A
        return generalised_advantages(
            rewards_QSA, values_QBA, taken_QA, form=config.advantage, gamma=config.gamma, lam=config.lam
        )

    def _kept(self, rewards_QSA: Tensor, no_document_Q: Tensor) -> Tensor:
        """Which questions may teach, as `drop_closed_book` and `skip_unanimous` say; a failed read drops nothing."""
        kept_Q = torch.ones(len(rewards_QSA), dtype=torch.bool, device=rewards_QSA.device)
        if self.config.drop_closed_book:
            best_Q = rewards_QSA.nan_to_num(nan=-torch.inf).amax((1, 2))
            kept_Q &= ~((no_document_Q > 0) & (no_document_Q >= best_Q))
        if self.config.skip_unanimous:
            kept_Q &= (_spread(rewards_QSA.transpose(1, 2)) > 0).any(-1)
        return kept_Q

    def _refuse_negative(self, rewards_QSA: Tensor) -> None:
        least = rewards_QSA.nan_to_num().min().item()
        if least < 0:
            raise ConfigurationError(
                f"Reward '{self.reward.name}' gave {least:.4g}; with rrpo.scale question rewards must be at least 0, "
                "because they are divided by their mean. Add a constant to the reward, or use another rrpo.scale."
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold besides weights: the advantage window and the critic. The recent reads start anew
        on resume, or a reader that was mended would be stopped for its past."""
        critic = {"critic": self.critic.state()} if self.critic else {}
        return {"window": self.window.state(), **critic}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state` gave."""
        self.window.restore(state["window"])
        if self.critic:
            self.critic.restore(state["critic"])


def _last(rewards_QSA: Tensor, taken_QA: Tensor) -> Tensor:
    """Reward of the longest prefix that exists, shape (Q, S)."""
    last_Q = taken_QA.sum(-1).clamp(min=1) - 1
    return rewards_QSA.gather(-1, last_Q[:, None, None].expand(-1, rewards_QSA.shape[1], 1)).squeeze(-1)


def _mean(values: Tensor) -> float:
    """Mean over finite values; NaN where there are none."""
    finite = values[torch.isfinite(values)]
    return finite.double().mean().item() if finite.numel() else float("nan")


def _spread(values: Tensor) -> Tensor:
    """Largest minus smallest finite value of each row (the last dimension); 0 where there is none."""
    low = values.nan_to_num(nan=torch.inf).amin(-1)
    high = values.nan_to_num(nan=-torch.inf).amax(-1)
    return (high - low).clamp(min=0).nan_to_num(posinf=0.0, neginf=0.0)
