"""Settings of rerankers that write what they judge, and of their training; imports no torch, so that the command line
can show them quickly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rankwright.algorithms.config import above_zero, at_least, one_of, require, share


@dataclass(frozen=True)
class GeneratingConfig:
    """What a language model is shown, and which of its weights learn; the same for both ways to train it."""

    prompt: str = "listwise-think-1"
    """Name of a shipped ranking prompt or a file."""
    window: int = 20
    """First candidates of a question that are judged in training: in one prompt, or with a pointwise prompt in one
    prompt each. Questions with fewer are kept, but for a pointwise prompt, which leaves them out."""
    passage_limit: int = 0
    """How much of a passage is shown, in `passage_unit`; 0 leaves it to the prompt."""
    passage_unit: Literal["characters", "words", "tokens"] = "words"
    """What `passage_limit` counts."""
    max_prompt_length: int = 0
    """Tokens of a prompt above which training does not begin; 0 takes what the model leaves beside its answer."""
    shorten_to_fit: bool = False
    """Shortens the passages of a prompt above that limit, all to the same length, until it fits, and says how many
    prompts that were; else training does not begin."""
    lora_dropout: float = 0.0
    """Dropout of LoRA updates (model.lora_rank)."""
    lora_targets: str = ""
    """Layers that get LoRA updates: all (every linear one), names with commas between, or empty for PEFT's own
    choice."""

    gradient_checkpointing: bool = False
    """Computes activations again in the backward pass: less memory, about a fifth slower."""

    def __post_init__(self) -> None:
        require(
            "generating.",
            self,
            {
                "window": at_least(1, self.window),
                "passage_limit": at_least(0, self.passage_limit),
                "passage_unit": one_of(self.passage_unit, "characters", "words", "tokens"),
                "max_prompt_length": at_least(0, self.max_prompt_length),
                "shorten_to_fit": one_of(self.shorten_to_fit, True, False),
                "gradient_checkpointing": one_of(self.gradient_checkpointing, True, False),
                "lora_dropout": (0 <= self.lora_dropout < 1, "a share from 0 to below 1"),
            },
        )


@dataclass(frozen=True)
class GRPOConfig:
    """Settings of GRPO (DeepSeekMath, arXiv 2402.03300), which TRL carries out. `loop.batch_size` times
    `loop.accumulation` is the number of questions of one generation."""

    rollouts: int = 8
    """Completions of each prompt, which are compared with each other."""
    temperature: float = 1.0
    """Of sampling."""
    top_p: float = 1.0
    """Smallest probability mass that is sampled from."""
    max_completion_length: int = 1024
    """Tokens of a completion; what is longer is cut off, and mostly malformed."""
    beta: float = 0.0
    """Weight of the KL to the starting weights; 0 needs no second model."""
    clip: float = 0.2
    """Clip range epsilon of the ratio. With iterations 1 and updates 1 it never acts."""
    loss: Literal["sequence_mean", "token_mean", "dr_grpo"] = "sequence_mean"
    """Mean over tokens in each completion, then over completions (GRPO); mean over all tokens (DAPO, arXiv 2503.14476);
    or sum over tokens by the longest possible completion (Dr. GRPO, arXiv 2503.20783)."""
    scale: Literal["deviation", "batch", "none"] = "deviation"
    """What advantages are divided by: the deviation of the prompt's rewards, of all rewards, or nothing."""
    iterations: int = 1
    """Passes over the completions of one generation."""
    updates: int = 1
    """Optimizer steps of one pass: into so many parts the questions of a generation are divided."""
    completions_per_pass: int = 8
    """Completions of one forward and backward pass in each process, at most; decides memory and speed alone."""
    completions_at_once: int = 64
    """Completions that transformers generates at once in each process; decides memory and speed alone."""
    generation: Literal["transformers", "vllm"] = "transformers"
    """Who generates. vllm in the same process; it is not tested here."""
    max_failed_rewards: float = 0.1
    """The run stops when a larger share of the last 300 completions has no reward (after at least 50)."""

    def __post_init__(self) -> None:
        require(
            "grpo.",
            self,
            {
                "rollouts": at_least(2, self.rollouts),
                "temperature": above_zero(self.temperature),
                "top_p": (0 < self.top_p <= 1, "above 0, at most 1"),
                "max_completion_length": at_least(1, self.max_completion_length),
                "beta": at_least(0, self.beta),
                "clip": above_zero(self.clip),
                "loss": one_of(self.loss, "sequence_mean", "token_mean", "dr_grpo"),
                "scale": one_of(self.scale, "deviation", "batch", "none"),
                "iterations": at_least(1, self.iterations),
                "updates": at_least(1, self.updates),
                "completions_per_pass": at_least(1, self.completions_per_pass),
                "completions_at_once": at_least(1, self.completions_at_once),
                "generation": one_of(self.generation, "transformers", "vllm"),
                "max_failed_rewards": share(self.max_failed_rewards),
            },
        )


GRPO_MAY_CHANGE = ("completions_per_pass", "completions_at_once", "generation", "max_failed_rewards")
"""Settings of GRPO that may change between sessions: they do not decide the result."""


@dataclass(frozen=True)
class SFTConfig:
    """Settings of supervised fine-tuning on the best judgement that relevance labels allow."""

    max_length: int = 0
    """Tokens of prompt and completion above which training does not begin; 0 takes the model's own limit."""
    ranking_loss: Literal["none", "ranknet"] = "none"
    """Besides the completion's cross-entropy: weighted RankNet over the logits of the first identifier (FIRST, arXiv
    2406.15657)."""
    ranking_weight: float = 0.0
    """Weight of the ranking loss; 10 in FIRST."""
    embedding_noise: float = 0.0
    """NEFTune's alpha (arXiv 2310.05914); 0 adds no noise."""

    def __post_init__(self) -> None:
        require(
            "sft.",
            self,
            {
                "max_length": at_least(0, self.max_length),
                "ranking_loss": one_of(self.ranking_loss, "none", "ranknet"),
                "ranking_weight": at_least(0, self.ranking_weight),
                "embedding_noise": at_least(0, self.embedding_noise),
            },
        )
