"""Settings of the loop and of the algorithms, and how settings are checked; imports no torch, so that the command line
can show them quickly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rankwright.algorithms.arguments import checked_arguments
from rankwright.errors import ConfigurationError


def require(prefix: str, settings: object, wanted: Mapping[str, tuple[bool, str]]) -> None:
    """Raises a ConfigurationError for the first setting that is not as wanted: name -> (is good, what is good)."""
    for name, (good, words) in wanted.items():
        if not good:
            raise ConfigurationError(
                f"Setting {prefix}{name} is {getattr(settings, name)!r}; wanted {words}. See docs/settings.md."
            )


def at_least(smallest: float, value: float) -> tuple[bool, str]:
    """For `require`: finite and not smaller."""
    return smallest <= value < math.inf, f"{smallest:g} or more"


def above_zero(value: float) -> tuple[bool, str]:
    """For `require`: finite and positive."""
    return 0 < value < math.inf, "a number above 0"


def share(value: float) -> tuple[bool, str]:
    """For `require`: from 0 to 1."""
    return 0 <= value <= 1, "0 to 1"


def one_of(value: object, *names: object) -> tuple[bool, str]:
    """For `require`: one of the names."""
    return value in names, f"one of {', '.join(map(str, names))}"


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the loop, the same for every algorithm."""

    epochs: float = 2.0
    """Passes over the training questions; rounded up to whole rollouts."""
    batch_size: int = 8
    """Questions of one forward and backward pass."""
    accumulation: int = 1
    """Passes of one optimizer step."""
    learning_rate: float = 2e-5
    """Peak of the schedule."""
    eval_steps: int = 25
    """Optimizer steps between two evaluations on dev, each followed by a checkpoint."""
    patience: int = 3
    """Evaluations without a better dev reward after which training stops, not counting the one before training; 0
    never stops early."""
    interpolation: float = 1.0
    """How far the weights that are kept lie on the straight way from the starting weights to the trained ones: 1 keeps
    those as they are, less takes noise of training out (WiSE-FT, arXiv 2109.01903; in reinforcement learning WARP,
    arXiv 2406.16768, section 3.3). Dev scores what would be kept; checkpoints hold the trained ones."""
    stop_on_alarm: bool = False
    """Ends the run at the first alarm (docs/rrpo.md); --resume goes on, with this setting or without."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Further TrainingArguments, out of SUPPORTED_ARGUMENTS."""

    def __post_init__(self) -> None:
        require(
            "loop.",
            self,
            {
                "epochs": above_zero(self.epochs),
                "batch_size": at_least(1, self.batch_size),
                "accumulation": at_least(1, self.accumulation),
                "learning_rate": above_zero(self.learning_rate),
                "eval_steps": at_least(1, self.eval_steps),
                "patience": at_least(0, self.patience),
                "stop_on_alarm": one_of(self.stop_on_alarm, True, False),
                "interpolation": (0 < self.interpolation <= 1, "above 0, at most 1"),
            },
        )
        object.__setattr__(self, "trainer", checked_arguments(self.trainer, "loop.trainer."))


@dataclass(frozen=True)
class RRPOConfig:
    """Settings of RRPO. The paper (arXiv 2604.02091) names k_train = 3; where it leaves a value open, the default is
    ours: docs/rrpo.md gives the reason of each and links to what was measured."""

    train_k: int = 3
    """Steps of a sampled ranking; the reader answers after each. Paper: 3 was best of 1, 3, 5."""
    samples: int = 4
    """Sampled rankings per question. Ours."""
    noise: Literal["rollout", "question"] = "rollout"
    """How sampling noise is keyed: anew for each visit of a question, or the same at all of them, so that later epochs
    sample mostly rankings that have been read (common random numbers). Each ranking is drawn from the policy in both.
    Ours."""
    shared_steps: int = 0
    """So many first documents each two samples of a question have in common, which are read once. Each ranking is still
    drawn from the policy, but two of a pair are not independent, and where samples are compared with each other (group,
    leave_one_out) what they share teaches less. Ours."""
    read_first: int = 0
    """So many sampled rankings of a question are read first, beside the reference's; where all of them earn the same at
    every position, the others are taken to earn that too and are not read. 0 reads all. Ours."""
    read_closed_book: bool = True
    """Reads each question without documents, too: for no_document_reward, the alarms that look at it, and
    drop_closed_book. The gradient does not need it. Ours."""
    action: Literal["document", "ranking"] = "document"
    """What is chosen and rewarded: each document, by the answer after it, or the whole ranking at once, by the answer
    after its last document (a listwise bandit, with which the paper compares)."""
    baseline: Literal["auto", "reference", "group", "leave_one_out", "critic", "none"] = "auto"
    """What an answer is compared with: the reference's best ranking (the paper), the mean of the question's samples
    (GRPO), that of its other samples (RLOO), a learned critic (PPO; wants advantage gae), or nothing. auto is reference
    with scale window and none, group with the others."""
    advantage: Literal["gae", "anchored", "marginal"] = "anchored"
    """How rewards and baseline make advantages. The paper prints gae; the default is ours."""
    scale: Literal["window", "question", "deviation", "none"] = "window"
    """What advantages are measured by: recent advantages of all questions, as in the paper; the mean reward of the
    question's own samples (MaxRL, arXiv 2602.02710), so that questions that are solved do not take most of the update
    (ours); the standard deviation of their rewards (GRPO); or nothing."""
    ratio_anchor: Literal["behaviour", "reference"] = "behaviour"
    """Denominator of the probability ratio. The paper prints reference; the default is ours."""
    inner_epochs: int = 1
    """Updates per rollout. With ratio_anchor behaviour and 1 the ratio is 1 and the clip idle."""
    gamma: float = 1.0
    """Discount of later positions. Not given by the paper."""
    lam: float = 1.0
    """GAE's lambda. Not given by the paper."""
    clip: float = 0.2
    """Clip range epsilon of the ratio. Not given by the paper; 0.2 is PPO's."""
    kl: Literal["exact", "sampled"] = "exact"
    """KL of the first step's softmax over all candidates, or the low-variance estimate on sampled steps."""
    beta: float = 0.02
    """Weight of the KL to the reference. Not given by the paper."""
    window: int = 512
    """Recent advantages that standardise the new ones with scale window. The paper has a sliding window; its size is
    not given."""
    drop_closed_book: bool = False
    """Gives no advantage to questions that the reader earns something for without any document, and as much as with the
    best sample: their rewards say nothing about the ranking."""
    skip_unanimous: bool = False
    """Gives no advantage to questions whose samples all earned the same at every position; with scale window they
    would still be moved by their distance to the reference."""
    temperature: float = 1.0
    """Divides the scores before sampling and in all probabilities. Ours."""
    max_failed_reads: float = 0.1
    """The run stops when a larger share of the last 300 reads failed (after at least 50; answers of the cache do not
    count), or of the last 300 answers got no reward."""

    def __post_init__(self) -> None:
        require(
            "rrpo.",
            self,
            {
                "train_k": at_least(1, self.train_k),
                "samples": at_least(1, self.samples),
                "noise": one_of(self.noise, "rollout", "question"),
                "shared_steps": (0 <= self.shared_steps < self.train_k, f"0 to {self.train_k - 1}, below rrpo.train_k"),
                "read_first": (0 <= self.read_first < self.samples, f"0 to {self.samples - 1}, below rrpo.samples"),
                "read_closed_book": one_of(self.read_closed_book, True, False),
                "action": one_of(self.action, "document", "ranking"),
                "baseline": one_of(self.baseline, "auto", "reference", "group", "leave_one_out", "critic", "none"),
                "advantage": one_of(self.advantage, "gae", "anchored", "marginal"),
                "scale": one_of(self.scale, "window", "question", "deviation", "none"),
                "ratio_anchor": one_of(self.ratio_anchor, "behaviour", "reference"),
                "inner_epochs": at_least(1, self.inner_epochs),
                "gamma": share(self.gamma),
                "lam": share(self.lam),
                "clip": above_zero(self.clip),
                "kl": one_of(self.kl, "exact", "sampled"),
                "beta": at_least(0, self.beta),
                "window": at_least(2, self.window),
                "drop_closed_book": one_of(self.drop_closed_book, True, False),
                "skip_unanimous": one_of(self.skip_unanimous, True, False),
                "temperature": above_zero(self.temperature),
                "max_failed_reads": share(self.max_failed_reads),
            },
        )
        if self.values_from == "critic" and self.advantage != "gae":
            raise ConfigurationError(
                f"Setting rrpo.baseline is 'critic' with rrpo.advantage {self.advantage!r}; wanted gae, because a "
                "critic predicts what is still to come from a state. Add --set rrpo.advantage=gae."
            )
        if self.drop_closed_book and not self.read_closed_book:
            raise ConfigurationError(
                "Setting rrpo.read_closed_book is False with rrpo.drop_closed_book True; wanted True, because what a "
                "question earns without documents has to be read first. Leave one of them out."
            )
        compared = self.values_from in ("group", "leave_one_out") or self.scale in ("question", "deviation")
        if compared and self.samples < 2:
            raise ConfigurationError(
                f"Setting rrpo.samples is {self.samples} with rrpo.baseline {self.baseline} and rrpo.scale "
                f"{self.scale}; wanted 2 or more, because they compare the samples of a question. Raise rrpo.samples."
            )
        others = 3 if compared else 2
        if self.shared_steps and self.samples < others:
            raise ConfigurationError(
                f"Setting rrpo.shared_steps is {self.shared_steps} with rrpo.samples {self.samples}, rrpo.baseline "
                f"{self.baseline} and rrpo.scale {self.scale}; wanted {others} samples or more, because the steps that "
                "all samples share have nothing to be compared with, and one sample shares none. Raise rrpo.samples, "
                "or leave rrpo.shared_steps out."
            )

    @property
    def values_from(self) -> str:
        """The baseline, with `auto` resolved."""
        if self.baseline != "auto":
            return self.baseline
        return "group" if self.scale in ("question", "deviation") else "reference"
