"""What rerankers that score in torch have in common: scores out of `forward`, counts of what was cut, LoRA, folders.
Each is a ScoringPolicy, so RRPO trains it."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer

from rankwright.batching import tokens_at_once
from rankwright.errors import MissingDependencyError, ModelError, RankwrightError, ResourceNotFoundError, StorageError
from rankwright.llms.folders import fetched, refuse_adapter, refuse_code
from rankwright.prompts.passage import checked_template
from rankwright.rerankers.changes import noted
from rankwright.rerankers.ranking import Scorer
from rankwright.types import RerankRequest, Scored

SHORTEST = 4
"""Tokens of the shortest pair that says something: two, and what stands around them."""


MOST_LAYERS = 1000
"""More than any published model has."""


def padded(flat: Tensor, counts: Sequence[int]) -> Tensor:
    """scores_QD out of the scores of all documents in a row, -inf where a query has fewer than the longest list."""
    rows, width = torch.split(flat, list(counts)), max(counts)
    return torch.stack([nn.functional.pad(row, (0, width - len(row)), value=-torch.inf) for row in rows])


class ScoringReranker(Scorer, nn.Module):
    """A Scorer and a ScoringPolicy; a subclass says how documents get their scores (`forward`, which fills `read`) and
    what its folder holds (`_write`).

    Args:
        model: a model of transformers.
        tokenizer: its tokenizer; `model_max_length` is the length that inputs are cut to.
        template: joins title and text, with the fields {title} and {text}.
        name: how it appears in tables.
        max_tokens: padded tokens of one forward pass; None takes as many as suit the device.
    """

    def __init__(self, model: Any, tokenizer: Any, *, template: str, name: str, max_tokens: int | None) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.template = template
        self._max_tokens = max_tokens
        self._name = name
        self.read: list[tuple[int, bool]] = []
        """Of each document of the last forward pass, in order: its tokens, and whether it was cut."""

    @property
    def max_tokens(self) -> int:
        """Padded tokens of one forward pass."""
        return self._max_tokens or tokens_at_once(self.device.type)

    @max_tokens.setter
    def max_tokens(self, max_tokens: int) -> None:
        """As many in the place of those that suit the device."""
        self._max_tokens = max_tokens

    @property
    def template(self) -> str:
        """Joins title and text; setting one that cannot do so raises ConfigurationError."""
        return self._template

    @template.setter
    def template(self, template: str) -> None:
        """Checked as the constructor's."""
        self._template = checked_template(template)

    @property
    def name(self) -> str:
        """How it was asked for: folder, hub name or "reference"; and how it is computed, where that is not in fp32."""
        return self._name

    def rename(self, name: str) -> None:
        """Gives it the name of another way to compute it."""
        self._name = name

    @property
    def max_length(self) -> int:
        """Tokens that are read at once: of query and document, or of a whole prompt."""
        return int(self.tokenizer.model_max_length)

    @property
    def scale(self) -> dict[str, float]:
        """What `rankwright calibrate` fitted, as config.json keeps it; empty where nothing was."""
        fitted = {} if self.temperature == 1 else {"temperature": self.temperature}
        return fitted if self.threshold is None else {**fitted, "threshold": self.threshold}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @abstractmethod
    def forward(self, requests: Sequence[RerankRequest]) -> Tensor:
        """scores_QD, with gradient when grad is on; -inf where a query has fewer documents than the longest list."""

    @abstractmethod
    def _write(self, folder: Path) -> None:
        """Writes the model into an existing folder."""

    @abstractmethod
    def _lora_parts(self, linear: set[str]) -> tuple[str, set[str], list[str]]:
        """peft's name of the task, and out of the names of all linear layers those that get low-rank updates and those
        that are trained whole."""

    @torch.no_grad()
    def score_batch(self, requests: Sequence[RerankRequest]) -> list[Scored]:
        """One Scored per request, in order, by the forward pass outside training."""
        filled = [request for request in requests if request.documents]
        training = self.training
        self.eval()
        self.read = []
        rows = iter(self(filled).double().cpu().tolist() if filled else [])
        self.train(training)
        read = iter(self.read)
        return [_scored(next(rows) if r.documents else [], list(islice(read, len(r.documents)))) for r in requests]

    def _count(self, request: RerankRequest, scored: Scored) -> None:
        """Nothing: the forward pass has counted, in training too."""

    def add_lora(self, rank: int, alpha: int, *, seed: int = 0) -> None:
        """Freezes the model and trains low-rank updates of its linear layers, plus the head of a classifier; `seed` is
        that of the updates' random halves."""
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError as error:
            raise MissingDependencyError('LoRA needs peft; run pip install "rankwright[train]".') from error
        linear = {n.rsplit(".", 1)[-1] for n, m in self.model.named_modules() if isinstance(m, nn.Linear)}
        task, targets, heads = self._lora_parts(linear)
        # A head stays frozen unless it is named here.
        config = LoraConfig(
            task_type=task, r=rank, lora_alpha=alpha, target_modules=sorted(targets), modules_to_save=heads or None
        )
        with warnings.catch_warnings(), torch.random.fork_rng():
            torch.manual_seed(seed)
            # peft 0.21 asks transformers by a name that is about to change; nothing that a user could do about it.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            self.model = get_peft_model(self.model, config)

    def merge_lora(self) -> None:
        """Adds the low-rank updates to the weights, so that the saved folder is a plain model."""
        if hasattr(self.model, "merge_and_unload"):
            self.model = cast(Any, self.model).merge_and_unload()

    def save(self, folder: Path) -> None:
        """Writes a folder that `rankwright.load` opens with equal scores, and other tools as a plain model of its kind.
        In the place of a run's model it stands in the run's manifest.

        Raises:
            StorageError: the folder cannot be written.
        """
        self.merge_lora()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with noted(folder):
                self._write(folder)
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"Model folder {folder} cannot be written ({first_line(error)}); wanted a writable folder and "
                "free space. Free some, or name another place."
            ) from error

    def _write_model(self, folder: Path) -> None:
        """Weights, config and tokenizer."""
        self.model.save_pretrained(str(folder))
        for weights in folder.glob("*.safetensors"):
            # The library leaves them readable by their owner alone; a server is often another user.
            weights.chmod((folder / "config.json").stat().st_mode)
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:  # what the last call set would be saved, and another call sets its own
            backend.no_truncation()
            backend.no_padding()
        self.tokenizer.save_pretrained(folder)


def _scored(row: Sequence[float], read: Sequence[tuple[int, bool]]) -> Scored:
    """One row of scores_QD without its padding."""
    tokens, cut = tuple(n for n, _ in read), tuple(cut for _, cut in read)
    return Scored(tuple(row[: len(read)]), tokens, cut)


def opened(path: str, model_class: Any, what: str, instead: str, check: Callable[[Any], None]) -> tuple[Any, Any, Any]:
    """Model, tokenizer and config of a folder or hub name; weights are fp32 safetensors, code there is never run.

    Args:
        path: the folder or hub name.
        model_class: the class of transformers that opens it.
        what: what it is to be, for messages.
        instead: the next step where weights are missing.
        check: raises ModelError where the config is not that of such a model.

    Raises:
        ResourceNotFoundError: nothing is found under that name.
        ModelError: what is found is something else, incomplete or damaged.
    """
    try:
        with fetched(path):
            refuse_adapter(path)
            refuse_code(path)
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            config.return_dict = True  # the only form that is read here
            _check_layers(path, config)
            check(config)
            model, report = model_class.from_pretrained(
                path,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
            if report["missing_keys"]:  # transformers fills them with random numbers
                raise ModelError(
                    f"Model '{path}' has no weights for {', '.join(sorted(report['missing_keys']))}; wanted a complete "
                    f"{what}. {instead}"
                )
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            _check_tokenizer(path, tokenizer)
            if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes of a folder without one
                raise ModelError(
                    f"Model '{path}' has a tokenizer that knows no word; wanted tokenizer.json or a vocabulary "
                    "file beside the weights. Save the tokenizer there with save_pretrained."
                )
    except RankwrightError:
        raise
    except Exception as error:  # a config that does not fit raises whatever its model's code comes upon
        if isinstance(error, OSError) and not Path(path).is_dir():
            raise ResourceNotFoundError(
                f"Model '{path}' is neither a model folder nor a hub name that could be fetched "
                f"({first_line(error)}). Check the path, or the connection and HF_TOKEN for a hub name."
            ) from error
        raise ModelError(
            f"Model '{path}' cannot be opened as a {what} ({first_line(error)}); wanted config.json, "
            "tokenizer files and safetensors weights that fit together. Save it again with save_pretrained."
        ) from error
    return model, tokenizer, config


def _check_layers(path: str, config: Any) -> None:
    """Weights are compared with the config when the model is built, which takes hours with a million layers."""
    layers = getattr(config.get_text_config(), "num_hidden_layers", None) or 0
    if layers > MOST_LAYERS:
        raise ModelError(
            f"Model '{path}' has {layers} layers in config.json; wanted at most {MOST_LAYERS}. Save the model again."
        )


def _check_tokenizer(path: str, tokenizer: Any) -> None:
    """What of tokenizer_config.json no class of transformers looks at before it is used."""
    length, names = tokenizer.model_max_length, tokenizer.model_input_names
    if not isinstance(length, int | float) or not length >= SHORTEST or "input_ids" not in list(names):
        raise ModelError(
            f"Model '{path}' has model_max_length {length!r} and model_input_names {names!r} in tokenizer_config.json; "
            f"wanted a number from {SHORTEST} on and a list with input_ids. Save the tokenizer again."
        )


def settle_scale(reranker: ScoringReranker, path: str, own: Any) -> None:
    """Temperature and threshold that `rankwright calibrate` wrote under `rankwright` in config.json."""
    own = own if isinstance(own, dict) else {}
    temperature, threshold = own.get("temperature", 1.0), own.get("threshold")
    numbers = [value for value in (temperature, threshold) if value is not None]
    finite = all(isinstance(value, int | float) and math.isfinite(value) for value in numbers)
    if not finite or temperature is None or temperature <= 0 or not 0 <= (threshold or 0) <= 1:
        raise ModelError(
            f"Model '{path}' has temperature {temperature!r} and threshold {threshold!r} under 'rankwright' in "
            "config.json; wanted a positive number and one from 0 to 1. Run rankwright calibrate, or remove them."
        )
    reranker.temperature, reranker.threshold = float(temperature), None if threshold is None else float(threshold)


def input_length(tokenizer: Any, model: Any, max_length: int | None) -> int:
    """The length asked for, or the tokenizer's own, never more than the model has positions for."""
    return int(min(max_length or tokenizer.model_max_length, _positions(model)))


def _positions(model: Any) -> int:
    """Tokens that the model has positions for."""
    table = offset_table(model)
    if table is not None:
        return len(table.weight) - table.padding_idx - 1
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 0
    return positions if positions > 0 else 512  # XLNet, which has no limit, says -1


def offset_table(model: Any) -> Any:
    """The position table of RoBERTa and its kin, which number positions from padding_idx + 1; None in other models.

    Only their table has a padding_idx: pad tokens stand at that position.
    """
    tables = (getattr(module, "position_embeddings", None) for module in model.modules())
    return next((table for table in tables if getattr(table, "padding_idx", None) is not None), None)


def first_line(error: Exception) -> str:
    """The first line of an error's text, short."""
    return str(error).strip().split("\n")[0][:200]
