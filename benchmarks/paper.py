"""The questions that RRPO's authors ask, at the size of the protocol: `python -m benchmarks.paper run` (resumable, half
an hour a row and seed on one core), then `... page`.

Rows are trained as those of benchmarks/protocol.py, with the same questions, candidates and number of questions seen
(600 of the 603 where each rollout is used twice), and the learning rate of its RRPO. Rankings of the test side are
kept, so that they can be read anew: by another reader, in another order or form, with another number of passages.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import calls, differences, kept, pages, protocol, query2doc
from benchmarks.differences import Difference
from benchmarks.embedded.sets import load_set, side
from benchmarks.kept import DEVICE, digests, measured, read
from rankwright.metrics.significance import holm
from rankwright.types import Context, Example, Outcome, Reader

PAGE = Path(__file__).parent / "results" / "paper.md"
_TRAINED = Path(__file__).parent / "work" / "another-reader"
READERS = {"another": _TRAINED / "phase-1.pt", "weak": _TRAINED / "phase-0.pt"}
"""Readers beside the embedded one: its recipe with another seed, in bf16, and not cut down to an adapter; and the same
as it was after cloze questions alone, before it saw a written one."""
TRAIN_READERS = "python -m benchmarks.embedded.train_reader --seed 1 --bf16 --out benchmarks/work/another-reader"
"""Gives READERS."""
LOOP = {"learning_rate": 1e-4, "eval_steps": 38, "interpolation": 0.5, **protocol.MIXED}
TWICE = LOOP | {"eval_steps": 76}
"""Two updates of each rollout: as many questions, twice the steps."""


@dataclass(frozen=True)
class Row:
    """One way to train."""

    rrpo: Mapping[str, Any] = field(default_factory=dict)
    """Settings of RRPO that differ from the defaults, which are the form that the paper prints but for the ratio's
    denominator, the advantage and the KL: three steps, four samples, the reference's greedy ranking as baseline."""
    loop: Mapping[str, Any] = field(default_factory=lambda: dict(LOOP))
    teacher: str = ""
    """Who reads while training, a name in READERS; empty for the embedded reader."""
    kept_as: str = ""
    """Name of the rows of the protocol's page, where it is one of them."""


ROWS: dict[str, Row] = {
    "RRPO": Row(),
    "RRPO, one step, question": Row(kept_as="rrpo"),
    "listwise bandit": Row({"action": "ranking"}),
    "PPO with a critic": Row({"baseline": "critic", "advantage": "gae", "inner_epochs": 2}, TWICE),
    "supervised (gold labels)": Row(kept_as="supervised"),
    "RRPO as printed": Row({"advantage": "gae", "ratio_anchor": "reference", "kl": "sampled"}),
    "RRPO from a weak reader": Row(teacher="weak"),
    "GRPO's advantages": Row({"scale": "deviation"}),
    "group mean": Row({"baseline": "group"}),
    "leave one out": Row({"baseline": "leave_one_out"}),
    "no baseline": Row({"baseline": "none"}),
    "advantage gae": Row({"advantage": "gae"}),
    "advantage marginal": Row({"advantage": "marginal"}),
    "KL sampled": Row({"kl": "sampled"}),
    "each rollout twice": Row({"inner_epochs": 2}, TWICE),
    "each rollout twice, advantage gae": Row({"inner_epochs": 2, "advantage": "gae"}, TWICE),
    "each rollout twice, ratio to the reference": Row({"inner_epochs": 2, "ratio_anchor": "reference"}, TWICE),
    "train_k 1": Row({"train_k": 1}),
    "train_k 2": Row({"train_k": 2}),
    "train_k 5": Row({"train_k": 5}),
}
MAIN = (
    "RRPO",
    "RRPO, one step, question",
    "listwise bandit",
    "PPO with a critic",
    "supervised (gold labels)",
)
"""Rows with every seed and every reading; the others have one seed, and are read by the reader of the training alone,
in its order and form."""
FIXED = {"first-stage": "BM25 order", "reference": "reference", "gold-first": "gold-first"}
"""The protocol's name of a row without training -> how it is printed."""
DEPTHS = {"top 3": {"top_k": 3}, "top 1": {"top_k": 1}, "top 5": {"top_k": 5}}
TRANSFER = {
    "best passage last": {"top_k": 3, "turned": True},
    "instruction before the question": {"top_k": 3, "instruction": "Answer with a few words of the passages:"},
    "passages without titles": {"top_k": 3, "untitled": True},
    "another reader": {"top_k": 3, "reader": "another"},
    "weak reader": {"top_k": 3, "reader": "weak"},
    "hotpotqa/dev": {"top_k": 3, "set": "hotpot"},
    "2wikimultihopqa": {"top_k": 3, "set": "2wiki"},
    "Query2Doc": {"top_k": 3, "set": query2doc.SET},
}
"""What the training did not have in view. An extractive reader has no prompt; what comes nearest to another one is
another form of its input, hence the second and the third."""
READINGS: dict[str, dict[str, Any]] = DEPTHS | TRANSFER


def seeds_of(row: str) -> tuple[int, ...]:
    """The seeds it is trained with; a fixed order has one."""
    return protocol.SEEDS if row in MAIN else protocol.SEEDS[:1]


def names_of(row: str) -> list[str]:
    """Folders of a row's seeds; a fixed order has one."""
    if row in FIXED:
        return [row]
    plain = "".join(c if c.isalnum() else "-" for c in row).strip("-")
    return [f"{ROWS[row].kept_as or f'paper-{plain}'}-{seed}" for seed in seeds_of(row)]


def settings_of(row: str) -> dict[str, Any]:
    """As the protocol takes them."""
    if row in FIXED:
        return {}
    if ROWS[row].kept_as:
        method = ROWS[row].kept_as
        return protocol.settings_of(method) or protocol.CHOSEN[method]
    own = {"rrpo": dict(ROWS[row].rrpo), "loop": dict(ROWS[row].loop)}
    teacher = ROWS[row].teacher
    return own | ({"teacher": {"name": teacher, **weights_of(teacher)}} if teacher else {})


def weights_of(name: str) -> dict[str, str]:
    """Digest of one of READERS: of the reader whose offsets are kept, because the records are of that one, whatever
    lies here (weights do not travel with the records); else of its file; nothing where there never was one."""
    file = READERS[name]
    offsets = file.with_suffix(".offsets.json")
    if kept.place(offsets).exists():
        return {file.name: kept.record_of(offsets)["made_with"][file.name]}
    return digests([file]) if file.exists() else {}


def lacks_reader(name: str) -> str:
    """Why one of READERS cannot read here; empty where it can."""
    file, wanted = READERS[name], weights_of(name)
    here = digests([file]) if file.exists() else {}
    if here and here == wanted:
        return ""
    what = f"{file} has other weights ({here[file.name]})" if here else f"{file} is not there"
    if wanted:
        return f"{what}; wanted {wanted[file.name]}, of which the records are. Copy it from where it was trained"
    return f"{what}; wanted a reader's weights. Train it with {TRAIN_READERS}, or copy it from where it was trained"


def readings_of(row: str) -> list[str]:
    """How its rankings are read."""
    return list(READINGS if row in (*FIXED, *MAIN) else DEPTHS)


def set_of(words: str) -> str:
    """The set that a reading is of."""
    return READINGS[words].get("set", "test")


def rankings_of(row: str, name: str) -> list[Path]:
    """Files of the rankings that its readings need."""
    return [protocol.rankings_at(name, each) for each in sets_of(row)]


def sets_of(row: str) -> list[str]:
    """The sets that its readings are of, as far as they are there."""
    return sorted({set_of(words) for words in readings_of(row)} & set(protocol.kept_sets()))


def train_row(row: str, name: str, seed: int, data: Mapping[str, list[Example]]) -> None:
    """Trains one seed of a row that is not the protocol's, and keeps its rankings."""
    settings = settings_of(row)

    def train() -> dict[str, Any]:
        teacher = reader_of(ROWS[row].teacher) if ROWS[row].teacher else None
        return protocol.train_one("rrpo", seed, data, settings, name, teacher=teacher)

    protocol.trained(name, settings, rankings_of(row, name), train)
    orders = protocol.orders_of(lambda: protocol.trained_model(name), data)
    protocol.keep_rankings(name, orders, settings, sets_of(row))


def reader_of(name: str) -> Any:
    """The embedded reader, or one of READERS."""
    from benchmarks.embedded.report import full_reader
    from rankwright.readers import EmbeddedReader

    if not name:
        return EmbeddedReader(device=DEVICE)
    if lack := lacks_reader(name):
        sys.exit(f"{lack}.")
    return full_reader(READERS[name])


def context_of(example: Example, ranking: Sequence[str], reading: Mapping[str, Any]) -> Context:
    """What the reader is given of a ranking."""
    documents = {document.doc_id: document for document in example.candidates}
    chosen = [documents[doc_id] for doc_id in ranking[: reading["top_k"]]]
    if reading.get("turned"):
        chosen.reverse()
    if reading.get("untitled"):
        chosen = [replace(document, title="") for document in chosen]
    query = example.query
    if instruction := reading.get("instruction"):
        query = replace(query, text=f"{instruction} {query.text}")
    return Context(query, tuple(chosen))


def score(
    rankings: Mapping[str, Sequence[str]], examples: Sequence[Example], reading: Mapping[str, Any], reader: Reader
) -> dict[str, float]:
    """query_id -> F1 of the answer from the first passages, read as `reading` says."""
    from rankwright.rewards import answer_reward

    contexts = [context_of(example, rankings[example.query.query_id], reading) for example in examples]
    results = reader.answer(contexts)
    outcomes = [
        Outcome(e, c, r, len(c.documents), e.query.query_id)
        for e, c, r in zip(examples, contexts, results, strict=True)
    ]
    found = {o.example.query.query_id: v.value for o, v in zip(outcomes, answer_reward("f1")(outcomes), strict=True)}
    if None in found.values():
        sys.exit(f"Reader {reader.name} failed; nothing is kept.")
    return {query_id: float(value or 0.0) for query_id, value in found.items()}


def read_anew(row: str, name: str, data: Mapping[str, list[Example]]) -> None:
    """Every reading of one model's rankings."""
    from rankwright.llms.cache import ReadStore
    from rankwright.readers import CachedReader

    settings = settings_of(row)
    protocol.WORK.mkdir(parents=True, exist_ok=True)
    with ReadStore(protocol.WORK / "reads.sqlite") as store:
        for words in readings_of(row):
            reading, path = READINGS[words], read_at(name, words)
            own = reading.get("reader", "")
            if set_of(words) not in protocol.kept_sets():
                print(f"{name}, {words}: left out, its passages are not written yet (benchmarks/query2doc.py)")
                continue
            if own and not kept.place(path).exists() and (lack := lacks_reader(own)):
                print(f"{name}, {words}: left out, {lack}", file=sys.stderr)
                continue

            def read_all(words: str = words, reading: Mapping[str, Any] = reading, own: str = own) -> dict[str, float]:
                each = set_of(words)
                rankings = read(protocol.rankings_at(name, each), protocol.ranked_with(settings, each))
                reader = CachedReader(reader_of(own), store, run=f"paper-{words}")
                return score(rankings, data[each], reading, reader)

            measured(path, made_with(settings, words), read_all)
            print(name, words, flush=True)


def made_with(settings: Mapping[str, Any], words: str) -> dict[str, Any]:
    """What decides a reading."""
    reading = READINGS[words]
    weights = weights_of(reading["reader"]) if "reader" in reading else {}
    return protocol.ranked_with(settings, set_of(words)) | {"reading": dict(reading)} | weights


def read_at(name: str, words: str) -> Path:
    """File of one reading."""
    return protocol.WORK / name / f"read-{''.join(c if c.isalnum() else '-' for c in words)}.json"


def by_seed(row: str, words: str) -> dict[int, dict[str, float]]:
    """Seed -> query_id -> F1, of the seeds that are there."""
    settings = settings_of(row)
    found = {
        seed: read(read_at(name, words), made_with(settings, words))
        for seed, name in zip(seeds_of(row), names_of(row), strict=True)
    }
    return {seed: part for seed, part in found.items() if part is not None}


def mean_over(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Per-question mean."""
    return {query_id: float(np.mean([part[query_id] for part in parts])) for query_id in parts[0]}


def compare(row: Mapping[int, Mapping[str, float]], base: Mapping[int, Mapping[str, float]]) -> Difference | None:
    """Of the per-question means over the seeds that both have; None where they share none.

    Args:
        row, base: seed -> query_id -> F1.
    """
    if not (seeds := tuple(sorted(row.keys() & base.keys()))):
        return None
    per, other = (mean_over([found[seed] for seed in seeds]) for found in (row, base))
    return differences.difference(per, other, seeds)


@cache
def difference(row: str, base: str, words: str) -> Difference | None:
    """None where one of them is missing. A fixed order stands beside every seed of the other."""
    per, other = by_seed(row, words), by_seed(base, words)
    if base in FIXED and other:
        other = dict.fromkeys(per, other[0])
    return compare(per, other)


def seeds_in_words(seeds: Sequence[int]) -> str:
    """For example: seeds 0, 1, 2."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def cell(row: str, words: str) -> str:
    """Mean, difference to the reference with its interval and p."""
    found = by_seed(row, words)
    against = difference(row, "reference", words)
    if against is None:
        return "not run"
    mean = np.mean(list(mean_over(list(found.values())).values()))
    marked = "" if against.seeds == protocol.SEEDS else f" ({seeds_in_words(against.seeds)})"
    return f"{mean:.3f}; {against}{marked}"


def fixed_cell(name: str, words: str) -> str:
    """Mean of an order without training."""
    found = by_seed(name, words)
    return f"{np.mean(list(found[0].values())):.3f}" if found else "not run"


def table(
    readings: Sequence[str], rows: Sequence[str], beside: Mapping[str, Callable[[str], str]] | None = None
) -> list[str]:
    """One line per row; `beside` gives further columns of the trained rows, by their heads."""
    more = beside or {}
    fixed = [
        [shown, *(fixed_cell(name, words) for words in readings), *("" for _ in more)] for name, shown in FIXED.items()
    ]
    trained = [[row, *(cell(row, words) for words in readings), *(of(row) for of in more.values())] for row in rows]
    lines = [f"| {' | '.join(cells)} |" for cells in (["row", *readings, *more], *fixed, *trained)]
    return [lines[0], "|---" * (len(readings) + len(more) + 1) + "|", *lines[1:]]


def each_seed(row: str) -> str:
    """F1 at top 3 of every seed; nothing where there is one."""
    found = by_seed(row, "top 3")
    return " ".join(f"{np.mean(list(part.values())):.3f}" for part in found.values()) if len(found) > 1 else ""


def reads_at_most(row: str) -> str:
    """Reads of a visit of a question while training: an upper bound."""
    from rankwright.algorithms import RRPO, RRPOConfig

    settings: dict[str, Any] = settings_of(row)
    if "rrpo" not in settings:
        return "0"
    nobody: Any = None  # the bound is of the settings alone
    return f"{RRPO(RRPOConfig(**settings['rrpo']), nobody, nobody).reads_per_question(protocol.TRAIN_DEPTH)}"


def verdict(found: Difference, alpha: float | None = None) -> str:
    """Held where the interval lies above 0 and p below 0.05, or below the level that the paper names."""
    if found.high < 0:
        return "not held: the opposite"
    if found.low <= 0:
        return "not held: no difference shown"
    level = 0.05 if alpha is None else alpha
    return "held" if found.p < level else f"not held: p is not below {level:g}"


@dataclass(frozen=True)
class Claim:
    """What the paper found, as a difference between two rows that must be positive."""

    words: str
    row: str = ""
    base: str = "reference"
    reading: str = "top 3"
    alpha: float | None = None
    """Level of significance, where the claim is about one."""
    why_not: str = ""
    """Why it cannot be tested here, where it is not measured either."""
    other: Callable[[], tuple[str, str]] | None = None
    """Gives verdict and what was seen, where the claim is not about a difference between rows."""

    def found(self) -> Difference | None:
        """The difference that it is about; None where there is none, or it is not measured."""
        return difference(self.row, self.base, self.reading) if self.row else None

    def line(self, corrected: float | None = None) -> str:
        """Claim, verdict, what was seen. `corrected` is its p among all claims."""
        return f"| {self.words} | {' | '.join(self.judged(corrected))} |"

    def judged(self, corrected: float | None = None) -> tuple[str, str]:
        """Verdict and what was seen."""
        if self.other is not None:
            return self.other()
        what = f"{self.row} minus {self.base}, {self.reading}"
        if (found := self.found()) is None:
            return ("not testable here", self.why_not) if self.why_not else ("not run", what)
        words = verdict(found, self.alpha)
        if words == "held" and corrected is not None and corrected >= (self.alpha or 0.05):
            words = "held; not after Holm's correction"
        if len(found.seeds) < len(protocol.SEEDS):
            words += f" ({seeds_in_words(found.seeds)})"
        return words, f"{what}, {seeds_in_words(found.seeds)}: {found}"


def claim_lines() -> list[str]:
    """All claims. p-values are corrected among those that are measured."""
    found = [claim.found() for claim in CLAIMS]
    corrected = iter(holm([one.p for one in found if one is not None]))
    return [claim.line(next(corrected) if one is not None else None) for claim, one in zip(CLAIMS, found, strict=True)]


HALF = 0.45
"""Share of calls that counts as about half, and more: our reading of "about"."""


def saved_by_cache() -> tuple[str, str]:
    """Of the paper's claim about its cache."""
    if (record := calls.record_of(calls.EXACT)) is None:
        return "not run", "[calls.md](calls.md), exact cache"
    of_asked, of_naive = calls.saved_by_cache(record), 1 - calls.share_of(record)
    what = (
        f"of all answers that the run asked for, {of_asked:.0%} came from the cache; against the sampled prefixes "
        f"alone, each read anew, it saved {of_naive:.0%} ([calls.md](calls.md)). Two epochs, three steps, four "
        f"samples, ten candidates, seed {calls.SEEDS[0]}; held from {HALF:.0%} on, and the paper does not say which is "
        "meant"
    )
    held = [round(saved, 6) >= HALF for saved in (of_asked, of_naive)]
    return "held" if all(held) else "held by one count, not by the other" if any(held) else "not held", what


def musique() -> tuple[str, str]:
    """Of the paper's claim about MuSiQue."""
    asked, there = len(side("test", ("musique",))), len(load_set("musique"))
    return "not testable here", f"of the {there} questions at hand all but {asked} taught reader or reference"


SETTINGS = "RRPO, one step, question"
CLAIMS = (
    Claim("RRPO lifts the reranker it starts from", "RRPO"),
    Claim("... in the form that the paper prints", "RRPO as printed"),
    Claim("... with our settings", SETTINGS),
    Claim("the gain is significant (paper: p < 0.01, paired t-test)", "RRPO", alpha=0.01),
    Claim("... with our settings", SETTINGS, alpha=0.01),
    Claim("gains at top 5 (paper: AmbigNQ, +1.12 F1 points)", "RRPO", reading="top 5"),
    Claim(
        "gains on HotpotQA at top 3 (paper: +1.99 F1 points, trained on it; here on other questions)",
        "RRPO",
        reading="hotpotqa/dev",
    ),
    Claim("... with our settings", SETTINGS, reading="hotpotqa/dev"),
    Claim(
        "every reranker is lifted (jina, bge, gte, qwen3)",
        why_not="one trained reranker was at hand, the embedded reference; weights of others would have to be fetched",
    ),
    Claim(
        "RRPO is ahead of FLARE and DRAGIN",
        why_not="both retrieve while a language model writes, by the probabilities of its words; the embedded reader "
        "copies one span",
    ),
    Claim("RRPO is ahead of RankZephyr", why_not="its weights (7 billion) would have to be fetched"),
    Claim("three steps while training are better than one", "RRPO", "train_k 1"),
    Claim("... and better than five", "RRPO", "train_k 5"),
    Claim("gains hold on 2WikiMultiHopQA", "RRPO", reading="2wikimultihopqa"),
    Claim("... and are small on MuSiQue", other=musique),
    Claim(
        "the trained ranking helps a reader that it never saw (here: the same recipe with another seed)",
        "RRPO",
        reading="another reader",
    ),
    Claim("... and a weaker one (here: the same after cloze questions alone)", "RRPO", reading="weak reader"),
    Claim(
        "... and readers of other families and sizes, hosted ones among them",
        why_not="no other reader was at hand: no weights of a language model, no endpoint",
    ),
    Claim("a weak reader's rewards still teach", "RRPO from a weak reader"),
    Claim(
        "gains hold with two other prompts (here: an instruction before the question)",
        "RRPO",
        reading="instruction before the question",
    ),
    Claim("... (here: passages without titles)", "RRPO", reading="passages without titles"),
    Claim(
        "RRPO adds to Query2Doc's gain",
        "RRPO",
        reading="Query2Doc",
        why_not="Query2Doc has a language model write a passage out of what it knows; none that knows the world was at "
        "hand (those trained here know an invented language)",
    ),
    Claim("a listwise bandit is better at top 1", "listwise bandit", "RRPO", "top 1"),
    Claim("... and worse at top 3", "RRPO", "listwise bandit"),
    Claim("PPO with a critic is better at top 1", "PPO with a critic", "RRPO", "top 1"),
    Claim("... and worse at top 3", "RRPO", "PPO with a critic"),
    Claim(
        "our question: ... and worse at top 3 than with the reference as baseline, all else being equal",
        "each rollout twice, advantage gae",
        "PPO with a critic",
    ),
    Claim("the replay cache saves about half of the reader calls", other=saved_by_cache),
    Claim("our question: gains hold in another order of the passages", "RRPO", reading="best passage last"),
    Claim("our question: answers teach more than gold labels", SETTINGS, "supervised (gold labels)"),
)


HEAD = """# The paper's questions at the size of this protocol

```
python -m benchmarks.paper run
python -m benchmarks.paper page
```
"""
ABOUT = f"""
F1; difference to the reference over the same questions, 95 % bootstrap interval (of the mean over seeds, so that it
does not tell how far other seeds would be) and paired sign-flip permutation test, both over groups of questions that
share a passage or an article, not corrected for the number of rows. Rows without mark are means over three seeds.
Training in bf16 autocast, rankings in {protocol.RANKING}, readers in fp32.

## Rows

Read by the reader of the training, which sees the first three passages, the first, or the first five.
"""
BESIDE = """
## What the training did not have in view

The first three passages, read otherwise: the best one last; an instruction before the question, or passages without
their titles (the embedded reader has no prompt, and other forms of its input stand for other prompts); by a reader of
the same recipe with another seed, which was not cut down to an adapter, and by that one as it was after cloze questions
alone; questions of other sets, of several hops; and candidates that were found with a passage which a language model
wrote for each question (`python -m benchmarks.query2doc` asks one that is at hand, then protocol and paper go on).
"""
JUDGED = """
## The paper's claims

Held where the 95 % interval of the difference lies above 0 and p below 0.05, or below the level that the claim names;
whether it still is after Holm's correction over all claims that are measured here, is said beside it. Two rows are
compared over the seeds that both have. Where the paper says RRPO, the row of that name stands for it.

| claim | here | measured |
|---|---|---|"""


def settings_in_words(row: str) -> str:
    """Settings of RRPO that differ from the defaults, and the learning rate."""
    settings = settings_of(row)
    own = [f"{name} {value}" for name, value in settings.get("rrpo", {}).items()]
    loop = protocol.LOOP | settings.get("loop", {})
    return ", ".join([*own, f"learning rate {loop['learning_rate']:g}"])


def trained_how() -> str:
    """What rows have in common, and the settings of those that stand apart."""
    from rankwright.algorithms import RRPOConfig

    common = RRPOConfig(**settings_of("RRPO").get("rrpo", {}))
    chosen = [f'"{row}" ({settings_in_words(row)})' for row in ROWS if ROWS[row].kept_as]
    words = (
        f"Protocol of [protocol.md](protocol.md): {protocol.count_of('rrpo'):,} training questions, BM25 over all "
        "pooled passages, 10 candidates while training, 20 in the test, "
        f"{protocol.count_of('test'):,} questions of nq_open and xquad_en, embedded reader. Unless a row says "
        f"otherwise: {common.train_k} steps, {common.samples} samples, the reference's greedy ranking as baseline, "
        f"{settings_in_words('RRPO')}, one pass over the questions, half of the way from the starting weights, best of "
        "three points on dev. Rows of protocol.md have settings of their own, which were chosen on the training and "
        f"dev sides: {' and '.join(chosen)}. For no other row were settings chosen."
    )
    form = (
        "RRPO here is this package's default form. It differs from the printed one in three settings: the advantage of "
        "a step sums reward minus the reference's reward over it and the later ones, the ratio is to the policy that "
        "sampled (with one update of each rollout it is 1, and the clip idle), and the KL is exact over the "
        'candidates. The row "RRPO as printed" has all three as the paper prints them.'
    )
    reuse = (
        f"The {protocol.count_of('test'):,} test questions are not fresh: the protocol read them three times before "
        "([protocol.md](protocol.md)). Values of settings were chosen on the training and dev sides alone, but that "
        "interpolation and a larger pool were looked for at all followed from what those readings showed."
    )
    sizes = (
        f"hotpotqa/dev has {protocol.count_of('test', protocol.TEST_SETS['hotpot']):,} questions, 2wikimultihopqa "
        f"{protocol.count_of('test', protocol.TEST_SETS['2wiki']):,}."
    )
    return "\n\n".join(
        textwrap.fill(part, 120, break_long_words=False, break_on_hyphens=False) for part in (words, form, reuse, sizes)
    )


def page() -> str:
    """The results page."""
    columns = {"top 3 by seed": each_seed, "reads a visit, at most": reads_at_most}
    rows, beside = table(list(DEPTHS), list(ROWS), columns), table(list(TRANSFER), MAIN)
    return "\n".join([HEAD, trained_how(), ABOUT, *rows, BESIDE, *beside, JUDGED, *claim_lines(), ""])


def is_measured() -> bool:
    """Whether anything of the page is kept."""
    readings = (read_at(name, words) for row in (*FIXED, *ROWS) for name in names_of(row) for words in readings_of(row))
    return any(kept.place(path).exists() for path in readings) or calls.record_of(calls.EXACT) is not None


def run_one(row: str, seed: int) -> None:
    """Trains where a row trains, ranks the test side and reads the rankings in every way."""
    name = names_of(row)[seeds_of(row).index(seed)]
    data = protocol.splits()
    if row in FIXED:
        orders = protocol.orders_of(lambda: protocol.fixed_model(name, data), data)
        protocol.keep_rankings(name, orders, {}, protocol.kept_sets())
    elif not ROWS[row].kept_as:
        train_row(row, name, seed, data)
    read_anew(row, name, data)


def lacks(row: str, seed: int) -> str:
    """What a row needs and does not have yet; empty where it can be run."""
    name = names_of(row)[seeds_of(row).index(seed)]
    if row in FIXED or all(kept.place(file).exists() for file in rankings_of(row, name)):
        return ""
    if ROWS[row].kept_as:
        return f"{name} is not trained by benchmarks.protocol yet"
    teacher = ROWS[row].teacher
    return lacks_reader(teacher) if teacher else ""


def run_all(rows: Sequence[str], seeds: Sequence[int], jobs: int) -> None:
    """Each row and seed in a process of its own, all rows with the first seed before the second."""
    wanted = [(row, 0) for row in FIXED] + [(row, seed) for seed in seeds for row in rows if seed in seeds_of(row)]
    for row, seed in wanted:
        if lack := lacks(row, seed):
            print(f"{row}, seed {seed}: left out, {lack}", file=sys.stderr)
    tasks = [(row, seed) for row, seed in wanted if not lacks(row, seed)]
    kept.run_each([["benchmarks.paper", "one", "--row", row, "--seed", str(seed)] for row, seed in tasks], jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "one", "page"))
    parser.add_argument("--row", nargs="*", default=[], choices=[*FIXED, *ROWS])
    parser.add_argument("--seed", type=int, nargs="*", default=list(protocol.SEEDS), choices=protocol.SEEDS)
    parser.add_argument("--jobs", type=int, default=1, help="with run: processes side by side")
    args = parser.parse_args()
    if args.what == "one":
        run_one(args.row[0], args.seed[0])
    elif args.what == "run":
        run_all([row for row in args.row or ROWS if row in ROWS], args.seed, args.jobs)
    else:
        pages.write(PAGE, page(), measured=is_measured())


if __name__ == "__main__":
    sys.exit(main())
