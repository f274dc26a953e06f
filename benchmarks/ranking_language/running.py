"""One run: from the weights that it starts from to its record."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.kept import WORK, digests, hardware, measured, read
from benchmarks.ranking_language.language import ALONE, KINDS, order_by, prompt, questions, taught_levels, written
from benchmarks.ranking_language.rows import LESSONS, LONG, MIDDLE, POINTWISE_WINDOW, RANDOM, SHORT, Row, reward_of
from rankwright.algorithms.generating import SFTConfig
from rankwright.algorithms.grpo import TRLReward, prompt_rows
from rankwright.metrics.ranking import ranking_metrics
from rankwright.rerankers.generating import LLMPolicy
from rankwright.strategies import Groupwise, HeapSort, LLMReranker, Pointwise, Sliding
from rankwright.types import Example, RerankRequest

HERE = Path(__file__).parent
PLACE = WORK / "ranking_language"
DECIDING = (HERE / "language.py", HERE / "decoder.py", *(HERE / f"{kind}.yaml" for kind in KINDS))
METRIC = "nDCG@10"
STRATEGIES = {
    "listwise": Sliding(window=8, stride=4),
    "single-token": Sliding(window=8, stride=4),
    "setwise": HeapSort(children=7, top_k=1),
    "groupwise": Groupwise(group=8),
    "integer": Pointwise(),
    "binary": Pointwise(),
}
"""With which the trained model reranks: one call for a window of 8, or one for each passage."""
DEV, TEST, FOR_REWARDS, TAUGHT = 300, 1_000, 4_000, 28_800
"""Questions."""
LOGGED = (
    "step",
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "kl",
    "entropy",
    "malformed",
    "completions/mean_length",
    "loss",
)


@dataclass(frozen=True)
class Score:
    """What is measured of a model: the product reranks with it."""

    kind: str
    tokenizer: Any
    examples: tuple[Example, ...]

    def values(self, model: Any) -> dict[str, Any]:
        """nDCG@10 by question, whether its first passage is a best one, share of calls not answered in the agreed
        form."""
        reranker = self._reranker(model)
        requests = [RerankRequest(example.query, example.candidates) for example in self.examples]
        rankings = reranker.rerank_batch(requests)
        grades = {example.query.query_id: example.relevance for example in self.examples}
        found = reranker.report.outcomes
        return {
            "ndcg": ranking_metrics(rankings, grades, [METRIC])[METRIC],
            "best_first": {
                ranking.query_id: float(_value(example, ranking.doc_ids[0]) in example.answers)
                for ranking, example in zip(rankings, self.examples, strict=True)
            },
            "malformed": 1 - found["ok"] / sum(found.values()),
        }

    def __call__(self, model: Any) -> dict[str, float]:
        found = self.values(model)
        means = {f"eval_{name}": mean(found[name]) for name in ("ndcg", "best_first")}
        return {**means, "eval_malformed": found["malformed"]}

    def _reranker(self, model: Any) -> LLMReranker:
        from rankwright.llms.local import LocalLLM

        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            llm = LocalLLM(folder, device="cpu", batch_size=256)
        return LLMReranker(LLMPolicy(llm, prompt(self.kind)), STRATEGIES[self.kind], max_failed=1.0)


def _value(example: Example, doc_id: str) -> str:
    return next(document.text.split()[-1] for document in example.candidates if document.doc_id == doc_id)


def mean(values: dict[str, float]) -> float:
    """Over questions."""
    return sum(values.values()) / len(values)


def kept_at(row: Row, seed: int) -> tuple[Path, dict[str, Any]]:
    """File of a run's record, and what decides it."""
    lessons = {name: _deciding(LESSONS[name]) for name in _before(row)}
    made_with = {"row": _deciding(row), "lessons": lessons, "seed": seed, **digests(DECIDING)}
    return PLACE / f"{row.name}-{seed}.json", json.loads(json.dumps(made_with))  # as it is read back


def _before(row: Row) -> list[str]:
    """Names of the lessons before a run, the last one first."""
    return [] if row.start == RANDOM else [row.start, *_before(LESSONS[row.start])]


def _deciding(row: Row) -> dict[str, Any]:
    """What of a row decides its result: its seeds do not, nor what GRPO's settings say of speed and failures."""
    fields = asdict(row)
    names = ("rollouts", "max_completion_length", "temperature", "top_p", "beta", "clip", "loss", "scale")
    grpo = {name: fields["grpo"][name] for name in names} if row.reward else {}
    loop = {name: fields["loop"][name] for name in ("batch_size", "learning_rate", "eval_steps", "trainer")}
    return {
        **{name: fields[name] for name in ("name", "reward", "options", "kind", "start")},
        "grpo": grpo,
        "loop": loop,
    }


def record(row: Row, seed: int) -> dict[str, Any] | None:
    """What is kept of a run."""
    return read(*kept_at(row, seed))


def run(row: Row, seed: int) -> dict[str, Any]:
    """The record of one run, measured or kept."""
    return measured(*kept_at(row, seed), lambda: _run(row, seed))


def weights(name: str, seed: int) -> Path:
    """Folder of what a run starts from, made where it is not there."""
    from benchmarks.ranking_language.decoder import decoder, tokenizer

    folder = PLACE / f"{name or 'random'}-{seed}"
    if not (folder / "config.json").exists():
        if name == RANDOM:
            tokenizer().save_pretrained(folder)
            decoder(seed).save_pretrained(folder)
        else:
            found = _run(LESSONS[name], seed)
            measured(*kept_at(LESSONS[name], seed), lambda: found)
    return folder


def taught(name: str, seed: int) -> list[tuple[Example, str]]:
    """Questions of a lesson with the form of their answers.

    Args:
        name: of a lesson, or that of the row that is taught on and on.
        seed: of the run; the teacher errs otherwise for each.
    """
    if name == SHORT:
        alone = zip(questions(19_200, 1, window=1), _in_turn(("integer", "integer", "binary"), 19_200), strict=True)
        pairs = zip(questions(19_200, 2, window=2), _in_turn(KINDS[:3], 19_200), strict=True)
        return [*alone, *pairs]
    kinds = ("listwise", "listwise", "setwise", "groupwise") if name in LESSONS else ("listwise",)
    first = {MIDDLE: 0, LONG: 5}.get(name, 3)
    return list(zip(questions(TAUGHT, first), _in_turn(kinds, TAUGHT), strict=True))


def _in_turn(kinds: Sequence[str], count: int) -> list[str]:
    return [kinds[number % len(kinds)] for number in range(count)]


def in_order(row: Row, seed: int) -> list[Any]:
    """Orders of the teacher, without thoughts, with their identifiers for the ranking loss."""
    from rankwright.tuning import Taught

    def one(example: Example) -> Taught:
        names = tuple(f"[{position + 1}]" for position in order_by(taught_levels(example, seed)))
        return Taught(prompt(row.kind).messages(example.query, example.candidates), " > ".join(names), names)

    return [one(example) for example, _ in taught(row.name, seed)]


def tune(row: Row, seed: int, score: Any, folder: Path) -> Any:
    """The training of a run; `score` is called on the way."""
    from benchmarks.ranking_language.decoder import tokenizer
    from rankwright.tuning import Taught, tune_by_completions, tune_by_reward

    start, words = weights(row.start, seed), tokenizer()
    if row.reward:
        asked = prompt(row.kind)
        window = POINTWISE_WINDOW if row.kind in ALONE else 8
        rows = prompt_rows(questions(FOR_REWARDS, 4), asked, window, shorter=row.kind not in ALONE)
        reward = TRLReward(reward_of(row), asked, rows, row.grpo.rollouts)
        return tune_by_reward(start, words, reward, row.grpo, row.loop, folder, seed=seed, score=score)
    if row.kind == "single-token":
        lesson, config = in_order(row, seed), SFTConfig(ranking_loss="ranknet", ranking_weight=10.0)
        return tune_by_completions(start, words, lesson, config, row.loop, folder, seed=seed, score=score)
    lesson = [
        Taught(prompt(kind).messages(e.query, e.candidates), written(taught_levels(e, seed), kind))
        for e, kind in taught(row.name, seed)
    ]
    return tune_by_completions(start, words, lesson, SFTConfig(), row.loop, folder, seed=seed, score=score)


def _run(row: Row, seed: int) -> dict[str, Any]:
    from benchmarks.ranking_language.decoder import tokenizer
    from rankwright.tuning import save_tuned

    words, start = tokenizer(), weights(row.start, seed)
    dev = Score(row.kind, words, tuple(questions(DEV, 2, side="dev")))
    test = Score(row.kind, words, tuple(questions(TEST, 2, side="test")))
    before, began = test.values(_loaded(start)), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        tuned = tune(row, seed, dev, Path(folder))
    spent = time.process_time() - began
    save_tuned(tuned, words, PLACE / f"{row.name}-{seed}")
    names = (*LOGGED, "eval_ndcg", "eval_best_first", "eval_malformed")
    return {
        "before": before,
        "after": test.values(tuned.model),
        "log": [one for line in tuned.history if len(one := {n: line[n] for n in names if n in line}) > 1],
        "steps": tuned.steps,
        "seconds": tuned.seconds,
        "processor_seconds": spent,
        "hardware": hardware(),
    }


def _loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)
