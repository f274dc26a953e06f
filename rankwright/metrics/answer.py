"""How right an answer is: exact match, token F1, contained match and ROUGE-L, each a fraction from 0 to 1.

Exact match and F1 follow the rules of the SQuAD 2.0 evaluation script (Rajpurkar, Jia and Liang, "Know What You Don't
Know", 2018, https://arxiv.org/abs/1806.03822): texts are lower-cased, ASCII punctuation is deleted, the English
articles are dropped and spaces are collapsed; the best accepted answer counts; nothing against nothing is 1 and nothing
against something is 0. One thing is stricter here: an accepted answer that consists of articles or punctuation only
("A", "?") would become empty and equal every other empty text, so such pairs are compared as they were written, in
lower case.

Scores under different normalisers do not compare, so signatures carry `NORMALISER`.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Protocol

from rankwright.errors import DataError, MissingDependencyError

NORMALISER = "squad"
"""Name of the normalisation behind every score of this module, as it stands in signatures."""

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
# Scripts written without spaces: kana, Han (with extensions) and Thai. Each character counts as a token of its own.
_UNSPACED = re.compile("[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
CLOSED_ANSWERS = frozenset({"yes", "no", "noanswer"})
"""Answers that stand in many texts without being given there; after `normalise`."""


def normalise(text: str) -> str:
    """The text after the SQuAD rules: lower case, no ASCII punctuation, no English article, single spaces."""
    bare = text.lower().translate(_DELETE_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 where the normalised prediction equals a normalised accepted answer, else 0.0.

    Raises:
        DataError: there is no accepted answer, here as in all functions of this module.
    """
    return _best(prediction, answers, lambda found, wanted: float(found == wanted))


def f1(prediction: str, answers: Sequence[str], *, yes_no_guard: bool = False) -> float:
    """Harmonic mean of token precision and recall, tokens counted as a bag, against the best accepted answer.

    `yes_no_guard` gives 0 where one side is exactly yes, no or noanswer and the other differs, as HotpotQA does (Yang
    et al., 2018, https://arxiv.org/abs/1809.09600). It cuts both ways: "yes, he did" against "yes" is then 0 as well.
    """
    return _best(prediction, answers, _guarded(_token_f1) if yes_no_guard else _token_f1)


def sub_em(prediction: str, answers: Sequence[str], *, yes_no_guard: bool = False) -> float:
    """1.0 where an accepted answer stands in the prediction as a run of whole tokens, or equals it; else 0.0.

    Accepted answers that the rules leave empty ("", "A", "?") can only equal a prediction, or they would stand in every
    one. The measure rewards a prediction that lists many candidates; read it beside F1.
    """
    if exact_match(prediction, answers) == 1.0:
        return 1.0
    usable = [answer for answer in answers if normalise(answer)]
    if not usable:
        return 0.0
    return _best(prediction, usable, _guarded(_contained) if yes_no_guard else _contained)


def rouge_l(prediction: str, answers: Sequence[str], *, yes_no_guard: bool = False) -> float:
    """F measure of the longest common subsequence of stemmed tokens, against the best accepted answer.

    Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, https://aclanthology.org/W04-1013, as the
    package rouge-score computes it. English texts get that package's tokens; letters beyond ASCII, which it would
    delete, are kept.

    Raises:
        MissingDependencyError: rouge-score is not installed.
    """
    scorer = _rouge_scorer()
    return _best(prediction, answers, _guarded(scorer) if yes_no_guard else scorer, prepare=str.strip)


def contains_answer(text: str, answers: Sequence[str]) -> bool:
    """True where an accepted answer stands in the text as a run of whole normalised tokens; the test behind hit@k.

    Accepted answers that the rules leave empty stand in no text.
    """
    usable = [answer for answer in _known(answers) if normalise(answer)]
    return bool(usable) and _best(text, usable, _contained) == 1.0


def _best(
    prediction: str,
    answers: Sequence[str],
    score: Callable[[str, str], float],
    prepare: Callable[[str], str] = normalise,
) -> float:
    return max(_score_pair(prediction, answer, score, prepare) for answer in _known(answers))


def _score_pair(
    prediction: str, answer: str, score: Callable[[str, str], float], prepare: Callable[[str], str]
) -> float:
    found, wanted = prepare(prediction), prepare(answer)
    if not wanted and answer.strip():
        # The rules left nothing of a real answer ("A", "The", "?"): equality with another emptied text would be an
        # accident.
        found, wanted = _as_written(prediction), _as_written(answer)
    if not found or not wanted:
        return float(found == wanted)
    return score(found, wanted)


def _as_written(text: str) -> str:
    return " ".join(text.lower().split())


def _known(answers: Sequence[str]) -> Sequence[str]:
    if isinstance(answers, str):
        raise DataError(
            f"Accepted answers are the single text {answers!r}; pass a sequence of texts such as [{answers!r}]."
        )
    if not answers:
        raise DataError(
            "The list of accepted answers is empty; an answer metric needs at least one. "
            'Give answers for every question, and [""] where no answer is the right one.'
        )
    return answers


def _token_f1(found: str, wanted: str) -> float:
    found_tokens, wanted_tokens = found.split(), wanted.split()
    shared = sum((Counter(found_tokens) & Counter(wanted_tokens)).values())
    return 2.0 * shared / (len(found_tokens) + len(wanted_tokens))


def _contained(found: str, wanted: str) -> float:
    # A space on both sides turns a substring test into a test on token boundaries.
    return float(f" {_spaced(wanted)} " in f" {_spaced(found)} ")


def _spaced(text: str) -> str:
    return " ".join(_UNSPACED.sub(r" \g<0> ", text).split())


def _guarded(score: Callable[[str, str], float]) -> Callable[[str, str], float]:
    def guarded(found: str, wanted: str) -> float:
        plain_found, plain_wanted = normalise(found), normalise(wanted)
        if plain_found != plain_wanted and (plain_found in CLOSED_ANSWERS or plain_wanted in CLOSED_ANSWERS):
            return 0.0
        return score(found, wanted)

    return guarded


class _Stems(Protocol):
    def tokenize(self, text: str) -> list[str]: ...


class _Tokenizer:
    """The tokens of rouge-score for ASCII words, and words of other letters instead of nothing."""

    def __init__(self, english: _Stems) -> None:
        self._english = english

    def tokenize(self, text: str) -> list[str]:
        words = re.findall(r"\w+", _UNSPACED.sub(r" \g<0> ", text.lower()).replace("_", " "))
        return [token for word in words for token in (self._english.tokenize(word) if word.isascii() else [word])]


@cache
def _rouge_scorer() -> Callable[[str, str], float]:
    try:
        from rouge_score import rouge_scorer, tokenizers
    except ImportError as error:
        raise MissingDependencyError(
            'ROUGE-L needs the package rouge-score, which is not installed. Run: pip install "rankwright[rouge]"'
        ) from error
    tokenizer = _Tokenizer(tokenizers.DefaultTokenizer(use_stemmer=True))
    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=tokenizer)
    return lambda found, wanted: float(scorer.score(wanted, found)["rougeL"].fmeasure)
