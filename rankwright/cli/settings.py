"""One set of settings behind flags, YAML files and --set: frozen dataclasses, checked by pydantic, stored in the run
folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from rankwright.algorithms.config import RRPOConfig
from rankwright.errors import ConfigurationError, ResourceNotFoundError

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class DataSettings:
    """Where questions and passages come from."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    train: str = ""
    """File or folder with the training questions."""
    dev: str = ""
    """Questions that choose the best checkpoint; empty takes a share of the training questions."""
    test: str = ""
    """Questions of the final comparison; empty takes a share of the training questions."""
    format: str = "jsonl"
    """One of the formats of `rankwright validate --help`."""
    corpus: str = ""
    """Passages to retrieve from; empty pools the passages of the question files."""
    qrels: str = ""
    """Relevance labels; needed only by --method supervised and for nDCG."""
    retriever: Literal["bm25", "given"] = "bm25"
    """First stage: bm25 over the corpus, or the candidates as given."""
    depth: int = 10
    """Candidates per training question."""
    eval_depth: int = 20
    """Candidates per question of dev and test."""
    dev_share: float = 0.1
    """Share of the training questions that becomes dev where no dev file is given."""
    test_share: float = 0.2
    """Share that becomes test where no test file is given."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Stop at a bad row, or leave it out and count it."""


@dataclass(frozen=True)
class ModelSettings:
    """What learns."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: str = "reference"
    """Folder, hub name or "reference" (embedded); also the frozen reference of RRPO."""
    max_length: int = 0
    """Tokens of question and passage together, in training and in the saved model; 0 takes the model's own."""
    template: str = ""
    """Joins title and text, with {title} and {text}; empty takes the model's own. Saved with the model."""
    lora_rank: int = 0
    """0 trains all weights; else the rank of LoRA updates, merged when saved."""
    lora_alpha: int = 32
    """LoRA's scale."""
    device: str = "cpu"
    """Torch device."""


@dataclass(frozen=True)
class ReaderSettings:
    """Who answers."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    reader: str = "embedded"
    """embedded, none, the base URL of an OpenAI-compatible endpoint, or a local causal language model."""
    model: str = ""
    """Model name at the endpoint."""
    prompt: str = "reader-1"
    """Name of a shipped prompt or a file."""
    sampling: dict[str, float | int | str] = field(default_factory=dict)
    """Sampling parameters of an LLM reader's requests; empty takes max_tokens 64 and temperature 0. A reasoning model
    wants for example {max_completion_tokens: 2000}."""
    cache: str = "runs/reads.sqlite"
    """SQLite file that keeps all answers; shared by all runs."""
    concurrency: int = 16
    """Requests in flight."""
    requests_per_minute: float = 0
    """0 sets no limit."""
    tokens_per_minute: float = 0
    """0 sets no limit."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key."""
    price_input: float | None = None
    """Price of a million input tokens; unknown where not given."""
    price_output: float | None = None
    """Price of a million output tokens."""
    deadline: float = 120.0
    """Seconds that a call with all its retries may take."""


@dataclass(frozen=True)
class LoopSettings:
    """The loop; see rankwright.training.TrainConfig."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    epochs: float = 2.0
    batch_size: int = 8
    accumulation: int = 1
    learning_rate: float = 2e-5
    eval_steps: int = 25
    patience: int = 0
    trainer: dict[str, Any] = field(default_factory=dict)
    """Further TrainingArguments."""


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides a training run."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    method: Literal["rrpo", "supervised"] = "rrpo"
    """Learn from the reader's answers, or from relevance labels."""
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    reader: ReaderSettings = field(default_factory=ReaderSettings)
    reward: str = "f1"
    """f1, em, sub_em, rouge_l or package.module:function."""
    loop: LoopSettings = field(default_factory=LoopSettings)
    rrpo: RRPOConfig = field(default_factory=RRPOConfig)
    top_k: int = 3
    """Passages that the reader sees on dev and test."""
    seed: int = 0
    """Order of questions, sampling noise, splits and resampling."""


_ADAPTER = TypeAdapter(RunSettings)


def load_settings(config: Path | None, assignments: Sequence[str], flags: Mapping[str, Any]) -> RunSettings:
    """Settings out of a YAML file, then flags that were given, then `--set a.b=c`; the later wins.

    Args:
        config: YAML file with the fields of RunSettings.
        assignments: texts like "rrpo.samples=8".
        flags: dotted name -> value; None means not given.

    Raises:
        ConfigurationError: an unknown name or a value of the wrong kind.
    """
    tree = _read_yaml(config) if config else {}
    for name, value in flags.items():
        if value is not None:
            _assign(tree, name, value)
    for text in assignments:
        name, sign, value = text.partition("=")
        if not sign:
            raise ConfigurationError(f"--set was given '{text}'; wanted NAME=VALUE, for example --set rrpo.samples=8.")
        _assign(tree, name.strip(), yaml.safe_load(value))
    return settings_from(tree)


def settings_from(tree: Mapping[str, Any]) -> RunSettings:
    """Checks a tree of plain values and makes settings of it."""
    try:
        return _ADAPTER.validate_python(dict(tree))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(
            f"Setting {place} is {first.get('input')!r}: {first['msg']}. See docs/settings.md for all names and values."
        ) from error


def settings_tree(settings: RunSettings) -> dict[str, Any]:
    """Plain values of settings, as the run folder stores them."""
    return asdict(settings)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResourceNotFoundError(f"Config file {path} cannot be read ({error.strerror}). Check the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"Config file {path} is not valid YAML ({error}). Mend the line named.") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigurationError(f"Config file {path} holds a {type(tree).__name__}; wanted settings as NAME: VALUE.")
    return tree


def _assign(tree: dict[str, Any], name: str, value: Any) -> None:
    *parents, leaf = name.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigurationError(f"Setting {name} cannot be set: {parent} is a single value. See docs/settings.md.")
    tree[leaf] = value
