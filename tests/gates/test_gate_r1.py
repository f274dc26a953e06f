"""Gate R1: whatever list it is given, a ranking holds each document of it once, or the first of those up to top_k."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rankwright.errors import DataError
from rankwright.evaluation import FirstStage, GoldFirst
from rankwright.maths.plackett_luce import greedy_rankings, gumbel_noise, sample_rankings
from rankwright.rerankers.cross_encoder import CrossEncoderReranker, load_reference
from rankwright.types import Document, Example, Query, Ranking, Reranker, RerankRequest
from tests.gates.mutants import Mutant
from tests.gates.sizes import tries
from tests.planted import tiny_policy

pytestmark = [pytest.mark.gates, pytest.mark.timeout(1200)]

LISTS = tries(10_000, 500)
AT_ONCE = 8
"""Lists of a batch; one of them is also ranked alone, through `rerank` with top_k, and counts once all the same."""
GRADED = [Example(Query(f"q{q}", ""), relevance={str(d): d % 4 - 1 for d in range(0, 40, q + 1)}) for q in range(4)]
RANKERS = ("cross-encoder", "rounding cross-encoder", "first-stage", "gold-first")


class Rounding(nn.Module):
    """A classifier whose scores are whole numbers, so that many are equal."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **batch: Tensor):
        found = self.inner(**batch)
        found.logits = found.logits.round()
        return found


@cache
def ranker(name: str) -> Reranker:
    if name == "first-stage":
        return FirstStage()
    if name == "gold-first":
        return GoldFirst(GRADED)
    if name == "embedded reference":
        return load_reference()
    policy = tiny_policy(0, hidden=16)
    policy.tokenizer.model_max_length, policy.max_tokens = 24, 512
    if name == "rounding cross-encoder":
        policy.model = Rounding(policy.model)
    return policy


ODD = ("", " ", "rain", "moon river", "\u0000", "{text}", "🌧 дождь", "ab " * 60)
TEXTS = st.one_of(st.sampled_from(ODD), st.text(max_size=12))
IDS = st.one_of(st.integers(0, 40).map(str), st.text(max_size=6))


@st.composite
def lists(draw: st.DrawFn) -> RerankRequest:
    """Documents of any ids and texts, two to two dozen of them and now and then fewer; texts often come twice, and so
    do scores."""
    few = draw(st.integers(0, 15)) == 15
    ids = draw(st.lists(IDS, min_size=0 if few else 2, max_size=1 if few else 24, unique=True))
    pool = draw(st.lists(TEXTS, min_size=1, max_size=4))
    documents = tuple(Document(doc_id, draw(st.sampled_from(pool)), draw(st.sampled_from(["", "T"]))) for doc_id in ids)
    return RerankRequest(Query(f"q{draw(st.integers(0, 5))}", draw(TEXTS)), documents)


def check(request: RerankRequest, ranking: Ranking, whole: Ranking | None = None, top_k: int | None = None) -> None:
    """Each id once and no other; with top_k the first of the whole ranking, as many as there are."""
    given_ids = [document.doc_id for document in request.documents]
    wanted = len(given_ids) if top_k is None else min(top_k, len(given_ids))
    assert ranking.query_id == request.query.query_id
    assert len(ranking.doc_ids) == len(ranking.scores) == wanted
    assert len(set(ranking.doc_ids)) == wanted
    assert set(ranking.doc_ids) <= set(given_ids)
    assert list(ranking.scores) == sorted(ranking.scores, reverse=True)
    if whole is not None:
        assert ranking.doc_ids == whole.doc_ids[:wanted]


def try_lists(name: str, count: int) -> int:
    """At least so many distinct lists that have something to rank, in batches and alone; the number of them.

    Hypothesis repeats itself within a seed, and begins each with the same list, so there are as many seeds as it takes,
    with a few batches each."""
    seen: set[RerankRequest] = set()

    def try_batch(drawn: Sequence[RerankRequest], top_k: int | None) -> None:
        batch = [request for request in drawn if request not in seen]
        if not batch:
            return
        rankings = ranker(name).rerank_batch(batch)
        assert len(rankings) == len(batch)
        for request, ranking in zip(batch, rankings, strict=True):
            check(request, ranking)
        alone = ranker(name).rerank(batch[0].query, batch[0].documents, top_k)
        whole = ranker(name).rerank(batch[0].query, batch[0].documents)
        check(batch[0], alone, whole, top_k)
        check(batch[0], whole.best(0), whole, 0)
        seen.update(request for request in batch if len(request.documents) > 1)

    draws = st.lists(lists(), min_size=AT_ONCE, max_size=AT_ONCE), st.one_of(st.none(), st.integers(0, 30))
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    for number in itertools.count():
        missing = count - len(seen)
        if missing <= 0:
            return len(seen)
        asked = settings(
            max_examples=max(8, -(-missing // AT_ONCE)), deadline=None, database=None, suppress_health_check=checks
        )
        seed(number)(asked(given(*draws)(try_batch)))()
    raise AssertionError("a count without an end has ended")


@pytest.mark.parametrize("name", RANKERS)
def test_a_ranking_is_a_permutation_or_its_first_part(name: str) -> None:
    assert try_lists(name, LISTS) >= LISTS


def test_the_embedded_reference_too() -> None:
    """The same class as the tiny cross-encoder, with a model of real size: a list takes it ten times as long (24 ms on
    one core, four minutes for all), so the quick gate tries few."""
    torch.set_num_threads(1)
    assert try_lists("embedded reference", tries(10_000, 18)) >= tries(10_000, 18)


SAMPLES, STEPS, AT_ONCE_SAMPLED = 3, 12, 50


def score_lists(draw: random.Random) -> torch.Tensor:
    """scores_QD of lists of none to two dozen documents (one has some), spread out, crowded, equal or in steps."""
    counts = [draw.randint(0, 24) for _ in range(AT_ONCE_SAMPLED - 1)] + [draw.randint(1, 24)]
    kinds: list[Callable[[], float]] = [
        lambda: draw.gauss(0, 3),
        lambda: draw.gauss(0, 1e-6),
        lambda: 2.5,
        lambda: float(draw.randint(-1, 1)),
        lambda: draw.choice([-1e6, 1e6]),
    ]
    rows = [[kind() for _ in range(n)] for n, kind in ((n, draw.choice(kinds)) for n in counts)]
    return torch.tensor([[*row, *[-math.inf] * (max(counts) - len(row))] for row in rows])


def check_chosen(chosen: Sequence[int], documents: int) -> None:
    """Steps that exist choose documents that there are, each once; all others say 0."""
    taken = min(len(chosen), documents)
    assert len(set(chosen[:taken])) == taken
    assert all(0 <= place < documents for place in chosen[:taken])
    assert set(chosen[taken:]) <= {0}


def test_what_training_samples_and_what_it_compares_with_are_first_parts_of_permutations() -> None:
    """RRPO's rankings: drawn from the scores, every second one beginning as the one before it, and the best by score,
    ties in input order."""
    seen = 0
    for number in range(-(-LISTS // AT_ONCE_SAMPLED)):
        draw = random.Random(number)
        scores_QD = score_lists(draw)
        counts = (~torch.isneginf(scores_QD)).sum(-1).tolist()
        noise_QSD = gumbel_noise(0, number, [f"q{q}" for q in range(len(counts))], SAMPLES, counts)
        shared = draw.randrange(STEPS)
        sampled_QSK = sample_rankings(scores_QD, noise_QSD, STEPS, shared)
        best_QK = greedy_rankings(scores_QD, STEPS)
        for scores, documents, rankings, best in zip(
            scores_QD.tolist(), counts, sampled_QSK.tolist(), best_QK.tolist(), strict=True
        ):
            for ranking in (*rankings, best):
                check_chosen(ranking, documents)
            assert rankings[1][:shared] == rankings[0][:shared]
            wanted = sorted(range(documents), key=lambda d: -scores[d])[:STEPS]
            assert best[: len(wanted)] == wanted
            seen += 1
    assert seen >= LISTS


@given(st.lists(IDS, min_size=1, max_size=8), st.data())
@settings(max_examples=tries(1_000, 100), deadline=None, derandomize=True, database=None)
def test_a_list_with_an_id_twice_is_refused_before_it_is_ranked(ids: list[str], data: st.DataObject) -> None:
    twice = data.draw(st.permutations([*ids, data.draw(st.sampled_from(ids))]))
    with pytest.raises(DataError, match="times among the documents"):
        FirstStage().rerank("rain", [Document(doc_id, "moon") for doc_id in twice])


@pytest.mark.parametrize("name", RANKERS)
def test_plain_strings_are_ranked_by_their_positions(name: str) -> None:
    texts = ["rain", "rain", "", "moon", "rain", "river moon"]
    ranking = ranker(name).rerank("rain", texts)
    assert sorted(ranking.doc_ids) == [str(i) for i in range(len(texts))]


def test_the_rounding_ranker_has_ties() -> None:
    """Or equal scores would not have been tried."""
    ranking = ranker("rounding cross-encoder").rerank("rain", ["rain", "rain", "rain ab", "rain", "moon", "river"])
    assert len(set(ranking.scores)) < len(ranking.scores)
    assert isinstance(ranker("rounding cross-encoder"), CrossEncoderReranker)


GATE = "tests/gates/test_gate_r1.py"
MUTANTS = [
    Mutant(
        gate="R1",
        tests=GATE,
        file="rankwright/maths/plackett_luce.py",
        old="    return order.masked_fill(~taken.expand_as(order), 0)\n",
        new="    return order\n",
    ),
    Mutant(
        gate="R1",
        tests=GATE,
        file="rankwright/maths/plackett_luce.py",
        old="second_QSD.scatter_(-1, chosen, torch.where(taken_Q1K[..., step : step + 1], before_all, kept))",
        new="second_QSD[..., step : step + 1] = before_all",
    ),
    Mutant(
        gate="R1",
        tests=GATE,
        file="rankwright/rerankers/ranking.py",
        old="    order = sorted(range(len(documents)), key=lambda i: -scores[i])\n",
        new="    order = [scores.index(score) for score in sorted(scores, reverse=True)]\n",
    ),
    Mutant(
        gate="R1",
        tests=GATE,
        file="rankwright/evaluation.py",
        old="        return sorted(request.documents, key=lambda document:",
        new="        return sorted({d.text: d for d in request.documents}.values(), key=lambda document:",
    ),
    Mutant(
        gate="R1",
        tests=GATE,
        file="rankwright/types.py",
        old="        return Ranking(self.query_id, self.doc_ids[:top_k], self.scores[:top_k])\n",
        new="        return Ranking(self.query_id, self.doc_ids[: top_k or None], self.scores[: top_k or None])\n",
    ),
]
