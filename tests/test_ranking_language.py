"""The ranking language of benchmarks/ranking_language: what is claimed of it."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.ranking_language import page as pages
from benchmarks.ranking_language.decoder import LONGEST_COMPLETION, LONGEST_PROMPT, decoder, tokenizer
from benchmarks.ranking_language.language import (
    ALONE,
    GRADES,
    KINDS,
    MISLED,
    MISTAKEN,
    TOPICS,
    VALUES,
    WINDOWS,
    WORDS,
    PerfectReader,
    grade,
    order_by,
    prompt,
    questions,
    side_of,
    taught_levels,
    true_levels,
    worth,
    written,
)
from benchmarks.ranking_language.rows import BASE, RANDOM, ROWS, SEEDS, PlainNDCG, Row, reward_of
from rankwright.algorithms.grpo import NOT_READ
from rankwright.metrics.orders import ndcg
from rankwright.types import Answer, Choice, Completion, Context, Example, Outcome, Permutation, Scores

QUERIES = [f"{topic} {value}" for topic, value in itertools.product(TOPICS, VALUES)]


def test_a_seed_decides_the_questions_and_the_sides_share_no_query() -> None:
    assert questions(20, 3) == questions(20, 3)
    assert questions(20, 3) != questions(20, 4)
    found = {side: {e.query.text for e in questions(1500, 0, side=side)} for side in ("train", "dev", "test")}
    assert found == {side: {query for query in QUERIES if side_of(query) == side} for side in found}
    assert {side: len(found[side]) / len(QUERIES) for side in ("dev", "test")} == {"dev": 1 / 8, "test": 1 / 4}
    for side in found:
        assert {query.split()[0] for query in found[side]} == set(TOPICS)


def test_windows_grades_and_answers_are_as_described() -> None:
    sizes, grades = set(), set()
    for example in questions(300, 1):
        sizes.add(len(example.candidates))
        grades |= set(example.relevance.values())
        worths = [worth(example.query.text, document.text) for document in example.candidates]
        best = [i for i, value in enumerate(worths) if value == max(worths)]
        assert {example.candidates[i].text.split()[-1] for i in best} == set(example.answers)
        assert len({document.text.split()[-1] for document in example.candidates}) == len(worths)
    assert sizes == set(WINDOWS)
    assert grades == {0, 1, 2, 3}


def test_every_word_counts_alike_wherever_it_stands_and_topics_are_of_two_kinds() -> None:
    assert not set(TOPICS) & set(WORDS)
    for query in QUERIES:
        assert worth(query, "w00 w05 w10 v00") == worth(query, "w10 w00 w05 v31")
        assert {worth(query, f"{word} {word} {word} v00") for word in WORDS} == {0, 3, 6}
    kinds = {tuple(worth(f"{topic} v00", f"{w} {w} {w} v00") for w in WORDS) for topic in TOPICS}
    assert len(kinds) == 2


def test_levels_say_the_best_order_of_grades() -> None:
    for example in questions(100, 5):
        levels = true_levels(example)
        grades = [example.relevance[example.candidates[i].doc_id] for i in order_by(levels)]
        assert grades == sorted(grades, reverse=True)
        assert levels == tuple(worth(example.query.text, document.text) for document in example.candidates)
        assert sorted(order_by(taught_levels(example, 0))) == list(range(len(levels)))


def test_the_teacher_mostly_takes_half_of_the_topics_for_the_other_kind() -> None:
    def error(example: Example, misled: bool) -> float:
        worths = [worth(example.query.text, document.text, misled=misled) for document in example.candidates]
        return sum(abs(a - b) for a, b in zip(worths, taught_levels(example, 0), strict=True)) / len(worths)

    mistaken: dict[str, list[bool]] = {topic: [] for topic in TOPICS}
    for example in questions(2000, 6):
        mistaken[example.query.text.split()[0]].append(error(example, False) > error(example, True))
    for topic, of_topic in mistaken.items():
        share = sum(of_topic) / len(of_topic)
        assert share == pytest.approx(MISTAKEN, abs=0.1) if int(topic[1:]) in MISLED else share == 0


def test_the_reader_answers_with_the_best_of_what_it_is_given() -> None:
    (example,) = questions(1, 0)
    reader, order = PerfectReader(), order_by(true_levels(example))
    whole = Context(example.query, example.candidates)
    assert isinstance(reader.answer([whole])[0], Answer)
    assert reader.answer([whole])[0].text in example.answers  # pyright: ignore[reportAttributeAccessIssue]
    worst = Context(example.query, (example.candidates[order[-1]],))
    assert reader.answer([worst, Context(example.query, ())]) == [
        Answer(example.candidates[order[-1]].text.split()[-1]),
        Answer(""),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_as_it_was_meant(kind: str) -> None:
    for example in questions(30, 7, window=1 if kind in ALONE else None):
        levels = true_levels(example)
        order, grades = order_by(levels), tuple(float(GRADES[level]) for level in levels)
        meant = {
            "listwise": Permutation(order),
            "setwise": Choice(order[0]),
            "groupwise": Scores(grades),
            "integer": Scores(grades),
            "binary": Scores(tuple(float(grade(level) > 0) for level in levels)),
        }
        assert prompt(kind).parse(Completion(written(levels, kind)), len(order), strict=True) == meant[kind]


@pytest.mark.parametrize(
    "text",
    ["", "[1] > [2]", "<think> a </think> <answer> [1] </answer>", "<think> a </think> <answer> [1] > [1] </answer>",
     "<think> a </think> <answer> [1] > [3] </answer>", "<think> a </think> <answer> [0] > [1] </answer>",
     "<think> a </think> <answer> [1] [2] </answer>", "<think> a </think> <answer> [2] > [1] </answer> x"],
)  # fmt: skip
def test_any_other_form_is_malformed(text: str) -> None:
    found = prompt().parse(Completion(text), 2, strict=True)
    assert (found.outcome, found) == ("malformed", Permutation((0, 1), "malformed", found.repairs))


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokenizer_knows_every_word_and_gives_the_text_back(kind: str) -> None:
    words, asked = tokenizer(), prompt(kind)
    for window in (1,) if kind in ALONE else WINDOWS:
        (example,) = questions(1, 0, window=window)
        messages = [{"role": r, "content": t} for r, t in asked.messages(example.query, example.candidates)]
        text = str(words.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        completion = written(true_levels(example), kind)
        for one in (text, completion):
            ids = words(one, add_special_tokens=False)["input_ids"]
            assert words.unk_token_id not in ids
            assert words.decode(ids) == one.strip()
        assert len(words(text)["input_ids"]) == 3 + window * 5 + 1 <= LONGEST_PROMPT
        length = len(words(completion)["input_ids"]) + 1
        assert length <= LONGEST_COMPLETION
        limit = int(asked.sampling["max_tokens"])
        assert (limit, length) == (1, 2) if kind == "binary" else length <= limit


def test_the_decoder_has_about_a_million_weights() -> None:
    assert 0.5e6 < sum(weights.numel() for weights in decoder(0).parameters()) < 1.5e6


def test_the_rewards_of_the_ablation_are_ndcg_and_its_difference_to_the_order_as_given() -> None:
    (example,) = questions(1, 3, window=6)
    grades = [example.relevance[document.doc_id] for document in example.candidates]
    best = sorted(grades, reverse=True)
    for order in (range(6), range(5, -1, -1)):
        judgement = Permutation(tuple(order))
        outcome = Outcome(example, Context(example.query, example.candidates), NOT_READ, 0, "q", judgement, "")
        value, given = ndcg([grades[i] for i in order], best, 10), ndcg(grades, best, 10)
        assert PlainNDCG("ndcg")([outcome])[0].value == pytest.approx(value)
        assert PlainNDCG("difference")([outcome])[0].value == pytest.approx(value - given)
    broken = Outcome(
        example, outcome.context, NOT_READ, 0, "q", Permutation(tuple(range(6)), "malformed", ("no id",)), ""
    )
    assert [PlainNDCG(name)([broken])[0].value for name in ("ndcg", "difference")] == [0.0, -1.0]


def made_up(gain: float) -> dict[str, Any]:
    """A record of a run that gained so much on every question."""
    names = [example.query.query_id for example in questions(20, 2, side="test")]
    before = dict.fromkeys(names, 0.5)
    scored = {
        when: {"ndcg": values, "best_first": values, "malformed": 0.0}
        for when, values in (("before", before), ("after", dict.fromkeys(names, 0.5 + gain)))
    }
    log = [{"step": 0, "eval_ndcg": 0.5, "eval_best_first": 0.5}, {"step": 1, "reward": 0.25, "kl": 0.0}]
    return {**scored, "log": log, "steps": 1, "seconds": 2.0, "processor_seconds": 1.0, "hardware": "paper"}


def test_the_page_says_learned_only_of_three_seeds_and_names_what_was_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    gains = {("rearank", 0): 0.1, ("rearank", 1): 0.2, ("rearank", 2): 0.3, ("reader", 0): 0.1, ("ndcg", 0): 0.4}
    gains |= {("rank-r1", seed): -0.1 for seed in SEEDS}

    def record(row: Row, seed: int) -> dict[str, Any] | None:
        return made_up(gains[row.name, seed]) if (row.name, seed) in gains else None

    monkeypatch.setattr(pages, "record", record)
    monkeypatch.setattr(pages, "TEST", 20)
    text = pages.page()
    learned = text.partition("## What was learned")[2].partition("##")[0]
    assert re.search(r"\| rearank \| nDCG@10 \| \+0\.200 .*\| learned \|", learned)
    assert re.search(r"\| rank-r1 \| best first \| -0\.100 .*\| unlearned \|", learned)
    assert re.search(r"\| reader \| nDCG@10 \| \+0\.100 .*\| 1 seed \|", learned)
    against = text.partition("## Against")[2].partition("##")[0]
    assert re.search(r"\| ndcg \| 0 \| \+0\.300 ", against)
    assert text.count("not run") == sum(len(row.seeds) for row in (*pages.LESSONS.values(), *ROWS.values())) - len(
        gains
    )


def test_runs_of_one_question_of_settings_differ_in_nothing_else() -> None:
    """Ablations change what their name says: the reward, the start, or how a step's completions are divided."""
    for name in ("ndcg", "difference", "reasonrank", "reader"):
        assert ROWS[name].grpo == BASE.grpo
        assert ROWS[name].loop == BASE.loop
    assert ROWS["rl-only"] == replace(BASE, name="rl-only", start=RANDOM, seeds=(0,))
    assert ROWS["rearank-default"] == replace(BASE, name="rearank-default", options={}, seeds=(0,))
    for name in ("group-4", "group-16"):
        row = ROWS[name]
        assert row.grpo.rollouts * row.loop.batch_size == BASE.grpo.rollouts * BASE.loop.batch_size


def test_an_order_that_cannot_be_read_costs_what_the_row_says() -> None:
    (example,) = questions(1, 3, window=6)
    text = "<think> [1] s0 </think> <answer> [1] > [1] </answer>"
    judgement = prompt().parse(Completion(text), 6, strict=True)
    outcome = Outcome(example, Context(example.query, example.candidates), NOT_READ, 0, "q", judgement, text)
    paid = {name: reward_of(ROWS[name])([outcome])[0].value for name in ("rearank", "rearank-default")}
    assert paid == {"rearank": pytest.approx(0.2 - 0.8), "rearank-default": pytest.approx(0.2)}
