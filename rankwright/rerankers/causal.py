"""A causal language model that scores without writing: one pass over a prompt, and the logits of a few agreed words at
the place of the answer become scores. A ScoringPolicy, so RRPO trains it as it trains a cross-encoder.

Three kinds, by what is asked in one prompt:

- `yes-no`, one document: logit of the first label minus that of the second. Qwen3-Reranker (yes, no), ProRank and
  mxbai-rerank-v2 (1, 0).
- `integer`, one document: the expected value over the labels 0 to 10, whose logits alone share the probability, less 5:
  scores stand around 0, as those of the others. The scale is ERank's (arXiv 2509.00520), which multiplies the one
  number written with its probability; the expectation is ours.
- `single-token`, all documents: the logit of each document's letter. FIRST (arXiv 2406.15657).

A label that is not one token has no logit at one place, so it is refused. The prompts are our own words; a published
checkpoint was trained on its own, which `prompt` or `messages`, `labels` and `prefill` take.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from rankwright.batching import token_batches
from rankwright.errors import ConfigurationError, ModelError, QuestionTooLongError
from rankwright.prompts.ranking import sealed
from rankwright.prompts.reader import quoted
from rankwright.rerankers.ranking import DEFAULT_TEMPLATE, render
from rankwright.rerankers.scoring import ScoringReranker, input_length, opened, padded, settle_scale
from rankwright.types import Document, Query, RerankRequest

Kind = Literal["yes-no", "integer", "single-token"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Messages = Callable[[Query, Sequence[Document]], Sequence[tuple[str, str]]]
"""Query and documents -> (role, content) of the chat, as `RankingPrompt.messages`. It quotes foreign text itself."""

LABELS: Mapping[Kind, tuple[str, ...]] = {
    "yes-no": ("yes", "no"),
    "integer": tuple(str(number) for number in range(11)),
    "single-token": tuple("ABCDEFGHIJKLMNOPQRST"),
}
PROMPTS: Mapping[Kind, str] = {
    "yes-no": (
        "Question: {query}\nPassage: {documents}\n\nDoes this passage help to answer the question? "
        "Reply with one word: {first} if it does, {last} if it does not."
    ),
    "integer": (
        "Question: {query}\nPassage: {documents}\n\nHow far does this passage answer the question? "
        "Reply with one whole number, from {first} (not at all) to {last} (completely)."
    ),
    "single-token": (
        "Question: {query}\n\nPassages:\n{documents}\n\nWhich passage, {first} to {last}, answers the question best? "
        "Reply with its letter alone."
    ),
}
_FIELD = re.compile(r"\{(query|documents|first|last)\}")
QUERY_SHARE = 0.75
"""Of max_length, for the question at most; as mxbai-rerank-v2 has it."""
OWN = "rankwright"
"""Where config.json has our settings."""


class CausalReranker(ScoringReranker):
    """A Reranker and a ScoringPolicy over a causal language model.

    Args:
        model: the transformers model.
        tokenizer: its fast tokenizer; its chat template, where it has one, makes the prompt of the messages.
        kind: "yes-no", "integer" or "single-token".
        labels: words that are one token each: for yes-no the good and the bad one, for integer those of 0, 1, 2 and so
            on, for single-token one a document, so that their number bounds the list; by default LABELS.
        prompt: text of the one user message, with the fields {query}, {documents} and, for the labels, {first} and
            {last}; by default PROMPTS.
        messages: makes all messages instead of `prompt`; it cannot be saved, so `from_pretrained` wants it again.
        prefill: what the answer begins with before its label, for example the "[" of FIRST or an empty thinking block.
        template: joins title and text, with the fields {title} and {text}.
        name: how it appears in tables.
        max_tokens: padded tokens of one forward pass; None takes as many as suit the device.

    Raises:
        ConfigurationError: a label is not one token; a prompt lacks a field; an unknown kind.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        kind: Kind = "yes-no",
        labels: Sequence[str] | None = None,
        prompt: str | None = None,
        messages: Messages | None = None,
        prefill: str = "",
        template: str = DEFAULT_TEMPLATE,
        name: str = "model",
        max_tokens: int | None = None,
    ) -> None:
        super().__init__(model, tokenizer, template=template, name=name, max_tokens=max_tokens)
        self.kind: Kind = _checked_kind(kind)
        self.labels = tuple(LABELS[kind] if labels is None else labels)
        self.prompt = _checked_prompt(PROMPTS[kind] if prompt is None else prompt)
        self.prefill = prefill
        self._messages = messages
        self._label_ids = self._checked_labels()
        _score_in_full(model)

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        kind: Kind | None = None,
        labels: Sequence[str] | None = None,
        prompt: str | None = None,
        messages: Messages | None = None,
        prefill: str | None = None,
        device: str = "cpu",
        max_length: int | None = None,
    ) -> CausalReranker:
        """Opens a folder that `save` wrote, or with `kind` any causal model; what is given goes before what was saved.

        Weights are fp32 safetensors, code in the repository is never run.
        """

        def check(config: Any) -> None:
            if kind is None and not isinstance(getattr(config, OWN, None), dict):
                raise ModelError(
                    f"Model '{path}' does not say how it scores; wanted a folder that rankwright saved, or one of the "
                    f"kinds {', '.join(KINDS)}. Give kind."
                )

        instead = "Use a causal language model with all its weights."
        model, tokenizer, config = opened(path, AutoModelForCausalLM, "causal language model", instead, check)
        saved = _own_settings(path, getattr(config, OWN, None), kind)
        if saved.pop("messages", False) and messages is None and prompt is None:
            raise ModelError(
                f"Model '{path}' was saved with a prompt made by a function; wanted the same one. Open it with "
                "CausalReranker.from_pretrained(path, messages=...)."
            )
        given = {"kind": kind, "labels": labels, "prompt": prompt, "prefill": prefill}
        tokenizer.model_max_length = input_length(tokenizer, model, max_length)
        settings = saved | {key: value for key, value in given.items() if value is not None}
        reranker = cls(model, tokenizer, messages=messages, name=str(path), **settings)
        if saved:
            settle_scale(reranker, path, getattr(config, OWN, None))
        return reranker.to(device).eval()

    @property
    def window(self) -> int | None:
        """Documents that one prompt can hold; None where each has a prompt of its own."""
        return len(self.labels) if self.kind == "single-token" else None

    def forward(self, requests: Sequence[RerankRequest]) -> Tensor:
        """scores_QD, with gradient when grad is on; -inf where a query has fewer documents than the longest list.

        Raises:
            ConfigurationError: more documents than labels (single-token), or a prompt that is too long without any.
        """
        units = [unit for request in requests for unit in self._units(request)]
        logits_UL = self._label_logits(self._prompts(units))
        if self.kind == "yes-no":
            flat = logits_UL[:, 0] - logits_UL[:, 1]
        elif self.kind == "integer":
            values = torch.arange(len(self.labels), dtype=logits_UL.dtype, device=logits_UL.device)
            flat = logits_UL.softmax(-1) @ (values - values.mean())
        else:
            rows = [row[: len(unit.documents)] for row, unit in zip(logits_UL, units, strict=True)]
            flat = torch.cat(rows) if rows else logits_UL.flatten()
        return padded(flat, [len(request.documents) for request in requests])

    def _units(self, request: RerankRequest) -> list[RerankRequest]:
        """What one prompt each is made of."""
        if self.window is None:
            return [RerankRequest(request.query, (document,)) for document in request.documents]
        if len(request.documents) > self.window:
            raise ConfigurationError(
                f"Query '{request.query.query_id}' has {len(request.documents)} documents; wanted at most "
                f"{self.window}, one a label ({self.labels[0]} to {self.labels[-1]}), because all stand in one prompt. "
                "Rerank fewer, give more labels, or cover a long list by windows."
            )
        return [request] if request.documents else []

    # The prompt ------------------------------------------------------------------------------------------------------

    def text(self, query: Query, documents: Sequence[Document]) -> str:
        """The whole prompt up to the place of the label."""
        chat = self._messages(query, documents) if self._messages else self._own_messages(query, documents)
        return self._rendered(chat)

    def _own_messages(self, query: Query, documents: Sequence[Document]) -> list[tuple[str, str]]:
        texts = [quoted(render(self.template, document)) for document in documents]
        if self.kind == "single-token":
            taken = re.compile(rf"\[\s*({'|'.join(map(re.escape, self.labels))})\s*\]")
            pairs = zip(self.labels, texts, strict=False)
            texts = [f"[{label}] " + taken.sub(r"(\1)", sealed(text, "letters")) for label, text in pairs]
        last = self.labels[len(documents) - 1 if self.kind == "single-token" else -1]
        fields = {
            "query": quoted(query.text),
            "documents": "\n".join(texts),
            "first": self.labels[0],
            "last": last,
        }
        return [("user", _FIELD.sub(lambda field: fields[field[1]], self.prompt))]

    def _rendered(self, chat: Sequence[tuple[str, str]]) -> str:
        if not self.tokenizer.chat_template:
            return "\n\n".join(content for _, content in chat) + self.prefill
        messages = [{"role": role, "content": content} for role, content in chat]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return str(text) + self.prefill

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        # The template writes the special tokens itself.
        special = not self.tokenizer.chat_template
        return self.tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]

    def _prompts(self, units: Sequence[RerankRequest]) -> list[list[int]]:
        """Tokens of the prompts, none longer than max_length; `read` says what was read of their documents."""
        self.read = []
        if not units:
            return []
        encoded = self._encode([self.text(unit.query, unit.documents) for unit in units])
        self.pairs_seen += sum(len(unit.documents) for unit in units)
        prompts: list[list[int]] = []
        for unit, ids in zip(units, encoded, strict=True):
            fits = len(ids) <= self.max_length
            kept, cut = (ids, [False] * len(unit.documents)) if fits else self._shortened(unit, len(ids))
            self.read += zip(_shared_out(len(kept), len(cut)), cut, strict=True)
            prompts.append(kept)
        return prompts

    def _shortened(self, unit: RerankRequest, whole: int) -> tuple[list[int], list[bool]]:
        """Tokens of a prompt that would be too long, and which documents lost some: the longest are cut, an overlong
        question first."""
        query = replace(unit.query, text=self._cut(unit.query.text, int(self.max_length * QUERY_SHARE)))
        documents, lengths = unit.documents, [len(self._offsets(document.text)) for document in unit.documents]
        (ids,), room = self._encode([self.text(query, documents)]), sum(lengths)
        while (excess := len(ids) - self.max_length) > 0:
            room -= excess
            if room < 0:
                # One document needs room beside its question alone; of many, or of all in one prompt, fewer may do.
                kind = QuestionTooLongError if len(documents) == 1 else ConfigurationError
                raise kind(
                    f"Prompt of query '{query.query_id}' has {whole} tokens and is {-room} too long for "
                    f"{self.max_length} even without the text of its passages; wanted room for them. Raise "
                    "max_length as far as the model goes, shorten the prompt, or rerank fewer documents."
                )
            limit = _water_level(lengths, room)
            documents = tuple(replace(document, text=self._cut(document.text, limit)) for document in unit.documents)
            (ids,) = self._encode([self.text(query, documents)])
        return ids, self._note_cut(unit, query, documents, whole)

    def _cut(self, text: str, tokens: int) -> str:
        """The beginning of a text that has at most so many tokens."""
        offsets = self._offsets(text)
        return text if len(offsets) <= tokens else text[: offsets[tokens - 1][1]] if tokens else ""

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return encoded["offset_mapping"]

    def _note_cut(self, unit: RerankRequest, query: Query, documents: Sequence[Document], whole: int) -> list[bool]:
        pairs = zip(unit.documents, documents, strict=True)
        cut = [query != unit.query or before != after for before, after in pairs]
        self.pairs_cut += sum(cut)
        if any(cut) and not self.first_cut:
            first = unit.documents[cut.index(True)]
            self.first_cut = f"{whole} tokens with passage '{first.doc_id}' for question '{query.query_id}'"
        return cut

    # The logits ------------------------------------------------------------------------------------------------------

    def _checked_labels(self) -> list[int]:
        """The token of each label, as it follows the prompt."""
        if len(self.labels) < 2 or (self.kind == "yes-no" and len(self.labels) > 2):
            wanted = "two" if self.kind == "yes-no" else "two or more"
            raise ConfigurationError(
                f"Kind {self.kind} has the labels {', '.join(self.labels) or '(none)'}; wanted {wanted}. Give labels."
            )
        if not self.tokenizer.is_fast:
            raise ModelError(
                f"Model '{self.name}' has a tokenizer that does not tell where tokens stand; wanted a fast one. Save "
                "tokenizer.json beside the weights."
            )
        ids = [self._label_id(label) for label in self.labels]
        twins = [label for label, token in zip(self.labels, ids, strict=True) if ids.count(token) > 1]
        if twins:
            raise ConfigurationError(
                f"Labels {', '.join(twins)} are one and the same token of model '{self.name}'; wanted one token each. "
                "Choose other labels."
            )
        return ids

    def _label_id(self, label: str) -> int:
        before = self._rendered([("user", "x")])
        ids, context = self._encode([before + label, before])
        # What follows the prompt, which may be another token than the same word at the beginning of a text. A label
        # that joins the token before it is looked up alone: the prompt ends before it, so that it cannot join.
        after = ids[len(context) :] if ids[: len(context)] == context else []
        pieces = after or self.tokenizer(label, add_special_tokens=False)["input_ids"]
        if len(pieces) == 1 and pieces[0] != self.tokenizer.unk_token_id:
            return pieces[0]
        words = ", ".join(repr(word) for word in self.tokenizer.convert_ids_to_tokens(pieces))
        raise ConfigurationError(
            f"Label '{label}' is {len(pieces)} token{'s' * (len(pieces) != 1)} ({words}) to model '{self.name}'; "
            "wanted one token that it knows, because scores are logits at one place. Choose other labels or kind."
        )

    def _label_logits(self, prompts: Sequence[list[int]]) -> Tensor:
        """logits_UL in fp32: of each label, for each prompt. A prompt that comes twice is run once: its logits are then
        equal, which kernels do not promise for the rows of one batch."""
        once = {prompt: row for row, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        unique, device = list(once), next(self.model.parameters()).device
        parts, order = [torch.empty(0, len(self.labels), device=device)], []
        for group in token_batches([len(prompt) for prompt in unique], self.max_tokens):
            parts.append(self._last_logits([unique[row] for row in group])[:, self._label_ids])
            order += group
        back = torch.tensor(order, dtype=torch.long, device=device).argsort()
        rows = torch.tensor([once[tuple(prompt)] for prompt in prompts], dtype=torch.long, device=device)
        return torch.cat(parts)[back][rows]

    def _last_logits(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Logits of the next token, padded on the left so that the last position is the last of every prompt."""
        device = next(self.model.parameters()).device
        width = max(len(prompt) for prompt in prompts)
        filler = self.tokenizer.pad_token_id or 0  # any token will do: it is masked
        ids = torch.tensor([[filler] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        # Without them positions would count the padding.
        more = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0), "logits_to_keep": 1, "use_cache": False}
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        known = inspect.signature(base.forward).parameters
        inputs = {"input_ids": ids, "attention_mask": mask, **{name: more[name] for name in more if name in known}}
        return self.model(**inputs).logits[:, -1].float()

    # LoRA and folders ------------------------------------------------------------------------------------------------

    def _lora_parts(self, linear: set[str]) -> tuple[str, set[str], list[str]]:
        head = self.model.get_output_embeddings()
        own = {name.rsplit(".", 1)[-1] for name, module in self.model.named_modules() if module is head}
        return "CAUSAL_LM", linear - own, []

    def _write(self, folder: Path) -> None:
        """A folder that AutoModelForCausalLM opens too; how it scores stands in config.json under `rankwright`."""
        settings = {
            "kind": "causal",
            "scoring": self.kind,
            "labels": list(self.labels),
            "prompt": self.prompt,
            "prefill": self.prefill,
            "template": self.template,
            "messages": self._messages is not None,
            **self.scale,
        }
        setattr(self.model.config, OWN, settings)
        self._write_model(folder)


def _checked_kind(kind: str) -> Kind:
    if kind not in KINDS:
        raise ConfigurationError(f"Kind is '{kind}'; wanted one of {', '.join(KINDS)}.")
    return kind


def _checked_prompt(prompt: str) -> str:
    missing = [field for field in ("{query}", "{documents}") if field not in prompt]
    if missing:
        raise ConfigurationError(
            f"Prompt of a scoring language model lacks {' and '.join(missing)}; wanted {{query}} and {{documents}} in "
            "its text. Write them where question and passages belong."
        )
    return prompt


def _own_settings(path: str, own: Any, kind: Kind | None) -> dict[str, Any]:
    """What a folder's config.json says under `rankwright`, as arguments; nothing where another kind is asked for."""
    if kind is not None and not (isinstance(own, dict) and own.get("scoring") == kind):
        return {}
    texts = ("scoring", "prompt", "prefill", "template")
    try:
        sound = all(isinstance(own[name], str) for name in texts) and all(isinstance(x, str) for x in own["labels"])
    except (KeyError, TypeError):
        sound = False
    if not sound or own["scoring"] not in KINDS:
        raise ModelError(
            f"Model '{path}' has {own!r} under '{OWN}' in config.json; wanted kind, scoring, labels, prompt, prefill "
            "and template as rankwright saves them. Mend the entry, or remove it and give kind."
        )
    settings = {name: own[name] for name in ("labels", "prompt", "prefill", "template")}
    return {**settings, "kind": own["scoring"], "messages": own.get("messages", False)}


def _shared_out(tokens: int, documents: int) -> list[int]:
    """The tokens of one prompt, divided among its documents.

    >>> _shared_out(8, 3)
    [3, 3, 2]
    """
    return [tokens // documents + (place < tokens % documents) for place in range(documents)]


def _water_level(lengths: Sequence[int], room: int) -> int:
    """The largest level such that lengths cut to it sum to at most `room`.

    >>> _water_level([9, 2, 5], 10)
    4
    >>> _water_level([9, 2, 5], 16)
    9
    """
    left = room
    for done, length in enumerate(sorted(lengths)):
        share = left // (len(lengths) - done)
        if length > share:
            return share
        left -= length
    return max(lengths)


def _score_in_full(model: Any) -> None:
    """Has the layer that makes the logits compute them in fp32 also under autocast: bfloat16 keeps 8 bits, so that
    logits of 20 come in steps of 1/8 and half of all scores are ties."""
    head = model.get_output_embeddings()
    if type(head) is nn.Linear:
        head.register_forward_hook(_in_full)


def _in_full(head: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    if output.dtype == torch.float32 or not isinstance(head, nn.Linear):
        return None
    (hidden,) = inputs
    with torch.autocast(hidden.device.type, enabled=False):
        bias = None if head.bias is None else head.bias.float()
        return nn.functional.linear(hidden.float(), head.weight.float(), bias)
