"""Reranking in bulk: streams, batches, outputs that go on after a kill, shards."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rankwright.bulk import (
    Form,
    Output,
    Shard,
    batches,
    join_shards,
    looked_through,
    record_path,
    scored_here,
    shard_of,
    write_rankings,
)
from rankwright.data import load_examples, read_trec_run
from rankwright.data.streams import ExampleStream
from rankwright.errors import (
    ConfigurationError,
    DataError,
    MissingDependencyError,
    ModelError,
    ResumeError,
    StorageError,
)
from tests import kill_jobs
from tests.bulk_kit import PAIRS, Companionable, Stub, examples, score_of, write_rows, write_run
from tests.kill_harness import ROOT, Job

COUNT = 60
SETTINGS = {"model": "stub"}


def rerank(data: Path, out: Path, stub: Stub | None = None, shard: Shard | None = None, **options: Any) -> Output:
    """One run over a file in our own format."""
    stream = ExampleStream(data, folder=out.parent)
    with Output.opened(out, SETTINGS, stream.digests, shard) as output:
        if output.totals is None:
            output.begin(looked_through(stream, PAIRS))
        write_rankings(output, scored_here(stub or Companionable()), stream, Form.of(out), pairs=PAIRS, **options)
    return output


def wanted(count: int = COUNT) -> dict[str, list[str]]:
    """query_id -> doc_ids, by the formula."""
    return {
        e.query.query_id: sorted((d.doc_id for d in e.candidates), key=lambda d: -score_of(e.query.query_id, d))
        for e in examples(count)
    }


# --- streams ------------------------------------------------------------------------------------------------------


def test_a_run_streams_the_examples_that_the_loader_finds(tmp_path: Path) -> None:
    run, beir = write_run(tmp_path, COUNT)
    loaded = load_examples(run, "trec", topics=beir / "queries.jsonl", corpus=beir / "corpus.jsonl").examples
    stream = ExampleStream(run, "trec", corpus=beir, folder=tmp_path)
    assert tuple(stream) == loaded
    assert tuple(stream) == loaded  # a second pass is equal
    again = ExampleStream(run, "trec", corpus=beir, folder=tmp_path)
    assert tuple(again) == loaded
    assert again.store_path == stream.store_path  # the same files have one store
    assert [len(e.candidates) for e in ExampleStream(run, "trec", corpus=beir, folder=tmp_path, depth=2)] == [
        min(2, len(e.candidates)) for e in loaded
    ]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_rows_stream_the_examples_that_the_loader_finds(tmp_path: Path, name: str) -> None:
    data = write_rows(tmp_path / name, COUNT)
    assert tuple(ExampleStream(data, folder=tmp_path)) == load_examples(data, "jsonl").examples


def test_a_store_is_made_anew_where_the_corpus_has_changed(tmp_path: Path) -> None:
    run, beir = write_run(tmp_path, 5)
    before = list(ExampleStream(run, "trec", corpus=beir, folder=tmp_path))
    corpus = beir / "corpus.jsonl"
    corpus.write_text(corpus.read_text("utf-8").replace("passage 0", "another"), "utf-8")
    after = list(ExampleStream(run, "trec", corpus=beir, folder=tmp_path))
    assert (before[0].candidates[0].text, after[0].candidates[0].text) == ("passage 0", "another")


RUN_LINE = "q0 Q0 d0 1 0.0 x\n"


@pytest.mark.parametrize(
    ("lines", "error", "message"),
    [
        ("q0 Q0 d0 1 0.0 x\nq1 Q0 d1 1 0.0 x\nq0 Q0 d1 2 -1.0 x\n", DataError, "line 3: query 'q0' comes back"),
        ("q0 Q0 d0 1 0.0 x\nq0 Q0 d0 2 -1.0 x\n", DataError, "line 2: doc_id 'd0' stands twice"),
        ("q0 Q0 nowhere 1 0.0 x\n", DataError, "line 1: doc_id 'nowhere' of query 'q0' is not in the corpus"),
        ("q0 Q0 d0 first 0.0 x\n", DataError, "rank 'first'"),
    ],
)
def test_bad_lines_of_a_run_are_named(tmp_path: Path, lines: str, error: type[Exception], message: str) -> None:
    run, beir = write_run(tmp_path, 3)
    run.write_text(lines, "utf-8")
    with pytest.raises(error, match=message):
        list(ExampleStream(run, "trec", corpus=beir, folder=tmp_path))


def test_bad_lines_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, beir = write_run(tmp_path, 3)
    run.write_text(f"{RUN_LINE}q0 Q0 nowhere 2 -1 x\nbad\nfar Q0 d1 1 0 x\n", "utf-8")
    stream = ExampleStream(run, "trec", corpus=beir, folder=tmp_path, on_bad_row="skip")
    assert [[d.doc_id for d in e.candidates] for e in stream] == [["d0"]]
    assert stream.skipped == 2
    assert "1 of 2 queries, for example 'far', have no topic" in caplog.text
    assert "2 topics have no usable line" in caplog.text
    caplog.clear()
    assert len(list(stream)) == 1
    assert caplog.text == ""  # a second pass says nothing again


def test_a_question_that_stands_twice_is_named(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", 3)
    with data.open("a") as stream:
        stream.write(data.read_text("utf-8").splitlines()[1] + "\n")
    with pytest.raises(DataError, match="line 4: query_id 'q1' stands here and in line 2"):
        list(ExampleStream(data, folder=tmp_path))
    skipping = ExampleStream(data, folder=tmp_path, on_bad_row="skip")
    assert [[e.query.query_id for e in skipping] for _ in range(2)] == [["q0", "q1", "q2"]] * 2
    assert skipping.skipped == 1


def test_a_corpus_with_an_id_twice_is_named_and_leaves_no_store(tmp_path: Path) -> None:
    run, beir = write_run(tmp_path, 3)
    with (beir / "corpus.jsonl").open("a") as stream:
        stream.write('{"_id": "d1", "text": "again"}\n')
    with pytest.raises(DataError, match=r"corpus\.jsonl, line 6: doc_id 'd1' stands twice"):
        list(ExampleStream(run, "trec", corpus=beir, folder=tmp_path / "stores"))
    assert list((tmp_path / "stores").iterdir()) == []


@pytest.mark.parametrize(
    ("format", "sides", "message"),
    [
        ("beir", {}, "Format is 'beir'"),
        ("jsonl", {"corpus": "c.jsonl"}, "A corpus file was given with format jsonl"),
        ("trec", {}, "no corpus was given"),
    ],
)
def test_what_cannot_be_streamed_is_refused(tmp_path: Path, format: str, sides: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ExampleStream(Path(__file__), format, folder=tmp_path, **sides)  # pyright: ignore[reportArgumentType]


# --- batches and shards -------------------------------------------------------------------------------------------


def test_batches_hold_whole_questions_and_stop_where_they_are_full() -> None:
    made = list(batches(examples(COUNT), PAIRS))
    assert [e for batch in made for e in batch.examples] == list(examples(COUNT))
    assert [batch.number for batch in made] == list(range(len(made)))
    for batch in made[:-1]:
        assert batch.pairs >= PAIRS > batch.pairs - len(batch.examples[-1].candidates)


@pytest.mark.parametrize(("total", "of"), [(10, 3), (2, 5), (7, 7), (0, 2)])
def test_shards_share_the_batches_evenly(total: int, of: int) -> None:
    spans = [list(Shard(number, of).span(total)) for number in range(1, of + 1)]
    assert [number for span in spans for number in span] == list(range(total))
    assert max(map(len, spans)) - min(map(len, spans)) <= 1


@pytest.mark.parametrize("text", ["3", "0/2", "3/2", "a/2", "1/", "-1/2", "1/2/3"])
def test_a_wrong_shard_is_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match="wanted I/N"):
        shard_of(text)


@pytest.mark.parametrize("name", ["out.run", "out.jsonl", "out.jsonl.gz"])
@pytest.mark.parametrize("count", [3, 40])
def test_joined_shards_are_the_bytes_of_one_run(tmp_path: Path, name: str, count: int) -> None:
    data = write_rows(tmp_path / "rows.jsonl", COUNT)
    whole = rerank(data, tmp_path / "whole" / name)
    for number in range(1, count + 1):
        shard = Shard(number, count)
        rerank(data, shard.path(tmp_path / name), shard=shard)
    done = join_shards(tmp_path / name, count)
    assert (tmp_path / name).read_bytes() == whole.path.read_bytes()
    assert (done.questions, done.pairs) == (COUNT, whole.done.pairs)


def test_shards_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    data, out = write_rows(tmp_path / "rows.jsonl", COUNT), tmp_path / "out.run"
    first, second = Shard(1, 2), Shard(2, 2)
    rerank(data, first.path(out), shard=first)
    with pytest.raises(ResumeError, match=r"out\.2-of-2\.run' is missing"):
        join_shards(out, 2)
    with pytest.raises(ModelError):
        rerank(data, second.path(out), Stub(["q50"]), shard=second, max_failed=0)
    with pytest.raises(ResumeError, match=r"out\.2-of-2\.run' has \d of \d+ batches; wanted all"):
        join_shards(out, 2)
    rerank(data, second.path(out), shard=second)
    join_shards(out, 2)
    with pytest.raises(ConfigurationError, match="exists"):
        join_shards(out, 2)
    out.unlink()
    other = write_rows(tmp_path / "other.jsonl", COUNT - 1)
    for path in (second.path(out), record_path(second.path(out))):
        path.unlink()
    rerank(other, second.path(out), shard=second)
    with pytest.raises(ResumeError, match="inputs data"):
        join_shards(out, 2)


def test_a_shard_under_the_name_of_another_is_refused(tmp_path: Path) -> None:
    """Else its questions would stand there twice, and those of the other not at all."""
    data, out = write_rows(tmp_path / "rows.jsonl", COUNT), tmp_path / "out.run"
    first, second = (Shard(number, 2).path(out) for number in (1, 2))
    rerank(data, first, shard=Shard(1, 2))
    for path, copy in ((first, second), (record_path(first), record_path(second))):
        copy.write_bytes(path.read_bytes())
    with pytest.raises(ResumeError, match=r"out\.2-of-2\.run' holds shard 1/2; wanted 2/2"):
        join_shards(out, 2)


# --- what is written ----------------------------------------------------------------------------------------------


def test_a_run_holds_every_question_in_order(tmp_path: Path) -> None:
    rerank(write_rows(tmp_path / "rows.jsonl", COUNT), tmp_path / "out.run", Stub())
    found = read_trec_run(tmp_path / "out.run")
    assert {ranking.query_id: list(ranking.doc_ids) for ranking in found} == wanted()
    assert [ranking.query_id for ranking in found] == [f"q{number}" for number in range(COUNT)]
    assert found[5].scores == tuple(score_of("q5", doc_id) for doc_id in wanted()["q5"])


def test_rows_keep_texts_and_answers_and_bring_the_new_scores(tmp_path: Path) -> None:
    rerank(write_rows(tmp_path / "rows.jsonl", COUNT), tmp_path / "out.jsonl.gz", Stub())
    found = load_examples(tmp_path / "out.jsonl.gz", "jsonl").examples
    for old, new in zip(examples(COUNT), found, strict=True):
        query_id = old.query.query_id
        assert [d.doc_id for d in new.candidates] == wanted()[query_id]
        assert set(new.candidates) == set(old.candidates)
        assert (new.query, new.answers) == (old.query, old.answers)
        assert new.first_stage == {d.doc_id: score_of(query_id, d.doc_id) for d in old.candidates}


def test_top_k_cuts_what_is_written(tmp_path: Path) -> None:
    form = Form(rows=False, packed=False, top_k=2)
    some = list(examples(4))
    found = Stub().rerank_batch([r for b in batches(some) for r in b.requests])
    assert len(form.written(some, found).splitlines()) == sum(min(2, len(e.candidates)) for e in some)


# --- failures -----------------------------------------------------------------------------------------------------


def test_a_failing_question_is_named_and_the_others_have_their_rankings(tmp_path: Path) -> None:
    data, out = write_rows(tmp_path / "rows.jsonl", COUNT), tmp_path / "out.run"
    output = rerank(data, out, Stub(["q7", "q30"]))
    assert {r.query_id: list(r.doc_ids) for r in read_trec_run(out)} == {
        query_id: ids for query_id, ids in wanted().items() if query_id not in ("q7", "q30")
    }
    assert [(one.query_id, one.error) for one in output.done.failed] == [
        ("q7", "ValueError: planned"),
        ("q30", "ValueError: planned"),
    ]
    again = rerank(data, out, Stub())
    assert again.done == output.done  # a finished file is left alone, and the failures stay known


def test_too_many_failures_stop_the_run_and_a_better_model_goes_on_from_there(tmp_path: Path) -> None:
    data, out = write_rows(tmp_path / "rows.jsonl", COUNT), tmp_path / "out.run"
    stub = Stub(["q20", "q21", "q22"], ModelError("not finite"))
    with pytest.raises(ModelError, match=r"3 questions failed, the last 'q22' \(not finite\); wanted at most 2"):
        rerank(data, out, stub, max_failed=2)
    done = rerank(data, out, Stub()).done
    assert [one.query_id for one in done.failed] == ["q20"]  # of a batch that was written before the bound was reached
    assert {r.query_id for r in read_trec_run(out)} == set(wanted()) - {"q20"}


def test_what_is_no_question_s_fault_ends_the_run_at_once(tmp_path: Path) -> None:
    stub = Stub(["q0"], MissingDependencyError("run pip install x"))
    with pytest.raises(MissingDependencyError):
        rerank(write_rows(tmp_path / "rows.jsonl", COUNT), tmp_path / "out.run", stub)
    assert len(stub.asked) == 1


# --- going on -----------------------------------------------------------------------------------------------------


def torn(path: Path, cut: int) -> None:
    with path.open("r+b") as stream:
        stream.truncate(max(0, path.stat().st_size - cut))


@pytest.mark.parametrize("name", ["out.run", "out.jsonl.gz"])
@pytest.mark.parametrize("of_record", [False, True])
@pytest.mark.parametrize("cut", [1, 40, 500])
def test_a_torn_tail_is_scored_again_and_nothing_else(tmp_path: Path, name: str, of_record: bool, cut: int) -> None:
    data, out = write_rows(tmp_path / "rows.jsonl", COUNT), tmp_path / name
    rerank(data, out)
    whole, kept = out.read_bytes(), record_path(out).read_bytes()
    torn(record_path(out) if of_record else out, cut)
    stub = Companionable()
    rerank(data, out, stub)
    assert (out.read_bytes(), record_path(out).read_bytes()) == (whole, kept)
    entries = [json.loads(line) for line in kept.splitlines()[1:]]
    ends = [len(kept.splitlines()[0]) + 1]
    for line in kept.splitlines()[1:]:
        ends.append(ends[-1] + len(line) + 1)
    if of_record:
        lost = sum(end > len(kept) - cut for end in ends[1:])
    else:
        lost = sum(entry["bytes"] > len(whole) - cut for entry in entries)
    assert len(stub.asked) == lost
    assert 1 <= lost < len(entries)


def test_bytes_that_never_reached_the_disk_are_noticed(tmp_path: Path) -> None:
    """After a loss of power a file may have its length and not its content."""
    data, out = write_rows(tmp_path / "rows.jsonl", COUNT), tmp_path / "out.run"
    rerank(data, out)
    whole = out.read_bytes()
    out.write_bytes(whole[:-20] + bytes(20))
    stub = Companionable()
    rerank(data, out, stub)
    assert (out.read_bytes(), len(stub.asked)) == (whole, 1)


def test_other_settings_or_another_input_are_refused(tmp_path: Path) -> None:
    data, out = write_rows(tmp_path / "rows.jsonl", COUNT), tmp_path / "out.run"
    rerank(data, out)
    stream = ExampleStream(data, folder=tmp_path)
    with pytest.raises(ResumeError, match="settings model 'stub' and is asked to go on with 'other'"):
        Output.opened(out, {"model": "other"}, stream.digests)
    with pytest.raises(ResumeError, match=r"shard \[1, 1\]"):
        Output.opened(out, SETTINGS, stream.digests, Shard(1, 2))
    write_rows(data, COUNT + 1)
    with pytest.raises(ResumeError, match="inputs data"):
        rerank(data, out)


def test_a_file_of_somebody_else_stays(tmp_path: Path) -> None:
    data, out = write_rows(tmp_path / "rows.jsonl", 3), tmp_path / "out.run"
    out.write_text("mine\n", "utf-8")
    with pytest.raises(ConfigurationError, match=r"exists and out\.run\.progress does not say how it was begun"):
        rerank(data, out)
    assert out.read_text("utf-8") == "mine\n"


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    data, out = write_rows(tmp_path / "rows.jsonl", COUNT), tmp_path / "out.run"
    rerank(data, out)
    lines = record_path(out).read_bytes().splitlines(keepends=True)
    record_path(out).write_bytes(lines[0] + b"{}\n" + b"".join(lines[2:]))
    with pytest.raises(StorageError, match=r"out\.run\.progress' is damaged"):
        rerank(data, out)


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    stream = ExampleStream(write_rows(tmp_path / "rows.jsonl", 3), folder=tmp_path)
    with (
        Output.opened(tmp_path / "out.run", SETTINGS, stream.digests),
        pytest.raises(StorageError, match="is being written by another process"),
    ):
        Output.opened(tmp_path / "out.run", SETTINGS, stream.digests)


def test_an_output_that_was_never_begun_leaves_nothing(tmp_path: Path) -> None:
    data, out = tmp_path / "rows.jsonl", tmp_path / "out.run"
    data.write_text('{"question": 1}\n', "utf-8")
    with pytest.raises(DataError, match="line 1"):
        rerank(data, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


@pytest.mark.parametrize("name", ["out.run", "out.jsonl.gz"])
def test_killed_anywhere_it_ends_with_the_same_bytes_and_scores_nothing_twice(tmp_path: Path, name: str) -> None:
    data, out = write_rows(tmp_path / "rows.jsonl", COUNT), tmp_path / name
    whole = rerank(data, tmp_path / "whole" / name).path.read_bytes()
    scored: list[Sequence[str]] = []
    kills = 0
    draw = random.Random(name)
    while True:
        job = Job(kill_jobs.rerank_rows, data, out, PAIRS)
        job.kill_after(draw.uniform(0.0, 0.12 + 0.02 * kills))  # a slow machine comes to an end, too
        killed = job.end()
        scored += job.words("written")
        if not killed:
            break
        kills += 1
    assert out.read_bytes() == whole
    assert kills >= 3  # of 20 batches, each of 20 ms
    assert len(scored) == len(set(scored))  # what had been written was not scored again


# --- memory -------------------------------------------------------------------------------------------------------

PEAK = """
import resource, sys
from pathlib import Path
from rankwright.bulk import Form, Output, looked_through, write_rankings
from rankwright.data.streams import ExampleStream
from tests.bulk_kit import Stub, write_rows, write_run
folder, count = Path(sys.argv[1]), int(sys.argv[2])
run, beir = write_run(folder, count)
rows = write_rows(folder / "rows.jsonl", count, words=600)
for data, sides in ((rows, {}), (run, {"format": "trec", "corpus": beir})):
    stream = ExampleStream(data, folder=folder, **sides)
    with Output.opened(folder / f"{data.name}.out", {}, stream.digests) as output:
        output.begin(looked_through(stream, 200))
        score = lambda found: ([Stub().rerank_batch([r])[0] for r in b.requests] for b in found)
        write_rankings(output, score, stream, Form.of(output.path), pairs=200)
    assert output.done.questions == count
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_peak_memory_does_not_grow_with_the_questions(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        folder = tmp_path / str(count)
        folder.mkdir()
        command = [sys.executable, "-c", PEAK, str(folder), str(count)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    few, many = peak(150), peak(1500)
    assert (tmp_path / "1500" / "rows.jsonl").stat().st_size > 24 * 2**20
    assert many < few + 6 * 1024  # KiB
