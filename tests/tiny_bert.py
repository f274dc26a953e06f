"""BERT models of few weights with a WordPiece vocabulary of their own, for tests that need a real one."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

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
