from __future__ import annotations

import copy
import errno
import itertools
import json
import math
import os
import random
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import TrainerCallback

from rankwright.algorithms import RRPO, RRPOConfig, Supervised
from rankwright.algorithms.config import TrainConfig
from rankwright.budget import Ahead
from rankwright.checkpoints import is_complete, newest_checkpoint, sorted_checkpoints, step_of, write_manifest
from rankwright.errors import (
    ConfigurationError,
    DataError,
    LimitReachedError,
    ModelError,
    ReaderError,
    ResumeError,
    RewardError,
    StorageError,
    TrainingError,
)
from rankwright.llms.cache import ReadStore
from rankwright.readers import CachedReader
from rankwright.rerankers import load
from rankwright.rewards import answer_reward
from rankwright.training import (
    FeedbackTrainer,
    TrainResult,
    _keep_to_one_device,
    _training_arguments,
    dev_scorer,
    label_scorer,
    requests_of,
    train,
)
from rankwright.types import (
    Answer,
    Context,
    Document,
    Example,
    Outcome,
    Query,
    Reader,
    ReadFailed,
    ReadResult,
    RerankRequest,
    RewardValue,
)
from tests.toy import ToyPolicy, ToyReader, examples
from tests.training_kit import (
    StoppedError,
    assert_same_checkpoint,
    assert_same_run,
    held_elsewhere,
    rows_of,
    same,
    stop_at,
    wide_cross_encoder,
)

LOOP = TrainConfig(
    epochs=2,
    batch_size=4,
    learning_rate=0.3,
    eval_steps=3,
    patience=0,
    trainer={"weight_decay": 0.0},
)


def run(
    folder: Path,
    config: TrainConfig = LOOP,
    rrpo: RRPOConfig | None = None,
    *,
    resume: bool = False,
    callbacks: tuple = (),
    count: int = 20,
    reader: Reader | None = None,
    top_k: int = 1,
    seed: int = 1,
    may_go_on: Callable[[Ahead], str | None] | None = None,
) -> tuple[ToyPolicy, TrainResult]:
    policy = ToyPolicy()
    rrpo = rrpo or RRPOConfig(beta=0.0)
    reward = answer_reward("f1")
    algorithm = RRPO(rrpo, reader or ToyReader(), reward, seed=seed)
    dev = dev_scorer(examples(4), reader or ToyReader(), reward, top_k)
    result = train(
        policy,
        copy.deepcopy(policy),
        algorithm,
        examples(count),
        config,
        folder,
        seed=seed,
        score_dev=dev,
        settings={"rrpo": rrpo},
        resume=resume,
        callbacks=callbacks,
        may_go_on=may_go_on,
    )
    return policy, result


def test_rrpo_finds_the_document_that_the_reader_needs(tmp_path: Path) -> None:
    policy, result = run(tmp_path, TrainConfig(epochs=8, batch_size=4, learning_rate=0.3, eval_steps=10))
    assert result.dev_before == 0.0
    assert result.dev_best == 1.0
    assert int(policy.scores.argmax()) == 7


@pytest.mark.parametrize(
    "rrpo",
    [
        RRPOConfig(advantage="gae", beta=0.0),
        RRPOConfig(advantage="marginal", beta=0.0),
        RRPOConfig(ratio_anchor="reference", beta=0.0),
        RRPOConfig(kl="sampled", beta=0.001),
        RRPOConfig(train_k=1, beta=0.0),
        RRPOConfig(scale="question", samples=16, beta=0.0),
        RRPOConfig(scale="question", advantage="marginal", samples=16, beta=0.0),
    ],
)
def test_every_option_learns_the_toy_world(tmp_path: Path, rrpo: RRPOConfig) -> None:
    config = TrainConfig(epochs=8, batch_size=4, learning_rate=0.3, eval_steps=10)
    _, result = run(tmp_path, config, rrpo)
    assert result.dev_best == 1.0


def test_dev_scores_the_weights_that_are_kept(tmp_path: Path) -> None:
    """The first third of the way: on dev, at the end, and after the checkpoint of a better step than the last."""
    start = ToyPolicy().scores.detach()
    seen: list[torch.Tensor] = []

    def score_dev(module: torch.nn.Module) -> dict[str, float]:
        seen.append(module.get_parameter("scores").detach().clone())
        return {"reward": [0.0, 1.0, 2.0, 1.0][len(seen) - 1]}

    kept = {}
    for share in (1.0, 1 / 3):
        seen.clear()
        policy, folder = ToyPolicy(), tmp_path / str(share)
        algorithm = RRPO(RRPOConfig(beta=0.0), ToyReader(), answer_reward("f1"), seed=1)
        config = replace(LOOP, eval_steps=4, interpolation=share)
        result = train(policy, copy.deepcopy(policy), algorithm, examples(20), config, folder, score_dev=score_dev)
        assert (result.best_step, len(seen)) == (8, 4)
        kept[share] = [*seen, policy.scores.detach().clone()]
    for whole, part in zip(kept[1.0], kept[1 / 3], strict=True):
        assert torch.allclose(part, start + (whole - start) / 3, atol=1e-6)
    assert not torch.equal(kept[1.0][-1], start)
    assert torch.equal(kept[1 / 3][-1], kept[1 / 3][2])


@pytest.mark.usefixtures("one_thread")
def test_a_resumed_run_keeps_the_same_share_of_the_way(tmp_path: Path) -> None:
    config = replace(LOOP, epochs=3, interpolation=0.5)
    whole, _ = run(tmp_path / "whole", config)
    with pytest.raises(StoppedError):
        run(tmp_path / "broken", config, callbacks=(stop_at(8),))
    resumed, _ = run(tmp_path / "broken", config, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    assert torch.equal(resumed.scores, whole.scores)


def test_inner_epochs_reuse_the_rollout(tmp_path: Path) -> None:
    config = TrainConfig(epochs=4, batch_size=4, learning_rate=0.3, eval_steps=10)
    _, result = run(tmp_path, config, RRPOConfig(inner_epochs=2, beta=0.0))
    assert result.steps == 4 * (20 // 4) * 2
    assert result.dev_best == 1.0
    clipped = [json.loads(line).get("clipped_share") for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert max(value for value in clipped if value is not None) > 0


def test_what_an_inner_epoch_left_out_is_not_read_twice_later(tmp_path: Path) -> None:
    """One of two passes of the first rollout never has scores, which so holds one batch, not two."""
    passes, collected = itertools.count(), list[tuple[int, str]]()

    class Lost(ToyPolicy):
        def forward(self, requests: Sequence[RerankRequest]) -> torch.Tensor:
            return super().forward(requests) + (math.nan if next(passes) in (0, 2) else 0.0)

    class Noting(RRPO):
        def collect(self, scores_QD: Any, reference_scores_QD: Any, examples: Any, rollout_number: int) -> Any:
            collected.extend((rollout_number, example.query.query_id) for example in examples)
            return super().collect(scores_QD, reference_scores_QD, examples, rollout_number)

    algorithm = Noting(RRPOConfig(inner_epochs=2), ToyReader(), answer_reward("f1"))
    config = replace(LOOP, batch_size=2, accumulation=2, epochs=1, eval_steps=100)
    train(Lost(), ToyPolicy(), algorithm, examples(20), config, tmp_path)
    assert len(collected) == len({*collected}) == 20 - 2
    assert [number for number, _ in collected] == [0] * 2 + sorted([1, 2, 3, 4] * 4)


def test_the_comparison_sees_a_single_bit() -> None:
    """Both pairs print alike."""
    long = torch.zeros(5000, dtype=torch.uint8)
    assert not same({"a": [long]}, {"a": [long.index_fill(0, torch.tensor([2500]), 1)]})
    assert not same((torch.tensor([1.0]),), (torch.tensor([1.0]).nextafter(torch.tensor(2.0)),))
    assert same({"a": [long, 1.0]}, {"a": [long.clone(), 1.0]})


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    ("every", "step", "start"), [(1, 1, 1), (1, 5, 5), (3, 1, 0), (3, 3, 3), (3, 7, 6), (5, 8, 5), (5, 10, 10)]
)
def test_a_resumed_run_is_bit_equal_to_an_unbroken_one(
    tmp_path: Path, every: int, step: int, start: int, accumulation: int
) -> None:
    """20 questions, blocks of 4: an epoch ends at steps 5 and 10. The run breaks at `step` and starts again at
    `start`; lines between the two must go."""
    config = TrainConfig(
        epochs=3,
        batch_size=4 // accumulation,
        accumulation=accumulation,
        learning_rate=0.3,
        eval_steps=every,
        patience=0,
    )
    whole, whole_result = run(tmp_path / "whole", config)
    with pytest.raises(StoppedError):
        run(tmp_path / "broken", config, callbacks=(stop_at(step),))
    saved = newest_checkpoint(tmp_path / "broken")
    assert (step_of(saved) if saved else 0) == start
    assert rows_of(tmp_path / "broken")[-1]["step"] == step
    policy, result = run(tmp_path / "broken", config, resume=True)
    assert torch.equal(policy.scores, whole.scores)
    assert (result.steps, result.best_step, result.reader_calls) == (
        whole_result.steps,
        whole_result.best_step,
        whole_result.reader_calls,
    )
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("every", "accumulation", "inner_epochs"), [(1, 1, 2), (1, 2, 1), (3, 1, 1), (3, 2, 2), (100, 1, 2), (100, 2, 1)]
)
def test_a_run_that_a_limit_stopped_again_and_again_is_bit_equal_too(
    tmp_path: Path, every: int, accumulation: int, inner_epochs: int
) -> None:
    """Every session makes two or three rollouts; it stops between evaluations, at them and at the ends of epochs."""
    config = TrainConfig(
        epochs=3,
        batch_size=4 // accumulation,
        accumulation=accumulation,
        learning_rate=0.3,
        eval_steps=every,
        patience=0,
    )
    rrpo = RRPOConfig(beta=0.1, inner_epochs=inner_epochs)
    whole, whole_result = run(tmp_path / "whole", config, rrpo)
    stops: list[int] = []
    while True:
        asked: list[int] = []

        def three_rollouts(ahead: Ahead, asked: list[int] = asked) -> str | None:
            asked.append(1)
            return "Enough." if len(asked) > 3 else None

        try:
            policy, result = run(tmp_path / "broken", config, rrpo, resume=bool(stops), may_go_on=three_rollouts)
            break
        except LimitReachedError as error:
            stops.append(int(re.findall(r"Enough\. All is saved at step (\d+) of", str(error))[0]))
            assert newest_checkpoint(tmp_path / "broken") == tmp_path / f"broken/checkpoint-{stops[-1]}"
    assert len(stops) > 3
    assert stops == sorted({*stops})
    assert not any(step % inner_epochs for step in stops)
    assert torch.equal(policy.scores, whole.scores)
    assert (result.steps, result.best_step, result.reader_calls) == (
        whole_result.steps,
        whole_result.best_step,
        whole_result.reader_calls,
    )
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


class KeyedToyReader(ToyReader):
    """A ToyReader that can stand behind a cache."""

    def cache_key(self, context: Context) -> str:
        return " ".join([context.query.query_id, *(document.doc_id for document in context.documents)])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("unwritten", "start", "again", "dev_again"),
    [("none", 6, {7, 8}, set()), ("checkpoint-6", 3, {4, 5, 6}, {6})],
    ids=["after step 8", "in the checkpoint of step 6"],
)
def test_a_run_that_is_resumed_with_a_cache_differs_in_what_the_cache_gave_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unwritten: str, start: int, again: set[int], dev_again: set[int]
) -> None:
    """Each run has a store of its own. What the broken one read after its last checkpoint is not read again."""
    toys = {name: KeyedToyReader() for name in ("whole", "broken")}

    def once(name: str, **more: Any) -> torch.Tensor:
        with ReadStore(tmp_path / f"{name}.sqlite") as store:
            policy, _ = run(
                tmp_path / name, replace(LOOP, epochs=3), reader=CachedReader(toys[name], store), top_k=3, **more
            )
        return policy.scores

    def stopping(folder: Path) -> None:
        if folder.name == unwritten:
            raise StoppedError
        write_manifest(folder)

    whole = once("whole")
    with monkeypatch.context() as patch:
        patch.setattr("rankwright.training.write_manifest", stopping)
        with pytest.raises(StoppedError):
            once("broken", callbacks=(stop_at(8),))
    saved = newest_checkpoint(tmp_path / "broken")
    assert saved is not None
    assert step_of(saved) == start
    assert torch.equal(once("broken", resume=True), whole)
    assert_same_checkpoint(tmp_path / "whole", tmp_path / "broken")
    assert toys["broken"].calls == toys["whole"].calls

    def uncounted(row: dict[str, Any]) -> dict[str, Any]:
        return {
            **row,
            **dict.fromkeys(row.keys() & {"reader_calls", "cache_hits", "eval_reader_calls", "eval_cache_hits"}),
        }

    def more(name: str) -> set[int]:
        return {two["step"] for one, two in pairs if name in one and two[name] > one[name]}

    pairs = list(zip(rows_of(tmp_path / "whole"), rows_of(tmp_path / "broken"), strict=True))
    assert [uncounted(two) for _, two in pairs] == [uncounted(one) for one, _ in pairs]
    steps = [[row["reader_calls"] + row["cache_hits"] for row in pair] for pair in pairs if "reader_calls" in pair[0]]
    assert [two for _, two in steps] == [one for one, _ in steps]
    assert (more("cache_hits"), more("eval_cache_hits")) == (again, dev_again)
    assert more("reader_calls") == set()
    dev = [pair for pair in pairs if "eval_cache_hits" in pair[0] and pair[1]["step"] not in dev_again]
    assert [two for _, two in dev] == [one for one, _ in dev]


def padded_examples(count: int) -> list[Example]:
    """Questions and passages of many lengths, so that batches are padded; passage 7 answers."""
    draw, words = random.Random(0), ["rain", "moon", "river", "ab", "cd", "xyz"]

    def text(low: int, high: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(low, high)))

    return [
        Example(
            Query(f"q{i}", f"where is {text(1, 6)}"),
            tuple(Document(str(d), text(2, 16)) for d in range(4, 10)),
            ("seven",),
        )
        for i in range(count)
    ]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("every", "step"), [(1, 1), (2, 2), (3, 4)], ids=["first step", "epoch's end", "middle"])
def test_a_resumed_run_of_a_padded_bert_is_bit_equal_too(tmp_path: Path, every: int, step: int) -> None:
    """Two steps an epoch. The resumed run scores the frozen reference anew, with other questions in a batch than in the
    first epoch, and other numbers of them."""
    base = wide_cross_encoder()
    config = TrainConfig(epochs=3, batch_size=4, learning_rate=1e-3, eval_steps=every)

    def once(folder: Path, *, resume: bool = False, callbacks: Sequence[TrainerCallback] = ()) -> dict[str, Any]:
        policy, rrpo = copy.deepcopy(base), RRPOConfig(beta=0.1, samples=2, train_k=1)
        algorithm = RRPO(rrpo, ToyReader(), answer_reward("f1"), seed=1)
        reference = copy.deepcopy(base)
        train(policy, reference, algorithm, padded_examples(8), config, folder, resume=resume, callbacks=callbacks)
        return policy.state_dict()

    whole = once(tmp_path / "whole")
    with pytest.raises(StoppedError):
        once(tmp_path / "broken", callbacks=[stop_at(step)])
    saved = newest_checkpoint(tmp_path / "broken")
    assert saved is not None
    assert step_of(saved) == step // every * every
    assert same(dict(once(tmp_path / "broken", resume=True)), dict(whole))
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.usefixtures("one_thread")
def test_after_training_in_bf16_the_policy_scores_as_the_saved_model(tmp_path: Path) -> None:
    policy, questions = wide_cross_encoder(), padded_examples(8)
    seen: list[Any] = []

    def score_dev(module: Any) -> dict[str, float]:
        seen.append([ranking.scores for ranking in module.rerank_batch(requests_of(questions))])
        return {"reward": float(len(seen))}  # the last weights are the best

    config = TrainConfig(
        epochs=1, batch_size=4, learning_rate=1e-3, eval_steps=1, trainer={"bf16": True, "use_cpu": True}
    )
    algorithm = RRPO(RRPOConfig(samples=2, train_k=1), ToyReader(), answer_reward("f1"))
    train(policy, copy.deepcopy(policy), algorithm, questions, config, tmp_path, score_dev=score_dev)
    policy.save(tmp_path / "model")
    in_memory, reopened = policy, load(str(tmp_path / "model"), max_length=64)
    scores = [[r.scores for r in model.rerank_batch(requests_of(questions))] for model in (in_memory, reopened)]
    # Weights of a file lie at other addresses, by which products of few rows are summed; bf16 would be off by 1e-3.
    for one in (scores[0], seen[-1]):
        assert np.array(one) == pytest.approx(np.array(scores[1]), abs=1e-6)
    assert seen[0] != seen[-1]
    assert "forward" not in vars(policy)


@pytest.mark.parametrize(("rewards", "scale"), [((0.0, 1.0), (1.0, None)), ((1.0, 0.0), (2.0, 0.25))])
def test_a_scale_that_was_fitted_before_goes_with_the_scores_of_before(
    tmp_path: Path, rewards: tuple[float, float], scale: tuple[float, float | None]
) -> None:
    policy, told = wide_cross_encoder(), itertools.chain(rewards, itertools.repeat(rewards[1]))
    policy.temperature, policy.threshold = 2.0, 0.25
    policy.save(tmp_path / "start")
    opened = load(tmp_path / "start", max_length=64)
    assert (opened.temperature, opened.threshold) == (2.0, 0.25)
    config, algorithm = TrainConfig(epochs=1, batch_size=4), RRPO(RRPOConfig(), ToyReader(), answer_reward("f1"))

    def score_dev(_: Any) -> dict[str, float]:
        return {"reward": next(told)}

    start = copy.deepcopy(policy)
    train(policy, start, algorithm, padded_examples(4), config, tmp_path / "run", score_dev=score_dev)
    policy.save(tmp_path / "model")
    saved = load(tmp_path / "model", max_length=64)
    assert (saved.temperature, saved.threshold) == scale


@pytest.mark.usefixtures("one_thread")
def test_in_bf16_the_training_itself_is_in_bf16(tmp_path: Path) -> None:
    """So that the test above does not pass because nothing was rounded."""
    base, after = wide_cross_encoder(), []
    for precision in ({}, {"bf16": True}):
        policy = copy.deepcopy(base)
        config = TrainConfig(epochs=1, batch_size=4, learning_rate=1e-3, trainer=precision)
        algorithm = RRPO(RRPOConfig(samples=2, train_k=1), ToyReader(), answer_reward("f1"))
        train(policy, copy.deepcopy(base), algorithm, padded_examples(8), config, tmp_path)
        after.append(dict(policy.state_dict()))
    assert not same(*after)


class AttentionSeen(TorchFunctionMode):
    """Notes in which precision attention is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention and torch.is_grad_enabled():
            self.dtypes += [tensor.dtype for tensor in args]
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("one_thread")
def test_in_bf16_attention_stays_in_fp32(tmp_path: Path) -> None:
    policy = wide_cross_encoder()
    config = TrainConfig(epochs=1, batch_size=4, trainer={"bf16": True, "use_cpu": True})
    algorithm = RRPO(RRPOConfig(samples=2, train_k=1), ToyReader(), answer_reward("f1"))
    with AttentionSeen() as seen:
        train(policy, copy.deepcopy(policy), algorithm, padded_examples(8), config, tmp_path)
    assert set(seen.dtypes) == {torch.float32}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_in_bf16_activations_may_be_computed_again(reentrant: bool, tmp_path: Path) -> None:
    policy = wide_cross_encoder()
    start = copy.deepcopy(policy)
    policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    config = TrainConfig(epochs=1, batch_size=4, trainer={"bf16": True, "use_cpu": True})
    algorithm = RRPO(RRPOConfig(samples=2, train_k=1), ToyReader(), answer_reward("f1"))
    train(policy, start, algorithm, padded_examples(8), config, tmp_path)
    assert not same(policy.state_dict(), start.state_dict())


def test_resume_refuses_other_settings_and_names_them(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(ResumeError, match=r"loop\.learning_rate is 0\.1, but the run .* began with 0\.3"):
        run(tmp_path, TrainConfig(**{**vars(LOOP), "learning_rate": 0.1}), resume=True)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path)
    folders = sorted_checkpoints(tmp_path)
    assert len(folders) >= 2
    assert newest_checkpoint(tmp_path) == folders[-1]
    weights = folders[-1] / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert not is_complete(folders[-1])
    assert newest_checkpoint(tmp_path) == folders[-2]
    (warning,) = caplog.records
    assert folders[-1].name in warning.getMessage()


def test_a_damaged_checkpoint_with_the_best_weights_is_refused(tmp_path: Path) -> None:
    """Where it is not the newest one, nothing else looks at it."""

    def once() -> torch.Tensor:
        policy = ToyPolicy()
        algorithm = RRPO(RRPOConfig(beta=0.0), ToyReader(), answer_reward("f1"), seed=1)

        def score(module: nn.Module) -> dict[str, float]:
            return {"reward": -abs(float(module.get_parameter("scores")[7].detach()) - 0.7)}

        train(policy, copy.deepcopy(policy), algorithm, examples(20), LOOP, tmp_path, score_dev=score, resume=True)
        return policy.scores.detach()

    kept = once()
    assert torch.equal(once(), kept)
    (best, *_, newest) = sorted_checkpoints(tmp_path)
    assert torch.equal(load_file(best / "model.safetensors")["scores"], kept)
    assert best != newest
    weights = best / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(ResumeError, match=rf"{best.name}, whose weights are the best on dev, is damaged.*--overwrite"):
        once()
    assert torch.load(newest / "scheduler.pt", weights_only=True)  # nothing was removed


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"step": 3', '"step": 2', 1),
        lambda text: text.replace("0.", "1.", 1),
        lambda text: text.replace("\n", " ", 1),
        lambda text: "",
    ],
    ids=["torn", "step", "value", "lines joined", "empty"],
)
def test_lines_of_the_log_that_are_damaged_are_written_anew(tmp_path: Path, damage: Callable[[str], str]) -> None:
    run(tmp_path)
    log = tmp_path / "metrics.jsonl"
    before, whole = rows_of(tmp_path), log.read_text()
    log.write_text(damage(whole))
    assert log.read_text() != whole
    run(tmp_path, resume=True)
    assert rows_of(tmp_path) == before


def test_a_resume_without_a_whole_checkpoint_removes_nothing(tmp_path: Path) -> None:
    run(tmp_path)
    before = sorted_checkpoints(tmp_path)
    for folder in before:
        (folder / "manifest.json").unlink()
    with pytest.raises(ResumeError, match=r"No checkpoint in .* is complete.*--overwrite begins the run anew"):
        run(tmp_path, resume=True)
    assert sorted_checkpoints(tmp_path) == before
    assert rows_of(tmp_path)


def test_an_earlier_run_stays_until_training_begins(tmp_path: Path) -> None:
    """Some optimizers are found missing only when the Trainer makes them."""
    run(tmp_path)
    before = sorted_checkpoints(tmp_path), rows_of(tmp_path)
    with pytest.raises(ConfigurationError, match="optim"):
        run(tmp_path, replace(LOOP, trainer={"optim": "adamw_bnb_8bit"}))
    assert (sorted_checkpoints(tmp_path), rows_of(tmp_path)) == before


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_that_another_process_makes_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    run(tmp_path)
    before = sorted_checkpoints(tmp_path), rows_of(tmp_path)
    monkeypatch.setattr(ToyReader, "answer", lambda *_: pytest.fail("the reader was asked"))
    with held_elsewhere(tmp_path), pytest.raises(StorageError, match="is being written by process 7 on moon"):
        run(tmp_path, resume=resume)
    assert (sorted_checkpoints(tmp_path), rows_of(tmp_path)) == before


def test_a_query_id_that_comes_twice_is_refused(tmp_path: Path) -> None:
    policy = ToyPolicy()
    with pytest.raises(DataError, match="Query id 'q1' appears more than once in the training questions"):
        train(policy, policy, Supervised(), [*examples(3), examples(2)[1]], LOOP, tmp_path)


def test_without_a_reader_labels_choose_the_weights(tmp_path: Path) -> None:
    policy = ToyPolicy()
    config = TrainConfig(epochs=6, batch_size=4, learning_rate=0.3, eval_steps=10)
    dev = label_scorer(examples(20))
    before = dev(policy)["reward"]
    result = train(policy, Unasked(), Supervised(), examples(20), config, tmp_path, score_dev=dev)
    assert (result.dev_before, result.dev_best) == (before, 1.0)
    unlabelled = [Example(e.query, e.candidates, e.answers) for e in examples(4)]
    with pytest.raises(DataError, match=r"None of the 4 dev questions has a relevant document.*--dev-qrels"):
        label_scorer(unlabelled)


def test_resuming_a_finished_run_trains_no_further_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy, result = run(tmp_path)
    assert not caplog.records
    again, second = run(tmp_path, resume=True)
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.endswith("has ended (10 of 10 steps): nothing is left to train, the weights are those it came to.")
    assert second.steps == result.steps
    assert torch.equal(policy.scores, again.scores)


@pytest.mark.parametrize(
    ("length", "inner_epochs", "steps"),
    [
        ({"epochs": 1.5}, 1, 8),
        ({"epochs": 1.5}, 2, 16),  # 15 is half a rollout
        ({"trainer": {"max_steps": 7}}, 1, 7),
        ({"trainer": {"max_steps": 7}}, 2, 8),
    ],
)
def test_a_finished_run_of_any_length_is_left_as_it_is(
    tmp_path: Path, length: dict[str, Any], inner_epochs: int, steps: int
) -> None:
    """Evaluations every 5 or 6 steps, so the last step has one of its own, once."""
    loop = {"batch_size": 4, "learning_rate": 0.01, "eval_steps": 5}
    config, rrpo = TrainConfig(**{**loop, **length}), RRPOConfig(beta=0.0, inner_epochs=inner_epochs)
    policy, result = run(tmp_path, config, rrpo)
    assert result.steps == steps
    assert [row["step"] for row in rows_of(tmp_path) if "eval_reward" in row].count(steps) == 1
    before = (tmp_path / "metrics.jsonl").read_text()
    for _ in range(2):
        again, second = run(tmp_path, config, rrpo, resume=True)
        assert second.steps == steps
        assert (second.best_step, second.dev_best) == (result.best_step, result.dev_best)
        assert second.reader_calls == result.reader_calls
        assert torch.equal(policy.scores, again.scores)
        assert (tmp_path / "metrics.jsonl").read_text() == before


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("step", [4, 7, 9])
def test_a_resumed_run_with_inner_epochs_is_bit_equal(tmp_path: Path, step: int) -> None:
    config = TrainConfig(epochs=1.5, batch_size=4, learning_rate=0.3, eval_steps=3)
    rrpo = RRPOConfig(beta=0.1, inner_epochs=2)
    run(tmp_path / "whole", config, rrpo)
    with pytest.raises(StoppedError):
        run(tmp_path / "broken", config, rrpo, callbacks=(stop_at(step),))
    run(tmp_path / "broken", config, rrpo, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_inner_epochs_need_questions_for_one_rollout(tmp_path: Path) -> None:
    config = TrainConfig(batch_size=2, accumulation=2)
    with pytest.raises(TrainingError, match=r"a rollout takes 4 questions .* there are 3 for training"):
        run(tmp_path, config, RRPOConfig(inner_epochs=2), count=3)


def with_dev(folder: Path, config: TrainConfig, rewards: Sequence[float] = (), **more: Any) -> TrainResult:
    """A run with planned dev rewards, 0 when they are used up."""
    policy, planned = ToyPolicy(), iter(rewards)
    algorithm = RRPO(RRPOConfig(beta=0.0), ToyReader(), answer_reward("f1"))

    def score_dev(module: Any) -> dict[str, float]:
        return {"reward": next(planned, 0.0)}

    return train(policy, copy.deepcopy(policy), algorithm, examples(20), config, folder, score_dev=score_dev, **more)


@pytest.mark.parametrize(
    ("patience", "rewards", "steps"),
    [
        (1, [], 3),
        (2, [], 6),
        (2, [0.0, 0.0, 1.0, 1.0, 0.5, 2.0], 12),  # the gain at step 6 starts the count anew
        (1, [0.0, 1.0, 2.0, 3.0, 3.0], 12),
        (0, [], 30),
    ],
)
def test_patience_counts_evaluations_after_the_first(
    tmp_path: Path, patience: int, rewards: list[float], steps: int
) -> None:
    config = TrainConfig(epochs=6, batch_size=4, eval_steps=3, patience=patience)
    result, times = with_dev(tmp_path, config, rewards), "1 evaluation" if patience == 1 else f"{patience} evaluations"
    assert result.steps == steps
    assert result.stopped_early == (
        f"Training stopped at step {steps} of 30: {times} without a better dev reward (loop.patience)."
        if patience
        else None
    )


def test_patience_that_is_used_up_at_the_last_step_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = with_dev(tmp_path, TrainConfig(epochs=1, batch_size=4, eval_steps=5, patience=1))
    assert (result.steps, result.stopped_early) == (5, None)
    assert "Training stopped" not in caplog.text


def test_best_weights_that_are_damaged_are_refused_before_anything_is_paid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run would read to its end, and have nothing to end with."""
    config = TrainConfig(batch_size=4, eval_steps=3)
    with pytest.raises(StoppedError):
        with_dev(tmp_path, config, [0.0, 1.0], callbacks=[stop_at(8)])
    (tmp_path / "checkpoint-3" / "model.safetensors").write_bytes(b"damaged")
    monkeypatch.setattr(ToyReader, "answer", lambda *_: pytest.fail("the reader was asked"))
    before = rows_of(tmp_path)
    with pytest.raises(ResumeError, match=r"checkpoint-3, whose weights are the best on dev, is damaged"):
        with_dev(tmp_path, config, resume=True)
    assert rows_of(tmp_path) == before
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-6"


def test_what_a_resumed_run_saves_is_its_newest(tmp_path: Path) -> None:
    """A damaged checkpoint of a later step would be kept in its place."""
    config = TrainConfig(batch_size=4, eval_steps=3, trainer={"save_total_limit": 1})
    asked = itertools.count()
    with pytest.raises(StoppedError):
        with_dev(tmp_path, config, [0.0, 1.0], callbacks=[stop_at(8)])
    assert [step_of(folder) for folder in sorted_checkpoints(tmp_path)] == [3, 6]  # 3 is the best
    (tmp_path / "checkpoint-6" / "manifest.json").unlink()
    with pytest.raises(LimitReachedError, match=r"Enough\. All is saved at step 4 "):
        with_dev(tmp_path, config, resume=True, may_go_on=lambda _: "Enough." if next(asked) else None)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    assert [step_of(folder) for folder in sorted_checkpoints(tmp_path)] == [3, 4]


@pytest.mark.parametrize("resume", [True, False])
def test_halves_of_checkpoints_go(tmp_path: Path, resume: bool) -> None:
    """Whether or not the run comes to their steps again."""
    with pytest.raises(StoppedError):
        run(tmp_path, callbacks=(stop_at(4),))
    half = tmp_path / ".checkpoint-5.partial" / "checkpoint-5"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"torn")
    run(tmp_path, resume=resume)
    assert not half.parent.exists()


def test_patience_goes_through_a_resume(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two of three evaluations without a gain lie before the break; and what has run out of patience stays so."""
    config = TrainConfig(epochs=6, batch_size=4, eval_steps=2, patience=3)
    whole = with_dev(tmp_path / "whole", config)
    assert whole.steps == 6
    with pytest.raises(StoppedError):
        with_dev(tmp_path / "broken", config, callbacks=[stop_at(5)])
    assert [record.getMessage() for record in caplog.records] == [whole.stopped_early]
    for _ in range(2):
        resumed = with_dev(tmp_path / "broken", config, resume=True)
        assert (resumed.steps, resumed.stopped_early) == (6, whole.stopped_early)
        assert_same_run(tmp_path / "whole", tmp_path / "broken")
    goes_on = "Goes on from checkpoint-4; any later steps are made again, with the answers that the cache has."
    assert [record.getMessage() for record in caplog.records][1:3] == [goes_on, whole.stopped_early]
    assert len(caplog.records) == 4  # of a run that has ended nothing is told twice
    assert "(6 of 30 steps, loop.patience 3 is used up): nothing is left to train" in caplog.records[-1].getMessage()


def test_the_device_is_that_of_the_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here without a GPU: one that is there must not draw a policy away from the CPU, nor four share a batch."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    moved: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", moved.append)
    assert _training_arguments(TrainConfig(), tmp_path, False, "cpu").device == torch.device("cpu")
    arguments = _training_arguments(TrainConfig(), tmp_path, False, "cpu")
    vars(arguments).update(_setup_devices=torch.device("cuda:0"), _n_gpu=4)
    _keep_to_one_device(arguments, torch.device("cuda:1"))
    assert (arguments.n_gpu, arguments.device, moved) == (1, torch.device("cuda:1"), [torch.device("cuda:1")])


def test_failed_reads_are_masked_counted_and_above_a_threshold_stop_the_run(tmp_path: Path) -> None:
    def once(fail_every: int, allowed: float) -> None:
        policy = ToyPolicy()
        algorithm = RRPO(RRPOConfig(max_failed_reads=allowed), ToyReader(fail_every), answer_reward("f1"))
        train(policy, copy.deepcopy(policy), algorithm, examples(20), LOOP, tmp_path)

    once(fail_every=20, allowed=0.2)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sum(row.get("failed_reads", 0) for row in rows) > 0
    assert sum(row.get("masked_steps", 0) for row in rows) > 0
    with pytest.raises(ReaderError, match=r"failed on .* --resume"):
        once(fail_every=2, allowed=0.2)


class FailsAfter(ToyReader):
    """Answers the first `good` rollouts, then no more."""

    def __init__(self, good: int) -> None:
        super().__init__()
        self.good = good

    def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
        self.good -= 1
        return [ReadFailed("planned") for _ in contexts] if self.good < 0 else super().answer(contexts)


@pytest.mark.parametrize("good", [0, 2])
def test_when_every_read_fails_nothing_moves(tmp_path: Path, good: int) -> None:
    """Neither by weight decay, nor by the KL to a reference that is elsewhere, nor by momentum of earlier steps."""
    policy, reference = ToyPolicy(), ToyPolicy()
    with torch.no_grad():
        reference.scores.neg_()
    seen = [policy.scores.detach().clone()]

    class Remember(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            seen.append(policy.scores.detach().clone())

    algorithm = RRPO(RRPOConfig(max_failed_reads=1.0), FailsAfter(good), answer_reward("f1"))
    no_warmup = {"warmup_steps": 0}  # its first step has a learning rate of 0
    config = TrainConfig(epochs=1, batch_size=4, learning_rate=0.3, eval_steps=5, trainer=no_warmup)
    train(policy, reference, algorithm, examples(20), config, tmp_path, callbacks=[Remember()])
    assert len(seen) == 6
    assert [torch.equal(*pair) for pair in itertools.pairwise(seen)] == [False] * good + [True] * (5 - good)


class Worthless:
    """A reward that never has a value."""

    name = "worthless"

    def __call__(self, outcomes: Sequence[Outcome]) -> list[RewardValue]:
        return [RewardValue(None)] * len(outcomes)


def test_a_reward_without_values_on_dev_is_not_the_readers_fault(tmp_path: Path) -> None:
    """Dev is scored before the first step, so that a reward that never works is met here."""
    policy = ToyPolicy()
    algorithm = RRPO(RRPOConfig(), ToyReader(), Worthless())
    score = dev_scorer(examples(60), ToyReader(), Worthless(), 3)
    with pytest.raises(RewardError, match=r"^Reward 'worthless' gave no value for 60 of 60 dev answers; at most 10%"):
        train(policy, copy.deepcopy(policy), algorithm, examples(20), LOOP, tmp_path, score_dev=score)
    half = dev_scorer(examples(4), ToyReader(fail_every=2), Worthless(), 3)
    with pytest.raises(RewardError, match=r"no value for 2 of 2 dev answers; at most 50%.*begin anew with --overwrite"):
        half(policy)
    for reader, found in ((ToyReader(), "0 reads failed, 4 answers have no value"), (FailsAfter(0), "4 reads failed")):
        whatever = dev_scorer(examples(4), reader, Worthless(), 3, max_failed_reads=1.0)
        with pytest.raises(TrainingError, match=rf"None of the 4 dev questions has a reward \({found}"):
            whatever(policy)


@pytest.mark.parametrize(
    ("failed", "of", "allowed", "stops"),
    [
        (99, 100, 0.1, True),
        (11, 100, 0.1, True),
        (10, 100, 0.1, False),
        (11, 100, 0.2, False),
        (3, 4, 0.1, True),
        (2, 4, 0.1, False),
        (3, 4, 0.8, False),
    ],
)
def test_dev_is_not_judged_by_the_few_reads_that_succeed(failed: int, of: int, allowed: float, stops: bool) -> None:
    class Broken(ToyReader):
        def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
            return [ReadFailed("planned")] * failed + [Answer("seven")] * (len(contexts) - failed)

    score = dev_scorer(examples(of), Broken(), answer_reward("f1"), 3, max_failed_reads=allowed)
    if stops:
        with pytest.raises(ReaderError, match=rf"'toy' failed on {failed} of {of} dev reads.* --resume"):
            score(ToyPolicy())
    else:
        read = {"reward": 1.0, "holdout": 1.0, "failed_reads": failed, "reader_calls": of, "cache_hits": 0}
        assert score(ToyPolicy()) == read


def test_answers_of_the_cache_on_dev_are_counted_too(tmp_path: Path) -> None:
    class Kept(ToyReader):
        def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
            return [Answer(r.text, paid=False) for r in super().answer(contexts) if isinstance(r, Answer)]

    policy, reward = ToyPolicy(), answer_reward("f1")
    algorithm = RRPO(RRPOConfig(), ToyReader(), reward)  # pays for all
    score = dev_scorer(examples(4), Kept(), reward, 3)
    result = train(policy, copy.deepcopy(policy), algorithm, examples(20), LOOP, tmp_path, score_dev=score)
    evaluations = [row["eval_cache_hits"] for row in rows_of(tmp_path) if "eval_cache_hits" in row]
    assert evaluations == [4] * 5  # before training, at steps 3, 6, 9 and at the end
    assert result.cache_hits == 20


def test_reads_on_dev_are_counted_too(tmp_path: Path) -> None:
    reader, policy, reward = ToyReader(), ToyPolicy(), answer_reward("f1")
    algorithm, score = RRPO(RRPOConfig(), reader, reward), dev_scorer(examples(4), reader, reward, 3)
    result = train(policy, copy.deepcopy(policy), algorithm, examples(20), LOOP, tmp_path, score_dev=score)
    assert result.reader_calls == reader.calls
    assert [row["eval_reader_calls"] for row in rows_of(tmp_path) if "eval_reader_calls" in row] == [4] * 5


class TiedPolicy(ToyPolicy):
    """The same weights under two names, as encoder and decoder of some models share their embeddings, and two halves of
    one tensor, as some models cut their queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.again = self.scores
        self.left, self.right = (nn.Parameter(half) for half in torch.zeros(4).chunk(2))


@pytest.mark.usefixtures("one_thread")
def test_tied_weights_are_saved_and_resumed(tmp_path: Path) -> None:
    def once(folder: Path, **more: Any) -> TiedPolicy:
        policy = TiedPolicy()
        algorithm = RRPO(RRPOConfig(beta=0.0), ToyReader(), answer_reward("f1"))
        train(policy, copy.deepcopy(policy), algorithm, examples(20), LOOP, folder, **more)
        return policy

    with pytest.raises(StoppedError):
        once(tmp_path / "broken", callbacks=(stop_at(4),))
    policy = once(tmp_path / "broken", resume=True)
    assert policy.again is policy.scores
    assert torch.equal(policy.scores, once(tmp_path / "whole").scores)


def test_a_tracker_gets_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    run(tmp_path / "run", TrainConfig(**{**vars(LOOP), "trainer": {"report_to": ["tensorboard"]}}))
    assert any(b"reward" in path.read_bytes() for path in (tmp_path / "board").rglob("events.out.tfevents.*"))


def test_weights_that_are_never_better_on_dev_are_not_kept(tmp_path: Path) -> None:
    policy = ToyPolicy()
    before = policy.scores.detach().clone()

    def score_dev(module: torch.nn.Module) -> dict[str, float]:
        return {"reward": 1.0 if torch.equal(policy.scores, before) else 0.0}

    algorithm = RRPO(RRPOConfig(beta=0.0), ToyReader(), answer_reward("f1"))
    result = train(policy, copy.deepcopy(policy), algorithm, examples(20), LOOP, tmp_path, score_dev=score_dev)
    assert result.best_step == 0
    assert result.steps == 10
    assert torch.equal(policy.scores, before)


class Unasked(ToyPolicy):
    def forward(self, requests: Sequence[RerankRequest]) -> torch.Tensor:
        raise AssertionError("labels ask nothing of the reference")


def test_supervised_learns_from_labels_alone(tmp_path: Path) -> None:
    policy = ToyPolicy()
    config = TrainConfig(epochs=6, batch_size=4, learning_rate=0.3, eval_steps=10)
    train(policy, Unasked(), Supervised(), examples(20), config, tmp_path)
    assert int(policy.scores.argmax()) == 7


def test_candidate_lists_of_one_are_nothing_to_learn_from(tmp_path: Path) -> None:
    policy = ToyPolicy()
    lone = [Example(Query("q", "?"), (Document("1", "one"),), ("one",))]
    with pytest.raises(TrainingError, match="has two candidates"):
        train(policy, copy.deepcopy(policy), Supervised(), lone, LOOP, tmp_path)


def test_labels_that_name_no_candidate_are_nothing_to_learn_from(tmp_path: Path) -> None:
    policy = ToyPolicy()
    unlabelled = [Example(e.query, e.candidates, e.answers, {"99": 1}) for e in examples(4)]
    with pytest.raises(TrainingError, match="has a relevant candidate"):
        train(policy, copy.deepcopy(policy), Supervised(), unlabelled, LOOP, tmp_path)


@pytest.mark.parametrize("argument", ["fsdp", "logging_steps"])
def test_unsupported_training_arguments_are_named(argument: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{argument} cannot be set; wanted some of"):
        TrainConfig(trainer={argument: 5})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight_decay": "light"}, r"trainer\.weight_decay is 'light'; wanted a number, 0 or more"),
        ({"weight_decay": True}, "is True; wanted a number"),
        ({"weight_decay": math.nan}, "is nan; wanted a number"),
        ({"warmup_steps": -1}, "is -1; wanted a number, 0 or more"),
        ({"adam_beta2": 1}, "is 1; wanted a number from 0 to below 1"),
        ({"adam_epsilon": 0}, "is 0; wanted a number above 0"),
        ({"bf16": "maybe"}, "is 'maybe'; wanted true or false"),
        ({"bf16": 1}, "is 1; wanted true or false"),
        ({"max_steps": "2.5"}, r"is '2\.5'; wanted a whole number, -1 or more"),
        ({"save_total_limit": -1}, "is -1; wanted a whole number, 0 or more, or null"),
        ({"lr_scheduler_kwargs": 3}, "is 3; wanted settings by name"),
        ({"report_to": [1]}, r"is \[1\]; wanted the name of a tracker"),
        ({"run_name": 7}, "is 7; wanted text"),
        ({"optim": ""}, "is ''; wanted the name of an optimizer"),
    ],
)
def test_values_of_training_arguments_are_checked_with_the_settings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TrainConfig(trainer=arguments)


def test_numbers_that_came_as_text_are_numbers() -> None:
    given = {"weight_decay": "1e-4", "max_steps": "1e3", "lr_scheduler_kwargs": {"min_lr": "1e-6", "decay": "linear"}}
    wanted = {"weight_decay": 1e-4, "max_steps": 1000, "lr_scheduler_kwargs": {"min_lr": 1e-6, "decay": "linear"}}
    assert TrainConfig(trainer=given).trainer == wanted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optim": "nosuch"}, "optim is 'nosuch'; wanted one of adamw_torch, .*sgd"),
        ({"lr_scheduler_type": "nosuch"}, "lr_scheduler_type is 'nosuch'; wanted one of linear, cosine"),
        (
            {"optim": "adamw_torch_xla"},
            r"optimizer cannot be made with optim 'adamw_torch_xla' \(.*torch_xla.*\); wanted",
        ),
        ({"lr_scheduler_kwargs": {"nosuch": 1}}, r"schedule cannot be made with lr_scheduler_kwargs .*\(.*'nosuch'\)"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, r"cannot be made with .* \(.*num_decay_steps.*\); wanted"),
        ({"bf16": True, "fp16": True}, r"cannot be made with bf16 True, fp16 True \(.*\); wanted .* that go together"),
        ({"fp16": True, "use_cpu": True}, "fp16 is True, but the device is the CPU; wanted a GPU. .* take bf16"),
        (
            {"report_to": "nosuch"},
            r"names 'nosuch', which cannot be used \(.*\); wanted a tracker .* leave report_to out",
        ),
        ({"report_to": ["tensorboard", "flyte"]}, r"names 'flyte', .*\(.* flytekit.*\); wanted a tracker"),
    ],
)
def test_what_only_transformers_knows_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    """The packages of adamw_torch_xla and flyte are not among our extras."""
    monkeypatch.setattr(ToyReader, "answer", lambda *_: pytest.fail("the reader was asked"))
    with pytest.raises(ConfigurationError, match=message):
        run(tmp_path, TrainConfig(**{**vars(LOOP), "trainer": arguments}))
    assert not (tmp_path / "metrics.jsonl").exists()


class Watch(TrainerCallback):
    """What each step was done with."""

    def __init__(self) -> None:
        self.optimizers: list[str] = []
        self.groups: list[dict[str, Any]] = []
        self.rates: list[float] = []
        self.weights: list[torch.Tensor] = []
        self.workers = -1

    def on_step_begin(self, args, state, control, *, model, optimizer, train_dataloader, **kwargs) -> None:
        self.optimizers.append(type(optimizer.optimizer).__name__)
        self.groups.append({name: value for name, value in optimizer.param_groups[0].items() if name != "params"})
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.weights.append(model.scores.detach().clone())
        self.workers = train_dataloader.num_workers


def watched(folder: Path, **arguments: Any) -> Watch:
    """Four steps on labels, so that each has a gradient; the fourth is only seen to begin."""
    given = {"max_steps": 4, "warmup_steps": 0, "weight_decay": 0.0, **arguments}
    config = TrainConfig(batch_size=4, learning_rate=0.3, eval_steps=1, trainer=given)
    watch = Watch()
    train(ToyPolicy(), ToyPolicy(), Supervised(), examples(20), config, folder, callbacks=[watch])
    assert all(not torch.equal(*pair) for pair in itertools.pairwise(watch.weights))
    return watch


@pytest.mark.parametrize(
    ("optim", "made"),
    [
        ("adamw_torch", "AdamW"),
        ("adafactor", "Adafactor"),
        ("sgd", "SGD"),
        ("adagrad", "Adagrad"),
        ("rmsprop", "RMSprop"),
    ],
)
def test_the_optimizer_is_the_one_that_was_named(tmp_path: Path, optim: str, made: str) -> None:
    assert watched(tmp_path, optim=optim).optimizers == [made] * 4


def test_settings_of_adam_reach_it(tmp_path: Path) -> None:
    given = {"adam_beta1": 0.5, "adam_beta2": 0.6, "adam_epsilon": "1e-3", "weight_decay": "1e-2"}
    for group in watched(tmp_path, **given).groups:
        assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.5, 0.6), 1e-3, 1e-2)


def test_the_schedule_is_the_one_that_was_named(tmp_path: Path) -> None:
    """A quarter of a cosine's wave; by default it is half of one."""
    watch = watched(tmp_path, lr_scheduler_type="cosine", lr_scheduler_kwargs={"num_cycles": "0.25"})
    assert watch.rates == pytest.approx([0.3 * (1 + math.cos(math.pi / 2 * step / 4)) / 2 for step in range(4)])


def test_longer_gradients_are_shortened_and_0_leaves_them(tmp_path: Path) -> None:
    """With plain gradient descent a step is as long as gradient times rate."""

    def steps(longest: float) -> list[float]:
        watch = watched(tmp_path, optim="sgd", lr_scheduler_type="constant", max_grad_norm=longest)
        return [float((after - before).norm()) for before, after in itertools.pairwise(watch.weights)]

    assert steps(1e-3) == pytest.approx([0.3 * 1e-3] * 3, rel=1e-3)
    assert min(steps(0)) > 0.1


@pytest.mark.parametrize(("limit", "kept"), [(1, [4]), (3, [2, 3, 4]), (0, [1, 2, 3, 4]), (None, [1, 2, 3, 4])])
def test_so_many_checkpoints_are_kept(tmp_path: Path, limit: int | None, kept: list[int]) -> None:
    watched(tmp_path, save_total_limit=limit)
    assert [step_of(folder) for folder in sorted_checkpoints(tmp_path)] == kept


def test_the_tracker_calls_the_run_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    watched(tmp_path / "run", report_to="tensorboard", run_name="seven-at-noon")
    assert any(b"seven-at-noon" in path.read_bytes() for path in (tmp_path / "board").rglob("events.out.tfevents.*"))


@pytest.mark.usefixtures("one_thread")
def test_worker_processes_change_nothing_of_a_run(tmp_path: Path) -> None:
    """They fetch ahead, over the end of an epoch and over the break."""

    def config(workers: int) -> TrainConfig:
        given = {"dataloader_num_workers": workers}
        return TrainConfig(batch_size=4, learning_rate=0.3, eval_steps=3, trainer=given)

    assert watched(tmp_path / "watched", dataloader_num_workers=1).workers == 1
    run(tmp_path / "whole", config(0))
    with pytest.raises(StoppedError):
        run(tmp_path / "broken", config(1), callbacks=(stop_at(7),))
    run(tmp_path / "broken", config(1), resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


class InfiniteSlope(ToyPolicy):
    """Scores that are numbers; the gradient is none: the square root is infinitely steep at 0."""

    def forward(self, requests: Sequence[RerankRequest]) -> torch.Tensor:
        return super().forward(requests) + (self.scores - self.scores.detach()).sum().sqrt()


class NoLoss(Supervised):
    """Its losses of these numbers, from 1 on, are no numbers."""

    def __init__(self, *bad: int) -> None:
        self.bad = bad
        self.calls = 0

    def loss(self, scores_QD: torch.Tensor, rollout: Any) -> tuple[torch.Tensor, dict[str, float]]:
        self.calls += 1
        loss, metrics = super().loss(scores_QD, rollout)
        return loss * (math.nan if self.calls in self.bad else 1.0), metrics


def learn_labels(policy: ToyPolicy, algorithm: Supervised, folder: Path, **more: Any) -> torch.Tensor:
    """The weights before."""
    before = policy.scores.detach().clone()
    given = {"warmup_steps": 0, "save_total_limit": 0}
    config = TrainConfig(batch_size=4, learning_rate=0.3, eval_steps=1, trainer=given)
    train(policy, ToyPolicy(), algorithm, examples(20), config, folder, **more)
    return before


def alarms_told(folder: Path) -> list[tuple[str, int]]:
    rows = [json.loads(line) for line in (folder / "alarms.jsonl").read_text("utf-8").splitlines()]
    return [(row["name"], row["step"]) for row in rows]


def test_a_loss_that_is_no_number_costs_its_step_alone(tmp_path: Path) -> None:
    policy = ToyPolicy()
    learn_labels(policy, NoLoss(3, 4, 6, 7, 8, 9), tmp_path)
    skipped = [row["skipped_steps"] for row in rows_of(tmp_path) if "skipped_steps" in row]
    assert skipped == [0, 0, 1, 1, 0, 1, 1, 1, 1, 0]
    weights = [load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors")["scores"] for step in (9, 10)]
    assert torch.isfinite(weights[1]).all()
    assert not torch.equal(*weights)
    assert alarms_told(tmp_path) == [("not_a_number", 3)]


def test_a_resumed_run_without_alarms_has_no_file_of_them(tmp_path: Path) -> None:
    learn_labels(ToyPolicy(), Supervised(), tmp_path)
    (tmp_path / "alarms.jsonl").write_text("damage\n", "utf-8")
    learn_labels(ToyPolicy(), Supervised(), tmp_path, resume=True)
    assert not (tmp_path / "alarms.jsonl").exists()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_that_is_no_number_leaves_the_weights_as_they_were(tmp_path: Path, accumulation: int) -> None:
    """With two passes a step the other one is left out with it."""
    policy = ToyPolicy()
    config = TrainConfig(epochs=0.2, batch_size=2, accumulation=accumulation, learning_rate=0.3, eval_steps=1)
    train(policy, ToyPolicy(), NoLoss(*range(1, 5, accumulation)), examples(20), config, tmp_path)
    assert torch.equal(policy.scores, ToyPolicy().scores)


def test_five_steps_in_a_row_that_are_no_numbers_end_the_run(tmp_path: Path) -> None:
    message = (
        r"^Loss is nan at step 6, the last of 5 in a row that were left out; wanted finite numbers\. Lower .*now 0\.3"
    )
    with pytest.raises(TrainingError, match=message):
        learn_labels(ToyPolicy(), NoLoss(*range(3, 9)), tmp_path)
    assert step_of(sorted_checkpoints(tmp_path)[-1]) == 6


@pytest.mark.parametrize("broken_from", [0, 2])
def test_scores_of_dev_that_are_no_numbers_are_those_of_the_training(tmp_path: Path, broken_from: int) -> None:
    """Weights may stay finite while what they compute overflows. Before the first step it is the model's own fault."""
    asked = iter(range(10))

    def score_dev(policy: nn.Module) -> dict[str, float]:
        if next(asked) >= broken_from:
            raise ModelError("Model 'reference' scored document 'd' of query 'q' nan; wanted a finite number.")
        return {"reward": 0.5}

    config = TrainConfig(epochs=1, batch_size=4, eval_steps=2, learning_rate=0.3)
    expected = TrainingError if broken_from else ModelError
    message = r"^The model in training .* after step 4 of 5; .*Lower the learning rate \(now 0\.3\)"
    with pytest.raises(expected, match=message if broken_from else "^Model 'reference'") as raised:
        train(ToyPolicy(), ToyPolicy(), Supervised(), examples(20), config, tmp_path, score_dev=score_dev)
    assert raised.value.exit_code == (6 if broken_from else 5)


def test_steps_that_are_left_out_are_counted_over_a_break(tmp_path: Path) -> None:
    """Three before it and two after it make five."""
    with pytest.raises(StoppedError):
        learn_labels(ToyPolicy(), NoLoss(*range(1, 9)), tmp_path, callbacks=(stop_at(3),))
    with pytest.raises(TrainingError, match="Loss is nan at step 4, the last of 5"):
        learn_labels(ToyPolicy(), NoLoss(*range(1, 9)), tmp_path, resume=True)


def test_a_gradient_that_is_no_number_stays_out_of_the_weights(tmp_path: Path) -> None:
    policy = InfiniteSlope()
    with pytest.raises(TrainingError, match=r"^Gradient norm is (nan|inf) at step 4, the last of 5 in a row"):
        learn_labels(policy, Supervised(), tmp_path)
    assert torch.equal(policy.scores, ToyPolicy().scores)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers_are_never_read_for(tmp_path: Path, value: float) -> None:
    class Lost(ToyPolicy):
        def forward(self, requests: Sequence[RerankRequest]) -> torch.Tensor:
            return super().forward(requests) + (value if requests[0].query.query_id in ("q1", "q2") else 0.0)

    policy, reader = Lost(), ToyReader()
    algorithm = RRPO(RRPOConfig(), reader, answer_reward("f1"))
    config = replace(LOOP, batch_size=1, epochs=1, trainer={})
    train(policy, ToyPolicy(), algorithm, examples(8), config, tmp_path)
    rows = [row for row in rows_of(tmp_path) if "loss" in row]
    skipped = [row for row in rows if row["skipped_steps"]]
    assert (len(rows), len(skipped)) == (8, 2)
    assert all("reader_calls" not in row for row in skipped)
    assert torch.isfinite(policy.scores).all()
    assert not torch.equal(policy.scores, ToyPolicy().scores)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scale", ["window", "question"])
def test_a_reward_that_is_no_number_is_none(tmp_path: Path, value: float, scale: Literal["window", "question"]) -> None:
    """One of ten; in training its steps are masked, on dev it is missing from the mean."""
    right, count = answer_reward("f1"), itertools.count()

    class Slipping:
        name = "slipping"

        def __call__(self, outcomes: Sequence[Outcome]) -> list[RewardValue]:
            return [RewardValue(value) if next(count) % 10 == 0 else price for price in right(outcomes)]

    policy, reward, reader = ToyPolicy(), Slipping(), ToyReader()
    algorithm = RRPO(RRPOConfig(scale=scale, max_failed_reads=0.2), reader, reward)
    dev = dev_scorer(examples(20), reader, reward, 1, max_failed_reads=0.2)
    train(policy, ToyPolicy(), algorithm, examples(20), LOOP, tmp_path, score_dev=dev)
    rows = rows_of(tmp_path)
    assert sum(row.get("masked_steps", 0) for row in rows) > 0
    assert {row["skipped_steps"] for row in rows if "loss" in row} == {0}
    assert all(row["eval_failed_reads"] == 2 and row["eval_reward"] is not None for row in rows if "eval_reward" in row)
    assert torch.isfinite(policy.scores).all()


def test_where_fp16_scales_the_loss_such_a_gradient_is_left_to_the_scaler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scaler that a GPU gets, here on the CPU: it leaves the step out and halves its scale."""
    scaler = torch.amp.GradScaler("cpu")
    plain = FeedbackTrainer.run

    def with_scaler(trainer: FeedbackTrainer, checkpoint: Path | None) -> None:
        trainer.accelerator.scaler = scaler
        plain(trainer, checkpoint)

    monkeypatch.setattr(FeedbackTrainer, "run", with_scaler)
    policy = InfiniteSlope()
    assert torch.equal(learn_labels(policy, Supervised(), tmp_path), policy.scores)
    assert scaler.get_scale() < 2.0**16


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_run_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Planned, because nothing is forbidden to the superuser that many containers run as."""

    def refuse(path: Path, data: bytes) -> int:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(StorageError, match=rf"cannot be written \({os.strerror(code)}\); wanted .* --name"):
        run(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_a_file_in_the_place_of_the_run_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="cannot be written"):
        run(tmp_path / "file" / "run")


class HeavyPolicy(ToyPolicy):
    """A ToyPolicy with 400 kB of weights that change nothing; Adam keeps another 800 kB for them."""

    def __init__(self) -> None:
        super().__init__()
        self.ballast = torch.nn.Parameter(torch.zeros(100_000))

    def forward(self, requests: Sequence[RerankRequest]) -> torch.Tensor:
        return super().forward(requests) + self.ballast.sum() * 0


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel refuses what goes beyond, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [300_000, 600_000], ids=["safetensors", "torch.save"])
def test_a_checkpoint_for_which_there_is_no_room_leaves_the_last_one_intact(tmp_path: Path, size: int) -> None:
    """The smaller limit stops the weights, the larger one the optimizer's state."""

    def once(resume: bool, callbacks: Sequence[TrainerCallback] = ()) -> None:
        policy = HeavyPolicy()
        algorithm = RRPO(RRPOConfig(beta=0.0), ToyReader(), answer_reward("f1"))
        reference = copy.deepcopy(policy)
        train(policy, reference, algorithm, examples(20), LOOP, tmp_path, resume=resume, callbacks=callbacks)

    with pytest.raises(StoppedError):
        once(False, [stop_at(4)])
    before = {path.name: path.read_bytes() for path in (tmp_path / "checkpoint-3").iterdir()}
    with largest_file(size), pytest.raises(StorageError, match=r"checkpoint-6 cannot be written \(.+\).*--resume"):
        once(True)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    assert {path.name: path.read_bytes() for path in (tmp_path / "checkpoint-3").iterdir()} == before
    assert not list(tmp_path.glob(".checkpoint-*.partial"))
    once(True)
    assert step_of(sorted_checkpoints(tmp_path)[-1]) == 10


@pytest.mark.usefixtures("one_thread")
def test_a_log_for_which_there_is_no_room_is_named_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full from the first checkpoint on."""
    run(tmp_path / "whole")
    broken, plain = tmp_path / "broken", Path.open

    def full(path: Path, *args: Any, **kwargs: Any) -> Any:
        no_room = path.name == "metrics.jsonl" and (broken / "checkpoint-3").exists()
        return plain(Path("/dev/full") if no_room else path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(StorageError, match=r"metrics\.jsonl cannot be written \(.+\); wanted .* with --resume"):
        run(broken)
    monkeypatch.undo()
    assert newest_checkpoint(broken) == broken / "checkpoint-3"
    run(broken, resume=True)
    assert_same_run(tmp_path / "whole", broken)


KILLED_RUNS = """
import os, signal, sys
from pathlib import Path

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from rankwright import training
from tests.test_training import run

torch.set_num_threads(1)
write_manifest, sync_folder = training.write_manifest, training.sync_folder

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def before_the_manifest(folder):
    die() if folder.name == "checkpoint-6" else write_manifest(folder)

def before_the_rename(folder):
    write_manifest(folder)
    if folder.name == "checkpoint-6":
        die()

def after_the_rename(folder):
    die() if (folder / "checkpoint-6").exists() else sync_folder(folder)

for dies in (before_the_manifest, before_the_rename, after_the_rename):
    child = os.fork()
    if not child:
        setattr(training, "sync_folder" if dies is after_the_rename else "write_manifest", dies)
        run(Path(sys.argv[1]) / dies.__name__)
        os._exit(0)
    print(dies.__name__, os.WTERMSIG(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that were killed while they wrote their second checkpoint; one interpreter, because it is slow to start."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", KILLED_RUNS, str(folder)]
    root = Path(__file__).resolve().parent.parent
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    died = {line.split()[0]: int(line.split()[1]) for line in ended.stdout.splitlines() if line.count(" ") == 1}
    names = ("before_the_manifest", "before_the_rename", "after_the_rename")
    assert died == dict.fromkeys(names, signal.SIGKILL), ended.stderr
    return folder


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("place", "aside", "start"),
    [
        ("before_the_manifest", "half", "checkpoint-3"),
        ("before_the_rename", "whole", "checkpoint-3"),
        ("after_the_rename", "gone", "checkpoint-6"),
    ],
)
def test_a_run_killed_while_it_writes_a_checkpoint_resumes_bit_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: Path, place: str, aside: str, start: str
) -> None:
    broken, inner = killed / place, killed / place / ".checkpoint-6.partial" / "checkpoint-6"
    assert (inner.exists(), is_complete(inner)) == (aside != "gone", aside == "whole")
    assert [is_complete(folder) for folder in sorted_checkpoints(broken)] == [True] * (1 if aside != "gone" else 2)
    restored: list[Path] = []
    plain = FeedbackTrainer.restore

    def restore(trainer: FeedbackTrainer, checkpoint: Path) -> None:
        restored.append(checkpoint)
        plain(trainer, checkpoint)

    monkeypatch.setattr(FeedbackTrainer, "restore", restore)
    whole, _ = run(tmp_path / "whole")
    policy, _ = run(broken, resume=True)
    assert restored == [broken / start]
    assert torch.equal(policy.scores, whole.scores)
    assert_same_run(tmp_path / "whole", broken)
