"""A language model as a reranker, out of the options of a verb: who is asked, with which prompt, by which strategy."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from rankwright.bulk import Calls
from rankwright.cli.build import Role, build_llm, command_run, counted_store
from rankwright.cli.common import progress_bars, say
from rankwright.cli.settings import ReaderSettings, filled, load_reader_settings, validated
from rankwright.errors import ConfigurationError
from rankwright.llms.cache import CachedLLM
from rankwright.llms.endpoint import bare_place, check_sampling_names, model_place
from rankwright.prompts.ranking import PROMPT_FILE, RankingPrompt, load_ranking_prompt
from rankwright.rerankers.generating import LLMPolicy
from rankwright.strategies import (
    BubbleSort,
    CallCounts,
    Fused,
    Groupwise,
    HeapSort,
    LLMReranker,
    Pointwise,
    Sliding,
    Strategy,
    StrategyReport,
    TopK,
    largest_window,
)
from rankwright.types import LLM, Ranking, Reranker, RerankRequest

LLM_ROLE = Role("Language model", "--llm", "--llm-model")


class Way(NamedTuple):
    """A strategy by its name on the command line."""

    strategy: type[Any]
    """Its fields are its settings."""
    prompt: str
    """The shipped prompt that it takes where none is given."""
    kinds: tuple[str, ...]
    """Kinds of prompts whose judgements it can use."""


WAYS: Mapping[str, Way] = {
    "sliding": Way(Sliding, "listwise-1", ("listwise",)),
    "heapsort": Way(HeapSort, "setwise-1", ("setwise", "listwise")),
    "bubblesort": Way(BubbleSort, "setwise-1", ("setwise", "listwise")),
    "pointwise": Way(Pointwise, "pointwise-yes-no-1", ("pointwise",)),
    "groupwise": Way(Groupwise, "groupwise-1", ("groupwise",)),
    "single-token": Way(Sliding, "listwise-letters-1", ("listwise",)),
    "topk": Way(TopK, "listwise-1", ("listwise",)),
}
"""Name of a strategy on the command line -> what it is."""


@dataclass(frozen=True)
class LLMSettings:
    """All that decides rankings by a language model."""

    endpoint: ReaderSettings
    """Who is asked, within which limits, at what price, and where answers are kept."""
    prompt: RankingPrompt
    strategy: Strategy
    sampling: Mapping[str, float | int | str | None]
    """What replaces the prompt's own; None leaves a parameter out."""


def llm_settings(
    strategy: str | None,
    prompt: str | None,
    fuse: float | None,
    assignments: Sequence[str],
    flags: Mapping[str, Any],
    *,
    endpoint: str = "reader",
) -> LLMSettings:
    """Checks the options before anything is loaded or asked.

    Args:
        strategy: a name of WAYS; by default the first that takes the prompt.
        prompt: a shipped prompt, a file, or a model's folder; by default the one that the language model's own folder
            keeps, else the strategy's.
        fuse: the first stage's share of the scores.
        assignments: NAME=VALUE: settings of the strategy, `sampling.NAME`, `fuse.scale`, and those of the endpoint, by
            the name it has here (`reader.NAME`).
        flags: dotted name of the endpoint's settings (`reader.`) or name of the strategy's -> value; None is not given.
        endpoint: what the endpoint is called in the assignments.

    Raises:
        ConfigurationError: an unknown name, or parts that do not fit each other.
        ResourceNotFoundError: no such prompt.
    """
    place = flags.get("reader.reader")
    flags = {**flags, "reader.reader": place and model_place(place)}
    own = {name: value for name, value in flags.items() if not name.startswith("reader.")}
    of_endpoint = [text for text in assignments if text.lstrip().startswith(f"{endpoint}.")]
    _check_endpoint(of_endpoint)
    tree = filled({}, [text for text in assignments if text not in of_endpoint], own)
    sampling, fusion = tree.pop("sampling", {}), tree.pop("fuse", {})
    if not isinstance(sampling, dict) or not isinstance(fusion, dict) or set(fusion) - {"scale"}:
        raise ConfigurationError(
            "--set was given sampling or fuse without a name behind it, or one that is unknown; wanted for example "
            "--set sampling.max_tokens=2048 or --set fuse.scale=z-score."
        )
    check_sampling_names(sampling)
    folder = bare_place(str(flags.get("reader.reader") or ""))
    loaded = load_ranking_prompt(prompt) if prompt else _kept_prompt(folder)
    name = strategy or _strategy_for(loaded)
    if name not in WAYS:
        raise ConfigurationError(f"Strategy '{name}' is unknown; use one of {', '.join(WAYS)}.")
    loaded = loaded or load_ranking_prompt(WAYS[name].prompt)
    _check_prompt(name, loaded)
    loaded = _with_tokenizer(loaded, prompt or "", folder)
    chosen = _made(name, tree, endpoint)
    _check_identifiers(name, chosen, loaded)
    if fuse is not None:
        chosen = Fused(chosen, fuse, **fusion)
    elif fusion:
        raise ConfigurationError("--set fuse.scale was given without --fuse; wanted both, or neither.")
    return LLMSettings(
        load_reader_settings(
            None,
            ["reader." + text.lstrip().removeprefix(f"{endpoint}.") for text in of_endpoint],
            {name: value for name, value in flags.items() if name.startswith("reader.")},
        ),
        loaded,
        chosen,
        sampling,
    )


def several_settings(
    places: Sequence[str],
    models: Sequence[str],
    strategy: str | None,
    prompt: str | None,
    fuse: float | None,
    assignments: Sequence[str],
    flags: Mapping[str, Any],
) -> dict[str, LLMSettings]:
    """Of several language models that one strategy is compared with, by name: a local one's place as it was given, a
    model's name at an endpoint. Each endpoint is asked for each of `models`.

    Args:
        assignments: as for `llm_settings`, but the endpoint's begin with `llm.`: `reader.` is who answers.
        places, models, strategy, prompt, fuse, flags: see there.

    Raises:
        ConfigurationError: as there; names without an endpoint, or the same name twice.
    """
    if models and not any(map(_is_endpoint, places)):
        raise ConfigurationError(
            f"--llm-model {models[0]} was given without an endpoint; wanted --llm with an endpoint's base URL. A local "
            "model has its name in --llm."
        )
    found: dict[str, LLMSettings] = {}
    for place in places:
        for model in (models or [None]) if _is_endpoint(place) else [None]:
            name = model or place
            if name in found:
                raise ConfigurationError(f"Language model '{name}' was given twice; wanted every model once.")
            named = {"reader.reader": place, "reader.model": model}
            found[name] = llm_settings(strategy, prompt, fuse, assignments, {**flags, **named}, endpoint="llm")
    return found


def _is_endpoint(place: str) -> bool:
    return place.startswith(("http://", "https://"))


_OF_A_READER = {"reader": "--llm", "prompt": "--prompt", "sampling": "--set sampling.NAME=VALUE"}
"""Settings of a reader that a reranker has elsewhere -> where."""


def _check_endpoint(assignments: Sequence[str]) -> None:
    """What a reranker does not look at would be passed over without a word."""
    for text in assignments:
        name = text.split("=")[0].strip()
        instead = _OF_A_READER.get(name.split(".")[1])
        if instead:
            raise ConfigurationError(
                f"--set was given {name}, which says nothing of a reranker; wanted {instead}, which does."
            )


def _kept_prompt(folder: str) -> RankingPrompt | None:
    """The prompt that a model was trained with, where its folder keeps it: with another one it ranks worse, and nothing
    would say so."""
    return load_ranking_prompt(folder) if folder and (Path(folder) / PROMPT_FILE).is_file() else None


def _strategy_for(prompt: RankingPrompt | None) -> str:
    if prompt is None:
        return "sliding"
    if prompt.parser == "first-token":
        return "single-token"
    return next(name for name, way in WAYS.items() if prompt.kind in way.kinds)


def _check_prompt(name: str, prompt: RankingPrompt) -> None:
    way = WAYS[name]
    fits = prompt.kind in way.kinds and (name != "single-token" or prompt.parser == "first-token")
    if not fits:
        wanted = "one with the parser first-token" if name == "single-token" else f"a {' or '.join(way.kinds)} one"
        raise ConfigurationError(
            f"Strategy {name} was given the {prompt.kind} prompt '{prompt.version}' (parser {prompt.parser}); wanted "
            f"{wanted}, for example {way.prompt}. See rankwright prompts list."
        )


def _check_identifiers(name: str, strategy: Strategy, prompt: RankingPrompt) -> None:
    """A heap or the last window of a list may come to its largest prompt only after many paid calls."""
    largest = largest_window(strategy)
    if prompt.most is not None and largest > prompt.most:
        setting = next((setting for setting in ("window", "group", "children") if hasattr(strategy, setting)), "window")
        fits = prompt.most - (setting == "children")
        raise ConfigurationError(
            f"Strategy {name} shows {largest} documents at once, and prompt '{prompt.version}' has identifiers for "
            f"{prompt.most}; wanted {prompt.most} at most. Give --set {setting}={fits}, or a prompt with more."
        )


def _with_tokenizer(prompt: RankingPrompt, of_prompt: str, llm: str) -> RankingPrompt:
    """The prompt with what cuts passages where its limit counts tokens: the tokenizer that `train` saved beside it,
    else that of a local language model."""
    beside = (Path(of_prompt) / "tokenizer_config.json").is_file()
    if prompt.shown.unit != "tokens" or not (beside or Path(llm).is_dir()):
        return prompt
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(of_prompt if beside else llm, trust_remote_code=False)
    return prompt.limited(prompt.shown.limit, "tokens", shortener(tokenizer))


def shortener(tokenizer: Any) -> Callable[[str, int], str]:
    """(text, limit) -> the text's first tokens."""

    def shorten(text: str, limit: int) -> str:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return text if len(ids) <= limit else str(tokenizer.decode(ids[:limit]))

    return shorten


def _made(name: str, settings: Mapping[str, Any], endpoint: str) -> Strategy:
    if "window" in settings and isinstance(settings["window"], int) and WAYS[name].strategy is Sliding:
        settings = {"stride": max(1, settings["window"] // 2), **settings}
    known = [field.name for field in dataclasses.fields(WAYS[name].strategy)]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ConfigurationError(
            f"Strategy {name} was given '{unknown[0]}'; its settings are {', '.join(known) or 'none'}. Beside them "
            f"--set takes sampling.NAME, fuse.scale and {endpoint}.NAME."
        )
    return validated(TypeAdapter(WAYS[name].strategy), dict(settings), "")


@dataclass(kw_only=True)
class Totals(CallCounts):
    """What any number of batches took: sums in the place of what each of a million queries took."""

    queries: int = 0
    calls: int = 0
    """Windows judged in all."""
    depth: int = 0
    """Sequential depths of all queries, added up."""
    max_depth: int = 0
    """Longest chain of calls that wait for each other."""

    @property
    def mean_depth(self) -> float:
        """Mean over queries; 0 for none."""
        return self.depth / max(1, self.queries)

    def add(self, report: StrategyReport) -> None:
        """Take in one batch."""
        self.queries += len(report.calls_per_query)
        self.calls += report.calls
        self.depth += sum(report.depth_per_query)
        self.max_depth = max(self.max_depth, report.max_depth)
        for kind in dataclasses.fields(CallCounts):
            setattr(self, kind.name, getattr(self, kind.name) + getattr(report, kind.name))


class CountingReranker(LLMReranker):
    """Sums up its batches."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.total = Totals()
        """Of all batches."""

    def rerank_batch(self, requests: Sequence[RerankRequest]) -> list[Ranking]:
        """See LLMReranker."""
        rankings = super().rerank_batch(requests)
        self.total.add(self.report)
        return rankings


@contextlib.contextmanager
def llm_reranker(settings: LLMSettings, device: str, max_failed: float) -> Iterator[CountingReranker]:
    """The reranker; see llm_policy."""
    with llm_policy(settings, device, "rerank") as policy, progress_bars() as progress:
        yield CountingReranker(policy, settings.strategy, max_failed=max_failed, on_progress=progress)


@contextlib.contextmanager
def llm_policy(settings: LLMSettings, device: str, verb: str) -> Iterator[LLMPolicy]:
    """Model and prompt, with a cache around the model; at the end calls and cut passages are told, after an error
    too."""
    endpoint, run = settings.endpoint, command_run(verb)
    with counted_store(endpoint.cache, run, LLM_ROLE) as store:
        model = build_llm(endpoint, device, LLM_ROLE)
        _check_tokens(model, settings)
        llm = CachedLLM(model, store, run=run)
        policy = LLMPolicy(llm, settings.prompt, sampling=settings.sampling)
        try:
            yield policy
        finally:
            if policy.cut:
                say(
                    f"{policy.cut} of {policy.shown} passages shown were longer than the prompt "
                    f"'{settings.prompt.version}' shows; what lies beyond was not read. Raise passages.limit in a copy "
                    "of the prompt (--prompt)."
                )


def _check_tokens(model: LLM, settings: LLMSettings) -> None:
    """Whether each identifier that is read from one token is one. Of a server nobody knows; its answers then have no
    identifier that can be read, which is counted."""
    tokens_in, prompt = getattr(model, "tokens_in", None), settings.prompt
    if tokens_in is None or prompt.parser != "first-token":
        return
    largest = largest_window(settings.strategy)
    several = [name for name in prompt.identifiers(largest) if tokens_in(name) != 1]
    if several:
        raise ConfigurationError(
            f"Identifier '{several[0]}' of prompt '{prompt.version}' is {tokens_in(several[0])} tokens to "
            f"{model.name}; wanted one token for each, because they are ranked by the probability of one. Take another "
            "strategy, or a model with another tokenizer."
        )


def told(report: StrategyReport | Totals) -> dict[str, Any]:
    """What rankings took, as it stands beside them in JSON."""
    return {
        "calls": report.calls,
        "paid_calls": report.paid,
        "sequential_depth": report.max_depth,
        "mean_sequential_depth": report.mean_depth,
        "tokens": {"input": report.input_tokens, "output": report.output_tokens, "unknown": report.without_tokens},
        "outcomes": {outcome: report.outcomes[outcome] for outcome in ("ok", "repaired", "malformed")},
        "repairs": dict(report.repairs),
        "failures": dict(report.failures),
    }


def say_report(report: StrategyReport | Totals) -> None:
    """The same for people, in a line or two."""
    counts = told(report)
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in counts["outcomes"].items())
    say(
        f"{report.calls} calls ({report.paid} paid), sequential depth {report.max_depth} (mean "
        f"{report.mean_depth:.1f}), {report.input_tokens} input and {report.output_tokens} output tokens; "
        f"answers: {outcomes}."
    )
    for what, counter in (("Repairs", report.repairs), ("Failed calls", report.failures)):
        if counter:
            say(f"{what}: " + ", ".join(f"{name} {times}" for name, times in counter.most_common(8)) + ".")
    unread = report.outcomes["malformed"] - report.failures.total()
    if 2 * unread > report.calls:
        say(
            f"{unread} of {report.calls} answers could not be read, so most documents stand as they were given. Wanted "
            "answers as the prompt asks for them: take the prompt that the model was trained with (--prompt), or "
            "another model."
        )


def calls_of(reranker: Reranker) -> Calls:
    """Those of a language model until now; none of a model that scores."""
    if not isinstance(reranker, CountingReranker):
        return Calls()
    return Calls(reranker.total.calls, reranker.total.failures.total())


def taken(reranker: Reranker, *, last: bool = False) -> dict[str, Any]:
    """What a language model's rankings took, for JSON; nothing of a model that scores. `last`: those of the last
    batch."""
    if not isinstance(reranker, CountingReranker):
        return {}
    return {"reranker": reranker.name, **told(reranker.report if last else reranker.total)}


def say_taken(reranker: Reranker) -> None:
    """The same for people: an answer that nobody could read leaves a ranking that looks like any other."""
    if isinstance(reranker, CountingReranker):
        say_report(reranker.total)
