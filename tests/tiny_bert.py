"""BERT models, and other cross-encoders, of few weights with a WordPiece vocabulary of their own, for tests that need a
real one."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CHARACTERS = (*string.ascii_lowercase, *string.digits)
PIECES = (*SPECIAL, *CHARACTERS, *(f"##{c}" for c in CHARACTERS), *".,:;!?(){}'-", "rain", "moon", "river", "##ing")
VOCABULARY = {piece: number for number, piece in enumerate(PIECES)}


def tiny_tokenizer(max_length: int = 64) -> BertTokenizer:
    """Every Latin word is known by its letters, so lengths in tokens are easy to plan: one token a letter."""
    return BertTokenizer(vocab=VOCABULARY, do_lower_case=True, model_max_length=max_length)


def tiny_config(
    labels: int = 1, positions: int = 512, *, hidden: int = 32, layers: int = 2, heads: int = 4, inner: int = 64
) -> BertConfig:
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=positions,
        pad_token_id=VOCABULARY["[PAD]"],
    )
    config.num_labels = labels
    return config


def spread(model: nn.Module, seed: int = 0) -> None:
    """Weights large enough that different texts get clearly different outputs."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "LayerNorm" not in name:
                weight.normal_(0.0, 0.25)


def save_cross_encoder(folder: Path, *, labels: int = 1, max_length: int = 64, seed: int = 0) -> Path:
    """A sequence-classification model as transformers saves it, without anything that rankwright adds."""
    model = BertForSequenceClassification(tiny_config(labels)).eval()
    spread(model, seed)
    model.save_pretrained(folder)
    tiny_tokenizer(max_length).save_pretrained(folder)
    return folder


SMALL = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def save_offset_cross_encoder(folder: Path, family: str, positions: int) -> Path:
    """A cross-encoder of the RoBERTa kin, which numbers positions from 2 on, with a tokenizer that knows no length."""
    config = AutoConfig.for_model(
        family,
        **SMALL,
        max_position_embeddings=positions,
        type_vocab_size=2,
        pad_token_id=1,
    )
    if family == "longformer":
        config.attention_window = [8, 8]
    tokenizer = BertTokenizer(vocab={**VOCABULARY, "[UNK]": 0, "[PAD]": 1}, do_lower_case=True)
    if family == "mpnet":
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    return save_classifier(folder, config)


def save_decoder_cross_encoder(
    folder: Path,
    family: str = "llama",
    *,
    eos: bool = True,
    pad: bool = False,
    appends_eos: bool = False,
    side: str = "right",
    pad_of_model: int | None = None,
) -> Path:
    """A classifier on a decoder, as it is when nobody has thought of padding. Its eos is [SEP]."""
    config = AutoConfig.for_model(
        family,
        **SMALL,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=VOCABULARY["[SEP]"],
        pad_token_id=pad_of_model,
    )
    core = Tokenizer(WordPiece(VOCABULARY, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)  # pyright: ignore[reportAttributeAccessIssue]
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    if appends_eos:
        core.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single="$A [SEP]", pair="$A $B [SEP]", special_tokens=[("[SEP]", VOCABULARY["[SEP]"])]
        )
    core.add_special_tokens(["[PAD]"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="[UNK]",
        eos_token="[SEP]" if eos else None,
        pad_token="[PAD]" if pad else None,
        padding_side=side,
    )
    tokenizer.save_pretrained(folder)
    return save_classifier(folder, config)


def save_classifier(folder: Path, config: PreTrainedConfig) -> Path:
    """A model of this configuration with one label, beside a tokenizer that is there."""
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config).eval()
    spread(model)
    model.save_pretrained(folder)
    return folder
