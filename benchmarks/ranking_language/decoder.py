"""The decoder and its tokenizer: one token a word, tag or identifier, about a million weights from a random start."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.ranking_language.language import GRADES, KINDS, LEVELS, TOPICS, VALUES, WINDOWS, WORDS

PAD, UNKNOWN, END, ASK = "<pad>", "<unk>", "</s>", "<ask>"
TAGS = ("<think>", "</think>", "<reason>", "</reason>", "<answer>", "</answer>", ">", "{", "}", ",")
ASKED = tuple(f"<{kind}>" for kind in KINDS)
"""The first word of a prompt says which form of answer is wanted."""
IDENTIFIERS = tuple(f"[{number}]" for number in range(1, max(WINDOWS) + 1))
KEYS = tuple(f'"{identifier}":' for identifier in IDENTIFIERS)
NUMBERS = tuple(map(str, sorted({0, 1, *GRADES})))
EVERY = (PAD, UNKNOWN, END, ASK, *TAGS, *ASKED, *IDENTIFIERS, *KEYS, *NUMBERS, *LEVELS, *TOPICS, *WORDS, *VALUES)
VOCABULARY = {word: number for number, word in enumerate(EVERY)}
TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}<ask> {% endif %}"
LONGEST_PROMPT = 3 + max(WINDOWS) * 5 + 1
LONGEST_COMPLETION = 6 + 5 * max(WINDOWS)
"""Tokens of JSON scores: four tags, an identifier and a level each, two braces, key and number with a comma between
them, the end."""


def tokenizer() -> PreTrainedTokenizerFast:
    """Words between blanks are tokens."""
    core = Tokenizer(WordLevel(VOCABULARY, unk_token=UNKNOWN))
    core.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, unk_token=UNKNOWN, eos_token=END, padding_side="left"
    )
    made.chat_template = TEMPLATE
    return made


def decoder(seed: int, width: int = 128, layers: int = 4) -> Any:
    """A Llama with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=LONGEST_PROMPT + LONGEST_COMPLETION,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=VOCABULARY[END],
        pad_token_id=VOCABULARY[PAD],
    )
    return LlamaForCausalLM(config)
