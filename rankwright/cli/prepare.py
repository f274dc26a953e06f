"""Verb `prepare`: training sets for rerankers made of a language model, by a data recipe."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import typer

from rankwright.cli.common import (
    FORMAT_HELP,
    BadRow,
    OutputKind,
    RetrieverKind,
    emit,
    print_out,
    progress_bars,
    say,
)
from rankwright.cli.options import ApiKeyEnv, Cache, PriceInput, PriceOutput, RequestsPerMinute, TokensPerMinute
from rankwright.errors import ConfigurationError
from rankwright.evaluation import Progress

if TYPE_CHECKING:
    from rankwright.cli.llm import LLMSettings
    from rankwright.data import Dataset
    from rankwright.data.drawing import Prepared
    from rankwright.prompts.ranking import RankingPrompt
    from rankwright.teaching import Teacher

T = TypeVar("T")

RECIPE_NAMES = ("rearank", "rank-r1", "rank-r1-v0.2", "permutation", "reasonrank", "grouprank")
"""Names of teaching.py, which the help shows without loading what is behind them."""
POINT_PROMPTS = {"reasonrank": "pointwise-yes-no-1", "grouprank": "pointwise-integer-1"}
"""Which shipped prompt a teacher of single passages takes where none is given."""

EXAMPLES = r"""
**Examples**

Fifty candidate sets of 20 out of BM25's first hundred of each labelled question, as REARANK is trained:

    rankwright prepare rearank --data train.jsonl --corpus passages.jsonl \
      --retriever bm25 --out sets.jsonl --seed 1

    rankwright prepare rearank --data bm25_top100.json --format rank_llm \
      --qrels qrels.txt --set draws=20 --set ideal=set --out sets.jsonl.gz \
      --output json

One relevant passage among 19 others; then among 1 to 9:

    rankwright prepare rank-r1 --data candidates.jsonl --out rank-r1.jsonl

    rankwright prepare rank-r1-v0.2 --data candidates.jsonl --out rank-r1.jsonl

A language model's order of 20 passages; started again after a kill, it pays for nothing twice:

    rankwright prepare permutation --data candidates.jsonl --out orders.jsonl \
      --llm http://localhost:8000/v1 --llm-model Qwen/Qwen2.5-7B-Instruct \
      --prompt listwise-think-1

Its order where it agrees with its own yes or no to each passage; short lists with the labels of two teachers fused:

    rankwright prepare reasonrank --data candidates.jsonl --out orders.jsonl \
      --llm http://localhost:8000/v1 --llm-model Qwen/Qwen2.5-7B-Instruct

    rankwright prepare grouprank --data candidates.jsonl --out lists.jsonl \
      --llm http://localhost:8000/v1 --llm-model big \
      --point-llm http://localhost:8001/v1 --point-llm-model small
"""


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(epilog=EXAMPLES)(prepare)


def prepare(
    recipe: str = typer.Argument(..., help=f"One of {', '.join(RECIPE_NAMES)}."),
    data: Path = typer.Option(..., "--data", help="Questions: file or folder in one of the formats."),
    out: Path = typer.Option(..., help="FILE.jsonl, with .gz where wanted: our format."),
    format: str = typer.Option("jsonl", "--format", help=FORMAT_HELP),
    corpus: Path | None = typer.Option(None, help="Passages; without it those of the data file."),
    topics: Path | None = typer.Option(None, help="Questions of a TREC run; else topics* or queries* beside it."),
    qrels: str | None = typer.Option(
        None, help="Relevance labels, or a BEIR split; questions without any are left out. Default for beir: test."
    ),
    retriever: RetrieverKind = typer.Option(
        RetrieverKind.given, help="given takes the candidates of the data; bm25 finds them in the passages."
    ),
    seed: int | None = typer.Option(None, help="What is drawn depends on it. Default 0."),
    set_: list[str] = typer.Option(
        [],
        "--set",
        help="NAME=VALUE: a setting of the recipe (draws=20), of the teacher's strategy, sampling.NAME, "
        "single.sampling.NAME, max_failed or reader.NAME for the endpoint.",
    ),
    llm: str | None = typer.Option(None, help="Teacher: an endpoint's base URL, or a local causal LM, as in rerank."),
    llm_model: str | None = typer.Option(None, help="Model name at the endpoint of --llm."),
    strategy: str | None = typer.Option(None, help="How the teacher orders long lists. Default sliding."),
    prompt: str | None = typer.Option(None, help="Its prompt: shipped, file, or a model's folder."),
    window: int | None = typer.Option(None, help="Passages that it sees at once. Default 20; for grouprank all."),
    point_llm: str | None = typer.Option(None, help="Teacher of single passages. Default: that of --llm."),
    point_llm_model: str | None = typer.Option(None, help="Model name at the endpoint of --point-llm."),
    point_prompt: str | None = typer.Option(
        None, help="Its pointwise prompt. Default: yes or no for reasonrank, 0 to 10 for grouprank."
    ),
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    price_input: PriceInput = None,
    price_output: PriceOutput = None,
    api_key_env: ApiKeyEnv = None,
    cache: Cache = None,
    device: str = typer.Option("cpu", help="Torch device of a local language model."),
    on_bad_row: BadRow = typer.Option(BadRow.error, help="Stop at a bad row, or leave it out and count it."),
    output: OutputKind = typer.Option(OutputKind.text, help="json prints counts as one line on standard output."),
) -> None:
    """Make a training set for a reranker made of a language model: drawn candidate sets, or labels of a teacher."""
    from rankwright.cli.build import checked_device
    from rankwright.data.drawing import write_prepared
    from rankwright.teaching import applied, find_recipe

    teachers = find_recipe(recipe).teachers
    endpoint = {
        "reader.requests_per_minute": requests_per_minute,
        "reader.tokens_per_minute": tokens_per_minute,
        "reader.price_input": price_input,
        "reader.price_output": price_output,
        "reader.api_key_env": api_key_env,
        "reader.cache": cache,
    }
    lists = {"--llm": llm, "--llm-model": llm_model, "--strategy": strategy, "--prompt": prompt, "--window": window}
    single = {"--point-llm": point_llm, "--point-llm-model": point_llm_model, "--point-prompt": point_prompt}
    _check_teachers(recipe, teachers, lists, single, endpoint)
    _check_out(out)
    parts = _parts(recipe, set_)
    asked = _teacher_settings(recipe, teachers, lists, single, endpoint, parts)
    made = _made(recipe, parts.own, seed, asked.single.prompt if asked.single else None)
    if asked.lists and recipe == "grouprank" and window is None and strategy is None:
        asked = asked._replace(lists=_whole(asked.lists, parts, made.top + made.drawn))
    checked_device(device)
    dataset = _questions(data, format, corpus, topics, qrels, retriever, made, on_bad_row)
    passages = {document.doc_id: document for document in dataset.corpus}
    with _teachers(asked, device) as (ordering, scoring):
        prepared = _counted(made, dataset.examples, lambda rows: applied(made, rows, ordering, scoring, passages))
        write_prepared(out, prepared)
    _tell(recipe, made, dataset, prepared, {"lists": ordering, "single": scoring}, out, output)


def _check_teachers(
    recipe: str, teachers: int, lists: Mapping[str, Any], single: Mapping[str, Any], endpoint: Mapping[str, Any]
) -> None:
    """That there is a teacher where one is needed, and none where not."""
    useless = {} if teachers else {**lists, **{_flag(name): value for name, value in endpoint.items()}}
    useless |= {} if teachers == 2 else single
    given = next((name for name, value in useless.items() if value is not None), None)
    if given is not None:
        who = "no teacher" if not teachers else "no teacher of single passages"
        raise ConfigurationError(f"{given} was given for recipe {recipe}, which has {who}; leave it out.")
    if teachers and lists["--llm"] is None:
        raise ConfigurationError(
            f"Recipe {recipe} has no teacher; wanted --llm with an endpoint's base URL or a local language model."
        )


def _flag(name: str) -> str:
    return "--" + name.removeprefix("reader.").replace("_", "-")


def _check_out(out: Path) -> None:
    if not out.name.removesuffix(".gz").endswith(".jsonl"):
        raise ConfigurationError(f"--out is '{out}'; wanted a name that ends in .jsonl or .jsonl.gz.")


# --- settings -------------------------------------------------------------------------------------------------------


class _Parts(NamedTuple):
    """Texts NAME=VALUE by what they belong to."""

    own: list[str]
    """Of the recipe."""
    lists: list[str]
    single: list[str]
    max_failed: list[str]


class _Asked(NamedTuple):
    """Settings of the teachers that there are."""

    lists: LLMSettings | None
    single: LLMSettings | None
    max_failed: float


def _parts(recipe: str, assignments: Sequence[str]) -> _Parts:
    from rankwright.teaching import RECIPES

    known = {field.name for field in dataclasses.fields(RECIPES[recipe].made_by)}
    parts = _Parts([], [], [], [])
    for text in assignments:
        name = text.partition("=")[0].strip()
        if name in known or not RECIPES[recipe].teachers:
            parts.own.append(text)
        elif name == "max_failed":
            parts.max_failed.append(text)
        elif name.startswith("single."):
            parts.single.append(text.strip().removeprefix("single."))
        else:
            parts.lists.append(text)
            parts.single.extend([text] if name.startswith("reader.") else [])
    return parts


def _teacher_settings(
    recipe: str,
    teachers: int,
    lists: Mapping[str, Any],
    single: Mapping[str, Any],
    endpoint: Mapping[str, Any],
    parts: _Parts,
) -> _Asked:
    from rankwright.cli.llm import llm_settings

    max_failed = _max_failed(parts.max_failed)
    if not teachers:
        return _Asked(None, None, max_failed)
    flags = {**endpoint, "reader.reader": lists["--llm"], "reader.model": lists["--llm-model"]}
    of_lists = llm_settings(
        lists["--strategy"], lists["--prompt"], None, parts.lists, {**flags, "window": lists["--window"]}
    )
    if teachers < 2:
        return _Asked(of_lists, None, max_failed)
    if single["--point-llm"] is not None:
        flags |= {"reader.reader": single["--point-llm"], "reader.model": None}
    if single["--point-llm-model"] is not None:
        flags["reader.model"] = single["--point-llm-model"]
    prompt = single["--point-prompt"] or POINT_PROMPTS[recipe]
    return _Asked(of_lists, llm_settings("pointwise", prompt, None, parts.single, flags), max_failed)


def _max_failed(assignments: Sequence[str]) -> float:
    from rankwright.cli.settings import filled
    from rankwright.teaching import Teacher

    share = filled({}, assignments, {}).get("max_failed", Teacher.max_failed)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ConfigurationError(f"Setting max_failed is {share!r}; wanted a share of calls, 0 to 1.")
    return float(share)


def _made(recipe: str, assignments: Sequence[str], seed: int | None, single: RankingPrompt | None) -> Any:
    """The recipe with its settings."""
    from pydantic import TypeAdapter

    from rankwright.cli.settings import filled, validated
    from rankwright.teaching import RECIPES

    found = RECIPES[recipe]
    known = [field.name for field in dataclasses.fields(found.made_by)]
    if seed is not None and "seed" not in known:
        raise ConfigurationError(f"--seed was given for recipe {recipe}, which draws nothing; leave it out.")
    settings = filled(dict(found.defaults), assignments, {"seed": seed})
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ConfigurationError(f"Recipe {recipe} was given '{unknown[0]}'; its settings are {', '.join(known)}.")
    if "relevant_from" in known and single is not None:
        settings.setdefault("relevant_from", middle_of(single))
    return validated(TypeAdapter(found.made_by), settings, "")


def middle_of(prompt: RankingPrompt) -> float:
    """Points from which a pointwise prompt calls a passage relevant: the middle of its scale, or even odds of its
    words."""
    if prompt.parser == "integer":
        return sum(prompt.options.get("scale", (0, 10))) / 2
    return 0.0 if prompt.options.get("score") == "logit" else 0.5


def _whole(lists: LLMSettings, parts: _Parts, size: int) -> LLMSettings:
    """The teacher sees so many passages of a question at once, unless something else was said or they do not fit."""
    from rankwright.strategies import Sliding

    named = {text.partition("=")[0].strip() for text in parts.lists}
    if not isinstance(lists.strategy, Sliding) or "window" in named:
        return lists
    if lists.prompt.most is not None and lists.prompt.most < size:
        return lists
    return dataclasses.replace(
        lists, strategy=dataclasses.replace(lists.strategy, window=size, stride=max(1, size // 2))
    )


# --- questions and teachers -----------------------------------------------------------------------------------------


def _questions(
    data: Path,
    format: str,
    corpus: Path | None,
    topics: Path | None,
    qrels: str | None,
    retriever: RetrieverKind,
    made: Any,
    on_bad_row: BadRow,
) -> Dataset:
    from rankwright.data import load_examples
    from rankwright.retrieval import BM25, with_candidates

    dataset = load_examples(
        data,
        format,
        corpus=corpus,
        qrels=qrels,
        topics=topics,
        on_bad_row=on_bad_row.value,
        need_candidates=retriever is RetrieverKind.given,
    )
    if retriever is RetrieverKind.given:
        return dataset
    depth = made.until if hasattr(made, "until") else made.depth
    found = with_candidates(dataset.examples, BM25(dataset.corpus), depth)
    return dataclasses.replace(dataset, examples=tuple(found))


@contextlib.contextmanager
def _teachers(asked: _Asked, device: str) -> Iterator[tuple[Teacher | None, Teacher | None]]:
    """The teachers, with caches around their models."""
    from rankwright.cli.llm import llm_policy
    from rankwright.teaching import Teacher

    if asked.lists is None:
        yield None, None
        return
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(progress_bars())
        both = [
            Teacher(
                stack.enter_context(llm_policy(settings, device, "prepare")),
                settings.strategy,
                asked.max_failed,
                progress,
            )
            for settings in (asked.lists, asked.single)
            if settings is not None
        ]
        yield both[0], both[1] if len(both) > 1 else None


def _counted(made: Any, examples: Sequence[T], apply: Any) -> Prepared:
    """What the recipe makes, with progress over the questions where no teacher tells of his own."""
    if hasattr(made, "draws") or hasattr(made, "negatives"):
        with progress_bars() as progress:
            return apply(_watched(examples, progress))
    return apply(examples)


def _watched(examples: Sequence[T], progress: Progress) -> Iterable[T]:
    for number, example in enumerate(examples, start=1):
        yield example
        progress("prepare", number, len(examples))


def _tell(
    recipe: str,
    made: Any,
    dataset: Dataset,
    prepared: Prepared,
    teachers: Mapping[str, Teacher | None],
    out: Path,
    output: OutputKind,
) -> None:
    from rankwright.cli.llm import say_report, told

    if output is OutputKind.json:
        emit(
            {
                "recipe": recipe,
                "settings": dataclasses.asdict(made),
                "set": dataset.name,
                "questions": prepared.questions,
                "skipped": dataset.skipped,
                "unjudged": dataset.unjudged,
                "rows": len(prepared.rows),
                "of_questions": len({row.metadata["query_id"] for row in prepared.rows}),
                "with_thoughts": sum(bool(row.example.thoughts) for row in prepared.rows),
                "left_out": dict(prepared.left_out),
                "teachers": {
                    name: {"name": f"{teacher.policy.name} {teacher.strategy.name}", **told(teacher.report)}
                    for name, teacher in teachers.items()
                    if teacher is not None
                },
                "out": str(out),
            }
        )
        return
    for teacher in teachers.values():
        if teacher is not None:
            say_report(teacher.report)
    thinking = sum(bool(row.example.thoughts) for row in prepared.rows)
    if thinking:
        say(f"{thinking} of {len(prepared.rows)} rows have the teacher's thoughts, which --method sft teaches.")
    for what, times in prepared.left_out.most_common():
        say(f"Left out: {times} {what}.")
    print_out(
        f"{len(prepared.rows)} rows from {len({row.metadata['query_id'] for row in prepared.rows})} of "
        f"{prepared.questions} questions of {dataset.name} ({dataset.skipped} bad rows skipped, {dataset.unjudged} "
        f"without labels left out): {out}"
    )
