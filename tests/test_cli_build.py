"""Settings become objects; what does not fit together is named before anything is paid for."""

from __future__ import annotations

import json
import re
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from rankwright.cli.app import run
from rankwright.cli.build import (
    Splits,
    _without_overlap,
    build_reader,
    checked_device,
    counted_store,
    load_splits,
    open_store,
)
from rankwright.cli.run import _compare, run_folder
from rankwright.cli.settings import (
    ReaderSettings,
    load_reader_settings,
    load_settings,
    settings_from,
    settings_tree,
)
from rankwright.data import corpus
from rankwright.errors import ConfigurationError, DataError
from rankwright.evaluation import FirstStage
from rankwright.llms.cache import LedgerEntry
from rankwright.llms.calls import Call
from rankwright.llms.http import HTTPLLM
from rankwright.types import Answer, Completion, Context, Document, Example, Query, ReadFailed
from tests.cli_kit import DOORS, body_of, make_model, reply, rows, serving, write_rows
from tests.tiny_lm import END, make_chain_model

TWO = (FirstStage(), FirstStage())
CONTEXT = Context(Query("q", "Where is the Louvre?"), (Document("d", "The Louvre is in Paris."),))


def test_train_names_a_device_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = run(["train", "--name", "a", "--data", "questions.jsonl", "--device", "abacus"])
    assert (code, "Device is 'abacus'" in capsys.readouterr().err) == (2, True)
    assert not (tmp_path / "runs").exists()


def test_a_device_that_is_not_there_is_told_without_pytorchs_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(*_: object, **__: object) -> None:
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("torch.empty", empty)
    with pytest.raises(ConfigurationError, match=r"^Device is 'cuda', which PyTorch cannot use here; wanted cpu\."):
        checked_device("cuda")


def test_a_question_in_two_files_stays_in_the_last_and_both_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (Example(Query(text, text), (), ("a",)) for text in ("one", "two"))
    kept = _without_overlap({"test": [one], "dev": [one, two], "train": [one, two]})
    assert kept == {"test": [one], "dev": [two], "train": []}
    assert capsys.readouterr().err.splitlines() == [
        "1 questions left out of dev: they stand in test, too.",
        "2 questions left out of train: they stand in dev or test, too.",
    ]


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


def test_a_corpus_is_read_once_for_all_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read: list[object] = []

    def read_corpus(path: Any, intake: Any) -> Any:
        read.append(path)
        return corpus.read_corpus(path, intake)

    monkeypatch.setattr("rankwright.data.loading.read_corpus", read_corpus)
    questions = [{k: row[k] for k in ("query_id", "question", "answers")} for row in rows()]
    files = {
        n: str(write_rows(tmp_path / f"{n}.jsonl", questions[i::3])) for i, n in enumerate(("train", "dev", "test"))
    }
    passages = [{"doc_id": f"d{i}", "text": f"door {i} key"} for i in range(12)]
    file = str(write_rows(tmp_path / "corpus.jsonl", [*passages, {"doc_id": "bad"}]))
    data = {**files, "corpus": file, "on_bad_row": "skip"}
    splits = load_splits(settings_from({"data": data}))
    assert (len(read), splits.skipped) == (1, 1)
    assert all(len(example.candidates) > 1 for example in (*splits.dev, *splits.test))


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
    config = {"run_id": "mine-1", **settings_tree(settings_from({"data": {"train": "typo.jsonl"}}))}
    for name in ("config.json", "result.json", "report.html"):
        (folder / name).write_text(json.dumps(config), "utf-8")
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
        run_folder(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "abacus"], "Device is 'abacus'"),
        (["--set", "reward=nosuch"], "nosuch"),
        (["--set", "model.name=nothere"], "nothere"),
        (["--set", "loop.trainer.foo=1"], "foo"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_refused_demo_leaves_the_earlier_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    earlier = tmp_path / "runs" / "demo" / "result.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("{}")
    assert run(["demo", *options]) in (2, 4)
    assert message in capsys.readouterr().err
    assert earlier.read_text() == "{}"


@pytest.mark.parametrize("flag", ["--retriever", "--on-bad-row"])
def test_a_choice_that_there_is_not_is_named_by_its_flag(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--name", "a", "--data", "q.jsonl", flag, "foo"]) == 2
    told = capsys.readouterr().err
    assert flag in told
    assert "foo" in told


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.eval_depth=2", "Setting top_k is 3; wanted 1 to 2"),
        ("top_k=0", "Setting top_k is 0"),
        ("seed=-1", "Setting seed is -1"),
        ("data.depth=0", "Setting data.depth is 0; wanted 1 or more"),
        ("data.test_share=-0.2", "Setting data.test_share is -0.2"),
        ("data.test_share=0.95", "below 1 together with dev_share"),
        ("data.dev_share=.nan", "Setting data.dev_share is nan"),
        ("model.lora_rank=-3", "Setting model.lora_rank is -3; wanted 0 or more"),
        ("model.lora_alpha=0", "Setting model.lora_alpha is 0"),
        ("model.max_length=-1", "Setting model.max_length is -1"),
        ("loop.learning_rate=.nan", "Setting loop.learning_rate is nan; wanted a number above 0"),
        ("loop.learning_rate=-1e-5", "Setting loop.learning_rate is -1e-05"),
        ("loop.epochs=.inf", "Setting loop.epochs is inf"),
        ("loop.batch_size=0", "Setting loop.batch_size is 0"),
        ("loop.patience=-1", "Setting loop.patience is -1"),
        ("loop.trainer.fsdp=full_shard", "TrainingArguments fsdp cannot be set; wanted some of adam_beta1"),
        ("loop.trainer.weight_decay=light", "Setting loop.trainer.weight_decay is 'light'; wanted a number, 0 or more"),
        ("loop.trainer.warmup_steps=-1", "Setting loop.trainer.warmup_steps is -1; wanted a number, 0 or more"),
        ("loop.trainer.bf16=maybe", "Setting loop.trainer.bf16 is 'maybe'; wanted true or false"),
        ("loop.trainer.max_steps=1.5", "Setting loop.trainer.max_steps is 1.5; wanted a whole number"),
        ("rrpo.beta=-1", "Setting rrpo.beta is -1"),
        ("rrpo.beta=.inf", "Setting rrpo.beta is inf"),
        ("reader.deadline=0", "Setting reader.deadline is 0"),
        ("reader.attempt_timeout=0", "Setting reader.attempt_timeout is 0"),
        ("reader.max_retries=-1", "Setting reader.max_retries is -1"),
        ("reader.concurrency=0", "Setting reader.concurrency is 0"),
        ("reader.price_input=-1", "Setting reader.price_input is -1"),
        ("reader.reader=none", "learns from a reader's answers"),
        ("model.template='{title}'", "lacks {text}"),
        ("model.template='{text} {body}'", "unknown field {body}"),
        ("rrpo.samples={", "is no YAML"),
        ("rrpo.samples=four", "Setting rrpo.samples is 'four'; wanted a whole number. See docs/settings.md"),
        ("rrpo.samples=2.5", "Setting rrpo.samples is 2.5; wanted a whole number."),
        ("rrpo.samples={a: 1}", "Setting rrpo.samples is a group of settings; wanted a whole number."),
        ("rrpo=3", "Setting rrpo is a number; wanted settings by name, like {name: value}."),
        ("rrpo.beta=much", "Setting rrpo.beta is 'much'; wanted a number."),
        ("loop.stop_on_alarm=maybe", "Setting loop.stop_on_alarm is 'maybe'; wanted true or false."),
        ("model.name=3", "Setting model.name is 3; wanted text."),
        ("reader.sampling.stop=[a]", "Setting reader.sampling.stop is a list; wanted a number or a whole number or te"),
        ("reader.api_key_env=8713", "Setting reader.api_key_env is not shown, for it may be a secret; wanted text."),
        ("method=rpo", "wanted 'rrpo', 'supervised', 'grpo' or 'sft'. Did you mean rrpo? See docs/settings.md"),
        ("reader.prompt=mine.txt", "embedded takes no prompt"),
        ("reader.model=llama", "embedded takes no model name"),
    ],
)
def test_a_value_out_of_range_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], setting: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["train", "--name", "a", "--data", "not-there.jsonl", "--set", setting]) == 2
    found = capsys.readouterr().err
    assert (message in found, found.count("\n")) == (True, 1), found


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("reader.api_key=sk-hush", "There is no setting reader.api_key. "),
        ("reader.headers.authorization=sk-hush", "There is no setting reader.headers. "),
        ("reader.api_key_env=sk-hush", "Setting api_key_env is not the name of an environment variable"),
        ("expansion.api_key_env=sk-hush", "Setting api_key_env is not the name of an environment variable"),
        ("reader.sampling={api_key: sk-hush}", "Sampling parameter api_key looks like a secret"),
        ("reader.sampling={extra: {api_key: sk-hush}}", "Setting reader.sampling.extra is a group of settings;"),
        ("reader=http://me:sk-hush@host/v1", "Setting reader is text; wanted settings by name"),
        ("expansion=sk-hush", "Setting expansion is text; wanted settings by name"),
        ("reader.api=sk-hush", "Setting reader.api is not shown, for it may be a secret; wanted "),
        ("data.depth=http://me:sk-hush@host", "Setting data.depth is text; wanted a whole number"),
        ("reader.api_key_env=@sk-hush", "was given what is no YAML (line 1, column 1: found character '@'"),
        ("reader.api_key_env:@sk-hush", "--set was given a text without =; wanted NAME=VALUE"),
        ("reader.reader=!!set {sk-hush}", "Setting reader.reader is a value of another kind"),
        ("reader.reader=http://me:sk-hush@host/v1", "holds a user name or password"),
        ("reader.reader=http://me:sk-hush@host:99999/v1", "holds a user name or password"),
        ("reader.reader=http://host/v1?key=sk-hush", "holds a query or fragment"),
        ("expansion.llm=http://me:sk-hush@host/v1", "holds a user name or password"),
    ],
)
def test_a_secret_among_the_settings_is_refused_and_not_repeated(setting: str, message: str) -> None:
    """Settings stand in run folders and reports."""
    with pytest.raises(ConfigurationError) as raised:
        load_settings(None, [setting], {})
    assert message in str(raised.value)
    assert "sk-hush" not in str(raised.value)


@pytest.mark.parametrize("name", ["run.yaml", "run.json"])
def test_a_config_file_that_cannot_be_read_is_not_repeated(name: str, tmp_path: Path) -> None:
    config = tmp_path / name
    config.write_text("reader:\n  api_key_env: @sk-hush\n", "utf-8")
    with pytest.raises(ConfigurationError) as raised:
        load_settings(config, [], {})
    assert re.search(r"is not valid YAML or JSON \(.*line [12],? column", str(raised.value))
    assert "sk-hush" not in str(raised.value)


@pytest.mark.parametrize(
    ("setting", "meant"), [("rrpo.bata=0.1", "rrpo.beta"), ("train_k=2", "rrpo.train_k"), ("zzz.qqq=1", "")]
)
def test_an_unknown_setting_is_told_what_may_be_meant(setting: str, meant: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load_settings(None, [setting], {})
    assert ("Did you mean" in str(raised.value)) == bool(meant)
    assert not meant or f"Did you mean {meant}?" in str(raised.value)


def test_a_number_in_scientific_notation_is_a_number() -> None:
    """YAML 1.1 takes 1e-4 for text, and wants 1.0e-4."""
    given = ["loop.trainer.weight_decay=1e-4", "loop.trainer.lr_scheduler_kwargs={min_lr: 1e-6, decay_type: cosine}"]
    assert load_settings(None, given, {}).loop.trainer == {
        "weight_decay": 1e-4,
        "lr_scheduler_kwargs": {"min_lr": 1e-6, "decay_type": "cosine"},
    }


def test_labels_that_are_all_0_are_no_order_to_compare_with() -> None:
    documents = (Document("a", "one"), Document("b", "two"))
    test = [Example(Query(f"q{i}", "what?"), documents, ("one",), {"a": 0}) for i in range(3)]
    splits = Splits([], [], test, "set", 0)
    evaluation, _ = _compare(settings_from({"reader": {"reader": "none"}, "method": "supervised"}), splits, None, *TWO)
    assert list(evaluation.models) == ["first-stage", "reference", "trained"]


def test_attempts_and_their_time_reach_the_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr("rankwright.llms.http.HTTPLLM", lambda *names, **options: made.append(options))
    for given in ({}, {"attempt_timeout": 7.0, "max_retries": 1, "deadline": 30.0}):
        settings = ReaderSettings(reader="http://127.0.0.1:9/v1", model="m", **given)
        with open_store(str(tmp_path / "reads.sqlite")) as store:
            build_reader(settings, store, "run")
    names = ("deadline", "attempt_timeout", "max_retries")
    assert [tuple(options[name] for name in names) for options in made] == [(120.0, None, 4), (30.0, 7.0, 1)]
    monkeypatch.undo()
    assert HTTPLLM("m", "http://127.0.0.1:9/v1", deadline=200.0).attempt_timeout == 200.0


@pytest.mark.parametrize("verb", [["train", "--name=a", "--model=tiny"], ["eval", "first-stage"]], ids=lambda v: v[0])
def test_prompt_and_limits_of_the_command_reach_the_endpoint(
    verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interruption answers the first requests (in training the second, after the call that tries the reader): what
    they hold is all that is wanted."""
    monkeypatch.chdir(tmp_path)
    make_model(tmp_path / "tiny")
    write_rows(tmp_path / "q.jsonl", rows())
    (tmp_path / "mine.txt").write_text("Look here: {passages}\nNow say: {question}", "utf-8")
    made: list[dict[str, Any]] = []
    asked: list[str] = []

    class Watched(HTTPLLM):
        def __init__(self, *names: str, **options: Any) -> None:
            made.append(options)
            super().__init__(*names, **options)

        def complete_each(self, requests: Any, on_calls: Any) -> None:
            if "number of this run" in requests[0].messages[0][1]:
                on_calls([Call(0, Completion("7"))])
                return
            asked.extend(request.messages[0][1] for request in requests)
            raise KeyboardInterrupt

    monkeypatch.setattr("rankwright.llms.http.HTTPLLM", Watched)
    endpoint = ["--reader", "http://127.0.0.1:9/v1", "--reader-model", "m", "--reader-prompt", "mine.txt"]
    limits = ["--requests-per-minute", "30", "--tokens-per-minute", "900.5"]
    assert run([*verb, "--data", "q.jsonl", "--retriever", "given", *endpoint, *limits]) == 130
    assert [(options["requests_per_minute"], options["tokens_per_minute"]) for options in made] == [(30, 900.5)]
    wanted = re.compile(r"Look here: (.*)\nNow say: What is the key of door \d+\?", re.DOTALL)
    found = [wanted.fullmatch(text) for text in asked]
    assert [match[1].count("[") for match in found if match] == [3] * len(asked) != []


def test_a_folder_of_a_language_model_is_a_reader(tmp_path: Path) -> None:
    """This one says the same to every prompt."""
    folder = make_chain_model(tmp_path / "lm", ["answer", "is", "rome", END])
    (tmp_path / "mine.txt").write_text("{passages} {question}", "utf-8")
    with open_store(str(tmp_path / "reads.sqlite")) as store:
        names = set()
        for prompt in ("reader-1", str(tmp_path / "mine.txt")):
            reader = build_reader(ReaderSettings(reader=str(folder), prompt=prompt), store, "run")
            assert reader is not None
            assert reader.answer([CONTEXT]) == [Answer("rome")]
            assert reader.answer([CONTEXT]) == [Answer("rome", paid=False)]
            names.add(reader.name)
        totals = store.ledger.totals("run")
        with pytest.raises(ConfigurationError, match="but 'gpt' was given as model of an endpoint"):
            build_reader(ReaderSettings(reader=str(folder), model="gpt"), store, "run")
    assert (len(names), totals.calls, totals.price) == (2, 2, 0.0)
    assert all(name.startswith("lm@sha256:") for name in names)


def test_the_settings_of_a_run_folder_are_settings(tmp_path: Path) -> None:
    settings = settings_from({"rrpo": {"samples": 6}, "reader": {"sampling": {"max_tokens": 9}}})
    stored = tmp_path / "config.json"
    stored.write_text(json.dumps({"run_id": "mine-1", **settings_tree(settings)}), "utf-8")
    assert load_settings(stored, [], {}) == settings
    assert load_reader_settings(stored, ["reader.deadline=9"], {}).sampling == {"max_tokens": 9}
    with pytest.raises(ConfigurationError, match=r"top_k, which says nothing here"):
        load_reader_settings(stored, ["top_k=9"], {})
    with pytest.raises(ConfigurationError, match=r"given rrpo\.samples, which says nothing here; .* --help\.$"):
        load_reader_settings(stored, ["rrpo.samples=9"], {})
    stored.write_text('{"reader": 3}', "utf-8")
    with pytest.raises(ConfigurationError, match=r"^Setting reader is a number; wanted settings by name"):
        load_reader_settings(stored, [], {})


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """A BEIR set whose splits train, dev and test share out the questions, and one file of labels for all."""
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    write_rows(folder / "corpus.jsonl", [passage for row in rows() for passage in row["candidates"]])
    write_rows(folder / "queries.jsonl", [{"_id": row["query_id"], "text": row["question"]} for row in rows()])
    for number, split in enumerate(("train", "dev", "test")):
        lines = [f"q{door}\tkey-{door}\t1\n" for door in DOORS[number::3]]
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("named", "splits"),
    [
        ({}, ("train", "dev", "test")),
        ({"qrels": "test", "dev_qrels": "train", "test_qrels": "dev"}, ("test", "train", "dev")),
    ],
)
def test_each_side_of_a_beir_set_has_labels_of_its_own(
    beir: Path, named: dict[str, str], splits: tuple[str, str, str]
) -> None:
    data = {"train": str(beir), "dev": str(beir), "test": str(beir), "format": "beir", **named}
    found = load_splits(settings_from({"data": data, "method": "supervised", "reader": {"reader": "none"}}))
    sides = [{e.query.query_id for e in side} for side in (found.train, found.dev, found.test)]
    all_of = {split: {f"q{door}" for door in DOORS[i::3]} for i, split in enumerate(("train", "dev", "test"))}
    assert sides == [all_of[split] for split in splits]


def test_a_config_may_name_a_part_without_settings(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("reader:\n", "utf-8")
    given = {"reader.model": "m", "reader.reader": "http://h/v1"}
    assert load_settings(tmp_path / "c.yaml", [], given).reader.model == "m"


def test_the_config_of_a_run_can_be_read_again(tmp_path: Path) -> None:
    """With names that YAML would read otherwise."""
    tree = settings_tree(settings_from({"data": {"train": "\U0001f600.jsonl"}}))
    (tmp_path / "config.json").write_text(json.dumps(tree), "utf-8")
    assert settings_tree(load_settings(tmp_path / "config.json", [], {})) == tree


def test_only_what_a_reader_reads_needs_answers(tmp_path: Path) -> None:
    """Training from labels with sides of its own for dev and test."""
    data = {}
    for number, side in enumerate(("train", "dev", "test")):
        of_side = rows()[number * 2 : number * 2 + 2]
        data[side] = str(write_rows(tmp_path / f"{side}.jsonl", of_side))
    bare = [{**row, "answers": []} for row in rows()[:2]]
    write_rows(tmp_path / "train.jsonl", bare)
    found = load_splits(settings_from({"data": data, "method": "supervised"}))
    assert len(found.train) == 2
    with pytest.raises(DataError, match="has no answer"):
        load_splits(settings_from({"data": data, "method": "rrpo"}))
    with pytest.raises(DataError, match="has no answer"):
        load_splits(settings_from({"data": {**data, "dev": ""}, "method": "supervised"}))


def test_a_beir_set_without_such_splits_keeps_its_default(beir: Path) -> None:
    for split in ("train", "dev"):
        (beir / "qrels" / f"{split}.tsv").unlink()
    data = {"train": str(beir), "format": "beir", "dev_share": 0.25, "test_share": 0.25}
    found = load_splits(settings_from({"data": data, "method": "supervised", "reader": {"reader": "none"}}))
    assert {e.query.query_id for e in (*found.train, *found.dev, *found.test)} == {f"q{d}" for d in DOORS[2::3]}


def test_calls_are_told_with_attempts_and_nothing_where_a_run_stopped_before_any(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, calls = str(tmp_path / "reads.sqlite"), [LedgerEntry("run", "m", "length", attempts=3)]
    with pytest.raises(DataError), counted_store(cache, "run"):
        raise DataError("wrong")
    assert capsys.readouterr().err == ""
    with open_store(cache) as store:
        store.write(lambda connection: store.ledger.write(connection, calls))
    with pytest.raises(DataError), counted_store(cache, "run"):
        raise DataError("wrong")
    assert "Reader calls 1 (1 failed), 3 attempts, price unknown" in capsys.readouterr().err
    with counted_store(cache, "another"):
        pass
    assert "Reader calls 0 (0 failed), price" in capsys.readouterr().err


def test_a_reply_without_an_answer_is_failed_and_not_kept(tmp_path: Path) -> None:
    replies = ["<think>Rome?</think>", "It says Paris.</think>\n\nParis"]

    def answer(request: BaseHTTPRequestHandler) -> None:
        body_of(request)
        choice = {"index": 0, "message": {"role": "assistant", "content": replies.pop(0)}, "finish_reason": "stop"}
        reply(request, {"id": "x", "object": "chat.completion", "choices": [choice]})

    with serving(answer) as address, open_store(str(tmp_path / "reads.sqlite")) as store:
        reader = build_reader(ReaderSettings(reader=f"{address}/v1", model="m"), store, "run")
        assert reader is not None
        assert reader.answer([CONTEXT]) == [ReadFailed("empty text")]
        assert (len(store), store.ledger.totals("run").failed) == (0, 1)
        assert reader.answer([CONTEXT]) == [Answer("Paris")]
        assert reader.answer([CONTEXT]) == [Answer("Paris", paid=False)]
        assert (len(store), store.ledger.totals("run").failed) == (1, 1)
