"""From questions, answers and passages to a better reranker, in one file: `python examples/train_from_feedback.py`.

RRPO (arXiv 2604.02091) learns from the answers of a reader; no relevance label is used. Differences from the paper: 8
candidates of BM25 instead of a hundred, a small extractive reader instead of a language model, the first choice only
with many samples, advantages in units of the question's own mean reward, the ratio against the policy that sampled, and
the exact KL (docs/rrpo.md says why). Passages, questions and steps are
the demo's, but half of its training questions, each once.
"""

from __future__ import annotations

import argparse
import json
from importlib import resources
from pathlib import Path

import rankwright
from rankwright.algorithms import RRPO
from rankwright.algorithms.config import TrainConfig
from rankwright.evaluation import FirstStage, verdict
from rankwright.llms.cache import ReadStore
from rankwright.retrieval import with_candidates
from rankwright.training import dev_scorer, train


def main() -> None:
    """Load, retrieve, train, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--questions", type=int, default=288, help="training questions")
    parser.add_argument("--test-questions", type=int, default=300)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/example"))
    arguments = parser.parse_args()

    # 1. Data: questions with accepted answers, and a corpus. The file says which question is for what.
    folder = Path(str(resources.files("rankwright"))) / "assets" / "demo"
    dataset = rankwright.load_examples(
        folder / "questions.jsonl", "jsonl", corpus=folder / "corpus.jsonl", need_answers=True
    )
    rows = (folder / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    split_of = {row["query_id"]: row["metadata"]["split"] for row in map(json.loads, rows)}

    # 2. First stage: BM25 candidates for every question.
    index = rankwright.BM25(dataset.corpus)

    def questions(split: str, limit: int, depth: int) -> list[rankwright.Example]:
        chosen = [example for example in dataset.examples if split_of[example.query.query_id] == split]
        return with_candidates(chosen[:limit], index, depth)

    training = questions("train", arguments.questions, depth=8)
    dev = questions("dev", arguments.test_questions, depth=10)
    test = questions("test", arguments.test_questions, depth=10)

    # 3. The reader behind a cache, and what its answers are worth.
    reward = rankwright.answer_reward("f1")
    with ReadStore("runs/reads.sqlite") as store:
        reader = rankwright.CachedReader(rankwright.EmbeddedReader(), store, run="example")

        # 4. The policy learns; a second copy stays as it is and anchors baseline and KL.
        policy = rankwright.load("reference", max_length=128)
        reference = rankwright.load("reference", max_length=128)
        algorithm = RRPO(
            rankwright.RRPOConfig(train_k=1, samples=128, scale="question"), reader, reward, arguments.seed
        )
        result = train(
            policy,
            reference,
            algorithm,
            training,
            TrainConfig(epochs=arguments.epochs, batch_size=8, learning_rate=5e-5, eval_steps=18),
            arguments.out,
            seed=arguments.seed,
            score_dev=dev_scorer(dev, reader, reward, top_k=1),
            on_step=lambda step, steps, logs: print(
                f"step {step} of {steps}", {k: round(v, 3) for k, v in logs.items()}
            ),
        )

        # 5. Did it help? Questions that training never saw, the same candidates for every model.
        evaluation = rankwright.evaluate(
            {"first-stage": FirstStage(), "reference": reference, "trained": policy},
            test,
            reader=reader,
            top_k=1,
            depth=10,
            baseline="reference",
            seed=arguments.seed,
            set_name="demo-test",
            retriever=index.name,
        )

    # 6. What is left behind: a model folder that opens elsewhere too, and a report.
    policy.save(arguments.out / "model")
    lines = (arguments.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rankwright.write_report(
        arguments.out / "report.html", evaluation, title="Example", metrics=[json.loads(line) for line in lines]
    )
    print(f"dev reward {result.dev_before} -> {result.dev_best} at step {result.best_step} of {result.steps}")
    outcome = evaluation.headline_test()
    if outcome is not None:
        print(
            f"{outcome.metric} {outcome.delta:+.3f} [{outcome.ci_low:+.3f}, {outcome.ci_high:+.3f}]: {verdict(outcome)}"
        )
    print(evaluation.signature)


if __name__ == "__main__":
    main()
