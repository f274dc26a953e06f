"""Settings become objects; what does not fit together is named before anything is paid for."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from rankwright.cli.app import run
from rankwright.cli.build import build_reader, load_splits, open_store
from rankwright.cli.run import clear_run
from rankwright.cli.settings import ReaderSettings, settings_from
from rankwright.errors import ConfigurationError, DataError
from rankwright.types import Context, Document, Query
from tests.cli_kit import body_of, reply, rows, serving, write_rows

CONTEXT = Context(Query("q", "Where is the Louvre?"), (Document("d", "The Louvre is in Paris."),))


def test_train_names_a_device_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = run(["train", "--name", "a", "--data", "questions.jsonl", "--device", "abacus"])
    assert (code, "Device is 'abacus'" in capsys.readouterr().err) == (2, True)
    assert not (tmp_path / "runs").exists()


def test_a_price_for_one_direction_is_refused(tmp_path: Path) -> None:
    settings = ReaderSettings(reader="http://127.0.0.1:9/v1", model="m", price_input=1.0)
    with open_store(str(tmp_path / "reads.sqlite")) as store, pytest.raises(ConfigurationError, match="Only the input"):
        build_reader(settings, store, "run")


def test_sampling_parameters_reach_the_endpoint(tmp_path: Path) -> None:
    bodies = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        bodies.append(json.loads(body_of(request)))
        choice = {"index": 0, "message": {"role": "assistant", "content": "Paris"}, "finish_reason": "stop"}
        reply(request, {"id": "x", "object": "chat.completion", "choices": [choice]})

    with serving(answer) as address, open_store(str(tmp_path / "reads.sqlite")) as store:
        settings = ReaderSettings(reader=f"{address}/v1", model="m", sampling={"max_completion_tokens": 2000})
        reader = build_reader(settings, store, "run")
        assert reader is not None
        assert len(reader.answer([CONTEXT])) == 1
    assert bodies[0]["max_completion_tokens"] == 2000
    assert not {"max_tokens", "temperature"} & bodies[0].keys()


def test_a_question_of_the_test_is_taken_out_of_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = write_rows(tmp_path / "train.jsonl", rows())
    again = {**rows()[0], "query_id": "other", "question": rows()[0]["question"].upper()}
    test = write_rows(tmp_path / "test.jsonl", [again])
    splits = load_splits(settings_from({"data": {"train": str(train), "test": str(test), "dev_share": 0.2}}))
    kept = [e.query.query_id for e in (*splits.train, *splits.dev)]
    assert (len(splits.test), len(kept), rows()[0]["query_id"] in kept) == (1, len(rows()) - 1, False)
    assert "1 questions left out" in capsys.readouterr().err


def test_no_training_question_may_be_left_by_the_test(tmp_path: Path) -> None:
    train = str(write_rows(tmp_path / "train.jsonl", rows()))
    with pytest.raises(DataError, match=r"No questions are left for dev.*Give a --dev file"):
        load_splits(settings_from({"data": {"train": train, "test": train}}))


def test_one_id_for_two_texts_in_two_files_is_refused(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", rows()[:6])
    changed = [{**row, "candidates": [{"doc_id": "wall-10", "text": "Other."}]} for row in rows()[6:]]
    test = write_rows(tmp_path / "test.jsonl", changed)
    with pytest.raises(DataError, match=r"Passage id 'wall-10' of .* names another text"):
        load_splits(settings_from({"data": {"train": str(train), "test": str(test), "dev_share": 0.5}}))


def test_a_refused_run_leaves_the_earlier_one_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    for name in ("config.json", "result.json", "report.html"):
        (folder / name).write_text('{"run_id": "mine-1"}', "utf-8")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for extra, code in (([], 2), (["--overwrite"], 4), (["--resume"], 4), (["--resume", "--overwrite"], 2)):
        assert run(["train", "--name", "mine", "--data", "typo.jsonl", *extra]) == code
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("verb", ["demo", "train"])
@pytest.mark.parametrize("name", ["", ".", "..", "../other", "a/b", "/tmp/x", "a\\b", "a\0b"])
def test_a_run_name_that_leads_elsewhere_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/kept", "other"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "file").write_text("mine", "utf-8")
    assert run([verb, "--name", name]) == 2
    assert "wanted a plain name" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.rglob("file")) == ["file", "file"]
    with pytest.raises(ConfigurationError, match="plain name"):
        clear_run(name)


def test_a_refused_demo_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    assert run(["demo", "--device", "abacus"]) == 2
    assert "Device is 'abacus'" in capsys.readouterr().err
    assert (tmp_path / "runs" / "demo").is_dir()
