"""`rankwright rerank --llm`: every strategy against a server that can read, and what is told of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from rankwright.cli.app import run
from rankwright.cli.llm import WAYS, CountingReranker, llm_settings, told
from rankwright.cli.options import STRATEGIES
from rankwright.data import read_trec_run
from rankwright.evaluation import Evaluation
from rankwright.llms.local import LocalLLM
from rankwright.prompts.ranking import load_ranking_prompt
from rankwright.strategies import Sliding, StrategyReport
from rankwright.types import Document, Query, RerankRequest
from tests.cli_kit import body_of, feed, one_line, reply, serving, write_rows
from tests.simulated_llm import SimulatedJudge
from tests.tiny_lm import make_chain_model

GRADES = {"q1": [3, 9, 0, 7, 5, 1, 8, 2], "q2": [0, 4, 10, 6]}
CALLS = {
    "sliding": 4,
    "topk": 4,
    "heapsort": None,
    "bubblesort": None,
    "pointwise": 12,
    "groupwise": 3,
    "single-token": 4,
}
"""Of both questions, with windows of 4 by 2 (topk keeps 2, groups of 4): of 8 documents 3, of 4 one."""


def label_grades(words: str) -> dict[str, int]:
    return {label: int(grade) for label, grade in re.findall(r"\[(\w+)\] grade (\d+)", words)}


def said(words: str) -> tuple[str, list[dict[str, float]]]:
    """What a model says that can read the grades of its passages, and the log probabilities of its tokens."""
    alone = re.search(r"Passage: grade (\d+)", words)
    if alone:
        likely = (int(alone[1]) + 0.5) / 11
        verdict = {"yes": math.log(likely), "no": math.log(1 - likely)}
        word = max(verdict, key=lambda name: verdict[name])
        return word, [{word: verdict[word], **verdict}]
    grades = label_grades(words)
    best = sorted(grades, key=lambda label: -grades[label])
    if "JSON" in words:
        return f"<reason>-</reason><answer>{json.dumps({f'[{label}]': grades[label] for label in grades})}</answer>", []
    if "Which one" in words:
        return f"[{best[0]}]", []
    if best[0].isalpha():
        return best[0], [{label: -1.0 - rank for rank, label in enumerate(best)}]
    return " > ".join(f"[{label}]" for label in best), []


@pytest.fixture
def seen() -> list[dict[str, Any]]:
    """Bodies of the requests."""
    return []


@pytest.fixture
def server(seen: list[dict[str, Any]]) -> Iterator[str]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        body = json.loads(body_of(request))
        seen.append(body)
        text, tokens = said("\n".join(message["content"] for message in body["messages"]))
        text = " > ".join(reversed(text.split(" > "))) if body["model"] == "contrary" else text
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
        }
        if body.get("logprobs"):
            content = [
                {
                    "token": next(iter(top)),
                    "logprob": next(iter(top.values())),
                    "top_logprobs": [{"token": token, "logprob": value} for token, value in top.items()],
                }
                for top in tokens
            ]
            choice["logprobs"] = {"content": content}
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        reply(request, {"choices": [choice], "usage": usage})

    with serving(answer) as url:
        yield url


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            "query": {"text": f"what is {query_id}?", "qid": query_id},
            "candidates": [
                {"docid": f"{query_id}-{i}", "score": 20.0 - i, "doc": {"contents": f"grade {grade}"}}
                for i, grade in enumerate(grades)
            ],
        }
        for query_id, grades in GRADES.items()
    ]
    return write_rows(tmp_path / "candidates.jsonl", rows)


def best_first(query_id: str) -> list[str]:
    grades = GRADES[query_id]
    return [f"{query_id}-{i}" for i in sorted(range(len(grades)), key=lambda i: -grades[i])]


def options_of(strategy: str) -> list[str]:
    if strategy in ("sliding", "single-token"):
        return ["--window", "4"]  # by 2
    if strategy == "topk":
        return ["--window", "4", "--set", "top_k=2"]
    if strategy == "groupwise":
        return ["--set", "group=4"]
    return [] if strategy == "pointwise" else ["--set", "children=3", "--set", "top_k=2"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_finds_the_best_and_tells_what_it_took(
    strategy: str, server: str, data: Path, seen: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["rerank", "--llm", server, "--llm-model", "m", "--strategy", strategy, "--data", str(data)]
    arguments += ["--format", "rank_llm", "--output", "json", *options_of(strategy)]
    assert run(arguments) == 0
    found = one_line(capsys.readouterr().out)
    for ranking in found["rankings"]:
        whole = strategy in ("pointwise", "groupwise")
        wanted = best_first(ranking["query_id"])
        assert ranking["doc_ids"][: None if whole else 2] == wanted[: None if whole else 2]
        assert sorted(ranking["doc_ids"]) == sorted(wanted)
        assert ranking["scores"] == sorted(ranking["scores"], reverse=True)
    assert [ranking["query_id"] for ranking in found["rankings"]] == list(GRADES)
    assert found["calls"] == found["paid_calls"] == len(seen)
    assert CALLS[strategy] in (None, found["calls"])
    assert found["tokens"] == {"input": 100 * len(seen), "output": 10 * len(seen), "unknown": 0}
    assert found["outcomes"] == {"ok": len(seen), "repaired": 0, "malformed": 0}
    assert 1 <= found["sequential_depth"] <= found["calls"]
    assert WAYS[strategy].prompt in found["reranker"]

    assert run(arguments) == 0  # the cache answers
    again = one_line(capsys.readouterr().out)
    assert (again["paid_calls"], again["rankings"]) == (0, found["rankings"])


def test_progress_is_shown_in_one_place_at_a_time(server: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int, int]] = []
    shown: list[int] = [0]

    @contextmanager
    def bars() -> Iterator[Callable[[str, int, int], None]]:
        shown.append(shown[-1] + 1)
        yield lambda what, done, total: told.append((what, done, total))
        shown.append(shown[-1] - 1)

    monkeypatch.setattr("rankwright.cli.llm.progress_bars", bars)
    monkeypatch.setattr("rankwright.cli.rerank.progress_bars", bars)
    arguments = ["rerank", "--data", str(data), "--format", "rank_llm"]
    assert run([*arguments, "--llm", server, "--llm-model", "m"]) == 0
    assert run([*arguments, "--model", "first-stage"]) == 0
    assert max(shown) == 1  # rich below 14.1 ends the run with a LiveError at the second
    assert told[-1] == ("rerank", 2, 2)
    assert ("rank by sliding(window=20,stride=10,passes=1)", 2, 2) in told


def test_what_any_number_of_batches_took_is_told_out_of_sums() -> None:
    """A million questions of `--out` are tens of thousands of batches, after each of which calls are counted."""
    judge = SimulatedJudge({}, "permutation", malformed=0.2, failed=0.2)
    reranker = CountingReranker(judge, Sliding(4, 2), max_failed=1.0)
    every, sizes = StrategyReport(), list[int]()
    for batch in range(40):
        documents = tuple(Document(str(number), "text") for number in range(batch % 9))
        reranker.rerank_batch([RerankRequest(Query(f"{batch} {number}", "?"), documents) for number in range(8)])
        every += reranker.report
        assert told(reranker.total) == told(every)
        sizes.append(len(repr(reranker.total)))
    assert (every.failures.total() > 0, len(every.calls_per_query)) == (True, 320)
    assert sizes[39] < sizes[9] + 40  # digits


def test_the_names_in_the_help_are_those_that_are_there() -> None:
    assert tuple(WAYS) == STRATEGIES


def test_text_is_a_run_and_the_report_goes_to_people(
    server: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["rerank", "--llm", server, "--llm-model", "m", "--data", str(data), "--format", "rank_llm"]
    assert run(arguments) == 0
    written = capsys.readouterr()
    (tmp_path / "out.run").write_text(written.out)
    assert [list(ranking.doc_ids) for ranking in read_trec_run(tmp_path / "out.run")] == [
        best_first(query_id) for query_id in GRADES
    ]
    assert "2 calls (2 paid), sequential depth 1" in written.err
    assert "answers: 2 ok, 0 repaired, 0 malformed" in written.err


def test_one_question(server: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    passages = [f"grade {grade}" for grade in GRADES["q2"]]
    arguments = ["rerank", "what?", *passages, "--llm", server, "--llm-model", "m", "--strategy", "pointwise"]
    assert run([*arguments, "--output", "json"]) == 0
    found = one_line(capsys.readouterr().out)
    assert [row["doc_id"] for row in found["results"]] == ["2", "3", "1", "0"]
    assert (found["calls"], found["sequential_depth"]) == (4, 1)


def saying(text: str, finish_reason: str = "stop") -> Callable[[BaseHTTPRequestHandler], None]:
    """Answers every request so."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        body_of(request)
        message = {"role": "assistant", "content": text}
        reply(request, {"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]})

    return answer


def test_an_answer_that_nobody_can_read_is_told_of_beside_the_ranking(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(saying("I cannot rank these.")) as url:
        assert run(["rerank", "what?", "one", "two", "--llm", url, "--llm-model", "m"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "answers: 0 ok, 0 repaired, 1 malformed. Repairs: no id 1." in said
    assert "1 of 1 answers could not be read, so most documents stand as they were given" in said


def test_answers_that_do_not_end_say_which_option_gives_them_room(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(saying("[1] > [2] >", "length")) as url:
        assert run(["rerank", "what?", "one", "two", "--llm", url, "--llm-model", "m"]) == 6
    assert "Raise max_tokens (--set sampling.max_tokens=N" in " ".join(capsys.readouterr().err.split())


def test_an_identifier_that_is_several_tokens_to_a_local_model_is_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_chain_model(tmp_path / "model", ["paris"])
    arguments = ["rerank", "--llm", str(folder), "--data", str(data), "--format", "rank_llm", "--strategy"]
    assert run([*arguments, "single-token", "--window", "4"]) == 0
    assert "could not be read, so most documents" in " ".join(capsys.readouterr().err.split())  # it says Paris
    monkeypatch.setattr(LocalLLM, "tokens_in", lambda llm, text: 2 if text == "D" else 1)
    assert run([*arguments, "single-token", "--window", "3"]) == 0
    capsys.readouterr()
    assert run([*arguments, "single-token", "--window", "4"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "Identifier 'D' of prompt 'listwise-letters-1' is 2 tokens to model@" in said
    assert "Language model calls" not in said  # there were none
    assert "wanted one token for each" in said


def test_a_local_model_tells_how_many_tokens_a_text_is(tmp_path: Path) -> None:
    llm = LocalLLM(make_chain_model(tmp_path / "model", ["paris"]), device="cpu")
    assert [llm.tokens_in(text) for text in ("A", "capital of", "")] == [1, 2, 0]


@pytest.mark.parametrize(
    ("options", "code"),
    [([], 7), (["--max-failed", "0.02"], 0), (["--max-failed", "0"], 7), (["--max-failed", "1"], 0)],
)
def test_some_failed_calls_show_in_the_exit_code(
    options: list[str],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One of 60 calls: above the 1 % that the exit code allows, below the 5 % that stop the command."""
    monkeypatch.chdir(tmp_path)

    def fails_once(request: BaseHTTPRequestHandler) -> None:
        if "question 7 " in body_of(request).decode():
            reply(request, {"error": {"message": "no", "type": "invalid_request_error"}}, status=400)
            return
        message = {"role": "assistant", "content": "[2] > [1]"}
        reply(request, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    rows = [
        {"query_id": str(n), "question": f"question {n} ?", "candidates": [{"text": "one"}, {"text": "two"}]}
        for n in range(60)
    ]
    data = write_rows(tmp_path / "data.jsonl", rows)
    with serving(fails_once) as url:
        arguments = ["rerank", "--data", str(data), "--llm", url, "--llm-model", "m", *options, "--output", "json"]
        assert run(arguments) == code
        written = capsys.readouterr()
        found = one_line(written.out)
        assert (found["calls"], found["failures"]) == (60, {"http 400": 1})
        assert len(found["rankings"]) == 60  # nothing of what succeeded is kept back
        assert ("1 of 60 calls failed, above" in " ".join(written.err.split())) is (code == 7)


def test_a_local_model_is_asked_with_the_prompt_that_its_folder_keeps(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_chain_model(tmp_path / "model", ["paris"])
    load_ranking_prompt("pointwise-binary-1").save(folder)
    assert run(["rerank", "what?", "one", "two", "--llm", str(folder), "--output", "json"]) == 0
    found = one_line(capsys.readouterr().out)
    assert "|prompt:pointwise-binary-1|" in found["reranker"]
    assert found["reranker"].endswith(" pointwise")
    given = ["--prompt", "pointwise-yes-no-1", "--output", "json"]
    assert run(["rerank", "what?", "one", "two", "--llm", str(folder), *given]) == 0
    assert "|prompt:pointwise-yes-no-1|" in one_line(capsys.readouterr().out)["reranker"]
    assert run(["rerank", "what?", "one", "two", "--llm", str(folder), "--strategy", "sliding"]) == 2
    assert "was given the pointwise prompt 'pointwise-binary-1'" in " ".join(capsys.readouterr().err.split())


def test_a_missing_score_of_the_first_stage_is_found_before_anything_is_asked(
    server: str,
    data: Path,
    seen: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("rankwright.cli.rerank._QUERIES_AT_ONCE", 1)
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    del lines[1]["candidates"][2]["score"]
    write_rows(data, lines)
    arguments = ["rerank", "--llm", server, "--llm-model", "m", "--data", str(data), "--format", "rank_llm"]
    assert run([*arguments, "--fuse", "0.1"]) != 0
    assert "Query 'q2' has no finite first-stage score for 1 of 4 documents" in capsys.readouterr().err
    assert not seen


def test_requests_one_by_one(
    server: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    feed(monkeypatch, {"query": "what?", "documents": ["grade 1", "grade 2"]})
    assert run(["rerank", "--llm", server, "--llm-model", "m"]) == 0
    found = one_line(capsys.readouterr().out)
    assert ([row["doc_id"] for row in found["results"]], found["calls"]) == (["1", "0"], 1)


def test_scores_in_a_request_are_those_of_the_first_stage(
    server: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    feed(monkeypatch, json.loads(data.read_text().splitlines()[0]))
    assert run(["rerank", "--llm", server, "--llm-model", "m", "--fuse", "1"]) == 0
    found = one_line(capsys.readouterr().out)
    assert [row["doc_id"] for row in found["results"]] == [f"q1-{i}" for i in range(8)]


def test_the_first_stage_takes_its_share(server: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["rerank", "--llm", server, "--llm-model", "m", "--strategy", "pointwise", "--data", str(data)]
    assert run([*arguments, "--format", "rank_llm", "--fuse", "1", "--output", "json"]) == 0
    found = one_line(capsys.readouterr().out)
    assert found["rankings"][0]["doc_ids"] == [f"q1-{i}" for i in range(8)]
    assert "first-stage(min-max,weight=1.0)" in found["reranker"]


def test_what_retrieve_wrote_can_be_fused(server: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    passages = [{"doc_id": str(grade), "text": f"grade {grade} " + "kelp " * (9 - grade)} for grade in (3, 9, 0)]
    corpus = write_rows(data.with_name("corpus.jsonl"), passages)
    questions = write_rows(data.with_name("questions.jsonl"), [{"query_id": "q", "question": "what is kelp?"}])
    found = data.with_name("found.jsonl")
    assert run(["retrieve", "--data", str(questions), "--corpus", str(corpus), "--out", str(found)]) == 0
    capsys.readouterr()
    arguments = ["rerank", "--llm", server, "--llm-model", "m", "--strategy", "pointwise", "--data", str(found)]
    for share, wanted in (("0", ["9", "3", "0"]), ("1", ["0", "3", "9"])):  # BM25 counts the kelp
        assert run([*arguments, "--fuse", share, "--output", "json"]) == 0
        assert one_line(capsys.readouterr().out)["rankings"][0]["doc_ids"] == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strategy", "quicksort"], "Strategy 'quicksort' is unknown; use one of sliding"),
        (["--prompt", "setwise-1", "--strategy", "sliding"], "wanted a listwise one, for example listwise-1"),
        (["--prompt", "listwise-1", "--strategy", "single-token"], "wanted one with the parser first-token"),
        (["--set", "widow=3"], "Strategy sliding was given 'widow'; its settings are window, stride, passes"),
        (["--set", "passes=many"], "Setting passes is 'many'"),
        (["--window", "1"], "has window 1; wanted 2 or more"),
        (["--fuse", "2"], "wanted 0 to 1"),
        (["--set", "fuse.scale=z-score"], "--set fuse.scale was given without --fuse"),
        (["--set", "sampling=3"], "wanted for example --set sampling.max_tokens=2048"),
        (["--set", "sampling.api_key=x"], "looks like a secret"),
        (["--set", "reader.sampling.max_tokens=3"], "says nothing of a reranker; wanted --set sampling.NAME=VALUE"),
        (["--model", "first-stage"], "were both given; wanted one of them"),
        (["--set", "reader.prompt=reader-1"], "says nothing of a reranker; wanted --prompt"),
        (["--set", "sampling.temperature=.nan"], "Sampling parameter temperature is nan; wanted a finite number"),
        (["--set", "sampling.seed=2026-01-01"], "Sampling parameter seed is 2026-01-01; wanted a finite number"),
        (["--prompt", "nowhere"], "Ranking prompt 'nowhere' is neither"),
        (["--strategy", "single-token", "--window", "27"], "identifiers for 26; wanted 26 at most. Give --set window"),
        (["--prompt", "FEW", "--strategy", "heapsort"], "shows 20 documents at once"),
        (["--prompt", "FEW", "--strategy", "bubblesort", "--set", "children=5"], "Give --set children=4"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_asked(
    options: list[str],
    message: str,
    server: str,
    data: Path,
    seen: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = data.with_name("few.yaml")  # identifiers for five documents, of which a heap of eight has no more at first
    few.write_text(f"{load_ranking_prompt('setwise-1').source}\nmax_documents: 5\n")
    options = [str(few) if option == "FEW" else option for option in options]
    arguments = ["rerank", "--llm", server, "--llm-model", "m", "--data", str(data), "--format", "rank_llm"]
    assert run([*arguments, *options]) != 0
    assert message in " ".join(capsys.readouterr().err.split())
    assert not seen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strategy", "topk"], "--strategy was given without --llm"),
        (["--llm-model", "m"], "--llm-model was given without --llm"),
        (["--set", "window=3"], "--set was given without --llm"),
        (["--price-input", "1"], "--price-input was given without --llm"),
    ],
)
def test_a_scoring_model_has_no_use_for_them(
    options: list[str], message: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["rerank", "--data", str(data), "--format", "rank_llm", "--model", "first-stage", *options]) != 0
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_scoring_model_ranks_a_file_too(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["rerank", "--data", str(data), "--format", "rank_llm", "--model", "first-stage", "--output", "json"]
    assert run([*arguments, "--depth", "2"]) == 0
    found = one_line(capsys.readouterr().out)
    assert [ranking["doc_ids"] for ranking in found["rankings"]] == [["q1-0", "q1-1"], ["q2-0", "q2-1"]]
    assert "calls" not in found


def test_a_limit_in_tokens_takes_the_tokenizer_beside_the_prompt_or_that_of_a_local_model(tmp_path: Path) -> None:
    model, prompt = make_chain_model(tmp_path / "model", ["paris"]), load_ranking_prompt("pointwise-yes-no-1")
    short = prompt.limited(2, "tokens", str.__getitem__)
    for folder, llm in ((model, "http://localhost:9/v1"), (tmp_path / "alone", str(model))):
        short.save(folder)
        settings = llm_settings("pointwise", str(folder), None, [], {"reader.reader": llm})
        assert settings.prompt.version == short.version
        shown = settings.prompt.rendered(Query("q", "capital"), [Document("d", "paris rome oslo bern")])
        assert shown.cut == 1
        assert "paris rome" in shown.messages[-1][1]
        assert "oslo" not in shown.messages[-1][1]


# --- eval --------------------------------------------------------------------------------------------------------


@pytest.fixture
def labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Questions whose best passage, of four, is the third one."""
    monkeypatch.chdir(tmp_path)
    grades = [2, 5, 9, 1]
    return write_rows(
        tmp_path / "labelled.jsonl",
        [
            {
                "query_id": f"q{number}",
                "question": f"what is {number}?",
                "candidates": [{"doc_id": f"{number}-{i}", "text": f"grade {g}"} for i, g in enumerate(grades)],
                "relevance": {f"{number}-2": 1},
            }
            for number in range(12)
        ],
    )


GIVEN = ["--retriever", "given", "--reader", "none", "--top-k", "1"]


def test_language_models_are_compared_by_the_same_paired_test(
    server: str, labelled: Path, seen: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["eval", "first-stage", "--data", str(labelled), *GIVEN, "--llm", server, "--window", "3"]
    arguments += ["--llm-model", "contrary", "--llm-model", "m", "--baseline", "contrary", "--set", "llm.concurrency=2"]
    assert run([*arguments, "--output", "json", "--save", str(tmp_path / "saved.json")]) == 0
    found = one_line(capsys.readouterr().out)
    assert list(found["models"]) == ["first-stage", "contrary", "m"]
    # Windows 1 to 3, then 0 to 2: the contrary one first brings 1 of 5, 9, 1 to the front, then of 2, 1, 5 again.
    assert found["models"]["m"]["RR@10"] == 1.0
    assert found["models"]["contrary"]["RR@10"] == 1 / 4
    test = next(t for t in found["tests"] if (t["a"], t["metric"]) == ("m", "nDCG@10"))
    assert (test["b"], test["verdict"], test["n"]) == ("contrary", "better", 12)
    assert test["delta"] == pytest.approx(1 - 1 / math.log2(5))
    for name in ("contrary", "m"):
        taken = found["taken"][name]
        assert (taken["calls"], taken["sequential_depth"]) == (2 * 12, 2)
        assert taken["outcomes"] == {"ok": 2 * 12, "repaired": 0, "malformed": 0}
        assert taken["reranker"].startswith(f"{name}@")
    assert "first-stage" not in found["taken"]
    assert len(seen) == 2 * 2 * 12
    assert Evaluation.load(tmp_path / "saved.json").taken == found["taken"]
    assert run(arguments) == 0  # the cache answers
    shown = " ".join(capsys.readouterr().out.split())
    assert "m: 24 calls, sequential depth 2 (mean 2.0)" in shown
    assert "m is BETTER than contrary: nDCG@10" in shown
    assert len(seen) == 2 * 2 * 12


def test_a_run_of_a_language_model_is_compared_with_its_start(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither ends its answer, so nothing differs; the point is who was asked, and with which prompt."""
    start = make_chain_model(tmp_path / "start", ["paris"])
    load_ranking_prompt("setwise-1").save(make_chain_model(tmp_path / "runs" / "a" / "model", ["rome"]))
    models = ["--llm", str(start), "--llm", "runs/a", "--baseline", "runs/a"]
    arguments = ["eval", *models, "--data", str(labelled), *GIVEN, "--strategy", "bubblesort", "--set", "top_k=1"]
    assert run([*arguments, "--prompt", "runs/a/model"]) == 6
    assert "failed on 12 of 12 calls, most often with 'length'" in " ".join(capsys.readouterr().err.split())
    arguments += ["--max-failed-reads", "1", "--set", "sampling.max_tokens=16"]
    assert run([*arguments, "--prompt", "runs/a/model", "--output", "json"]) == 0
    written = capsys.readouterr()
    taken = one_line(written.out)["taken"]
    assert list(taken) == [str(start), "runs/a"]
    assert all("|prompt:setwise-1|" in counts["reranker"] for counts in taken.values())
    assert all(counts["outcomes"] == {"ok": 0, "repaired": 0, "malformed": 12} for counts in taken.values())
    assert "have prompts of their own" not in written.err
    load_ranking_prompt("setwise-think-1").save(start)
    assert run([*arguments, "--output", "json"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"prompts of their own ({start}: setwise-think-1, runs/a: setwise-1); --prompt gives all" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "given no model; wanted one as MODEL, or a language model as --llm"),
        (["first-stage", "--strategy", "topk"], "--strategy was given without --llm"),
        (["first-stage", "--llm-model", "m"], "--llm-model was given without --llm"),
        (["first-stage", "--set", "children=3"], "--set was given children, which says nothing here"),
        (["first-stage", "--set", "llm.deadline=3"], "--set was given llm.deadline, which says nothing here"),
        (["first-stage", "--set", "fuse.scale=z-score"], "llm. and those of a strategy go with eval --llm."),
        (["--llm", "folder", "--llm-model", "m"], "--llm-model m was given without an endpoint"),
        (["--llm", "URL", "--llm-model", "m", "--llm-model", "m"], "Language model 'm' was given twice"),
        (["--llm", "URL", "--llm-model", "m", "--set", "llm.prompt=x"], "--set was given llm.prompt, which says"),
        (["--llm", "URL", "--llm-model", "m", "--set", "widow=3"], "Strategy sliding was given 'widow'"),
        (["--llm", "URL", "--llm-model", "m", "--set", "rrpo.a=3"], "sampling.NAME, fuse.scale and llm.NAME."),
        (["--llm", "URL"], "Language model http://"),
    ],
)
def test_what_eval_cannot_do_is_told_before_anything_is_asked(
    options: list[str],
    message: str,
    server: str,
    labelled: Path,
    seen: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [server if option == "URL" else option for option in options]
    assert run(["eval", *given, "--data", str(labelled), *GIVEN]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not seen
