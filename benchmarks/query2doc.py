"""Passages that a language model writes for the protocol's test questions: `python -m benchmarks.query2doc --llm URL
--llm-model NAME` (a call a question; answers are kept, so that it can be gone on with).

`python -m benchmarks.protocol run` and `... paper run` then rank and read what question and passage together find, too.
The model must know something of the world: one that does not, adds noise to the search.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import kept
from rankwright.expansion import Query2Doc
from rankwright.types import LLM, Example, Query, Retriever

PASSAGES = "query2doc/passages.json"
"""Below benchmarks/work. A record of all passages."""
SET = "expanded"
"""The test questions with candidates that were found with them."""


def _file() -> Path:
    return kept.WORK / PASSAGES


def is_written() -> bool:
    """Whether the passages are there."""
    return kept.place(_file()).exists()


def made_with() -> dict[str, Any]:
    """What decides the candidates that were found with them."""
    return {"passages": kept.digests([kept.place(_file())])} if is_written() else {}


def search(index: Retriever) -> Query2Doc:
    """Searches an index with the questions and their passages."""
    nobody: Any = None  # every question that comes has its passage
    return Query2Doc(index, nobody, known=kept.record_of(_file())["value"])


def write(llm: LLM, questions: Sequence[Query], index: Retriever) -> None:
    """Asks for all passages and keeps them. Where one fails, none is kept here; those that came are in the cache."""
    asked = Query2Doc(index, llm, max_failed=0.0)

    def passages() -> dict[str, str]:
        asked.expand(questions, lambda done, wanted: print(f"{done} of {wanted} passages", flush=True))
        return {question: str(passage) for question, passage in asked.passages.items()}

    kept.measured(_file(), {"name": asked.name}, passages)


def recall(examples: Sequence[Example]) -> float:
    """Share of the questions that have a gold passage among their candidates."""
    return float(np.mean([any(d.doc_id in e.relevance for d in e.candidates) for e in examples]))


def main() -> None:
    from benchmarks import protocol  # which knows this module
    from rankwright.llms.cache import CachedLLM, ReadStore
    from rankwright.llms.http import HTTPLLM
    from rankwright.prompts import parse_passage

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llm", required=True, help="address of an OpenAI-compatible server")
    parser.add_argument("--llm-model", required=True, help="the model's name there")
    parser.add_argument("--api-key-env", default="OPENAI_API_KEY", help="variable that holds the key")
    args = parser.parse_args()
    protocol.WORK.mkdir(parents=True, exist_ok=True)
    asked = [example.query for example in protocol.splits()["test"]]
    with ReadStore(protocol.WORK / "passages.sqlite") as store:
        llm = HTTPLLM(args.llm_model, args.llm, api_key_env=args.api_key_env)
        write(CachedLLM(llm, store, run="query2doc", accepts=parse_passage), asked, protocol.pool())
    data = protocol.splits()
    for name in ("test", SET):
        print(f"{name}: {recall(data[name]):.1%} of {len(data[name])} questions have a gold passage as candidate")


if __name__ == "__main__":
    sys.exit(main())
