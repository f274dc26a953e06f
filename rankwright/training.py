"""The loop: transformers.Trainer around a policy and an algorithm, with checkpoints that survive a kill.

A step: the policy scores the candidates of a batch of questions; the algorithm samples rankings and asks the reader
(`collect`, no gradient); the same scores then carry the gradient of the loss. Everything that decides the next step is
in a checkpoint, so a resumed run on one thread is bit-equal to an unbroken one.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from accelerate.data_loader import BatchSamplerShard
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from rankwright import processes
from rankwright.alarms import Alarm
from rankwright.algorithms.arguments import SUPPORTED_ARGUMENTS
from rankwright.algorithms.config import TrainConfig
from rankwright.budget import Ahead
from rankwright.checkpoints import (
    ALGORITHM_STATE,
    alone_in,
    check_fingerprint,
    complete_checkpoint,
    fingerprint_of,
    make_folder,
    newest_checkpoint,
    remove_after,
    sorted_checkpoints,
    step_of,
    sync_folder,
    write_manifest,
)
from rankwright.errors import (
    ConfigurationError,
    DataError,
    LimitReachedError,
    ModelError,
    RankwrightError,
    StorageError,
    TrainingError,
)
from rankwright.logbook import (
    ALARMS,
    METRICS,
    WRITE_ERRORS,
    Bell,
    MetricsFile,
    Teller,
    tell_where_it_goes_on,
    write_problem,
)
from rankwright.metrics.ranking import has_relevant, ranking_metrics
from rankwright.reading import (
    MEND_REWARD,
    MINIMUM_READS,
    check_failed_reads,
    check_missing_rewards,
    holdout_metric,
    priced,
)
from rankwright.rerankers.ranking import COUNTS, Scorer
from rankwright.types import Answer, Context, Example, Outcome, Reader, RerankRequest, Reward

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
DAYS_7 = 7 * 24 * 3600
COUNTED = ("reader_calls", "cache_hits", "failed_reads")
"""What is summed up over steps and evaluations on dev."""
SKIPPED_IN_A_ROW = 5
"""Steps without finite numbers after which the run ends: one may be an accident of a batch, these are not."""


class Algorithm(Protocol):
    """What turns scores into a rollout and a loss (rankwright.algorithms)."""

    needs_reference: bool
    """Whether `collect` looks at the frozen reference's scores, which cost a forward pass of each question; zeros are
    passed where not."""
    inner_epochs: int
    """Optimizer steps that reuse one rollout."""

    def reads_per_question(self, candidates: int) -> int:
        """Upper bound of reader calls that a visit of one question with so many candidates costs."""
        ...

    def check(self, examples: Sequence[Example]) -> None:
        """Raises a TrainingError where nothing can be learned from these training questions."""
        ...

    def collect(
        self, scores_QD: Tensor, reference_scores_QD: Tensor, examples: Sequence[Example], rollout_number: int
    ) -> Any:
        """What the loss needs besides scores, without gradient. Has `metrics` for the log, `teaches`: False where
        nothing in it may move the weights, and `rows(questions, device)`: the part of some, by their positions."""
        ...

    def loss(self, scores_QD: Tensor, rollout: Any) -> tuple[Tensor, dict[str, float]]:
        """The loss, a mean over questions, and what to log, likewise."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold besides weights, as JSON values."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state` gave."""
        ...


@dataclass(frozen=True)
class TrainResult:
    """What a finished training came to."""

    steps: int
    """Optimizer steps done in all."""
    best_step: int
    """Step whose weights the policy has now: best on dev; 0 where no step was better than the start."""
    dev_before: float | None
    """Dev reward of the starting policy; None without dev questions."""
    dev_best: float | None
    """Dev reward at best_step."""
    reader_calls: int
    """Paid reader calls of the steps and dev scores that count, over all sessions of the run. What was read between a
    checkpoint and a break is not among them (the second time it is a cache hit); the cache's ledger has every call."""
    cache_hits: int
    """Answers that the cache gave, those on dev included."""
    failed_reads: int
    """Reads of the steps and of dev that count, over all sessions, which brought nothing to learn from: no answer, or
    one without a reward."""
    seconds: float
    """Time spent training, over all sessions of the run."""
    seconds_by_part: Mapping[str, float]
    """Of these: the policy's forward passes, the reference's, collecting (sampling and reader), evaluations on dev;
    the rest is backward, optimizer and checkpoints."""
    alarms: tuple[Alarm, ...] = ()
    """Signs that something went wrong, in the order of their steps."""
    stopped_early: str | None = None
    """Why training ended before its last step, as a sentence; None where `loop.patience` did not end it."""


class WideAttention(TorchFunctionMode):
    """Attention in fp32 within bf16 autocast on a CPU, where PyTorch's backward pass of it takes three times as long in
    bf16 (docs/experiments.md)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls `func`, which is any function of PyTorch's."""
        named = kwargs or {}
        if func is not nn.functional.scaled_dot_product_attention or not torch.is_autocast_enabled("cpu"):
            return func(*args, **named)
        with torch.autocast("cpu", enabled=False):
            return func(*map(_wide, args), **{name: _wide(value) for name, value in named.items()})


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


class QuestionSampler(Sampler[int]):
    """Question order of an epoch, decided by (seed, epoch) alone; each block of one optimizer step comes `repeats`
    times.

    With repeats the questions that do not fill a block are left out of the epoch, or the blocks would not line up.
    """

    def __init__(self, count: int, block: int, repeats: int, seed: int) -> None:
        self.count, self.block, self.repeats, self.seed = count, block, repeats, seed
        self.epoch = 0
        self._drawn: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return self.count if self.repeats == 1 else self.count // self.block * self.block * self.repeats

    def __iter__(self) -> Iterator[int]:
        order = self._order(self.epoch)
        if self.repeats == 1:
            yield from order
            return
        for start in range(0, self.count // self.block * self.block, self.block):
            for _ in range(self.repeats):
                yield from order[start : start + self.block]

    def at(self, step: int) -> list[int]:
        """Questions of an optimizer step, counted from 0 over the whole run."""
        epoch, place = divmod(step, math.ceil(len(self) / self.block))
        start = place // self.repeats * self.block
        return self._order(epoch)[start : start + self.block]

    def _order(self, epoch: int) -> list[int]:
        """Kept for the epoch that was asked for last: `at` asks before every step."""
        if self._drawn[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._drawn = epoch, torch.randperm(self.count, generator=generator).tolist()
        return self._drawn[1]


class Schedule:
    """How many optimizer steps a run has, which questions each sees and after which dev is scored.

    Args:
        examples: training questions.
        config: settings of the loop.
        inner_epochs: optimizer steps of one rollout.
        seed: decides data order.
        has_dev: whether dev is scored, before the first step and then every `eval_steps` and after the last.

    Raises:
        TrainingError: too few questions for one rollout.
    """

    def __init__(
        self, examples: Sequence[Example], config: TrainConfig, inner_epochs: int, seed: int, has_dev: bool
    ) -> None:
        block = config.batch_size * config.accumulation
        self.sampler = QuestionSampler(len(examples), block, inner_epochs, seed)
        if not len(self.sampler):
            raise TrainingError(
                f"With inner_epochs {inner_epochs} a rollout takes {block} questions (batch_size x "
                f"accumulation), but there are {len(examples)} for training. Lower batch_size or accumulation, or give "
                "more questions."
            )
        self.examples = examples
        self.inner_epochs = inner_epochs
        self.has_dev = has_dev
        self.every = _whole_rollouts(config.eval_steps, inner_epochs)
        self.steps = _count_steps(config, len(self.sampler), config.trainer.get("max_steps", -1), inner_epochs)

    def ahead(self, step: int, seconds: float = 0.0) -> Ahead:
        """What comes between this step, at which a rollout begins, and the next of that kind."""
        after = step + self.inner_epochs
        evaluations = (step == 0) + (after % self.every == 0 or after >= self.steps) if self.has_dev else 0
        return Ahead([self.examples[i] for i in self.sampler.at(step)], evaluations, seconds)

    def whole(self) -> Iterator[Ahead]:
        """The run from its first step to its last, in parts between which it can stop."""
        return (self.ahead(step) for step in range(0, self.steps, self.inner_epochs))


def requests_of(examples: Sequence[Example]) -> list[RerankRequest]:
    """The candidates of examples as requests to a reranker."""
    return [RerankRequest(example.query, example.candidates, example.first_stage) for example in examples]


class FeedbackTrainer(Trainer):
    """transformers.Trainer for a ScoringPolicy and an Algorithm.

    Args:
        policy: the module that learns; the Trainer wraps it, and scores come only through its forward.
        reference: frozen copy that anchors baseline and KL.
        algorithm: RRPO, Supervised, ...
        examples: training questions with candidates.
        score_dev: dev metrics of the current policy, by name; must hold "reward".
        config: settings of the loop.
        folder: the run folder.
        fingerprint: all settings as JSON; a checkpoint of another fingerprint is refused.
        seed: decides data order.
        callbacks: further callbacks.
        may_go_on: asked before every rollout; gives the reason where it may not begin.
    """

    def __init__(
        self,
        policy: nn.Module,
        reference: nn.Module,
        algorithm: Algorithm,
        examples: Sequence[Example],
        score_dev: Callable[[nn.Module], dict[str, float]] | None,
        config: TrainConfig,
        folder: Path,
        fingerprint: str,
        seed: int,
        callbacks: Sequence[TrainerCallback] = (),
        may_go_on: Callable[[Ahead], str | None] | None = None,
    ) -> None:
        self.config = config
        self.folder = folder
        self.fingerprint = fingerprint
        self.reference = reference.eval().requires_grad_(False)
        self.algorithm = algorithm
        self.score_dev = score_dev
        self.totals = {**dict.fromkeys(COUNTED, 0.0), "seconds": 0.0}
        self.parts = {"forward": 0.0, "reference": 0.0, "collect": 0.0, "dev": 0.0}
        self.session_start = time.monotonic()
        self._reference_scores: dict[str, Tensor] = {}
        self._rollouts: dict[tuple[str, ...], Any] = {}
        self._rollout_number = -1
        self._logged: dict[str, list[float]] = {}
        self._taught = False
        self._broken = ""
        self._skipped_in_a_row = 0
        self._policy, self._own_forward = policy, vars(policy).get("forward")
        self.start = {name: tensor.detach().cpu().clone() for name, tensor in policy.state_dict().items()}
        self.may_go_on = may_go_on
        self._refusal: str | None = None
        self._saved_at = -1
        self.schedule = Schedule(examples, config, algorithm.inner_epochs, seed, bool(score_dev))
        self.sampler = self.schedule.sampler
        device = next(policy.parameters()).device
        arguments = _training_arguments(config, folder, bool(score_dev), device.type, algorithm.inner_epochs, seed)
        _keep_to_one_device(arguments, device)
        arguments.max_steps = self.schedule.steps
        with _naming("The Trainer", config.trainer, (ValueError, TypeError, ImportError)):
            super().__init__(
                model=policy,
                args=arguments,
                train_dataset=_Rows(examples),
                eval_dataset=_Rows([]),  # `evaluate` is our own; the Trainer only wants to see one
                data_collator=_as_inputs,
                callbacks=[_Hooks(self), *callbacks],
            )
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)  # metrics.jsonl and the progress bar say it better

    # --- the whole run

    def run(self, checkpoint: Path | None) -> None:
        """Trains from the start or from a checkpoint; of a run that has ended, only the weights are put back.

        Raises:
            LimitReachedError: `may_go_on` gave a reason to stop; the run is saved where it stopped.
        """
        if checkpoint is not None and self._has_ended():
            self._say_that_all_is_done()
            load_weights(self._policy, checkpoint)
            return
        if not self._stops_here():
            if checkpoint is not None:
                tell_where_it_goes_on(checkpoint, with_answers=self.algorithm.reads_per_question(2) > 0)
            try:
                self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            finally:
                self._unwrap()
            if (early := self.stopped_early()) and not processes.rank():
                logger.warning("%s", early)
        if self._refusal:
            with processes.alike():
                raise LimitReachedError(f"{self._refusal} {self._how_to_go_on()}")

    def _say_that_all_is_done(self) -> None:
        """Or it would look as if more had been trained."""
        done, wanted = self.state.global_step, self.args.max_steps
        early = "" if done >= wanted else f", loop.patience {self.config.patience} is used up"
        if not processes.rank():
            logger.warning(
                "Run %s has ended (%d of %d steps%s): nothing is left to train, the weights are those it came to.",
                self.folder,
                done,
                wanted,
                early,
            )

    def _how_to_go_on(self) -> str:
        step = self.state.global_step
        if not step:
            return "Training has not begun: give the same command with a higher limit."
        return (
            f"All is saved at step {step} of {self.schedule.steps}: go on by the same command with --resume and a "
            "higher limit."
        )

    def _stops_here(self) -> bool:
        """Whether the next rollout may not begin. Whatever was scored and saved after the last has been."""
        self._refusal = processes.from_first(self._reason_to_stop)
        return self._refusal is not None

    def _reason_to_stop(self) -> str | None:
        if self.may_go_on is None:
            return None
        return self.may_go_on(self.schedule.ahead(self.state.global_step, self.seconds()))

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """The end of a step, and the moment at which a run may be stopped: a resumed one begins at the next."""
        super()._maybe_log_save_evaluate(*args, **kwargs)
        inside = self.state.global_step % self.algorithm.inner_epochs
        if self.control.should_training_stop or inside or not self._stops_here():
            return
        if self._saved_at != self.state.global_step:
            self._save_checkpoint(self._policy, None)
        self.control.should_training_stop = True

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The optimizer that the Trainer makes; what is wrong with its settings comes out here."""
        with _naming("The optimizer", self._given("optim", "adam_", "weight_decay")):
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """The schedule that the Trainer makes; what is wrong with its settings comes out here."""
        with _naming("The schedule", self._given("lr_scheduler_", "warmup_steps")):
            return super().create_scheduler(*args, **kwargs)

    def _given(self, *beginnings: str) -> dict[str, Any]:
        """The training arguments of this run whose names begin so."""
        return {name: value for name, value in self.config.trainer.items() if name.startswith(beginnings)}

    def _has_ended(self) -> bool:
        """Whether all steps are done or patience is used up."""
        return self.state.global_step >= self.args.max_steps or self.out_of_patience()

    def out_of_patience(self) -> bool:
        """Decided by the log alone, which every checkpoint has."""
        gainless, best = -1, -math.inf
        for row in self.state.log_history:
            if "eval_reward" in row:
                better = row["eval_reward"] > best or gainless < 0
                gainless, best = (0, row["eval_reward"]) if better else (gainless + 1, best)
        return 0 < self.config.patience <= gainless

    def stopped_early(self) -> str | None:
        """Why the run ended before its last step, if it did; told by the log alone, so a resumed run says the same."""
        done, planned, patience = self.state.global_step, self.args.max_steps, self.config.patience
        if done >= planned or not self.out_of_patience():
            return None
        evaluations = "1 evaluation" if patience == 1 else f"{patience} evaluations"
        return (
            f"Training stopped at step {done} of {planned}: {evaluations} without a better dev reward (loop.patience)."
        )

    def _unwrap(self) -> None:
        """Takes mixed precision off the policy, which is to score as it will be saved."""
        self.accelerator.unwrap_model(self._policy, keep_fp32_wrapper=False)
        vars(self._policy).pop("forward", None)  # accelerate leaves one in the instance, in front of that of the class
        if self._own_forward is not None:
            self._policy.forward = self._own_forward

    @contextmanager
    def _without_autocast(self) -> Iterator[None]:
        """Dev is scored as the saved model will score, not in the precision of training."""
        wrapped, plain = (vars(self._policy).get(name) for name in ("forward", "_original_forward"))
        if wrapped is None or plain is None:
            yield
            return
        self._policy.forward = plain
        try:
            yield
        finally:
            self._policy.forward = wrapped

    @contextmanager
    def _as_kept(self) -> Iterator[None]:
        """The weights that would be kept, for as long as dev is scored."""
        if self.config.interpolation == 1:
            yield
            return
        trained = [parameter.detach().clone() for parameter in self._policy.parameters()]
        interpolate(self._policy, self.start, self.config.interpolation)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self._policy.parameters(), trained, strict=True):
                    parameter.copy_(value)

    # --- one step

    def _get_train_sampler(self, train_dataset: Any = None) -> QuestionSampler:
        return self.sampler

    def get_train_dataloader(self) -> Any:
        """The same batches in every process, each of which then takes its share: accelerate's own sharding would fill
        up the last batch of an epoch with questions of the first."""
        loader = super().get_train_dataloader()
        shard = loader.batch_sampler
        if isinstance(shard, BatchSamplerShard):
            shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False
        return loader

    def drop_empty_gradients(self) -> None:
        """Leaves the optimizer nothing to do where no rollout of this step teaches anything. Zero gradients would not
        do: weight decay and momentum go on with them, and the KL still pulls."""
        if not self._taught:
            self._policy.zero_grad(set_to_none=True)
        self._taught = False

    def leave_out_broken_step(self) -> None:
        """Keeps a gradient that is no number out of the weights, even where the loss it belongs to is finite.

        Raises:
            TrainingError: SKIPPED_IN_A_ROW steps were left out, one after the other.
        """
        if not self._broken and self.accelerator.scaler is None:  # of fp16, which sees to gradients itself
            gradients = [weight.grad for weight in self._policy.parameters() if weight.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
            self._broken = "" if torch.isfinite(norm) else f"Gradient norm is {norm.item()}"
        self._note({"skipped_steps": float(bool(self._broken))})
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if self._broken else 0
        if self._skipped_in_a_row == SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"{self._broken} at step {self.state.global_step}, the last of {SKIPPED_IN_A_ROW} in a row that were "
                f"left out; wanted finite numbers. Lower the learning rate (now {self.config.learning_rate}) and start "
                "anew: --resume takes no other settings."
            )
        if self._broken:
            self._policy.zero_grad(set_to_none=True)
        self._broken = ""

    def _left_out(self, reason: str) -> Tensor:
        """A loss without slope, for a batch whose step will be left out for this reason."""
        self._broken = reason
        return sum(weight.sum() for weight in self._policy.parameters() if weight.requires_grad) * torch.zeros(
            (), device=self.args.device
        )

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward pass of one batch."""
        # PyTorch turns the mode off in the backward pass, which would compute attention again in another precision.
        again = any(getattr(module, "gradient_checkpointing", False) for module in self._policy.modules())
        with nullcontext() if again else WideAttention():
            return super().training_step(*args, **kwargs)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Scores, rollout (new, or the one of these questions while inner epochs last), loss.

        Of several processes each scores its share of the questions, the first one collects for all, and each takes the
        loss of its share, so weighted that the mean of the gradients is that over all questions.
        """
        examples: list[Example] = inputs["examples"]
        mine = processes.share_of(range(len(examples)))
        own = [examples[i] for i in mine] or examples[:1]  # who has none goes along, with weight 0
        weight = len(mine) * processes.count() / len(examples)
        with self._timed("forward"):
            scores_QD = model(requests_of(own))
        scores = torch.cat([row[: len(example.candidates)] for row, example in zip(scores_QD, own, strict=True)])
        bad = scores[~torch.isfinite(scores)]
        if reason := processes.first_of(f"Score is {bad[0].item()}" if len(bad) else ""):
            loss = self._left_out(reason)  # before anything is read for them
            return (loss, scores_QD) if return_outputs else loss
        key, number = tuple(e.query.query_id for e in examples), self.state.global_step // self.algorithm.inner_epochs
        if number != self._rollout_number:
            self._rollouts, self._rollout_number = {}, number
        if key not in self._rollouts:
            with self._timed("reference"):
                wanted = self.algorithm.needs_reference
                reference_QD = self._score_reference(own) if wanted else torch.zeros_like(scores_QD)
            with self._timed("collect"):
                all_QD, all_reference_QD = (processes.gathered(s, len(examples)) for s in (scores_QD, reference_QD))
                rollout = processes.from_first(
                    lambda: self.algorithm.collect(all_QD, all_reference_QD, examples, number)
                )
            self._rollouts[key] = rollout
            self._note(rollout.metrics)
        rollout = self._rollouts[key]
        self._taught = self._taught or rollout.teaches
        if processes.count() > 1:
            rollout = rollout.rows(mine or [0], scores_QD.device)
            width = max(len(example.candidates) for example in examples)
            scores_QD = nn.functional.pad(scores_QD, (0, width - scores_QD.shape[1]), value=-torch.inf)
        loss, metrics = self.algorithm.loss(scores_QD, rollout)
        metrics = processes.weighted_mean({**metrics, "loss": loss.item()}, weight)
        of_all = metrics.pop("loss")
        self._note(metrics)
        loss = loss * weight if processes.count() > 1 else loss
        if not math.isfinite(of_all):
            loss = self._left_out(f"Loss is {of_all}")
        return (loss, scores_QD) if return_outputs else loss

    def _score_reference(self, examples: Sequence[Example]) -> Tensor:
        """The frozen reference's scores_QD, computed once per question.

        Each question alone: in a batch its scores depend on the others' lengths in the last bits, and after a resume
        the batch in which a question comes first is another one.
        """
        for example in examples:
            if example.query.query_id not in self._reference_scores:
                with torch.no_grad(), torch.autocast(self.args.device.type, enabled=False):
                    row = self.reference(requests_of([example]))[0].float().cpu()
                self._reference_scores[example.query.query_id] = row
        rows = [self._reference_scores[e.query.query_id] for e in examples]
        width = max(len(row) for row in rows)
        padded = [nn.functional.pad(row, (0, width - len(row)), value=-torch.inf) for row in rows]
        return torch.stack(padded).to(self.args.device)

    # --- what is told

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.parts[part] += time.monotonic() - began

    def _note(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._logged.setdefault(name, []).append(value)
            if name in self.totals:
                self.totals[name] += value

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means (calls and failures: sums) of what was noted since the last line."""
        if "loss" in logs:
            for name, values in self._logged.items():
                finite = [value for value in values if math.isfinite(value)]
                summed = name in (*COUNTED, "masked_steps", "skipped_steps")
                logs[name] = sum(finite) if summed else (sum(finite) / len(finite) if finite else float("nan"))
            self._logged.clear()
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Dev metrics of the current policy, named eval_*; also written to the log."""
        with self._timed("dev"):
            metrics = processes.from_first(self._score_dev)
        for name in COUNTED:
            self.totals[name] += metrics.get(f"eval_{name}", 0.0)
        if self.state.global_step == 0:
            # Weights that are never better than these are not worth having.
            self.state.best_metric, self.state.best_global_step = metrics["eval_reward"], 0
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _score_dev(self) -> dict[str, float]:
        assert self.score_dev is not None
        try:
            with self._without_autocast(), self._as_kept():
                return {f"eval_{name}": value for name, value in self.score_dev(self._policy).items()}
        except ModelError as error:
            if not self.state.global_step:  # a model that cannot be used, before any training
                raise
            raise TrainingError(
                f"The model in training no longer gives scores that can be used, seen on dev after step "
                f"{self.state.global_step} of {self.state.max_steps}; wanted finite numbers. Lower the learning rate "
                f"(now {self.config.learning_rate}) and start anew: --resume takes no other settings."
            ) from error

    def seconds(self) -> float:
        """Training time over all sessions of the run."""
        return self.totals["seconds"] + time.monotonic() - self.session_start

    # --- checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """One for all processes: they have the same weights, and what else is in it only the first one has."""
        processes.from_first(lambda: self._write_checkpoint(model, trial))
        self._saved_at = self.state.global_step

    def store_flos(self) -> None:
        """Not counted; the Trainer's own asks all processes, of which one alone writes checkpoints."""

    def _write_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes the checkpoint aside, its manifest last, and renames it into place."""
        name = f"checkpoint-{self.state.global_step}"
        aside = self.folder / f".{name}.partial"
        final = self.folder / name
        real_output, limit = self.args.output_dir, self.args.save_total_limit
        best = self.state.best_global_step
        try:
            aside.mkdir(parents=True)
            self.args.output_dir, self.args.save_total_limit = str(aside), None
            self.state.best_global_step = None  # with one the Trainer waits for the other processes, which wait for us
            super()._save_checkpoint(model, trial)
            self.state.best_global_step = best
            inner = aside / name
            # The path that the Trainer noted is the one aside; best_global_step is all that is needed.
            self.state.best_model_checkpoint = None
            self.state.save_to_json(str(inner / "trainer_state.json"))
            state = {
                "fingerprint": self.fingerprint,
                "algorithm": self.algorithm.state(),
                "totals": {**self.totals, "seconds": self.seconds()},
                "parts": self.parts,
                "logged": self._logged,
                "skipped_in_a_row": self._skipped_in_a_row,
                "cut": {name: getattr(self._policy, name) for name in COUNTS if hasattr(self._policy, name)},
            }
            (inner / ALGORITHM_STATE).write_text(json.dumps(state), encoding="utf-8")
            write_manifest(inner)
            if final.exists():
                shutil.rmtree(final)
            inner.replace(final)
            sync_folder(self.folder)
        except (*WRITE_ERRORS, RuntimeError) as error:  # the last is torch.save's
            raise StorageError(
                f"Checkpoint {final} cannot be written ({write_problem(error)}); wanted room and permission in "
                f"{self.folder}. "
                "Free some space and go on with --resume: the last complete checkpoint is intact."
            ) from error
        finally:
            self.args.output_dir, self.args.save_total_limit = real_output, limit
            self.state.best_global_step = best
            shutil.rmtree(aside, ignore_errors=True)
        self._rotate()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The policy's weights, each under each of its names. The Trainer's own refuses tied ones, and adds a pickle of
        what config.json says."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.detach().clone().contiguous() for name, tensor in self._policy.state_dict().items()}
        save_file(weights, str(folder / WEIGHTS))

    def _rotate(self) -> None:
        """Keeps the newest `save_total_limit` checkpoints and the best one."""
        limit = self.args.save_total_limit
        best = self.state.best_global_step
        if limit:
            for folder in sorted_checkpoints(self.folder)[:-limit]:
                if step_of(folder) != best:
                    shutil.rmtree(folder)

    def restore(self, checkpoint: Path) -> None:
        """Puts back where the run was, and what the Trainer itself does not know of."""
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        self.args.eval_on_start = False
        state = json.loads((checkpoint / ALGORITHM_STATE).read_text(encoding="utf-8"))
        self.algorithm.restore(state["algorithm"])
        self.totals.update(state["totals"])
        self.parts.update(state["parts"])
        self._logged = {name: list(values) for name, values in state["logged"].items()}
        self._skipped_in_a_row = state["skipped_in_a_row"]
        for name, value in state.get("cut", {}).items():
            setattr(self._policy, name, value)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(self._policy, Path(resume_from_checkpoint))


class _Rows(torch.utils.data.Dataset[Example]):
    """Examples as a data set."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


def _as_inputs(rows: list[Example]) -> dict[str, list[Example]]:
    """A batch as `compute_loss` takes it. A function with a name, because a worker process may have to pickle it."""
    return {"examples": rows}


class _Hooks(TrainerCallback):
    """What has to happen at moments that the Trainer shows to callbacks only."""

    def __init__(self, trainer: FeedbackTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The Trainer's own call does not reach the sampler through a resumed loader.
        self.trainer.sampler.epoch = int(state.epoch or 0)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.drop_empty_gradients()
        with processes.alike():
            self.trainer.leave_out_broken_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The last steps after the last cycle deserve an evaluation, too; not every Trainer asks for one.
        if self.trainer.score_dev and state.global_step >= state.max_steps:
            control.should_evaluate = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.out_of_patience():
            control.should_training_stop = True


class _Emptying(TrainerCallback):
    """Removes what an earlier run left, or a session after the checkpoint from which this one goes on, once training
    begins; until then something may still be found wrong."""

    def __init__(self, folder: Path, checkpoint: Path | None) -> None:
        self.folder, self.checkpoint = folder, checkpoint

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.checkpoint is not None:
            remove_after(self.folder, step_of(self.checkpoint))
            return
        remove_after(self.folder)
        for name in (METRICS, ALARMS):
            (self.folder / name).unlink(missing_ok=True)


def _count_steps(config: TrainConfig, questions: int, max_steps: int, inner_epochs: int) -> int:
    """Optimizer steps of the whole run, rounded up to whole rollouts: the last checkpoint holds no rollout either.

    Args:
        config: the loop.
        questions: of an epoch, repeats included.
        max_steps: replaces the epochs where positive.
        inner_epochs: optimizer steps of one rollout.
    """
    per_epoch = math.ceil(math.ceil(questions / config.batch_size) / config.accumulation)
    wanted = max_steps if max_steps > 0 else math.ceil(config.epochs * per_epoch)
    return _whole_rollouts(wanted, inner_epochs)


def _whole_rollouts(steps: float, inner_epochs: int) -> int:
    """Steps rounded up to whole rollouts, so that no rollout has to be in a checkpoint."""
    return math.ceil(steps / inner_epochs) * inner_epochs


def _keep_to_one_device(arguments: TrainingArguments, device: torch.device) -> None:
    """Trains on the policy's own GPU. Left alone the Trainer moves the policy to the first one, away from its
    reference, and splits the batch, which is a list of dataclasses, over all of them."""
    arguments._n_gpu = min(arguments.n_gpu, 1)
    if device.type == "cuda" and arguments.device.type == "cuda":
        torch.cuda.set_device(device)
        vars(arguments)["_setup_devices"] = device  # where the property `device` keeps its value


def check_arguments(config: TrainConfig, device: str) -> None:
    """Whether a Trainer, its optimizer and its schedule can be made with these settings, tried on a model of one
    weight; nothing is left of it.

    Raises:
        ConfigurationError: training arguments that do not go together, or want what is not installed.
    """
    processes.meet(torch.device(device).type)
    _training_arguments(config, Path(), True, torch.device(device).type)
    untracked = replace(config, trainer={**config.trainer, "report_to": "none"})  # a tracker may begin when it is made
    policy, reference = (nn.Linear(1, 1, device=torch.device(device)) for _ in range(2))
    rows: list[Any] = [None] * (config.batch_size * config.accumulation)
    algorithm: Any = SimpleNamespace(inner_epochs=1)
    trainer = FeedbackTrainer(policy, reference, algorithm, rows, lambda _: {}, untracked, Path(), "", 0)
    trainer.create_optimizer_and_scheduler(trainer.args.max_steps)


def _training_arguments(
    config: TrainConfig, folder: Path, has_dev: bool, device_type: str = "cpu", inner_epochs: int = 1, seed: int = 0
) -> TrainingArguments:
    every = _whole_rollouts(config.eval_steps, inner_epochs)
    _check_choice("optim", config, OptimizerNames)
    _check_choice("lr_scheduler_type", config, SchedulerType)
    given = {
        "lr_scheduler_type": "linear",
        "max_grad_norm": 1.0,
        "report_to": "none",
        "save_total_limit": 2,
        "warmup_steps": 0.1,
        "weight_decay": 0.01,
        "use_cpu": device_type == "cpu",
        "ddp_timeout": DAYS_7,  # the others wait while the first process reads
        **config.trainer,
    }
    with _naming("TrainingArguments", config.trainer):
        arguments = TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.batch_size,
            gradient_accumulation_steps=config.accumulation,
            learning_rate=config.learning_rate,
            logging_steps=inner_epochs,  # a checkpoint holds no half-summed loss
            seed=seed,
            data_seed=seed,
            eval_strategy="steps" if has_dev else "no",
            eval_steps=every,
            eval_on_start=has_dev,
            save_strategy="steps",
            save_steps=every,
            metric_for_best_model="reward" if has_dev else None,
            greater_is_better=True if has_dev else None,
            load_best_model_at_end=False,  # done by `train`, which knows the manifest
            remove_unused_columns=False,
            label_names=[],
            disable_tqdm=True,
            logging_nan_inf_filter=False,
            dataloader_drop_last=False,
            **given,
        )
    _check_precision(arguments)
    _check_trackers(arguments)
    return arguments


@contextmanager
def _naming(
    what: str,
    given: Mapping[str, Any],
    refusals: tuple[type[Exception], ...] = (ValueError, TypeError, ImportError, RuntimeError),
) -> Iterator[None]:
    """Says of a refusal by transformers, torch or a tracker which settings it may be about."""
    try:
        yield
    except RankwrightError:
        raise
    except refusals as error:
        if not given:
            raise
        settings = ", ".join(f"{name} {value!r}" for name, value in given.items())
        raise ConfigurationError(
            f"{what} cannot be made with {settings} ({_one_line(error)}); wanted training arguments that go together "
            "and whose packages are installed. Change them or leave them out (docs/settings.md)."
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _check_choice(name: str, config: TrainConfig, choices: type[Enum]) -> None:
    """Refuses a name that transformers does not know, here where its names are at hand."""
    value, names = config.trainer.get(name), [str(choice.value) for choice in choices]
    if value is not None and value not in names:
        raise ConfigurationError(
            f"Training argument {name} is {value!r}; wanted one of {', '.join(names)}. See docs/settings.md."
        )


def _check_precision(arguments: TrainingArguments) -> None:
    """Refuses fp16 on the CPU, where accelerate leaves it out without a word."""
    if arguments.fp16 and arguments.device.type == "cpu":
        raise ConfigurationError(
            "Training argument fp16 is True, but the device is the CPU; wanted a GPU. Leave it out, take bf16, or name "
            "a GPU (--device, model.device)."
        )


def _check_trackers(arguments: TrainingArguments) -> None:
    """Refuses a tracker that is unknown or lacks its package, before the Trainer meets it."""
    for name in arguments.report_to or ():
        try:
            for tracker in get_reporting_integration_callbacks([name]):
                tracker()
        except (ValueError, ImportError, RuntimeError) as error:
            raise ConfigurationError(
                f"Training argument report_to names {name!r}, which cannot be used ({_one_line(error)}); wanted a "
                "tracker whose package is installed. Install it, or leave report_to out: metrics.jsonl is written "
                "in any case."
            ) from error


def dev_scorer(
    examples: Sequence[Example], reader: Reader, reward: Reward, top_k: int, max_failed_reads: float = 0.1
) -> Callable[[nn.Module], dict[str, float]]:
    """A function that has the policy rank the dev questions, the reader answer from the first top_k, and returns
    {"reward", "holdout", "failed_reads", "reader_calls", "cache_hits"}; failed reads are left out of both means. The
    hold-out metric is another measure of the same answers (`holdout_metric`), NaN without accepted answers.

    Args:
        examples: the dev questions.
        reader: answers from the first top_k.
        reward: prices the answers.
        top_k: documents the reader sees.
        max_failed_reads: a larger share of failed reads is an error, and so is one of answers without a reward, or the
            few that are left would choose the weights. With fewer than 50 dev questions half of them may fail in any
            case.

    Raises (when called):
        ReaderError: more reads failed than allowed.
        RewardError: more answers have no reward than allowed.
        TrainingError: there is no reward at all.
    """

    holdout = holdout_metric(reward)

    def score(policy: Any) -> dict[str, float]:
        rankings = policy.rerank_batch(requests_of(examples))
        contexts = []
        for example, ranking in zip(examples, rankings, strict=True):
            contexts.append(Context(example.query, ranking.best(top_k).documents(example.candidates)))
        results = reader.answer(contexts)
        outcomes = [
            Outcome(e, c, r, len(c.documents), e.query.query_id)
            for e, c, r in zip(examples, contexts, results, strict=True)
        ]
        values = priced(outcomes, reward)
        good = [value for value in values if value is not None]
        allowed = max_failed_reads if len(values) >= MINIMUM_READS else max(0.5, max_failed_reads)
        answers = sum(isinstance(result, Answer) for result in results)
        check_failed_reads(reader, len(results) - answers, len(results), allowed, "dev reads")
        check_missing_rewards(reward, answers - len(good), answers, allowed, "dev answers")
        if not good:
            raise TrainingError(
                f"None of the {len(results)} dev questions has a reward ({len(results) - answers} reads failed, "
                f"{answers} answers have no value); wanted one at least. "
                f"{MEND_REWARD if answers else 'Mend the reader and go on with --resume'}: all answers are kept."
            )
        held_out = [value for value in map(holdout, outcomes) if value is not None]
        hits = sum(isinstance(result, Answer) and not result.paid for result in results)
        return {
            "reward": sum(good) / len(good),
            "holdout": sum(held_out) / len(held_out) if held_out else math.nan,
            "failed_reads": float(len(values) - len(good)),
            "reader_calls": float(sum(result.paid for result in results)),
            "cache_hits": float(hits),
        }

    return score


def label_scorer(examples: Sequence[Example]) -> Callable[[nn.Module], dict[str, float]]:
    """A function that has the policy rank the dev questions and returns {"reward"}: mean nDCG@10 over those with a
    relevant document. For training without a reader.

    Raises:
        DataError: no question has a relevant document.
    """
    relevance = {example.query.query_id: example.relevance for example in examples}
    if not any(map(has_relevant, relevance.values())):
        raise DataError(
            f"None of the {len(examples)} dev questions has a relevant document to choose a checkpoint by; give labels "
            "with --dev-qrels, or a --reader."
        )

    def score(policy: Any) -> dict[str, float]:
        values = ranking_metrics(policy.rerank_batch(requests_of(examples)), relevance, ["nDCG@10"])["nDCG@10"]
        return {"reward": sum(values.values()) / len(values)}

    return score


def train(
    policy: nn.Module,
    reference: nn.Module,
    algorithm: Algorithm,
    examples: Sequence[Example],
    config: TrainConfig,
    folder: Path,
    *,
    seed: int = 0,
    score_dev: Callable[[nn.Module], dict[str, float]] | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    on_step: Callable[[int, int, Mapping[str, float]], None] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    may_go_on: Callable[[Ahead], str | None] | None = None,
) -> TrainResult:
    """Trains `policy` in place and leaves it with its best weights on dev.

    Args:
        policy: a ScoringPolicy.
        reference: its frozen starting point, another object.
        algorithm: RRPO or Supervised.
        examples: questions with candidates.
        config: settings of the loop.
        folder: run folder; gets metrics.jsonl, checkpoint-N/ and, where an alarm goes off, alarms.jsonl.
        seed: decides data order; the sampling noise has that of the algorithm.
        score_dev: from `dev_scorer` or `label_scorer`; without it the last weights are the best.
        settings: everything else that decides the result (data, model, reader); part of the fingerprint that
            --resume checks.
        resume: go on from the newest complete checkpoint, or start where there is none.
        on_step: told (step, steps, what was logged) after every log entry.
        callbacks: further transformers callbacks.
        may_go_on: asked before every rollout, with what comes until it can be asked again; where it gives a reason, the
            run is saved and stops there. What it decides by may change between sessions.

    Raises:
        ConfigurationError: training arguments that do not go together, or want what is not installed.
        TrainingError: nothing to train on; scores, loss or gradient were no finite numbers for SKIPPED_IN_A_ROW steps,
            or scores on dev after a step; or an alarm went off and `config.stop_on_alarm` is set.
        ReaderError: too many reads failed.
        RewardError: too many answers have no reward.
        ResumeError: the settings changed, the folder holds another run, or the checkpoint with the best weights is
            damaged.
        StorageError: the folder cannot be written, or another process trains in it.
        LimitReachedError: `may_go_on` gave a reason to stop.
    """
    processes.meet(next(policy.parameters()).device.type)
    with processes.alike():
        usable = usable_examples(examples)
        algorithm.check(usable)
    make_folder(folder)
    deciding = {name: value for name, value in asdict(config).items() if name != "stop_on_alarm"}
    loop = {"loop": deciding, "seed": seed, "inner_epochs": algorithm.inner_epochs}
    fingerprint = fingerprint_of({**loop, **(settings or {})})
    # Dropout draws from one core and makes the ratio of a fresh rollout differ from 1.
    for module in policy.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with processes.held_by_first(lambda: alone_in(folder)):
        checkpoint = processes.from_first(lambda: newest_checkpoint(folder)) if resume else None
        metrics_file, bell = MetricsFile(folder / METRICS), Bell(folder, config.stop_on_alarm)
        files = [] if processes.rank() else [_Emptying(folder, checkpoint), metrics_file]
        trainer = FeedbackTrainer(
            policy,
            reference,
            algorithm,
            usable,
            score_dev,
            config,
            folder,
            fingerprint,
            seed,
            [*files, *([Teller(on_step)] if on_step and not processes.rank() else []), bell, *callbacks],
            may_go_on,
        )
        if checkpoint is not None:
            with processes.alike():
                check_fingerprint(checkpoint, fingerprint)
            trainer.restore(checkpoint)
            best = trainer.state.best_global_step if score_dev else None
            if best and best != trainer.state.global_step:  # before anything more is paid for
                processes.from_first(lambda: complete_checkpoint(folder, best))
            processes.from_first(lambda: metrics_file.restore(trainer.state.log_history))
            bell.replay(metrics_file.path)
        torch.manual_seed(seed)
        trainer.run(checkpoint)
        seconds = trainer.seconds()
        best_step = trainer.state.best_global_step if score_dev else None
        if best_step is None:
            best_step = trainer.state.global_step
        elif best_step == 0:
            policy.load_state_dict(trainer.start)
        elif best_step != trainer.state.global_step:
            load_weights(policy, complete_checkpoint(folder, best_step))
    if best_step:
        interpolate(policy, trainer.start, config.interpolation)
        if isinstance(policy, Scorer):  # what was fitted to the scores of before says nothing of these
            policy.temperature, policy.threshold = Scorer.temperature, Scorer.threshold
    history = [row["eval_reward"] for row in trainer.state.log_history if "eval_reward" in row]
    policy.eval()
    return TrainResult(
        steps=trainer.state.global_step,
        best_step=best_step,
        dev_before=history[0] if history else None,
        dev_best=trainer.state.best_metric if score_dev else None,
        reader_calls=int(trainer.totals["reader_calls"]),
        cache_hits=int(trainer.totals["cache_hits"]),
        failed_reads=int(trainer.totals["failed_reads"]),
        seconds=seconds,
        seconds_by_part=dict(trainer.parts),
        alarms=tuple(bell.watch.alarms),
        stopped_early=trainer.stopped_early(),
    )


def usable_examples(examples: Sequence[Example]) -> list[Example]:
    """The questions that have a choice to learn."""
    twice = [query_id for query_id, n in Counter(e.query.query_id for e in examples).items() if n > 1]
    if twice:
        raise DataError(f"Query id '{twice[0]}' appears more than once in the training questions; wanted unique ids.")
    usable = [example for example in examples if len(example.candidates) > 1]
    if not usable:
        raise TrainingError(
            f"None of the {len(examples)} training questions has two candidates or more; raise --depth or check the "
            "corpus."
        )
    if len(usable) < len(examples):
        logger.warning(
            "%d of %d training questions have fewer than two candidates and are left out; raise --depth or check "
            "the corpus.",
            len(examples) - len(usable),
            len(examples),
        )
    return usable


# --- files


def load_weights(policy: nn.Module, checkpoint: Path) -> None:
    """Loads a checkpoint's weights into the policy, exactly."""
    policy.load_state_dict(load_file(str(checkpoint / WEIGHTS)), strict=True)


@torch.no_grad()
def interpolate(policy: nn.Module, start: Mapping[str, Tensor], share: float) -> None:
    """Moves the policy's weights back towards `start`, its state dict of before, so that `share` of the way is left."""
    if share < 1:
        for name, parameter in policy.named_parameters():
            if "lora_A" in name:  # the update is B A and B begins at 0: a share of B is that share of the update
                continue
            before = start[name].to(parameter.device)
            parameter.copy_(before + share * (parameter - before))


__all__ = [
    "SUPPORTED_ARGUMENTS",
    "FeedbackTrainer",
    "MetricsFile",
    "Schedule",
    "TrainConfig",
    "TrainResult",
    "dev_scorer",
    "interpolate",
    "label_scorer",
    "train",
    "usable_examples",
]
