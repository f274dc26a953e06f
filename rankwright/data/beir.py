"""BEIR: a folder (or its zip as downloaded) with queries.jsonl, corpus.jsonl and qrels/SPLIT.tsv."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

from rankwright.data.files import AnyPath, file_problem
from rankwright.data.intake import Sources
from rankwright.data.rows import RowFormat
from rankwright.data.trec import parse_topic
from rankwright.errors import ConfigurationError

FORMAT = RowFormat(parse_topic, frozenset({"_id", "id", "query_id", "text", "answers", "metadata"}))


def resolve(sources: Sources) -> Sources:
    """The three files of a BEIR set.

    The path is the folder, the zip, a folder that holds nothing but the folder, or queries.jsonl itself. The corpus
    defaults to corpus.jsonl beside the queries; the labels to qrels/test.tsv, or to the only file in qrels/. A bare
    name as qrels is a split: "dev" is qrels/dev.tsv. Where there are no labels at all the questions stay unlabelled.
    """
    root, queries = _root_and_queries(sources.path)
    corpus = sources.corpus
    if corpus is None:
        corpus = _present(root, "corpus.jsonl") or _present(root, "corpus.jsonl.gz")
    if corpus is None:
        raise file_problem(
            root, "no corpus.jsonl", "the passages", "Put it there or name it (corpus=..., --corpus FILE)."
        )
    return replace(sources, path=queries, corpus=corpus, qrels=_labels(root, sources.qrels))


def has_split(path: str | Path, name: str) -> bool:
    """Whether the set at this path (folder, zip or queries.jsonl) has labels qrels/NAME.tsv."""
    root, _ = _root_and_queries(Path(path))
    return _present(root, f"qrels/{name}.tsv") is not None


def _root_and_queries(path: AnyPath) -> tuple[AnyPath, AnyPath]:
    if isinstance(path, Path) and not path.is_dir():
        if not (path.exists() and zipfile.is_zipfile(path)):
            return path.parent, path
        path = zipfile.Path(path)
    folders = [path, *sorted((entry for entry in path.iterdir() if entry.is_dir()), key=lambda entry: entry.name)]
    found = [(folder, queries) for folder in folders if (queries := _queries_in(folder)) is not None]
    if found and (found[0][0] is path or len(found) == 1):
        return found[0]
    raise file_problem(
        path,
        f"{len(found)} sub-folders with queries.jsonl" if found else "no queries.jsonl",
        "the folder of one BEIR set (queries.jsonl, corpus.jsonl, qrels/)",
        "Name that folder.",
    )


def _queries_in(folder: AnyPath) -> AnyPath | None:
    return _present(folder, "queries.jsonl") or _present(folder, "queries.jsonl.gz")


def _present(folder: AnyPath, name: str) -> AnyPath | None:
    candidate = folder / name
    return candidate if candidate.exists() else None


def _labels(root: AnyPath, qrels: AnyPath | None) -> AnyPath | None:
    """The labels that were named, as a file or as a split; else the default."""
    if qrels is not None:
        if qrels.exists() or len(Path(str(qrels)).parts) > 1:
            return qrels
        return _present(root, f"qrels/{qrels}.tsv") or qrels
    files = _splits(root)
    default = [file for file in files if file.name == "test.tsv"] or files
    if len(default) > 1:
        names = ", ".join(file.name.removesuffix(".tsv") for file in default)
        raise ConfigurationError(
            f"'{root}' has the splits {names} and no test; wanted one of them. Name it (qrels=..., --qrels SPLIT)."
        )
    return default[0] if default else None


def _splits(root: AnyPath) -> list[AnyPath]:
    folder = root / "qrels"
    if not folder.is_dir():
        return []
    return sorted((entry for entry in folder.iterdir() if entry.name.endswith(".tsv")), key=lambda entry: entry.name)
