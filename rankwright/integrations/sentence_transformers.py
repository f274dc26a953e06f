"""A reranker as a CrossEncoder, and examples for its evaluator.

A trained folder opens in sentence-transformers as it is: `CrossEncoder("runs/mine/model")`. What is here is for the
rest: a model that is open, or that has no folder ("reference"), and data whose titles must be joined to texts as in
training, since a CrossEncoder reads plain pairs.

    CrossEncoderRerankingEvaluator(samples(examples, model))(cross_encoder(model))
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rankwright.errors import ConfigurationError
from rankwright.integrations.opened import missing
from rankwright.rerankers import load
from rankwright.rerankers.ranking import DEFAULT_TEMPLATE, render
from rankwright.types import Example

try:
    from sentence_transformers import CrossEncoder
except ImportError as error:
    raise missing("sentence-transformers", "interop", error) from error

if TYPE_CHECKING:
    from rankwright.rerankers.cross_encoder import CrossEncoderReranker


def cross_encoder(model: str | Path | CrossEncoderReranker) -> CrossEncoder:
    """A CrossEncoder with the weights of now and the same raw scores; what happens to one leaves the other alone.

    Args:
        model: a folder, a hub name, "reference", or an open cross-encoder, on whose device it will be. LoRA updates
            are added to its weights.

    Raises:
        ConfigurationError: the reranker is not a cross-encoder.
        ResourceNotFoundError: nothing is found under the name.
        ModelError: what is found is not a reranker.
    """
    reranker = _cross_encoder(model)
    with tempfile.TemporaryDirectory(prefix="rankwright-") as folder:
        copy.deepcopy(reranker).save(Path(folder))  # saving adds LoRA updates to the weights for good
        return CrossEncoder(folder, device=str(next(reranker.model.parameters()).device))


def samples(examples: Sequence[Example], template: str = DEFAULT_TEMPLATE) -> list[dict[str, str | list[str]]]:
    """What CrossEncoderRerankingEvaluator takes: for every example with a relevant candidate the query, the relevant
    passages and all candidates in the order of the first stage.

    Args:
        examples: questions with candidates and labels; a label above 0 is relevant.
        template: joins title and text; that of the model is its `template`.

    Raises:
        ConfigurationError: no example has a relevant candidate.
    """
    found: list[dict[str, str | list[str]]] = []
    for example in examples:
        texts = {document.doc_id: render(template, document) for document in example.candidates}
        relevant = [text for doc_id, text in texts.items() if example.relevance.get(doc_id, 0) > 0]
        if relevant:
            found.append({"query": example.query.text, "positive": relevant, "documents": list(texts.values())})
    if not found:
        raise ConfigurationError(
            f"None of {len(examples)} examples has a relevant candidate; wanted labels that name candidates. Load "
            "examples with labels, and fill their candidates with rankwright.with_candidates."
        )
    return found


def _cross_encoder(model: str | Path | CrossEncoderReranker) -> CrossEncoderReranker:
    from rankwright.rerankers.cross_encoder import CrossEncoderReranker

    reranker = load(model) if isinstance(model, str | Path) else model
    if not isinstance(reranker, CrossEncoderReranker):
        raise ConfigurationError(
            f"Model is a {type(reranker).__name__}; wanted a cross-encoder. Other rerankers score in rankwright alone: "
            "use rankwright.evaluate, or the integration for MTEB."
        )
    return reranker
