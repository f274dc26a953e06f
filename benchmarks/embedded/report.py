"""Measures the shipped embedded models and writes results/embedded.md: `python -m benchmarks.embedded.report`.

Every part is kept in results/kept/embedded/ and not measured again; parts that were not run print "not run".
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.embedded.sets import ROOT, load_set, load_sets, passages, scifact_corpus, scifact_test, side
from benchmarks.kept import DEVICE, READER, REFERENCE, SHOWN, SPLIT, digests, measured, read
from rankwright.evaluation import FirstStage, evaluate
from rankwright.retrieval import BM25, with_candidates
from rankwright.types import Document, Example, Query

if TYPE_CHECKING:
    from rankwright.readers import EmbeddedReader

WORK = Path(__file__).parents[1] / "work" / "embedded"
PAGE = Path(__file__).parents[1] / "results" / "embedded.md"
READER_SETS = {"nq_open": ("nq_open",), "xquad_en": ("xquad_en",), "hotpotqa/dev": ("hotpotqa/dev",)}
CONTEXTS = ("gold", "gold+1", "gold+2", "distractors", "none")
DEPTH = 50


def reader_part(name: str, full: Path | None) -> dict[str, Any]:
    """F1, EM and share of empty answers on the test side of one set, by context."""
    from benchmarks.embedded.train_reader import TRAIN_SETS, distractors, score
    from rankwright.readers import EmbeddedReader

    pool = list(passages(load_sets((*TRAIN_SETS, "hotpotqa/dev"))).values())
    questions = side("test", READER_SETS[name])
    hard = distractors(questions, pool)
    reader = full_reader(full) if full else EmbeddedReader(device=DEVICE)
    reader.encoder.tokens_cut = reader.encoder.tokens_all = 0  # the share is that of this set
    contexts = score(reader, questions, hard)
    return {"n": len(questions), "contexts": contexts, "share_cut": reader.share_cut}


@cache
def full_reader(weights: Path) -> EmbeddedReader:
    """The fully fine-tuned reader that the adapter was cut from, with offsets of its own, chosen as the adapter's."""
    import torch
    from transformers import BertConfig

    from benchmarks.embedded.train_reader import TRAIN_SETS, choose_offsets, distractors
    from rankwright.backbone import backbone_folder
    from rankwright.readers.extractive import EmbeddedReader, Encoder, ExtractiveModel

    if not weights.exists():
        sys.exit(
            f"{weights} is not there; wanted the phase-N.pt of a reader: python -m benchmarks.embedded.train_reader"
        )
    model = ExtractiveModel(BertConfig.from_pretrained(backbone_folder()))
    model.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    reader = EmbeddedReader.from_model(model, Encoder(backbone_folder()), 0.0, device=DEVICE)

    def chosen() -> list[float]:
        dev = side("dev", TRAIN_SETS)
        choose_offsets(reader, dev, distractors(dev, list(passages(load_sets(TRAIN_SETS)).values())))
        return [reader.nothing_bias, reader.rank_penalty]

    offsets = measured(weights.with_suffix(".offsets.json"), digests([weights, SPLIT]), chosen)
    reader.nothing_bias, reader.rank_penalty = offsets
    return reader


def ranking_sets(depth: int = DEPTH) -> dict[str, Callable[[], list[Example]]]:
    """Sets for nDCG@10 with so many BM25 candidates (trec_dl19: the run as given)."""

    def bm25(corpus: Sequence[Document], rows: Sequence[tuple[str, str, Mapping[str, int]]]) -> list[Example]:
        examples = [Example(Query(query_id, text), relevance=relevance) for query_id, text, relevance in rows]
        return with_candidates(examples, BM25(corpus), depth)

    def hotpot() -> list[Example]:
        pool = passages(load_sets(("hotpotqa/train", "hotpotqa/dev")))
        rows = [(q.key, q.text, {d.doc_id: 1 for d in q.gold}) for q in load_set("hotpotqa/dev")]
        return bm25(list(pool.values()), rows)

    def nfcorpus() -> list[Example]:
        from rankwright.data import load_examples

        dataset = load_examples(ROOT / "nfcorpus" / "nfcorpus.zip", "beir")
        return with_candidates(dataset.examples, BM25(dataset.corpus), depth)

    def dl19() -> list[Example]:
        from rankwright.data import load_examples

        folder = ROOT / "trec_dl19"
        return list(load_examples(folder / "bm25_top100.json", "rank_llm", qrels=folder / "qrels.txt").examples)

    return {
        "scifact test": lambda: bm25(scifact_corpus(), scifact_test()),
        "nfcorpus test": nfcorpus,
        "trec_dl19": dl19,
        "hotpotqa/dev": hotpot,
    }


def ranking_part(name: str) -> dict[str, Any]:
    """nDCG@10 of BM25 and of the reference on one set, with the paired test."""
    from rankwright.rerankers import load

    examples = ranking_sets()[name]()
    depth = 100 if name == "trec_dl19" else DEPTH
    rankers = {FirstStage.name: FirstStage(), "reference": load("reference", device=DEVICE)}
    evaluation = evaluate(rankers, examples, depth=depth, baseline=FirstStage.name, set_name=name, retriever="bm25")
    record = evaluation.to_json()
    return {key: record[key] for key in ("n", "signature", "models", "intervals", "tests")}


def kept_at(name: str) -> tuple[Path, dict[str, Any]]:
    """File of a part, and what decides it."""
    files = [READER, SPLIT, SHOWN] if name.startswith("reader-") else [REFERENCE, SPLIT]
    return WORK / f"{name.replace('/', '_').replace(' ', '_')}.json", digests(files)


def run_part(name: str, measure: Callable[[], dict[str, Any]]) -> None:
    """Runs a part once and keeps it."""
    measured(*kept_at(name), measure)
    print(name, "done", flush=True)


def page() -> str:
    """The results page out of what is kept."""
    lines = [
        "# The embedded models",
        "",
        "Commands: `python -m benchmarks.embedded.split`, the same with `--shown`, `python -m "
        "benchmarks.embedded.train_reference`,",
        "`python -m benchmarks.embedded.train_reader`, then `python -m benchmarks.embedded.report --full-reader",
        "benchmarks/work/reader/phase-1.pt` for this page (without the option, without the rows of full fine-tuning). "
        "Seed 0.",
        "Questions are the test side of `benchmarks/embedded/split.json` without those of `shown.json`: neither they "
        "nor their",
        "gold passages, word for word or nearly, were seen in training.",
        "",
        "## Reader: F1 / EM (share of empty answers)",
        "",
        "gold+1 and gold+2 put BM25's hardest passages without an answer beside the gold ones, in random order, which "
        "costs a",
        "reader that expects the best passage first; distractors: three such passages.",
        "",
        "| set | n | " + " | ".join(CONTEXTS) + " | tokens cut |",
        "|---|---|" + "---|" * (len(CONTEXTS) + 1),
    ]
    for name in READER_SETS:
        for suffix, label in (("", name), ("-full", f"{name}, full fine-tuning")):
            part = read(*kept_at(f"reader-{name}{suffix}"))
            if part is None:
                lines.append(f"| {label} | not run |" + " |" * (len(CONTEXTS) + 1))
                continue
            cells = [
                f"{c['F1']:.3f} / {c['EM']:.3f} ({c['empty']:.0%})" for c in (part["contexts"][k] for k in CONTEXTS)
            ]
            lines.append(f"| {label} | {part['n']} | " + " | ".join(cells) + f" | {part['share_cut']:.1%} |")
    lines += [
        "",
        "## Reference: nDCG@10",
        "",
        f"BM25 top {DEPTH} (trec_dl19: the published BM25 top 100), 95 % bootstrap intervals, paired permutation test.",
        "",
        "| set | n | BM25 | reference | difference | p |",
        "|---|---|---|---|---|---|",
    ]
    for name in ranking_sets():
        part = read(*kept_at(f"ranking-{name}"))
        if part is None:
            lines.append(f"| {name} | not run | | | | |")
            continue
        test = next(t for t in part["tests"] if t["metric"] == "nDCG@10")
        cells = []
        for model in (FirstStage.name, "reference"):
            low, high = part["intervals"][model]["nDCG@10"]
            cells.append(f"{part['models'][model]['nDCG@10']:.4f} [{low:.3f}, {high:.3f}]")
        lines.append(
            f"| {name} | {part['n']} | {cells[0]} | {cells[1]} | {test['delta']:+.4f} [{test['ci_low']:+.4f}, "
            f"{test['ci_high']:+.4f}] | {test['p']:.4f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full-reader", type=Path, help="last phase-N.pt of train_reader: what the adapter loses")
    parser.add_argument("--only", choices=("reader", "ranking"), help="measure only one half")
    args = parser.parse_args()
    if args.only != "ranking":
        for name in READER_SETS:
            run_part(f"reader-{name}", lambda name=name: reader_part(name, None))
            if args.full_reader:
                run_part(f"reader-{name}-full", lambda name=name: reader_part(name, args.full_reader))
    if args.only != "reader":
        for name in ranking_sets():
            run_part(f"ranking-{name}", lambda name=name: ranking_part(name))
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
