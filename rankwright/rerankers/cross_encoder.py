"""The cross-encoder: one transformer pass per (query, document) pair, one score. It is the policy that RRPO trains.

Any `AutoModelForSequenceClassification` with one label will do. The folder that `save` writes opens unchanged in
`sentence_transformers.CrossEncoder`, `AutoModelForSequenceClassification` and `rankwright.load`, with equal raw scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

from rankwright.backbone import ASSETS, apply_adapter, backbone_folder, load_adapter
from rankwright.batching import token_batches
from rankwright.errors import ConfigurationError, ModelError
from rankwright.prompts.passage import checked_template
from rankwright.rerankers.ranking import DEFAULT_TEMPLATE, render
from rankwright.rerankers.scoring import ScoringReranker, input_length, offset_table, opened, padded, settle_scale
from rankwright.types import Document, Query, RerankRequest

REFERENCE_ADAPTER = ASSETS / "reference.safetensors"
IDENTITY = "torch.nn.modules.linear.Identity"


class CrossEncoderReranker(ScoringReranker):
    """A Reranker and a ScoringPolicy over a sequence-classification model.

    Args:
        model: the transformers model, one label.
        tokenizer: its tokenizer; `model_max_length` is the length that pairs are cut to.
        template: joins title and text, with the fields {title} and {text}.
        name: how it appears in tables.
        max_tokens: padded tokens of one forward pass; None takes as many as suit the device.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        template: str = DEFAULT_TEMPLATE,
        name: str = "model",
        max_tokens: int | None = None,
    ) -> None:
        super().__init__(model, tokenizer, template=template, name=name, max_tokens=max_tokens)

    @classmethod
    def from_pretrained(cls, path: str, *, device: str = "cpu", max_length: int | None = None) -> CrossEncoderReranker:
        """Opens a folder or hub name; weights are fp32 safetensors, code in the repository is never run."""

        def check(config: Any) -> None:
            if getattr(config, "num_labels", None) != 1:
                writes = any(str(name).endswith("ForCausalLM") for name in getattr(config, "architectures", None) or ())
                raise ModelError(
                    f"Model '{path}' has {getattr(config, 'num_labels', 'no')} labels; wanted 1. "
                    "Use a reranker (cross-encoder) checkpoint, not a classifier or an embedding model."
                    + (f" A language model ranks by rankwright rerank --llm {path}." if writes else "")
                )

        instead = "Use a reranker checkpoint, not an embedding model or a bare encoder."
        model, tokenizer, config = opened(path, AutoModelForSequenceClassification, "cross-encoder", instead, check)
        _settle_padding(path, tokenizer, model)
        tokenizer.model_max_length = input_length(tokenizer, model, max_length)
        own = getattr(config, "rankwright", None)
        reranker = cls(model, tokenizer, template=_own_template(path, own), name=str(path))
        settle_scale(reranker, path, own)
        return reranker.to(device).eval()

    def forward(self, requests: Sequence[RerankRequest]) -> Tensor:
        """scores_QD, with gradient when grad is on; -inf where a query has fewer documents than the longest list."""
        pairs = [(request.query, document) for request in requests for document in request.documents]
        # A text that comes twice is scored once: its scores are then equal, which kernels do not promise for the rows
        # of one batch.
        texts = list(zip(*self._texts(pairs), strict=True))
        once: dict[tuple[str, str], tuple[Query, Document]] = {}
        for text, pair in zip(texts, pairs, strict=True):
            once.setdefault(text, pair)
        row_of = {text: row for row, text in enumerate(once)}
        rows = [row_of[text] for text in texts]
        flat = self._score_pairs(once)[rows]
        self.read = [self.read[row] for row in rows]
        return padded(flat, [len(request.documents) for request in requests])

    def _score_pairs(self, pair_of: Mapping[tuple[str, str], tuple[Query, Document]]) -> Tensor:
        """Raw logits of pairs, each under its two texts, in order; `read` says what was read of them."""
        queries, passages = [query for query, _ in pair_of], [passage for _, passage in pair_of]
        encoded = self.tokenizer(queries, passages, truncation=True, max_length=self.max_length)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        self._note_cut(list(pair_of.values()), lengths)
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

    def spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Where the tokens of each text begin and end, in characters, without special tokens.

        Raises:
            ModelError: the tokenizer does not tell.
        """
        if not self.tokenizer.is_fast:
            raise ModelError(
                f"Model '{self.name}' has a tokenizer that does not tell where tokens stand; wanted a fast one. Save "
                "tokenizer.json beside the weights, or leave windows out."
            )
        encoded = self.tokenizer(
            list(texts), add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
        )
        return encoded["offset_mapping"]

    def _texts(self, pairs: Sequence[tuple[Query, Document]]) -> tuple[list[str], list[str]]:
        return [query.text for query, _ in pairs], [render(self.template, document) for _, document in pairs]

    def _note_cut(self, pairs: Sequence[tuple[Query, Document]], lengths: Sequence[int]) -> None:
        """Finds out which of the pairs that fill max_length are in truth longer."""
        full = [row for row, length in enumerate(lengths) if length >= self.max_length]
        whole: list[list[int]] = []
        if full:
            texts = self._texts([pairs[row] for row in full])
            whole = self.tokenizer(*texts, truncation=False, verbose=False)["input_ids"]
        cut = {row: len(ids) for row, ids in zip(full, whole, strict=True) if len(ids) > self.max_length}
        self.read = [(length, row in cut) for row, length in enumerate(lengths)]
        self.pairs_seen += len(pairs)
        self.pairs_cut += len(cut)
        if cut and not self.first_cut:
            row = min(cut)
            query, document = pairs[row]
            self.first_cut = f"{cut[row]} tokens with passage '{document.doc_id}' for question '{query.query_id}'"

    def _lora_parts(self, linear: set[str]) -> tuple[str, set[str], list[str]]:
        heads = [name for name in ("classifier", "score") if name in linear or hasattr(self.model, name)]
        return "SEQ_CLS", linear - set(heads), heads

    def _write(self, folder: Path) -> None:
        """A folder that CrossEncoder, AutoModelForSequenceClassification, TEI and vLLM open.

        The activation is written twice: sentence-transformers 6 reads it from its own file, versions 4 to 5 from
        config.json and would otherwise put a sigmoid on the scores.
        """
        config = self.model.config
        config.id2label, config.label2id = {0: "LABEL_0"}, {"LABEL_0": 0}
        config.sentence_transformers = {"activation_fn": IDENTITY, "version": "4.0.0"}
        config.rankwright = {"kind": "cross_encoder", "template": self.template, **self.scale}
        self._write_model(folder)
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
    if offset_table(model) is None:  # RoBERTa's positions hang on the id: its config keeps the one of its training
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
    reranker.tokenizer.model_max_length = input_length(reranker.tokenizer, reranker.model, length)
    return reranker.to(device).eval()
