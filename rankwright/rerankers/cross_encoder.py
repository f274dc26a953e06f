"""The cross-encoder: one transformer pass per (query, document) pair, one score. It is the policy that RRPO trains.

Any `AutoModelForSequenceClassification` with one label will do. The folder that `save` writes opens unchanged in
`sentence_transformers.CrossEncoder`, `AutoModelForSequenceClassification` and `rankwright.load`, with equal raw scores.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
)

from rankwright.backbone import ASSETS, apply_adapter, backbone_folder, load_adapter
from rankwright.batching import token_batches
from rankwright.errors import (
    ConfigurationError,
    MissingDependencyError,
    ModelError,
    ResourceNotFoundError,
    StorageError,
)
from rankwright.llms.endpoint import check_model_place
from rankwright.prompts.passage import checked_template
from rankwright.types import Document, Query, Ranking, RerankRequest, as_documents, as_query

DEFAULT_TEMPLATE = "{title}: {text}"
REFERENCE_ADAPTER = ASSETS / "reference.safetensors"
IDENTITY = "torch.nn.modules.linear.Identity"


def render(template: str, document: Document) -> str:
    """Text that stands for a document; a document without a title is its bare text.

    >>> render("{title}: {text}", Document("1", "It rains.", "Weather"))
    'Weather: It rains.'
    >>> render("{title}: {text}", Document("1", "It rains."))
    'It rains.'
    """
    if not document.title:
        return document.text
    # Not str.format: braces inside a passage or title are text.
    return re.sub(r"\{(title|text)\}", lambda field: getattr(document, field[1]), template)


class CrossEncoderReranker(nn.Module):
    """A Reranker and a ScoringPolicy over a sequence-classification model.

    Args:
        model: the transformers model, one label.
        tokenizer: its tokenizer; `model_max_length` is the length that pairs are cut to.
        template: joins title and text, with the fields {title} and {text}.
        name: how it appears in tables.
        max_tokens: padded tokens of one forward pass.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        template: str = DEFAULT_TEMPLATE,
        name: str = "model",
        max_tokens: int = 8192,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.template = template
        self.max_tokens = max_tokens
        self._name = name
        self.pairs_seen = 0
        self.pairs_cut = 0
        self.first_cut = ""
        """The first pair that was cut, for a message: its tokens and ids."""

    @classmethod
    def from_pretrained(cls, path: str, *, device: str = "cpu", max_length: int | None = None) -> CrossEncoderReranker:
        """Opens a folder or hub name; weights are fp32 safetensors, code in the repository is never run."""
        check_model_place(path)
        try:
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            if getattr(config, "num_labels", None) != 1:
                raise ModelError(
                    f"Model '{path}' has {getattr(config, 'num_labels', 'no')} labels; wanted 1. "
                    "Use a reranker (cross-encoder) checkpoint, not a classifier or an embedding model."
                )
            model, report = AutoModelForSequenceClassification.from_pretrained(
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
                    "cross-encoder. Use a reranker checkpoint, not an embedding model or a bare encoder."
                )
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes of a folder without one
                raise ModelError(
                    f"Model '{path}' has a tokenizer that knows no word; wanted tokenizer.json or a vocabulary "
                    "file beside the weights. Save the tokenizer there with save_pretrained."
                )
        except ModelError:
            raise
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            if isinstance(error, OSError) and not Path(path).is_dir():
                raise ResourceNotFoundError(
                    f"Model '{path}' is neither a model folder nor a hub name that could be fetched "
                    f"({_first_line(error)}). Check the path, or the connection and HF_TOKEN for a hub name."
                ) from error
            raise ModelError(
                f"Model '{path}' cannot be opened as a cross-encoder ({_first_line(error)}); wanted config.json, "
                "tokenizer files and safetensors weights that fit together. Save it again with save_pretrained."
            ) from error
        _settle_padding(path, tokenizer, model)
        tokenizer.model_max_length = _pair_length(tokenizer, model, max_length)
        template = _own_template(path, getattr(config, "rankwright", None))
        reranker = cls(model, tokenizer, template=template, name=str(path))
        return reranker.to(device).eval()

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
        """How it was asked for: folder, hub name or "reference"."""
        return self._name

    @property
    def max_length(self) -> int:
        """Tokens of query and document together."""
        return int(self.tokenizer.model_max_length)

    @property
    def share_cut(self) -> float:
        """Share of pairs that were longer than max_length in all scoring so far."""
        return self.pairs_cut / self.pairs_seen if self.pairs_seen else 0.0

    def forward(self, requests: Sequence[RerankRequest]) -> Tensor:
        """scores_QD, with gradient when grad is on; -inf where a query has fewer documents than the longest list."""
        width = max(len(request.documents) for request in requests)
        pairs = [(request.query, document) for request in requests for document in request.documents]
        # A text that comes twice is scored once: its scores are then equal, which kernels do not promise for the rows
        # of one batch.
        texts = list(zip(*self._texts(pairs), strict=True))
        once: dict[tuple[str, str], tuple[Query, Document]] = {}
        for text, pair in zip(texts, pairs, strict=True):
            once.setdefault(text, pair)
        row_of = {text: row for row, text in enumerate(once)}
        flat = self._score_pairs(once)[[row_of[text] for text in texts]]
        rows = torch.split(flat, [len(request.documents) for request in requests])
        return torch.stack([nn.functional.pad(row, (0, width - len(row)), value=-torch.inf) for row in rows])

    def _score_pairs(self, pair_of: Mapping[tuple[str, str], tuple[Query, Document]]) -> Tensor:
        """Raw logits of pairs, each under its two texts, in order."""
        queries, passages = [query for query, _ in pair_of], [passage for _, passage in pair_of]
        encoded = self.tokenizer(queries, passages, truncation=True, max_length=self.max_length)
        pairs = list(pair_of.values())
        lengths = [len(ids) for ids in encoded["input_ids"]]
        self.pairs_seen += len(pairs)
        self.pairs_cut += self._count_cut(
            [pair for pair, n in zip(pairs, lengths, strict=True) if n >= self.max_length]
        )
        device = next(self.model.parameters()).device
        parts: list[Tensor] = []
        order: list[int] = []
        for group in token_batches(lengths, self.max_tokens):
            batch = self.tokenizer.pad({key: [encoded[key][i] for i in group] for key in encoded}, return_tensors="pt")
            parts.append(self.model(**batch.to(device)).logits.float()[:, 0])
            order += group
        back = torch.empty(len(order), dtype=torch.long, device=device)
        back[torch.tensor(order, device=device)] = torch.arange(len(order), device=device)
        return torch.cat(parts)[back]

    def _texts(self, pairs: Sequence[tuple[Query, Document]]) -> tuple[list[str], list[str]]:
        return [query.text for query, _ in pairs], [render(self.template, document) for _, document in pairs]

    def _count_cut(self, full: Sequence[tuple[Query, Document]]) -> int:
        """How many of the pairs that fill max_length are in truth longer."""
        if not full:
            return 0
        whole = self.tokenizer(*self._texts(full), truncation=False, verbose=False)
        lengths = [len(ids) for ids in whole["input_ids"]]
        for (query, document), length in zip(full, lengths, strict=True):
            if length > self.max_length and not self.first_cut:
                self.first_cut = f"{length} tokens with passage '{document.doc_id}' for question '{query.query_id}'"
        return sum(length > self.max_length for length in lengths)

    @torch.no_grad()
    def rerank_batch(self, requests: Sequence[RerankRequest]) -> list[Ranking]:
        """One Ranking per request, best first, equal scores in input order.

        Raises:
            ModelError: a score is not finite.
        """
        filled = [request for request in requests if request.documents]
        training = self.training
        self.eval()
        scores = iter(self(filled).double().cpu().tolist() if filled else [])
        self.train(training)
        return [self._ranking(r, next(scores) if r.documents else []) for r in requests]

    def _ranking(self, request: RerankRequest, row: list[float]) -> Ranking:
        documents = request.documents
        scores = row[: len(documents)]
        for document, score in zip(documents, scores, strict=True):
            if score - score != 0:  # NaN or infinite
                raise ModelError(
                    f"Model '{self.name}' scored document '{document.doc_id}' of query '{request.query.query_id}' "
                    f"{score}; "
                    "wanted a finite number. The weights are damaged or training diverged: use an earlier checkpoint."
                )
        order = sorted(range(len(documents)), key=lambda i: -scores[i])
        return Ranking(
            request.query.query_id, tuple(documents[i].doc_id for i in order), tuple(scores[i] for i in order)
        )

    def rerank(self, query: str | Query, documents: Sequence[str | Document], top_k: int | None = None) -> Ranking:
        """Orders strings or Documents for one query.

        Args:
            query: the question.
            documents: passages; plain strings get the ids "0", "1", ... by position.
            top_k: keep only the best; None keeps all.
        """
        return self.rerank_batch([RerankRequest(as_query(query), as_documents(documents))])[0].best(top_k)

    def add_lora(self, rank: int, alpha: int, *, seed: int = 0) -> None:
        """Freezes the model and trains low-rank updates of its linear layers plus the classification head; `seed` is
        that of the updates' random halves."""
        try:
            from peft import LoraConfig, TaskType, get_peft_model
        except ImportError as error:
            raise MissingDependencyError('LoRA needs peft; run pip install "rankwright[train]".') from error
        linear = {n.rsplit(".", 1)[-1] for n, m in self.model.named_modules() if isinstance(m, nn.Linear)}
        heads = [name for name in ("classifier", "score") if name in linear or hasattr(self.model, name)]
        # The head stays frozen unless it is named here.
        config = LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=rank,
            lora_alpha=alpha,
            target_modules=sorted(linear - set(heads)),
            modules_to_save=heads,
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
        """Writes a folder that CrossEncoder, AutoModelForSequenceClassification, TEI and vLLM open.

        The activation is written twice: sentence-transformers 6 reads it from its own file, versions 4 to 5 from
            config.json and would otherwise put a sigmoid on the scores.

        Raises:
            StorageError: the folder cannot be written.
        """
        self.merge_lora()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._write(folder)
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"Model folder {folder} cannot be written ({_first_line(error)}); wanted a writable folder and "
                "free space. Free some, or name another place."
            ) from error

    def _write(self, folder: Path) -> None:
        config = self.model.config
        config.id2label, config.label2id = {0: "LABEL_0"}, {"LABEL_0": 0}
        config.sentence_transformers = {"activation_fn": IDENTITY, "version": "4.0.0"}
        config.rankwright = {"kind": "cross_encoder", "template": self.template}
        self.model.save_pretrained(str(folder))
        for weights in folder.glob("*.safetensors"):
            # The library leaves them readable by their owner alone; a server is often another user.
            weights.chmod((folder / "config.json").stat().st_mode)
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:  # what the last call set would be saved, and another call sets its own
            backend.no_truncation()
            backend.no_padding()
        self.tokenizer.save_pretrained(folder)
        for name, content in _sentence_transformers_files().items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _sentence_transformers_files() -> dict[str, Any]:
    """The files by which sentence-transformers 6 knows a cross-encoder folder."""
    return {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
        ],
        "sentence_bert_config.json": {
            "transformer_task": "sequence-classification",
            "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
            "module_output_name": "scores",
        },
        "config_sentence_transformers.json": {
            "activation_fn": IDENTITY,
            "default_prompt_name": None,
            "model_type": "CrossEncoder",
            "prompts": {},
        },
    }


def _pair_length(tokenizer: Any, model: Any, max_length: int | None) -> int:
    """The length asked for, or the tokenizer's own, never more than the model has positions for."""
    return int(min(max_length or tokenizer.model_max_length, _positions(model)))


def _positions(model: Any) -> int:
    """Tokens that the model has positions for."""
    table = _offset_table(model)
    if table is not None:
        return len(table.weight) - table.padding_idx - 1
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 0
    return positions if positions > 0 else 512  # XLNet, which has no limit, says -1


def _offset_table(model: Any) -> Any:
    """The position table of RoBERTa and its kin, which number positions from padding_idx + 1; None in other models.

    Only their table has a padding_idx: pad tokens stand at that position.
    """
    tables = (getattr(module, "position_embeddings", None) for module in model.modules())
    return next((table for table in tables if getattr(table, "padding_idx", None) is not None), None)


def _settle_padding(path: str, tokenizer: Any, model: Any) -> None:
    """Gives tokenizer and model the same pad token: a classifier on a decoder reads its score at the last token that
    is not the pad token of its config."""
    config = model.config.get_text_config()
    token = _pad_token(tokenizer, getattr(config, "pad_token_id", None))
    if token is None:
        raise ModelError(
            f"Model '{path}' has no token to pad with; wanted a pad token, or an eos token that pairs do not end in. "
            "Set the tokenizer's pad_token and the config's pad_token_id, and save both there with save_pretrained."
        )
    if token != tokenizer.pad_token:
        tokenizer.pad_token = token
    if _offset_table(model) is None:  # RoBERTa's positions hang on the id: its config keeps the one of its training
        config.pad_token_id = tokenizer.pad_token_id


def _pad_token(tokenizer: Any, of_model: int | None) -> str | None:
    """The tokenizer's pad token, else the model's, else eos; None if there is none of them.

    Where the model has none, its score has always been read at the very last token. A pad token that pairs end in, as
    eos where the tokenizer appends it, would move that: another special token takes its place.
    """
    if of_model is not None and tokenizer.pad_token is not None:
        return tokenizer.pad_token
    if of_model in tokenizer.added_tokens_decoder:  # an ordinary word would be cut out of texts as a special token
        return tokenizer.convert_ids_to_tokens(of_model)
    first = tokenizer.pad_token or tokenizer.eos_token
    if first is None:
        return None
    last = tokenizer("a", "a")["input_ids"][-1:]
    candidates = [first, *tokenizer.all_special_tokens]
    return next((token for token in candidates if tokenizer.convert_tokens_to_ids(token) not in last), None)


def _own_template(path: str, own: Any) -> str:
    """The template that a folder's config.json names under `rankwright`, or the default."""
    try:
        return DEFAULT_TEMPLATE if own is None else checked_template(own.get("template", DEFAULT_TEMPLATE))
    except (ConfigurationError, AttributeError, TypeError) as error:
        raise ModelError(
            f"Model '{path}' has {own!r} under 'rankwright' in config.json; wanted a template that joins {{title}} and "
            "{text}. Mend or remove the entry."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


def untrained_reference() -> CrossEncoderReranker:
    """The offline backbone with a fresh one-label head: where the reference's own training starts."""
    from safetensors.torch import load_file

    folder = backbone_folder()
    config = BertConfig.from_pretrained(folder, num_labels=1)
    model = BertForSequenceClassification(config)
    weights = load_file(str(folder / "model.safetensors"))
    model.bert.load_state_dict({k: v for k, v in weights.items() if k != "embeddings.position_ids"})
    return CrossEncoderReranker(model, AutoTokenizer.from_pretrained(folder), name="reference")


def load_reference(
    adapter: Path = REFERENCE_ADAPTER, *, device: str = "cpu", max_length: int | None = None
) -> CrossEncoderReranker:
    """The embedded reference: the offline backbone with the shipped reference adapter."""
    tensors, settings = load_adapter(adapter)
    reranker = untrained_reference()
    apply_adapter(reranker.model, tensors)
    reranker.template = settings["template"]
    length = max_length or int(settings["max_length"])
    reranker.tokenizer.model_max_length = _pair_length(reranker.tokenizer, reranker.model, length)
    return reranker.to(device).eval()
