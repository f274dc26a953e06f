"""What `rerank` was asked for: who ranks, and the file that is ranked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from rankwright.errors import ConfigurationError, DataError
from rankwright.types import Reranker, RerankRequest

if TYPE_CHECKING:
    from rankwright.cli.llm import LLMSettings
    from rankwright.data.streams import ExampleStream
    from rankwright.rerankers.windows import Windows

MODEL, BACKEND = "reference", "torch"
"""Who ranks, and how, if nothing else was asked for."""
MAX_FAILED, STOP_ABOVE = 0.01, 0.05
"""Shares of failed calls above which the exit code says so, and above which nothing more is asked."""
_OF_ENDPOINT = {
    "--llm-model": "model",
    "--requests-per-minute": "requests_per_minute",
    "--tokens-per-minute": "tokens_per_minute",
    "--price-input": "price_input",
    "--price-output": "price_output",
    "--api-key-env": "api_key_env",
    "--cache": "cache",
}
"""Flag -> setting of the endpoint."""


def given(context: typer.Context) -> list[str]:
    """What stands on the command line: flags of options, names of arguments."""
    sources = ((one.opts[0], context.get_parameter_source(one.name or "")) for one in context.command.params)
    return [name for name, source in sources if source is not None and source.name == "COMMANDLINE"]


@dataclass(frozen=True)
class Ranker:
    """Who ranks: a model that scores, or a language model."""

    model: str
    device: str
    backend: str
    windows: Windows | None
    llm: str | None
    """Place of a language model, which then ranks in the place of `model`."""
    settings: LLMSettings | None
    """Of a language model."""
    max_failed: float
    """Share of a language model's calls, above which the exit code says so."""

    @classmethod
    def asked(
        cls,
        model: str,
        device: str,
        backend: str,
        windows: Windows | None,
        llm: str | None,
        of_llm: Mapping[str, Any],
        max_failed: float,
    ) -> Ranker:
        """Checked before anything is loaded or asked.

        Args:
            of_llm: flag that says something of a language model alone -> value; None is not given.
            model, device, backend, windows, llm, max_failed: see the fields.

        Raises:
            ConfigurationError: options that say nothing of who ranks, or do not fit each other.
        """
        idle = "--windows" if windows else "--backend" if backend != BACKEND else None
        if llm is not None and idle:
            raise ConfigurationError(
                f"{idle} was given with --llm {llm}, of which it says nothing; wanted it with a --model that scores. "
                "Leave it out."
            )
        if llm is not None and model != MODEL:
            raise ConfigurationError(
                f"--model {model} and --llm {llm} were both given; wanted one of them, since one ranks."
            )
        return cls(model, device, backend, windows, llm, _llm_settings(llm, of_llm), max_failed)

    @property
    def name(self) -> str:
        """As it was asked for."""
        return self.llm or self.model

    @property
    def load(self) -> dict[str, Any]:
        """How a model that scores is opened: further arguments of `build_reranker`."""
        return {"device": self.device, "backend": self.backend, "windows": self.windows}

    @contextlib.contextmanager
    def opened(self) -> Iterator[Reranker]:
        """The reranker; where it is a language model, with its cache open. What it cut is said in the end."""
        from rankwright.cli.build import against_cuts, tell_of_cut

        with self._built() as reranker:
            yield reranker
        tell_of_cut(reranker, against_cuts(reranker))

    @contextlib.contextmanager
    def _built(self) -> Iterator[Reranker]:
        from rankwright.cli.build import build_reranker, checked_device

        if self.settings is None:
            yield build_reranker(self.model, **self.load)
            return
        from rankwright.cli.llm import llm_reranker

        stop_above = max(self.max_failed, STOP_ABOVE)
        with llm_reranker(self.settings, checked_device(self.device), stop_above) as reranker:
            yield reranker


def _llm_settings(llm: str | None, of_llm: Mapping[str, Any]) -> LLMSettings | None:
    """Of a language model; None where a model that scores ranks."""
    if llm is None:
        flag = next((flag for flag, value in of_llm.items() if value is not None), None)
        if flag is not None:
            raise ConfigurationError(
                f"{flag} was given without --llm, and a scoring model has no use for it; wanted --llm with an "
                "endpoint's base URL or a local language model."
            )
        return None
    from rankwright.cli.llm import llm_settings

    flags = {
        "window": of_llm["--window"],
        "stride": of_llm["--stride"],
        "reader.reader": llm,
        **{f"reader.{name}": of_llm[flag] for flag, name in _OF_ENDPOINT.items()},
    }
    return llm_settings(of_llm["--strategy"], of_llm["--prompt"], of_llm["--fuse"], of_llm["--set"] or [], flags)


@dataclass(frozen=True)
class Source:
    """The file that is ranked, with what belongs to it."""

    file: Path
    is_run: bool
    """A TREC run; else questions with candidates."""
    format: str
    topics: Path | None
    corpus: Path | None
    depth: int | None
    """Candidates of a question that are ranked; None for all."""
    on_bad_row: str

    def requests(self) -> tuple[list[RerankRequest], int]:
        """All questions with their candidates, and how many rows were bad."""
        from rankwright.data import load_examples

        dataset = load_examples(
            self.file, self.format, topics=self.topics, corpus=self.corpus, on_bad_row=self.on_bad_row
        )
        requests = [
            RerankRequest(e.query, e.candidates[: self.depth], e.first_stage) for e in dataset.examples if e.candidates
        ]
        if not requests:
            run = "a TREC run: query_id Q0 doc_id rank score tag"
            wanted = run if self.format == "trec" else "candidates with questions"
            raise DataError(f"{self.file} names no candidates; wanted {wanted}. rankwright retrieve finds some.")
        return requests, dataset.skipped

    def stream(self, folder: Path) -> ExampleStream:
        """The same questions one by one; `folder` is where the look-up copy of the passages is kept."""
        from rankwright.data.streams import ExampleStream

        return ExampleStream(
            self.file,
            self.format,
            folder=folder,
            corpus=self.corpus,
            topics=self.topics,
            depth=self.depth,
            on_bad_row=self.on_bad_row,
        )
