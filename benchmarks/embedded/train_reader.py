"""Trains the embedded reader on the split's reader side: `python -m benchmarks.embedded.train_reader`.

Cloze questions first, then full fine-tuning of the backbone with distractors, then a low-rank adapter of the
difference. The question's passages are mixed anew in every epoch: gold alone, gold among distractors (k = 2 to 5), or
distractors alone (answer: nothing).
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertConfig

from benchmarks.embedded.cloze import cloze_questions
from benchmarks.embedded.optimizer import optimizer_of
from benchmarks.embedded.sets import LOADERS, Question, load_sets, passages, passages_for, prose, side
from benchmarks.kept import DEVICE
from rankwright.backbone import backbone_folder, difference, save_adapter
from rankwright.batching import token_batches
from rankwright.metrics.answer import contains_answer, f1
from rankwright.readers.extractive import (
    KINDS,
    EmbeddedReader,
    Encoded,
    Encoder,
    ExtractiveModel,
    backbone_weights,
    collate,
    passage_mask,
)
from rankwright.rerankers import load
from rankwright.retrieval import BM25
from rankwright.types import Answer, Context, Document, Query

WORK = Path(__file__).parents[1] / "work" / "reader"
TRAIN_SETS = ("nq_open", "xquad_en", "hotpotqa/train", "musique")  # all with a stated licence


@dataclass(frozen=True)
class Data:
    """Questions with their hard negatives."""

    questions: Sequence[Question]
    dev: Sequence[Question]
    hard: dict[str, list[Document]]


def distractors(questions: Sequence[Question], pool: Sequence[Document], depth: int = 30) -> dict[str, list[Document]]:
    """Hard negatives of each question: its own non-gold passages and BM25's best of the pool, none of which holds an
    answer."""
    found = BM25(pool).retrieve([Query(q.key, q.text) for q in questions], depth)
    allowed = {d.doc_id for d in pool}
    result = {}
    for question, documents in zip(questions, found, strict=True):
        gold = {d.text for d in question.gold}
        hard = [*question.others, *documents]
        answers = () if set(question.answers) <= {"yes", "no"} else question.answers
        result[question.key] = [
            d
            for d in hard
            if d.doc_id in allowed and d.text not in gold and not (answers and contains_answer(d.text, answers))
        ]
    return result


def mix(question: Question, hard: Sequence[Document], rng: random.Random, short: bool) -> tuple[list[Document], bool]:
    """Passages of one training context, and whether the gold ones are all among them.

    Short contexts (at most one distractor) teach extraction at half the price; the last epochs have up to four.
    """
    draw = rng.random()
    if draw < 0.15:
        return rng.sample(hard[:12], min(len(hard), rng.randint(1, 2 if short else 5))) if hard else [], False
    gold = list(question.gold)
    if short:
        extra = int(draw > 0.55)
    elif draw < 0.30:
        extra = 0
    else:
        extra = min(rng.choices((1, 2, 3, 4), (30, 45, 15, 10))[0], max(1, 5 - len(gold)))
    # Half of the distractors from the hardest ten, half from further down.
    near, far = list(hard[:10]), list(hard[10:])
    rng.shuffle(near)
    rng.shuffle(far)
    chosen = [(near if (rng.random() < 0.7 or not far) else far).pop() for _ in range(extra) if near or far]
    documents = [*gold, *chosen]
    rng.shuffle(documents)
    return documents, True


def spans(item: Encoded, answers: Sequence[str]) -> list[tuple[int, int]]:
    """Token spans of every occurrence of an answer in the passages."""
    found = []
    for number, text in enumerate(item.texts):
        tokens = [i for i, p in enumerate(item.passage_of) if p == number]
        begins = {item.characters[i][0]: i for i in tokens}
        ends = {item.characters[i][1]: i for i in tokens}
        low = text.lower()
        for answer in answers:
            at = low.find(answer.lower()) if len(low) == len(text) else text.find(answer)
            while at >= 0:
                if at in begins and at + len(answer) in ends:
                    found.append((begins[at], ends[at + len(answer)]))
                at = low.find(answer.lower(), at + 1)
    return found


def reading_loss(
    model: ExtractiveModel, batch: Sequence[tuple[Encoded, str, list[tuple[int, int]]]], pad: int
) -> Tensor:
    """Cross-entropy of the kind plus the marginal likelihood over all answer spans (Clark and Gardner 2018, eq. 2)."""
    items = [item for item, _, _ in batch]
    ids, types, attention = collate(items, pad)
    start, end, kind = (scores.float() for scores in model(ids.to(DEVICE), types.to(DEVICE), attention.to(DEVICE)))
    outside = ~passage_mask(items, ids.shape[1]).to(DEVICE)
    labels = torch.tensor([KINDS.index(k) for _, k, _ in batch], device=DEVICE)
    loss = nn.functional.cross_entropy(kind, labels, reduction="sum")
    start = start.masked_fill(outside, -1e4).log_softmax(-1)
    end = end.masked_fill(outside, -1e4).log_softmax(-1)
    for row, (_, label, found) in enumerate(batch):
        if label == "span":
            pairs = torch.tensor(found, device=DEVICE)
            loss = loss - (start[row, pairs[:, 0]] + end[row, pairs[:, 1]]).logsumexp(0)
    return loss


def training_items(
    questions: Sequence[Question], hard: dict[str, list[Document]], encoder: Encoder, rng: random.Random, short: bool
) -> list[tuple[Encoded, str, list[tuple[int, int]]]]:
    """One context per question with its label; an answer that was cut away is 'nothing'."""
    items = []
    for question in questions:
        documents, complete = mix(question, hard[question.key], rng, short)
        item = encoder.encode(question.text, documents)
        answer = question.answers[0].lower()
        found = spans(item, question.answers) if complete else []
        label = answer if complete and answer in ("yes", "no") else ("span" if found else "nothing")
        items.append((item, label, found))
    return items


def settings_of(question: Question, hard: Sequence[Document]) -> dict[str, tuple[Document, ...]]:
    """The contexts that the reader is reported on; gold passages and distractors in an order drawn once for all."""

    def mixed(others: int) -> tuple[Document, ...]:
        documents = [*question.gold, *hard[:others]]
        return tuple(random.Random(f"{question.key}+{others}").sample(documents, len(documents)))

    return {
        "gold": question.gold,
        "gold+1": mixed(1),
        "gold+2": mixed(2),
        "distractors": tuple(hard[:3]),
        "none": (),
    }


def score(
    reader: EmbeddedReader, questions: Sequence[Question], hard: dict[str, list[Document]]
) -> dict[str, dict[str, float]]:
    """Mean F1, EM and share of empty answers by context kind."""
    from rankwright.metrics.answer import exact_match

    result = {}
    for name in ("gold", "gold+1", "gold+2", "distractors", "none"):
        contexts = [Context(Query(q.key, q.text), settings_of(q, hard[q.key])[name]) for q in questions]
        texts = [r.text if isinstance(r, Answer) else "" for r in reader.answer(contexts)]
        pairs = list(zip(texts, questions, strict=True))
        result[name] = {
            "F1": sum(f1(t, q.answers) for t, q in pairs) / len(pairs),
            "EM": sum(exact_match(t, q.answers) for t, q in pairs) / len(pairs),
            "empty": sum(not t for t in texts) / len(texts),
        }
    return result


@dataclass(frozen=True)
class Phase:
    """One warm restart of the schedule."""

    short_epochs: int
    """Epochs with at most one distractor, first."""
    long_epochs: int
    """Epochs with up to four."""
    learning_rate: float
    """Peak; the heads learn ten times as fast."""
    cloze: bool = False
    """On questions made from passages instead of written ones."""


# Dev F1 on gold passages after two epochs: 0.434 at 6e-5, 0.572 at 2e-4 (docs/experiments.md).
PHASES = (Phase(1, 0, 2.5e-4, cloze=True), Phase(1, 2, 2e-4))


def train_phase(
    phase: Phase,
    model: ExtractiveModel,
    encoder: Encoder,
    data: Data,
    seed: int,
    batch_size: int,
    partial: Path,
    mixed: bool = False,
) -> None:
    """Trains the model in place, in bf16 autocast where `mixed`, and prints dev scores after every epoch; goes on from
    the last epoch in `partial`."""
    epochs = phase.short_epochs + phase.long_epochs
    total = epochs * -(-len(data.questions) // batch_size)
    optimizer, schedule = optimizer_of(model, ("span.", "kind."), phase.learning_rate, total)
    reader = EmbeddedReader.from_model(model, encoder, 0.0, device=DEVICE)
    first, began = 0, time.time()
    if partial.exists():
        state = torch.load(partial, weights_only=True, map_location=DEVICE)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first = state["epochs"]
    step = first * (total // epochs)
    for epoch in range(first, epochs):
        model.train()
        rng = random.Random(seed + 1000 * epoch)
        items = training_items(data.questions, data.hard, encoder, rng, short=epoch < phase.short_epochs)
        rng.shuffle(items)
        for at in range(0, len(items), batch_size):
            batch = items[at : at + batch_size]
            value = 0.0
            for group in token_batches([len(item.input_ids) for item, _, _ in batch], 2600):
                with torch.autocast(torch.device(DEVICE).type, torch.bfloat16, enabled=mixed):
                    loss = reading_loss(model, [batch[i] for i in group], encoder.tokenizer.pad_token_id) / len(batch)
                loss.backward()
                value += loss.item()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step % 10 == 0:
                print(f"epoch {epoch} step {step}/{total} loss {value:.3f} {time.time() - began:.0f}s", flush=True)
        model.eval()
        last = epoch == epochs - 1
        print(epoch, shown(score(reader, data.dev if last else data.dev[::3], data.hard)), flush=True)
        states = {"model": model, "optimizer": optimizer, "schedule": schedule}
        aside = partial.with_suffix(".new")
        torch.save({"epochs": epoch + 1, **{name: part.state_dict() for name, part in states.items()}}, aside)
        aside.replace(partial)


def choose_offsets(reader: EmbeddedReader, dev: Sequence[Question], hard: dict[str, list[Document]]) -> None:
    """Sets the reader's two offsets by dev F1: that of the `nothing` logit with one distractor (abstaining too soon
    costs answers), then the penalty of a passage's rank on the first two and first three, as they come in use: of 20
    candidates that BM25 found among the passages of all sets, in the shipped reference's order."""
    queries = [Query(q.key, q.text) for q in dev]
    mixed = [Context(query, settings_of(q, hard[q.key])["gold+1"]) for query, q in zip(queries, dev, strict=True)]
    found = BM25(list(passages(load_sets(LOADERS)).values())).retrieve(queries, 20)
    reference = load("reference", device=DEVICE, max_length=160)
    best = [reference.rerank(query, docs).documents(docs) for query, docs in zip(queries, found, strict=True)]
    ranked = [Context(query, docs[:k]) for k in (2, 3) for query, docs in zip(queries, best, strict=True)]
    _choose(reader, "nothing_bias", (0.0, -1.0, -2.0, -3.0, -4.0), mixed, dev)
    _choose(reader, "rank_penalty", (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0), ranked, [*dev, *dev])


def _choose(
    reader: EmbeddedReader, offset: str, values: Sequence[float], contexts: Sequence[Context], dev: Sequence[Question]
) -> None:
    means = {}
    for value in values:
        setattr(reader, offset, value)
        texts = [r.text if isinstance(r, Answer) else "" for r in reader.answer(contexts)]
        means[value] = round(sum(f1(text, q.answers) for text, q in zip(texts, dev, strict=True)) / len(texts), 4)
    print(f"dev F1 by {offset}", means)
    setattr(reader, offset, max(means, key=lambda value: means[value]))


def shown(values: dict[str, dict[str, float]]) -> str:
    """Scores as one line."""
    return json.dumps({kind: {m: round(x, 3) for m, x in row.items()} for kind, row in values.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rank", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="half the time on a processor or GPU that has it")
    parser.add_argument("--out", type=Path, default=WORK)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    folder = backbone_folder()
    encoder = Encoder(folder)
    base = backbone_weights(folder)
    torch.manual_seed(args.seed)
    model = ExtractiveModel(BertConfig.from_pretrained(folder))
    model.encoder.load_state_dict(base)
    model.encoder.embeddings.requires_grad_(False)  # kept frozen: the adapter stays small
    model.to(DEVICE)
    questions, dev = side("reader", TRAIN_SETS), side("dev", TRAIN_SETS)
    allowed = passages_for("reader", TRAIN_SETS)
    pool = list(passages(load_sets(TRAIN_SETS)).values())
    hard = distractors(dev, pool)
    written = prose()
    sources = {False: [*questions, *written], True: []}
    if not all((args.out / f"phase-{number}.pt").exists() for number in range(len(PHASES))):
        sources[True] = cloze_questions(allowed, random.Random(args.seed))
        hard.update(distractors([*questions, *sources[True]], allowed))
        hard.update(distractors(written, list(passages(written).values())))
    for number, phase in enumerate(PHASES):
        done = args.out / f"phase-{number}.pt"
        if done.exists():  # a finished phase is not trained again
            model.load_state_dict(torch.load(done, weights_only=True, map_location=DEVICE))
            continue
        partial = args.out / f"phase-{number}.partial.pt"
        data = Data(sources[phase.cloze], dev, hard)
        train_phase(phase, model, encoder, data, args.seed + number, args.batch, partial, args.bf16)
        aside = done.with_suffix(".new")
        torch.save(model.state_dict(), aside)
        aside.replace(done)
        partial.unlink()
    adapter = difference(model.cpu(), {f"encoder.{name}": tensor for name, tensor in base.items()}, args.rank)
    path = args.out / "reader.safetensors"
    save_adapter(path, adapter, {"nothing_bias": 0.0, "rank_penalty": 0.0, "rank": args.rank})
    reader = EmbeddedReader(path, device=DEVICE)
    choose_offsets(reader, dev, hard)
    offsets = {"nothing_bias": reader.nothing_bias, "rank_penalty": reader.rank_penalty}
    save_adapter(path, adapter, {**offsets, "rank": args.rank})
    print("bytes", path.stat().st_size, offsets)
    print("adapter", shown(score(EmbeddedReader(path, device=DEVICE), dev, hard)))


if __name__ == "__main__":
    main()
