"""A reward of your own, from four questions to a few training steps: `python examples/custom_reward.py`.

The function below pays a right answer less when the reader needed more passages for it. From the command line it is
named as `rankwright train --reward custom_reward:early_and_right ...`, run from the folder that holds this file. Like
the paper (arXiv 2604.02091) RRPO prices every prefix of a ranking; unlike it, this price depends on the length of the
prefix. The baseline is priced by the same function. Four questions teach nothing that lasts: this shows how parts fit
together.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rankwright
from rankwright.algorithms import RRPO
from rankwright.algorithms.config import TrainConfig
from rankwright.llms.cache import ReadStore
from rankwright.metrics.answer import f1
from rankwright.rewards import function_reward
from rankwright.training import dev_scorer, train

PASSAGES = (
    rankwright.Document("ferry", "The ferry to Lowen Quay leaves at half past six, on market days an hour earlier."),
    rankwright.Document("ferry-old", "Before the war the ferry to Lowen Quay was rowed by four brothers."),
    rankwright.Document("bell", "The bell of Lowen Quay was cast from the rudder of the barque Ysolde."),
    rankwright.Document("keeper", "Marta Dunn has kept the bell of Lowen Quay in order since the fire."),
    rankwright.Document("market", "Market days on Lowen Quay are Tuesday and Friday; eels are sold first."),
    rankwright.Document("eels", "Smoked eels should be eaten with the fingers and never with a fork."),
)
QUESTIONS = {
    "When does the ferry to Lowen Quay leave?": "half past six",
    "What was the bell of Lowen Quay cast from?": "the rudder of the barque Ysolde",
    "Who keeps the bell of Lowen Quay in order?": "Marta Dunn",
    "On which days is the market of Lowen Quay?": "Tuesday and Friday",
}


def early_and_right(
    prompts: Sequence[str],
    completions: Sequence[str],
    answers: Sequence[Sequence[str]],
    doc_ids: Sequence[Sequence[str]],
    position: Sequence[int],
    **more: Any,
) -> list[float | None]:
    """F1 of the answer, a tenth less for every passage beyond the first.

    Args:
        prompts: the questions.
        completions: the reader's answers.
        answers: accepted answers of each question.
        doc_ids: passages that were read, in order.
        position: how many; 0 for the reading without documents.
        more: columns that a later version may add.

    Returns:
        One number per answer, larger is better. None would mean: no reward can be given.
    """
    return [
        f1(completion, accepted) * (1.0 - 0.1 * max(0, count - 1))
        for completion, accepted, count in zip(completions, answers, position, strict=True)
    ]


def show(step: int, steps: int, logs: Mapping[str, float]) -> None:
    """One line for every log entry that has rewards."""
    rewards = {name: round(value, 3) for name, value in logs.items() if "reward" in name}
    if rewards:
        print(f"step {step} of {steps}", rewards)


def main() -> None:
    """Train a few steps, then rank."""
    reward = function_reward("custom_reward:early_and_right")
    examples = [
        rankwright.Example(rankwright.Query(f"q{number}", question), PASSAGES, (answer,))
        for number, (question, answer) in enumerate(QUESTIONS.items())
    ]
    with tempfile.TemporaryDirectory() as folder, ReadStore(Path(folder) / "reads.sqlite") as store:
        reader = rankwright.CachedReader(rankwright.EmbeddedReader(), store)
        policy, reference = rankwright.load("reference"), rankwright.load("reference")
        result = train(
            policy,
            reference,
            RRPO(rankwright.RRPOConfig(train_k=2), reader, reward),
            examples,
            TrainConfig(epochs=2, batch_size=4, eval_steps=1),
            Path(folder) / "run",
            score_dev=dev_scorer(examples, reader, reward, top_k=2),
            on_step=show,
        )
        print(f"{result.steps} steps, {result.reader_calls} reader calls, {result.cache_hits} answers from the cache")
        for question in QUESTIONS:
            ranking = policy.rerank(question, PASSAGES, top_k=2)
            print(question, "->", ", ".join(ranking.doc_ids))


if __name__ == "__main__":
    main()
