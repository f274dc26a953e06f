"""A reranker in MTEB, in the form of its cross-encoders: the second stage of a reranking task.

    mteb.evaluate(RankwrightReranker("runs/mine/model"), mteb.get_task("AskUbuntuDupQuestions"))

A folder opens in MTEB as a CrossEncoder of sentence-transformers too. This class is for what that cannot do: titles
joined to texts as in training, other backends, rerankers that are language models, and results that are not taken for
those of another model. MTEB keeps results by name and revision and does not evaluate again what it finds; of a model
without a revision it takes the newest it has. So the revision of a folder is the hash of its files.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rankwright import __version__
from rankwright.integrations.opened import Model, Opened, Passage, missing, parts
from rankwright.llms.endpoint import model_place
from rankwright.rerankers import REFERENCE

try:
    from mteb.models import ModelMeta
except ImportError as error:
    raise missing("MTEB", "mteb", error) from error

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import Array, BatchedInput, PromptType
    from torch.utils.data import DataLoader


class RankwrightReranker:
    """MTEB's CrossEncoderProtocol.

    Args:
        model_name: a folder, a hub name, "reference", or an opened reranker.
        revision: what results are kept under besides the name; by default the hash of a folder's files, rankwright's
            version for "reference", and else one that is never used again.
        device: a torch device, for a model by name.
        name: "owner/name" for tables; by default that of the hub, or "rankwright/" and the last two folders.
        load: further arguments of rankwright.load, for a model by name: backend, max_length. MTEB keeps results of
            different ones apart.

    Raises:
        ConfigurationError: the model is neither name nor reranker.
        ResourceNotFoundError: no model is found under the name.
        ModelError: what is found is not a reranker.
    """

    def __init__(
        self,
        model_name: Model,
        revision: str | None = None,
        device: str | None = None,
        *,
        name: str | None = None,
        load: dict[str, Any] | None = None,
    ) -> None:
        settings = {**(load or {}), **({"device": device} if device else {})}
        self._opened = Opened(model_name, settings)
        reranker = self._opened.reranker
        folder = _folder(model_name)
        self._meta = ModelMeta.create_empty(
            overwrites={
                "name": name or _name(self._opened.name, folder),
                "revision": revision or _revision(model_name, folder),
                "max_tokens": getattr(reranker, "max_length", None),
                "model_type": ["cross-encoder"],
                "experiment_kwargs": dict(load) if load else None,
            }
        )

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """What MTEB writes beside results."""
        return self._meta

    def predict(
        self,
        inputs1: DataLoader[BatchedInput],
        inputs2: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> Array:
        """Logits of pairs, in order.

        Args:
            inputs1: batches of queries, one row a pair.
            inputs2: batches of documents, one row a pair.
            task_metadata: not needed.
            hf_split: not needed.
            hf_subset: not needed.
            prompt_type: not needed.
            kwargs: batch size and the like; batches are made by length here.
        """
        pairs = zip(_queries(inputs1), _passages(inputs2), strict=True)
        by_query = ((query, [passage for _, passage in rows]) for query, rows in groupby(pairs, lambda pair: pair[0]))
        scores: list[float] = []
        for part in parts(by_query):
            for (_, rows), hits in zip(part, self._opened.rank_all(part, top_k=None, scale="raw"), strict=True):
                of_position = dict(hits)
                scores += [of_position[position] for position in range(len(rows))]
        return np.array(scores, dtype=np.float64)


def _queries(batches: Iterable[Any]) -> Iterator[str]:
    """Texts with their instruction, if the task has one."""
    for batch in batches:
        yield from batch["text"]


def _passages(batches: Iterable[Any]) -> Iterator[Passage]:
    """Title and body where they are apart; `text` has both in one."""
    for batch in batches:
        if "title" in batch and "body" in batch:
            yield from (Passage(body, title or "") for body, title in zip(batch["body"], batch["title"], strict=True))
        else:
            yield from (Passage(text) for text in batch["text"])


def _folder(model: Model) -> Path | None:
    """Of the model; None where it has none on this machine."""
    folder = Path(model_place(str(model))) if isinstance(model, str | Path) and model != REFERENCE else None
    return folder if folder is not None and folder.is_dir() else None


def _name(asked: str, folder: Path | None) -> str:
    """A name with the one slash that MTEB wants."""
    if folder is None:
        return asked if asked.count("/") == 1 else f"rankwright/{asked.replace('/', '-')}"
    return "rankwright/" + "-".join(folder.resolve().parts[-2:])


def _revision(model: Model, folder: Path | None) -> str:
    if folder is not None:
        return _hash(folder)
    return __version__ if model == REFERENCE else f"unknown-{uuid.uuid4().hex[:12]}"


def _hash(folder: Path) -> str:
    """Of names and contents of all files but the card."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md"):
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        digest.update(f"{file.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:16]
