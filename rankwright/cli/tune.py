"""`train --method grpo|sft`: one tuning run from settings to a saved model, with what it came to on questions that it
was not trained on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rankwright import processes
from rankwright.algorithms.grpo import PromptRows, TRLReward, order_of, prompt_rows
from rankwright.algorithms.targets import label_order, targets
from rankwright.backbone import sha256_file
from rankwright.checkpoints import alone_in
from rankwright.cli.build import (
    Splits,
    build_reader,
    checked_device,
    counted_store,
    load_splits,
    open_store,
    quiet_bars,
)
from rankwright.cli.card import tuned_card
from rankwright.cli.common import WORSE_EXIT_CODE, say, training_bar
from rankwright.cli.costs import spent_on_expansion
from rankwright.cli.expansion import PASSAGES_FILE, passages_text, read_passages
from rankwright.cli.generating_costs import budget, check_questions, placed
from rankwright.cli.llm import shortener
from rankwright.cli.rewards import answer_reward_of, reference_file, written_reward_of
from rankwright.cli.run import (
    REFERENCE_ROW,
    RUN_ID,
    TRAINED_ROW,
    checked_run_id,
    clear_outcome,
    environment_record,
    expansion_record,
    file_of_reward,
    has_begun,
    keep_id,
    rankers,
    run_folder,
    teller,
    tested,
    verdict_line,
    without_speed,
    write_results,
    writing,
)
from rankwright.cli.settings import RunSettings, settings_tree
from rankwright.data.files import replace_text
from rankwright.errors import LimitReachedError, ModelError
from rankwright.evaluation import Evaluation, KnownOrder, check_examples, digest_of, evaluate
from rankwright.llms.endpoint import check_model_place
from rankwright.llms.folders import fetched
from rankwright.manifests import ENVIRONMENT
from rankwright.metrics.ranking import has_relevant, ranking_metrics
from rankwright.prompts.ranking import RankingPrompt, load_ranking_prompt
from rankwright.reporting.again import begun_with
from rankwright.rerankers.generating import default_sampling
from rankwright.rewards.pools import ERank
from rankwright.types import Completion, Example, Ranking, Reader, Scores

METRIC = "nDCG@10"
BEFORE = "before.json"
"""In the run folder: how the start did on the test questions."""


def run_tuning(
    settings: RunSettings, name: str, *, resume: bool = False, overwrite: bool = False, command: str = ""
) -> dict[str, Any]:
    """Tunes a language model and writes runs/NAME: config, log, checkpoints, model/ with its card and the prompt that
    it was trained with, result.json, and where it was scored evaluation.json and report.html.

    Returns the content of result.json: nDCG@10 of the test questions before and after, over the first
    `generating.window` candidates of each, with interval and test of the difference.

    Raises:
        LimitReachedError: a limit of the run could be exceeded, or --max-hours is over.
        RankwrightError: settings, data or the run folder are not as wanted.
    """
    folder, settings = run_folder(name), placed(settings)
    check_model_place(settings.model.name)
    checked_device(settings.model.device)
    processes.meet(settings.model.device)
    quiet_bars()
    with processes.held_by_first(lambda: alone_in(folder)):
        return _run_alone(settings, name, folder, resume, overwrite, command)


def _run_alone(
    settings: RunSettings, name: str, folder: Path, resume: bool, overwrite: bool, command: str
) -> dict[str, Any]:
    """The run, in a folder that no other process writes."""
    if settings.method == "grpo" and ":" in settings.reward:
        answer_reward_of(settings) if settings.asks_reader else written_reward_of(settings, None)  # imported now
    run_id, splits, resume = processes.from_first(lambda: _loaded(settings, folder, resume, overwrite))
    work = processes.in_each(lambda: check_run(settings, splits))
    environment = environment_record(command, folder, resume)
    if not processes.rank():
        _begin(folder, settings, run_id, passages_text(splits.passages), environment, resume)
    say(f"{len(splits.train)} training, {len(splits.dev)} dev, {len(splits.test)} test questions; run folder {folder}")
    ranked = len(work.labelled(splits.test))
    if ranked and not resume:
        say(f"The {ranked} test questions with labels are ranked by the start first.")
    before = processes.from_first(lambda: work.before(folder))
    with _reader(settings, run_id) as reader:
        tuned = work.tuned(folder, resume, reader)
    if tuned.stopped:
        with processes.alike():
            raise LimitReachedError(
                f"--max-hours {settings.budget.hours:g} is over at step {tuned.steps}. All is saved there: go on by "
                "the same command with --resume and a higher limit."
            )
    if ranked:
        say(f"The {ranked} test questions are ranked by the trained model.")
    after = processes.from_first(lambda: work.values(tuned.model, splits.test))
    if not processes.rank():
        from rankwright.tuning import save_tuned

        with writing(folder):
            save_tuned(tuned, work.tokenizer, folder / "model")
            work.prompt_to_keep().save(folder / "model")
    evaluation = work.evaluation(before, after)
    result = {**_compared(before, after, evaluation), "steps": tuned.steps, "seconds": round(tuned.seconds, 1)}
    result |= {"seed": settings.seed, "method": settings.method, "prompt": work.prompt.version}
    result["expansion"] = processes.from_first(lambda: _expansion(settings, splits, run_id))
    if not processes.rank():
        kind = work.prompt.kind
        card = tuned_card(settings, splits, evaluation, result, outcome_line(result), begun_with(environment), kind)
        record = {"config": settings_tree(settings), "environment": environment, "result": result}
        with writing(folder):
            write_results(folder, name, evaluation, card, record)
    return result


def check_run(settings: RunSettings, splits: Splits) -> _Work:
    """What a run works with, where nothing speaks against it that shows before its model is loaded.

    Raises:
        RankwrightError: something does.
    """
    from rankwright.training import check_arguments

    check_questions(settings, splits)
    check_arguments(settings.loop, checked_device(settings.model.device))
    work = _Work.of(settings, splits)
    work.check()
    return work


def exit_code_of(result: Mapping[str, Any]) -> int:
    """0, or 8 where the tuned model is worse than what it started from."""
    return WORSE_EXIT_CODE if result["verdict"] == "worse" else 0


def show(result: Mapping[str, Any], name: str) -> None:
    """The outcome, on standard error."""
    folder = run_folder(name)
    say(f"Model {folder / 'model'}, {result['steps']} steps in {result['seconds']:.0f} s.")
    if result["delta"] is not None:
        say(f"Report {folder / 'report.html'}   signature {result['signature']}")
    say(outcome_line(result))


def outcome_line(result: Mapping[str, Any]) -> str:
    """The last word of a run, for people."""
    if result["delta"] is None:
        return (
            "Nothing was compared, so there is no evaluation.json and no report: no test question has labels, or the "
            "prompt's answer is no text. rankwright eval --llm compares the model with its start."
        )
    malformed = f"Malformed {result['malformed_reference']:.1%} -> {result['malformed_trained']:.1%}."
    return f"{verdict_line(result)} {malformed}"


@dataclass(frozen=True)
class _Values:
    """How a model does on questions."""

    rankings: Mapping[str, Ranking]
    """Question -> its first candidates as the model orders them."""
    malformed: float
    """Share of completions."""


@dataclass(frozen=True)
class _Work:
    """What a tuning needs besides its folder."""

    settings: RunSettings
    splits: Splits
    tokenizer: Any
    prompt: RankingPrompt
    rows: PromptRows

    @classmethod
    def of(cls, settings: RunSettings, splits: Splits) -> _Work:
        """Loads tokenizer and prompt, and makes the prompt rows."""
        tokenizer = _tokenizer(settings.model.name)
        prompt = _prompt(settings, tokenizer)
        rows = prompt_rows(splits.train, prompt, settings.generating.window, shorter=True)
        work = cls(settings, splits, tokenizer, prompt, rows)
        return work.fitted() if settings.generating.shorten_to_fit else work

    def fitted(self) -> _Work:
        """The same with the passages of prompts that are too long shortened until they fit; says how many were."""
        from rankwright.tuning import positions_of, prompt_text

        settings, tokenizer = self.settings, self.tokenizer
        learned = settings.sft.max_length if settings.method == "sft" else 0
        whole = min(learned or math.inf, positions_of(settings.model.name))
        most = min(whole - self._longest_answer, settings.generating.max_prompt_length or whole)

        def fits(messages: Sequence[tuple[str, str]]) -> bool:
            return len(tokenizer(prompt_text(tokenizer, messages), add_special_tokens=False)["input_ids"]) <= most

        prompt = replace(self.prompt, fits=fits)
        rows = prompt_rows(self.splits.train, prompt, settings.generating.window, shorter=True)
        short = sum(one.messages != other.messages for one, other in zip(rows.rows, self.rows.rows, strict=True))
        if short:
            say(
                f"{short} of {len(rows.rows)} training prompts had more than {most} tokens; their passages were "
                "shortened alike until they fit (generating.shorten_to_fit)."
            )
        return replace(self, prompt=prompt, rows=rows)

    def check(self) -> None:
        """What would end the run otherwise once hours are spent: prompts that are too long, a reward that lacks a
        document.

        Raises:
            ConfigurationError: a prompt does not fit beside its answer; completions cannot be divided.
            DataError: a reference score is missing.
            MissingDependencyError: TRL is not there, or vLLM where it is to generate.
        """
        from rankwright.tuning import check_generation, check_prompt_lengths, check_taught_lengths, plan_of

        settings = self.settings
        model, most = settings.model.name, settings.generating.max_prompt_length
        training = [row.messages for row in self.rows.rows]
        if settings.method == "grpo":
            check_generation(settings.grpo)
            plan_of(settings.grpo, settings.loop, self.rows.questions, self.rows.per_question)
            check_prompt_lengths(self.tokenizer, training, settings.grpo.max_completion_length, most, model)
            reward = None if settings.asks_reader or ":" in settings.reward else written_reward_of(settings, None)
            if isinstance(reward, ERank):
                reward.check_reference(
                    (row.example.query.query_id, document.doc_id)
                    for row in self.rows.rows
                    for document in row.documents
                )
        else:
            check_prompt_lengths(self.tokenizer, training, 0, most, model)
            check_taught_lengths(self.tokenizer, self._taught, settings.sft, model)
        for side, examples in (("dev", self.splits.dev), ("test", self.splits.test)):
            labelled = self.labelled(examples)
            if labelled:
                check_examples(labelled, with_answers=False)
                rows = prompt_rows(labelled, self.prompt, settings.generating.window, shorter=True)
                shown = [row.messages for row in rows.rows]
                check_prompt_lengths(self.tokenizer, shown, self._longest_answer, 0, model, side)

    def prompt_to_keep(self) -> RankingPrompt:
        """The prompt that ranks with the trained model: with as many tokens for an answer as it learned to write, where
        it would ask for fewer. One that reads probabilities reads them at a place of its own."""
        most = self.settings.grpo.max_completion_length
        if self.settings.method != "grpo" or self.prompt.needs_logprobs:
            return self.prompt
        return self.prompt.answering(most) if most > int(self._sampling.get("max_tokens", most)) else self.prompt

    @property
    def _sampling(self) -> dict[str, Any]:
        return default_sampling(self.prompt)

    def before(self, folder: Path) -> _Values:
        """How the start does on the test questions; a session that goes on takes what the first one found."""
        kept, key = folder / BEFORE, {**self._deciding(), "test questions": digest_of(self.splits.test)}
        if kept.is_file():
            found = json.loads(kept.read_text("utf-8"))
            if found["of"] == key and "orders" in found:
                orders = found["orders"].items()
                return _Values({query_id: _ranking(query_id, ids) for query_id, ids in orders}, found["malformed"])
        values = self.values(self._started(), self.splits.test)
        orders = {query_id: ranking.doc_ids for query_id, ranking in values.rankings.items()}
        record = {"of": key, "orders": orders, "malformed": values.malformed}
        replace_text(kept, json.dumps(record) + "\n")
        return values

    def _started(self) -> Any:
        """The model before training."""
        import torch
        from transformers import AutoModelForCausalLM

        name = self.settings.model.name
        with fetched(name):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
        return loaded.to(processes.own_device(self.settings.model.device))

    def tuned(self, folder: Path, resume: bool, reader: Reader | None) -> Any:
        """Trains."""
        from rankwright.tuning import LoRA, tune_by_completions, tune_by_reward

        settings = self.settings
        model, generating = settings.model, settings.generating
        lora = LoRA(model.lora_rank, model.lora_alpha, generating.lora_dropout, generating.lora_targets)
        more: dict[str, Any] = {
            "generating": generating,
            "lora": lora if model.lora_rank else None,
            "seed": settings.seed,
            "device": model.device,
            "resume": resume,
            "score": self._dev_score if self._can_be_scored else None,
            "seconds": settings.budget.hours * 3600 or float("inf"),
            "settings": self._deciding(),
        }
        with training_bar() as tell:
            more["on_step"] = teller(tell, 0)
            if settings.method == "grpo":
                reward = TRLReward(written_reward_of(settings, reader), self.prompt, self.rows, settings.grpo.rollouts)
                return tune_by_reward(model.name, self.tokenizer, reward, settings.grpo, settings.loop, folder, **more)
            return tune_by_completions(
                model.name, self.tokenizer, self._taught, settings.sft, settings.loop, folder, **more
            )

    @cached_property
    def _taught(self) -> list[Any]:
        """What supervised fine-tuning teaches."""
        from rankwright.tuning import Taught

        return [
            Taught(row.messages, said, tuple(names[i] for i in label_order(row.documents, row.example)))
            for row, said in zip(self.rows.rows, targets(self.rows, self.prompt), strict=True)
            for names in [self.prompt.identifiers(len(row.documents))]
        ]

    def _deciding(self) -> dict[str, Any]:
        """What of settings and data decides the result, for the check of --resume."""
        settings, tree = self.settings, settings_tree(self.settings)
        reference = reference_file(settings)
        return {
            "model": tree["model"],
            "generating": tree["generating"],
            "reward": settings.reward,
            "reward_options": dict(settings.reward_options),
            "file of the reward": sha256_file(reference)[:16] if reference else file_of_reward(settings.reward),
            "reader": without_speed(tree)["reader"] if settings.asks_reader else {},
            "prompt": self.prompt.version,
            "training questions": digest_of(self.splits.train),
            "first stage": self.splits.retriever,
            "completions": self._taught_digest() if settings.method == "sft" else "",
        }

    def _taught_digest(self) -> str:
        """Hash of what is taught: a teacher's orders and thoughts are no part of the questions' own."""
        return hashlib.sha256(json.dumps(targets(self.rows, self.prompt)).encode()).hexdigest()[:16]

    @property
    def _can_be_scored(self) -> bool:
        """Whether words alone say what the model judges."""
        return self.prompt.parser != "first-token"

    def _dev_score(self, model: Any) -> dict[str, float]:
        found = self.values(model, self.splits.dev)
        relevance = {example.query.query_id: example.relevance for example in self.labelled(self.splits.dev)}
        scores = list(ranking_metrics(found.rankings.values(), relevance, [METRIC])[METRIC].values())
        return {"eval_malformed": found.malformed} | ({"eval_reward": sum(scores) / len(scores)} if scores else {})

    def labelled(self, examples: Sequence[Example]) -> list[Example]:
        """The questions on which a model is scored: none where words do not say what it judges."""
        return [example for example in examples if self._can_be_scored and has_relevant(example.relevance)]

    @cached_property
    def _longest_answer(self) -> int:
        """Tokens that a completion may have where the model is scored: with GRPO as many as in training, with SFT half
        as many again as the longest one that is taught."""
        if self.settings.method == "grpo":
            return self.settings.grpo.max_completion_length
        taught = self.tokenizer(targets(self.rows, self.prompt), add_special_tokens=False)["input_ids"]
        return 16 + 3 * max(map(len, taught)) // 2

    def values(self, model: Any, examples: Sequence[Example]) -> _Values:
        """The orders that greedy completions say, and how many are malformed."""
        from rankwright.tuning import greedy

        labelled = self.labelled(examples)
        if not labelled:
            return _Values({}, 0.0)
        window, most = self.settings.generating.window, self._longest_answer
        rows = prompt_rows(labelled, self.prompt, window, shorter=True)
        written = greedy(model, self.tokenizer, [row.messages for row in rows.rows], most)
        judged = [
            self.prompt.parse(Completion(text), len(row.documents), strict=self.prompt.needs_logprobs)
            for text, row in zip(written, rows.rows, strict=True)
        ]
        rankings = {}
        for start in range(0, len(judged), rows.per_question):
            row, found = rows.rows[start], judged[start : start + rows.per_question]
            documents = row.example.candidates[:window]
            whole = found[0]
            if self.prompt.kind == "pointwise":
                whole = Scores(tuple(one.values[0] if isinstance(one, Scores) else None for one in found))
            order = order_of(whole, len(documents))
            query_id = row.example.query.query_id
            rankings[query_id] = _ranking(query_id, [documents[i].doc_id for i in order])
        return _Values(rankings, sum(judgement.outcome == "malformed" for judgement in judged) / len(judged))

    def evaluation(self, before: _Values, after: _Values) -> Evaluation | None:
        """Start and tuned model on the test questions; None where nothing was ranked."""
        ranked = [example for example in self.splits.test if example.query.query_id in before.rankings]
        if not ranked:
            return None
        settings, splits = self.settings, replace(self.splits, test=ranked)
        models = (
            KnownOrder(name, {query_id: ranking.doc_ids for query_id, ranking in values.rankings.items()})
            for name, values in ((REFERENCE_ROW, before), (TRAINED_ROW, after))
        )
        window = settings.generating.window
        return evaluate(
            rankers(splits, *models),
            ranked,
            top_k=min(settings.top_k, window),
            depth=window,
            baseline=REFERENCE_ROW,
            seed=settings.seed,
            set_name=splits.name,
            retriever=splits.retriever,
            skipped=splits.skipped,
        )


def _ranking(query_id: str, doc_ids: Sequence[str]) -> Ranking:
    """Documents in this order, with their places as scores."""
    return Ranking(query_id, tuple(doc_ids), tuple(map(float, range(len(doc_ids), 0, -1))))


def _tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    try:
        with fetched(model):
            tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False, padding_side="left")
    except Exception as error:  # whatever a folder that does not fit makes transformers raise
        from rankwright.rerankers.scoring import first_line

        raise ModelError(
            f"Model '{model}' has no tokenizer that opens ({first_line(error)}); wanted a folder or hub name of a "
            "causal language model with its tokenizer. Check the name and the connection, or save the tokenizer there "
            "with save_pretrained."
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _prompt(settings: RunSettings, tokenizer: Any) -> RankingPrompt:
    """The prompt with the passages as long as the settings say."""
    prompt, generating = load_ranking_prompt(settings.generating.prompt), settings.generating
    if not generating.passage_limit:
        return prompt
    return prompt.limited(generating.passage_limit, generating.passage_unit, shortener(tokenizer))


@contextlib.contextmanager
def _reader(settings: RunSettings, run: str) -> Any:
    """The reader with its cache, where the reward asks one; of several processes the first one alone has it."""
    if not settings.asks_reader or processes.rank():
        yield _Elsewhere() if settings.asks_reader else None
        return
    with counted_store(settings.reader.cache, run) as store:
        yield build_reader(settings.reader, store, run, settings.model.device)


class _Elsewhere:
    """The reader of a process that asks none."""

    name = "read by the first process"

    def answer(self, contexts: Sequence[Any]) -> list[Any]:
        raise AssertionError("Only the first process reads.")


def _loaded(settings: RunSettings, folder: Path, resume: bool, overwrite: bool) -> tuple[str, Splits, bool]:
    """Name of the run's calls in the ledger, its questions, for which query expansion is paid here, and whether there
    is anything to go on from.

    Raises:
        RankwrightError: the run cannot begin; before that is paid, as far as it shows.
    """
    resume = resume and has_begun(folder)
    run_id = checked_run_id(folder, settings, resume, overwrite)

    def before_paying(plain: Splits, asked: Sequence[str]) -> None:
        from rankwright.training import check_arguments

        check_questions(settings, plain)
        check_arguments(settings.loop, settings.model.device)
        _check_limits(settings, plain, run_id, len(asked))
        _prompt(settings, _tokenizer(settings.model.name))
        if settings.method == "grpo":
            from rankwright.tuning import check_generation

            check_generation(settings.grpo)
        keep_id(folder, run_id)

    known = read_passages(folder) if resume else None
    splits = load_splits(settings, run_id, known, before_paying=before_paying)
    _check_limits(settings, splits, run_id)
    return run_id, splits, resume


def _check_limits(settings: RunSettings, splits: Splits, run_id: str, ahead: int | None = None) -> None:
    """Whether the bounds of the whole run keep its limits: inside a run, calls are not held against them.

    Args:
        settings: of the run.
        splits: its questions.
        run_id: name of its calls in the ledger.
        ahead: calls that query expansion is about to make, before which the candidates are not known, and so the cost
            of reading them is not.

    Raises:
        LimitReachedError: they do not.
    """
    limits = settings.budget
    if not (limits.reader_calls or limits.cost):
        return
    bounds, (passages, paid) = budget(settings, splits), _spent_on_expansion(settings, splits, run_id)
    passages += ahead or 0
    price = None if bounds["price"] is None else bounds["price"] + paid
    priced = "unknown" if price is None else f"{price:.4f}"
    over = limits.reader_calls and bounds["reader_calls"] + passages > limits.reader_calls
    if over or (limits.cost and ahead is None and (price is None or price > limits.cost)):
        besides = f" and {passages} of query expansion" if passages else ""
        raise LimitReachedError(
            f"The run could make {bounds['reader_calls']} reader calls{besides} at a price of {priced}; "
            f"--max-reader-calls {limits.reader_calls} and --max-cost {limits.cost:g} (0 sets no limit) allow less. "
            "Training has not begun: give higher limits, or lower loop.epochs or grpo.rollouts."
        )


def _spent_on_expansion(settings: RunSettings, splits: Splits, run_id: str) -> tuple[int, float]:
    """Calls so far, and their price."""
    if not settings.expansion.wanted:
        return 0, 0.0
    with open_store(settings.reader.cache) as store:
        return spent_on_expansion(settings, list(splits.passages), store, run_id)


def _expansion(settings: RunSettings, splits: Splits, run_id: str) -> dict[str, Any] | None:
    """What query expansion came to and cost; None without it."""
    if not splits.passages:
        return None
    with open_store(settings.reader.cache) as store:
        return expansion_record(splits, store, run_id)


def _begin(
    folder: Path, settings: RunSettings, run_id: str, passages: str, environment: Mapping[str, Any], resume: bool
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / ENVIRONMENT, json.dumps(environment, indent=2) + "\n")
    if resume:
        return
    clear_outcome(folder)  # one that is refused, for settings that changed, loses nothing
    for stale in (BEFORE, PASSAGES_FILE):
        (folder / stale).unlink(missing_ok=True)
    if passages:  # like the environment before config.json, with which the run can be resumed
        replace_text(folder / PASSAGES_FILE, passages)
    config = {"run_id": run_id, **settings_tree(settings)}
    replace_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    (folder / RUN_ID).unlink(missing_ok=True)


def _compared(before: _Values, after: _Values, evaluation: Evaluation | None) -> dict[str, Any]:
    """Means, difference, interval, test and verdict over the questions of both."""
    malformed = {"malformed_reference": before.malformed, "malformed_trained": after.malformed}
    if evaluation is None:
        return {"metric": METRIC, **tested(None), REFERENCE_ROW: None, TRAINED_ROW: None, **malformed}
    means = {name: evaluation.scores[name][METRIC].mean for name in (REFERENCE_ROW, TRAINED_ROW)}
    test = evaluation.test(TRAINED_ROW, REFERENCE_ROW, METRIC)
    told = {"skipped": evaluation.settings.skipped, "signature": evaluation.signature_of(METRIC)}
    return {"metric": METRIC, **tested(test), **means, **malformed, **told}
