"""Trains the embedded reference cross-encoder: `python -m benchmarks.embedded.train_reference`.

Listwise softmax cross-entropy on the split's reference side and on SciFact's training claims, plus the listwise
divergence to the backbone's own embedding similarity (it is a bi-encoder), which also teaches on SciFact titles that
have no labels but their abstract. Full fine-tuning with frozen word embeddings, then a low-rank adapter of the
difference.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

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
TEACHER_SCALE = 20.0  # the temperature that the backbone's own contrastive training used (its model card)


@dataclass
class List:
    """One query with the documents that may stand in its training list."""

    query: str
    gold: list[Document]
    hard: list[Document]


def training_lists(rng: random.Random, titles: int) -> list[List]:
    """Labelled lists of the reference side and SciFact, and title -> abstract lists."""
    allowed = passages_for("reference", TRAIN_SETS)
    allowed_ids = {d.doc_id for d in allowed}
    questions = side("reference", TRAIN_SETS)
    found = BM25(allowed).retrieve([Query(q.key, q.text) for q in questions], 50)
    lists = []
    for question, documents in zip(questions, found, strict=True):
        gold_texts = {d.text for d in question.gold}
        hard = [d for d in (*question.others, *documents) if d.doc_id in allowed_ids and d.text not in gold_texts]
        lists.append(List(question.text, list(question.gold), hard))
    corpus, claims = scifact_training()
    index = BM25(corpus)
    by_id = {d.doc_id: d for d in corpus}
    labelled = [(claim, [by_id[i] for i in sorted(ids & by_id.keys())]) for claim, ids in claims]
    labelled = [(claim, gold) for claim, gold in labelled if gold]
    for (claim, gold), documents in zip(labelled, index.retrieve([Query("", c) for c, _ in labelled], 50), strict=True):
        lists.append(List(claim, gold, [d for d in documents if d not in gold]))
    cited = {d.doc_id for _, gold in labelled for d in gold}
    chosen = rng.sample([d for d in corpus if d.doc_id not in cited], titles)
    for document, documents in zip(chosen, index.retrieve([Query("", d.title) for d in chosen], 50), strict=True):
        # The title is the query, so no document of the list may show its own.
        bare = [Document(d.doc_id, d.text) for d in documents if d.doc_id != document.doc_id]
        lists.append(List(document.title, [Document(document.doc_id, document.text)], bare))
    return lists


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

    def scores(self, query: str, texts: Sequence[str]) -> Tensor:
        """Scaled similarities of one query to texts."""
        return TEACHER_SCALE * self.embed(texts) @ self.embed([query])[0]


def draw(item: List, width: int, rng: random.Random) -> tuple[list[Document], list[float]]:
    """One relevant document and width - 1 others: most from BM25's first ten, the rest from further down."""
    gold = rng.choice(item.gold)
    near, far = item.hard[:10], item.hard[10:]
    count = min(width - 1, len(item.hard))
    chosen = rng.sample(near, min(len(near), count - min(2, len(far))))
    chosen += rng.sample(far, min(len(far), count - len(chosen)))
    documents = [gold, *chosen]
    return documents, [1.0] + [0.0] * len(chosen)


def listwise_loss(
    policy: CrossEncoderReranker,
    teacher: Teacher,
    batch: Sequence[tuple[List, list[Document], list[float]]],
    weight: float,
) -> Tensor:
    """Softmax cross-entropy on labels plus weight x cross-entropy to the teacher's distribution."""
    requests = [RerankRequest(Query("", item.query), tuple(documents)) for item, documents, _ in batch]
    scores_QD = policy(requests)
    labels_QD = torch.zeros_like(scores_QD)
    target_QD = torch.zeros_like(scores_QD)
    for q, (item, documents, labels) in enumerate(batch):
        labels_QD[q, : len(labels)] = torch.tensor(labels)
        texts = [render(policy.template, d) for d in documents]
        target_QD[q, : len(labels)] = teacher.scores(item.query, texts).softmax(-1)
    log_p = scores_QD.log_softmax(-1).masked_fill(torch.isinf(scores_QD), 0.0)
    return softmax_loss(scores_QD, labels_QD) - weight * (target_QD * log_p).sum(-1).mean()


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
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=5)
    parser.add_argument("--titles", type=int, default=200)
    parser.add_argument("--teacher-weight", type=float, default=0.5)
    parser.add_argument("--rank", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WORK)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    lists = training_lists(rng, args.titles)
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
