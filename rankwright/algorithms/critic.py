"""A learned baseline: the critic that RRPO's authors compare their reference-anchored one with (PPO, Schulman et al.
2017, arXiv 1707.06347).

Theirs is not described. Ours is small, because it learns beside the policy from the few rewards of a run: two layers
over what the frozen reference thinks of the candidates and of the documents chosen so far.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rankwright.maths import check_shapes

BEST_SHOWN = 10
"""So many of the reference's best log-probabilities describe a question."""
FLOOR = -5.0
"""Below it, in nats under a uniform choice, documents are all alike: hopeless."""
HIDDEN, LEARNING_RATE, UPDATES = 32, 3e-3, 8
"""Width, Adam's rate and gradient steps of a rollout. Ours: of rates 1e-3 to 1e-2 and 1 to 16 steps these are in the
middle of those that know within 15 rollouts of eight questions what a document is worth (toy world of the tests)."""


class Critic(nn.Module):
    """V(s_t): what the rest of a ranking will earn, from before its t-th document is chosen.

    Args:
        steps: K; the most documents of a sampled ranking.
        seed: of the starting weights.
    """

    def __init__(self, steps: int, seed: int) -> None:
        super().__init__()
        self.steps = steps
        inputs = BEST_SHOWN + 3 * steps
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Linear(inputs, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1))
        self.optimizer = torch.optim.Adam(self.parameters(), lr=LEARNING_RATE)

    def features(self, reference_scores_QD: Tensor, actions_QSK: Tensor) -> Tensor:
        """States of the steps of rankings, shape (Q, S, K, F): the reference's best log-probabilities over those of a
        uniform choice, those of the documents chosen before the step, which there are, and which step it is. On the
        CPU, where the critic lives.

        Args:
            reference_scores_QD: -inf on padding.
            actions_QSK: candidate positions chosen, in order.
        """
        check_shapes(reference_scores_QD="Q D", actions_QSK="Q S K")
        scores_QD, actions_QSK = reference_scores_QD.detach().cpu().float(), actions_QSK.cpu()
        count_Q1 = torch.isfinite(scores_QD).sum(-1, keepdim=True)
        odds_QD = (scores_QD.log_softmax(-1) + count_Q1.log()).clamp(min=FLOOR)
        samples, steps = actions_QSK.shape[1:]
        best_QF = odds_QD.sort(-1, descending=True).values[:, :BEST_SHOWN]
        best_QF = nn.functional.pad(best_QF, (0, BEST_SHOWN - best_QF.shape[-1]), value=FLOOR)
        chosen_QSK = odds_QD[:, None, :].expand(-1, samples, -1).gather(-1, actions_QSK)
        before_KK = torch.ones(steps, self.steps).tril(-1)  # row t: the steps before t
        chosen_QSK = nn.functional.pad(chosen_QSK, (0, self.steps - steps))
        shape = (*actions_QSK.shape, -1)
        return torch.cat(
            [
                best_QF[:, None, None, :].expand(-1, samples, steps, -1),
                chosen_QSK[:, :, None, :] * before_KK,
                before_KK.expand(shape),
                torch.eye(steps, self.steps).expand(shape),
            ],
            dim=-1,
        )

    @torch.no_grad()
    def values(self, features_QSKF: Tensor) -> Tensor:
        """values_QSK in float64."""
        return self.layers(features_QSKF).squeeze(-1).double()

    @torch.enable_grad()
    def learn(self, features_QSKF: Tensor, returns_QSK: Tensor, taken_QK: Tensor) -> float:
        """Moves the values towards what came; gives the mean squared error of before.

        Args:
            features_QSKF: of the rollout.
            returns_QSK: discounted sum of the rewards from each step on; NaN where a read failed: it teaches nothing.
            taken_QK: steps that exist.
        """
        use_QSK = taken_QK[:, None, :].expand_as(returns_QSK) & torch.isfinite(returns_QSK)
        if not use_QSK.any():
            return float("nan")
        wanted, states, first = returns_QSK[use_QSK].float(), features_QSKF[use_QSK], float("nan")
        for update in range(UPDATES):
            error = nn.functional.mse_loss(self.layers(states).squeeze(-1), wanted)
            first = error.item() if update == 0 else first
            self.optimizer.zero_grad()
            error.backward()
            self.optimizer.step()
        return first

    def state(self) -> dict[str, Any]:
        """Weights and optimizer as JSON values; floats go through exactly."""
        optimizer = self.optimizer.state_dict()["state"]
        return {
            "weights": {name: tensor.tolist() for name, tensor in self.state_dict().items()},
            "optimizer": {
                str(i): {name: t.tolist() for name, t in moments.items()} for i, moments in optimizer.items()
            },
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state` gave."""
        self.load_state_dict({name: torch.tensor(values) for name, values in state["weights"].items()})
        moments = {int(i): {k: torch.tensor(v) for k, v in m.items()} for i, m in state["optimizer"].items()}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})


def returns(rewards_QSK: Tensor, gamma: float) -> Tensor:
    """Discounted sum of the rewards from each step on, same shape; NaN where one of them is.

    >>> returns(torch.tensor([[[1.0, 0.0, 1.0]]]), 0.5).tolist()
    [[[1.25, 0.5, 1.0]]]
    """
    sums, carry = torch.zeros_like(rewards_QSK), torch.zeros_like(rewards_QSK[..., 0])
    for t in reversed(range(rewards_QSK.shape[-1])):
        carry = rewards_QSK[..., t] + (gamma * carry if gamma else 0.0)
        sums[..., t] = carry
    return sums
