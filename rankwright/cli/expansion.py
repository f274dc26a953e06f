"""Query expansion as the verbs use it: the language model that settings name, all passages at once, their file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rankwright.cli.build import Role, build_llm, candidates, check_reader, open_store, tell_of_calls
from rankwright.cli.common import progress_bars, say
from rankwright.cli.settings import DataSettings, ExpansionSettings, ReaderSettings
from rankwright.errors import ResumeError
from rankwright.expansion import SAMPLING, Passage, Query2Doc, passage_request
from rankwright.llms.cache import CachedLLM
from rankwright.llms.endpoint import bare_place
from rankwright.prompts import load_prompt, parse_passage
from rankwright.retrieval import BM25
from rankwright.types import CompletionFailed, Document, Example, Query

if TYPE_CHECKING:
    from rankwright.llms.cache import ReadStore

PASSAGES_FILE = "expansions.jsonl"
_EXPANSION = Role("Expansion", "--expand-with", "--expand-model")
_SHOWN = 100


def expansion_run(run: str) -> str:
    """Under which name the calls of a run's expansion stand in the ledger, beside those of its reader."""
    return f"{run}/expansion"


def expanded(
    index: BM25,
    queries: Sequence[Query],
    expansion: ExpansionSettings,
    reader: ReaderSettings,
    run: str,
    *,
    device: str = "cpu",
    known: Mapping[str, Passage] | None = None,
    may_ask: Callable[[Sequence[str], ReadStore], None] | None = None,
) -> Query2Doc:
    """The index behind query expansion, which has asked for all passages: searching with these queries asks nobody.

    Args:
        index: what is searched.
        queries: all that will be searched with.
        expansion: whose passages.
        reader: what holds for the expansion where its own settings do not say it; and the cache.
        run: name of the run, for the ledger.
        device: of a local language model.
        known: passages of before.
        may_ask: told the questions that will be calls, which the cache lacks, and the ledger; raises where they may
            not be.

    Raises:
        ReaderError: the language model cannot be used, or failed too often.
    """
    prompt, sampling = load_prompt(expansion.prompt, "query2doc"), expansion.sampling or SAMPLING
    asked = language_model(expansion, reader)
    llm = build_llm(asked, device, _EXPANSION)
    with open_store(reader.cache) as store:
        cached = CachedLLM(llm, store, run=expansion_run(run), accepts=parse_passage)
        texts = [text for text in dict.fromkeys(query.text for query in queries) if text not in (known or {})]
        requests = {passage_request(text, prompt, sampling): text for text in texts}
        new = [requests[request] for request in cached.unanswered(list(requests))]
        if may_ask is not None:
            may_ask(new, store)
        first = Query2Doc(
            index,
            cached,
            prompt,
            repeats=expansion.repeats,
            sampling=sampling,
            max_failed=expansion.max_failed,
            known=known,
        )
        say(
            f"Query expansion: {asked.model or bare_place(asked.reader)} writes passages for {len(new)} questions "
            f"({len(texts) - len(new)} of {len(texts)} are in the cache)."
        )
        try:
            with progress_bars() as progress:
                first.expand(queries, lambda done, total: progress("expand", done, total))
        finally:  # after an error or Ctrl-C too: what was sent may be on the bill
            tell_of_calls(store, reader.cache, expansion_run(run), _EXPANSION)
    _tell(first)
    return first


def with_first_stage(
    examples: Sequence[Example],
    corpus: Sequence[Document],
    data: DataSettings,
    expansion: ExpansionSettings,
    reader: ReaderSettings,
    run: str,
    device: str = "cpu",
) -> tuple[list[Example], str]:
    """The examples with `data.depth` candidates, and the first stage as it belongs in a signature.

    Raises:
        RankwrightError: reader or expansion cannot be used, or the expansion failed too often.
    """
    if data.retriever == "given":
        return candidates(examples, corpus, "given", data.depth), "given"
    first = index = BM25(corpus)
    if expansion.wanted:
        check_reader(reader)  # which is made later, when the passages are paid for
        first = expanded(index, [example.query for example in examples], expansion, reader, run, device=device)
    return candidates(examples, corpus, "bm25", data.depth, first), first.name


def language_model(expansion: ExpansionSettings, reader: ReaderSettings) -> ReaderSettings:
    """Where and how the expansion asks, in the words of a reader's settings.

    What it does not say is as for the reader: at the reader's own endpoint the model's name too. The reader's key never
    goes to another endpoint, and its prices are not those of another model.
    """
    same_place = expansion.llm in ("reader", reader.reader)
    model = expansion.model or (reader.model if same_place else "")
    alone = not reader.is_endpoint  # so that key and prices can only be meant for the expansion
    key = reader.api_key_env if alone or same_place else ReaderSettings.api_key_env
    prices = expansion
    if (expansion.price_input, expansion.price_output) == (None, None) and (
        alone or (same_place and model == reader.model)
    ):
        prices = reader
    return replace(
        reader,
        reader=reader.reader if same_place else expansion.llm,
        model=model,
        prompt=ReaderSettings.prompt,
        api_key_env=expansion.api_key_env or key,
        price_input=prices.price_input,
        price_output=prices.price_output,
    )


def _tell(first: Query2Doc) -> None:
    """How many questions have a passage, and one of them."""
    share = first.failed / max(1, len(first.passages))
    say(
        f"Query expansion: {len(first.passages) - first.failed} of {len(first.passages)} questions have a passage; "
        f"{first.failed} ({share:.1%}) failed and are searched as asked."
    )
    example = next(((q, text) for q, text in first.passages.items() if isinstance(text, str)), None)
    if example is not None:
        question, text = example
        say(f"For example '{question[:_SHOWN]}' with '{text[:_SHOWN]}{'...' if len(text) > _SHOWN else ''}'")


def passages_text(passages: Mapping[str, Passage]) -> str:
    """The content of a run's file of passages; `read_passages` reads it."""
    rows = (
        {
            "question": question,
            **({"failed": found.reason} if isinstance(found, CompletionFailed) else {"passage": found}),
        }
        for question, found in passages.items()
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


def read_passages(folder: Path) -> dict[str, Passage]:
    """What a run was begun with, so that it goes on with the same candidates: a question that failed then would
    perhaps get a passage now. Empty where there is no file.

    Raises:
        ResumeError: the file is damaged.
    """
    path = folder / PASSAGES_FILE
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
        return {
            row["question"]: CompletionFailed(str(row["failed"])) if "failed" in row else str(row["passage"])
            for row in rows
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResumeError(
            f"File {path} is damaged ({type(error).__name__}: {error}); wanted the passages that the run began with. "
            "Remove it, and they are taken from the cache, as far as they are there."
        ) from error
