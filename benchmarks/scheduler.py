"""The scheduler against a plain sequential sliding window over the same local model: `python -m benchmarks.scheduler`
(some minutes; it writes results/scheduler.md).

The plain loop is what one writes first: query by query, window by window, one prompt and one `generate` at a time. Both
have the same model, prompts, greedy decoding, parser and windows. They take turns in one process, on all threads that
PyTorch takes by default. The machine must do nothing else; seconds of the processor, of which other work changes
little, stand beside those of the clock.

The weights are random: what an answer says decides nothing about its cost. Answers are as long as their limit, which in
both loops is a failed call that leaves its window as it is; that both come to the same rankings is checked.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from benchmarks.kept import hardware
from benchmarks.pages import of_one_table, spread
from rankwright.llms.local import LocalLLM
from rankwright.prompts.ranking import load_ranking_prompt
from rankwright.rerankers.generating import LLMPolicy
from rankwright.strategies import Sliding, run_strategies, windows
from rankwright.types import Completion, Document, Judgement, Permutation, Query, RerankRequest

PAGE = Path(__file__).parent / "results" / "scheduler.md"
QUERIES, DOCUMENTS = 16, 30
HEADS = ("plain, processor s", "scheduler, processor s", "ratio", "plain, s", "scheduler, s", "ratio")
WORDS = tuple(f"w{number:03}" for number in range(500))


class Shape(NamedTuple):
    """What is ranked, by how large a model."""

    what: str
    width: int
    layers: int
    passage_words: int
    answer: int
    """Tokens."""
    window: int = 20
    stride: int = 10


SHAPES = (
    Shape("8 passages of 4 words, short answers", 128, 4, 4, 36, 8, 4),
    Shape("20 passages of 3 words, order alone", 128, 4, 3, 64),
    Shape("20 passages of 3 words, thoughts and order", 128, 4, 3, 256),
    Shape("20 passages of 20 words, order alone", 128, 4, 20, 64),
    Shape("20 passages of 3 words, order alone", 512, 8, 3, 64),
    Shape("20 passages of 3 words, thoughts and order", 512, 8, 3, 256),
)


def model_at(folder: Path, shape: Shape) -> Path:
    """A Llama with random weights that never ends by itself, and a tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    names = ["<pad>", "<unk>", "</s>", *"[]>", *(str(number) for number in range(DOCUMENTS + 1)), *WORDS]
    core = Tokenizer(WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", model_max_length=4096
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(names),
        hidden_size=shape.width,
        intermediate_size=3 * shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=4,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[2].zero_()
    model.generation_config.suppress_tokens = [2]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def requests_of(shape: Shape) -> list[RerankRequest]:
    """Queries with candidates of random words."""
    draw = random.Random(0)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=shape.passage_words))

    return [
        RerankRequest(Query(f"q{number}", text()), tuple(Document(f"d{i}", text()) for i in range(DOCUMENTS)))
        for number in range(QUERIES)
    ]


def scheduled(policy: LLMPolicy, shape: Shape, requests: Sequence[RerankRequest]) -> list[tuple[str, ...]]:
    """Orders by the scheduler."""
    # Answers without an end count as failed calls; they cost what others do.
    rankings, _ = run_strategies(Sliding(shape.window, shape.stride), policy, requests, max_failed=1.0)
    return [ranking.doc_ids for ranking in rankings]


def plain(policy: LLMPolicy, llm: LocalLLM, shape: Shape, requests: Sequence[RerankRequest]) -> list[tuple[str, ...]]:
    """Orders by one prompt after the other."""
    import torch

    model, tokenizer, found = llm._model, llm._tokenizer, []
    for request in requests:
        order = list(request.documents)
        for start, end in windows(len(order), shape.window, shape.stride):
            window = RerankRequest(request.query, tuple(order[start:end]))
            asked = policy.request(window)
            prompt = "\n\n".join(content for _, content in asked.messages)
            inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
            with torch.inference_mode():
                tokens: Any = model.generate(  # pyright: ignore[reportCallIssue]
                    **inputs,  # pyright: ignore[reportArgumentType]
                    max_new_tokens=dict(asked.sampling)["max_tokens"],
                    do_sample=False,
                    pad_token_id=0,
                )
            text = str(tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
            if int(tokens[0, -1]) != tokenizer.eos_token_id:
                continue
            judged: Judgement = policy.prompt.parse(Completion(text), end - start)
            if isinstance(judged, Permutation) and judged.outcome != "malformed":
                order[start:end] = [window.documents[place] for place in judged.order]
        found.append(tuple(document.doc_id for document in order))
    return found


def seconds(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """By the clock, of the processor, and what came out."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = work()
    return time.perf_counter() - wall, time.process_time() - cpu, value


def measure(shape: Shape, repeats: int) -> dict[str, Any]:
    """Both loops in turn, the first turn of each not counted."""
    with TemporaryDirectory() as folder:
        llm = LocalLLM(model_at(Path(folder), shape), device="cpu")
        policy = LLMPolicy(llm, load_ranking_prompt("listwise-1"), sampling={"max_tokens": shape.answer})
        requests = requests_of(shape)
        whole = RerankRequest(requests[0].query, requests[0].documents[: shape.window])
        loops: dict[str, Callable[[], Any]] = {
            "plain": lambda: plain(policy, llm, shape, requests),
            "scheduler": lambda: scheduled(policy, shape, requests),
        }
        plain(policy, llm, shape, requests[:1])  # warms up
        scheduled(policy, shape, requests[:1])
        found: dict[str, list[tuple[float, float, Any]]] = {name: [] for name in loops}
        for repeat in range(repeats):
            for name in sorted(loops, reverse=repeat % 2 == 1):
                found[name].append(seconds(loops[name]))
        orders = [run[2] for runs in found.values() for run in runs]
        assert all(one == orders[0] for one in orders), "the loops rank differently"
        weights = sum(weight.numel() for weight in llm._model.parameters())
        return {
            "weights": weights / 1e6,
            "prompt": llm.input_tokens(policy.request(whole)),
            "runs": {name: [run[:2] for run in runs] for name, runs in found.items()},
        }


def line(shape: Shape, found: dict[str, Any]) -> str:
    """A row of the page."""
    runs = found["runs"]
    calls = len(windows(DOCUMENTS, shape.window, shape.stride)) * QUERIES
    cells = [shape.what, str(calls), f"{found['weights']:.1f}", str(found["prompt"]), str(shape.answer)]
    for clock in (1, 0):
        pairs = [(a[clock], b[clock]) for a, b in zip(runs["plain"], runs["scheduler"], strict=True)]
        cells += [spread([a for a, _ in pairs], ".2f"), spread([b for _, b in pairs], ".2f")]
        cells += [spread([a / b for a, b in pairs], ".2f", "x")]
    return f"| {' | '.join(cells)} |"


def page(lines: Sequence[str], repeats: int) -> str:
    """The results page."""
    import torch

    about = (
        f"Measured on: {hardware()}, {torch.get_num_threads()} threads. {QUERIES} queries of {DOCUMENTS} candidates; a "
        "local model with\nrandom weights, greedy. The plain loop asks one prompt after the other, query by query; the "
        f"scheduler has the windows of all\nqueries that do not wait for each other, {QUERIES} here, in batches of "
        f"`LocalLLM`. Both in turn in one process, {repeats} times each:\nmedian (smallest to largest), ratios of "
        "neighbouring turns."
    )
    why = (
        "What decides the ratio: reading a prompt costs the same in both loops (on one core a batch of prompts takes "
        "as long as one\nafter the other). Writing costs the plain loop one pass over all weights, with every layer's "
        "overhead, for each token of each\nquery, and the scheduler one for each token of a batch. The longer answers "
        "are beside prompts, the more is gained. All answers\nof a batch are waited for, so answers of different "
        "lengths, which random weights do not write, gain less.\n\n"
        "Goal: at least 4x fewer seconds. It is missed here by every shape, narrowly where a larger model thinks at "
        "length before it\nanswers: on two cores reading the prompts is compute that no batch saves (two fifths of a "
        "batch of 16 prompts of 497 tokens with\nanswers of 60). Tried and not kept: keys and values with room ahead, "
        "in the place of a concatenation for each token, which saved\nan eighth of a batch."
    )
    heads = ("what", "calls", "million weights", "tokens of a prompt", "of an answer", *HEADS)
    command = f"python -m benchmarks.scheduler --repeats {repeats}"
    return of_one_table("The scheduler against a plain sliding window", command, about, heads, lines, why)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shape", type=int, help="only one of the shapes, printed and not written")
    args = parser.parse_args()
    chosen = SHAPES if args.shape is None else SHAPES[args.shape : args.shape + 1]
    lines = []
    for shape in chosen:
        lines.append(line(shape, measure(shape, args.repeats)))
        print(lines[-1], flush=True)
    if args.shape is None:
        PAGE.write_text(page(lines, args.repeats), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
