"""One set of settings behind flags, YAML files and --set: frozen dataclasses, stored in the run folder.

Pydantic checks names and kinds, the classes themselves what a value may be: before any question is read or paid for.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from rankwright.algorithms.config import RRPOConfig, TrainConfig, above_zero, at_least, require, share
from rankwright.algorithms.generating import GeneratingConfig, GRPOConfig, SFTConfig
from rankwright.budget import FREE, BudgetConfig
from rankwright.errors import ConfigurationError, ResourceNotFoundError
from rankwright.expansion import MAX_FAILED, PROMPT, REPEATS
from rankwright.llms.calls import Prices, output_limit
from rankwright.llms.completions import Api
from rankwright.llms.endpoint import SECRET_NAME, check_sampling_names, checked_url, checked_variable, is_address
from rankwright.llms.local import DEFAULT_NEW_TOKENS
from rankwright.prompts.passage import checked_template
from rankwright.readers.llm import SAMPLING
from rankwright.reading import MAX_FAILED_READS
from rankwright.rewards import needs_reader

_STRICT = ConfigDict(extra="forbid")
LARGEST_SEED = 2**32 - 1
"""What numpy takes."""


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
    """Relevance labels, for --method supervised and nDCG; for beir a file or a split, by default train where it
    exists."""
    dev_qrels: str = ""
    """Labels of the dev file; empty takes those of `qrels`, for beir the split dev where it exists."""
    test_qrels: str = ""
    """Labels of the test file; empty takes those of `qrels`, for beir the split test where it exists."""
    topics: str = ""
    """Questions of TREC runs, the same file for train, dev and test; empty looks for topics* or queries* beside each
    run."""
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

    def __post_init__(self) -> None:
        shares = self.dev_share + self.test_share
        require(
            "data.",
            self,
            {
                "depth": at_least(1, self.depth),
                "eval_depth": at_least(1, self.eval_depth),
                "dev_share": (0 <= self.dev_share < 1, "a share from 0 to below 1"),
                "test_share": (self.test_share >= 0 and shares < 1, "0 or more, and below 1 together with dev_share"),
            },
        )


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

    def __post_init__(self) -> None:
        require(
            "model.",
            self,
            {
                "max_length": at_least(0, self.max_length),
                "lora_rank": at_least(0, self.lora_rank),
                "lora_alpha": at_least(1, self.lora_alpha),
            },
        )
        if self.template:
            checked_template(self.template)


def _check_for_secrets(place: str, api_key_env: str, sampling: Mapping[str, Any]) -> None:
    """Raises ConfigurationError where a secret stands: first of all checks, for the others show what they refuse."""
    if is_address(place):
        checked_url(place)
    checked_variable(api_key_env)
    check_sampling_names(sampling)


@dataclass(frozen=True)
class ReaderSettings:
    """Who answers."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    reader: str = "embedded"
    """embedded, none, the base URL of an OpenAI-compatible endpoint, or a local causal language model; vllm: before its
    name runs it by vLLM."""
    model: str = ""
    """Model name at the endpoint."""
    api: Api = "chat"
    """Dialect of the endpoint: chat, or completions for a base model without a chat template."""
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
    attempt_timeout: float | None = None
    """Seconds that one attempt of a call may take; without it, as many as the call has left."""
    max_retries: int = 4
    """Further attempts of a call that failed for a reason that may pass."""

    def __post_init__(self) -> None:
        _check_for_secrets(self.reader, self.api_key_env, self.sampling)
        require(
            "reader.",
            self,
            {
                "concurrency": at_least(1, self.concurrency),
                "requests_per_minute": at_least(0, self.requests_per_minute),
                "tokens_per_minute": at_least(0, self.tokens_per_minute),
                "price_input": at_least(0, self.price_input or 0),
                "price_output": at_least(0, self.price_output or 0),
                "deadline": above_zero(self.deadline),
                "attempt_timeout": above_zero(1 if self.attempt_timeout is None else self.attempt_timeout),
                "max_retries": at_least(0, self.max_retries),
            },
        )
        if self.api != "chat" and not self.is_endpoint:
            raise ConfigurationError(
                f"Setting reader.api is {self.api}, but {self.reader} is no endpoint; wanted it with a base URL. A "
                "local model without a chat template gets bare texts by itself: leave reader.api out."
            )
        for what, given in (("model name", self.model), ("prompt", "" if self.prompt == "reader-1" else self.prompt)):
            if given and self.reader in ("embedded", "none"):
                raise ConfigurationError(
                    f"Reader {self.reader} takes no {what}, but '{given}' was given. Leave it out, or name an endpoint "
                    "or a language model with --reader."
                )

    @property
    def is_endpoint(self) -> bool:
        """Whether the reader is asked over the network."""
        return self.reader.startswith(("http://", "https://"))

    @property
    def prices(self) -> Prices | None:
        """Of its tokens: 0 on this machine, None where they are not known."""
        if not self.is_endpoint:
            return FREE
        if self.price_input is None or self.price_output is None:
            return None
        return Prices(self.price_input, self.price_output)

    @property
    def output_limit(self) -> int | None:
        """Tokens that an answer may have, 0 for one that is copied from a passage; None where nothing limits them."""
        if self.reader in ("embedded", "none"):
            return 0
        given = output_limit(self.sampling or SAMPLING)
        return DEFAULT_NEW_TOKENS if given is None and not self.is_endpoint else given


@dataclass(frozen=True)
class ExpansionSettings:
    """What is searched for besides the question (Query2Doc)."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    llm: str = "none"
    """Who writes a passage to search with: none, reader (the language model that reads), the base URL of an
    OpenAI-compatible endpoint, or a local causal language model."""
    model: str = ""
    """Model name at the endpoint; empty takes the reader's, where the endpoint is the same."""
    prompt: str = PROMPT
    """Name of a shipped prompt or a file with {question} in it."""
    repeats: int = REPEATS
    """How often the question stands before the passage in the query."""
    sampling: dict[str, float | int | str] = field(default_factory=dict)
    """Sampling parameters of the requests; empty takes max_tokens 256 and temperature 0."""
    max_failed: float = MAX_FAILED
    """Largest share of questions without a passage, which are searched as they are; above it the command stops."""
    api_key_env: str = ""
    """Environment variable that holds the key; empty takes that of the reader, or OPENAI_API_KEY where that one is for
    another endpoint."""
    price_input: float | None = None
    """Price of a million input tokens; without prices here those of the reader hold, unless they are for another
    model."""
    price_output: float | None = None
    """Price of a million output tokens."""

    def __post_init__(self) -> None:
        _check_for_secrets(self.llm, self.api_key_env or ReaderSettings.api_key_env, self.sampling)
        require(
            "expansion.",
            self,
            {
                "repeats": at_least(1, self.repeats),
                "max_failed": share(self.max_failed),
                "price_input": at_least(0, self.price_input or 0),
                "price_output": at_least(0, self.price_output or 0),
            },
        )
        if self.model and not self.wanted:
            raise ConfigurationError(
                f"Expansion model '{self.model}' was given, but nobody to ask; wanted both or neither. Add "
                "--expand-with reader or an endpoint's base URL, or take the model back (--expand-model '')."
            )

    @property
    def wanted(self) -> bool:
        """Whether queries are expanded."""
        return self.llm != "none"


NO_EXPANSION = ExpansionSettings()


def check_expansion(expansion: ExpansionSettings, reader: str, retriever: str) -> None:
    """Whether the expansion fits reader and first stage.

    Raises:
        ConfigurationError: it does not.
    """
    if expansion.wanted and (reader if expansion.llm == "reader" else expansion.llm) in ("embedded", "none"):
        raise ConfigurationError(
            f"Expansion was given --expand-with {expansion.llm}, and the reader is {reader}; wanted a language model, "
            "which can write. Give an endpoint's base URL with --expand-model NAME, or a local model."
        )
    if expansion.wanted and retriever == "given":
        raise ConfigurationError(
            f"Expansion by {expansion.llm} was given beside --retriever given, which searches nothing; wanted one of "
            "them. Leave one out, or write the candidates first with rankwright retrieve."
        )


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides a training run."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    method: Literal["rrpo", "supervised", "grpo", "sft"] = "rrpo"
    """What learns, and from what. rrpo and supervised: a model that scores, from the reader's answers or from relevance
    labels. grpo and sft: a language model that writes its judgement (model.name), from a reward or from labels."""
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    reader: ReaderSettings = field(default_factory=ReaderSettings)
    expansion: ExpansionSettings = field(default_factory=ExpansionSettings)
    reward: str = "f1"
    """f1, em, sub_em, rouge_l (of the reader's answer) or package.module:function; for method grpo also the reward of a
    paper (docs/ranking-rewards.md), and with --reader none a function that prices completions."""
    reward_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the reward by name, for example recall_weight: 0.3; a function gets them as keywords."""
    loop: TrainConfig = field(default_factory=TrainConfig)
    rrpo: RRPOConfig = field(default_factory=RRPOConfig)
    generating: GeneratingConfig = field(default_factory=GeneratingConfig)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    top_k: int = 3
    """Passages that the reader sees on dev and test."""
    max_failed_reads: float = MAX_FAILED_READS
    """Largest share of failed reads in the comparison at the end; above it nothing is reported, and the model is kept.
    Training has rrpo.max_failed_reads."""
    seed: int = 0
    """Order of questions, sampling noise, splits, resampling, random start of LoRA updates."""

    def __post_init__(self) -> None:
        depth = self.data.eval_depth
        require(
            "",
            self,
            {
                "top_k": (1 <= self.top_k <= depth, f"1 to {depth}, the candidates of a question (data.eval_depth)"),
                "max_failed_reads": share(self.max_failed_reads),
                "seed": (0 <= self.seed <= LARGEST_SEED, f"0 to {LARGEST_SEED}"),
            },
        )
        if self.method == "rrpo" and self.reader.reader == "none":
            raise ConfigurationError(
                "Method rrpo was given --reader none; it learns from a reader's answers. Give a reader or --method "
                "supervised."
            )
        if self.writes:
            self._check_what_writes()
        check_expansion(self.expansion, self.reader.reader, self.data.retriever)
        if self.budget.cost:
            self._check_that_cost_can_be_known()

    @property
    def writes(self) -> bool:
        """Whether what learns is a language model that writes its judgement."""
        return self.method in ("grpo", "sft")

    @property
    def asks_reader(self) -> bool:
        """Whether training asks the reader."""
        return self.method == "rrpo" or (self.method == "grpo" and self._prices_answers)

    @property
    def _prices_answers(self) -> bool:
        """Whether the reward is that of a reader's answer: a metric, or the user's function unless nobody reads."""
        return needs_reader(self.reward) or (":" in self.reward and self.reader.reader != "none")

    def _check_what_writes(self) -> None:
        if self.loop.stop_on_alarm:
            raise ConfigurationError(
                f"Setting loop.stop_on_alarm is true, but method {self.method} has no alarms; wanted false. Leave it "
                "out."
            )
        if self.model.name == "reference":
            raise ConfigurationError(
                f"Method {self.method} was given --model reference, which scores and cannot write; wanted a causal "
                "language model. Give a folder or a hub name, for example --model Qwen/Qwen2.5-0.5B-Instruct."
            )
        if self.method == "grpo" and self._prices_answers and self.reader.reader == "none":
            raise ConfigurationError(
                f"Reward {self.reward} pays a reader's answer, but --reader none was given; wanted a reader, or a "
                "reward of the ranking alone. Give --reader, or --reward rearank."
            )
        if self.generating.window > self.data.depth:
            raise ConfigurationError(
                f"Setting generating.window is {self.generating.window}, but a training question has data.depth "
                f"{self.data.depth} candidates; wanted as many at least. Raise --depth or lower generating.window."
            )

    def _check_that_cost_can_be_known(self) -> None:
        if self.reader.prices is None:
            raise ConfigurationError(
                f"Limit --max-cost is {self.budget.cost:g}, but the price of reader {self.reader.reader} is not known; "
                "wanted --price-input and --price-output, each for a million tokens. Give both, or limit "
                "--max-reader-calls."
            )
        if self.reader.is_endpoint and self.reader.output_limit is None:
            raise ConfigurationError(
                f"Limit --max-cost is {self.budget.cost:g}, but reader.sampling is {self.reader.sampling!r}; wanted "
                "max_tokens or max_completion_tokens in it, because an answer without end may cost anything."
            )


_RUN = TypeAdapter(RunSettings)
_MODEL = TypeAdapter(ModelSettings)
_PARTS: Mapping[str, TypeAdapter[Any]] = {
    "reader": TypeAdapter(ReaderSettings),
    "expansion": TypeAdapter(ExpansionSettings),
}


def load_settings(
    config: Path | None,
    assignments: Sequence[str],
    flags: Mapping[str, Any],
    recipe: Mapping[str, Any] | None = None,
) -> RunSettings:
    """Settings out of a recipe, then a YAML file, then flags that were given, then `--set a.b=c`; the later wins.

    Args:
        config: YAML file with the fields of RunSettings, or config.json of a run.
        assignments: texts like "rrpo.samples=8".
        flags: dotted name -> value; None means not given.
        recipe: dotted name -> value.

    Raises:
        ConfigurationError: an unknown name, a value of the wrong kind or out of range.
    """
    tree = filled({}, [], recipe or {})
    return settings_from(filled(_merged(tree, _read_yaml(config) if config else {}), assignments, flags))


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees; where both have a value, that of `above`."""
    both = {name for name in above if isinstance(above[name], Mapping) and isinstance(below.get(name), Mapping)}
    return {**below, **above, **{name: _merged(below[name], above[name]) for name in both}}


def given_names(config: Path | None, assignments: Sequence[str], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted name -> value of all that a user gave, by the same rules."""
    return flat(filled(_read_yaml(config) if config else {}, assignments, flags))


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of settings as dotted name -> value; an empty group stays a value."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else {f"{prefix}{name}": value}
    return found


def load_reader_settings(config: Path | None, assignments: Sequence[str], flags: Mapping[str, Any]) -> ReaderSettings:
    """The reader's part alone, by the same names and rules; of a training run's file the other parts are passed over.

    Raises:
        ConfigurationError: as load_settings; also for a name outside of `reader.` and `expansion.`.
    """
    return _load_part("reader", config, assignments, flags)


def load_expansion_settings(
    config: Path | None, assignments: Sequence[str], flags: Mapping[str, Any]
) -> ExpansionSettings:
    """The expansion's part alone, as load_reader_settings."""
    return _load_part("expansion", config, assignments, flags)


def load_start(config: Path | None) -> ModelSettings:
    """How a training run opens the model that it starts from; without a file as every model is opened."""
    stored = _read_yaml(config) if config else {}
    return validated(_MODEL, stored.get("model") or {}, "model.")


def _load_part(name: str, config: Path | None, assignments: Sequence[str], flags: Mapping[str, Any]) -> Any:
    stored = _read_yaml(config) if config else {}
    tree = filled({part: stored.get(part) or {} for part in _PARTS}, assignments, flags)
    others = sorted(given for given in flat(tree) if given.partition(".")[0] not in _PARTS)
    if others:
        of_training = others[0].partition(".")[0] in settings_tree(RunSettings())
        where = "" if of_training else " Settings llm. and those of a strategy go with eval --llm."
        raise ConfigurationError(
            f"--set was given {others[0]}, which says nothing here; wanted a name that begins with reader. or "
            f"expansion. The rest has flags of its own: see --help.{where}"
        )
    return validated(_PARTS[name], tree[name], f"{name}.")


def settings_from(tree: Mapping[str, Any]) -> RunSettings:
    """Checks a tree of plain values and makes settings of it."""
    return validated(_RUN, dict(tree), "")


def filled(tree: dict[str, Any], assignments: Sequence[str], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with the flags that were given, by dotted name, then with NAME=VALUE texts."""
    for name, value in flags.items():
        if value is not None:
            _assign(tree, name, value)
    for text in assignments:
        name, sign, value = text.partition("=")
        if not sign:
            given = f"'{text}'" if _PLAIN.fullmatch(text) else "a text without ="
            raise ConfigurationError(f"--set was given {given}; wanted NAME=VALUE, for example --set rrpo.samples=8.")
        _assign(tree, name.strip(), _value(name, value))
    return tree


def _value(name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(
            f"--set {name} was given what is no YAML ({_yaml_problem(error)}); wanted a value like 8, text or "
            "{a: 1}. Quote it."
        ) from None  # it repeats the value, which may be a secret


def _yaml_problem(error: Exception) -> str:
    """What is wrong and where, without the line itself."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return type(error).__name__ if isinstance(error, yaml.YAMLError) else str(error)
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"


def validated(adapter: TypeAdapter[Any], tree: Any, prefix: str) -> Any:
    """What the adapter makes of plain values; `prefix` stands before the names in messages.

    Raises:
        ConfigurationError: an unknown name, or a value of the wrong kind or out of range.
    """
    try:
        return adapter.validate_python(tree)
    except ValidationError as error:
        found = error.errors()
        first, path = found[0], _path(found[0])
        own = first.get("ctx", {}).get("error")
        if isinstance(own, ConfigurationError):  # a class refused its values; its sentence is whole
            raise own from None
        place = (prefix + ".".join(path)).rstrip(".")
        if first["type"] == "unexpected_keyword_argument":
            raise ConfigurationError(
                f"There is no setting {place}. {_meant(place)}See docs/settings.md for all names and values."
            ) from None  # it repeats the value
        wanted = " or ".join(dict.fromkeys(_wanted(one) for one in found if _path(one) == path))
        raise ConfigurationError(
            f"Setting {place} is {_shown(first)}; {f'wanted {wanted}' if wanted else first['msg']}. "
            f"{_meant_value(first)}See docs/settings.md for all names and values."
        ) from None  # it repeats the value


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "dict": "settings by name, like {name: value}",
    "dataclass": "settings by name, like {name: value}",
    "list": "a list, like [value, value]",
}
"""How pydantic's types of errors begin -> what is wanted, in words for users."""


def _path(error: Mapping[str, Any]) -> list[str]:
    """Names that lead to a wrong value, without the kinds that pydantic tried where it may be of several."""
    return [str(part) for part in error["loc"] if part not in ("int", "float", "str", "bool", "[key]")]


def _wanted(error: Mapping[str, Any]) -> str:
    """In words for users; empty for errors that hardly any setting can have."""
    if error["type"] == "literal_error":
        return str(error["ctx"]["expected"])
    return _KINDS.get(error["type"].partition("_")[0], "")


def _meant_value(error: Mapping[str, Any]) -> str:
    """The allowed value that a wrong one is most like."""
    allowed = re.findall("'([^']*)'", _wanted(error)) if error["type"] == "literal_error" else []
    close = difflib.get_close_matches(str(error["input"]), allowed, n=1)
    return f"Did you mean {close[0]}? " if close else ""


def _meant(place: str) -> str:
    """The known setting that an unknown name is most like."""
    known = _names(settings_tree(RunSettings()))
    same_leaf = [name for name in known if name.rpartition(".")[2] == place.rpartition(".")[2]]
    close = same_leaf or difflib.get_close_matches(place, known, n=1, cutoff=0.75)
    return f"Did you mean {close[0]}? " if close else ""


def _names(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Full names of all settings."""
    found: list[str] = []
    for name, value in tree.items():
        found += _names(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else [prefix + name]
    return found


_FOUND: Mapping[type, str] = {
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "a group of settings",
}
_PLAIN = re.compile(r"[\w.+-]{1,24}")
"""Text that is no address and hardly a key."""


def _shown(error: Mapping[str, Any]) -> str:
    """What a wrong setting is: its kind alone where it is no plain value or stands for a whole group, which a key or an
    address easily does; nothing where by its name it may be a secret."""
    value, names = error.get("input"), [str(part) for part in error["loc"]]
    if value is None:
        return "null"
    # A variable's name is no secret, but a key is easily given in its place, and in that of reader.api.
    hidden = any(SECRET_NAME.search(name.removesuffix("_env")) or name == "api" for name in names)
    if hidden and not isinstance(value, dict | list):
        return "not shown, for it may be a secret"
    plain = isinstance(value, bool | int | float) or (isinstance(value, str) and _PLAIN.fullmatch(value))
    for_group = error["type"].startswith(("dataclass", "dict"))
    return repr(value) if plain and not for_group else _FOUND.get(type(value), "a value of another kind")


def settings_tree(settings: RunSettings) -> dict[str, Any]:
    """Plain values of settings, as the run folder stores them."""
    return asdict(settings)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        tree = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise ResourceNotFoundError(f"Config file {path} cannot be read ({error.strerror}). Check the path.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigurationError(
            f"Config file {path} is not valid YAML or JSON ({_yaml_problem(error)}). Mend the line named."
        ) from None  # it repeats the line, which may hold a secret
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigurationError(f"Config file {path} holds a {type(tree).__name__}; wanted settings as NAME: VALUE.")
    tree.pop("run_id", None)  # stands in config.json of a run
    return tree


def _assign(tree: dict[str, Any], name: str, value: Any) -> None:
    *parents, leaf = name.split(".")
    for parent in parents:
        if tree.get(parent) is None:  # not there, or a name without settings in YAML
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise ConfigurationError(f"Setting {name} cannot be set: {parent} is a single value. See docs/settings.md.")
    tree[leaf] = value
