"""Causal language models of a few thousand weights whose tokenizer knows the labels of scoring rerankers as one token
each, for tests that need a real one."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

PAD, UNKNOWN, END, USER, ASSISTANT = "<pad>", "<unk>", "</s>", "<user>", "<assistant>"
SPECIAL = (PAD, UNKNOWN, END, USER, ASSISTANT)
LETTERS = tuple(string.ascii_uppercase)
NUMBERS = tuple(str(number) for number in range(11))
WORDS = (
    *("yes", "no", *LETTERS, *NUMBERS, "[", "]", ":", "?"),
    *("integer", "where", "is", "it", "river", "moon", "rain", "question", "passage", "document"),
    *("Question", "Passage", "Passages", "Which", "Reply"),
)
TEMPLATE = "{% for m in messages %}<user> {{ m['content'] }} {% endfor %}<assistant>"

SIZES = {
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 512,
    },
    "gpt2": {"n_embd": 32, "n_inner": 64, "n_layer": 2, "n_head": 2, "n_positions": 512},
}


def tiny_tokenizer(words: Sequence[str] = WORDS, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token a word or run of punctuation; words that are not listed are unknown."""
    core = Tokenizer(WordLevel({word: n for n, word in enumerate((*SPECIAL, *words))}, unk_token=UNKNOWN))
    core.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        model_max_length=512,
    )
    tokenizer.chat_template = template
    return tokenizer


def save_causal(
    folder: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    tied: bool = False,
    words: Sequence[str] = WORDS,
    template: str | None = TEMPLATE,
    spread: float = 0.3,
) -> Path:
    """A random model as transformers saves it, whose outputs differ clearly from prompt to prompt. Rotary positions
    (llama) do not mind where a prompt begins, a table of positions (gpt2) does."""
    tokenizer = tiny_tokenizer(words, template)
    config = AutoConfig.for_model(
        family,
        **SIZES[family],
        vocab_size=len(tokenizer),
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() == 2:
                weights.normal_(0.0, spread)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
