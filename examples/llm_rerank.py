"""A language model ranks passages: `python examples/llm_rerank.py` runs offline, in seconds.

Without `--llm` it makes a language model of a few thousand weights, which answers every prompt in the agreed form with
the passages turned round: it knows nothing, but everything around it is real. Put yours in its place: a folder or hub
name (`--llm Qwen/Qwen2.5-0.5B-Instruct`), or a server (`--llm http://localhost:8000/v1 --model NAME`). Strategies and
prompts: docs/strategies.md, docs/prompts.md. From the command line: `rankwright rerank --llm ...`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import rankwright
from rankwright.llms.cache import CachedLLM, ReadStore
from rankwright.llms.http import HTTPLLM
from rankwright.llms.local import LocalLLM
from rankwright.prompts.ranking import load_ranking_prompt
from rankwright.rerankers.generating import LLMPolicy
from rankwright.strategies import LLMReranker, Sliding
from rankwright.types import LLM

QUESTION = "When does the ferry to Lowen Quay leave?"
PASSAGES = (
    rankwright.Document("eels", "Smoked eels should be eaten with the fingers and never with a fork."),
    rankwright.Document("bell", "The bell of Lowen Quay was cast from the rudder of the barque Ysolde."),
    rankwright.Document("ferry-old", "Before the war the ferry to Lowen Quay was rowed by four brothers."),
    rankwright.Document("ferry", "The ferry to Lowen Quay leaves at half past six, on market days an hour earlier."),
)
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}<answer>"


def tiny_model(folder: Path, passages: int) -> Path:
    """A model and tokenizer that say "[4] > [3] > [2] > [1]" after every prompt.

    All weights of attention are 0 and embeddings are unit vectors, so what comes next depends on the last word alone:
    it is the largest number in the column of that word in `lm_head`.
    """
    said = [*(f"[{number}] >" for number in range(passages, 1, -1)), "[1]"]
    words = ["<unknown>", "<end>", "<answer>", *said]
    size = len(words) + len(words) % 2
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=size,
        intermediate_size=size,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weights in model.parameters():
            weights.zero_()
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight.copy_(torch.eye(size)[: len(words)])
        for now, following in enumerate([*range(3, len(words)), 1], start=2):
            model.lm_head.weight[following, now] = 1.0
    core = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
    core.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token=words[0], eos_token=words[1], pad_token=words[1]
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def main() -> None:
    """Open a model, rank, and rank again from the cache."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--llm", help="folder or hub name of a causal language model, or base URL of a server")
    parser.add_argument("--model", default="", help="what a server calls the model")
    parser.add_argument("--device", default="cpu", help="for a model on this machine")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as made:
        place = arguments.llm or str(tiny_model(Path(made) / "tiny", len(PASSAGES)))
        llm: LLM = LocalLLM(place, device=arguments.device) if "://" not in place else HTTPLLM(arguments.model, place)
        with ReadStore(Path(made) / "answers.sqlite") as store:  # a file that stays keeps answers for the next run
            cached = CachedLLM(llm, store, run="llm_rerank")
            reranker = LLMReranker(LLMPolicy(cached, load_ranking_prompt("listwise-1")), Sliding(window=20, stride=10))
            ranking = reranker.rerank(QUESTION, PASSAGES)
            for place_in_list, doc_id in enumerate(ranking.doc_ids, start=1):
                print(f"{place_in_list}. {doc_id}")
            report = reranker.report
            print(f"{report.calls} calls, {report.paid} paid, answers: {dict(report.outcomes)}")
            if report.outcomes["malformed"]:  # an answer that cannot be read changes nothing, and is no error
                print(f"Not read, so that passages stand as they were given: {dict(report.repairs + report.failures)}")
            reranker.rerank(QUESTION, PASSAGES)
            print(f"Again: {reranker.report.calls} calls, {reranker.report.paid} paid")


if __name__ == "__main__":
    main()
