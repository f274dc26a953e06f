"""The ranking language of benchmarks/ranking_language: what is claimed of it."""

from __future__ import annotations

import itertools

import pytest

from benchmarks.ranking_language.decoder import LONGEST_COMPLETION, LONGEST_PROMPT, decoder, tokenizer
from benchmarks.ranking_language.language import (
    TOPICS,
    VALUES,
    WINDOWS,
    WORDS,
    PerfectReader,
    is_held_out,
    order_by,
    prompt,
    questions,
    taught_levels,
    true_levels,
    worth,
    written,
)
from rankwright.types import Answer, Choice, Completion, Context, Permutation

QUERIES = [f"{topic} {value}" for topic, value in itertools.product(TOPICS, VALUES)]


def test_a_seed_decides_the_questions_and_held_out_pairs_are_apart() -> None:
    assert questions(20, 3) == questions(20, 3)
    assert questions(20, 3) != questions(20, 4)
    train = {example.query.text for example in questions(2000, 0)}
    held_out = {example.query.text for example in questions(2000, 0, held_out=True)}
    assert not train & held_out
    assert {pair for pair in QUERIES if is_held_out(pair)} == held_out
    assert 0.2 < len(held_out) / len(QUERIES) < 0.3


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


def test_levels_say_the_best_order_of_grades_and_the_teacher_is_partly_wrong() -> None:
    examples = questions(400, 5)
    right = 0
    for example in examples:
        worths = [worth(example.query.text, document.text) for document in example.candidates]
        levels, taught = true_levels(example), taught_levels(example, 0)
        grades = [example.relevance[example.candidates[i].doc_id] for i in order_by(levels)]
        assert grades == sorted(grades, reverse=True)
        assert levels == tuple(worths)
        assert sorted(order_by(taught)) == list(range(len(worths)))
        right += levels[order_by(taught)[0]] == max(levels)
    assert 0.3 < right / len(examples) < 0.9


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


@pytest.mark.parametrize("kind", ["listwise", "setwise"])
def test_what_is_written_is_read_as_it_was_meant(kind: str) -> None:
    for example in questions(30, 7):
        levels = true_levels(example)
        order = order_by(levels)
        found = prompt(kind).parse(Completion(written(levels, kind)), len(order), strict=True)
        assert found == (Permutation(order) if kind == "listwise" else Choice(order[0]))


@pytest.mark.parametrize(
    "text",
    ["", "[1] > [2]", "<think> a </think> <answer> [1] </answer>", "<think> a </think> <answer> [1] > [1] </answer>",
     "<think> a </think> <answer> [1] > [3] </answer>", "<think> a </think> <answer> [0] > [1] </answer>",
     "<think> a </think> <answer> [1] [2] </answer>", "<think> a </think> <answer> [2] > [1] </answer> x"],
)  # fmt: skip
def test_any_other_form_is_malformed(text: str) -> None:
    found = prompt().parse(Completion(text), 2, strict=True)
    assert (found.outcome, found) == ("malformed", Permutation((0, 1), "malformed", found.repairs))


def test_the_tokenizer_knows_every_word_and_gives_the_text_back() -> None:
    words = tokenizer()
    for window in WINDOWS:
        (example,) = questions(1, 0, window=window)
        messages = [{"role": r, "content": t} for r, t in prompt().messages(example.query, example.candidates)]
        asked = words.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        completion = written(true_levels(example))
        for text in (str(asked), completion):
            ids = words(text, add_special_tokens=False)["input_ids"]
            assert words.unk_token_id not in ids
            assert words.decode(ids) == text.strip()
        assert len(words(str(asked))["input_ids"]) == 2 + window * 5 + 1 <= LONGEST_PROMPT
        assert len(words(completion)["input_ids"]) + 1 == 4 + 4 * window <= LONGEST_COMPLETION


def test_the_decoder_has_about_a_million_weights() -> None:
    assert 0.5e6 < sum(weights.numel() for weights in decoder(0).parameters()) < 1.5e6
