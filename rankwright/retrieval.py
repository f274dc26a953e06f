"""First stage: BM25 over bm25s, and candidates for examples.

The defaults k1 = 0.9 and b = 0.4 with stemming and a short list of English stop words are those of Anserini's BM25
baselines, so figures compare with published ones.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self, cast, overload

import bm25s
import numpy as np
import Stemmer
from numpy.typing import NDArray

from rankwright.errors import ConfigurationError, DataError, ResourceNotFoundError, StorageError
from rankwright.types import Document, Example, Query, Retriever

logger = logging.getLogger(__name__)
logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG when imported

_SETTINGS_FILE = "bm25.json"
_DOCUMENTS_FILE = "documents.jsonl"
_OFFSETS_FILE = "documents.offsets.npy"
_FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class BM25Settings:
    """Everything that decides how BM25 scores."""

    k1: float = 0.9
    """How fast repeated terms saturate."""
    b: float = 0.4
    """How much long passages are discounted, 0 to 1."""
    stemmer: str | None = "english"
    """A language of PyStemmer; None leaves words as they are."""
    stop_words: str | tuple[str, ...] | None = "english"
    """A list that bm25s knows by name, or the words; None removes nothing."""

    def __post_init__(self) -> None:
        if self.k1 < 0:
            raise ConfigurationError(f"k1 of BM25 is {self.k1}; wanted 0 or more. Leave it out for 0.9.")
        if not 0 <= self.b <= 1:
            raise ConfigurationError(f"b of BM25 is {self.b}; wanted 0 to 1. Leave it out for 0.4.")
        if self.stemmer is not None and self.stemmer not in Stemmer.algorithms():
            raise ConfigurationError(
                f"Stemmer {self.stemmer!r} is unknown; wanted one of {', '.join(Stemmer.algorithms())}. "
                "Choose one, or None for no stemming."
            )


class BM25:
    """A Retriever: Lucene's BM25 over title and text of every document.

    Equal scores keep the order of the corpus, so a result does not depend on the machine. Documents that share no word
    with the query come last, in that order too: a query gets min(depth, corpus size) documents.

    Args:
        documents: The corpus; every doc_id once.
        k1, b, stemmer, stop_words: See BM25Settings.

    Raises:
        ConfigurationError: A setting is out of range.
        DataError: The corpus is empty, holds no word, or repeats a doc_id.
    """

    def __init__(
        self,
        documents: Iterable[Document],
        *,
        k1: float = 0.9,
        b: float = 0.4,
        stemmer: str | None = "english",
        stop_words: str | Sequence[str] | None = "english",
    ) -> None:
        words = stop_words if stop_words is None or isinstance(stop_words, str) else tuple(stop_words)
        self._settings = BM25Settings(k1, b, stemmer, words)
        self._split = _splitter(self._settings)
        self._documents: Sequence[Document] = tuple(documents)
        self._index = _built(self._documents, self._settings, self._split)

    @property
    def settings(self) -> BM25Settings:
        """As given, or as found in the folder that was loaded."""
        return self._settings

    @property
    def name(self) -> str:
        """The retriever as it belongs in a signature; defaults are left out."""
        changed = {
            field: value for field, value in asdict(self._settings).items() if value != getattr(_DEFAULTS, field)
        }
        return "bm25" + "".join(f",{field}={value}" for field, value in changed.items())

    def __len__(self) -> int:
        """Size of the corpus."""
        return len(self._documents)

    def retrieve(self, queries: Sequence[Query], depth: int) -> list[tuple[Document, ...]]:
        """For each query min(depth, corpus size) documents, best first."""
        return [tuple(document for document, _ in found) for found in self.retrieve_with_scores(queries, depth)]

    def retrieve_with_scores(self, queries: Sequence[Query], depth: int) -> list[tuple[tuple[Document, float], ...]]:
        """Like retrieve, with the BM25 score of every document (0 where no word is shared)."""
        if depth < 1:
            raise ConfigurationError(f"depth is {depth}; wanted 1 or more. Raise --depth.")
        words_by_query = self._split([query.text for query in queries]) if queries else []
        ids_by_query = [self._index.get_tokens_ids(words) for words in words_by_query]
        _warn_of_foreign_queries([query for query, ids in zip(queries, ids_by_query, strict=True) if not ids])
        return [self._best(ids, depth) for ids in ids_by_query]

    def save(self, folder: str | Path) -> None:
        """Write index, documents and settings into a folder; an index that stands there is replaced.

        The new folder is finished beside the old one before it takes its place. Raises ConfigurationError where the
        folder holds something else, StorageError where it cannot be written.
        """
        target = Path(folder)
        if target.exists() and not _replaceable(target):
            raise ConfigurationError(f"'{target}' holds other files; wanted a new folder. Choose another path.")
        draft = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            draft.mkdir(parents=True)
            self._index.save(draft, show_progress=False)
            _write_documents(draft, self._documents)
            content = {"format": _FORMAT_VERSION, "documents": len(self._documents), **asdict(self._settings)}
            (draft / _SETTINGS_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            if target.exists():
                shutil.rmtree(target)
            draft.replace(target)
        except OSError as error:
            raise StorageError(
                f"BM25 index '{target}' cannot be written: {error.strerror or error}. "
                "Free space on the disk or choose another folder."
            ) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Open a saved index. Arrays and documents are mapped, not read, so a large one opens at once.

        Raises ResourceNotFoundError where there is no index, StorageError where it is damaged.
        """
        source = Path(folder)
        settings, count = _read_settings(source)
        loaded = cls.__new__(cls)
        loaded._settings = settings
        loaded._split = _splitter(settings)
        try:
            loaded._index = bm25s.BM25.load(source, mmap=True)
            loaded._documents = _StoredDocuments(source)
        except (OSError, EOFError, ValueError, LookupError, TypeError) as error:
            raise _damaged(source, str(error)) from error
        if not count == len(loaded._documents) == loaded._index.scores["num_docs"]:
            raise _damaged(source, f"{count} documents noted, {len(loaded._documents)} found")
        return loaded

    def _best(self, word_ids: list[int], depth: int) -> tuple[tuple[Document, float], ...]:
        scores_D = (
            self._index.get_scores_from_ids(word_ids) if word_ids else np.zeros(len(self._documents), dtype=np.float32)
        )
        return tuple((self._documents[i], float(scores_D[i])) for i in _best_positions(scores_D, depth).tolist())


def with_candidates(examples: Iterable[Example], retriever: Retriever, depth: int) -> list[Example]:
    """The examples with the retriever's documents as candidates, at most `depth` each; earlier candidates are replaced.
    Their scores come along where BM25 gives them.

    Raises DataError where the retriever returns nothing for a question: an empty list can neither be ranked nor read.
    """
    found = list(examples)
    retrieved, scores = _retrieved(retriever, [example.query for example in found], depth)
    for example, documents in zip(found, retrieved, strict=True):
        if not documents:
            raise DataError(
                f"Candidate list of query '{example.query.query_id}' is empty; retrieval returned 0 documents, "
                "wanted at least 1. Raise --depth or check the index path."
            )
    return [
        replace(example, candidates=documents, first_stage=first_stage)
        for example, documents, first_stage in zip(found, retrieved, scores, strict=True)
    ]


def _retrieved(
    retriever: Retriever, queries: Sequence[Query], depth: int
) -> tuple[list[tuple[Document, ...]], list[dict[str, float]]]:
    """The documents of every query, and their scores by doc_id; none where the retriever tells none."""
    if not isinstance(retriever, BM25):
        retrieved = retriever.retrieve(queries, depth)
        return retrieved, [{} for _ in retrieved]
    found = retriever.retrieve_with_scores(queries, depth)
    return [tuple(d for d, _ in rows) for rows in found], [{d.doc_id: score for d, score in rows} for rows in found]


_DEFAULTS = BM25Settings()


def _splitter(settings: BM25Settings) -> Callable[[list[str]], list[list[str]]]:
    """Texts to stemmed words."""
    stemmer = None if settings.stemmer is None else Stemmer.Stemmer(settings.stemmer).stemWords
    stop_words = [] if settings.stop_words is None else settings.stop_words

    def split(texts: list[str]) -> list[list[str]]:
        try:
            words = bm25s.tokenize(
                texts,
                stopwords=stop_words if isinstance(stop_words, str) else list(stop_words),
                stemmer=stemmer,  # pyright: ignore[reportArgumentType]
                return_ids=False,
                show_progress=False,
            )
        except ValueError as error:
            raise ConfigurationError(f"stop_words {stop_words!r} are unknown to bm25s: {error}") from error
        return cast(list[list[str]], words)

    return split


def _built(
    documents: Sequence[Document], settings: BM25Settings, split: Callable[[list[str]], list[list[str]]]
) -> bm25s.BM25:
    if not documents:
        raise DataError("The corpus for BM25 is empty; wanted at least one passage. Check --corpus or the data file.")
    _refuse_repeated_ids(documents)
    words_by_document = split([f"{document.title} {document.text}" for document in documents])
    if not any(words_by_document):
        raise DataError(
            f"None of the {len(documents)} passages holds a word that BM25 can index; wanted text. "
            "Check the corpus, its language and the stop words."
        )
    index = bm25s.BM25(k1=settings.k1, b=settings.b, method="lucene")
    index.index(words_by_document, show_progress=False)
    return index


def _refuse_repeated_ids(documents: Iterable[Document]) -> None:
    seen: set[str] = set()
    for document in documents:
        if document.doc_id in seen:
            raise DataError(
                f"doc_id '{document.doc_id}' stands twice in the corpus for BM25; wanted every doc_id once. "
                "Remove or rename one of the passages."
            )
        seen.add(document.doc_id)


def _best_positions(scores_D: NDArray[np.float32], depth: int) -> NDArray[np.intp]:
    """Positions of the best `depth` scores, best first, equal scores in the order of the corpus.

    bm25s' own selection leaves the order of equal scores to numpy's partition.
    """
    count = min(depth, len(scores_D))
    threshold = np.partition(scores_D, len(scores_D) - count)[len(scores_D) - count]
    contenders = np.flatnonzero(scores_D >= threshold)
    return contenders[np.argsort(-scores_D[contenders], kind="stable")][:count]


def _warn_of_foreign_queries(queries: Sequence[Query]) -> None:
    if queries:
        logger.warning(
            "No word of %d of the queries is in the corpus, for example of '%s' (%.60r); candidates are then its first "
            "passages. Check the language of questions and corpus.",
            len(queries),
            queries[0].query_id,
            queries[0].text,
        )


class _StoredDocuments(Sequence[Document]):
    """Documents in a mapped JSON-lines file, decoded when asked for."""

    def __init__(self, folder: Path) -> None:
        self._bytes = np.memmap(folder / _DOCUMENTS_FILE, dtype=np.uint8, mode="r")
        self._offsets = np.load(folder / _OFFSETS_FILE, mmap_mode="r")
        if int(self._offsets[-1]) != len(self._bytes):
            raise ValueError(f"{_DOCUMENTS_FILE} has {len(self._bytes)} bytes, its index says {self._offsets[-1]}")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Document, ...]: ...
    def __getitem__(self, index: int | slice) -> Document | tuple[Document, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        position = range(len(self))[index]
        line = self._bytes[self._offsets[position] : self._offsets[position + 1]].tobytes()
        return Document(*json.loads(line))


def _write_documents(folder: Path, documents: Iterable[Document]) -> None:
    offsets = [0]
    with (folder / _DOCUMENTS_FILE).open("wb") as stream:
        for document in documents:
            row = [document.doc_id, document.text, document.title]
            offsets.append(offsets[-1] + stream.write(json.dumps(row).encode() + b"\n"))
    np.save(folder / _OFFSETS_FILE, np.asarray(offsets, dtype=np.int64))


def _replaceable(folder: Path) -> bool:
    return folder.is_dir() and ((folder / _SETTINGS_FILE).exists() or not any(folder.iterdir()))


def _read_settings(folder: Path) -> tuple[BM25Settings, int]:
    """Settings and number of documents of a saved index."""
    path = folder / _SETTINGS_FILE
    if not path.is_file():
        raise ResourceNotFoundError(
            f"'{folder}' holds no BM25 index; wanted a folder with {_SETTINGS_FILE}. Check the path or save an index."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != _FORMAT_VERSION:
            raise _damaged(folder, f"{_SETTINGS_FILE} is of another version of rankwright")
        count = content.pop("documents")
        words = content.pop("stop_words")
        return BM25Settings(**content, stop_words=tuple(words) if isinstance(words, list) else words), count
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, f"{_SETTINGS_FILE} cannot be read ({error})") from error


def _damaged(folder: Path, found: str) -> StorageError:
    return StorageError(f"BM25 index '{folder}' is damaged: {found}; wanted a complete index. Build it again.")
