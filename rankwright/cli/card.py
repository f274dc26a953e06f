"""The README.md of a trained model's folder, with the metadata block that the hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankwright.cli.build import Splits
from rankwright.cli.common import score_text
from rankwright.cli.settings import RunSettings
from rankwright.evaluation import Evaluation, FirstStage
from rankwright.reporting import unchanged

USE = """## Use

```python
import rankwright

ranking = rankwright.load("this folder").rerank("question", ["passage", "another passage"])
```

{elsewhere}
"""
CROSS_ENCODER = """\
The folder also opens in `sentence_transformers.CrossEncoder` and `transformers.AutoModelForSequenceClassification`;
scores are raw logits."""
LANGUAGE_MODEL = """\
It is a causal language model that scores ({kind}) by the logits of agreed words behind a prompt; prompt and words
stand in `config.json` under `rankwright`. The folder also opens in `transformers.AutoModelForCausalLM`, which writes
and does not score."""


WRITER = """## Use

```
rankwright rerank "question" "passage" "another passage" --llm "this folder"
```

```python
from rankwright.llms.local import LocalLLM
from rankwright.prompts.ranking import load_ranking_prompt
from rankwright.rerankers.generating import LLMPolicy
from rankwright.strategies import LLMReranker, {strategy}

folder = "this folder"
reranker = LLMReranker(LLMPolicy(LocalLLM(folder), load_ranking_prompt(folder)), {strategy}())
ranking = reranker.rerank("question", ["passage", "another passage"])
```

The folder opens in `transformers.AutoModelForCausalLM` and in servers of language models. `rankwright-prompt.yaml` is
the prompt that it was trained with; with another one it ranks worse.
"""
STRATEGIES = {"listwise": "Sliding", "setwise": "HeapSort", "pointwise": "Pointwise", "groupwise": "Groupwise"}
"""Kind of prompt -> the class of the strategy that covers long lists with it."""


def model_card(
    settings: RunSettings,
    splits: Splits,
    evaluation: Evaluation,
    result: Mapping[str, Any],
    verdict: str,
    template: str,
    kind: str | None,
) -> str:
    """Data, reader, reward and the table before and after.

    Args:
        settings: of the run.
        splits: its questions.
        evaluation: reference and trained model on the test questions.
        result: the content of result.json.
        verdict: the last word of the run.
        template: joins title and text of a passage.
        kind: how a scoring language model scores; None for a cross-encoder.
    """
    data = Path(settings.data.train).name or splits.name
    source = "relevance labels"
    if settings.method == "rrpo":
        source = f"the answers of the reader `{evaluation.settings.reader}` (reward {settings.reward})"
    parts = [
        f"---\nlibrary_name: {'sentence-transformers' if kind is None else 'transformers'}\npipeline_tag: text-ranking",
        f"tags: [reranker, {'cross-encoder' if kind is None else 'llm'}, rankwright, {settings.method}]\n---",
        "# A reranker trained by rankwright\n",
        f"Trained from `{settings.model.name}` by `{settings.method}` on {len(splits.train)} questions of `{data}`",
        f"({settings.loop.epochs:g} passes planned), learning from {source};",
        f"{_chosen(result, len(splits.dev), settings.loop.interpolation)}.\n",
        f"Title and text are joined by `{template}`; a document without a title is its bare text.\n",
        "## Before and after\n",
        f"{evaluation.n} questions of `{splits.name}` that were not used in training, mean [95 % interval].\n",
        _table(evaluation),
        f"\n{verdict}\n",
        f"Signature: `{result['signature']}`\n",
        USE.replace("{elsewhere}", CROSS_ENCODER if kind is None else LANGUAGE_MODEL.replace("{kind}", kind)),
    ]
    return "\n".join(parts)


def tuned_card(
    settings: RunSettings,
    splits: Splits,
    evaluation: Evaluation | None,
    result: Mapping[str, Any],
    outcome: str,
    command: str,
    kind: str,
) -> str:
    """The same of a language model that writes its judgement.

    Args:
        settings: of the run.
        splits: its questions.
        evaluation: start and tuned model on the test questions; None where they were not compared.
        result: the content of result.json.
        outcome: the last word of the run.
        command: how to repeat the run, without secrets.
        kind: of the prompt.
    """
    data, window = Path(settings.data.train).name or splits.name, settings.generating.window
    source = f"the reward `{settings.reward}`" if settings.method == "grpo" else "labels or a teacher's orders"
    compared = ["Not compared.\n"]
    if evaluation is not None:
        compared = [
            f"{evaluation.n} questions of `{splits.name}` that were not used in training, their first {window}",
            f"candidates, greedy completions; mean [95 % interval]. `reference` is `{settings.model.name}`.\n",
            _table(evaluation),
            f"\nSignature: `{result['signature']}`\n",
        ]
    loop = settings.loop
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-ranking",
        f"tags: [reranker, llm, rankwright, {settings.method}]\n---",
        "# A language model that ranks, trained by rankwright\n",
        f"Trained from `{settings.model.name}` by `{settings.method}` on {len(splits.train)} questions of `{data}`",
        f"({result['steps']} steps, prompt `{result['prompt']}`, {window} candidates each), learning from {source};",
        "the weights after the last step.\n",
        f"Learning rate {loop.learning_rate:g}, {loop.batch_size * loop.accumulation} questions a step, LoRA rank "
        f"{settings.model.lora_rank} (0: all weights), seed {settings.seed}.\n",
        f"```\n{command}\n```\n",
        "## Before and after\n",
        *compared,
        f"{outcome}\n",
        WRITER.replace("{strategy}", STRATEGIES[kind]),
    ]
    return "\n".join(parts)


def _chosen(result: Mapping[str, Any], dev: int, interpolation: float) -> str:
    """Which weights these are."""
    if unchanged(result):
        return f"on {dev} dev questions no checkpoint was better than the starting weights, which these are"
    way = "" if interpolation == 1 else f", {interpolation:g} of the way there from the starting weights"
    if result["dev_best"] is None:
        return f"the weights after the last of {result['steps']} steps{way}"
    step = f"step {result['best_step']} of {result['steps']}"
    return f"the best of its checkpoints on {dev} dev questions ({step}){way}"


def _table(evaluation: Evaluation) -> str:
    head = ["model", *evaluation.metrics]
    rows = [head, ["---"] * len(head)]
    for name in (FirstStage.name, "reference", "trained"):
        rows.append([name, *(score_text(evaluation.scores[name].get(metric)) for metric in evaluation.metrics)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
