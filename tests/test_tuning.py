"""GRPO over TRL and SFT, end to end on a decoder of a few thousand weights in the ranking language."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.ranking_language.decoder import LONGEST_COMPLETION, decoder, tokenizer
from benchmarks.ranking_language.language import order_by, prompt, questions, true_levels, written
from rankwright.algorithms.config import TrainConfig
from rankwright.algorithms.generating import GeneratingConfig, GRPOConfig, SFTConfig
from rankwright.algorithms.grpo import PromptRows, TRLReward, prompt_rows
from rankwright.checkpoints import is_complete
from rankwright.errors import ConfigurationError, MissingDependencyError, ResumeError, TrainingError
from rankwright.llms.local import LocalLLM
from rankwright.tuning import (
    LoRA,
    Taught,
    Tuned,
    WholeQuestions,
    greedy,
    plan_of,
    save_tuned,
    tune_by_completions,
    tune_by_reward,
)
from rankwright.types import LLMRequest, Outcome, RewardValue
from tests.cli_kit import ROOT
from tests.training_kit import same

# transformers renames this, and TRL asks for it by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

QUESTIONS = questions(12, 0, window=6)
SMALL = GRPOConfig(rollouts=4, max_completion_length=6, completions_per_pass=8, completions_at_once=5, updates=2)
LOOP = TrainConfig(
    epochs=1,
    batch_size=4,
    learning_rate=0.01,
    eval_steps=2,
    trainer={"lr_scheduler_type": "constant", "warmup_steps": 0},
)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small decoder that has learned nothing."""
    folder = tmp_path_factory.mktemp("start")
    decoder(0, width=16, layers=1).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


class Says:
    """Pays a completion the share of a word among its words; `None` where it is empty. Notes whom it was shown."""

    name = "says"

    def __init__(self, word: str) -> None:
        self.word = word
        self.seen: list[list[str]] = []

    def __call__(self, outcomes: Sequence[Outcome]) -> list[RewardValue]:
        self.seen.append([outcome.group_id for outcome in outcomes])
        words = [outcome.completion.split() for outcome in outcomes]
        shares = [said.count(self.word) / len(said) if said else None for said in words]
        return [RewardValue(share, {} if share is None else {"part": share}) for share in shares]


def rows() -> PromptRows:
    return prompt_rows(QUESTIONS, prompt(), 6)


def run(start: Path, folder: Path, reward: Says | None = None, config: GRPOConfig = SMALL, **more: Any) -> Tuned:
    wrapped = TRLReward(reward or Says("[3]"), prompt(), rows(), config.rollouts)
    loop = more.pop("loop", LOOP)
    return tune_by_reward(start, tokenizer(), wrapped, config, loop, folder, **more)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


# --- order and plan, without TRL


def test_questions_come_whole_and_every_repetition_is_the_same() -> None:
    order = WholeQuestions(questions=5, per_question=3, block=2, rollouts=4, repeats=3, seed=0)
    seen = list(order)
    assert len(seen) == len(order) == 2 * 2 * 3 * 4 * 3
    for start in (0, 72):
        first, *others = [seen[start + at : start + at + 24] for at in (0, 24, 48)]
        assert others == [first, first]
        assert {first.count(row) for row in first} == {4}
        asked = {row // 3 for row in first}
        assert set(first) == {question * 3 + number for question in asked for number in range(3)}
        assert len(asked) == 2


def test_seed_and_epoch_decide_the_order_of_questions() -> None:
    order, again, other = (WholeQuestions(40, 1, 4, 2, 1, seed) for seed in (0, 0, 1))
    first = list(order)
    assert first == list(order) == list(again) != list(other)
    order.epoch = 1
    assert sorted(order) == sorted(first) != list(order)
    order.epoch = 0
    assert list(order) == first


def test_too_few_questions_for_a_generation_are_an_error() -> None:
    with pytest.raises(TrainingError, match=r"takes 4 questions .* but 3 are there"):
        WholeQuestions(3, 1, 4, 2, 1, 0)


@pytest.mark.parametrize(("per_pass", "passes"), [(8, (8, 2)), (7, (4, 4)), (100, (16, 1)), (1, (1, 16))])
def test_a_pass_is_as_large_as_fits_and_the_step_is_the_same(per_pass: int, passes: tuple[int, int]) -> None:
    config = replace(SMALL, completions_per_pass=per_pass, updates=1)
    plan = plan_of(config, LOOP, questions=12, per_question=1)
    assert (plan.per_pass, plan.accumulation) == passes
    assert (plan.cycle, plan.steps, plan.every) == (1, 3, 2)


def test_steps_and_checkpoints_are_whole_generations() -> None:
    config = replace(SMALL, updates=2, iterations=3)
    plan = plan_of(config, replace(LOOP, eval_steps=7), questions=13, per_question=3)
    assert (plan.per_pass * plan.accumulation, plan.cycle) == (4 * 3 * 4 // 2, 6)
    assert (plan.steps, plan.every) == (4 * 6, 12)
    most = replace(LOOP, trainer={"max_steps": 7})
    assert plan_of(config, most, 13, 3).steps == 12


def test_a_generation_that_cannot_be_divided_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match=r"has 16 completions .* wanted a multiple of 3"):
        plan_of(replace(SMALL, updates=3), LOOP, 12, 1)


# --- GRPO


def test_grpo_learns_what_it_is_paid_for_and_sees_whole_questions(start: Path, tmp_path: Path) -> None:
    reward = Says("[3]")
    loop = replace(LOOP, epochs=12, eval_steps=100)
    tuned = run(start, tmp_path, reward, replace(SMALL, updates=1), loop=loop)
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rewards = [row["reward"] for row in logged if "reward" in row]
    assert len(rewards) == tuned.steps == 36
    assert sum(rewards[-6:]) / 6 > sum(rewards[:6]) / 6 + 0.3
    assert logged[0]["malformed"] == 1.0
    for seen in reward.seen:
        assert {seen.count(name) for name in seen} == {SMALL.rollouts}
        assert len(seen) == LOOP.batch_size * SMALL.rollouts
    asked = [name for seen in reward.seen[:3] for name in set(seen)]
    assert sorted(asked) == sorted(example.query.query_id for example in QUESTIONS)  # an epoch


def test_the_page_names_what_is_logged_and_nothing_else(start: Path, tmp_path: Path) -> None:
    dev = {"eval_reward": 0.5, "eval_malformed": 0.0}
    run(start, tmp_path, config=replace(SMALL, beta=0.1), score=lambda _: dict(dev))
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    page = (ROOT / "docs" / "grpo.md").read_text("utf-8").partition("## Logged\n")[2]
    tables = page.split("Lines of evaluations on dev")
    for table, of_dev in zip(tables, (False, True), strict=True):
        cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        names = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
        named = [name.replace("parts/NAME", "parts/part").replace("NAME", "says") for name in names]
        found = {frozenset(row) for row in logged if ("eval_reward" in row) is of_dev}
        assert found == {frozenset([*named, "step", "epoch"])}


def test_a_pointwise_question_comes_with_all_documents_and_rollouts(start: Path, tmp_path: Path) -> None:
    each = replace(prompt(), kind="pointwise", parser="integer", options={"scale": [0, 10], "score": "weighted"})
    reward = Says("[3]")
    wrapped = TRLReward(reward, each, prompt_rows(QUESTIONS, each, 3), 4)
    loop = replace(LOOP, batch_size=2, trainer={**LOOP.trainer, "max_steps": 4})
    tune_by_reward(start, tokenizer(), wrapped, SMALL, loop, tmp_path)
    assert len(reward.seen) == 2  # two optimizer steps of each generation
    for seen in reward.seen:
        assert {seen.count(name) for name in seen} == {3 * 4}


TWO = """
import json, sys
from dataclasses import replace
from pathlib import Path
from rankwright import processes
processes.meet("cpu")
from tests.test_tuning import *

each = replace(prompt(), kind="pointwise", parser="integer", options={"scale": [0, 10], "score": "weighted"})
reward, here = Says("[3]"), Path(sys.argv[2])
wrapped = TRLReward(reward, each, prompt_rows(QUESTIONS, each, 3), 4)
loop = replace(LOOP, batch_size=2, trainer={**LOOP.trainer, "max_steps": 4})
tuned = tune_by_reward(Path(sys.argv[1]), tokenizer(), wrapped, replace(SMALL, completions_per_pass=6), loop, here)
seen = [sorted({seen.count(name) for name in seen}) for seen in reward.seen]
digest = sum(float(weight.double().abs().sum()) for weight in tuned.model.parameters())
(here / f"seen-{processes.rank()}.json").write_text(json.dumps([processes.count(), seen, digest]))
"""


def test_two_processes_price_whole_questions_once(start: Path, tmp_path: Path) -> None:
    """Each generates half of the completions; the first one prices all of them together."""
    (tmp_path / "two.py").write_text(TWO, encoding="utf-8")
    launcher = ["-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, str(tmp_path / "two.py"), str(start), str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / "run" / f"seen-{rank}.json").read_text()) for rank in (0, 1))
    assert first[:2] == [2, [[12], [12]]]  # three documents, four rollouts, in both generations
    assert second[:2] == [2, []]
    assert first[2] == second[2]
    assert is_complete(tmp_path / "run" / "checkpoint-4")
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2  # one line a generation


def test_a_broken_run_goes_on_as_an_unbroken_one(start: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At the end of a generation, where the checkpoint is: the same completions, rewards and weights."""
    config = replace(SMALL, beta=0.01, iterations=2)
    loop = replace(LOOP, epochs=2, eval_steps=4)
    whole = run(start, tmp_path / "whole", config=config, loop=loop, score=lambda model: {"eval_x": 1.0})
    assert sum("loss" in row for row in whole.history) == 24 // 4  # a score hides no step
    broken = run(start, tmp_path / "broken", config=config, loop=loop, seconds=0, score=lambda model: {"eval_x": 1.0})
    assert (broken.steps, broken.stopped) == (4, True)
    assert is_complete(tmp_path / "broken" / "checkpoint-4")
    assert "Goes on" not in caplog.text
    resumed = run(
        start, tmp_path / "broken", config=config, loop=loop, resume=True, score=lambda model: {"eval_x": 1.0}
    )
    assert caplog.text.count("Goes on from checkpoint-4; any later steps are made again.") == 1
    assert (resumed.steps, resumed.stopped) == (whole.steps, False) == (24, False)
    for name, tensor in weights(whole.model).items():
        assert torch.equal(tensor, weights(resumed.model)[name]), name

    def log(name: str) -> list[dict[str, Any]]:
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k != "step_time"} for line in lines]

    assert log("broken") == log("whole")
    assert not list((tmp_path / "whole").glob("**/*.bin"))


@pytest.mark.parametrize("lora", [None, LoRA(2, targets="all")], ids=["all weights", "lora"])
def test_the_time_limit_is_of_all_sessions(
    lora: LoRA | None, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six generations of two steps; ten seconds pass between the look at the limit and the checkpoint of each."""
    now = [0.0]
    monkeypatch.setattr("rankwright.tuning.time", SimpleNamespace(monotonic=lambda: now[0]))

    def session(seconds: float, resume: bool = True) -> tuple[int, bool, float, dict[str, torch.Tensor]]:
        def on_step(step: int, steps: int, logs: Mapping[str, float]) -> None:
            now[0] += 10 * ("loss" in logs)

        loop = replace(LOOP, epochs=2)
        found = run(start, tmp_path, loop=loop, seconds=seconds, resume=resume, on_step=on_step, lora=lora)
        return found.steps, found.stopped, found.seconds, weights(found.model)

    for seconds, came_to in ((5, (4, True, 20)), (25, (8, True, 40)), (math.inf, (12, False, 60))):
        first, again = session(seconds, resume=seconds > 5), session(5)
        assert first[:3] == came_to
        assert again[:3] == came_to  # nothing is left, or allowed
        assert same(again[3], first[3])


def test_other_settings_cannot_resume(start: Path, tmp_path: Path) -> None:
    run(start, tmp_path, seconds=0)
    with pytest.raises(ResumeError, match=r"grpo\.rollouts is 2.*began with 4") as refused:
        run(start, tmp_path, config=replace(SMALL, rollouts=2), resume=True)
    assert refused.value.told_by_first  # of several processes, all of which look
    run(start, tmp_path, config=replace(SMALL, completions_at_once=3), resume=True, seconds=0)  # speed alone


def test_lora_learns_little_and_is_merged_when_saved(start: Path, tmp_path: Path) -> None:
    tuned = run(start, tmp_path / "run", lora=LoRA(2, targets="all"), config=replace(SMALL, beta=0.01))
    learning = [name for name, weight in tuned.model.named_parameters() if weight.requires_grad]
    assert learning
    assert all("lora_" in name for name in learning)
    save_tuned(tuned, tokenizer(), tmp_path / "model")
    before = weights(decoder(0, width=16, layers=1))
    llm = LocalLLM(tmp_path / "model", max_new_tokens=3, device="cpu")
    after = weights(llm._model)
    assert before.keys() == after.keys()
    assert not all(torch.equal(before[name], after[name]) for name in before)
    assert len(llm.complete([LLMRequest((("user", "t0 t1 [1] w00 w01 w02 v00"),))])) == 1


def test_a_failed_reward_moves_nothing(start: Path, tmp_path: Path) -> None:
    class Fails(Says):
        def __call__(self, outcomes: Sequence[Outcome]) -> list[RewardValue]:
            return [RewardValue(None)] * len(outcomes)

    tuned = run(start, tmp_path, Fails(""), loop=replace(LOOP, trainer={**LOOP.trainer, "weight_decay": 0.0}))
    for name, tensor in weights(decoder(0, width=16, layers=1)).items():
        assert torch.equal(tensor, weights(tuned.model)[name]), name


def test_a_prompt_that_is_too_long_is_named_before_anything_begins(start: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="longest training prompt has 34 tokens; wanted 20 at most"):
        run(start, tmp_path, generating=GeneratingConfig(max_prompt_length=20))


def test_without_trl_the_command_to_install_it_is_named(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rankwright import tuning

    monkeypatch.setitem(sys.modules, "trl", None)
    tuning._grouped_trainer.cache_clear()
    with pytest.raises(MissingDependencyError, match=r'pip install "rankwright\[grpo\]"'):
        run(start, tmp_path)
    tuning._grouped_trainer.cache_clear()


def test_without_vllm_generation_by_it_is_refused(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingDependencyError, match=r'grpo.generation is vllm.*pip install "rankwright\[vllm\]"'):
        run(start, tmp_path, config=replace(SMALL, generation="vllm"))
    assert list(tmp_path.iterdir()) == []


# --- SFT


def taught(count: int = 12, identifiers: bool = False) -> list[Taught]:
    found = []
    for example in QUESTIONS[:count]:
        levels = true_levels(example)
        names = tuple(f"[{i + 1}]" for i in order_by(levels)) if identifiers else ()
        messages = prompt().messages(example.query, example.candidates)
        found.append(Taught(messages, written(levels), names))
    return found


def learn(start: Path, folder: Path, config: SFTConfig | None = None, **more: Any) -> Tuned:
    loop = more.pop("loop", replace(LOOP, epochs=30))
    given = taught(2, identifiers=bool(config and config.ranking_loss != "none"))
    return tune_by_completions(start, tokenizer(), given, config or SFTConfig(), loop, folder, **more)


def test_sft_learns_its_completions_and_only_them(start: Path, tmp_path: Path) -> None:
    tuned = learn(start, tmp_path, loop=replace(LOOP, epochs=150))
    rows = taught(2)
    assert greedy(tuned.model, tokenizer(), [row.messages for row in rows], LONGEST_COMPLETION) == [
        row.completion for row in rows
    ]
    losses = [row["loss"] for row in tuned.history if "loss" in row]
    assert losses[-1] < 0.05 < losses[0]


def test_sft_goes_on_as_if_unbroken(start: Path, tmp_path: Path) -> None:
    whole, _ = learn(start, tmp_path / "whole"), learn(start, tmp_path / "broken", seconds=0)
    resumed = learn(start, tmp_path / "broken", resume=True)
    for name, tensor in weights(whole.model).items():
        assert torch.equal(tensor, weights(resumed.model)[name]), name


def test_what_a_resumed_run_saves_is_its_newest(start: Path, tmp_path: Path) -> None:
    """Whatever a kill or a damage left of later steps."""
    loop = replace(LOOP, epochs=2, trainer={"save_total_limit": 1})
    assert learn(start, tmp_path, loop=loop, seconds=0).steps == 1
    for left in ("checkpoint-9", ".checkpoint-9.partial"):
        (tmp_path / left).mkdir()
    assert learn(start, tmp_path, loop=loop, resume=True).steps == 2
    assert [path.name for path in tmp_path.glob("*checkpoint-*")] == ["checkpoint-2"]
    assert is_complete(tmp_path / "checkpoint-2")


def test_the_ranking_loss_orders_the_first_identifiers_logits(start: Path, tmp_path: Path) -> None:
    config = SFTConfig(ranking_loss="ranknet", ranking_weight=10.0)
    loop = replace(LOOP, epochs=100)
    (row,) = taught(1, identifiers=True)
    row = replace(row, completion=" > ".join(row.identifiers))
    with_loss = tune_by_completions(start, tokenizer(), [row], config, loop, tmp_path / "with")
    words = tokenizer()
    tokens = [words.convert_tokens_to_ids(name) for name in row.identifiers]
    shown = f"{row.messages[0][1]} <ask>"
    with torch.no_grad():
        logits = with_loss.model(**words(shown, return_tensors="pt", return_token_type_ids=False)).logits[0, -1]
    assert sorted(tokens, key=lambda token: -logits[token].item()) == tokens


def test_embedding_noise_is_neftunes_and_only_of_training(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uniform up to alpha by the square root of tokens times dimensions (arXiv 2310.05914, algorithm 1)."""
    from rankwright import tuning

    seen: list[float] = []
    original = tuning._CompletionTrainer.compute_loss

    def noise(model: Any, ids: torch.Tensor) -> torch.Tensor:
        embedding = model.get_input_embeddings()
        return (embedding(ids) - embedding.weight[ids]).detach().abs()

    def look(trainer: Any, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        ids = inputs["input_ids"]
        size = ids.shape[1] * model.get_input_embeddings().weight.shape[1]
        seen.append(noise(model, ids).max().item() * math.sqrt(size))
        return original(trainer, model, inputs, *rest, **more)

    monkeypatch.setattr(tuning._CompletionTrainer, "compute_loss", look)
    tuned = learn(start, tmp_path / "noise", SFTConfig(embedding_noise=5.0), loop=replace(LOOP, epochs=2))
    assert all(4.5 < largest <= 5.0 + 1e-4 for largest in seen)
    assert len(seen) > 1
    assert noise(tuned.model.train(), torch.arange(9)).max() == 0.0
    seen.clear()
    learn(start, tmp_path / "none", loop=replace(LOOP, epochs=2))
    assert set(seen) == {0.0}


def test_an_identifier_of_several_tokens_is_refused(start: Path, tmp_path: Path) -> None:
    (row,) = taught(1)
    bad = replace(row, identifiers=("[1] [2]",))
    with pytest.raises(ConfigurationError, match="are not one token each"):
        tune_by_completions(start, tokenizer(), [bad], SFTConfig(ranking_loss="ranknet"), LOOP, tmp_path)


def test_rows_that_are_too_long_and_none_at_all_are_refused(start: Path, tmp_path: Path) -> None:
    tokens = (3 + 6 * 5 + 1) + (4 + 4 * 6)  # prompt, completion
    with pytest.raises(ConfigurationError, match=rf"longest row has {tokens} tokens .* wanted 30 at most"):
        learn(start, tmp_path, SFTConfig(max_length=30))
    with pytest.raises(TrainingError, match="nothing to learn"):
        tune_by_completions(start, tokenizer(), [], SFTConfig(), LOOP, tmp_path)


def test_a_tokenizer_without_chat_template_is_refused(start: Path, tmp_path: Path) -> None:
    words = tokenizer()
    words.chat_template = None
    with pytest.raises(ConfigurationError, match="has no chat template"):
        tune_by_completions(start, words, taught(1), SFTConfig(), LOOP, tmp_path)
