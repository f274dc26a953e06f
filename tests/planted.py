"""A world in which training can be made to go wrong on purpose, for the alarms: a tiny cross-encoder of random weights,
questions whose candidates are told apart by one word, and a reader that believes the first passage that says anything.

"rain" in a passage: the reader answers right. "river": it answers wrong, at length. "moon": the passage says nothing.
"""

from __future__ import annotations

import copy
import json
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertForSequenceClassification

from rankwright.algorithms import RRPO, RRPOConfig
from rankwright.algorithms.config import TrainConfig
from rankwright.errors import TrainingError
from rankwright.llms.cache import ReadStore
from rankwright.maths.plackett_luce import entropy
from rankwright.readers import CachedReader
from rankwright.rerankers.cross_encoder import CrossEncoderReranker
from rankwright.rewards import answer_reward
from rankwright.training import dev_scorer, train
from rankwright.types import (
    Answer,
    Context,
    Document,
    Example,
    Outcome,
    Query,
    Ranking,
    Reader,
    ReadFailed,
    RerankRequest,
    Reward,
    RewardValue,
)
from tests.tiny_bert import spread, tiny_config, tiny_tokenizer

RIGHT, WORDY = "seven", "it may be one of two or more but nobody here is sure"


def questions(count: int, candidates: int, seed: int) -> list[Example]:
    """Each with one passage of rain, one of river, and moons; in random order."""
    draw = random.Random(seed)

    def letters() -> str:
        return "".join(draw.choices("abcdefgh", k=2))

    rows = []
    for q in range(count):
        words = ["rain", "river", *["moon"] * (candidates - 2)]
        draw.shuffle(words)
        passages = tuple(Document(f"{q}-{d}", f"{word} {letters()}") for d, word in enumerate(words))
        rows.append(Example(Query(f"s{seed}-q{q}", f"{letters()}?"), passages, (RIGHT,)))
    return rows


class Believer:
    """The reader; a question that names the answer needs no passage."""

    name = "believer"

    def answer(self, contexts: Sequence[Context]) -> list[Answer | ReadFailed]:
        return [Answer(self.read(context)) for context in contexts]

    def read(self, context: Context) -> str:
        if RIGHT in context.query.text:
            return RIGHT
        for document in context.documents:
            for word, says in (("rain", RIGHT), ("river", WORDY)):
                if word in document.text:
                    return says
        return ""

    def cache_key(self, context: Context) -> str:
        return "\n".join([context.query.text, *(document.text for document in context.documents)])


class Changed(Believer):
    """Another version, under the same key: its answers are all others."""

    def read(self, context: Context) -> str:
        return {RIGHT: "", WORDY: RIGHT, "": WORDY}[super().read(context)]


class PaidBy:
    """A reward out of answers alone."""

    name = "tests:planted"

    def __init__(self, price: Callable[[str], float]) -> None:
        self.price = price

    def __call__(self, outcomes: Sequence[Outcome]) -> list[RewardValue]:
        return [RewardValue(self.price(o.result.text) if isinstance(o.result, Answer) else None) for o in outcomes]


class Flipped:
    """The wrong sign, made positive."""

    name = "tests:flipped"

    def __call__(self, outcomes: Sequence[Outcome]) -> list[RewardValue]:
        right = answer_reward("f1")(outcomes)
        return [RewardValue(None if price.value is None else 1 - price.value) for price in right]


class Noise:
    """Pays by the passages read, without sense, but the same for the same."""

    name = "tests:noise"

    def __call__(self, outcomes: Sequence[Outcome]) -> list[RewardValue]:
        read = (" ".join(document.doc_id for document in outcome.context.documents) for outcome in outcomes)
        return [RewardValue(zlib.crc32(ids.encode()) % 1000 / 1000) for ids in read]


def tiny_policy(seed: int, hidden: int = 32, size: float = 0.25) -> CrossEncoderReranker:
    """A cross-encoder of random weights, the same for the same seed."""
    model = BertForSequenceClassification(tiny_config(hidden=hidden, inner=2 * hidden))
    spread(model, seed)
    return CrossEncoderReranker(model, tiny_tokenizer()).eval()


class ByPosition(nn.Module):
    """Scores candidates by the place they came in, and learns how much that counts."""

    name = "by position"

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3))

    def forward(self, requests: Sequence[RerankRequest]) -> Tensor:
        width = max(len(request.documents) for request in requests)
        scores_QD = -self.weight * torch.arange(width).float().expand(len(requests), width)
        beyond = [[d >= len(request.documents) for d in range(width)] for request in requests]
        return scores_QD.masked_fill(torch.tensor(beyond), -torch.inf)

    def rerank_batch(self, requests: Sequence[RerankRequest]) -> list[Ranking]:
        count = (len(request.documents) for request in requests)
        return [
            Ranking(r.query.query_id, tuple(d.doc_id for d in r.documents), tuple(-float(i) for i in range(n)))
            for r, n in zip(requests, count, strict=True)
        ]


class Creeping(nn.Module):
    """Its scores grow by a factor with every batch, until they are no numbers."""

    name = "creeping"
    factor = 3.0

    def __init__(self, inner: CrossEncoderReranker) -> None:
        super().__init__()
        self.inner = inner
        self.size = 1.0

    def forward(self, requests: Sequence[RerankRequest]) -> Tensor:
        self.size *= self.factor
        return self.inner(requests) * self.size

    def rerank_batch(self, requests: Sequence[RerankRequest]) -> list[Ranking]:
        return self.inner.rerank_batch(requests)


class Narrowing(RRPO):
    """RRPO with a bonus for being sure."""

    def loss(self, scores_QD: Tensor, rollout: Any) -> tuple[Tensor, dict[str, float]]:
        loss, metrics = super().loss(scores_QD, rollout)
        return loss + 200.0 * entropy(scores_QD).mean(), metrics


def loop(learning_rate: float = 3e-4, **more: Any) -> TrainConfig:
    """A rate that learns this world in a few hundred steps."""
    return TrainConfig(learning_rate=learning_rate, **{"eval_steps": 20, "patience": 0, **more})


@dataclass(frozen=True)
class World:
    """What a run is made of; the defaults make a healthy one."""

    seed: int = 0
    candidates: int = 8
    count: int = 64
    hidden: int = 32
    steps: int = 100
    loop: TrainConfig = field(default_factory=loop)
    rrpo: RRPOConfig = field(default_factory=RRPOConfig)
    reward: Reward = field(default_factory=lambda: answer_reward("f1"))
    reader: Believer = field(default_factory=Believer)
    cached_from: Believer | None = None
    """Whose answers the cache holds; None trains without a cache."""
    change: Callable[[Example], Example] = lambda example: example
    policy: Callable[[CrossEncoderReranker], Any] = lambda inner: inner
    algorithm: type[RRPO] = RRPO

    def alarms(self, folder: Path) -> dict[str, int]:
        """Trains in the folder; the alarms with the steps at which they went off. A run may end with an error."""
        with suppress(TrainingError):
            if self.cached_from is None:
                self._train(self.reader, folder)
            else:
                with ReadStore(folder / "reads.sqlite") as store:
                    first = replace(self, steps=5)
                    first._train(CachedReader(self.cached_from, store), folder / "first")
                    self._train(CachedReader(self.reader, store, rereads=8), folder)
        file = folder / "alarms.jsonl"
        rows = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return {row["name"]: row["step"] for row in map(json.loads, rows)}

    def _train(self, reader: Reader, folder: Path) -> None:
        rows = [self.change(row) for row in questions(self.count, self.candidates, self.seed)]
        dev = [self.change(row) for row in questions(32, self.candidates, self.seed + 1000)]
        reference = tiny_policy(self.seed, self.hidden)
        config = replace(self.loop, trainer={**self.loop.trainer, "max_steps": self.steps})
        algorithm = self.algorithm(self.rrpo, reader, self.reward, seed=self.seed)
        score_dev = dev_scorer(dev, reader, self.reward, 3)
        policy = self.policy(copy.deepcopy(reference))
        train(policy, reference, algorithm, rows, config, folder, seed=self.seed, score_dev=score_dev)


def _naming_its_answer(example: Example) -> Example:
    """Three of four questions do."""
    if example.query.query_id[-1] in "048":
        return example
    return replace(example, query=replace(example.query, text=f"{example.query.text} {RIGHT}"))


NOISY = World(loop=loop(3e-3), count=16, reward=Noise(), rrpo=RRPOConfig(beta=1.0))
"""Nothing to learn, and a KL that holds the policy where it was."""

PLANTED: Mapping[str, tuple[World, set[str]]] = {
    "learning rate x100": (World(loop=loop(3e-2)), {"kl_jump", "growth", "scores_equal"}),
    "constant reward": (World(reward=PaidBy(lambda text: 0.5)), {"constant_reward"}),
    "flipped reward": (World(reward=Flipped()), {"reward_against_answers", "holdout_falls"}),
    "length reward": (World(reward=PaidBy(lambda text: len(text.split()) / 13)), {"holdout_falls"}),
    "KL off": (replace(NOISY, rrpo=RRPOConfig(beta=0.0)), {"drift"}),
    "entropy collapse": (World(loop=loop(1e-3), algorithm=Narrowing), {"entropy_collapse"}),
    "answers leaking": (World(change=_naming_its_answer), {"answers_leak", "closed_book"}),
    "stale cache": (World(cached_from=Changed()), {"stale_cache"}),
    "position-only policy": (World(policy=ByPosition), {"position_only"}),
    "NaN creep": (World(policy=Creeping), {"growth", "not_a_number"}),
}
"""Kind of failure -> the run with it, and the alarms that name it."""


def healthy(number: int) -> World:
    """One of many runs in which nothing is wrong, each of its own settings."""
    draw = random.Random(number)
    inner = draw.choice([1, 1, 2])
    rrpo = RRPOConfig(
        train_k=(1, 3)[number % 2],
        scale=("window", "question")[number // 2 % 2],
        samples=draw.choice([4, 8, 16]),
        advantage=draw.choice(["anchored", "anchored", "gae", "marginal"]),
        kl=draw.choice(["exact", "exact", "sampled"]),
        inner_epochs=inner,
        ratio_anchor=draw.choice(["behaviour", "reference"]) if inner > 1 else "behaviour",
    )
    return World(
        seed=number,
        candidates=draw.choice([4, 6, 8, 12]),
        count=draw.choice([32, 64, 128]),
        hidden=draw.choice([16, 32, 64]),
        loop=loop(draw.choice([1e-5, 1e-4, 3e-4, 1e-3]), batch_size=draw.choice([4, 8])),
        rrpo=rrpo,
        reward=answer_reward(draw.choice(["f1", "f1", "em", "sub_em"])),
        cached_from=draw.choice([None, Believer()]),
    )
