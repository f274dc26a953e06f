"""Language models that write their judgement learn here: from a reward by GRPO, whose loop is TRL's, and from
completions by supervised fine-tuning, over transformers.Trainer.

What is ours in GRPO: questions come whole and in an order that seed and epoch alone decide; a generation is priced by a
rankwright Reward; checkpoints fall on ends of generations and are complete where their manifest says so, so a resumed
run goes on as an unbroken one.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments

from rankwright import processes
from rankwright.algorithms.config import TrainConfig
from rankwright.algorithms.generating import GRPO_MAY_CHANGE, GeneratingConfig, GRPOConfig, SFTConfig
from rankwright.algorithms.grpo import TRLReward, begun_by
from rankwright.checkpoints import (
    ALGORITHM_STATE,
    alone_in,
    check_fingerprint,
    fingerprint_of,
    make_folder,
    newest_checkpoint,
    remove_after,
    sorted_checkpoints,
    step_of,
    sync_folder,
    write_manifest,
)
from rankwright.errors import ConfigurationError, MissingDependencyError, StorageError, TrainingError
from rankwright.llms.folders import fetched, refuse_adapter, refuse_code
from rankwright.logbook import METRICS, WRITE_ERRORS, MetricsFile, Teller, tell_where_it_goes_on, write_problem
from rankwright.maths.ranking_losses import weighted_ranknet_loss
from rankwright.training import DAYS_7

LOSSES = {"sequence_mean": "grpo", "token_mean": "dapo", "dr_grpo": "dr_grpo"}
SCALES = {"deviation": "group", "batch": "batch", "none": "none"}
"""Our names -> TRL's."""
Score = Callable[[Any], dict[str, float]]
OnStep = Callable[[int, int, Mapping[str, float]], None]
Messages = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class LoRA:
    """Low-rank updates in the place of all weights (peft)."""

    rank: int
    alpha: int = 32
    dropout: float = 0.0
    targets: str = ""
    """all, names with commas between, or empty for peft's own choice."""

    def config(self) -> Any:
        """As peft takes it."""
        from peft import LoraConfig

        names = [name.strip() for name in self.targets.split(",") if name.strip()]
        targets = "all-linear" if self.targets == "all" else names or None
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets,
            task_type="CAUSAL_LM",
        )


@dataclass(frozen=True)
class Taught:
    """One prompt and the completion to learn."""

    messages: tuple[tuple[str, str], ...]
    completion: str
    identifiers: tuple[str, ...] = ()
    """In the order of the completion, for the ranking loss; none without it."""


@dataclass(frozen=True)
class Tuned:
    """What a tuning came to."""

    model: Any
    """With its LoRA updates still apart; `save_tuned` merges them."""
    steps: int
    seconds: float
    """Of all sessions; of one that was killed, up to its last checkpoint."""
    history: tuple[Mapping[str, Any], ...]
    """What was logged, of all sessions."""
    stopped: bool
    """Whether the time limit ended it before its last step."""


class WholeQuestions(Sampler[int]):
    """Prompt rows of a generation, each `rollouts` times: those of `block` questions, side by side, and the same
    `repeats` times, because TRL takes a slice of each repetition. Seed and epoch decide the order; the questions that
    do not fill a block are left out of the epoch.

    Raises:
        TrainingError: fewer questions than a block.
    """

    def __init__(self, questions: int, per_question: int, block: int, rollouts: int, repeats: int, seed: int) -> None:
        if questions < block:
            raise TrainingError(
                f"A generation takes {block} questions (loop.batch_size x loop.accumulation), but {questions} are "
                "there for training. Lower loop.batch_size, or give more questions."
            )
        self.questions, self.per_question, self.block = questions, per_question, block
        self.rollouts, self.repeats, self.seed = rollouts, repeats, seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.questions // self.block * self.block * self.per_question * self.rollouts * self.repeats

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.questions, generator=generator).tolist()
        for start in range(0, self.questions // self.block * self.block, self.block):
            rows = [
                question * self.per_question + number
                for question in order[start : start + self.block]
                for number in range(self.per_question)
            ]
            yield from (row for _ in range(self.repeats) for row in rows for _ in range(self.rollouts))


@dataclass(frozen=True)
class Plan:
    """How the completions of a generation are divided into optimizer steps and passes."""

    per_pass: int
    """Completions of a pass in each process."""
    accumulation: int
    """Passes of an optimizer step."""
    cycle: int
    """Optimizer steps between two generations."""
    steps: int
    """Of the whole run, a multiple of the cycle."""
    every: int
    """Between two checkpoints, likewise."""


def plan_of(config: GRPOConfig, loop: TrainConfig, questions: int, per_question: int) -> Plan:
    """The plan of a GRPO run.

    Args:
        config: of GRPO.
        loop: of the loop.
        questions: of training.
        per_question: prompts of each.

    Raises:
        ConfigurationError: the completions of a generation cannot be divided so.
    """
    block = loop.batch_size * loop.accumulation
    completions, parts = block * per_question * config.rollouts, config.updates * processes.count()
    if completions % parts:
        raise ConfigurationError(
            f"A generation has {completions} completions (questions x prompts x grpo.rollouts), which cannot be "
            f"divided between grpo.updates {config.updates} and {processes.count()} processes; wanted a multiple of "
            f"{parts}. Change loop.batch_size, grpo.rollouts or grpo.updates."
        )
    share = completions // parts
    per_pass = max(n for n in range(1, min(share, config.completions_per_pass) + 1) if share % n == 0)
    cycle = config.updates * config.iterations
    most = loop.trainer.get("max_steps", -1)
    generations = math.ceil(most / cycle) if most > 0 else math.ceil(loop.epochs * questions / block)
    every = math.ceil(loop.eval_steps / cycle) * cycle
    return Plan(per_pass, share // per_pass, cycle, generations * cycle, every)


def tune_by_reward(
    model: str | Path,
    tokenizer: Any,
    reward: TRLReward,
    config: GRPOConfig,
    loop: TrainConfig,
    folder: Path,
    *,
    generating: GeneratingConfig | None = None,
    lora: LoRA | None = None,
    seed: int = 0,
    device: str = "cpu",
    resume: bool = False,
    score: Score | None = None,
    seconds: float = math.inf,
    settings: Mapping[str, Any] | None = None,
    on_step: OnStep | None = None,
) -> Tuned:
    """GRPO from a model's weights.

    Args:
        model: folder or hub name of a causal language model; also the frozen reference of the KL.
        tokenizer: its tokenizer, with a chat template.
        reward: prices completions; has the prompt rows.
        config: of GRPO.
        loop: of the loop.
        folder: run folder; gets metrics.jsonl and checkpoint-N/.
        generating: gradient checkpointing and the longest prompt.
        lora: updates that learn in the place of all weights.
        seed: decides order, sampling and the start of LoRA updates.
        device: cpu, or cuda.
        resume: go on from the newest complete checkpoint, or start where there is none.
        score: metrics of the model, logged before the first step, with every checkpoint and after the last step.
        seconds: of all sessions, after which the run stops at the end of a generation; --resume goes on.
        settings: everything else that decides the result; part of the fingerprint that resuming checks.
        on_step: told (step, steps, what was logged) after every log entry.

    Raises:
        ConfigurationError: settings that do not go together, or a prompt too long.
        MissingDependencyError: TRL is not installed.
        ResumeError: the settings changed.
        TrainingError: too few questions.
    """
    check_generation(config)
    rows, generating = reward.rows, generating or GeneratingConfig()
    plan = plan_of(config, loop, rows.questions, rows.per_question)
    shown, most = [row.messages for row in rows.rows], generating.max_prompt_length
    check_prompt_lengths(tokenizer, shown, config.max_completion_length, most, str(model))
    begun = begun_by(prompt_text(tokenizer, shown[0]))
    reward.gather, reward.begun, reward.max_failed = _gather, begun, config.max_failed_rewards
    session = _Session(folder, loop, seed, resume, {"grpo": _deciding(config), **(settings or {})}, on_step)
    from datasets import Dataset

    with fetched(str(model)):
        trainer = _grouped_trainer()(
            str(model),
            reward_funcs=[reward],
            args=_grpo_arguments(config, loop, plan, folder, device, seed, generating),
            train_dataset=Dataset.from_list(rows.columns()),
            processing_class=tokenizer,
            peft_config=lora.config() if lora else None,
        )
    trainer.whole_questions = WholeQuestions(
        rows.questions,
        rows.per_question,
        loop.batch_size * loop.accumulation,
        config.rollouts,
        config.iterations * config.updates * plan.accumulation,
        seed,
    )
    trainer.at_once = config.completions_at_once
    return session.run(trainer, score, seconds, plan.every, plan.cycle, trainer.whole_questions)


def tune_by_completions(
    model: str | Path,
    tokenizer: Any,
    taught: Sequence[Taught],
    config: SFTConfig,
    loop: TrainConfig,
    folder: Path,
    *,
    generating: GeneratingConfig | None = None,
    lora: LoRA | None = None,
    seed: int = 0,
    device: str = "cpu",
    resume: bool = False,
    score: Score | None = None,
    seconds: float = math.inf,
    settings: Mapping[str, Any] | None = None,
    on_step: OnStep | None = None,
) -> Tuned:
    """Supervised fine-tuning: cross-entropy of the completion's tokens alone, and with `config.ranking_loss` weighted
    RankNet over the logits of the identifiers where the first one is written (FIRST, arXiv 2406.15657).

    Arguments and errors are those of `tune_by_reward`; `taught` are the rows to learn.
    """
    from transformers import AutoModelForCausalLM

    if not taught:
        raise TrainingError(
            "There is nothing to learn: no question has a completion. Check generating.window and labels."
        )
    generating = generating or GeneratingConfig()
    rows = check_taught_lengths(tokenizer, taught, config, str(model))
    with fetched(str(model)):
        loaded: Any = AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.float32, use_safetensors=True)
    torch.manual_seed(seed)
    if lora:
        from peft import get_peft_model

        loaded = get_peft_model(loaded, lora.config())
    session = _Session(folder, loop, seed, resume, {"sft": asdict(config), **(settings or {})}, on_step)
    steps = loop.trainer.get("max_steps", -1)
    per_epoch = math.ceil(len(rows) / (loop.batch_size * loop.accumulation * processes.count()))
    arguments = TrainingArguments(
        **_common(loop, folder, device, seed, generating, 1, loop.eval_steps),
        max_steps=steps if steps > 0 else math.ceil(loop.epochs * per_epoch),
        per_device_train_batch_size=loop.batch_size,
        gradient_accumulation_steps=loop.accumulation,
        neftune_noise_alpha=config.embedding_noise or None,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)
    trainer = _CompletionTrainer(
        model=loaded, args=arguments, train_dataset=_Rows(rows), data_collator=_Padded(tokenizer.pad_token_id)
    )
    trainer.ranking_weight = config.ranking_weight if config.ranking_loss == "ranknet" else 0.0
    trainer.order = _Shuffled(len(rows), seed)
    return session.run(trainer, score, seconds, loop.eval_steps, 1, trainer.order)


@torch.no_grad()
def greedy(
    model: Any, tokenizer: Any, prompts: Sequence[Messages], max_new_tokens: int, batch_size: int = 64
) -> list[str]:
    """The likeliest completion of each prompt, in order, with the tag of thoughts that the template may have opened."""
    was_training = model.training
    model.eval()
    texts = [prompt_text(tokenizer, messages) for messages in prompts]
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    written = [""] * len(texts)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        inputs = tokenizer(
            [texts[i] for i in batch], add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
        )
        tokens = model.generate(
            input_ids=inputs["input_ids"].to(model.device),
            attention_mask=inputs["attention_mask"].to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        width = inputs["input_ids"].shape[1]
        for i, text in zip(batch, tokenizer.batch_decode(tokens[:, width:], skip_special_tokens=True), strict=True):
            written[i] = begun_by(texts[i]) + text
    model.train(was_training)
    return written


def prompt_text(tokenizer: Any, messages: Messages) -> str:
    """Messages as the model's chat template writes them, up to where it begins to answer.

    Raises:
        ConfigurationError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise ConfigurationError(
            "The model's tokenizer has no chat template, so a prompt of several turns has no form; wanted one. Take an "
            "instruction-tuned model, or set tokenizer.chat_template and save it with the model."
        )
    turns = [{"role": role, "content": text} for role, text in messages]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def save_tuned(tuned: Tuned, tokenizer: Any, folder: Path) -> None:
    """Writes weights, with LoRA updates merged, and tokenizer, so that `LocalLLM(folder)` and any server open them."""
    merge = getattr(tuned.model, "merge_and_unload", None)
    (merge() if merge else tuned.model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# --- sessions and checkpoints


class _Session:
    """What both loops share: fingerprint, log, scores, resume."""

    def __init__(
        self,
        folder: Path,
        loop: TrainConfig,
        seed: int,
        resume: bool,
        settings: Mapping[str, Any],
        on_step: OnStep | None,
    ) -> None:
        make_folder(folder)
        self.folder, self.on_step = folder, on_step
        self.fingerprint = fingerprint_of({"loop": asdict(loop), "seed": seed, **settings})
        self.checkpoint = processes.from_first(lambda: newest_checkpoint(folder)) if resume else None
        if self.checkpoint is not None:
            with processes.alike():
                check_fingerprint(self.checkpoint, self.fingerprint)

    def run(self, trainer: Any, score: Score | None, seconds: float, every: int, cycle: int, order: Any) -> Tuned:
        """Trains to the end or the limit."""
        with processes.held_by_first(lambda: alone_in(self.folder)):
            return self._run(trainer, score, seconds, every, cycle, order)

    def _run(self, trainer: Any, score: Score | None, seconds: float, every: int, cycle: int, order: Any) -> Tuned:
        metrics, earlier, began = MetricsFile(self.folder / METRICS), self._earlier_seconds(), time.monotonic()

        def spent() -> float:
            return earlier + time.monotonic() - began

        def is_over() -> bool:
            """By the clock of the first process: the others must not go on without it."""
            return seconds < math.inf and processes.from_first(lambda: spent() > seconds)

        trainer.fingerprint, trainer.spent = self.fingerprint, spent
        trainer.remove_callback(PrinterCallback)  # metrics.jsonl and the progress bar say it better
        watch = _Watch(trainer, order, score, every, cycle, is_over)
        tellers = [Teller(self.on_step)] if self.on_step else []
        for callback in (watch, *([] if processes.rank() else [metrics, *tellers])):
            trainer.add_callback(callback)
        processes.from_first(self._clear)
        if self.checkpoint is not None:
            trainer.state = TrainerState.load_from_json(str(self.checkpoint / "trainer_state.json"))
            history = trainer.state.log_history
            processes.from_first(lambda: metrics.restore(history))
            watch.stopped = trainer.state.global_step < trainer.state.max_steps and is_over()
        if watch.stopped:
            trainer._load_from_checkpoint(str(self.checkpoint))
        else:
            if self.checkpoint is not None and trainer.state.global_step < trainer.state.max_steps:
                tell_where_it_goes_on(self.checkpoint)
            trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
        state = trainer.state
        return Tuned(trainer.model.eval(), state.global_step, spent(), tuple(state.log_history), watch.stopped)

    def _earlier_seconds(self) -> float:
        """What the sessions before this one took, up to the checkpoint."""
        if self.checkpoint is None:
            return 0.0
        return json.loads((self.checkpoint / ALGORITHM_STATE).read_text(encoding="utf-8")).get("seconds", 0.0)

    def _clear(self) -> None:
        """Takes out what an earlier run of this folder left, or a session after the checkpoint."""
        if self.checkpoint is not None:
            remove_after(self.folder, step_of(self.checkpoint))
            return
        remove_after(self.folder)
        (self.folder / METRICS).unlink(missing_ok=True)


class _Watch(TrainerCallback):
    """Sets the epoch of the order, scores, and ends the session where its time is over."""

    def __init__(
        self, trainer: Any, order: Any, score: Score | None, every: int, cycle: int, is_over: Callable[[], bool]
    ) -> None:
        self.trainer, self.order, self.score = trainer, order, score
        self.every, self.cycle, self.is_over = every, cycle, is_over
        self.stopped = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self._score()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The Trainer's own call does not reach the sampler through a resumed loader.
        self.order.epoch = int(round(state.epoch or 0, 6))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        last = state.global_step >= state.max_steps
        if last or state.global_step % self.every == 0:
            log = control.should_log
            self._score()
            control.should_log, control.should_save = log, True  # a logged score takes the wish to log the step away
        if state.global_step % self.cycle == 0 and not last and self.is_over():
            self.stopped = control.should_save = control.should_training_stop = True

    def _score(self) -> None:
        if self.score is None:
            return
        model = self.trainer.model
        was_training = model.training
        model.eval()
        self.trainer.log(dict(self.score(model)))  # while it is in that mode, or TRL adds what it gathered in training
        model.train(was_training)


class _Checkpoints(Trainer):
    """Checkpoints that are written aside, with their manifest last, and renamed into place."""

    fingerprint = ""
    spent: Callable[[], float]
    """Seconds of all sessions so far."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder, name = Path(str(self.args.output_dir)), f"checkpoint-{self.state.global_step}"
        aside, limit = folder / f".{name}.partial", self.args.save_total_limit
        processes.from_first(lambda: _empty(aside))
        try:
            self.args.output_dir, self.args.save_total_limit = str(aside), None
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            processes.from_first(lambda: self._complete(aside / name, folder / name))
        except (*WRITE_ERRORS, RuntimeError) as error:  # the last is torch.save's
            raise StorageError(
                f"Checkpoint {folder / name} cannot be written ({write_problem(error)}); wanted room and permission in "
                f"{folder}. Free some space and go on with --resume: the last complete checkpoint is intact."
            ) from error
        finally:
            self.args.output_dir, self.args.save_total_limit = str(folder), limit
        if limit and not processes.rank():
            for old in sorted_checkpoints(folder)[:-limit]:
                shutil.rmtree(old)

    def _complete(self, inner: Path, final: Path) -> None:
        kept = {"fingerprint": self.fingerprint, "seconds": self.spent()}
        (inner / ALGORITHM_STATE).write_text(json.dumps(kept), encoding="utf-8")
        write_manifest(inner)
        shutil.rmtree(final, ignore_errors=True)
        inner.replace(final)
        inner.parent.rmdir()
        sync_folder(final.parent)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The weights. The Trainer's own adds a pickle of its arguments."""
        self.accelerator.unwrap_model(self.model).save_pretrained(output_dir or str(self.args.output_dir))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: TRL writes one into every checkpoint."""


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _common(
    loop: TrainConfig, folder: Path, device: str, seed: int, generating: GeneratingConfig, cycle: int, every: int
) -> dict[str, Any]:
    """Training arguments of both loops."""
    given = {name: value for name, value in loop.trainer.items() if name != "max_steps"}
    return {
        "output_dir": str(folder),
        "learning_rate": loop.learning_rate,
        "logging_steps": cycle,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": 2,
        "remove_unused_columns": False,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
        "seed": seed,
        "data_seed": seed,
        "use_cpu": device == "cpu",
        "dataloader_pin_memory": device != "cpu",
        "ddp_timeout": DAYS_7,
        "bf16": False,
        **({"gradient_checkpointing": True} if generating.gradient_checkpointing else {}),
        **given,
    }


# --- GRPO


@cache
def _grouped_trainer() -> Any:
    """TRL's trainer with whole questions. A class made at its first use, because TRL may not be installed.

    Raises:
        MissingDependencyError: it is not.
    """
    try:
        from trl import GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]
    except ImportError as error:
        raise MissingDependencyError(
            f'Method grpo needs {error.name}, which is not installed; run: pip install "rankwright[grpo]"'
        ) from error

    class GroupedTrainer(_Checkpoints, GRPOTrainer):
        """GRPO over whole questions."""

        whole_questions: WholeQuestions
        at_once: int

        def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:  # pyright: ignore[reportIncompatibleMethodOverride]
            return self.whole_questions

        def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
            """TRL gives all completions of a generation to `generate` at once, which few machines can hold."""
            if self.use_vllm:
                return super()._generate_single_turn(prompt_ids, *args, **kwargs)
            written: list[list[int]] = []
            for start in range(0, len(prompt_ids), self.at_once):
                part, _ = super()._generate_single_turn(prompt_ids[start : start + self.at_once], *args, **kwargs)
                written += part
            return written, None

    return GroupedTrainer


def check_generation(config: GRPOConfig) -> None:
    """Raises MissingDependencyError where TRL is not installed, or vLLM where it is to generate."""
    _grouped_trainer()
    if config.generation != "vllm":
        return
    try:
        import vllm  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingDependencyError(
            f"Setting grpo.generation is vllm, which needs {error.name}; run: "
            'pip install "rankwright[vllm]", or leave it at transformers.'
        ) from error


def _grpo_arguments(
    config: GRPOConfig,
    loop: TrainConfig,
    plan: Plan,
    folder: Path,
    device: str,
    seed: int,
    generating: GeneratingConfig,
) -> Any:
    from trl import GRPOConfig as TRLConfig  # pyright: ignore[reportPrivateImportUsage]

    common = _common(loop, folder, device, seed, generating, plan.cycle, plan.every)
    arguments = TRLConfig(
        **{"gradient_checkpointing": False, **common},  # TRL's own default is True
        max_steps=plan.steps,
        per_device_train_batch_size=plan.per_pass,
        gradient_accumulation_steps=plan.accumulation,
        steps_per_generation=plan.accumulation * config.updates,
        num_generations=config.rollouts,
        num_iterations=config.iterations,
        max_completion_length=config.max_completion_length,
        temperature=config.temperature,
        top_p=config.top_p,
        beta=config.beta,
        epsilon=config.clip,
        loss_type=LOSSES[config.loss],
        scale_rewards=SCALES[config.scale],
        use_vllm=config.generation == "vllm",
        model_init_kwargs={"dtype": "float32", "use_safetensors": True, "device_map": None},
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _deciding(config: GRPOConfig) -> dict[str, Any]:
    """What of GRPO's settings decides the result."""
    return {name: value for name, value in asdict(config).items() if name not in GRPO_MAY_CHANGE}


def _gather(share: list[Any]) -> list[Any]:
    """What all processes give, one list after the other."""
    if processes.count() == 1:
        return share
    from accelerate.utils import gather_object

    return gather_object(share)


def check_prompt_lengths(
    tokenizer: Any, prompts: Sequence[Messages], completion: int, limit: int, model: str, side: str = "training"
) -> None:
    """Whether the longest prompt fits beside its completion.

    Args:
        tokenizer: of the model.
        prompts: messages of each, one at least.
        completion: tokens of the longest answer.
        limit: most tokens of a prompt; 0 for as many as the model leaves.
        model: folder or hub name.
        side: which questions they are about, for the message.

    Raises:
        ConfigurationError: it does not.
    """
    positions, shown = positions_of(model), [prompt_text(tokenizer, messages) for messages in prompts]
    longest = max(len(ids) for ids in tokenizer(shown, add_special_tokens=False)["input_ids"])
    allowed = min(limit or math.inf, positions - completion)
    if longest > allowed:
        raise ConfigurationError(
            f"The longest {side} prompt has {longest} tokens; wanted {allowed} at most (generating.max_prompt_length, "
            f"and what {model} leaves beside {completion} of an answer). Lower generating.window or "
            "generating.passage_limit, or set generating.shorten_to_fit=true; nothing is cut off silently."
        )


def positions_of(model: str) -> float:
    """Tokens that a model has positions for; infinite where it has no limit. All training looks here before it opens
    the model.

    Raises:
        ModelError: the folder brings code, quantized weights or an adapter.
    """
    from transformers import AutoConfig

    with fetched(model):
        refuse_adapter(model)
        refuse_code(model)
        config = AutoConfig.from_pretrained(model).get_text_config()
    return getattr(config, "max_position_embeddings", None) or math.inf


# --- SFT


@dataclass(frozen=True)
class _Row:
    """Tokens of a row."""

    ids: list[int]
    prompt: int
    """How many of them are the prompt's."""
    first: int
    """Position that predicts the first identifier; -1 without a ranking loss."""
    identifiers: list[int]
    """Tokens in the target's order."""


def _taught_row(tokenizer: Any, taught: Taught, config: SFTConfig) -> _Row:
    shown = prompt_text(tokenizer, taught.messages)
    prompt = tokenizer(shown, add_special_tokens=False)["input_ids"]
    completion = taught.completion.removeprefix(begun_by(shown))
    said = [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    if config.ranking_loss == "none":
        return _Row([*prompt, *said], len(prompt), -1, [])
    names = [tokenizer(name, add_special_tokens=False)["input_ids"] for name in taught.identifiers]
    if not names or any(len(ids) != 1 for ids in names) or names[0][0] not in said:
        raise ConfigurationError(
            f"Identifiers {', '.join(taught.identifiers) or '(none)'} are not one token each in '{taught.completion}'; "
            "wanted that, because the ranking loss compares their logits. Take a prompt with letters, or "
            "--set sft.ranking_loss=none."
        )
    return _Row([*prompt, *said], len(prompt), len(prompt) + said.index(names[0][0]) - 1, [ids[0] for ids in names])


def check_taught_lengths(tokenizer: Any, taught: Sequence[Taught], config: SFTConfig, model: str) -> list[_Row]:
    """Tokens of all rows, of which the longest has room.

    Raises:
        ConfigurationError: it has none, or an identifier of the ranking loss is not one token.
    """
    rows = [_taught_row(tokenizer, one, config) for one in taught]
    limit = min(config.max_length or math.inf, positions_of(model))
    longest = max(len(row.ids) for row in rows)
    if longest > limit:
        raise ConfigurationError(
            f"The longest row has {longest} tokens of prompt and completion; wanted {limit} at most (sft.max_length, "
            f"or what {model} takes). Lower generating.window or generating.passage_limit, or set "
            "generating.shorten_to_fit=true; nothing is cut off silently."
        )
    return rows


class _Rows(torch.utils.data.Dataset[_Row]):
    """Rows as a data set."""

    def __init__(self, rows: Sequence[_Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> _Row:
        return self.rows[index]


@dataclass(frozen=True)
class _Padded:
    """A batch of rows, padded at the right; only completions have labels."""

    pad: int

    def __call__(self, rows: Sequence[_Row]) -> dict[str, Any]:
        width = max(len(row.ids) for row in rows)
        ids = torch.tensor([[*row.ids, *[self.pad] * (width - len(row.ids))] for row in rows])
        mask = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows])
        written = torch.tensor([[0] * row.prompt + [1] * (width - row.prompt) for row in rows])
        batch: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        batch["labels"] = ids.masked_fill((written * mask) == 0, -100)
        if rows[0].identifiers:
            batch["first"] = torch.tensor([row.first for row in rows])
            most = max(len(row.identifiers) for row in rows)
            batch["identifiers"] = torch.tensor(
                [[*row.identifiers, *[-1] * (most - len(row.identifiers))] for row in rows]
            )
        return batch


class _Shuffled(Sampler[int]):
    """All rows in an order that seed and epoch decide."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        yield from torch.randperm(self.count, generator=generator).tolist()


class _CompletionTrainer(_Checkpoints):
    """Cross-entropy of completions, and the ranking loss."""

    ranking_weight = 0.0
    order: _Shuffled

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self.order

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a batch."""
        first, identifiers = inputs.pop("first", None), inputs.pop("identifiers", None)
        if not self.ranking_weight:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        both: Any = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss, outputs = both
        ranking = _first_token_loss(outputs.logits, first, identifiers) / self.args.gradient_accumulation_steps
        loss = loss + self.ranking_weight * ranking
        return (loss, outputs) if return_outputs else loss


def _first_token_loss(logits: Tensor, first: Tensor, identifiers: Tensor) -> Tensor:
    """Weighted RankNet over the logits of the identifiers, which stand in their right order.

    Args:
        logits: of a batch, by position and token.
        first: position that predicts the first identifier.
        identifiers: tokens in the right order, -1 where there are no more.
    """
    rows = torch.arange(len(first), device=logits.device)
    scores_QD = logits[rows, first].float().gather(1, identifiers.clamp(min=0))
    return weighted_ranknet_loss(scores_QD, identifiers >= 0)
