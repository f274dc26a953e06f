"""rankwright: train, evaluate and serve rerankers from a reader's answers. Public names load on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Answer": "rankwright.types",
    "Context": "rankwright.types",
    "Document": "rankwright.types",
    "Example": "rankwright.types",
    "Query": "rankwright.types",
    "Ranking": "rankwright.types",
    "ReadFailed": "rankwright.types",
    "RankwrightError": "rankwright.errors",
    "load": "rankwright.rerankers",
    "load_examples": "rankwright.data",
    "BM25": "rankwright.retrieval",
    "EmbeddedReader": "rankwright.readers",
    "LLMReader": "rankwright.readers",
    "CachedReader": "rankwright.readers",
    "answer_reward": "rankwright.rewards",
    "evaluate": "rankwright.evaluation",
    "RRPO": "rankwright.algorithms",
    "RRPOConfig": "rankwright.algorithms",
    "TrainConfig": "rankwright.algorithms.config",
    "dev_scorer": "rankwright.training",
    "ReadStore": "rankwright.llms.cache",
    "with_candidates": "rankwright.retrieval",
    "Query2Doc": "rankwright.expansion",
    "write_report": "rankwright.reporting",
    "validate": "rankwright.data",
    "prepare": "rankwright.teaching",
    "eval": "rankwright.evaluation",
    "diagnose": "rankwright.diagnosis",
    "demo": "rankwright.verbs",
    "train": "rankwright.verbs",
    "rerank": "rankwright.verbs",
    "retrieve": "rankwright.verbs",
    "compare": "rankwright.verbs",
    "report": "rankwright.verbs",
    "push": "rankwright.verbs",
    "cache": "rankwright.verbs",
    "export": "rankwright.verbs",
    "calibrate": "rankwright.verbs",
    "serve": "rankwright.verbs",
    "doctor": "rankwright.verbs",
}
_ALIASES = {"eval": "evaluate"}

__all__ = ["__version__", *_WHERE]

if TYPE_CHECKING:
    from rankwright.algorithms import RRPO as RRPO
    from rankwright.algorithms import RRPOConfig as RRPOConfig
    from rankwright.algorithms.config import TrainConfig as TrainConfig
    from rankwright.data import load_examples as load_examples
    from rankwright.data import validate as validate
    from rankwright.diagnosis import diagnose as diagnose
    from rankwright.errors import RankwrightError as RankwrightError
    from rankwright.evaluation import evaluate as eval  # noqa: F401
    from rankwright.evaluation import evaluate as evaluate
    from rankwright.expansion import Query2Doc as Query2Doc
    from rankwright.llms.cache import ReadStore as ReadStore
    from rankwright.readers import CachedReader as CachedReader
    from rankwright.readers import EmbeddedReader as EmbeddedReader
    from rankwright.readers import LLMReader as LLMReader
    from rankwright.reporting import write_report as write_report
    from rankwright.rerankers import load as load
    from rankwright.retrieval import BM25 as BM25
    from rankwright.retrieval import with_candidates as with_candidates
    from rankwright.rewards import answer_reward as answer_reward
    from rankwright.teaching import prepare as prepare
    from rankwright.training import dev_scorer as dev_scorer
    from rankwright.types import Answer as Answer
    from rankwright.types import Context as Context
    from rankwright.types import Document as Document
    from rankwright.types import Example as Example
    from rankwright.types import Query as Query
    from rankwright.types import Ranking as Ranking
    from rankwright.types import ReadFailed as ReadFailed
    from rankwright.verbs import cache as cache
    from rankwright.verbs import calibrate as calibrate
    from rankwright.verbs import compare as compare
    from rankwright.verbs import demo as demo
    from rankwright.verbs import doctor as doctor
    from rankwright.verbs import export as export
    from rankwright.verbs import push as push
    from rankwright.verbs import report as report
    from rankwright.verbs import rerank as rerank
    from rankwright.verbs import retrieve as retrieve
    from rankwright.verbs import serve as serve
    from rankwright.verbs import train as train


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'rankwright' has no attribute '{name}'; public names are {', '.join(__all__)}")
    return getattr(importlib.import_module(_WHERE[name]), _ALIASES.get(name, name))


def __dir__() -> list[str]:
    return sorted(__all__)
