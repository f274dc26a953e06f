"""Verb `eval`: any number of models on the same questions and candidates."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer
from rich.table import Table

from rankwright.cli.common import (
    FORMAT_HELP,
    WORSE_EXIT_CODE,
    BadRow,
    OutputKind,
    RetrieverKind,
    command_line,
    emit,
    print_out,
    progress_bars,
    results_width,
    say,
    score_table,
    shown_metrics,
)
from rankwright.cli.options import (
    STRATEGIES,
    ApiKeyEnv,
    Backend,
    Cache,
    ExpandModel,
    ExpandWith,
    PriceInput,
    PriceOutput,
    ReaderModel,
    RequestsPerMinute,
    TokensPerMinute,
    Windows,
)
from rankwright.cli.settings import (
    LARGEST_SEED,
    NO_EXPANSION,
    DataSettings,
    ExpansionSettings,
    ModelSettings,
    ReaderSettings,
    check_expansion,
    load_expansion_settings,
    load_reader_settings,
    load_start,
)
from rankwright.errors import ConfigurationError
from rankwright.evaluation import Evaluation, FirstStage, GoldFirst, PairedTest, evaluate, verdict
from rankwright.reading import MAX_FAILED_READS
from rankwright.rerankers import REFERENCE, check_named, refuse_writer
from rankwright.rerankers.ranking import Scorer
from rankwright.types import Example, Reader, Reranker

if TYPE_CHECKING:
    from rankwright.cli.llm import LLMSettings
    from rankwright.rerankers.windows import Windows as WindowsName

EXAMPLES = r"""
**Examples**

Did training help? Both models read by the embedded reader, with BM25 over the passages of the file:

    rankwright eval reference runs/first/model --data test.jsonl \
      --baseline reference

Ranking quality alone, by relevance labels, on candidates as they were given:

    rankwright eval first-stage reference --data run.trec --format trec \
      --corpus corpus.jsonl --qrels qrels.txt --retriever given --depth 100 \
      --reader none --output json

Reader and query expansion of a training run, with all their settings, on other questions:

    rankwright eval reference runs/first --data other.jsonl \
      --config runs/first/config.json

The comparison at the end of a run, made again:

    rankwright eval first-stage reference runs/first/model \
      --data runs/first --format evaluation \
      --config runs/first/config.json --baseline reference

Did GRPO help? A trained language model against the one it began as, both with the prompt of the training, by relevance
labels; calls, sequential depth and unreadable answers are told beside the scores:

    rankwright eval --llm Qwen/Qwen2.5-0.5B-Instruct --llm runs/rearank \
      --prompt runs/rearank/model --baseline Qwen/Qwen2.5-0.5B-Instruct \
      --data candidates.jsonl --retriever given --reader none

An LLM reads; its answers and their price are kept in the cache:

    rankwright eval reference runs/first/model --data test.jsonl \
      --reader http://localhost:8000/v1 \
      --reader-model Qwen/Qwen2.5-7B-Instruct --report comparison.html
"""


SAVED_FORMAT = "evaluation"
"""--format of questions whose candidates an earlier evaluation has kept."""


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("eval", epilog=EXAMPLES)(compare)


def compare(
    models: list[str] | None = typer.Argument(
        None,
        metavar="MODEL",
        help="A folder, a hub name, reference (embedded), first-stage (order as it came) or gold-first (by label). "
        "Language models are given by --llm.",
    ),
    data: Path = typer.Option(..., "--data", help="Questions: file or folder in one of the formats."),
    format: str = typer.Option(
        "jsonl",
        "--format",
        help=f"{FORMAT_HELP} Or {SAVED_FORMAT}: questions and candidates of a run folder, or of a file of --save.",
    ),
    qrels: Path | None = typer.Option(None, help="Relevance labels (TREC or BEIR); they choose the questions."),
    topics: Path | None = typer.Option(None, help="Questions of a TREC run; else topics* or queries* beside it."),
    corpus: Path | None = typer.Option(None, help="Passages to retrieve from; without it, those of the data file."),
    retriever: RetrieverKind = typer.Option(
        RetrieverKind.bm25, help="bm25 over the corpus, or given: candidates in the order of the data."
    ),
    depth: int | None = typer.Option(
        None, min=1, help="Candidates per question. Default 20, or as many as the evaluation had."
    ),
    top_k: int | None = typer.Option(
        None,
        min=1,
        help="Passages that the reader sees; the k of hit@k. Default 3, or as many as the evaluation had.",
    ),
    llm: list[str] = typer.Option(
        [],
        help="A language model that ranks too: a local causal LM, a run of --method grpo or sft, or an endpoint's base "
        "URL. May be given several times.",
    ),
    llm_model: list[str] = typer.Option(
        [], help="Model name at the endpoint of --llm; each name is a model of its own."
    ),
    strategy: str | None = typer.Option(
        None,
        help=f"How a language model covers the candidates: {', '.join(STRATEGIES)}. Default: that of its prompt, or "
        "sliding.",
    ),
    prompt: str | None = typer.Option(
        None,
        help="Prompt of all language models: a shipped one, a file, or a model's folder. Default: the one that each "
        "one's folder keeps, else the strategy's.",
    ),
    window: int | None = typer.Option(None, help="Passages that a language model sees at once. Default 20."),
    stride: int | None = typer.Option(None, help="Steps of a sliding window. Default: half of the window."),
    fuse: float | None = typer.Option(None, help="Share of the first stage's scores in its result, 0 to 1."),
    expand_with: ExpandWith = None,
    expand_model: ExpandModel = None,
    reader: str | None = typer.Option(
        None,
        help="embedded, none, the base URL of an OpenAI-compatible endpoint, or a local causal LM. Default embedded.",
    ),
    reader_model: ReaderModel = None,
    reader_prompt: str | None = typer.Option(
        None, help="A shipped prompt or a file with {passages} and {question}. Default reader-1."
    ),
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    price_input: PriceInput = None,
    price_output: PriceOutput = None,
    api_key_env: ApiKeyEnv = None,
    cache: Cache = None,
    config: Path | None = typer.Option(
        None,
        help="YAML file, or config.json of a run, whose settings of reader and query expansion are taken: those of "
        "that training. The model that it started from is opened as there (model.max_length, model.template).",
    ),
    set_: list[str] = typer.Option(
        [],
        "--set",
        help="NAME=VALUE for any setting of reader or expansion (reader.deadline=300), of the endpoint of --llm "
        "(llm.concurrency=8), or of the strategy as in rerank (repeats=4, sampling.NAME, fuse.scale).",
    ),
    on_bad_row: BadRow = typer.Option(BadRow.error, help="Stop at a bad row, or leave it out and count it."),
    baseline: str | None = typer.Option(
        None,
        help="The MODEL that all others are tested against, else all pairs are. Exit code 8 if a model is worse than "
        "it, or, where none is named, than reference; first-stage and gold-first may be.",
    ),
    gold_first: bool = typer.Option(False, "--gold-first", help="Add a row with labelled passages put first."),
    max_failed_reads: float = typer.Option(
        MAX_FAILED_READS,
        min=0,
        max=1,
        help="Largest share of failed reads, and of failed calls of a language model; above it nothing is reported.",
    ),
    seed: int | None = typer.Option(
        None,
        min=0,
        max=LARGEST_SEED,
        help="Seed of the bootstrap and of the permutation test. Default 0, or that of the evaluation.",
    ),
    device: str = typer.Option("cpu", help="Torch device of models and local readers."),
    backend: Backend = "torch",
    windows: Windows = None,
    output: OutputKind = typer.Option(OutputKind.text, help="json prints one line on standard output."),
    report: Path | None = typer.Option(None, help="Write the comparison as one HTML file."),
    save: Path | None = typer.Option(None, help="Write rankings, answers and scores as JSON, for rankwright report."),
) -> int:
    """Compare models on the same questions and candidates: scores with intervals, paired tests, a signature."""
    from rankwright.cli.manage import stored_evaluation
    from rankwright.reporting import write_report

    stored, most = None, depth or DataSettings.eval_depth
    if format == SAVED_FORMAT:
        _refuse_search(
            {
                "--corpus": corpus,
                "--qrels": qrels,
                "--topics": topics,
                "--expand-with": expand_with,
                "--expand-model": expand_model,
            }
        )
        stored = stored_evaluation(data)
        most = _depth_of(stored, depth)
    elif _is_of_a_run(data):
        raise ConfigurationError(
            f"Data {data} holds the comparison of a run, and was to be read as {format}; wanted --format "
            f"{SAVED_FORMAT}. Add it."
        )
    data_settings = DataSettings(
        format=format,
        corpus=str(corpus or ""),
        qrels=str(qrels or ""),
        topics=str(topics or ""),
        retriever=retriever.value,
        depth=most,
        on_bad_row=on_bad_row.value,
    )
    flags = {
        "expansion.llm": expand_with,
        "expansion.model": expand_model,
        "reader.reader": reader,
        "reader.model": reader_model,
        "reader.prompt": reader_prompt,
        "reader.cache": cache,
        "reader.requests_per_minute": requests_per_minute,
        "reader.tokens_per_minute": tokens_per_minute,
        "reader.api_key_env": api_key_env,
        "reader.price_input": price_input,
        "reader.price_output": price_output,
    }
    of_reader, of_llm = _divided(set_) if llm else (set_, [])
    asked = {"strategy": strategy, "prompt": prompt, "window": window, "stride": stride, "fuse": fuse}
    evaluation = run_evaluation(
        [*(models or []), *([GoldFirst.name] if gold_first else [])],
        data,
        data_settings,
        load_reader_settings(config, of_reader, flags),
        NO_EXPANSION if stored else load_expansion_settings(config, of_reader, flags),
        stored=stored,
        start=load_start(config),
        llms=_language_models(llm, llm_model, asked, of_llm, cache),
        top_k=top_k or (min(stored.settings.top_k, most) if stored else 3),
        baseline=baseline,
        seed=seed if seed is not None else stored.settings.seed if stored else 0,
        device=device,
        backend=backend,
        windows=windows.value if windows else None,
        max_failed_reads=max_failed_reads,
    )
    worse = _worse_than_baseline(evaluation)
    # Printed first, for a result that cannot be saved; a reader of the pipe that has gone changes nothing either.
    with contextlib.suppress(typer.Exit):
        _print(evaluation, output)
    if save is not None:
        evaluation.save(save)
        say(f"Saved to {save}")
    if report is not None:
        run = {"environment": {"command": command_line()}}
        write_report(report, evaluation, title=f"Comparison on {evaluation.settings.set_name}", run=run)
        say(f"Report {report}")
    with contextlib.suppress(typer.Exit):
        _print_verdict(evaluation, worse, say if output is OutputKind.json else print_out)
    return WORSE_EXIT_CODE if worse else 0


def run_evaluation(
    models: Sequence[str],
    data: Path,
    data_settings: DataSettings,
    reader_settings: ReaderSettings,
    expansion: ExpansionSettings,
    *,
    stored: Evaluation | None,
    start: ModelSettings,
    llms: Mapping[str, LLMSettings],
    top_k: int,
    baseline: str | None,
    seed: int,
    device: str,
    backend: str,
    windows: WindowsName | None,
    max_failed_reads: float,
) -> Evaluation:
    """The models, by name, on the questions of one file; `data_settings.depth` candidates each, or on those of a
    `stored` evaluation. `start` says how the model of that name is opened; `llms` are language models that rank, by
    name; `backend` and `windows` are of the others."""
    from rankwright.cli.build import against_cuts, checked_device, command_run, tell_of_cut
    from rankwright.cli.llm import CountingReranker, told

    _check_scoring(models, backend, windows)
    _check_template(models, start, backend, windows)
    names = _checked_names([*models, *llms], baseline)
    if top_k > data_settings.depth:  # said before models are loaded
        raise ConfigurationError(
            f"Evaluation has top_k {top_k} above depth {data_settings.depth}; the reader can only see candidates. "
            "Raise --depth or lower --top-k."
        )
    check_expansion(expansion, reader_settings.reader, data_settings.retriever)
    checked_device(device)
    _check_models(names, llms)
    run = command_run("eval")
    if stored:
        of = stored.settings
        asked = _Questions(stored.examples, of.set_name, of.retriever, of.skipped, data_settings.depth)
    else:
        asked = _questions(data, data_settings, expansion, reader_settings, run, device)
    with contextlib.ExitStack() as stack:
        rankers = {
            name: stack.enter_context(_language_model(llms[name], device, max_failed_reads))
            if name in llms
            else _ranker(name, asked.examples, device, backend, windows, start)
            for name in names
        }
        opened = stack.enter_context(_opened_reader(reader_settings, run, device))
        progress = stack.enter_context(progress_bars())
        counted = {name: ranker for name, ranker in rankers.items() if isinstance(ranker, CountingReranker)}
        for ranker in counted.values():
            ranker.on_progress = progress
        evaluation = evaluate(
            rankers,
            asked.examples,
            reader=opened,
            top_k=top_k,
            depth=asked.depth,
            baseline=baseline,
            seed=seed,
            set_name=asked.set_name,
            retriever=asked.retriever,
            skipped=asked.skipped,
            max_failed=max_failed_reads,
            progress=progress,
        )
    for ranker in rankers.values():
        tell_of_cut(ranker, against_cuts(ranker))
    taken = {name: {"reranker": ranker.name, **told(ranker.total)} for name, ranker in counted.items()}
    return replace(evaluation, taken=taken, computed=_computed(rankers))


class _Questions(NamedTuple):
    """What is ranked, and what a signature says of it."""

    examples: Sequence[Example]
    set_name: str
    retriever: str
    skipped: int
    depth: int


def _questions(
    data: Path,
    settings: DataSettings,
    expansion: ExpansionSettings,
    reader: ReaderSettings,
    run: str,
    device: str,
) -> _Questions:
    """Questions of a data file, with candidates."""
    from rankwright.cli.build import load_one
    from rankwright.cli.expansion import with_first_stage

    dataset = load_one(str(data), settings, need_answers=reader.reader != "none")
    examples, first_stage = with_first_stage(dataset.examples, dataset.corpus, settings, expansion, reader, run, device)
    return _Questions(examples, dataset.name, first_stage, dataset.skipped, settings.depth)


def _depth_of(stored: Evaluation, asked: int | None) -> int:
    """Candidates per question: as many as are asked for, of those that an earlier evaluation had."""
    there = stored.settings.depth
    if asked and asked > there:
        say(f"The evaluation has {there} candidates a question and --depth {asked} asks for more: {there} it is.")
    return min(asked or there, there)


def _is_of_a_run(data: Path) -> bool:
    """Whether it is the folder of a finished run, or its comparison."""
    folder = data if data.is_dir() else data.parent if data.name == "evaluation.json" else None
    return folder is not None and all((folder / name).is_file() for name in ("evaluation.json", "config.json"))


def _refuse_search(given: Mapping[str, object]) -> None:
    """Candidates and labels that are known are not sought."""
    if named := [flag for flag, value in given.items() if value is not None]:
        raise ConfigurationError(
            f"{named[0]} was given with --format {SAVED_FORMAT}, which has its candidates and labels; wanted one of "
            "both. Leave it out, or name the file that the questions came from."
        )


_OF_READER = ("reader.", "expansion.")


def _divided(assignments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those of the reader and of query expansion, and those of language models that rank."""
    of_reader = [text for text in assignments if text.lstrip().startswith(_OF_READER)]
    return of_reader, [text for text in assignments if text not in of_reader]


def _language_models(
    places: Sequence[str],
    models: Sequence[str],
    asked: Mapping[str, Any],
    assignments: Sequence[str],
    cache: str | None,
) -> dict[str, LLMSettings]:
    """Settings of the language models that rank, by name."""
    from rankwright.cli.llm import several_settings

    if not places:
        given = [f"--{name}" for name, value in asked.items() if value is not None] + ["--llm-model"] * bool(models)
        if given:
            raise ConfigurationError(
                f"{given[0]} was given without --llm, and says nothing of other models; wanted --llm with a local "
                "language model or an endpoint's base URL, or a setting of reader or expansion."
            )
        return {}
    strategy = {"window": asked["window"], "stride": asked["stride"], "reader.cache": cache}
    found = several_settings(places, models, asked["strategy"], asked["prompt"], asked["fuse"], assignments, strategy)
    versions = {name: settings.prompt.version for name, settings in found.items()}
    if len(set(versions.values())) > 1:
        shown = ", ".join(f"{name}: {version}" for name, version in versions.items())
        say(f"The language models have prompts of their own ({shown}); --prompt gives all of them the same.")
    return found


@contextlib.contextmanager
def _language_model(settings: LLMSettings, device: str, max_failed: float) -> Iterator[Reranker]:
    from rankwright.cli.llm import CountingReranker, llm_policy

    with llm_policy(settings, device, "eval") as policy:
        yield CountingReranker(policy, settings.strategy, max_failed=max_failed)


def _checked_names(names: Sequence[str], baseline: str | None) -> Sequence[str]:
    if not names:
        raise ConfigurationError("Evaluation was given no model; wanted one as MODEL, or a language model as --llm.")
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise ConfigurationError(f"Model '{name}' was given {times} times; wanted every model once. Remove one.")
    if baseline is not None and baseline not in names:
        raise ConfigurationError(
            f"Baseline '{baseline}' is not among the models {', '.join(names)}; wanted one of them, as typed there."
        )
    return names


def _check_scoring(models: Sequence[str], backend: str, windows: str | None) -> None:
    """That there is a model of which --backend and --windows say something."""
    given = "--windows" if windows else "--backend" if backend != "torch" else None
    if given and set(models) <= {FirstStage.name, GoldFirst.name}:
        raise ConfigurationError(
            f"{given} was given without a MODEL that scores, and says nothing of other rankings; wanted one. Name a "
            "folder, or leave it out."
        )


def _check_template(models: Sequence[str], start: ModelSettings, backend: str, windows: str | None) -> None:
    """That nothing speaks against the template with which --config opens a model."""
    if start.name in models and start.template and (backend != "torch" or windows):
        raise ConfigurationError(
            f"Model {start.name} has template {start.template!r} in --config, which --backend and --windows do not "
            "take; wanted that of the model's folder. Leave them out."
        )


def _check_models(names: Sequence[str], llms: Mapping[str, LLMSettings]) -> None:
    """Whether they can be opened, as far as shows without loading one: query expansion is paid for before that."""
    from rankwright.cli.build import check_llm
    from rankwright.cli.llm import LLM_ROLE

    for name in names:
        if name in llms:
            check_llm(llms[name].endpoint, LLM_ROLE)
        elif name not in (FirstStage.name, GoldFirst.name):
            check_named(name)
            refuse_writer(name)


def _computed(rankers: Mapping[str, Reranker]) -> dict[str, str]:
    """The names of those that say how they are computed, since a model is called in tables what was typed."""
    return {name: ranker.name for name, ranker in rankers.items() if isinstance(ranker, Scorer) and "|" in ranker.name}


def _ranker(
    name: str,
    examples: Sequence[Example],
    device: str,
    backend: str,
    windows: WindowsName | None,
    start: ModelSettings,
) -> Reranker:
    from rankwright.cli.build import build_reranker

    if name == GoldFirst.name:
        return GoldFirst(examples)
    if name != start.name:
        return build_reranker(name, device, backend, windows)
    ranker: Any = build_reranker(name, device, backend, windows, start.max_length or None)
    if start.template:
        ranker.template = start.template
    return ranker


@contextlib.contextmanager
def _opened_reader(settings: ReaderSettings, run: str, device: str) -> Iterator[Reader | None]:
    """The reader over its cache; at the end its calls are summed up."""
    from rankwright.cli.build import build_reader, counted_store, tell_of_reader_cut

    if settings.reader == "none":
        yield None
        return
    with counted_store(settings.cache, run) as store:
        reader = build_reader(settings, store, run, device)
        yield reader
    tell_of_reader_cut(reader)


def _worse_than_baseline(evaluation: Evaluation) -> list[PairedTest]:
    """Tests of the headline metric that show a model to be worse than the baseline the user named, or than the
    embedded reference where that is among the models and none is named. By p as it is: a warning is not corrected away.
    """
    baseline = evaluation.settings.baseline or REFERENCE
    fixed_orders = (FirstStage.name, GoldFirst.name)
    tests = [_turned(test) if test.a == baseline else test for test in evaluation.tests]
    return [
        test
        for test in tests
        if test.b == baseline
        and test.metric == evaluation.headline_metric
        and test.a not in fixed_orders
        and verdict(test) == "worse"
    ]


def _turned(test: PairedTest) -> PairedTest:
    """The same test seen from the other model."""
    return replace(test, a=test.b, b=test.a, delta=-test.delta, ci_low=-test.ci_high, ci_high=-test.ci_low)


def _print(evaluation: Evaluation, output: OutputKind) -> None:
    if output is OutputKind.json:
        signatures = {metric: evaluation.signature_of(metric) for metric in evaluation.metrics}
        emit({**evaluation.to_json(), "signatures": signatures})
    else:
        _print_text(evaluation)


def _print_verdict(evaluation: Evaluation, worse: Sequence[PairedTest], tell: Callable[[str], None]) -> None:
    """The last word, after all else is said and written."""
    test = evaluation.headline_test()
    if test is not None and not worse:
        tell(sentence(test))
    for found in worse:
        tell(sentence(found))


def _print_text(evaluation: Evaluation) -> None:
    metrics = shown_metrics(evaluation, results_width())
    print_out(score_table(evaluation, results_width()))
    if evaluation.tests:
        print_out(_test_table(evaluation, metrics))
    for name, counts in evaluation.taken.items():
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in counts["outcomes"].items())
        print_out(
            f"{name}: {counts['calls']} calls, sequential depth {counts['sequential_depth']} (mean "
            f"{counts['mean_sequential_depth']:.1f}), {counts['tokens']['input']} input and "
            f"{counts['tokens']['output']} output tokens; answers: {outcomes}."
        )
    for name, how in evaluation.computed.items():
        print_out(f"{name}: computed as {how}.")
    failed = {name: result.n_failed for name, result in evaluation.models.items() if result.n_failed}
    for name, count in failed.items():
        print_out(f"{name}: {count} of {evaluation.n} reads failed; they are missing from its means.")
    if evaluation.settings.skipped:
        print_out(f"{evaluation.settings.skipped} bad rows were skipped.")
    print_out("Signatures:")
    for metric in metrics:
        print_out(f"  {evaluation.signature_of(metric)}")


def _test_table(evaluation: Evaluation, metrics: Sequence[str]) -> Table:
    table = Table(title="Paired tests, a minus b")
    for heading in ("metric", "a", "b"):
        table.add_column(heading, overflow="fold")
    for heading in ("n", "delta [95 % interval]", "p", "Holm p"):
        table.add_column(heading, justify="right")
    table.add_column("a is")
    for test in evaluation.tests:
        if test.metric in metrics:
            table.add_row(*_test_cells(test))
    return table


def _test_cells(test: PairedTest) -> tuple[Any, ...]:
    delta = f"{test.delta:+.3f} [{test.ci_low:+.3f}, {test.ci_high:+.3f}]"
    return test.metric, test.a, test.b, str(test.n), delta, f"{test.p:.4f}", f"{test.p_holm:.4f}", verdict(test)


def sentence(test: PairedTest) -> str:
    """One test in words."""
    words = {
        "better": "is BETTER than",
        "not shown": "shows NO DIFFERENCE to",
        "worse": "is WORSE than",
    }
    return (
        f"{test.a} {words[verdict(test)]} {test.b}: {test.metric} {test.delta:+.3f} (95 % interval {test.ci_low:+.3f} "
        f"to {test.ci_high:+.3f}, p = {test.p:.4f}, n = {test.n})."
    )
