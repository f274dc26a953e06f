"""The learned baseline: what it may see, that it learns, and that a checkpoint holds all of it."""

from __future__ import annotations

import doctest
import json
import math

import pytest
import torch

from rankwright.algorithms import RRPO, RRPOConfig, critic
from rankwright.algorithms.critic import Critic, returns
from rankwright.rewards import answer_reward
from rankwright.training import requests_of
from tests.toy import ToyPolicy, ToyReader, examples

SETTINGS = RRPOConfig(baseline="critic", advantage="gae", samples=4)


def test_the_value_of_a_state_does_not_depend_on_the_choice_that_follows() -> None:
    """Only on the documents chosen before it; otherwise the gradient would be biased."""
    model, scores = Critic(3, seed=0), torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    values = {}
    for ranking in ([0, 1, 2], [0, 1, 3], [0, 2, 1], [3, 1, 2]):
        values[tuple(ranking)] = model.values(model.features(scores, torch.tensor([[ranking]]))).flatten().tolist()
    assert values[0, 1, 2] == values[0, 1, 3]
    assert values[0, 1, 2][:2] == values[0, 2, 1][:2]
    assert values[0, 1, 2][2] != values[0, 2, 1][2]
    assert values[0, 1, 2][0] == values[3, 1, 2][0]
    assert values[0, 1, 2][1] != values[3, 1, 2][1]


def test_padding_and_the_order_of_candidates_change_nothing() -> None:
    model, actions = Critic(2, seed=0), torch.tensor([[[0, 2], [2, 1]]])
    scores = torch.tensor([[0.3, -1.0, 2.0]])
    found = model.features(scores, actions)
    padded = torch.nn.functional.pad(scores, (0, 20), value=-math.inf)
    turned, back = scores[:, [2, 0, 1]], torch.tensor([1, 2, 0])
    assert torch.equal(model.features(padded, actions), found)
    assert torch.allclose(model.features(turned, back[actions]), found)


def test_more_candidates_than_it_shows_are_taken() -> None:
    model = Critic(1, seed=0)
    assert model.features(torch.randn(2, 50), torch.zeros(2, 4, 1, dtype=torch.long)).isfinite().all()


def test_a_failed_read_teaches_nothing() -> None:
    model, scores = Critic(1, seed=0), torch.randn(2, 4)
    features = model.features(scores, torch.zeros(2, 3, 1, dtype=torch.long))
    before = json.dumps(model.state())
    nothing = torch.full((2, 3, 1), torch.nan, dtype=torch.float64)
    assert math.isnan(model.learn(features, nothing, torch.ones(2, 1, dtype=torch.bool)))
    assert math.isnan(model.learn(features, torch.zeros(2, 3, 1), torch.zeros(2, 1, dtype=torch.bool)))
    assert json.dumps(model.state()) == before


def test_in_the_toy_world_it_learns_what_the_rest_of_a_ranking_will_earn() -> None:
    """With document 7 chosen all later answers are right: two are still to come after the first choice, one after the
    second. Without it hardly anything comes."""
    rows, flat = examples(8), torch.zeros(8, 10)
    reference = flat.index_fill(1, torch.tensor([7]), -3.0)
    algorithm = RRPO(SETTINGS, ToyReader(), answer_reward("f1"))
    for step in range(30):
        algorithm.collect(flat, reference, rows, step)
    assert algorithm.critic is not None
    features = algorithm.critic.features(reference[:1], torch.tensor([[[7, 0, 1], [0, 7, 1], [0, 1, 2]]]))
    found = algorithm.critic.values(features)[0, :, 1:]
    wanted = torch.tensor([[2.0, 1.0], [0.2, 1.0], [0.2, 0.1]])
    assert (found - wanted).abs().mean() < 0.3
    assert found[0, 0] > found[1, 0] + 1
    assert found[1, 1] > found[2, 1] + 0.5


def test_a_checkpoint_holds_weights_and_optimizer() -> None:
    policy, rows = ToyPolicy(), examples(4)
    one = RRPO(SETTINGS, ToyReader(), answer_reward("f1"), seed=5)
    scores = policy(requests_of(rows))
    for step in range(3):
        one.collect(scores, scores, rows, step)
    two = RRPO(SETTINGS, ToyReader(), answer_reward("f1"), seed=5)
    two.restore(json.loads(json.dumps(one.state())))
    for step in range(3, 6):
        found = [a.collect(scores, scores, rows, step).advantages_QSA for a in (one, two)]
        assert torch.equal(*found)
    assert json.dumps(one.state()) == json.dumps(two.state())


def test_its_start_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = Critic(3, seed=0).state()
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.rand(1) == after, "the global generator was used"
    assert Critic(3, seed=0).state() == first != Critic(3, seed=1).state()


def test_returns_are_discounted_and_a_failed_read_reaches_back() -> None:
    rewards = torch.tensor([[[1.0, torch.nan, 0.5]]])
    assert returns(rewards, 1.0).isnan().tolist() == [[[True, True, False]]]
    assert returns(rewards, 0.0).isnan().tolist() == [[[False, True, False]]]
    assert returns(torch.tensor([[[1.0, 2.0, 4.0]]]), 0.5).tolist() == [[[3.0, 4.0, 4.0]]]


def test_doctests() -> None:
    assert doctest.testmod(critic).failed == 0


@pytest.mark.parametrize("steps", [1, 2])
def test_a_list_shorter_than_the_ranking(steps: int) -> None:
    """Steps that do not exist are no states."""
    rows = [type(e)(e.query, e.candidates[:steps], e.answers) for e in examples(3)]
    policy = ToyPolicy()
    scores = policy(requests_of(rows))
    rollout = RRPO(SETTINGS, ToyReader(), answer_reward("f1")).collect(scores, scores, rows, 0)
    assert rollout.valid_QSA.sum() == 3 * 4 * steps
