"""Gate T6: where three of ten reads fail, the rest teaches the same; where all fail, nothing moves."""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from rankwright.algorithms import RRPO, RRPOConfig
from rankwright.algorithms.config import TrainConfig
from rankwright.rewards import answer_reward
from rankwright.training import requests_of, train
from rankwright.types import Answer, Context, Example, ReadFailed
from tests.gates.mutants import Mutant
from tests.gates.sizes import FULL, tries
from tests.gates.test_gate_t7 import advantages_of, critic_value, standardised
from tests.planted import Believer, questions, tiny_policy
from tests.toy import ToyPolicy, ToyReader, examples

pytestmark = [pytest.mark.gates, pytest.mark.timeout(900)]

FAILING = 0.3
WANTED = 0.95
QUESTIONS, BATCH = 256, 32

FORMS: dict[str, dict[str, Any]] = {
    "window": {},
    "question": {"scale": "question"},
    "critic": {"baseline": "critic", "advantage": "gae"},
    "GRPO": {"scale": "deviation"},
    "RLOO": {"scale": "none", "baseline": "leave_one_out"},
    "gae": {"advantage": "gae"},
    "marginal": {"advantage": "marginal"},
    "whole ranking": {"action": "ranking", "scale": "question"},
    "no baseline": {"scale": "none", "baseline": "none"},
}
MAIN = [name for name in FORMS if FULL or name in ("window", "question", "critic")]


class Unreliable(Believer):
    """Fails on a share of its reads, by chance, and anew for each rollout."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.visit = 0
        self.reads = self.failures = 0

    def answer(self, contexts: Sequence[Context]) -> list[Answer | ReadFailed]:
        self.visit += 1
        return [ReadFailed("planned") if self._fails(context) else Answer(self.read(context)) for context in contexts]

    def _fails(self, context: Context) -> bool:
        ids = "|".join([str(self.visit), context.query.query_id, *(d.doc_id for d in context.documents)])
        fails = int.from_bytes(hashlib.sha256(ids.encode()).digest()[:4], "big") < self.share * 2**32
        self.reads, self.failures = self.reads + 1, self.failures + fails
        return fails


def batches_of(rows: Sequence[Example]) -> list[Sequence[Example]]:
    return [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]


def mean_gradient(config: RRPOConfig, visits: int, share: float, seed: int = 0) -> Tensor:
    """Of all weights of a tiny cross-encoder, over all questions and their rollouts; the policy stays as it is. The
    same seed samples the same rankings whatever fails."""
    policy, reference = tiny_policy(0), tiny_policy(1)
    reader = Unreliable(share)
    algorithm = RRPO(config, reader, answer_reward("f1"), seed=seed)
    kept = [(rows, policy(requests_of(rows))) for rows in batches_of(questions(QUESTIONS, 8, 0))]
    slopes = [torch.zeros_like(scores_QD) for _, scores_QD in kept]
    for visit in range(visits):
        for (rows, scores_QD), slope_QD in zip(kept, slopes, strict=True):
            with torch.no_grad():
                reference_QD = reference(requests_of(rows))
            leaf_QD = scores_QD.detach().requires_grad_()
            rollout = algorithm.collect(leaf_QD, reference_QD, rows, visit)
            algorithm.loss(leaf_QD, rollout)[0].backward()
            assert leaf_QD.grad is not None
            slope_QD += leaf_QD.grad
    assert reader.failures == pytest.approx(share * reader.reads, rel=0.1)
    for (_, scores_QD), slope_QD in zip(kept, slopes, strict=True):
        scores_QD.backward(slope_QD)
    return torch.cat([weight.grad.flatten() for weight in policy.parameters() if weight.grad is not None])


@pytest.mark.parametrize("form", MAIN)
def test_with_three_of_ten_reads_failing_the_mean_gradient_keeps_its_direction(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mean over so many rollouts that chance hides nothing: with four of 128 questions even two clean means, of
    other samples, have a cosine of 0.90 (window)."""
    config = RRPOConfig(beta=0.0, max_failed_reads=1.0, samples=8, **FORMS[form])
    visits = tries(32, 16 if form == "window" else 8)
    clean, failing = (mean_gradient(config, visits, share) for share in (0.0, FAILING))
    told = (
        f"cosine {cosine(clean, failing):.4f}, length {(failing.norm() / clean.norm()).item():.2f} of the clean one's"
    )
    if FULL:
        told += f"; two clean ones of other samples {cosine(clean, mean_gradient(config, visits, 0.0, seed=1)):.4f}"
    with capsys.disabled():
        print(f"\nT6 {form}: {told}")
    assert cosine(clean, failing) >= WANTED


def cosine(one: Tensor, two: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(one.double(), two.double(), 0).item()


@pytest.mark.parametrize("train_k", [1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_failed_samples_are_missing_from_the_baseline_and_have_no_advantage(form: str, train_k: int) -> None:
    """Advantages by gate T7's plain loops over the samples that were read. Where a later or an earlier read, or one of
    the baseline's, is needed and failed, there is none either."""
    rows = questions(QUESTIONS, 8, 0)
    config = RRPOConfig(train_k=train_k, samples=6, max_failed_reads=1.0, **FORMS[form])
    with torch.no_grad():
        scores_QD = tiny_policy(0)(requests_of(rows))
    algorithm = RRPO(config, Unreliable(FAILING), answer_reward("f1"), seed=0)
    critic = copy.deepcopy(algorithm.critic)  # the rollout is valued before the critic learns from it
    rollout = algorithm.collect(scores_QD, scores_QD, rows, 0)
    lengths = [train_k] if config.action == "ranking" else range(1, train_k + 1)
    twin = Unreliable(FAILING)
    twin.visit = 1
    tables, raw = [], []
    for row, scores, rankings in zip(rows, scores_QD.tolist(), rollout.actions_QSK.tolist(), strict=True):
        best = sorted(range(len(scores)), key=lambda d, scores=scores: -scores[d])
        *table, greedy = ([paid(twin, row, ranking[:t]) for t in lengths] for ranking in (*rankings, best))
        steps = range(len(lengths))
        learned = [[critic_value(critic, scores, ranking, a) for a in steps] for ranking in rankings if critic]
        tables.append(table)
        raw.append(advantages_of(config, table, greedy, learned))
    wanted = standardised(config, raw, False) if config.scale == "window" else raw
    exact = 5e-5 if critic else 2e-7
    failed = used = 0
    for q, s, a in itertools.product(*map(range, rollout.advantages_QSA.shape)):
        advantage, valid = rollout.advantages_QSA[q, s, a].item(), bool(rollout.valid_QSA[q, s, a])
        lost = [math.isnan(sample[a]) for sample in tables[q]]
        assert valid == (not math.isnan(raw[q][s][a]))
        assert advantage == pytest.approx(wanted[q][s][a] if valid else 0.0, rel=exact, abs=exact)
        assert not lost[s] or (advantage == 0.0 and not valid)
        failed += lost[s]
        used += valid and any(lost)
    assert failed > 0.2 * rollout.valid_QSA.numel()
    assert used > 0.05 * rollout.valid_QSA.numel()


def paid(reader: Unreliable, row: Example, chosen: Sequence[int]) -> float:
    """What a reading earns; NaN where it fails."""
    context = Context(row.query, tuple(row.candidates[i] for i in chosen))
    return math.nan if reader._fails(context) else float(reader.read(context) == "seven")


class Dies(ToyReader):
    """Answers the first `good` rollouts, then nothing."""

    def __init__(self, good: int) -> None:
        super().__init__()
        self.good = good

    def answer(self, contexts: Sequence[Context]) -> list[Any]:
        self.good -= 1
        return super().answer(contexts) if self.good >= 0 else [ReadFailed("planned") for _ in contexts]


@pytest.mark.parametrize("good", [0, 3])
@pytest.mark.parametrize("form", FORMS)
def test_when_every_read_fails_no_weight_moves(tmp_path: Any, form: str, good: int) -> None:
    """Neither by the KL to a reference that is elsewhere, nor by weight decay, nor by momentum of better days."""
    policy, reference, seen = ToyPolicy(), ToyPolicy(), []
    with torch.no_grad():
        reference.scores.neg_()
    policy.register_forward_pre_hook(lambda module, _: seen.append(module.get_parameter("scores").detach().clone()))
    rrpo = RRPOConfig(max_failed_reads=1.0, samples=8, beta=0.5, **FORMS[form])
    loop = TrainConfig(epochs=2, batch_size=4, learning_rate=0.3, eval_steps=20, trainer={"warmup_steps": 0})
    train(policy, copy.deepcopy(reference), RRPO(rrpo, Dies(good), answer_reward("f1")), examples(20), loop, tmp_path)
    seen.append(policy.scores.detach().clone())
    moved = [not torch.equal(*pair) for pair in itertools.pairwise(seen)]
    assert moved == [True] * good + [False] * (10 - good)


GATE = "tests/gates/test_gate_t6.py"
MUTANTS = [
    Mutant(
        gate="T6",
        tests=GATE,
        file="rankwright/algorithms/rollout.py",
        old="torch.nan if value is None else value",
        new="0.0 if value is None else value",
    ),
    Mutant(
        gate="T6",
        tests=f"{GATE}::test_failed_samples_are_missing_from_the_baseline_and_have_no_advantage",
        file="rankwright/maths/policy_gradient.py",
        old="(rewards_QSK - first_Q1K).nanmean(1, keepdim=True)\n",
        new="(rewards_QSK.nan_to_num() - first_Q1K).mean(1, keepdim=True)\n",
    ),
    Mutant(
        gate="T6",
        tests=f"{GATE}::test_failed_samples_are_missing_from_the_baseline_and_have_no_advantage",
        file="rankwright/maths/policy_gradient.py",
        old="self.values.extend(advantages_QSK[valid_QSK].double().tolist())",
        new="self.values.extend(advantages_QSK.flatten().double().tolist())",
    ),
    Mutant(
        gate="T6",
        tests=f"{GATE}::test_when_every_read_fails_no_weight_moves",
        file="rankwright/training.py",
        old="        self._taught = self._taught or rollout.teaches\n",
        new="        self._taught = True\n",
    ),
]
