"""A reranker in PyTerrier: a transformer of result frames. Needs no Java.

    pipeline = bm25 % 100 >> pt.text.get_text(index, "text") >> RankwrightReranker("runs/mine/model")
    pt.Experiment([bm25, pipeline], topics, qrels, ["ndcg_cut_10"])

Rows keep all their columns, but for `score` and `rank`, which become those of the reranker. A document that stands
twice for a query is two rows, as for PyTerrier's own rerankers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rankwright.integrations.opened import Model, Opened, Passage, Scale, check_options, missing, parts

try:
    import pandas as pd
    import pyterrier as pt
except ImportError as error:
    raise missing("PyTerrier", "pyterrier", error) from error


class RankwrightReranker(pt.Transformer):
    """Scores rows of qid, query, docno and text.

    Args:
        model: a folder, a hub name, "reference", or an opened reranker.
        text_field: the column of passages.
        title_field: the column of titles; by default the text alone is read.
        scale: "raw" for the model's logits, "sigmoid" for numbers between 0 and 1.
        load: further arguments of rankwright.load, for a model by name: backend, device, max_length.

    Raises:
        ConfigurationError: an argument is wrong.
        ResourceNotFoundError: no model is found under the name.
        ModelError: what is found is not a reranker.
    """

    def __init__(
        self,
        model: Model,
        *,
        text_field: str = "text",
        title_field: str | None = None,
        scale: Scale = "raw",
        load: Mapping[str, Any] | None = None,
    ) -> None:
        check_options(None, scale)
        self.text_field = text_field
        self.title_field = title_field
        self.scale: Scale = scale
        self._opened = Opened(model, load or {})
        _ = self._opened.reranker  # a wrong name is told here, not with the first question

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """The rows with new scores and ranks, in the order in which they came."""
        titles = [self.title_field] if self.title_field else []
        pt.validate.result_frame(inp, extra_columns=["query", self.text_field, *titles], context=self)
        scores = pd.Series(index=range(len(inp)), dtype="float64")
        for part in self._parts(inp):
            asked = [(query, [passage for _, passage in rows]) for query, rows in part]
            for (_, rows), hits in zip(part, self._opened.rank_all(asked, top_k=None, scale=self.scale), strict=True):
                for hit in hits:
                    scores[rows[hit.position][0]] = hit.score
        return pt.model.add_ranks(inp.drop(columns=["score", "rank"], errors="ignore").assign(score=scores.to_numpy()))

    def _parts(self, inp: pd.DataFrame) -> Iterator[list[tuple[str, list[tuple[int, Passage]]]]]:
        """Whole queries with their rows by number, as many of them as make one call of the reranker."""
        columns = [inp[name] for name in ("qid", "query", self.text_field)]
        titles = inp[self.title_field] if self.title_field else [""] * len(inp)
        queries: dict[tuple[Any, str], list[tuple[int, Passage]]] = {}
        for number, (qid, query, text, title) in enumerate(zip(*columns, titles, strict=True)):
            passage = Passage("" if pd.isna(text) else text, "" if pd.isna(title) else str(title))
            queries.setdefault((qid, query), []).append((number, passage))
        yield from parts([(query, rows) for (_, query), rows in queries.items()])

    def __repr__(self) -> str:
        """What PyTerrier names a system by, and knows it again by."""
        return (
            f"RankwrightReranker({self._opened.name!r}, text_field={self.text_field!r}, "
            f"title_field={self.title_field!r}, scale={self.scale!r}, load={self._opened.settings!r})"
        )
