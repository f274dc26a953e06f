"""What rewards of generated rankings read from an outcome: the order that was written, and the grades of its
documents."""

from __future__ import annotations

from collections.abc import Sequence

from rankwright.errors import ConfigurationError, DataError
from rankwright.types import Choice, Outcome, Permutation, Scores


def grades_of(outcome: Outcome) -> tuple[int, ...]:
    """Relevance of the prompt's documents, in the order of the prompt; 0 for what has no label or one below 0.

    Raises:
        DataError: the question has no labels at all, or its prompt has no document or one of them twice.
    """
    query_id = outcome.example.query.query_id
    if not outcome.example.relevance:
        raise DataError(
            f"Question '{query_id}' has no relevance labels; rewards of rankings need them for the documents of its "
            "prompt. Add labels, or take a reward of the reader's answer."
        )
    doc_ids = [document.doc_id for document in outcome.context.documents]
    if not doc_ids or len(set(doc_ids)) < len(doc_ids):
        raise DataError(
            f"Prompt of question '{query_id}' has {len(doc_ids)} documents, of which {len(set(doc_ids))} differ; "
            "wanted at least one, and each of them once. Correct the candidates."
        )
    return tuple(max(outcome.example.relevance.get(doc_id, 0), 0) for doc_id in doc_ids)


def order_of(outcome: Outcome, reward: str) -> tuple[int, ...]:
    """Positions in the prompt, best first, of a whole judgement: as written, or by descending score, where equal scores
    keep the order of the prompt.

    Raises:
        ConfigurationError: the judgement is none of all documents, or is not one of this prompt.
    """
    judgement = outcome.judgement
    if isinstance(judgement, Scores):
        scores = scores_of(outcome, reward)
        return tuple(sorted(range(len(scores)), key=lambda i: -scores[i]))
    if not isinstance(judgement, Permutation):
        raise _misfit(outcome, reward, "an order or scores of all documents")
    # Position -1 would be the last document without a word, which is how an id 0 used to become one.
    if sorted(judgement.order) != list(range(len(outcome.context.documents))):
        raise _misfit(outcome, reward, f"an order of the {len(outcome.context.documents)} documents of its prompt")
    return judgement.order


def choice_of(outcome: Outcome, reward: str) -> int:
    """Position in the prompt of the document that a whole judgement calls the best.

    Raises:
        ConfigurationError: the judgement is of scores, or not one of this prompt.
    """
    judgement, count = outcome.judgement, len(outcome.context.documents)
    if isinstance(judgement, Permutation) and judgement.order:
        return order_of(outcome, reward)[0]
    position = judgement.position if isinstance(judgement, Choice) else None
    if position is None or not 0 <= position < count:
        raise _misfit(outcome, reward, f"a choice among the {count} documents of its prompt")
    return position


def scores_of(outcome: Outcome, reward: str) -> tuple[float, ...]:
    """The scores of a whole judgement.

    Raises:
        ConfigurationError: the judgement is not of scores, or not one of this prompt.
    """
    judgement, wanted = outcome.judgement, len(outcome.context.documents)
    if not isinstance(judgement, Scores) or len(judgement.values) != wanted or None in judgement.values:
        raise _misfit(outcome, reward, f"scores of the {wanted} documents of its prompt")
    return tuple(value for value in judgement.values if value is not None)


def check_single(outcome: Outcome, reward: str) -> None:
    """Raises ConfigurationError where the prompt does not hold exactly one document."""
    if len(outcome.context.documents) != 1:
        raise ConfigurationError(
            f"Reward '{reward}' was given a prompt of question '{outcome.example.query.query_id}' with "
            f"{len(outcome.context.documents)} documents; it prices prompts with one. Take a pointwise prompt."
        )


def check_judged(outcomes: Sequence[Outcome], reward: str) -> None:
    """Raises ConfigurationError where an outcome is of a ranking that nobody wrote."""
    silent = next((outcome for outcome in outcomes if outcome.judgement is None), None)
    if silent is not None:
        raise ConfigurationError(
            f"Reward '{reward}' was given a reading of question '{silent.example.query.query_id}' without a judgement; "
            "it prices what a language model wrote. Use it with --method grpo, or take a reward of the reader's answer."
        )


def _misfit(outcome: Outcome, reward: str, wanted: str) -> ConfigurationError:
    return ConfigurationError(
        f"Reward '{reward}' was given {outcome.judgement} for question '{outcome.example.query.query_id}'; wanted "
        f"{wanted}. Take a prompt of the kind that this reward is for."
    )
