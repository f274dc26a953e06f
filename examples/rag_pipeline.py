"""Retrieve, rerank, answer: a LangChain pipeline with a rankwright reranker in it, `python examples/rag_pipeline.py`.

Passages and questions are the demo's, about invented islands. BM25 finds passages, the reranker orders them, a reader
answers from the best; the same questions are answered without reranking too. `--model runs/demo/model` takes the
reranker that `rankwright demo` has trained. Retriever and reader are rankwright's, so that it runs without an account:
put yours in their places. Other frameworks: docs/integrations.md.
"""

from __future__ import annotations

import argparse
import json
from importlib import resources
from pathlib import Path
from typing import Any

from langchain_core.documents import Document
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough

import rankwright
from rankwright.integrations.langchain import SCORE, RankwrightReranker
from rankwright.metrics.answer import f1


def retriever(index: rankwright.BM25, depth: int) -> Runnable[str, list[Document]]:
    """Passages of BM25 as documents of LangChain, with id and title."""

    def retrieve(question: str) -> list[Document]:
        (found,) = index.retrieve([rankwright.Query("0", question)], depth)
        return [Document(d.text, id=d.doc_id, metadata={"title": d.title}) for d in found]

    return RunnableLambda(retrieve)


def answerer(reader: rankwright.EmbeddedReader, keep: int) -> Runnable[dict[str, Any], str]:
    """The reader's answer from the first documents."""

    def answer(given: dict[str, Any]) -> str:
        passages = tuple(
            rankwright.Document(d.id or str(i), d.page_content, d.metadata["title"])
            for i, d in enumerate(given["documents"][:keep])
        )
        (result,) = reader.answer([rankwright.Context(rankwright.Query("0", given["query"]), passages)])
        return result.text if isinstance(result, rankwright.Answer) else ""

    return RunnableLambda(answer)


def main() -> None:
    """Build both chains, ask, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="reference", help="folder or hub name of a reranker")
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--depth", type=int, default=20, help="passages that are reranked")
    parser.add_argument("--keep", type=int, default=2, help="passages that are read")
    arguments = parser.parse_args()

    folder = Path(str(resources.files("rankwright"))) / "assets" / "demo"
    dataset = rankwright.load_examples(
        folder / "questions.jsonl", "jsonl", corpus=folder / "corpus.jsonl", need_answers=True
    )
    rows = map(json.loads, (folder / "questions.jsonl").read_text(encoding="utf-8").splitlines())
    of_test = {row["query_id"] for row in rows if row["metadata"]["split"] == "test"}
    asked = [example for example in dataset.examples if example.query.query_id in of_test][: arguments.questions]

    reranker = RankwrightReranker(arguments.model, title_field="title")
    found = {"query": RunnablePassthrough(), "documents": retriever(rankwright.BM25(dataset.corpus), arguments.depth)}
    answer = answerer(rankwright.EmbeddedReader(), arguments.keep)
    plain = found | answer
    # assign replaces the documents and keeps the question for the reader
    ranked = found | RunnablePassthrough.assign(documents=reranker.as_runnable())

    before, after = 0.0, 0.0
    for example in asked:
        question = example.query.text
        best = ranked.invoke(question)
        said = answer.invoke(best)
        before += f1(plain.invoke(question), example.answers) / len(asked)
        after += f1(said, example.answers) / len(asked)
        top = best["documents"][0]
        print(f"{question} -> {said}  ({top.id}, {top.metadata[SCORE]:.2f})")
    print(f"F1 of {len(asked)} questions: {before:.3f} without the reranker, {after:.3f} with {arguments.model}")


if __name__ == "__main__":
    main()
