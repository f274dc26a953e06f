"""Makes objects out of settings: examples, reader, reranker."""

from __future__ import annotations

import contextlib
import random
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from rankwright.cli.common import say
from rankwright.cli.settings import DataSettings, ReaderSettings, RunSettings
from rankwright.data import Dataset, load_examples
from rankwright.data.beir import has_split
from rankwright.errors import ConfigurationError, DataError, StorageError
from rankwright.evaluation import FirstStage
from rankwright.retrieval import BM25, with_candidates
from rankwright.types import LLM, Document, Example, Reader, Reranker, Retriever

if TYPE_CHECKING:
    from rankwright.expansion import Passage
    from rankwright.llms.cache import ReadStore
    from rankwright.llms.http import HTTPLLM
    from rankwright.llms.local import LocalLLM
    from rankwright.llms.offline import VLLMOffline
    from rankwright.rerankers.windows import Windows


REREADS = 8
"""Stored answers of the embedded reader that a command reads again, to see whether the cache still tells the truth."""


@dataclass(frozen=True)
class Splits:
    """Questions with candidates, for the three uses."""

    train: list[Example]
    dev: list[Example]
    test: list[Example]
    name: str
    """Name of the test set."""
    skipped: int
    """Bad rows left out."""
    retriever: str = "given"
    """First stage, as it belongs in a signature."""
    passages: Mapping[str, Passage] = field(default_factory=dict)
    """Question -> what query expansion searched with besides it; empty without expansion."""


class Role(NamedTuple):
    """What a language model is there for, and the flags that name it."""

    what: str
    place_flag: str
    model_flag: str


READER = Role("Reader", "--reader", "--reader-model")


def open_store(path: str) -> ReadStore:
    """The SQLite file of all answers, made with its folder where it is not there."""
    from rankwright.llms.cache import ReadStore

    return ReadStore(path)


def build_reader(settings: ReaderSettings, store: ReadStore | None, run: str, device: str = "cpu") -> Reader | None:
    """The reader with its cache around it; None for `none`.

    Args:
        settings: which reader.
        store: where answers are kept; None for a reader without cache and ledger.
        run: under which name calls stand in the ledger.
        device: for readers on this machine.
    """
    if settings.reader == "none":
        return None
    if settings.reader == "embedded":
        from rankwright.readers import CachedReader, EmbeddedReader

        embedded = EmbeddedReader(device=device)
        return embedded if store is None else CachedReader(embedded, store, run=run, rereads=REREADS)
    from rankwright.llms.cache import CachedLLM
    from rankwright.prompts import load_prompt, parse_answer
    from rankwright.readers.llm import SAMPLING, LLMReader

    prompt = load_prompt(settings.prompt)
    llm = build_llm(settings, device)
    if store is not None:
        llm = CachedLLM(llm, store, run=run, accepts=lambda text: parse_answer(text) is not None)
    return LLMReader(llm, prompt, sampling=settings.sampling or SAMPLING)


def build_llm(settings: ReaderSettings, device: str = "cpu", role: Role = READER) -> LLM:
    """The language model that these settings name, without cache."""
    return _endpoint(settings, role) if settings.is_endpoint else _local(settings, device, role)


def _endpoint(settings: ReaderSettings, role: Role) -> HTTPLLM:
    """The model behind an OpenAI-compatible address."""
    from rankwright.llms.http import HTTPLLM

    if not settings.model:
        raise ConfigurationError(
            f"{role.what} {settings.reader} was given without a model name; wanted the name that it knows. Add "
            f"{role.model_flag} NAME."
        )
    prices = {"input": settings.price_input, "output": settings.price_output}
    given = {side: price for side, price in prices.items() if price is not None}
    if len(given) == 1:
        raise ConfigurationError(
            f"Only the {next(iter(given))} price of {role.what.lower()} {settings.reader} was given; wanted "
            "--price-input and --price-output, or neither (the price is then unknown)."
        )
    return HTTPLLM(
        settings.model,
        settings.reader,
        api=settings.api,
        api_key_env=settings.api_key_env,
        concurrency=settings.concurrency,
        max_retries=settings.max_retries,
        deadline=settings.deadline,
        attempt_timeout=settings.attempt_timeout,
        requests_per_minute=settings.requests_per_minute or None,
        tokens_per_minute=settings.tokens_per_minute or None,
        prices=given or None,
    )


def _local(settings: ReaderSettings, device: str, role: Role) -> LocalLLM | VLLMOffline:
    """A language model on this machine."""
    from rankwright.llms.endpoint import VLLM, bare_place

    _check_local(settings, role)
    if settings.reader.startswith(VLLM):
        from rankwright.llms.offline import VLLMOffline

        return VLLMOffline(bare_place(settings.reader))  # vLLM looks for devices by itself
    from rankwright.llms.local import LocalLLM

    return LocalLLM(settings.reader, device=device)


def _check_local(settings: ReaderSettings, role: Role) -> None:
    if settings.model:
        from rankwright.llms.endpoint import check_scheme

        check_scheme(settings.reader)
        raise ConfigurationError(
            f"{role.what} {settings.reader} is a model on this machine, but '{settings.model}' was given as model of "
            f"an endpoint. Leave {role.model_flag} out, or give the endpoint's base URL as {role.place_flag}."
        )


def check_reader(settings: ReaderSettings) -> None:
    """Whether the reader can be made, as far as shows without a call and without loading a model: for whoever pays
    query expansion before there is a reader.

    Raises:
        RankwrightError: it cannot.
    """
    from rankwright.prompts import load_prompt

    if settings.reader not in ("embedded", "none"):
        load_prompt(settings.prompt)
        check_llm(settings)


def check_llm(settings: ReaderSettings, role: Role = READER) -> None:
    """The same of a language model in any role.

    Raises:
        RankwrightError: it cannot be made.
    """
    from rankwright.llms.endpoint import bare_place, check_name

    if settings.is_endpoint:
        _endpoint(settings, role)
    else:
        _check_local(settings, role)
        check_name(bare_place(settings.reader))


def command_run(verb: str) -> str:
    """A name under which the calls of one command stand in the ledger."""
    return f"{verb}-{uuid.uuid4().hex[:8]}"


@contextlib.contextmanager
def counted_store(cache: str, run: str, role: Role = READER) -> Iterator[ReadStore]:
    """The file of all answers; at the end the run's calls are summed up, after an error or Ctrl-C too where there were
    any, because what was sent may be on the bill."""
    with open_store(cache) as store:
        try:
            yield store
        except BaseException:
            tell_of_calls(store, cache, run, role, stopped=True)
            raise
        tell_of_calls(store, cache, run, role)


def tell_of_calls(store: ReadStore, cache: str, run: str, role: Role = READER, *, stopped: bool = False) -> None:
    """Says what the calls of a run came to; a ledger that cannot be read must not hide why the run stopped. Of one that
    `stopped` before its first call there is nothing to say."""
    with contextlib.suppress(StorageError):
        totals = store.ledger.totals(run)
        if stopped and not totals.calls:
            return
        attempts = f", {totals.attempts} attempts" if totals.attempts > totals.calls else ""
        calls = f"{role.what} calls {totals.calls} ({totals.failed} failed){attempts}, price {totals.price_text}"
        say(f"{calls}; they stand in {cache} as {run}.")


def checked_device(name: str) -> str:
    """The name, if it is a torch device of this machine."""
    if name == "cpu":  # needs no look at torch
        return name
    import torch

    try:
        torch.empty(0, device=torch.device(name))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        kinds = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        here = [kind for kind, there in kinds.items() if there]
        # PyTorch's own words say something only where such a device is there.
        reason = str(error).split("\n")[0] if name.partition(":")[0] in here else ""
        raise ConfigurationError(
            f"Device is '{name}', which PyTorch cannot use here{f' ({reason})' if reason else ''}; wanted "
            f"{' or '.join(here)}. Give another --device; rankwright doctor lists them all."
        ) from error
    return name


def build_reranker(
    name: str,
    device: str = "cpu",
    backend: str = "torch",
    windows: Windows | None = None,
    max_length: int | None = None,
) -> Reranker:
    """`first-stage`, `reference`, a hub name, or a folder: of a model, of an export, or of a run that holds one. Of
    what is cut `tell_of_cut` tells in the end."""
    if name == FirstStage.name:
        return FirstStage()
    from rankwright.rerankers import check_named, load
    from rankwright.rerankers.onnx_folder import is_export

    check_named(name)
    if not is_export(name):  # which needs neither torch nor transformers
        quiet_bars()
        checked_device(device)
    scorer = load(name, backend, device=device, windows=windows, max_length=max_length)
    scorer.warns_of_cut = False
    return scorer


def quiet_bars() -> None:
    """No bar for every model that transformers loads: they last a moment and hide what matters."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def tell_of_cut(reranker: Reranker, next_step: str = "Split long passages.") -> None:
    """Says how many passages were longer than a model reads, and what to do."""
    share = getattr(reranker, "share_cut", 0.0)
    if share:
        first = getattr(reranker, "first_cut", "")
        say(
            f"{reranker.name}: {share:.1%} of question-passage pairs are longer than its limit of "
            f"{getattr(reranker, 'max_length', '?')} tokens{f' (the first: {first})' if first else ''}; what lies "
            f"beyond is not read. {next_step}"
        )


def against_cuts(reranker: Reranker) -> str:
    """What to do about cuts, in a verb with --windows."""
    from rankwright.rerankers.ranking import Scorer
    from rankwright.rerankers.windows import WindowedScorer, tells_spans

    if isinstance(reranker, WindowedScorer):
        return reranker.against_cuts
    windows = isinstance(reranker, Scorer) and tells_spans(reranker)
    return "Split long passages, or read them whole with --windows max." if windows else "Split long passages."


def tell_of_reader_cut(reader: Reader | None) -> None:
    """Says how much of the passages a reader had to leave out, and what to do."""
    share = getattr(reader, "share_cut", 0.0)
    if reader is not None and share:
        say(
            f"{reader.name}: {share:.1%} of the tokens of questions and passages lay beyond its limit and were not "
            "read. Split long passages, or lower --top-k."
        )


def load_one(
    path: str,
    data: DataSettings,
    *,
    need_answers: bool,
    labels: str = "",
    corpus: Sequence[Document] | None = None,
) -> Dataset:
    """One file of questions, with these labels and passages or else those of the settings; what was left out is
    said."""
    dataset = load_examples(
        path,
        data.format,
        qrels=labels or data.qrels or None,
        corpus=corpus or data.corpus or None,
        topics=data.topics or None,
        on_bad_row=data.on_bad_row,
        need_answers=need_answers,
        need_candidates=data.retriever == "given",
    )
    if dataset.unjudged:  # skipped rows have been logged by the loader
        say(f"{path}: {dataset.unjudged} questions without relevance labels left out.")
    return dataset


def candidates(
    examples: Sequence[Example], corpus: Sequence[Document], retriever: str, depth: int, index: Retriever | None = None
) -> list[Example]:
    """The examples with their first-stage candidates, at most `depth`. (That given ones are there, the loader sees.)"""
    if retriever == "bm25":
        return with_candidates(examples, index or BM25(corpus), depth)
    return [replace(example, candidates=example.candidates[:depth]) for example in examples]


def load_splits(
    settings: RunSettings,
    run: str = "",
    known: Mapping[str, Passage] | None = None,
    instead: Callable[[Sequence[Document]], Retriever] | None = None,
    before_paying: Callable[[Splits, Sequence[str]], None] | None = None,
) -> Splits:
    """Training, dev and test questions with candidates.

    Args:
        settings: of the run.
        run: under which name calls of query expansion stand in the ledger.
        known: its passages of before; their questions are not asked again.
        instead: makes what is searched in the place of an index with query expansion; nobody is asked then.
        before_paying: called before query expansion asks, with splits of as many candidates as it would find, though
            others, and with the questions that will be calls; raises where the run would be refused.

    Raises:
        ConfigurationError: the reader, which is made later, cannot be.
        DataError: a file is bad, or too few questions are left for a use.
        LimitReachedError: query expansion could exceed a limit of the run.
        ReaderError: query expansion failed too often.
    """
    from rankwright.cli.costs import check_expansion_budget
    from rankwright.cli.dry_run import Longest
    from rankwright.cli.expansion import expanded

    data = settings.data
    if not data.train:
        raise ConfigurationError("No training questions were given; add --data FILE (see rankwright train --help).")
    # dev and test ask a reader unless there is none, and training does where it learns from one.
    asks = {"dev": True, "test": True, "train": settings.method == "rrpo" or not (data.dev and data.test)}

    def side(name: str, path: str, corpus: Sequence[Document] | None = None) -> Dataset:
        need_answers = asks[name] and settings.reader.reader != "none"
        return load_one(path, data, need_answers=need_answers, labels=_labels(data, name, path), corpus=corpus)

    train = side("train", data.train)
    shared = train.corpus if data.corpus else None  # a corpus of millions is read once
    dev = side("dev", data.dev, shared) if data.dev else None
    test = side("test", data.test, shared) if data.test else None
    parts = _divided(settings, train, dev, test)
    sets = [s for s in (train, dev, test) if s is not None]
    corpus = _pooled(sets)
    if len(corpus) < 2 and data.retriever == "bm25":
        raise DataError(
            f"Corpus of {data.train} has {len(corpus) or 'no'} passage; wanted at least two to rank. "
            "Give --corpus FILE."
        )
    index = BM25(corpus) if data.retriever == "bm25" else None

    def splits(first: Retriever | None, passages: Mapping[str, Passage]) -> Splits:
        return Splits(
            candidates(parts["train"], corpus, data.retriever, data.depth, first),
            candidates(parts["dev"], corpus, data.retriever, data.eval_depth, first),
            candidates(parts["test"], corpus, data.retriever, data.eval_depth, first),
            test.name if test else f"{train.name}-held-out",
            len({problem for s in sets for problem in s.problems}),  # those of shared labels and topics stand in each
            getattr(first, "name", "") if first is not None else data.retriever,
            passages,
        )

    def may_ask(questions: Sequence[str], store: ReadStore) -> None:
        if settings.asks_reader or not settings.writes:
            check_reader(settings.reader)
        check_expansion_budget(settings, questions, store, run)
        if before_paying is not None:
            before_paying(splits(Longest(corpus), {}), questions)

    first, passages = index, {}
    if index is not None and settings.expansion.wanted and instead is not None:
        first = instead(corpus)
    elif index is not None and settings.expansion.wanted:
        queries = [example.query for part in parts.values() for example in part]
        device = settings.model.device
        first = expanded(
            index,
            queries,
            settings.expansion,
            settings.reader,
            run,
            device=device,
            known=known,
            may_ask=may_ask,
        )
        passages = first.passages
    return splits(first, passages)


def _labels(data: DataSettings, side: str, path: str) -> str:
    """Labels of one side: those named for it; of a BEIR set else the split of that name; else those of training."""
    named = {"train": data.qrels, "dev": data.dev_qrels, "test": data.test_qrels}[side]
    if not named and data.format == "beir" and has_split(path, side):
        return side
    return named or data.qrels


def _divided(
    settings: RunSettings, train: Dataset, dev: Dataset | None, test: Dataset | None
) -> dict[str, list[Example]]:
    """The questions of each use: dev and test without files of their own take shares of the training questions.

    Raises:
        DataError: none is left for a use.
    """
    data, rows = settings.data, list(train.examples)
    random.Random(settings.seed).shuffle(rows)
    n_test = 0 if test else round(len(rows) * data.test_share)
    n_dev = 0 if dev else round(len(rows) * data.dev_share)
    parts = _without_overlap(
        {
            "test": list(test.examples) if test else rows[:n_test],
            "dev": list(dev.examples) if dev else rows[n_test : n_test + n_dev],
            "train": rows[n_test + n_dev :],
        }
    )
    for name, part in parts.items():
        if not part:
            raise DataError(
                f"No questions are left for {name}: {data.train} has {len(rows)}. Give a --{name} file of other "
                "questions, or more of them."
            )
    return parts


def _without_overlap(parts: Mapping[str, Sequence[Example]]) -> dict[str, list[Example]]:
    """No question may train or choose a model and be its test, too: it stays in the last of train, dev and test."""
    seen: set[str] = set()
    kept = {}
    for name, others in (("test", ""), ("dev", "test"), ("train", "dev or test")):
        texts = [" ".join(example.query.text.lower().split()) for example in parts[name]]
        kept[name] = [example for example, text in zip(parts[name], texts, strict=True) if text not in seen]
        if len(kept[name]) < len(parts[name]):
            say(f"{len(parts[name]) - len(kept[name])} questions left out of {name}: they stand in {others}, too.")
        seen.update(texts)
    return kept


def _pooled(sets: Sequence[Dataset]) -> list[Document]:
    """The passages of several data sets; equal ids must be equal passages."""
    pool: dict[str, Document] = {}
    for dataset in sets:
        for document in dataset.corpus:
            known = pool.setdefault(document.doc_id, document)
            if (known.title, known.text) != (document.title, document.text):
                raise DataError(
                    f"Passage id '{document.doc_id}' of {dataset.name} names another text than in the files before it; "
                    "wanted one text per id. Rename it, or give all passages once with --corpus."
                )
    return list(pool.values())
