"""Trains the embedded reference cross-encoder: `python -m benchmarks.embedded.train_reference`.

Listwise softmax cross-entropy on the split's reference side, on SciFact's training claims and on its titles, and on
every list the listwise divergence to a teacher: the backbone's own embedding similarity (it is a bi-encoder) less a
discount for BM25's rank. The teacher needs no labels, so most lists are cloze questions on passages: a model trained on
the labelled ones alone forgets what its backbone knew (docs/experiments.md). Full fine-tuning with frozen word
embeddings, then a low-rank adapter of the difference.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.embedded.cloze import cloze_questions
from benchmarks.embedded.optimizer import optimizer_of
from benchmarks.embedded.sets import load_sets, passages, passages_for, scifact_training, side
from rankwright.backbone import backbone_folder, difference, save_adapter
from rankwright.maths.ranking_losses import softmax_loss
from rankwright.rerankers.cross_encoder import CrossEncoderReranker, load_reference, render, untrained_reference
from rankwright.retrieval import BM25
from rankwright.types import Document, Query, RerankRequest

WORK = Path(__file__).parents[1] / "work" / "reference"
TRAIN_SETS = ("nq_open", "xquad_en", "hotpotqa/train", "musique")  # with SciFact: all with a stated licence
MAX_LENGTH = 160
LIST_DEPTH = 50
TEACHER_SCALE = 20.0  # the temperature that the backbone's own contrastive training used (its model card)


@dataclass
class List:
    """One query with the documents that may stand in its training list."""

    query: str
    gold: list[Document]
    """Labelled as relevant; empty where only the teacher knows."""
    found: list[Document]
    """BM25's order, relevant ones among them."""


def training_lists(rng: random.Random, titles: int, clozes: int) -> list[List]:
    """Labelled lists of the reference side and SciFact, title -> abstract lists, and cloze questions without labels."""
    allowed = passages_for("reference", TRAIN_SETS)
    abstracts, claims = scifact_training()
    questions = [(q.text, list(q.gold)) for q in side("reference", TRAIN_SETS)]
    by_id = {d.doc_id: d for d in abstracts}
    cited = [(claim, [by_id[i] for i in sorted(ids & by_id.keys())]) for claim, ids in claims]
    labelled = {d.doc_id for _, gold in cited for d in gold}
    chosen = rng.sample([d for d in abstracts if d.doc_id not in labelled], titles)
    # The title is the query, so no document of the list may show its own.
    bare = [Document(d.doc_id, d.text) for d in abstracts]
    bare_by_id = {d.doc_id: d for d in bare}
    of_titles = [(d.title, [bare_by_id[d.doc_id]]) for d in chosen]
    lists = [*_lists(questions, allowed), *_lists([c for c in cited if c[1]], abstracts), *_lists(of_titles, bare)]
    for pool in (allowed, abstracts):
        sources = rng.sample(pool, min(len(pool), clozes // 2))
        lists += _lists([(q.text, []) for q in cloze_questions(sources, rng)], pool)
    return lists


def _lists(queries: Sequence[tuple[str, list[Document]]], pool: Sequence[Document]) -> list[List]:
    found = BM25(pool).retrieve([Query("", text) for text, _ in queries], LIST_DEPTH)
    return [List(text, gold, list(documents)) for (text, gold), documents in zip(queries, found, strict=True)]


class Teacher:
    """Cosine similarity of the backbone's mean-pooled sentence embeddings."""

    def __init__(self) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(backbone_folder())
        self.model = AutoModel.from_pretrained(backbone_folder()).eval()
        self.known: dict[str, Tensor] = {}

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Normalised embeddings, remembered."""
        new = sorted({t for t in texts if t not in self.known}, key=len)
        for at in range(0, len(new), 16):
            batch = self.tokenizer(
                new[at : at + 16], padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
            )
            hidden = self.model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            pooled = nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
            self.known.update(zip(new[at : at + 16], pooled, strict=True))
        return torch.stack([self.known[t] for t in texts])

    def scores(self, item: List, documents: Sequence[Document], texts: Sequence[str]) -> Tensor:
        """Scaled similarities of the query to texts, less log2 of BM25's rank (one beyond the list where not found)."""
        ranks = {d.doc_id: rank for rank, d in enumerate(item.found, 1)}
        discount = torch.tensor([math.log2(1 + ranks.get(d.doc_id, LIST_DEPTH + 1)) for d in documents])
        return TEACHER_SCALE * self.embed(texts) @ self.embed([item.query])[0] - discount


def draw(item: List, width: int, rng: random.Random) -> tuple[list[Document], list[float]]:
    """One relevant document, if any is known, and others: most from BM25's first ten, the rest from further down."""
    relevant = {d.doc_id for d in item.gold}
    others = [d for d in item.found if d.doc_id not in relevant]
    chosen = [rng.choice(item.gold)] if item.gold else []
    labels = [1.0] * len(chosen)
    near, far = others[:10], others[10:]
    count = min(width - len(chosen), len(others))
    picked = rng.sample(near, min(len(near), count - min(count // 3, len(far))))
    picked += rng.sample(far, min(len(far), count - len(picked)))
    return [*chosen, *picked], [*labels, *[0.0] * len(picked)]


def listwise_loss(
    policy: CrossEncoderReranker,
    teacher: Teacher,
    batch: Sequence[tuple[List, list[Document], list[float]]],
    weight: float,
) -> Tensor:
    """Softmax cross-entropy on labels plus weight x divergence from the teacher's distribution, mean over the lists."""
    requests = [RerankRequest(Query("", item.query), tuple(documents)) for item, documents, _ in batch]
    scores_QD = policy(requests)
    labels_QD = torch.zeros_like(scores_QD)
    target_QD = torch.zeros_like(scores_QD)
    for q, (item, documents, labels) in enumerate(batch):
        labels_QD[q, : len(labels)] = torch.tensor(labels)
        texts = [render(policy.template, d) for d in documents]
        target_QD[q, : len(labels)] = teacher.scores(item, documents, texts).softmax(-1)
    log_p = scores_QD.log_softmax(-1).masked_fill(torch.isinf(scores_QD), 0.0)
    labelled = labels_QD.sum(-1) > 0
    loss = -weight * (target_QD * log_p).sum(-1).mean()
    if labelled.any():
        loss = loss + softmax_loss(scores_QD[labelled], labels_QD[labelled]) * labelled.float().mean()
    return loss


def dev_mrr(policy: CrossEncoderReranker, depth: int = 20) -> tuple[float, float]:
    """Mean reciprocal rank of the first gold passage on a third of the dev side, BM25's top 20 with the gold passages
    put in: of the policy and of BM25's order."""
    questions = side("dev", TRAIN_SETS)[::3]
    pool = list(passages(load_sets(TRAIN_SETS)).values())
    found = BM25(pool).retrieve([Query(q.key, q.text) for q in questions], depth)
    total = first_stage = 0.0
    for question, documents in zip(questions, found, strict=True):
        gold = {d.doc_id for d in question.gold}
        listed = [*documents, *[d for d in question.gold if d.doc_id not in {x.doc_id for x in documents}]]
        ranking = policy.rerank(question.text, listed)
        total += 1 / (1 + min(ranking.doc_ids.index(i) for i in gold))
        first_stage += 1 / (1 + min(i for i, d in enumerate(listed) if d.doc_id in gold))
    return total / len(questions), first_stage / len(questions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--titles", type=int, default=400)
    parser.add_argument("--clozes", type=int, default=3000, help="lists that only the teacher labels")
    parser.add_argument("--teacher-weight", type=float, default=1.0)
    parser.add_argument("--rank", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WORK)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    lists = training_lists(rng, args.titles, args.clozes)
    policy, teacher = untrained_reference(), Teacher()
    policy.tokenizer.model_max_length = MAX_LENGTH
    for module in policy.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    policy.model.bert.embeddings.requires_grad_(False)
    base = {f"bert.{name}": tensor.clone() for name, tensor in policy.model.bert.state_dict().items()}
    total = args.epochs * -(-len(lists) // args.batch)
    optimizer, schedule = optimizer_of(policy, ("model.classifier.",), args.lr, total)
    policy.train()
    step, began = 0, time.time()
    for epoch in range(args.epochs):
        rng.shuffle(lists)
        for at in range(0, len(lists), args.batch):
            batch = [(item, *draw(item, args.width, rng)) for item in lists[at : at + args.batch]]
            value = 0.0
            for part in range(0, len(batch), 4):
                loss = (
                    listwise_loss(policy, teacher, batch[part : part + 4], args.teacher_weight)
                    * len(batch[part : part + 4])
                    / len(batch)
                )
                loss.backward()
                value += loss.item()
            nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step % 5 == 0:
                print(f"epoch {epoch} step {step}/{total} loss {value:.3f} {time.time() - began:.0f}s", flush=True)
        torch.save(policy.model.state_dict(), args.out / "full.pt")
    adapter = difference(policy.model, base, args.rank)
    settings = {"template": policy.template, "max_length": 256, "rank": args.rank}
    save_adapter(args.out / "reference.safetensors", adapter, settings)
    print("bytes", (args.out / "reference.safetensors").stat().st_size)
    full, bm25 = dev_mrr(policy)
    adapter, _ = dev_mrr(load_reference(args.out / "reference.safetensors"))
    print(f"dev MRR: BM25 {bm25:.3f}, full {full:.3f}, adapter {adapter:.3f}", flush=True)


if __name__ == "__main__":
    main()
