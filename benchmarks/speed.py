"""How fast a cross-encoder scores on this CPU, beside its peers on the same weights, pairs and threads:
`python -m benchmarks.speed peers` (fetches two of them, beside the project's environment), then `... run` (resumable,
below an hour; the machine must do nothing else), then `... page`.

The model is the embedded reference (MiniLM-L6's size) with 512 tokens. Each cell of the table has a process of its own,
in which all systems are open and score the same list one after the other, beginning with another one each time; so a
slow minute of the machine meets all alike, and ratios are those of one list. nDCG@10 is measured apart.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import kept
from benchmarks.embedded.report import ranking_sets
from benchmarks.kept import REFERENCE, digests, measured, processor_words, read
from rankwright.types import Example, RerankRequest

WORK = Path(__file__).parent / "work" / "speed"
PAGE = Path(__file__).parent / "results" / "speed.md"
PEERS = WORK / "peers"
MAX_LENGTH = 512
SETS = {"hotpotqa": "hotpotqa/dev", "nfcorpus": "nfcorpus test", "scifact": "scifact test", "trec_dl19": "trec_dl19"}
LENGTHS = (64, 128, 256)
CANDIDATES = {20: (10, 2), 100: (5, 2)}
"""Candidates -> lists and rounds over them."""
QUALITY = (100, 50)
"""Questions of a set and candidates of each, for nDCG@10."""
PAUSE = 0.03
"""Seconds between two systems: the threads of the one before wait busily for a while."""
Scores = Callable[[str, Sequence[str]], Sequence[float]]


# --- the systems


def model_folder() -> Path:
    """The reference as a folder that every system opens."""
    folder = WORK / "model"
    if not (folder / "modules.json").exists():
        from rankwright.rerankers.cross_encoder import load_reference

        load_reference(max_length=MAX_LENGTH).save(folder)
    return folder


def graph_file() -> Path:
    """The same model as an ONNX graph in fp32, made by PyTorch, with the files that FlashRank wants beside it."""
    folder = WORK / "graph"
    graph = folder / "model.onnx"
    if graph.exists():
        return graph
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    model = AutoModelForSequenceClassification.from_pretrained(model_folder()).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    inputs = dict(tokenizer(["a"] * 2, ["b c"] * 2, return_tensors="pt"))
    names = ["input_ids", "attention_mask", "token_type_ids"]
    rows = {name: {0: "pairs", 1: "tokens"} for name in names}
    part = graph.with_suffix(".part")
    torch.onnx.export(
        model,
        tuple(inputs[name] for name in names),
        str(part),
        input_names=names,
        output_names=["logits"],
        dynamic_axes=rows,
        opset_version=17,
        dynamo=False,
    )
    part.replace(graph)
    return graph


def sentence_transformers(**settings: Any) -> Scores:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(model_folder()), device="cpu", model_kwargs=settings or None)
    return lambda query, texts: model.predict([(query, text) for text in texts], show_progress_bar=False).tolist()


def rerankers() -> Scores:
    from rerankers import Reranker  # pyright: ignore[reportMissingImports]

    model: Any = Reranker(str(model_folder()), model_type="cross-encoder", device="cpu", verbose=0)

    def scores(query: str, texts: Sequence[str]) -> list[float]:
        found = model.rank(query, list(texts), doc_ids=list(range(len(texts))))
        by_id = {result.document.doc_id: result.score for result in found.results}
        return [float(by_id[place]) for place in range(len(texts))]

    return scores


def flashrank() -> Scores:
    """FlashRank's runtime; it knows its own models by name, so ours stands where one of them would."""
    import json
    import shutil

    from flashrank import Ranker  # pyright: ignore[reportMissingImports]
    from flashrank import RerankRequest as Request  # pyright: ignore[reportMissingImports]
    from flashrank.Config import model_file_map  # pyright: ignore[reportMissingImports]
    from transformers import AutoTokenizer

    name = "ms-marco-MiniLM-L-12-v2"
    folder = WORK / "flashrank" / name
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(graph_file(), folder / model_file_map[name])
    for file in ("config.json", "tokenizer.json"):
        shutil.copy(model_folder() / file, folder / file)
    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    tokens = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    settings = {"model_max_length": MAX_LENGTH, "pad_token": tokenizer.pad_token}
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    model = Ranker(name, str(folder.parent), max_length=MAX_LENGTH, log_level="ERROR")

    def scores(query: str, texts: Sequence[str]) -> list[float]:
        passages = [{"id": place, "text": text} for place, text in enumerate(texts)]
        by_id = {row["id"]: row["score"] for row in model.rerank(Request(query=query, passages=passages))}
        probability = np.clip([by_id[place] for place in range(len(texts))], 1e-7, 1 - 1e-7)
        return np.log(probability / (1 - probability)).tolist()

    return scores


def plain_onnx() -> Scores:
    """What one writes first: batches of 32 as they come, padded to the longest, all settings as they are."""
    import onnxruntime  # pyright: ignore[reportMissingImports]
    from tokenizers import Tokenizer

    session: Any = onnxruntime.InferenceSession(str(graph_file()), providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_LENGTH)
    tokenizer.enable_padding()

    def scores(query: str, texts: Sequence[str]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(texts), 32):
            batch = tokenizer.encode_batch([(query, text) for text in texts[start : start + 32]])
            parts = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
            inputs = {name: np.array([getattr(row, part) for row in batch]) for name, part in parts.items()}
            found += session.run(None, inputs)[0][:, 0].tolist()
        return found

    return scores


def ours(backend: str) -> Callable[[], Scores]:
    """rankwright in one backend."""

    def opened() -> Scores:
        from rankwright.rerankers import load
        from rankwright.types import as_documents, as_query

        model = load(model_folder(), backend=backend, max_length=MAX_LENGTH)
        return lambda query, texts: model.score_batch([RerankRequest(as_query(query), as_documents(texts))])[0].scores

    return opened


BASE, BASE_BF16 = "sentence-transformers", "sentence-transformers, bf16"
OWN = {f"rankwright {backend}": backend for backend in ("torch", "packed", "bf16", "onnx", "onnx-int8")}
SYSTEMS: dict[str, Callable[[], Scores]] = {
    BASE: sentence_transformers,
    BASE_BF16: lambda: sentence_transformers(dtype="bfloat16"),
    "rerankers": rerankers,
    "FlashRank's runtime": flashrank,
    "ONNX Runtime, plain": plain_onnx,
    **{name: ours(backend) for name, backend in OWN.items()},
}


def opened_systems() -> tuple[dict[str, Scores], dict[str, str]]:
    """Those that open here, and why others do not."""
    if PEERS.is_dir() and str(PEERS) not in sys.path:
        sys.path.append(str(PEERS))  # behind the project's environment, whose versions stay
    found: dict[str, Scores] = {}
    missing: dict[str, str] = {}
    for name, open_system in SYSTEMS.items():
        try:
            found[name] = open_system()
        except Exception as error:  # whatever a peer raises is its reason
            missing[name] = f"{type(error).__name__}: {error}".split("\n")[0][:160]
    return found, missing


# --- the lists


@cache
def examples_of(name: str) -> list[Example]:
    """Questions of a set with their first-stage candidates; those with few candidates left out."""
    return [
        example for example in ranking_sets(max(CANDIDATES))[SETS[name]]() if len(example.candidates) >= max(CANDIDATES)
    ]


def lists_of(cell: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Queries and passages of one cell; every other question from the beginning on."""
    from rankwright.rerankers.ranking import DEFAULT_TEMPLATE, render

    candidates, lists = cell["candidates"], CANDIDATES[cell["candidates"]][0]
    if "length" in cell:
        return fixed_lists(cell["length"], candidates, lists)
    chosen = examples_of(cell["set"])[::2][:lists]
    return [
        (example.query.text, [render(DEFAULT_TEMPLATE, document) for document in example.candidates[:candidates]])
        for example in chosen
    ]


def fixed_lists(length: int, candidates: int, lists: int) -> list[tuple[str, list[str]]]:
    """Passages of trec_dl19 put together and cut, so that every pair has exactly so many tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    found = []
    for example in examples_of("trec_dl19")[:lists]:
        query = example.query.text
        words = " ".join(document.text for document in example.candidates)
        spans = tokenizer(words, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        room = length - len(tokenizer(query, "")["input_ids"])
        starts = [number * (len(spans) - room) // candidates for number in range(candidates)]
        texts = [words[spans[start][0] : spans[start + room - 1][1]] for start in starts]
        found.append((query, [exact(tokenizer, query, text, length) for text in texts]))
    return found


def exact(tokenizer: Any, query: str, text: str, length: int) -> str:
    """The text made so long that the pair has exactly so many tokens: its ends may have come apart differently."""
    while (tokens := len(tokenizer(query, text)["input_ids"])) != length:
        text = text[:-1].rstrip() if tokens > length else f"{text} a"  # a whole word may be all that there is
    return text


def tokens_of(lists: Sequence[tuple[str, Sequence[str]]]) -> list[list[int]]:
    """Tokens of every pair."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    found = (tokenizer([q] * len(t), list(t), truncation=True, max_length=MAX_LENGTH)["input_ids"] for q, t in lists)
    return [[len(ids) for ids in encoded] for encoded in found]


def work_of(tokens: Sequence[int]) -> float:
    """Floating point operations of the encoder's products for pairs of so many tokens, as the architecture has them."""
    hidden, inner, layers = 384, 1536, 6
    return sum(layers * (2 * n * (4 * hidden**2 + 2 * hidden * inner) + 4 * n * n * hidden) for n in tokens)


# --- the measurements


def time_cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of every system for every list and round, and how far its scores are from the base's."""
    import torch

    lists = lists_of(cell)
    rounds = CANDIDATES[cell["candidates"]][1]
    systems, missing = opened_systems()
    names = list(systems)
    tokens = tokens_of(lists)
    wanted = [np.array(systems[BASE](*one)) for one in lists]
    largest = {
        name: max(float(np.abs(np.array(score(*one)) - base).max()) for one, base in zip(lists, wanted, strict=True))
        for name, score in systems.items()  # the warm-up of all
    }
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds * len(lists)):
        query, texts = lists[turn % len(lists)]
        for name in [*names[turn % len(names) :], *names[: turn % len(names)]]:
            time.sleep(PAUSE)
            began = time.perf_counter()
            systems[name](query, texts)
            seconds[name].append(time.perf_counter() - began)
    return {
        "hardware": processor_words(),
        "threads": torch.get_num_threads(),
        "missing": missing,
        "seconds": seconds,
        "largest_error": largest,
        "deviation": float(np.concatenate(wanted).std()),
        "tokens": float(np.mean([n for row in tokens for n in row])),
        "gflop": float(np.mean([work_of(row) for row in tokens])) / 1e9,
    }


def peak() -> dict[str, Any]:
    """The most that matrix products of this model's shapes and of large squares reach, in GFLOP/s."""
    import torch

    def best(left: torch.Tensor, right: torch.Tensor, multiply: Callable[..., Any]) -> float:
        work = 2 * left.shape[0] * left.shape[1] * right.shape[1] / 1e9
        fastest = float("inf")
        for _ in range(30):
            began = time.perf_counter()
            multiply(left, right)
            fastest = min(fastest, time.perf_counter() - began)
        return work / fastest

    found: dict[str, Any] = {"hardware": processor_words()}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        rates = []
        for rows, inner, columns in ((1024, 384, 1536), (1024, 1536, 384), (2048, 2048, 2048)):
            left, right = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
            packed = torch.ops.mkldnn._reorder_linear_weight(right.t().contiguous(), rows)
            rates.append(best(left, right, torch.mm))
            rates.append(
                best(left, right, lambda a, b, p=packed: torch.ops.mkldnn._linear_pointwise(a, p, None, "none", [], ""))
            )
        found[name] = max(rates)
    return found


def quality(backend: str, name: str) -> dict[str, float]:
    """nDCG@10 of one backend on one set."""
    from rankwright.metrics.ranking import ranking_metrics
    from rankwright.rerankers import load

    questions, depth = QUALITY
    examples = [e for e in examples_of(name) if any(e.relevance.values())][:questions]
    model = load(model_folder(), backend=backend, max_length=MAX_LENGTH)
    requests = [RerankRequest(e.query, e.candidates[:depth]) for e in examples]
    rankings = [ranking for request in requests for ranking in model.rerank_batch([request])]
    relevance = {e.query.query_id: e.relevance for e in examples}
    values = ranking_metrics(rankings, relevance, ["nDCG@10"])["nDCG@10"]
    return {"nDCG@10": float(np.mean(list(values.values()))), "n": len(examples)}


def cells() -> dict[str, dict[str, Any]]:
    """Name -> what is timed."""
    found: dict[str, dict[str, Any]] = {}
    for candidates in CANDIDATES:
        found |= {f"{name}, {candidates}": {"set": name, "candidates": candidates} for name in SETS}
        found |= {f"{n} tokens, {candidates}": {"length": n, "candidates": candidates} for n in LENGTHS}
    return found


def tasks() -> dict[str, Callable[[], Any]]:
    """Everything that is measured, by name."""
    found: dict[str, Callable[[], Any]] = {"peak": peak}
    found |= {f"time {name}": lambda cell=cell: time_cell(cell) for name, cell in cells().items()}
    for backend in OWN.values():
        found |= {f"quality {backend} {name}": lambda b=backend, n=name: quality(b, n) for name in SETS}
    return found


def kept_at(name: str) -> tuple[Path, dict[str, Any]]:
    """File of a measurement, and what decides it."""
    words = "".join(c if c.isalnum() else "-" for c in name)
    made_with: dict[str, Any] = {"task": name, "max_length": MAX_LENGTH, **digests([REFERENCE])}
    if name.startswith("time"):
        made_with["systems"] = list(SYSTEMS)  # those of one list are measured together or not at all
    return WORK / f"{words}.json", made_with


def run_one(name: str) -> None:
    """One measurement, kept; a backend that does not open leaves its row empty."""
    if name.startswith("quality"):
        from rankwright.errors import RankwrightError

        try:
            record = measured(*kept_at(name), tasks()[name])
        except RankwrightError as error:
            print(name, "not run:", error, flush=True)
            return
    else:
        record = measured(*kept_at(name), tasks()[name])
    seconds = record.get("seconds")
    shown = {key: round(1e3 * float(np.median(v))) for key, v in seconds.items()} if seconds else record
    print(name, shown, flush=True)


# --- the page


def row_of(name: str, system: str, record: Mapping[str, Any] | None, peaks: Mapping[str, Any] | None) -> str:
    """One system in one cell."""
    if record is None or system not in record["seconds"]:
        why = f": {record['missing'].get(system, '')}" if record else ""
        return f"| {name} | {system} | not run{why.replace('|', ' ')} |" + " |" * 6
    times = {key: np.array(values) for key, values in record["seconds"].items()}
    mine = times[system]
    candidates = cells()[name]["candidates"]
    rates = times[BASE] / mine
    peers = [key for key in times if key not in OWN and key != BASE]
    best = min(peers, key=lambda key: np.median(times[key]), default=None)
    beside = f"{np.median(times[best] / mine):.2f}x" if best and system in OWN else ""
    rate = record["gflop"] / np.median(mine)
    share = f"{rate / peaks['bf16']:.0%}" if peaks else "not run"
    return (
        f"| {name} | {system} | {1e3 * np.median(mine):.0f} | {1e3 * np.percentile(mine, 95):.0f} | "
        f"{candidates / np.median(mine):.0f} | {np.median(rates):.2f}x ({rates.min():.2f}-{rates.max():.2f}) | "
        f"{beside} | {share} | {record['largest_error'][system]:.2g} |"
    )


def quality_row(backend: str) -> str:
    """nDCG@10 of one backend, and how far its mean is from fp32's."""
    found = [read(*kept_at(f"quality {backend} {name}")) for name in SETS]
    plain = [read(*kept_at(f"quality torch {name}")) for name in SETS]
    shown = [f"{record['nDCG@10']:.4f}" if record else "not run" for record in found]
    if not all(found) or not all(plain):
        return f"| {backend} | " + " | ".join(shown) + " | not run | |"
    mean, base = (float(np.mean([record["nDCG@10"] for record in rows])) for rows in (found, plain))
    return f"| {backend} | " + " | ".join(shown) + f" | {mean:.4f} | {mean - base:+.4f} |"


def page() -> str:
    """The results page."""
    records = {name: read(*kept_at(f"time {name}")) for name in cells()}
    peaks = read(*kept_at("peak"))
    there = [record for record in records.values() if record]
    machines = sorted({f"{record['hardware']}; {record['threads']} threads" for record in there})
    top = ", ".join(f"{name} {peaks[name]:.0f} GFLOP/s" for name in ("fp32", "bf16")) if peaks else "not run"
    runs = ", ".join(f"{n} lists of {size} {rounds} times" for size, (n, rounds) in CANDIDATES.items())
    words = {name: f"{record['tokens']:.0f} tokens a pair" if record else "not run" for name, record in records.items()}
    return "\n".join(
        [
            "# Speed on a CPU",
            "",
            "```",
            "python -m benchmarks.speed peers",
            "python -m benchmarks.speed run",
            "python -m benchmarks.speed page",
            "```",
            "",
            f"Measured on: {'; '.join(machines) or 'not run'}. Peak of matrix products: {top}.",
            "",
            "The embedded reference (6 layers of 384, 512 tokens at most) as one folder. Peers are opened with their",
            "defaults, which compute in fp32, and sentence-transformers in bf16 too; our rows name the backend",
            "(the default is torch). The same query and passages, text to scores, tokenisation included. Lists of one",
            f"cell are scored by all systems in one process in turn: {runs}.",
            "Milliseconds of a list: median and 95th percentile; ratios are those of one list in one round: median",
            "(smallest to largest) against sentence-transformers' default, and against the fastest other row of a",
            "peer. Share of peak: operations of the whole model's products a second, over the bf16 peak; packed and",
            "bf16 leave out a seventh of them, which counts as done. Error: the largest difference of a raw score to",
            "sentence-transformers' default (FlashRank's from its probabilities).",
            "",
            "| list | system | p50 ms | p95 ms | pairs/s | to sentence-transformers | to best other peer | share of "
            "peak | error |",
            "|---|---|---|---|---|---|---|---|---|",
            *(row_of(name, system, records[name], peaks) for name in records for system in SYSTEMS),
            "",
            "Lists: " + "; ".join(f"{name}: {text}" for name, text in words.items()) + ".",
            "",
            "## nDCG@10",
            "",
            f"The first {QUALITY[0]} questions of each set that have a relevant passage, {QUALITY[1]} candidates of",
            "BM25. `torch` is fp32 by transformers, equal to sentence-transformers.",
            "",
            "| backend | " + " | ".join(SETS) + " | mean | to torch |",
            "|---" * (len(SETS) + 3) + "|",
            *(quality_row(backend) for backend in OWN.values()),
            "",
        ]
    )


def fetch_peers() -> None:
    """Two peers that are not in the project's environment, without their dependencies, which are."""
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--upgrade", "--target", str(PEERS)]
    subprocess.run([*command, "rerankers==0.10.0", "FlashRank==0.2.10"], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("peers", "run", "one", "page"))
    parser.add_argument("--name", choices=list(tasks()))
    args = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if args.what == "peers":
        fetch_peers()
    elif args.what == "one":
        run_one(args.name)
    elif args.what == "run":
        kept.run_each([["benchmarks.speed", "one", "--name", name] for name in tasks()])
    else:
        PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
