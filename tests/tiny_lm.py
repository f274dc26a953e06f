"""Language models of a few thousand weights, made in a second, for tests that need a real one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, UNKNOWN, END, USER, ASSISTANT = "<pad>", "<unk>", "</s>", "<user>", "<assistant>"
SPECIAL = (PAD, UNKNOWN, END, USER, ASSISTANT)
# "abcdef" is what transformers tries out on a vocabulary before it looks for a stop string.
WORDS = (
    "paris",
    "rome",
    "oslo",
    "bern",
    "riga",
    "lima",
    "the",
    "of",
    "capital",
    "question",
    "answer",
    "is",
    "it",
    "abcdef",
    *"abcdefg",
)
VOCABULARY = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
TEMPLATE = "{% for m in messages %}<user> {{ m['content'] }} {% endfor %}<assistant>"


def make_chain_model(folder: Path, chain: list[str], *, template: str | None = TEMPLATE) -> Path:
    """A model that says `chain` after its prompt, whatever the prompt: attention and MLP add nothing, embeddings are
    unit vectors, so the logits of the next word are one column of `lm_head`: the transitions of a Markov chain."""
    size = len(VOCABULARY) + len(VOCABULARY) % 2
    model = LlamaForCausalLM(_config(size, layers=1, heads=1))
    with torch.no_grad():
        for weights in model.parameters():
            weights.zero_()
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight.copy_(torch.eye(size)[: len(VOCABULARY)])
        before = ASSISTANT
        for word in chain:
            model.lm_head.weight[VOCABULARY[word], VOCABULARY[before]] = 1.0
            before = word
    return _save(folder, model, template)


def make_random_model(folder: Path, seed: int) -> Path:
    """A random model, in which every position attends to all before it, and which likes to end soon."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(_config(32, layers=2, heads=2))
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() == 2:
                weights.normal_(0.0, 0.4)
        model.lm_head.weight[VOCABULARY[END]] *= 2.0
        for word in SPECIAL:
            if word != END:
                model.lm_head.weight[VOCABULARY[word]] = 0.0
    return _save(folder, model, TEMPLATE)


LABELS = tuple(f"[{number}]" for number in range(1, 5))
PASSAGE_WORDS = ("river", "moon", "rain", "key", "door", "north", "light", "salt", "iron", "wheat", "lamp", "stone")


def make_label_model(folder: Path, *, template: str | None = TEMPLATE, seed: int = 0) -> Path:
    """A model that answers with one of LABELS, which depends on the words of the prompt and their places, and ends.

    Embeddings are unit vectors. One layer of random attention adds a mixture of the prompt's words to that of the last
    one; it never adds a label, so END, which follows labels alone, waits until one was written.
    """
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *LABELS, *PASSAGE_WORDS, "abcdef", *"abcdef"))}
    size = len(vocabulary) + len(vocabulary) % 2
    labels, words = ([vocabulary[word] for word in some] for some in (LABELS, PASSAGE_WORDS))
    torch.manual_seed(seed)
    model = LlamaForCausalLM(_config(size, layers=1, heads=1, vocabulary=vocabulary, positions=4096))
    layer: Any = model.model.layers[0]
    attention = layer.self_attn
    with torch.no_grad():
        for weights in model.parameters():
            weights.zero_()
        model.model.norm.weight.fill_(1.0)
        layer.input_layernorm.weight.fill_(1.0)
        model.model.embed_tokens.weight.copy_(torch.eye(size)[: len(vocabulary)])
        for weights in (attention.q_proj.weight, attention.k_proj.weight):
            weights.normal_(0.0, 0.1)
        attention.v_proj.weight.copy_(torch.eye(size))
        attention.o_proj.weight.copy_(torch.eye(size))
        attention.o_proj.weight[: len(SPECIAL) + len(LABELS)] = 0.0
        tastes = torch.randn(len(LABELS), size) * 3.0
        tastes -= tastes[:, words].mean(dim=1, keepdim=True)  # or one label would please most prompts
        tastes[:, : len(SPECIAL)] = 3.0
        tastes[:, labels] = 0.0
        model.lm_head.weight[labels] = tastes
        model.lm_head.weight[vocabulary[END], labels] = 100.0
    return _save(folder, model, template, vocabulary)


def _config(
    size: int, *, layers: int, heads: int, vocabulary: Mapping[str, int] = VOCABULARY, positions: int = 256
) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=size,
        intermediate_size=size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=vocabulary[END],
        pad_token_id=vocabulary[PAD],
    )


def _save(
    folder: Path, model: LlamaForCausalLM, template: str | None, vocabulary: Mapping[str, int] = VOCABULARY
) -> Path:
    core = Tokenizer(WordLevel(dict(vocabulary), unk_token=UNKNOWN))
    core.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder
