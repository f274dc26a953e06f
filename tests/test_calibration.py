"""A temperature and a threshold: found where they were planted, written where load reads them, orders untouched."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rankwright
from rankwright.calibration import (
    EVEN,
    best_temperature,
    best_threshold,
    calibrate,
    log_loss,
    remove_calibration,
    write_calibration,
)
from rankwright.checkpoints import write_manifest
from rankwright.cli.app import run
from rankwright.data import write_jsonl
from rankwright.errors import ConfigurationError, DataError, ModelError
from rankwright.manifests import damaged_files
from rankwright.rerankers import load
from rankwright.rerankers.changes import noted
from rankwright.rerankers.onnx_folder import MANIFEST, Manifest, read_manifest
from rankwright.rerankers.ranking import Scorer
from rankwright.scale import relevance
from rankwright.types import Document, Example, Query, RerankRequest, Scored
from tests.cli_kit import make_model, one_line, rows, write_rows


class Told(Scorer):
    """Scores a passage by the number that it is."""

    @property
    def name(self) -> str:
        return "told"

    @property
    def max_length(self) -> int:
        return 8

    def score_batch(self, requests: Sequence[RerankRequest]) -> list[Scored]:
        return [
            Scored(tuple(float(d.text) for d in r.documents), (1,) * len(r.documents), (False,) * len(r.documents))
            for r in requests
        ]


def planted(temperature: float, questions: int = 400, seed: int = 0) -> list[Example]:
    """Questions whose labels are drawn with the probability sigmoid(score / temperature)."""
    chance = np.random.default_rng(seed)
    examples = []
    for number in range(questions):
        score_D = chance.normal(0, 3, 10)
        label_D = chance.random(10) < 1 / (1 + np.exp(-score_D / temperature))
        documents = tuple(Document(str(i), repr(float(score))) for i, score in enumerate(score_D))
        relevant = {str(i): 1 if label else 0 for i, label in enumerate(label_D)}
        examples.append(Example(Query(str(number), "q"), documents, (), relevant))
    return examples


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_a_planted_temperature_is_found_and_makes_the_labels_likelier(temperature: float) -> None:
    found = calibrate(Told(), planted(temperature))
    assert found.temperature == pytest.approx(temperature, rel=0.15)
    assert (found.questions, found.pairs) == (400, 4000)
    # On other questions than the temperature was fitted on; 1 is as good only where it was planted.
    assert found.log_loss_after <= found.log_loss_before + (0.003 if temperature == 1 else -0.01)
    assert found.log_loss_before == pytest.approx(
        float(np.mean([_loss(example) for example in planted(temperature)[1::2]])), abs=1e-9
    )


def _loss(example: Example) -> float:
    score_D = np.array([float(document.text) for document in example.candidates])
    sign_D = np.array([1 if example.relevance[d.doc_id] else -1 for d in example.candidates])
    return float(np.mean(np.log1p(np.exp(-sign_D * score_D))))


def test_the_temperature_is_the_best_of_all() -> None:
    chance = np.random.default_rng(1)
    score_P, label_P = chance.normal(0, 2, 500), chance.random(500) < 0.4
    label_P |= score_P > 1.5
    temperature = best_temperature(score_P, label_P)
    losses = [log_loss(score_P, label_P, t) for t in np.geomspace(0.01, 100, 400)]
    assert log_loss(score_P, label_P, temperature) <= min(losses) + 1e-6


def test_the_threshold_has_the_largest_f1_of_all() -> None:
    chance = np.random.default_rng(2)
    score_P = chance.normal(0, 2, 200).round(1)  # with ties
    label_P = chance.random(200) < 1 / (1 + np.exp(-score_P))
    temperature = best_temperature(score_P, label_P)
    threshold = best_threshold(score_P, label_P, temperature)
    shown_P = np.array(relevance(score_P, temperature))

    def f1(least: float) -> float:
        called = shown_P >= least
        return 2 * (called & label_P).sum() / (called.sum() + label_P.sum())

    assert f1(threshold) == pytest.approx(max(f1(value) for value in shown_P))
    assert 0 < threshold < 1


def test_labels_that_scores_do_not_follow_are_refused() -> None:
    example = planted(1.0, 40)
    upside_down = [
        Example(e.query, e.candidates, (), {name: 1 - grade for name, grade in e.relevance.items()}) for e in example
    ]
    with pytest.raises(DataError, match="wanted relevant ones above"):
        calibrate(Told(), upside_down)
    nothing = [Example(e.query, e.candidates, (), dict.fromkeys(e.relevance, 0)) for e in example]
    with pytest.raises(DataError, match="first half of the 40 labelled questions has 200 pairs, 0 of them relevant"):
        calibrate(Told(), nothing)
    with pytest.raises(DataError, match="has 0 pairs"):
        calibrate(Told(), [])
    broken = [Example(e.query, (Document("x", "nan"), *e.candidates), (), e.relevance) for e in example]
    with pytest.raises(ModelError, match="scored document 'x'"):
        calibrate(Told(), broken)


def few(relevant: Sequence[float], others: Sequence[float], questions: int = 20) -> list[Example]:
    """Questions that all have these scores, the first of them relevant."""
    scores = [*relevant, *others]
    documents = tuple(Document(str(i), repr(score)) for i, score in enumerate(scores))
    return [
        Example(Query(str(n), "q"), documents, (), {str(i): 1 for i in range(len(relevant))}) for n in range(questions)
    ]


@pytest.mark.parametrize("others", [[3.0, 2.0, 1.0, -1.0], [3.0, 2.0, 1.0, 0.5]], ids=["both sides of 0", "one side"])
@pytest.mark.parametrize("before", [1.0, 2.0])
def test_where_no_temperature_is_best_the_threshold_alone_is_written(
    tmp_path: Path, others: list[float], before: float
) -> None:
    model = Told()
    model.temperature = before
    found = calibrate(model, few([4.0], others))
    assert found.log_loss_after >= EVEN - 1e-12
    assert not found.fitted
    assert found.temperature == before
    # On the scale that holds: between the relevant score and the next one.
    below, above = relevance([3.0, 4.0], before)
    assert below < found.threshold < above
    assert found.f1 == 1
    assert found.log_loss_share == pytest.approx(-(0.2 * np.log(0.2) + 0.8 * np.log(0.8)))
    assert "No temperature was fitted" in found.doubt
    assert "20 of 100 pairs are relevant" in found.doubt
    assert ("--remove" in found.doubt) == (before != 1)
    folder = make_model(tmp_path / "model")
    write_calibration(folder, found, "few")
    own = json.loads((folder / "config.json").read_text())["rankwright"]
    assert own.get("temperature") == (None if before == 1 else before)
    assert own["threshold"] == found.threshold


def in_turn(*halves: Sequence[Example]) -> list[Example]:
    """A question of each in turn."""
    mixed = [example for pair in zip(*halves, strict=True) for example in pair]
    return [Example(Query(str(n), "q"), e.candidates, (), e.relevance) for n, e in enumerate(mixed)]


def test_the_half_that_was_not_fitted_decides() -> None:
    found = calibrate(Told(), in_turn(few([0.5], [0.2, -0.5, -0.5, -0.5]), few([-1.0], [1.0, -2.0, -2.0, -2.0])))
    assert found.log_loss_before < EVEN < found.log_loss_after
    assert not found.fitted
    assert found.temperature == 1
    assert f"from {found.log_loss_before:.4f} to {found.log_loss_after:.4f}" in found.doubt


def test_a_temperature_that_is_better_than_none_is_written_with_a_warning() -> None:
    found = calibrate(Told(), in_turn(few([4.0], [3.0, -1.0, -1.0, -1.0]), few([4.0], [3.0, 2.0, 1.0, -1.0])))
    assert EVEN < found.log_loss_after < found.log_loss_before  # better than none, and yet not good
    assert found.fitted
    assert f"{found.log_loss_share:.4f}): use them for the order and with the threshold" in found.doubt


def test_a_temperature_between_one_half_and_the_share_is_written_with_a_warning() -> None:
    found = calibrate(Told(), few([2.0], [1.0, -2.0, -2.0, -2.0]))
    assert found.log_loss_after < EVEN
    assert found.fitted
    assert found.doubt == ""
    # Right for four of five, but sure of the wrong one.
    found = calibrate(Told(), few([0.5], [3.0, -1.5, -1.5, -1.5]))
    assert found.log_loss_share < found.log_loss_after < EVEN
    assert found.fitted
    assert "no better than saying of every pair the share" in found.doubt


def test_what_is_fitted_can_be_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = calibrate(Told(), planted(2.0, 40))
    folder = make_model(tmp_path / "run" / "model")
    (folder / "README.md").write_text("# Card\n\nText.\n\n## Use\n\nSo.\n")
    write_manifest(tmp_path / "run", ["model/config.json", "model/model.safetensors"])
    config, card = json.loads((folder / "config.json").read_text()), (folder / "README.md").read_text()
    with noted(folder):
        write_calibration(folder, found, "planted")
    assert load(folder).threshold == found.threshold
    assert (folder / "README.md").read_text() != card
    command = ["calibrate", str(tmp_path / "run"), "--remove", "--output", "json"]
    assert run(command) == 0
    assert one_line(capsys.readouterr().out) == {"folder": str(folder), "removed": True}
    assert json.loads((folder / "config.json").read_text()) == config
    assert (folder / "README.md").read_text() == card
    assert damaged_files(tmp_path / "run") == []
    assert run(command) == 0
    assert one_line(capsys.readouterr().out) == {"folder": str(folder), "removed": False}
    exported = tmp_path / "exported"
    exported.mkdir()
    Manifest(template="{text}", max_length=64).write(exported)
    bare = read_manifest(exported)
    write_calibration(exported, found, "planted")
    assert remove_calibration(exported)
    assert read_manifest(exported) == bare
    write_calibration(exported, found, "planted")
    assert run(["calibrate", str(exported), "--remove"]) == 0  # no config.json: an export can do without
    assert read_manifest(exported) == bare
    # A damaged file is not taken for one that was changed on purpose.
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 8}))
    assert run(command) == ModelError.exit_code
    assert damaged_files(tmp_path / "run") == ["model/config.json"]


def test_the_command_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_model(tmp_path / "model")
    bare = [{"query_id": row["query_id"], "question": row["question"], "answers": row["answers"]} for row in rows()]
    data = write_rows(tmp_path / "data.jsonl", bare)
    for options, words in {
        ("--data", str(data)): "have no candidates, and no --corpus was given",
        (): "--data was not given",
        ("--data", str(data), "--remove"): "--data was given with --remove",
    }.items():
        assert run(["calibrate", str(folder), *options]) != 0
        assert words in capsys.readouterr().err
    for options in (["--data", str(data)], ["--remove"]):
        assert run(["calibrate", str(tmp_path / "modle"), *options]) != 0
        error = capsys.readouterr().err
        assert "does not exist" in error
        assert f"Did you mean '{folder}'?" in error


@pytest.mark.parametrize("output", ["text", "json"])
def test_the_command_tells_what_it_could_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    folder = make_model(tmp_path / "model")
    told: list[tuple[str, int, int]] = []

    @contextmanager
    def bars() -> Iterator[Callable[[str, int, int], None]]:
        yield lambda what, done, total: told.append((what, done, total))

    monkeypatch.setattr("rankwright.cli.calibrate.progress_bars", bars)
    monkeypatch.setattr("rankwright.cli.build.build_reranker", lambda name, device: Told())
    examples = few([4.0], [3.0, 2.0, 1.0, -1.0])
    data = tmp_path / "data.jsonl"
    write_jsonl(data, examples)
    assert run(["calibrate", str(folder), "--data", str(data), "--retriever", "given", "--output", output]) == 0
    assert told[-1] == ("score", 20, 20)
    found, printed = calibrate(Told(), examples), capsys.readouterr()
    assert load(folder).threshold == found.threshold
    assert load(folder).temperature == 1
    if output == "json":
        assert one_line(printed.out) == {"folder": str(folder), **asdict(found)}
        assert found.doubt in printed.err
    else:
        assert f"always saying the share of relevant pairs {found.log_loss_share:.4f}" in printed.out
        assert "without a temperature" in printed.out
        assert found.doubt in printed.out


def test_progress_is_told_of_every_question() -> None:
    told: list[tuple[int, int]] = []
    calibrate(Told(), planted(1.0, 30), progress=lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (30, 30)
    assert len(told) > 2  # of thirty questions, which a large model reads for a minute


def test_answers_in_passages_stand_in_for_labels() -> None:
    examples = [
        Example(Query(str(i), "q"), (Document("a", "2"), Document("b", "-1"), Document("c", "1")), ("2",))
        for i in range(20)
    ]
    found = calibrate(Told(), examples)
    assert (found.relevant, found.f1) == (20, 1.0)
    assert relevance([1.0], found.temperature)[0] < found.threshold < relevance([2.0], found.temperature)[0]


def test_the_command_writes_what_load_reads_and_leaves_scores_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_model(tmp_path / "run" / "model")
    (tmp_path / "run" / "config.json").write_text('{"seed": 1}')  # a run's settings
    reranker: Any = rankwright.load(folder)
    questions = rows()
    requests = [
        RerankRequest(
            Query(row["query_id"], row["question"]),
            tuple(Document(c["doc_id"], c["text"], c.get("title", "")) for c in row["candidates"]),
        )
        for row in questions
    ]
    middle = float(np.median([score for scored in reranker.score_batch(requests) for score in scored.scores]))
    reranker.model.classifier.bias.data -= middle  # scores on both sides of 0, and labels that follow them
    reranker.save(folder)
    before = reranker.rerank_batch(requests)
    labels = [{n: int(s > 0) for n, s in zip(r.doc_ids, r.scores, strict=True)} for r in before]
    labelled = [{**row, "relevance": grades} for row, grades in zip(questions, labels, strict=True)]
    data = write_rows(tmp_path / "data.jsonl", labelled)
    (folder / "README.md").write_text("---\ntags: [x]\n---\n# Card\n\nText.\n\n## Use\n\nSo.\n")
    write_manifest(tmp_path / "run", ["config.json", "model/config.json", "model/model.safetensors"])
    command = ["calibrate", str(tmp_path / "run"), "--data", str(data), "--retriever", "given", "--output", "json"]
    code = run(command)
    printed = capsys.readouterr()
    assert code == 0, printed.err
    record = one_line(printed.out)
    loaded = rankwright.load(folder)
    assert (loaded.temperature, loaded.threshold) == (record["temperature"], record["threshold"])
    assert loaded.rerank_batch(requests) == before
    loaded.save(tmp_path / "again")
    again = rankwright.load(tmp_path / "again")
    assert (again.temperature, again.threshold) == (loaded.temperature, loaded.threshold)
    assert run(command) == 0  # again, in the place of the first
    examples = [Example(r.query, r.documents, (), found) for r, found in zip(requests, labels, strict=True)]
    rankwright.calibrate(tmp_path / "run", examples)
    assert damaged_files(tmp_path / "run") == []  # it was changed on purpose
    card = (folder / "README.md").read_text()
    assert card.count("## Scale of the scores") == 1
    assert card.startswith("---\ntags: [x]\n---\n# Card\n\nText.\n\n## Use\n\nSo.\n")
    assert f"{record['pairs']} pairs" in card
    capsys.readouterr()
    assert run(["calibrate", "reference", "--data", str(data)]) == 2
    assert "is no folder" in capsys.readouterr().err


def test_an_export_keeps_it_in_its_manifest(tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    folder.mkdir()
    Manifest(template="{text}", max_length=64).write(folder)
    found = calibrate(Told(), planted(2.0, 40))
    write_calibration(folder, found, "planted")
    manifest = read_manifest(folder)
    assert (manifest.temperature, manifest.threshold) == (found.temperature, found.threshold)
    assert [path.name for path in folder.iterdir()] == [MANIFEST]


@pytest.mark.parametrize(
    "own", [{"temperature": 0}, {"temperature": "x"}, {"temperature": None}, {"threshold": 1.5}, {"threshold": "a"}]
)
def test_a_damaged_entry_is_named(tmp_path: Path, own: dict[str, object]) -> None:
    folder = make_model(tmp_path / "model")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["rankwright"] |= own
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="wanted a positive number and one from 0 to 1"):
        load(folder)


def test_what_is_no_model_folder_is_named(tmp_path: Path) -> None:
    found = calibrate(Told(), planted(1.0, 40))
    with pytest.raises(ConfigurationError, match=r"no folder with a config\.json"):
        write_calibration(tmp_path, found, "x")
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ModelError, match="is damaged"):
        write_calibration(tmp_path, found, "x")
