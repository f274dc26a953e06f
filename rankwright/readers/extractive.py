"""The embedded reader: reads k passages jointly on a small encoder and answers with a span, yes, no or nothing.

Input: [CLS] question [SEP] passage 1 [SEP] ... passage k [SEP]. The encoder has 512 positions, of which 62 are kept
    for the question and the separators, so every passage gets (512 - 62) // k tokens, at most 256: 90 tokens each at k
    = 5. What does not fit is cut off at the end of the passage and counted (`share_cut`).

Heads: start and end logits on passage tokens (Devlin et al. 2019, arXiv 1810.04805, section 4.2), and a four-way choice
on [CLS] between span, yes, no and nothing.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, BertModel

from rankwright.backbone import ASSETS, apply_adapter, backbone_folder, load_adapter, sha256_file
from rankwright.batching import token_batches, tokens_at_once
from rankwright.errors import TooManyPassagesError
from rankwright.types import Answer, Context, Document, ReadResult

KINDS = ("span", "yes", "no", "nothing")
POSITIONS = 512
QUESTION_SHARE = 62
PASSAGE_CAP = 256
MAX_PASSAGES = 30
REMEMBERED_TEXTS = 50_000
"""Three kilobytes each at most."""
REMEMBERED_CONTEXTS = 1_000_000
MAX_ANSWER_TOKENS = 24
READER_ADAPTER = ASSETS / "reader.safetensors"


class ExtractiveModel(nn.Module):
    """Encoder with a span head and a kind head."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        # Dropout on attention weights forbids the fused kernel, dropout on hidden states draws from one core: together
        # they
        # triple the time of a CPU step. Passages mixed anew in every epoch regularise instead.
        config.attention_probs_dropout_prob = 0.0
        config.hidden_dropout_prob = 0.0
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.span = nn.Linear(config.hidden_size, 2)
        self.kind = nn.Linear(config.hidden_size, len(KINDS))

    def forward(
        self, input_ids_BT: Tensor, token_type_ids_BT: Tensor, attention_mask_BT: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """start_logits_BT, end_logits_BT and kind_logits of shape (batch, 4)."""
        hidden = self.encoder(
            input_ids=input_ids_BT, token_type_ids=token_type_ids_BT, attention_mask=attention_mask_BT
        ).last_hidden_state
        spans = self.span(hidden)
        return spans[..., 0], spans[..., 1], self.kind(hidden[:, 0])


@dataclass(frozen=True)
class Encoded:
    """A question and its passages as the encoder gets them."""

    input_ids: list[int]
    token_types: list[int]
    passage_of: list[int]
    """Passage number of each token; -1 for the question and separators."""
    characters: list[tuple[int, int]]
    """Where each passage token stands in its passage's text."""
    texts: list[str]
    tokens_cut: int
    """Tokens of question and passages that did not fit."""
    tokens_all: int
    """Tokens of question and passages before cutting."""


def passage_text(document: Document) -> str:
    """What the reader sees of a document: title, colon, text; the bare text where there is no title."""
    return f"{document.title}: {document.text}" if document.title else document.text


class Encoder:
    """Turns contexts into token sequences within the 512 positions."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        # Cutting is done here, by share; the tokenizer must neither cut nor warn about lengths.
        self.tokenizer.model_max_length = 10**9
        self._texts: dict[bytes, tuple[array[int], array[int], array[int], int]] = {}
        self._counted: set[int] = set()
        self.tokens_cut = 0
        self.tokens_all = 0

    def _tokens(self, text: str) -> tuple[array[int], array[int], array[int], int]:
        """Ids, first and last characters of the tokens that can be of use, and how many the whole text has. Remembered:
        the same passage is read in many contexts, by several threads of a server at once."""
        key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        found = self._texts.get(key)
        if found is None:
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            ids, offsets = encoded["input_ids"], encoded["offset_mapping"][:PASSAGE_CAP]
            first, last = ([span[side] for span in offsets] for side in (0, 1))
            found = array("i", ids[:PASSAGE_CAP]), array("i", first), array("i", last), len(ids)
            if len(self._texts) >= REMEMBERED_TEXTS:
                self._texts.clear()
            self._texts[key] = found
        return found

    def encode(self, question: str, documents: Sequence[Document]) -> Encoded:
        """One context; every passage gets an equal token share."""
        if len(documents) > MAX_PASSAGES:
            raise TooManyPassagesError(
                f"The embedded reader was given {len(documents)} passages; wanted at most {MAX_PASSAGES}, or no room "
                "is left for them and the question in its 512 positions. Give it fewer."
            )
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        count = max(len(documents), 1)
        room = min(PASSAGE_CAP, (POSITIONS - QUESTION_SHARE) // count)
        question_tokens, _, _, total = self._tokens(question)
        question_ids = question_tokens[: QUESTION_SHARE - 2 - count]
        ids = [cls, *question_ids, sep]
        types, passage_of, characters = [0] * len(ids), [-1] * len(ids), [(0, 0)] * len(ids)
        texts, cut = [], total - len(question_ids)
        for number, document in enumerate(documents):
            text = passage_text(document)
            tokens, first, last, length = self._tokens(text)
            kept = tokens[:room]
            total += length
            cut += length - len(kept)
            ids += [*kept, sep]
            types += [1] * (len(kept) + 1)
            passage_of += [number] * len(kept) + [-1]
            characters += [*zip(first[:room], last[:room], strict=True), (0, 0)]
            texts.append(text)
        if (key := hash((question, *texts))) not in self._counted:  # the cache's key and the answer encode alike
            if len(self._counted) >= REMEMBERED_CONTEXTS:
                self._counted.clear()
            self._counted.add(key)
            self.tokens_cut += cut
            self.tokens_all += total
        return Encoded(ids, types, passage_of, characters, texts, cut, total)


def collate(items: Sequence[Encoded], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """input_ids_BT, token_type_ids_BT, attention_mask_BT, padded on the right."""
    longest = max(len(item.input_ids) for item in items)

    def padded(rows: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])

    return (
        padded([item.input_ids for item in items], pad_id),
        padded([item.token_types for item in items], 0),
        padded([[1] * len(item.input_ids) for item in items], 0),
    )


def passage_mask(items: Sequence[Encoded], length: int) -> Tensor:
    """True on the tokens of passages, shape (batch, length)."""
    return torch.tensor(
        [[p >= 0 for p in item.passage_of] + [False] * (length - len(item.passage_of)) for item in items]
    )


def best_span(start: Tensor, end: Tensor, passage_of: Tensor) -> tuple[int, int]:
    """Start and end token of the best answer: both in one passage, at most MAX_ANSWER_TOKENS tokens.

    Args:
        start, end: logits of shape (T,).
        passage_of: passage number of each token, -1 outside of passages, shape (T,).
    """
    length = len(start)
    scores = start[:, None] + end[None, :]
    position = torch.arange(length)
    distance = position[None, :] - position[:, None]
    same = (passage_of[:, None] == passage_of[None, :]) & (passage_of[:, None] >= 0)
    allowed = same & (distance >= 0) & (distance < MAX_ANSWER_TOKENS)
    best = int(scores.masked_fill(~allowed, -torch.inf).argmax())
    return best // length, best % length


class EmbeddedReader:
    """A Reader that needs no network: the offline backbone with the shipped reader adapter.

    Args:
        adapter: the adapter file; by default the shipped one.
        max_tokens: padded tokens of one forward pass; None takes as many as suit the device.
        device: where the encoder runs.
    """

    def __init__(self, adapter: Path = READER_ADAPTER, *, max_tokens: int | None = None, device: str = "cpu") -> None:
        folder = backbone_folder()
        tensors, settings = load_adapter(adapter)
        model = ExtractiveModel(BertConfig.from_pretrained(folder))
        model.encoder.load_state_dict(backbone_weights(folder))
        apply_adapter(model, tensors)
        bias, penalty = float(settings["nothing_bias"]), float(settings["rank_penalty"])
        self._setup(model, Encoder(folder), bias, penalty, max_tokens, device)
        self._fingerprint = sha256_file(adapter)[:16]

    @classmethod
    def from_model(
        cls,
        model: ExtractiveModel,
        encoder: Encoder,
        nothing_bias: float,
        rank_penalty: float = 0.0,
        *,
        max_tokens: int | None = None,
        device: str = "cpu",
    ) -> EmbeddedReader:
        """A reader around a model in memory, as training uses it; known by the hash of its present weights."""
        reader = cls.__new__(cls)
        reader._setup(model, encoder, nothing_bias, rank_penalty, max_tokens, device)
        digest = hashlib.sha256()
        for name, weight in sorted(model.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.cpu().contiguous().numpy().tobytes())
        reader._fingerprint = digest.hexdigest()[:16]
        return reader

    def _setup(
        self,
        model: ExtractiveModel,
        encoder: Encoder,
        nothing_bias: float,
        rank_penalty: float,
        max_tokens: int | None,
        device: str,
    ) -> None:
        self.model = model.eval().to(device)
        self.encoder = encoder
        self.nothing_bias = nothing_bias
        self.rank_penalty = rank_penalty
        self.max_tokens = max_tokens or tokens_at_once(torch.device(device).type)
        self.device = device

    @property
    def name(self) -> str:
        """Identity in signatures: the first digits of the adapter's hash."""
        return f"embedded-{self._fingerprint[:8]}"

    @property
    def share_cut(self) -> float:
        """Share of tokens that were cut away from all different contexts so far, those that a cache answered among
        them."""
        return self.encoder.tokens_cut / self.encoder.tokens_all if self.encoder.tokens_all else 0.0

    def cache_key(self, context: Context) -> str:
        """Hash of weights, question and the ordered passages as cut; equal keys give equal answers."""
        encoded = self.encoder.encode(context.query.text, context.documents)
        # Answers are copied from the characters, so the cut text counts besides the token ids.
        cut = [text[: self._last_character(encoded, i)] for i, text in enumerate(encoded.texts)]
        payload = json.dumps(
            [self._fingerprint, self.nothing_bias, self.rank_penalty, encoded.input_ids, cut], ensure_ascii=False
        )
        return hashlib.sha256(payload.encode()).hexdigest()

    def input_tokens(self, context: Context) -> int:
        """Tokens that the encoder gets of a context, as cut."""
        return len(self.encoder.encode(context.query.text, context.documents).input_ids)

    @staticmethod
    def _last_character(encoded: Encoded, passage: int) -> int:
        ends = [
            end for number, (_, end) in zip(encoded.passage_of, encoded.characters, strict=True) if number == passage
        ]
        return ends[-1] if ends else 0

    def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
        """One answer per context, in order; an empty text means that the reader found nothing."""
        encoded = [self.encoder.encode(context.query.text, context.documents) for context in contexts]
        results: list[ReadResult] = [Answer("")] * len(encoded)
        for group in token_batches([len(item.input_ids) for item in encoded], self.max_tokens):
            for position, text in zip(group, self._read([encoded[i] for i in group]), strict=True):
                results[position] = Answer(text)
        return results

    @torch.inference_mode()
    def _read(self, items: list[Encoded]) -> list[str]:
        batch = [tensor.to(self.device) for tensor in collate(items, self.encoder.tokenizer.pad_token_id)]
        starts, ends, kinds = (tensor.float().cpu() for tensor in self.model(*batch))
        kinds[:, KINDS.index("nothing")] += self.nothing_bias
        return [self._decode(item, s, e, k) for item, s, e, k in zip(items, starts, ends, kinds, strict=True)]

    def _decode(self, item: Encoded, start: Tensor, end: Tensor, kind: Tensor) -> str:
        choice = KINDS[int(kind.argmax())]
        if choice == "nothing" or max(item.passage_of) < 0:  # nothing to copy from
            return ""
        if choice != "span":
            return choice
        length = len(item.input_ids)
        passage_of = torch.tensor(item.passage_of)
        # Passages come best first, and that is evidence besides the words, as in BERTserini (Yang et al. 2019,
        # arXiv 1902.01718, section 3), which adds the retriever's score to the reader's.
        ranked = start[:length] - self.rank_penalty * passage_of.clamp(min=0)
        first, last = best_span(ranked, end[:length], passage_of)
        text = item.texts[item.passage_of[first]]
        return text[item.characters[first][0] : item.characters[last][1]]


def backbone_weights(folder: Path) -> dict[str, Any]:
    """The backbone's encoder weights, without the pooler."""
    from safetensors.torch import load_file

    weights = load_file(str(folder / "model.safetensors"))
    return {
        name: tensor
        for name, tensor in weights.items()
        if not name.startswith("pooler.") and name != "embeddings.position_ids"
    }
