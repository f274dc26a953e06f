"""Gate T7: advantages of every form, baseline and scale equal those of plain Python loops; groups are questions."""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwright.algorithms import RRPO, RRPOConfig
from rankwright.algorithms.critic import BEST_SHOWN, FLOOR, Critic
from rankwright.types import Answer, Context, Document, Example, Outcome, Query, RewardValue
from tests.gates.mutants import Mutant
from tests.gates.sizes import tries

pytestmark = [pytest.mark.gates, pytest.mark.timeout(1200)]

NAN = math.nan
FORMS = ("gae", "anchored", "marginal")
BASELINES = ("reference", "group", "leave_one_out", "none")
SCALES = ("window", "question", "deviation", "none")
COMPARING = (
    *itertools.product(("anchored", "marginal"), ("group", "leave_one_out"), ("question", "none")),
    *itertools.product(FORMS, BASELINES, ("deviation",)),
)
"""Form, baseline and scale of what only compares the samples of a question. The window moves all advantages by their
mean (docs/rrpo.md; `skip_unanimous` is tried below), and the printed gae adds the next position's baseline to every
sample's. Against the reference, a critic or nothing, samples that are all alike are still better or worse than that:
the default form gives them an advantage on purpose."""
Table = list[list[float]]
"""Rewards of a question's samples, one row each; NaN where the read failed."""
Values = Sequence[Sequence[float]]


# --- the oracle: float64, plain loops, no code of the package


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else NAN


def known(values: Sequence[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def baseline_at(kind: str, table: Table, greedy: Sequence[float], learned: Values, s: int, t: int) -> float:
    if kind == "critic":
        return learned[s][t]
    if kind == "reference":
        return greedy[t]
    if kind == "group":
        return mean(known([row[t] for row in table]))
    if kind == "leave_one_out":
        return mean(known([row[t] for i, row in enumerate(table) if i != s]))
    return 0.0


def unit_at(scale: str, table: Table, t: int) -> float:
    """1 / mean or 1 / standard deviation of the group; 0 where that is 0; 1 for the other scales."""
    if scale not in ("question", "deviation"):
        return 1.0
    values = known([row[t] for row in table])
    if not values:
        return NAN
    middle = mean(values)
    spread = math.sqrt(mean([(value - middle) ** 2 for value in values]))
    size = middle if scale == "question" else (spread if spread > 1e-9 else 0.0)
    return 1 / size if size else 0.0


def delta(form: str, gamma: float, r: Sequence[float], v: Sequence[float], t: int) -> float:
    if form == "gae":
        return r[t] + (gamma * v[t + 1] if gamma and t + 1 < len(r) else 0.0) - v[t]
    if form == "anchored":
        return r[t] - v[t]
    return (r[t] - v[t]) - ((r[t - 1] - v[t - 1]) if t else 0.0)


def advantages_of(config: RRPOConfig, table: Table, greedy: Sequence[float], learned: Values = ()) -> Table:
    """Of a question with so many steps as its rows are long; NaN where a read that is needed failed. `learned` is what
    a critic says of each."""
    found = []
    for s, row in enumerate(table):
        units = [unit_at(config.scale, table, t) for t in range(len(row))]
        r = [reward * unit for reward, unit in zip(row, units, strict=True)]
        v = [baseline_at(config.values_from, table, greedy, learned, s, t) * unit for t, unit in enumerate(units)]
        decay = config.gamma * config.lam
        found.append(
            [
                math.fsum(
                    decay ** (j - t) * delta(config.advantage, config.gamma, r, v, j)
                    for j in (range(t, len(row)) if decay else [t])
                )
                for t in range(len(row))
            ]
        )
    return found


# --- what the package makes of the same numbers


def rewards() -> st.SearchStrategy[float]:
    """Of four digits, so that a tiny spread does not blow up rounding; often 0 or 1, sometimes failed."""
    whole = st.integers(0, 10_000).map(lambda n: n / 10_000)
    return st.one_of(st.sampled_from([0.0, 1.0]), whole, st.just(NAN))


@st.composite
def cases(draw: st.DrawFn, of: Sequence[tuple[Any, Any, Any]]) -> tuple[RRPOConfig, list[Table], Table]:
    """Settings, of these forms, baselines and scales; the rewards of one to three questions and the reference's. Each
    question has steps of its own, and one of three has samples that are all alike or one that is left."""
    advantage, baseline, scale = draw(st.sampled_from(of))
    config = RRPOConfig(
        samples=draw(st.integers(2, 5)),
        train_k=draw(st.integers(1, 4)),
        advantage=advantage,
        baseline=baseline,
        scale=scale,
        gamma=draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])),
        lam=draw(st.sampled_from([0.0, 0.7, 1.0])),
        window=draw(st.sampled_from([2, 7, 512])),
    )
    tables, greedy = [], []
    for _ in range(draw(st.integers(1, 3))):
        row = st.lists(rewards(), min_size=(steps := draw(st.integers(1, config.train_k))), max_size=steps)
        table = draw(st.lists(row, min_size=config.samples, max_size=config.samples))
        plain, alike, single = table, [table[0]] * config.samples, [table[0], *[[NAN] * steps] * (config.samples - 1)]
        tables.append(draw(st.sampled_from([plain, plain, plain, plain, alike, single])))
        greedy.append(draw(row))
    return config, tables, greedy


def tensors(config: RRPOConfig, tables: list[Table], greedy: Table) -> tuple[torch.Tensor, ...]:
    """rewards_QSK, greedy_Q1K and taken_QK, as a rollout has them: 0 on steps that do not exist."""

    def filled(row: Sequence[float]) -> list[float]:
        return [*row, *[0.0] * (config.train_k - len(row))]

    rewards_QSK = torch.tensor([[filled(row) for row in table] for table in tables], dtype=torch.float64)
    greedy_Q1K = torch.tensor([[filled(row)] for row in greedy], dtype=torch.float64)
    taken_QK = torch.tensor([[t < len(row) for t in range(config.train_k)] for row in greedy])
    return rewards_QSK, greedy_Q1K, taken_QK


class Unasked:
    """Reader and reward of an RRPO whose rewards are given."""

    name = "unasked"

    def answer(self, contexts: Sequence[Context]) -> Any:
        raise AssertionError(contexts)

    def __call__(self, outcomes: Sequence[Outcome]) -> Any:
        raise AssertionError(outcomes)


def of_package(config: RRPOConfig, tables: list[Table], greedy: Table, twice: bool) -> tuple[torch.Tensor, ...]:
    """Advantages in float64, as `collect` makes them, and where they are valid; of the second of two equal rollouts
    where the window shall have a past."""
    algorithm = RRPO(config, Unasked(), Unasked())
    rewards_QSK, greedy_Q1K, taken_QK = tensors(config, tables, greedy)
    nothing = torch.zeros(len(tables), 1), torch.zeros(len(tables), config.samples, 1, dtype=torch.long)
    values, _ = algorithm._values(rewards_QSK, greedy_Q1K, *nothing, taken_QK)
    found, valid = algorithm._advantages(rewards_QSK, values, taken_QK)
    if config.scale == "window":
        if twice:
            algorithm.window.standardise(found, valid)
        found = algorithm.window.standardise(found, valid)
    return found, valid


def standardised(config: RRPOConfig, raw: list[Table], twice: bool) -> list[Table]:
    """(A - mean) / (deviation + 1e-6) over the last `window` valid advantages."""
    valid = known([a for table in raw for row in table for a in row])
    window = (valid * (1 + twice))[-config.window :]
    middle = mean(window)
    deviation = math.sqrt(mean([(a - middle) ** 2 for a in window])) if window else NAN
    return [[[(a - middle) / (deviation + 1e-6) for a in row] for row in table] for table in raw]


@given(cases(list(itertools.product(FORMS, BASELINES, SCALES))), st.booleans())
@settings(max_examples=tries(5_000, 500), deadline=None, derandomize=True, database=None)
def test_advantages_equal_the_oracle(case: tuple[RRPOConfig, list[Table], Table], twice: bool) -> None:
    """Within 1e-9 of max(1, |A|); where a read that it needs failed an advantage is 0 and invalid."""
    config, tables, greedy = case
    found, valid = of_package(config, tables, greedy, twice)
    raw = [advantages_of(config, table, row) for table, row in zip(tables, greedy, strict=True)]
    wanted = standardised(config, raw, twice) if config.scale == "window" else raw
    for q, s, t in itertools.product(*map(range, found.shape)):
        exists = t < len(greedy[q])
        is_valid = exists and not math.isnan(raw[q][s][t])
        assert valid[q, s, t].item() == is_valid
        expected = wanted[q][s][t] if is_valid else 0.0
        assert abs(found[q, s, t].item() - expected) <= 1e-9 * max(1.0, abs(expected))


@given(cases(COMPARING))
@settings(max_examples=tries(5_000, 500), deadline=None, derandomize=True, database=None)
def test_a_group_of_one_and_one_without_spread_have_no_advantage(
    case: tuple[RRPOConfig, list[Table], Table],
) -> None:
    config, tables, greedy = case
    found, valid = of_package(config, tables, greedy, False)
    assert torch.isfinite(found).all()
    assert found[~valid].eq(0).all()
    for q, table in enumerate(tables):
        columns = [known([row[t] for row in table]) for t in range(len(greedy[q]))]
        if all(len(set(column)) <= 1 for column in columns):
            assert found[q].abs().max() <= 1e-9


# --- groups, over whole rollouts


class ByIds:
    """A reader that says which documents it saw, and a reward that prices them by question; remembers the groups."""

    name = "by ids"

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.groups: list[tuple[str, str]] = []

    def answer(self, contexts: Sequence[Context]) -> list[Any]:
        return [Answer(" ".join(d.doc_id for d in context.documents)) for context in contexts]

    def __call__(self, outcomes: Sequence[Outcome]) -> list[RewardValue]:
        self.groups += [(o.group_id, o.context.query.query_id) for o in outcomes]
        texts = [f"{self.seed} {o.example.query.query_id} {getattr(o.result, 'text', '')}" for o in outcomes]
        return [RewardValue(random.Random(text).randint(0, 4) / 4) for text in texts]


def asked(draw: random.Random) -> list[Example]:
    """Two to five questions, of which some have the same text and all the same document ids."""
    rows = []
    for q in range(draw.randint(2, 5)):
        documents = tuple(Document(str(d), f"passage {d}") for d in range(draw.randint(1, 6)))
        rows.append(Example(Query(f"q{q}", f"question {q % 2}?"), documents))
    return rows


def critic_value(critic: Critic, scores: Sequence[float], ranking: Sequence[int], t: int) -> float:
    """V before the t-th choice: two layers over what the reference thinks of the candidates, what it thinks of those
    chosen before, which there are, and which step it is."""
    total = math.log(math.fsum(math.exp(score) for score in scores))
    odds = [max(FLOOR, score - total + math.log(len(scores))) for score in scores]
    best = sorted(odds, reverse=True)[:BEST_SHOWN]
    steps = range(critic.steps)
    chosen = [odds[ranking[j]] if j < t else 0.0 for j in steps]
    state = [*best, *[FLOOR] * (BEST_SHOWN - len(best)), *chosen, *(float(j < t) for j in steps)]
    state += [float(j == t) for j in steps]
    weights = {name: tensor.tolist() for name, tensor in critic.state_dict().items()}
    hidden = [
        math.tanh(math.fsum(w * x for w, x in zip(row, state, strict=True)) + bias)
        for row, bias in zip(weights["layers.0.weight"], weights["layers.0.bias"], strict=True)
    ]
    (last,), (bias,) = weights["layers.2.weight"], weights["layers.2.bias"]
    return math.fsum(w * x for w, x in zip(last, hidden, strict=True)) + bias


@pytest.mark.parametrize("action", ["document", "ranking"])
@pytest.mark.parametrize("scale", ["question", "deviation", "none"])
def test_a_group_is_a_question_and_nothing_else(scale: Any, action: Any) -> None:
    """Whoever shares the batch, a question's advantages are those of the oracle on its own samples, to the precision
    in which they are stored (the critic computes in float32); the reward sees one group for each question."""
    for seed in range(tries(500, 50)):
        draw = random.Random(seed)
        rows, world = asked(draw), ByIds(seed)
        baseline: Any = draw.choice(["group", "leave_one_out", "critic", "reference"])
        config = RRPOConfig(
            action=action,
            scale=scale,
            baseline=baseline,
            advantage="gae" if baseline == "critic" else "anchored",
            gamma=draw.choice([0.5, 1.0]),
            samples=draw.randint(2, 5),
            train_k=2,
        )
        width = max(len(row.candidates) for row in rows)
        scores_QD = torch.tensor(
            [[draw.gauss(0, 1) if d < len(row.candidates) else -math.inf for d in range(width)] for row in rows]
        )
        algorithm = RRPO(config, world, world, seed=seed)
        critic = copy.deepcopy(algorithm.critic)  # the rollout is valued before the critic learns from it
        rollout = algorithm.collect(scores_QD, scores_QD, rows, 0)
        assert {group for group, _ in world.groups} == {row.query.query_id for row in rows}
        assert all(group == query_id for group, query_id in world.groups)
        pricing = ByIds(seed)
        for q, row in enumerate(rows):
            steps = min(2, len(row.candidates))
            lengths = [steps] if action == "ranking" else range(1, steps + 1)
            scores = scores_QD[q, : len(row.candidates)].tolist()
            rankings = rollout.actions_QSK[q].tolist()
            table = [[price_of(pricing, row, ranking[:t]) for t in lengths] for ranking in rankings]
            best = sorted(range(len(scores)), key=lambda d, scores=scores: -scores[d])
            greedy = [price_of(pricing, row, best[:t]) for t in lengths]
            learned = [
                [critic_value(critic, scores, ranking, a) for a in range(len(lengths))]
                for ranking in rankings
                if critic is not None
            ]
            wanted = advantages_of(config, table, greedy, learned)
            assert rollout.advantages_QSA.shape[-1] == (1 if action == "ranking" else 2)
            for s, a in itertools.product(range(config.samples), range(len(lengths))):
                exact = 2e-7 if critic is None else 5e-5
                assert rollout.advantages_QSA[q, s, a].item() == pytest.approx(wanted[s][a], rel=exact, abs=exact)


class Undecided(ByIds):
    """Prices every answer to a question of even number alike."""

    def __call__(self, outcomes: Sequence[Outcome]) -> list[RewardValue]:
        prices = super().__call__(outcomes)
        even = [int(o.example.query.query_id[1:]) % 2 == 0 for o in outcomes]
        return [RewardValue(0.5) if same else price for same, price in zip(even, prices, strict=True)]


def test_with_the_window_a_group_without_spread_is_moved_unless_it_is_skipped() -> None:
    """By the mean of the window, which is not 0 where the window ends within a group. The exception to the rule that
    such a group has no advantage, and the setting that holds it."""
    moved = Counter[bool]()
    for seed, skip in itertools.product(range(tries(500, 50)), (False, True)):
        draw = random.Random(seed)
        rows, world = asked(draw), Undecided(seed)
        config = RRPOConfig(
            baseline=draw.choice(["group", "leave_one_out"]), samples=3, train_k=2, window=7, skip_unanimous=skip
        )
        width = max(len(row.candidates) for row in rows)
        scores_QD = torch.tensor(
            [[draw.gauss(0, 1) if d < len(row.candidates) else -math.inf for d in range(width)] for row in rows]
        )
        rollout = RRPO(config, world, world, seed=seed).collect(scores_QD, scores_QD, rows, 0)
        unanimous_QSA = rollout.advantages_QSA[::2]
        moved[skip] += int(unanimous_QSA.count_nonzero())
    assert moved[True] == 0
    assert moved[False] > 0


def price_of(world: ByIds, row: Example, chosen: Sequence[int]) -> float:
    context = Context(row.query, tuple(row.candidates[i] for i in chosen))
    (value,) = world([Outcome(row, context, world.answer([context])[0], len(chosen), row.query.query_id)])
    assert value.value is not None
    return value.value


GATE = "tests/gates/test_gate_t7.py"
MATHS = "rankwright/maths/policy_gradient.py"
MUTANTS = [
    Mutant(
        gate="T7",
        tests=GATE,
        file=MATHS,
        old="(distances.sum(1, keepdim=True) - distances) / others.clamp(min=1)\n",
        new="(distances.sum(1, keepdim=True) - distances) / (len(distances[0]) - 1)\n",
    ),
    Mutant(
        gate="T7",
        tests=GATE,
        file=MATHS,
        old="    return torch.where(size == 0, 0.0, 1 / size)\n",
        new="    return 1 / (size + 1e-8)\n",
    ),
    Mutant(
        gate="T7",
        tests=GATE,
        file=MATHS,
        old="following = torch.nn.functional.pad(values[..., 1:], (0, 1))",
        new="following = torch.nn.functional.pad(values[..., 1:], (0, 1), value=1.0)",
    ),
    Mutant(
        gate="T7",
        tests=f"{GATE}::test_a_group_is_a_question_and_nothing_else",
        file="rankwright/algorithms/critic.py",
        old="torch.ones(steps, self.steps).tril(-1)",
        new="torch.ones(steps, self.steps).tril()",
    ),
    Mutant(
        gate="T7",
        tests=f"{GATE}::test_a_group_is_a_question_and_nothing_else",
        file="rankwright/algorithms/rollout.py",
        old="return steps_QK.amax(-1, keepdim=True) if whole",
        new="return steps_QK[:, :1] if whole",
    ),
    Mutant(
        gate="T7",
        tests=f"{GATE}::test_with_the_window_a_group_without_spread_is_moved_unless_it_is_skipped",
        file="rankwright/algorithms/rrpo.py",
        old="if self.config.skip_unanimous:",
        new="if self.config.drop_closed_book:",
    ),
]
