"""One training run from settings to verdict: data, reader, policy, training, comparison, report, run folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rankwright
from rankwright import processes
from rankwright.algorithms.generating import GRPO_MAY_CHANGE
from rankwright.budget import Budget
from rankwright.checkpoints import alone_in, check_same_settings, make_folder, sorted_checkpoints, write_manifest
from rankwright.cli.build import (
    Splits,
    build_reader,
    checked_device,
    load_splits,
    open_store,
    tell_of_calls,
    tell_of_cut,
    tell_of_reader_cut,
)
from rankwright.cli.card import model_card
from rankwright.cli.common import WORSE_EXIT_CODE, progress_bars, say, score_table, training_bar
from rankwright.cli.costs import check_ledger, run_budget, stop_if
from rankwright.cli.expansion import PASSAGES_FILE, expansion_run, passages_text, read_passages
from rankwright.cli.rewards import answer_reward_of
from rankwright.cli.settings import RunSettings, settings_tree
from rankwright.data.files import replace_text
from rankwright.errors import ConfigurationError, ReaderError, ResourceNotFoundError, ResumeError, StorageError
from rankwright.evaluation import Evaluation, FirstStage, GoldFirst, PairedTest, digest_of, evaluate, verdict
from rankwright.manifests import ENVIRONMENT, MANIFEST, MODEL, damaged_files
from rankwright.metrics.ranking import has_relevant
from rankwright.readers import CachedReader, LLMReader
from rankwright.reporting import unchanged, write_report
from rankwright.types import (
    Answer,
    CompletionFailed,
    Context,
    Document,
    Query,
    Reader,
    ReadFailed,
    ReadResult,
    Reranker,
    Reward,
)

if TYPE_CHECKING:
    from rankwright.llms.cache import ReadStore
    from rankwright.training import TrainResult

RUNS = Path("runs")
BEGUN_WITH = ("config.json", ENVIRONMENT, PASSAGES_FILE)
RECORDS = (*BEGUN_WITH, "metrics.jsonl", "alarms.jsonl", "evaluation.json", "result.json")
"""Files of a run folder that manifest.json has the hashes of once the run is finished, with those of its model. Before,
it has those of the first three, and of the model once that is trained. While they are being written there is none, so
that a kill makes no file look damaged."""
RUN_ID = "run_id"
"""Of a run that has not begun to train: the name that its calls have in the ledger. Then config.json has it."""
CARD = "README.md"
REFERENCE_ROW, TRAINED_ROW = "reference", "trained"


@dataclass(frozen=True)
class RunOutcome:
    """What a run left behind."""

    folder: Path
    result: Mapping[str, Any]
    """The content of result.json."""
    evaluation: Evaluation
    exit_code: int
    """0, or 8 where the trained model is worse than its reference."""


def run_training(
    settings: RunSettings,
    name: str,
    *,
    splits: Splits | None = None,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "",
) -> RunOutcome:
    """Trains, compares with the reference on questions never used in training, and writes runs/NAME.

    Args:
        settings: everything that decides the result.
        name: of the run folder.
        splits: questions with candidates; by default loaded as the settings say.
        resume: go on with the run of that name.
        overwrite: replace a run of that name.
        command: how to repeat the run, for the report.
    """
    processes.meet(settings.model.device)
    if processes.rank():
        return _helped(settings, name)
    with contextlib.ExitStack() as stack:
        with processes.telling() as tell:
            stack.enter_context(alone_in(run_folder(name)))
            run = _prepared(stack, settings, name, splits, resume, overwrite, command)
            tell((run.splits, run.deciding, run.resume))
        if not run.resume:
            say(f"The {len(run.splits.dev)} dev questions are ranked by the starting weights first.")
        trained = _train(run)
        say(f"The {len(run.splits.test)} test questions are ranked by both models.")
        with processes.telling() as tell:
            outcome = _finished(run, trained)
            tell(outcome)
    return outcome


@dataclass(frozen=True)
class _Run:
    """A run that may begin: everything is read, made and found good."""

    settings: RunSettings
    folder: Path
    run_id: str
    resume: bool
    """Whether there is anything to go on from."""
    environment: Mapping[str, Any]
    splits: Splits
    store: ReadStore
    reader: Reader | None
    algorithm: Any
    score_dev: Any
    budget: Budget
    reference: Any
    policy: Any
    deciding: Mapping[str, Any]
    """What --resume compares."""

    def check_comparison(self, contexts: Sequence[Context]) -> None:
        """Whether the limits allow the comparison, of which an interrupted one may have left answers in the cache.

        Raises:
            LimitReachedError: they do not.
        """
        stop_if(
            self.budget.reads(_unanswered(self.reader, contexts), "the comparison"),
            "The model is trained and saved: the same command with --resume and a higher limit makes the comparison.",
        )


def _prepared(
    stack: contextlib.ExitStack,
    settings: RunSettings,
    name: str,
    splits: Splits | None,
    resume: bool,
    overwrite: bool,
    command: str,
) -> _Run:
    """All that comes before training; the store of answers is closed by the stack."""
    folder = run_folder(name)
    checked_device(settings.model.device)
    reward = answer_reward_of(settings)
    resume = resume and has_begun(folder)
    run_id = checked_run_id(folder, settings, resume, overwrite)

    def before_paying(*_: object) -> None:
        _check_beginning(settings)
        keep_id(folder, run_id)

    known = read_passages(folder) if resume else None
    splits = splits or load_splits(settings, run_id, known, before_paying=before_paying)
    _check_beginning(settings)
    make_folder(folder)
    environment = environment_record(command, folder, resume)
    together = f"; {processes.count()} processes" if processes.count() > 1 else ""
    say(
        f"{len(splits.train)} training, {len(splits.dev)} dev and {len(splits.test)} test questions; run folder "
        f"{folder}{together}"
    )
    _warn_of_few(splits)
    store = stack.enter_context(open_store(settings.reader.cache))
    reader = build_reader(settings.reader, store, run_id, settings.model.device)
    algorithm, score_dev = learning(settings, splits, reader, reward)
    budget = run_budget(settings, splits, reader, algorithm, len(rankers(splits, None, None)), store, run_id)
    if resume:
        check_ledger(settings, store, run_id, folder)
        if not sorted_checkpoints(folder):
            say(f"There is no checkpoint in {folder}: training begins anew.")
    if reader is not None:
        stack.enter_context(_summed_up(store, settings.reader.cache, run_id))
    if settings.reader.is_endpoint and not resume:
        stop_if(
            budget.reads(_unanswered(reader, [first_context(run_id)]), "the first call"),
            "Nothing was begun: give the same command with a higher limit.",
        )
        keep_id(folder, run_id)
        _check_answers(reader, run_id)
    reference, policy = starting_model(settings), policy_of(settings)
    keep_id(folder, run_id)  # what is broken off before config.json is written can be resumed, too
    return _Run(
        settings=settings,
        folder=folder,
        run_id=run_id,
        resume=resume,
        environment=environment,
        splits=splits,
        store=store,
        reader=reader,
        algorithm=algorithm,
        score_dev=score_dev,
        budget=budget,
        reference=reference,
        policy=policy,
        deciding=_deciding(settings, splits, reader, reference),
    )


def _unanswered(reader: Reader | None, contexts: Sequence[Context]) -> Sequence[Context]:
    """Those that would be calls."""
    return reader.unanswered(contexts) if isinstance(reader, CachedReader | LLMReader) else contexts


@contextlib.contextmanager
def _summed_up(store: ReadStore, cache: str, run_id: str) -> Iterator[None]:
    """Says what the calls of a run came to that ends early: what was sent may be on the bill."""
    try:
        yield
    except BaseException:  # Ctrl-C too
        tell_of_calls(store, cache, run_id, stopped=True)
        raise


def _finished(run: _Run, trained: TrainResult) -> RunOutcome:
    """All that comes after training: model, comparison, result, report."""
    settings, splits, folder = run.settings, run.splits, run.folder
    with writing(folder):
        run.policy.save(folder / MODEL)  # before the comparison, which may fail: training is paid for
        write_manifest(folder, (*BEGUN_WITH, *model_files(folder)))
    evaluation, hits = _compare(settings, splits, run.reader, run.reference, run.policy, run.check_comparison)
    totals = run.store.ledger.totals(run.run_id)
    tell_of_cut(run.policy, "Split long passages, or raise --set model.max_length as far as the model goes.")
    tell_of_reader_cut(run.reader)
    result = {
        **_result(settings, evaluation, trained, totals.calls, trained.cache_hits + hits),
        **(totals.price_record if settings.reader.is_endpoint else FREE_RECORD),
        "expansion": expansion_record(splits, run.store, run.run_id),
        "pairs_cut": round(run.policy.share_cut, 4),
        "reader_tokens_cut": round(getattr(run.reader, "share_cut", 0.0), 4),
    }
    kind = getattr(run.policy, "kind", None)
    card = model_card(settings, splits, evaluation, result, verdict_line(result), run.policy.template, kind)
    record = {"config": settings_tree(settings), "environment": run.environment, "result": result}
    with writing(folder):
        write_results(folder, folder.name, evaluation, card, record)
    return RunOutcome(folder, result, evaluation, WORSE_EXIT_CODE if result["verdict"] == "worse" else 0)


def _helped(settings: RunSettings, name: str) -> RunOutcome:
    """What a process other than the first does: its share of the questions. Data, reader, cache and files are the first
    one's, and so is the outcome."""
    from rankwright.training import train

    splits, deciding, resume = processes.heard()
    reader = None if settings.reader.reader == "none" else _ReadElsewhere()
    algorithm, score_dev = learning(settings, splits, reader, answer_reward_of(settings))
    reference, policy = starting_model(settings), policy_of(settings)
    train(
        policy,
        reference,
        algorithm,
        splits.train,
        settings.loop,
        run_folder(name),
        seed=settings.seed,
        score_dev=score_dev,
        settings=deciding,
        resume=resume,
    )
    return processes.heard()


class _ReadElsewhere:
    """The reader of a process that asks none."""

    name = "read by the first process"

    def answer(self, contexts: Sequence[Context]) -> list[ReadResult]:
        raise AssertionError("Only the first process reads.")


def _begin_folder(
    folder: Path, config: Mapping[str, Any], environment: Mapping[str, Any], passages: str, resume: bool
) -> None:
    """Takes out what an earlier run came to and puts in what this one begins with."""
    with writing(folder):
        clear_outcome(folder)
        if not resume:
            shutil.rmtree(folder / MODEL, ignore_errors=True)
            (folder / PASSAGES_FILE).unlink(missing_ok=True)
        if passages:  # like the environment before config.json, with which the run can be resumed
            replace_text(folder / PASSAGES_FILE, passages)
        replace_text(folder / ENVIRONMENT, json.dumps(environment, indent=2) + "\n")
        replace_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
        (folder / RUN_ID).unlink(missing_ok=True)
        write_manifest(folder, BEGUN_WITH)


def clear_outcome(folder: Path) -> None:
    """Takes out what an earlier run came to, but for its model."""
    for stale in (MANIFEST, "result.json", "evaluation.json", "report.html"):
        (folder / stale).unlink(missing_ok=True)


def expansion_record(splits: Splits, store: ReadStore, run_id: str) -> dict[str, Any] | None:
    """What query expansion came to and cost, for result.json; None without it."""
    if not splits.passages:
        return None
    totals = store.ledger.totals(expansion_run(run_id))
    failed = sum(isinstance(passage, CompletionFailed) for passage in splits.passages.values())
    return {
        "questions": len(splits.passages),
        "failed": failed,
        "calls": totals.calls,
        **totals.price_record,
    }


def write_results(folder: Path, name: str, evaluation: Evaluation | None, card: str, run: Mapping[str, Any]) -> None:
    """Card and result, and with an evaluation itself and the report; the weights are there."""
    (folder / MANIFEST).unlink(missing_ok=True)
    replace_text(folder / MODEL / CARD, card)
    if evaluation is not None:
        evaluation.save(folder / "evaluation.json")
    replace_text(folder / "result.json", json.dumps(run["result"], indent=2) + "\n")
    if evaluation is not None:
        metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        told = {**run, "folder": str(folder)}
        write_report(folder / "report.html", evaluation, title=f"Run {name}", run=told, metrics=metrics)
    write_manifest(folder, (*RECORDS, *model_files(folder)))


def model_files(folder: Path) -> list[str]:
    """Files of a run's model that decide its scores: all but the card, which people may change."""
    paths = (path for path in (folder / MODEL).rglob("*") if path.is_file())
    return [str(path.relative_to(folder)) for path in paths if path.name != CARD]


def damaged_records(folder: Path) -> list[str]:
    """Files of a run folder that are not as the run left them; none where it has no manifest."""
    return damaged_files(folder) if (folder / MANIFEST).exists() else []


def _check_answers(reader: Any, run_id: str) -> None:
    """One call before an earlier run may go.

    Raises:
        ReaderError: it was not answered.
    """
    (result,) = reader.answer([first_context(run_id)])
    if isinstance(result, ReadFailed):
        raise ReaderError(
            f"Reader '{reader.name}' did not answer a first call ({result.reason}); wanted an answer before "
            "training begins. No earlier run was touched: see whether the server runs and the address is right, and "
            "give the same command again."
        )


def first_context(run_id: str) -> Context:
    """What an endpoint is asked before training; no other run asks it, so no cache can answer."""
    passage = Document("check", f"The number of this run is {run_id}.")
    return Context(Query("check", "What is the number of this run?"), (passage,))


@contextlib.contextmanager
def _resumable() -> Iterator[None]:
    """What a reader that fails in the comparison costs: nothing of the training."""
    try:
        yield
    except ReaderError as error:
        raise ReaderError(
            f"{error} The model is trained and saved; the same command with --resume makes the comparison "
            "(--max-failed-reads SHARE lets more reads fail)."
        ) from error


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What a full disk or a lost folder says, with what to do about it."""
    from rankwright.logbook import WRITE_ERRORS, write_problem

    try:
        yield
    except StorageError:
        raise
    except WRITE_ERRORS as error:
        raise StorageError(
            f"Run folder {folder} cannot be written ({write_problem(error)}); wanted a writable folder and free "
            "space. Free some, then go on with --resume: checkpoints and answers are kept."
        ) from error


def run_folder(name: str) -> Path:
    """runs/NAME; whatever writes or removes a run asks here first.

    Raises:
        ConfigurationError: the name would lead anywhere else.
    """
    if name in ("", ".", "..") or not name.isprintable() or {"/", "\\"} & set(name):
        raise ConfigurationError(
            f"Run name is {name!r}; wanted a plain name without slashes. It becomes a folder in {RUNS}/."
        )
    return RUNS / name


def checked_run_id(folder: Path, settings: RunSettings, resume: bool, overwrite: bool) -> str:
    """Name under which the run's calls stand in the ledger; of one to resume after a look at its settings, which before
    its first checkpoint stand nowhere else.

    Raises:
        ResumeError: as `run_id_of`, or the run began with other settings.
    """
    run_id, before = run_id_of(folder, resume, overwrite)
    if resume:
        now = json.loads(json.dumps(settings_tree(settings)))
        check_same_settings(before, without_speed(now), folder)
    return run_id


def has_begun(folder: Path) -> bool:
    """Whether there may be a run to resume. One that was broken off before it began to train has left no more than its
    name, under which its calls stand: it begins anew, and says so."""
    if (folder / "config.json").exists() or not (folder / RUN_ID).is_file():
        return True
    say(
        f"The run in {folder} was broken off before it began to train: it begins anew, with the answers that the "
        "cache has."
    )
    return False


def run_id_of(folder: Path, resume: bool, overwrite: bool) -> tuple[str, dict[str, Any]]:
    """Name under which a run's calls stand in the ledger, and with `resume` the settings that it began with.

    It is kept over a resume, and before training begins: what a command paid that was refused or interrupted by then
    counts toward the limits of the next one.

    Raises:
        ConfigurationError: there is a run, and it is to be neither resumed nor replaced.
        ResourceNotFoundError: there is none to resume.
        ResumeError: its config.json is damaged.
    """
    config, kept = folder / "config.json", folder / RUN_ID
    if resume:
        return _resumed(config)
    if config.exists() and not overwrite:
        raise ConfigurationError(
            f"Run folder {folder} already holds a run; wanted a new name. Go on with it by --resume, replace it by "
            "--overwrite, or give another --name."
        )
    known = kept.read_text(encoding="utf-8").strip() if kept.is_file() and not overwrite else ""
    return known or f"{folder.name}-{uuid.uuid4().hex[:8]}", {}


def keep_id(folder: Path, run_id: str) -> None:
    """Writes down the name of a run that is about to pay for its first call. A run that is there stays as it is: it is
    resumed, or to be replaced, and whatever replaces it is a new run each time."""
    if (folder / "config.json").exists():
        return
    make_folder(folder)
    with writing(folder):
        replace_text(folder / RUN_ID, run_id + "\n")


def _resumed(config: Path) -> tuple[str, dict[str, Any]]:
    if not config.exists():
        raise ResourceNotFoundError(
            f"Run folder {config.parent} holds no run to resume; leave --resume out to start one."
        )
    if damaged := {MANIFEST, *BEGUN_WITH}.intersection(damaged_records(config.parent)):
        raise ResumeError(
            f"File {config.parent / min(damaged)} is damaged (it is not as the run left it); wanted the settings that "
            f"the run began with. Begin again with --overwrite, or remove {MANIFEST} to go on with what is there."
        )
    try:
        stored = json.loads(config.read_text(encoding="utf-8"))
        return str(stored.pop("run_id")), without_speed(stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResumeError(
            f"File {config} is damaged ({type(error).__name__}: {error}); wanted the settings that the run began with "
            "and its run_id. Begin again with --overwrite, or with another --name."
        ) from error


def _train(run: _Run) -> TrainResult:
    """Trains the run's policy."""
    from rankwright.training import train

    settings, splits, algorithm = run.settings, run.splits, run.algorithm
    reads = algorithm.reads_per_question(max((len(example.candidates) for example in splits.train), default=0))
    questions = settings.loop.batch_size * settings.loop.accumulation

    def begin() -> None:
        """Only now, with data, settings and reader found good, may an earlier result go."""
        config = {"run_id": run.run_id, **settings_tree(settings)}
        _begin_folder(run.folder, config, run.environment, passages_text(splits.passages), run.resume)

    with training_bar() as tell:
        return train(
            run.policy,
            run.reference,
            algorithm,
            splits.train,
            settings.loop,
            run.folder,
            seed=settings.seed,
            score_dev=run.score_dev,
            settings=run.deciding,
            resume=run.resume,
            callbacks=[_on_begin(begin)],
            on_step=teller(tell, reads * questions, algorithm.inner_epochs),
            may_go_on=run.budget.training,
        )


def _check_beginning(settings: RunSettings) -> None:
    """Whether a run can begin, as far as model and training arguments show before anything is loaded or paid for.

    Raises:
        RankwrightError: it cannot.
    """
    from rankwright.training import check_arguments

    _check_start(settings)
    check_arguments(settings.loop, settings.model.device)


def _check_start(settings: RunSettings) -> None:
    """Whether there may be a model to start from, by its files alone.

    Raises:
        RankwrightError: there is none.
    """
    from rankwright.rerankers import check_named
    from rankwright.rerankers.onnx_folder import is_export

    name = settings.model.name
    if is_export(name):
        raise ConfigurationError(
            f"Model {name} is an export for ONNX Runtime, which cannot learn; wanted a model of PyTorch. Name the "
            "folder that it was exported from."
        )
    check_named(name)


def starting_model(settings: RunSettings) -> Any:
    """What the run starts from, and is compared with."""
    from rankwright.rerankers import load

    model = settings.model
    _check_start(settings)
    loaded: Any = load(model.name, device=processes.own_device(model.device), max_length=model.max_length or None)
    loaded.warns_of_cut = False  # tell_of_cut says it in the end
    if model.template:
        loaded.template = model.template
    return loaded


def policy_of(settings: RunSettings) -> Any:
    """The starting model with what is to learn in it free."""
    policy = starting_model(settings)
    if settings.model.lora_rank:
        policy.add_lora(settings.model.lora_rank, settings.model.lora_alpha, seed=settings.seed)
    return policy


def learning(settings: RunSettings, splits: Splits, reader: Reader | None, reward: Reward) -> tuple[Any, Any]:
    """What learns, and what scores dev."""
    from rankwright.algorithms import RRPO, Supervised
    from rankwright.training import dev_scorer, label_scorer

    if reader is None:  # RunSettings sees to it that this is no RRPO
        return Supervised(), label_scorer(splits.dev)
    allowed = settings.rrpo.max_failed_reads
    score_dev = dev_scorer(splits.dev, reader, reward, settings.top_k, max_failed_reads=allowed)
    return RRPO(settings.rrpo, reader, reward, settings.seed) if settings.method == "rrpo" else Supervised(), score_dev


HOW_FAST = (
    "cache",
    "concurrency",
    "requests_per_minute",
    "tokens_per_minute",
    "api_key_env",
    "price_input",
    "price_output",
    "deadline",
    "attempt_timeout",
    "max_retries",
)
"""Settings of reader and expansion that may change between sessions: they decide how fast answers come, not which."""


MAY_CHANGE = ("budget", "max_failed_reads")
"""Settings that say when a run stops or is not reported, and nothing of what it comes to."""


def without_speed(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of settings, less those that may change between sessions."""
    return {
        **{name: part for name, part in tree.items() if name not in MAY_CHANGE and (part or name != "reward_options")},
        "reader": {name: value for name, value in tree["reader"].items() if name not in HOW_FAST},
        "expansion": {n: value for n, value in tree["expansion"].items() if n not in (*HOW_FAST, "max_failed")},
        "loop": {name: value for name, value in tree["loop"].items() if name != "stop_on_alarm"},
        "rrpo": {name: value for name, value in tree["rrpo"].items() if name != "max_failed_reads"},
        "grpo": {name: value for name, value in tree["grpo"].items() if name not in GRPO_MAY_CHANGE},
    }


def _deciding(settings: RunSettings, splits: Splits, reader: Reader | None, reference: Any) -> dict[str, Any]:
    """All that decides a run's result, for the check of --resume: settings, and hashes of what they point to."""
    weights = hashlib.sha256()
    for name, tensor in reference.state_dict().items():
        weights.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return {
        "run": without_speed(settings_tree(settings)),
        "training questions": digest_of(splits.train),
        "dev questions": digest_of(splits.dev),
        "first stage": splits.retriever,
        "reader": reader.name if reader else "none",
        "file of the reward": file_of_reward(settings.reward),
        "starting weights": weights.hexdigest()[:16],
    }


def file_of_reward(spec: str) -> str:
    """Hash of the file that the user's reward function stands in; empty for rewards of our own. What that file imports
    is not seen."""
    from rankwright.backbone import sha256_file

    module, colon, _ = spec.partition(":")  # imported when the reward was resolved
    origin = getattr(sys.modules.get(module), "__file__", None) if colon else None
    return sha256_file(Path(origin))[:16] if origin and Path(origin).is_file() else ""


def _on_begin(work: Callable[[], None]) -> Any:
    """A callback of the Trainer that does the work when training begins."""
    from transformers import TrainerCallback

    class Begin(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            work()

    return Begin()


def teller(tell: Any, reads_per_rollout: int, inner_epochs: int = 1) -> Any:
    """Progress of the training: reward, dev score and how many reader calls its steps may still cost (dev and
    comparison read too)."""
    last: dict[str, float] = {}

    def on_step(step: int, steps: int, logs: Mapping[str, float]) -> None:
        last.update({k: v for k, v in logs.items() if k in ("reward", "reference_reward", "eval_reward", "loss")})
        parts = [
            f"{label} {last[key]:.3f}"
            for key, label in (
                ("reward", "reward"),
                ("reference_reward", "reference"),
                ("eval_reward", "dev"),
                ("loss", "loss"),
            )
            if key in last
        ]
        if reads_per_rollout:
            rollouts = (steps - step) // inner_epochs
            parts.append(f"at most {rollouts * reads_per_rollout} reader calls left in training")
        tell(step, steps, ", ".join(parts))

    return on_step


def rankers(splits: Splits, reference: Any, policy: Any) -> dict[str, Reranker]:
    """What the comparison puts beside each other, by name."""
    compared: dict[str, Reranker] = {FirstStage.name: FirstStage(), REFERENCE_ROW: reference, TRAINED_ROW: policy}
    if any(has_relevant(example.relevance) for example in splits.test):
        compared[GoldFirst.name] = GoldFirst(splits.test)
    return compared


def _compare(
    settings: RunSettings,
    splits: Splits,
    reader: Reader | None,
    reference: Any,
    policy: Any,
    may_read: Callable[[Sequence[Context]], None] | None = None,
) -> tuple[Evaluation, int]:
    """Reference and trained model on the test questions, and answers that the cache gave."""
    with progress_bars() as progress, _resumable():
        evaluation = evaluate(
            rankers(splits, reference, policy),
            splits.test,
            reader=reader,
            may_read=may_read,
            top_k=settings.top_k,
            depth=settings.data.eval_depth,
            baseline=REFERENCE_ROW,
            seed=settings.seed,
            set_name=splits.name,
            retriever=splits.retriever,
            skipped=splits.skipped,
            max_failed=settings.max_failed_reads,
            progress=progress,
        )
    # Models that put equal passages first share one read, which must count once.
    hits = {
        (query_id, model.rankings[query_id].doc_ids[: settings.top_k])
        for model in evaluation.models.values()
        for query_id, read in model.reads.items()
        if isinstance(read, Answer) and not read.paid
    }
    return evaluation, len(hits)


def tested(test: PairedTest | None) -> dict[str, Any]:
    """The part of result.json that a comparison makes; None where nothing was compared."""
    return {
        "n": test.n if test else 0,
        "delta": test.delta if test else None,
        "ci_low": test.ci_low if test else None,
        "ci_high": test.ci_high if test else None,
        "p_value": test.p if test else None,
        "verdict": verdict(test) if test else "not shown",
    }


def _result(settings: RunSettings, evaluation: Evaluation, trained: Any, calls: int, hits: int) -> dict[str, Any]:
    metric = evaluation.headline_metric
    test = evaluation.test(TRAINED_ROW, REFERENCE_ROW, metric)

    def mean(name: str, of: str) -> float | None:
        score = evaluation.scores[name].get(of)
        return score.mean if score else None

    return {
        "metric": metric,
        "seed": settings.seed,
        "f1_reference": mean(REFERENCE_ROW, "F1"),
        "f1_trained": mean(TRAINED_ROW, "F1"),
        "reference": mean(REFERENCE_ROW, metric),
        "trained": mean(TRAINED_ROW, metric),
        **tested(test),
        "reader_calls": calls,
        "cache_hits": hits,
        "failed_reads": trained.failed_reads,
        "skipped": evaluation.settings.skipped,
        **evaluation.counted_reads(),
        "seconds": round(trained.seconds, 1),
        "seconds_by_part": {part: round(seconds, 1) for part, seconds in trained.seconds_by_part.items()},
        "steps": trained.steps,
        "best_step": trained.best_step,
        "dev_before": trained.dev_before,
        "dev_best": trained.dev_best,
        "stopped_early": trained.stopped_early,
        "alarms": [asdict(alarm) for alarm in trained.alarms],
        "signature": evaluation.signature,
    }


def environment_record(command: str, folder: Path, resume: bool) -> dict[str, Any]:
    """What a run keeps of how it was begun, and with which packages its last session ran."""
    packages = {}
    for package in ("torch", "transformers", "accelerate", "peft", "trl", "bm25s", "numpy", "openai"):
        try:
            packages[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            packages[package] = "not installed"
    return {
        "command": command or f"rankwright train --name {folder.name}",
        "rankwright": rankwright.__version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processes": processes.count(),
        "packages": packages,
        **(_beginning(folder) if resume else {}),
    }


def _beginning(folder: Path) -> dict[str, Any]:
    """Command and number of processes with which a run began, as far as they are there and whole; the present ones
    have to do for the others."""
    try:
        kept = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    kinds = {"command": str, "processes": int}
    return {name: kept[name] for name, kind in kinds.items() if isinstance(kept, dict) and type(kept.get(name)) is kind}


def verdict_line(result: Mapping[str, Any]) -> str:
    """The last word of a run, for people."""
    words = {
        "better": "is BETTER than its reference",
        "not shown": "shows NO DIFFERENCE to its reference",
        "worse": "is WORSE than its reference: do not use it",
    }
    if result["delta"] is None:
        return "No question could be compared."
    return (
        f"The trained model {words[result['verdict']]}: {result['metric']} {result['reference']:.3f} -> "
        f"{result['trained']:.3f} "
        f"({result['delta']:+.3f}, 95 % interval {result['ci_low']:+.3f} to {result['ci_high']:+.3f}, p = "
        f"{result['p_value']:.4f}, "
        f"n = {result['n']})."
    )


FREE_RECORD = {"price": 0.0, "known_price": 0.0, "unpriced_calls": 0}
"""The price of reads on this machine, whatever a ledger has that others write, too."""
FEW = 30
"""Questions; below, one answer moves the mean by more than most gains are."""


def _warn_of_few(splits: Splits) -> None:
    """Dev and test sides on which nothing can be told."""
    sides = {"dev": len(splits.dev), "test": len(splits.test)}
    if few := [f"{count} {side}" for side, count in sides.items() if count < FEW]:
        say(
            f"Warning: only {' and '.join(few)} questions; wanted {FEW} or more of each, or chance decides. Give more "
            "questions, or files of your own with --dev and --test."
        )


def show(outcome: RunOutcome, next_step: str = "") -> None:
    """Table, where things are, verdict and next step, on standard error; after the verdict *worse* comes nothing."""
    from rankwright.cli.common import console

    result = outcome.result
    console.print(score_table(outcome.evaluation))
    say(f"Signature {result['signature']}")
    say(
        f"Reader calls {result['reader_calls']}, cache hits {result['cache_hits']}, training {result['seconds']:.0f} s."
    )
    if result["failed_reads"]:
        say(
            f"In training and on dev {result['failed_reads']} reads failed or got no reward; nothing was learned from "
            "them."
        )
    for name, count in result["n_failed"].items():
        if count:
            say(f"{name}: {count} of {outcome.evaluation.n} reads failed; they are missing from its means.")
    if result["skipped"]:
        say(f"{result['skipped']} bad rows were skipped.")
    if result["alarms"]:
        told = ", ".join(f"{alarm['name']} (step {alarm['step']})" for alarm in result["alarms"])
        say(f"Alarms while training: {told}. The report says what was seen, the likely cause and what to turn.")
    say(f"Report {outcome.folder / 'report.html'}   model {outcome.folder / 'model'}")
    if unchanged(result):
        say("On dev no checkpoint was better than the starting weights: the model is its reference, unchanged.")
    say(verdict_line(result))
    if next_step and result["verdict"] != "worse":
        say(next_step)
