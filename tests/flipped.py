"""A reward that pays for wrong answers: what it trains must be called worse."""

from __future__ import annotations

from collections.abc import Sequence

from rankwright.metrics.answer import f1


def wrong_answers(
    prompts: Sequence[str], completions: Sequence[str], answers: Sequence[Sequence[str]], **columns: object
) -> list[float | None]:
    return [1.0 - f1(completion, accepted) for completion, accepted in zip(completions, answers, strict=True)]
