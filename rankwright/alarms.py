"""Signs that a training run goes wrong, read off its log: what was seen, the likely cause, the knob to turn.

A rule looks at the lines logged so far and says what it saw, or nothing. Single lines are noisy (a batch is a few
questions), so rules look at means over windows and at the run's own beginning. Alarms are decided by metrics.jsonl
alone: its lines, read again after a resume or years later, give the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

Row = Mapping[str, Any]

START = 3
"""Lines that are the run's beginning: the warm-up of the learning rate leaves the first ones nearly untouched."""
SHORT, LONG = 3, 10
"""Lines of a window: the short one for what does harm within steps, the long one for what only a mean can show."""
FIRST_LINES = 20
"""Lines after which a share that never moved has had its chance."""

KL_RISE = 1.25
"""Nats from one short window to the next. Runs that learned well, quickly too, rose by less than 1.15, those at a
hundred times a good rate by 1.35 and more. Both KL rules take medians, because single batches stand out, and the exact
KL, because the sampled estimate has the exponential of a log-ratio in it."""
KL_FAR = 1.0
"""Nats, over a long window: much of what the reference knew is gone. Runs that learned well stayed below 0.75."""
TIED = 0.5
"""Share of pairs with equal scores. Half precision ties a few; a policy that lost its weights ties all."""
SPREAD_LOST, SPREAD_GROWN, SPREAD_LARGE = 0.05, 8.0, 10.0
"""Times the spread of the beginning (runs that learned well stayed between 0.5 and 4 times), and a spread that no good
ranker needs: one that begins with a new head has to grow."""
GRADIENT_GROWN = 50.0
"""Times the gradient of the first long window, and rising still. Single steps of good runs reached 20 times."""
ENTROPY_GONE, ENTROPY_LOST = 0.1, 0.2
"""Nats (the first choice is the same in 98 of 100 samples), and share of the first entropy. Good runs stayed above 0.2
and 0.28."""
GAIN = 0.02
"""Rise of the reward from which a policy that is sure of itself may be right."""
UNANIMOUS = 0.97
"""Share of questions whose samples all earned the same."""
OPEN, UNDECIDED = 0.3, 0.5
"""Nats, and share of the first entropy, above which samples differ: equal rewards are then not the policy's doing."""
SAME = 1e-9
"""Rewards closer than this are equal."""
AGAINST = -0.2
"""Correlation of reward and hold-out metric. F1 and contained answers agree at 0.7 and more; noise stays near 0."""
HARM = 0.1
"""Reward without any document above the reward with documents."""
BY_HEART, KNOWN = 0.8, 0.05
"""Share of the reward that is earned without documents, and the least such reward that counts: of 0 everything is
80 %."""
LEAKS = 0.4
"""Share of questions. Comparisons ("which is older, A or B?") name their answer, and are an eighth of HotpotQA."""
POSITION, REFERENCE_POSITION = 0.9, 0.7
"""Rank correlation of the policy with the first stage, and of a reference that has an order of its own. Good rerankers
are near 0.3 with BM25."""
STALE = 0.2
"""Share of cached answers that read otherwise now. Near ties of a reader may flip once in a hundred."""
FAILED, FAILED_READS = 0.05, 3
"""Share of the reads, and the least number."""
REWARD_RISE, HOLDOUT_FALL = 0.05, 0.02
"""On dev, since before training."""


@dataclass(frozen=True)
class Alarm:
    """A sign that something is wrong, with what to do."""

    name: str
    """Of the rule that went off; docs/rrpo.md has a row for each."""
    step: int
    """Optimizer step of the line that set it off."""
    seen: str
    """What was found."""
    wanted: str
    """What a healthy run shows."""
    cause: str
    """The likely reason."""
    knob: str
    """What to turn or to look at."""

    def __str__(self) -> str:
        return f"Alarm {self.name} at step {self.step}: {self.seen}; wanted {self.wanted}. {self.cause} {self.knob}"


class Log:
    """The lines so far, by kind, with the windows that rules look at."""

    def __init__(self) -> None:
        self.steps: list[Row] = []
        """Lines of training steps."""
        self.dev: list[Row] = []
        """Lines of evaluations on dev."""
        self._values: dict[str, list[float]] = {}

    def add(self, row: Row) -> None:
        """Notes a line of metrics.jsonl; one of neither kind is passed over."""
        if "loss" in row:
            self.steps.append(row)
            for name, value in row.items():
                if _finite(value):
                    self._values.setdefault(name, []).append(value)
        elif "eval_reward" in row:
            self.dev.append(row)

    def values(self, name: str) -> Sequence[float]:
        """The finite values of one name on the lines of steps, in order."""
        return self._values.get(name, ())

    def last(self, name: str, lines: int = SHORT) -> float | None:
        """Mean of the last finite values; None while there are fewer."""
        values = self.values(name)
        return _mean(values[-lines:]) if len(values) >= lines else None

    def first(self, name: str, lines: int = START) -> float | None:
        """Mean of the first ones, once there are twice as many: a beginning is compared with what came after it."""
        values = self.values(name)
        return _mean(values[:lines]) if len(values) >= 2 * lines else None


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# --- what each rule sees


def _kl_jump(log: Log) -> str | None:
    values = log.values("exact_kl")
    if len(values) < SHORT:
        return None
    before = values[-2 * SHORT : -SHORT] or [0.0]  # a run begins at its reference
    rise = median(values[-SHORT:]) - median(before)
    return f"the KL to the reference rose by {rise:.2f} nats within {SHORT} lines" if rise >= KL_RISE else None


def _drift(log: Log) -> str | None:
    values, gain = log.values("exact_kl")[-LONG:], _rise(log)
    if len(values) < LONG or gain is None or gain >= REWARD_RISE or (kl := median(values)) < KL_FAR:
        return None
    return f"the KL to the reference is {kl:.2f} nats, and the reward {gain:+.3f} for it"


def _rise(log: Log) -> float | None:
    """What was gained on dev since before training; without a second evaluation, against the reference."""
    rewards = [row["eval_reward"] for row in log.dev if _finite(row["eval_reward"])]
    return rewards[-1] - rewards[0] if len(rewards) > 1 else _gain(log, LONG)


def _scores_equal(log: Log) -> str | None:
    tied, spread, begun = log.last("tied_share"), log.last("score_spread"), log.first("score_spread")
    if tied is not None and tied >= TIED:
        return f"{tied:.0%} of the pairs of candidates have equal scores"
    if spread is not None and begun is not None and spread <= SPREAD_LOST * begun:
        return f"the scores of a question lie {spread:.3g} apart, {begun:.3g} at the beginning"
    return None


def _growth(log: Log) -> str | None:
    spread, begun = log.last("score_spread"), log.first("score_spread")
    if spread is not None and begun and spread >= max(SPREAD_LARGE, SPREAD_GROWN * begun):
        return f"the scores of a question lie {spread:.3g} apart, {begun:.3g} at the beginning"
    norms = log.values("grad_norm")
    if len(norms) < LONG + 3 * SHORT:
        return None
    base = _mean(norms[:LONG])
    oldest, older, now = (_mean(norms[-i - SHORT :][:SHORT]) for i in (2 * SHORT, SHORT, 0))
    if now >= GRADIENT_GROWN * base and now > older > oldest:
        return f"the gradient is {now:.3g} long and growing, {base:.3g} at the beginning"
    return None


def _not_a_number(log: Log) -> str | None:
    row = log.steps[-1] if log.steps else {}
    lost = [name for name in ("loss", "kl", "entropy", "score_spread") if name in row and not _finite(row[name])]
    if row.get("skipped_steps"):
        return f"{row['skipped_steps']:.0f} step was skipped, because its scores, loss or gradient were no numbers"
    return f"{', '.join(lost)} could not be computed" if lost else None


def _entropy_collapse(log: Log) -> str | None:
    entropy, begun, gain = log.last("entropy", LONG), log.first("entropy"), _rise(log)
    if entropy is None or begun is None or gain is None or gain > GAIN or not log.values("reward"):
        return None  # without a reward, nothing is sampled: labels may make a policy sure
    if entropy > max(ENTROPY_GONE, ENTROPY_LOST * begun):
        return None
    return f"the entropy is {entropy:.3f} nats, {begun:.3f} at the beginning, and the reward {gain:+.3f} for it"


def _gain(log: Log, lines: int) -> float | None:
    reward, reference = log.last("reward", lines), log.last("reference_reward", lines)
    return None if reward is None or reference is None else reward - reference


def _constant(log: Log) -> float | None:
    """The one reward that all answers of a long window earned, with documents and without."""
    names = ("reward", "reference_reward", "no_document_reward")
    columns = [log.values(name)[-LONG:] for name in names]
    if min(len(column) for column in columns) < LONG:
        return None
    values = [value for column in columns for value in column]
    unanimous = (log.last("zero_variance_share", LONG) or 0.0) >= 1 or not log.values("zero_variance_share")
    return values[0] if unanimous and max(values) - min(values) <= SAME else None


def _constant_reward(log: Log) -> str | None:
    value = _constant(log)
    return None if value is None else f"every answer earned {value:.3g}, with documents and without"


def _no_variance(log: Log) -> str | None:
    share, entropy = log.last("zero_variance_share", FIRST_LINES), log.last("entropy", FIRST_LINES)
    begun = log.first("entropy")
    if share is None or entropy is None or begun is None or share < UNANIMOUS or entropy < max(OPEN, UNDECIDED * begun):
        return None
    return None if _constant(log) is not None else f"{share:.0%} of the questions had samples that all earned the same"


def _reward_against_answers(log: Log) -> str | None:
    agreement = log.last("reward_agreement", 5)
    if agreement is not None and agreement <= AGAINST:
        return f"the reward falls where answers get better (correlation with the hold-out metric {agreement:+.2f})"
    without, reward = log.last("no_document_reward", LONG), log.last("reward", LONG)
    if without is not None and reward is not None and without >= reward + HARM:
        return f"answers without any document earn {without:.2f}, with documents {reward:.2f}"
    return None


def _closed_book(log: Log) -> str | None:
    without, reward = log.last("no_document_reward", LONG), log.last("reward", LONG)
    if without is None or reward is None or without < max(KNOWN, BY_HEART * reward) or without >= reward + HARM:
        return None
    return None if _constant(log) is not None else f"{without:.2f} of the reward {reward:.2f} needs no document"


def _answers_leak(log: Log) -> str | None:
    share = log.last("leak_share", 5)
    if share is None or share < LEAKS:
        return None
    return f"of {share:.0%} of the questions an accepted answer stands in the question, or makes up a candidate"


def _position_only(log: Log) -> str | None:
    policy, reference = log.last("position_correlation", LONG), log.last("reference_position_correlation", LONG)
    if policy is None or reference is None or abs(policy) < POSITION or abs(reference) > REFERENCE_POSITION:
        return None
    return (
        f"the order of the scores follows that of the candidates at {policy:+.2f}, the reference's at {reference:+.2f}"
    )


def _stale_cache(log: Log) -> str | None:
    share = log.last("stale_share", 1)
    return f"{share:.0%} of the cached answers that were read again differ" if share and share >= STALE else None


def _failed_reads(log: Log) -> str | None:
    rows = log.steps[-LONG:]
    failed, reads = (
        sum(row.get(name) or 0 for row in rows for name in names)
        for names in (("failed_reads",), ("reader_calls", "cache_hits"))
    )
    if len(rows) < LONG or failed < max(FAILED_READS, FAILED * reads):
        return None
    return f"{failed:.0f} of {max(reads, failed):.0f} reads failed in {LONG} lines"


def _holdout_falls(log: Log) -> str | None:
    rows = [row for row in log.dev if _finite(row["eval_reward"]) and _finite(row.get("eval_holdout"))]
    if len(rows) < 2:
        return None
    rise, fall = (rows[-1]["eval_reward"] - rows[0]["eval_reward"], rows[0]["eval_holdout"] - rows[-1]["eval_holdout"])
    if rise < REWARD_RISE - SAME or fall < HOLDOUT_FALL - SAME:
        return None
    return f"on dev the reward rose by {rise:.3f} and the hold-out metric fell by {fall:.3f}"


class Rule(NamedTuple):
    """One thing to look for."""

    name: str
    sees: Callable[[Log], str | None]
    wanted: str
    cause: str
    knob: str


TOO_FAST = "Lower loop.learning_rate."
RULES = (
    Rule(
        "kl_jump",
        _kl_jump,
        f"less than {KL_RISE:g}",
        "The updates are too large.",
        f"{TOO_FAST} More warm-up (loop.trainer.warmup_steps) helps too.",
    ),
    Rule(
        "drift",
        _drift,
        f"below {KL_FAR:g} over {LONG} lines, or a reward {REWARD_RISE:g} higher",
        "Nothing holds the policy near its starting point.",
        "Raise rrpo.beta, lower loop.learning_rate, or keep less of the way with loop.interpolation.",
    ),
    Rule(
        "scores_equal",
        _scores_equal,
        "scores that tell candidates apart",
        "The policy has collapsed to one score for all.",
        f"{TOO_FAST} If it is so from the first step on, look whether the model reads the passages (model.template, "
        "model.max_length).",
    ),
    Rule(
        "growth",
        _growth,
        f"scores below {SPREAD_GROWN:g} times, gradients below {GRADIENT_GROWN:g} times those of the beginning",
        "Scores or gradients grow without bound and will end in values that are no numbers.",
        f"{TOO_FAST} Raise rrpo.beta; keep loop.trainer.max_grad_norm at 1.",
    ),
    Rule(
        "not_a_number",
        _not_a_number,
        "finite numbers",
        "The training is not stable, or a number format is too small.",
        f"{TOO_FAST} Leave out loop.trainer.fp16.",
    ),
    Rule(
        "entropy_collapse",
        _entropy_collapse,
        f"above {ENTROPY_GONE:g} nats and above {ENTROPY_LOST:g} times the beginning's, or a reward {GAIN:g} higher",
        "The policy is sure of one choice and no longer tries others.",
        "Raise rrpo.temperature or rrpo.beta, or lower loop.learning_rate.",
    ),
    Rule(
        "constant_reward",
        _constant_reward,
        "rewards that differ between answers",
        "The reward does not depend on the answer, or the reader never gives another one.",
        "Look at --reward, at the accepted answers and at what the reader says (rankwright eval).",
    ),
    Rule(
        "no_variance",
        _no_variance,
        f"below {UNANIMOUS:.0%} over {FIRST_LINES} lines",
        "The samples differ, but the reader makes the same of them: there is little to learn from.",
        "Raise --depth or rrpo.samples, lower --train-k, or take questions whose candidates hold the answer.",
    ),
    Rule(
        "reward_against_answers",
        _reward_against_answers,
        "a reward that grows with right answers",
        "The reward has the wrong sign or pays for something else, such as length, or passages confuse the reader.",
        "Look at --reward and at the reader's prompt.",
    ),
    Rule(
        "holdout_falls",
        _holdout_falls,
        f"no fall of {HOLDOUT_FALL:g} while the reward rises by {REWARD_RISE:g}",
        "The policy has found what the reward pays beside right answers.",
        "Look at --reward; take an earlier checkpoint, raise rrpo.beta.",
    ),
    Rule(
        "closed_book",
        _closed_book,
        f"below {BY_HEART:.0%}",
        "The reader knows the answers by heart or finds them in the question; its feedback says little of rankings.",
        "Set rrpo.drop_closed_book=true, take other questions, or a reader that knows less.",
    ),
    Rule(
        "answers_leak",
        _answers_leak,
        f"below {LEAKS:.0%}",
        "The data give their answers away (answers pasted into questions, or fields of metadata among the passages).",
        "Look at the questions and the corpus; questions that offer a choice are the harmless case.",
    ),
    Rule(
        "position_only",
        _position_only,
        f"below {POSITION:g}",
        "The policy repeats the order it was given; something in the texts tells it, such as a rank or a number.",
        "Look at model.template and at what the passages begin with.",
    ),
    Rule(
        "stale_cache",
        _stale_cache,
        f"below {STALE:.0%}",
        "The cache holds answers of another version of the reader, or was changed.",
        "Take a new file with --cache, or clear it (rankwright cache clear).",
    ),
    Rule(
        "failed_reads",
        _failed_reads,
        f"below {FAILED:.0%}",
        "The reader is overloaded or refuses some requests.",
        "Lower reader.concurrency, raise reader.deadline or reader.max_retries; above rrpo.max_failed_reads the run "
        "stops.",
    ),
)
"""All rules. One that goes off is not asked again."""


class Watch:
    """Asks the rules after every line.

    >>> watch = Watch()
    >>> [alarm.name for step in range(1, 4) for alarm in watch.see({"step": step, "loss": 0.0, "exact_kl": 1.0 * step})]
    ['kl_jump']
    """

    def __init__(self, rules: Iterable[Rule] = RULES) -> None:
        self.log = Log()
        self.alarms: list[Alarm] = []
        """Those that went off, in order."""
        self._rules = list(rules)

    def see(self, row: Row) -> list[Alarm]:
        """Takes the next line of metrics.jsonl, which has its `step`, and returns the alarms that it sets off."""
        self.log.add(row)
        seen = [(rule, rule.sees(self.log)) for rule in self._rules]
        new = [
            Alarm(rule.name, row["step"], found, rule.wanted, rule.cause, rule.knob)
            for rule, found in seen
            if found is not None
        ]
        self._rules = [rule for rule, found in seen if found is None]
        self.alarms += new
        return new


def alarms_in(rows: Iterable[Row]) -> list[Alarm]:
    """The alarms of a whole log, in order.

    Args:
        rows: the lines of metrics.jsonl.
    """
    watch = Watch()
    for row in rows:
        watch.see(row)
    return watch.alarms
