"""The training runs of tests/test_processes.py, to be started alone or by torchrun: FOLDER.

One after the other, since starting takes longest. Every process leaves the gradients of each step, its final weights
and what its reader was asked.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BertForSequenceClassification, TrainerCallback

from rankwright import processes
from rankwright.algorithms import RRPO, RRPOConfig, Supervised
from rankwright.algorithms.config import TrainConfig
from rankwright.errors import DataError, RankwrightError
from rankwright.rerankers.cross_encoder import CrossEncoderReranker
from rankwright.rewards import answer_reward
from rankwright.training import dev_scorer, train
from rankwright.types import Context, Document, Example, Query, ReadFailed, ReadResult
from tests.tiny_bert import spread, tiny_config, tiny_tokenizer
from tests.toy import ToyReader

QUESTIONS = 27
"""Blocks of 8, 8, 8 and 3; with 25 the last process has nothing to do in the last block."""
NO_NOISE = {"adam_epsilon": 1e-3}
"""The bias of attention's keys has a gradient of 0, and Adam would blow up its rounding errors to whole steps."""
CASES: dict[str, dict[str, Any]] = {
    "window": {},
    "default epsilon": {"trainer": {}},
    "question": {"rrpo": {"scale": "question", "samples": 8, "train_k": 1}},
    "inner epochs": {"rrpo": {"inner_epochs": 2, "ratio_anchor": "reference"}},
    "accumulation": {"loop": {"batch_size": 4, "accumulation": 2}},
    "critic": {"rrpo": {"baseline": "critic", "advantage": "gae"}},
    "one left": {"questions": 25},
    "supervised": {},
    "broken reader": {},
}


def questions(count: int) -> list[Example]:
    """Two to nine candidates each, of different lengths; document 7 is among those of most."""
    words = ("rain", "moon", "river")
    made = []
    for q in range(count):
        ids = [(q * 3 + i * 7) % 10 for i in range(2 + q % 8)]
        ids = list(dict.fromkeys(ids))
        documents = tuple(Document(str(i), " ".join([words[(i + q) % 3]] * (1 + (i * q) % 5)) + f" {i}") for i in ids)
        made.append(Example(Query(f"q{q}", f"where {words[q % 3]} {q}?"), documents, ("seven",), {"7": 1}))
    return made


class Recorder(TrainerCallback):
    """Gradients just before each optimizer step."""

    def __init__(self, policy: torch.nn.Module) -> None:
        self.policy, self.gradients = policy, []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        parts = [p.grad.flatten() for p in self.policy.parameters() if p.grad is not None]
        self.gradients.append(torch.cat(parts).clone())


class Broken(ToyReader):
    def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
        results: list[ReadResult] = [ReadFailed("planned") for _ in contexts]
        return results if self.calls else super().answer(contexts)


def run(folder: Path, case: str) -> None:
    folder.mkdir(exist_ok=True)
    settings = CASES[case]
    torch.manual_seed(0)
    body = BertForSequenceClassification(tiny_config())
    spread(body)
    policy = CrossEncoderReranker(body, tiny_tokenizer(), name="tiny")
    reference = copy.deepcopy(policy)
    reader = Broken() if case == "broken reader" else ToyReader()
    reward = answer_reward("f1")
    examples = questions(settings.get("questions", QUESTIONS))
    config = RRPOConfig(**settings.get("rrpo", {}))
    algorithm = Supervised() if case == "supervised" else RRPO(config, reader, reward)
    recorder = Recorder(policy)
    result, error = None, ""
    try:
        result = train(
            policy,
            reference,
            algorithm,
            examples,
            TrainConfig(
                **{
                    "epochs": 5,
                    "batch_size": 8,
                    "learning_rate": 1e-3,
                    "eval_steps": 6,
                    "patience": 0,
                    **settings.get("loop", {}),
                    "trainer": {"max_steps": 20, **settings.get("trainer", NO_NOISE)},
                }
            ),
            folder / "run",
            score_dev=dev_scorer(questions(6), ToyReader(), reward, top_k=1),
            callbacks=[recorder],
        )
    except RankwrightError as problem:
        error = str(problem)
    torch.save(
        {
            "weights": policy.state_dict(),
            "gradients": recorder.gradients,
            "calls": reader.calls,
            "error": error,
            "result": None
            if result is None
            else (result.steps, result.best_step, result.dev_best, result.reader_calls),
        },
        folder / f"left-{processes.rank()}.pt",
    )


def each(folder: Path) -> None:
    """How work ends that goes wrong nowhere, everywhere, in the second process alone: its result, or who raised what
    and whether the first one tells it."""
    ended: list[Any] = []
    for broken in ((), (0, 1), (1,)):

        def work(broken: Sequence[int] = broken) -> int:
            if processes.rank() in broken:
                raise DataError(f"by {processes.rank()}")
            return processes.rank()

        try:
            ended.append(processes.in_each(work))
        except DataError as error:
            ended.append([str(error), error.told_by_first])
    (folder / f"each-{processes.rank()}.json").write_text(json.dumps(ended), encoding="utf-8")


if __name__ == "__main__":
    for name in CASES:
        run(Path(sys.argv[1]) / name, name)
    each(Path(sys.argv[1]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
