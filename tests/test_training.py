from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from rankwright.algorithms import RRPO, RRPOConfig, Supervised
from rankwright.errors import ConfigurationError, ReaderError, ResumeError, StorageError, TrainingError
from rankwright.rewards import answer_reward
from rankwright.training import (
    TrainConfig,
    TrainResult,
    dev_scorer,
    is_complete,
    newest_checkpoint,
    sorted_checkpoints,
    train,
)
from rankwright.types import Document, Example, Query
from tests.toy import ToyPolicy, ToyReader, examples

LOOP = TrainConfig(
    epochs=2, batch_size=4, learning_rate=0.3, eval_steps=3, top_k=3, seed=1, trainer_arguments={"weight_decay": 0.0}
)


def run(
    folder: Path,
    config: TrainConfig = LOOP,
    rrpo: RRPOConfig | None = None,
    *,
    resume: bool = False,
    callbacks: tuple = (),
    count: int = 20,
) -> tuple[ToyPolicy, TrainResult]:
    policy = ToyPolicy()
    rrpo = rrpo or RRPOConfig(beta=0.0)
    reward = answer_reward("f1")
    algorithm = RRPO(rrpo, ToyReader(), reward, seed=config.seed)
    dev = dev_scorer(examples(4), ToyReader(), reward, config.top_k)
    result = train(
        policy,
        copy.deepcopy(policy),
        algorithm,
        examples(count),
        config,
        folder,
        score_dev=dev,
        settings={"rrpo": rrpo},
        resume=resume,
        callbacks=callbacks,
    )
    return policy, result


def test_rrpo_finds_the_document_that_the_reader_needs(tmp_path: Path) -> None:
    policy, result = run(
        tmp_path, TrainConfig(epochs=8, batch_size=4, learning_rate=0.3, eval_steps=10, top_k=1, seed=1)
    )
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
    ],
)
def test_every_option_learns_the_toy_world(tmp_path: Path, rrpo: RRPOConfig) -> None:
    config = TrainConfig(epochs=8, batch_size=4, learning_rate=0.3, eval_steps=10, top_k=1, seed=1)
    _, result = run(tmp_path, config, rrpo)
    assert result.dev_best == 1.0


def test_inner_epochs_reuse_the_rollout(tmp_path: Path) -> None:
    config = TrainConfig(epochs=4, batch_size=4, inner_epochs=2, learning_rate=0.3, eval_steps=10, top_k=1, seed=1)
    _, result = run(tmp_path, config, RRPOConfig(inner_epochs=2, beta=0.0))
    assert result.steps == 4 * (20 // 4) * 2
    assert result.dev_best == 1.0
    clipped = [json.loads(line).get("clipped_share") for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert max(value for value in clipped if value is not None) > 0


class StoppedError(Exception):
    pass


def stop_at(step: int):
    from transformers import TrainerCallback

    class StopAt(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs) -> None:
            if state.global_step == step:
                raise StoppedError

    return StopAt()


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("step", [1, 3, 5, 7, 10])
def test_a_resumed_run_is_bit_equal_to_an_unbroken_one(tmp_path: Path, step: int, accumulation: int) -> None:
    """20 questions, blocks of 4: an epoch ends at step 5; steps 3 and 5 have a checkpoint just written."""
    torch.set_num_threads(1)
    config = TrainConfig(
        epochs=3,
        batch_size=4 // accumulation,
        accumulation=accumulation,
        learning_rate=0.3,
        eval_steps=1,
        top_k=1,
        seed=3,
    )
    whole, whole_result = run(tmp_path / "whole", config)
    with pytest.raises(StoppedError):
        run(tmp_path / "broken", config, callbacks=(stop_at(step),))
    policy, result = run(tmp_path / "broken", config, resume=True)
    assert torch.equal(policy.scores, whole.scores)
    assert (result.steps, result.best_step, result.reader_calls) == (
        whole_result.steps,
        whole_result.best_step,
        whole_result.reader_calls,
    )
    assert (tmp_path / "broken/metrics.jsonl").read_text() == (tmp_path / "whole/metrics.jsonl").read_text()
    last = f"checkpoint-{whole_result.steps}"
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        one = torch.load(tmp_path / "whole" / last / name, weights_only=False)
        two = torch.load(tmp_path / "broken" / last / name, weights_only=False)
        assert str(one) == str(two), name
    states = [json.loads((tmp_path / r / last / "algorithm.json").read_text()) for r in ("whole", "broken")]
    assert states[0]["algorithm"] == states[1]["algorithm"]


def test_resume_refuses_other_settings_and_names_them(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(ResumeError, match=r"train\.learning_rate is 0\.1, but the run .* began with 0\.3"):
        run(tmp_path, TrainConfig(**{**vars(LOOP), "learning_rate": 0.1}), resume=True)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
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


def test_resuming_a_finished_run_trains_no_further(tmp_path: Path) -> None:
    policy, result = run(tmp_path)
    again, second = run(tmp_path, resume=True)
    assert second.steps == result.steps
    assert torch.equal(policy.scores, again.scores)


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


def test_when_every_read_fails_nothing_moves(tmp_path: Path) -> None:
    policy = ToyPolicy()
    before = policy.scores.detach().clone()
    algorithm = RRPO(RRPOConfig(max_failed_reads=1.0, beta=0.0), ToyReader(fail_every=1), answer_reward("f1"))
    config = TrainConfig(
        epochs=1, batch_size=4, learning_rate=0.3, eval_steps=5, trainer_arguments={"weight_decay": 0.0}
    )
    train(policy, copy.deepcopy(policy), algorithm, examples(20), config, tmp_path)
    assert torch.equal(policy.scores, before)


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


def test_supervised_learns_from_labels(tmp_path: Path) -> None:
    policy = ToyPolicy()
    config = TrainConfig(epochs=6, batch_size=4, learning_rate=0.3, eval_steps=10)
    train(policy, copy.deepcopy(policy), Supervised(), examples(20), config, tmp_path)
    assert int(policy.scores.argmax()) == 7


def test_candidate_lists_of_one_are_nothing_to_learn_from(tmp_path: Path) -> None:
    policy = ToyPolicy()
    lone = [Example(Query("q", "?"), (Document("1", "one"),), ("one",))]
    with pytest.raises(TrainingError, match="has two candidates"):
        train(policy, copy.deepcopy(policy), Supervised(), lone, LOOP, tmp_path)


def test_unsupported_training_arguments_are_named() -> None:
    with pytest.raises(ConfigurationError, match="fsdp cannot be set; wanted some of"):
        TrainConfig(trainer_arguments={"fsdp": "full_shard"})


def test_a_run_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="cannot be written"):
        run(tmp_path / "file" / "run")


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path)
    before = newest_checkpoint(tmp_path)
    assert before is not None

    def full_disk(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rankwright.training.write_manifest", full_disk)
    with pytest.raises(StorageError, match=r"No space left on device.*--resume"):
        run(tmp_path, TrainConfig(**{**vars(LOOP), "epochs": 2}), resume=False)
    assert not list(tmp_path.glob(".checkpoint-*.partial"))
