"""The model in a run's folder: its bytes are compared once for each opening, and whoever saves another in its place has
not damaged it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rankwright
from rankwright import manifests
from rankwright.checkpoints import write_manifest
from rankwright.cli.build import build_reranker
from rankwright.cli.export import export
from rankwright.cli.run import model_files
from rankwright.cli.serve import opener
from rankwright.errors import ModelError, ResourceNotFoundError
from rankwright.manifests import MANIFEST, damaged_files
from rankwright.rerankers import choice
from rankwright.rerankers.scoring import ScoringReranker
from tests.tiny_bert import save_cross_encoder

ASKED = ("rain", ["moon", "a river of rain"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's, whose manifest lists its model."""
    save_cross_encoder(tmp_path / "run" / "model")
    (tmp_path / "run" / "model" / "notes.json").write_text("{}")
    (tmp_path / "run" / "model" / "README.md").write_text("# Card\n")
    write_manifest(tmp_path / "run", model_files(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Counter[str]:
    """How often each file is hashed."""
    monkeypatch.setenv(choice.CACHE, str(tmp_path / "cache"))
    found, digest = Counter[str](), manifests.digest

    def counted(path: Path) -> dict[str, Any]:
        found[path.name] += 1
        return digest(path)

    monkeypatch.setattr(manifests, "digest", counted)
    return found


def moved(folder: Path) -> ScoringReranker:
    """The run's model, with other scores."""
    model = rankwright.load(folder)
    model.model.classifier.bias.data += 1
    return model


def flip(file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))


UNFINISHED = r"Run .*demo is not finished and holds no model yet; .* with the command that began it, with --resume\.$"


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run of the demo before its model is saved."""
    run = tmp_path / "demo"
    run.mkdir()
    (run / "config.json").write_text('{"run_id": "demo-1"}')
    (run / "environment.json").write_text('{"command": "rankwright demo --name demo"}')
    return run


def openings(model: Path) -> list[Callable[[], object]]:
    """Ways to open a model; what the commands say is raised."""
    return [
        lambda: rankwright.load(model),
        lambda: opener([str(model)], "torch"),  # and not when it is called
        lambda: build_reranker(str(model)),
        lambda: export(str(model), model / "to", "cpu"),
    ]


@pytest.fixture
def without_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds to import cannot be imported."""
    for name in ("torch", "transformers", "rankwright.rerankers.exporting"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("without_libraries")
def test_a_run_without_a_model_says_at_once_how_it_is_finished(begun: Path) -> None:
    for way in [*openings(begun), *openings(begun / "model")]:
        with pytest.raises(ResourceNotFoundError, match=UNFINISHED):
            way()
    (begun / "model").mkdir()
    (begun / "environment.json").write_text(json.dumps({"command": "harm --resume"}))  # which may come from anyone
    with pytest.raises(ResourceNotFoundError, match=UNFINISHED):
        rankwright.load(begun)


def test_a_model_beside_an_environment_of_another_tool_is_none_of_a_run(tmp_path: Path) -> None:
    save_cross_encoder(tmp_path)
    (tmp_path / "environment.json").write_text("{}")
    assert rankwright.load(tmp_path).rerank(*ASKED).doc_ids


@pytest.mark.usefixtures("without_libraries")
def test_a_file_and_a_folder_without_config_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "README.md").touch()
    (tmp_path / "saved").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "saved" / name).touch()
    for name, words in {
        "empty": f"'{tmp_path / 'empty'}' holds no config.json; wanted",
        "README.md": "README.md' is a file; wanted a model's folder. Check the path.",
        "saved/model.safetensors": f"is a file; wanted .* Name the folder that it is in: {tmp_path / 'saved'}.",
    }.items():
        for way in openings(tmp_path / name):
            with pytest.raises(ModelError, match=words):
                way()


def test_a_damaged_model_is_made_again_by_the_command_that_made_it(folder: Path) -> None:
    flip(folder / "model" / "model.safetensors")
    with pytest.raises(ModelError, match="Make the model again with the command that began it, with --resume, or"):
        rankwright.load(folder)


@pytest.mark.parametrize("backend", ["torch", "packed", "auto"])
@pytest.mark.parametrize("named", ["", "model"])
def test_every_file_is_read_once_for_an_opening(folder: Path, backend: str, named: str, read: Counter[str]) -> None:
    rankwright.load(folder / named, backend)
    assert read == dict.fromkeys((Path(name).name for name in model_files(folder)), 1)


def test_a_server_reads_them_once_too(folder: Path, read: Counter[str]) -> None:
    models = opener([str(folder)], "auto")
    assert not read
    assert list(models()) == ["run"]
    assert read["model.safetensors"] == 1
    flip(folder / "model" / "model.safetensors")
    with pytest.raises(ModelError, match=r"model/model\.safetensors in .* is not as the run left it"):
        opener([str(folder)], "torch")()


@pytest.mark.parametrize("backend", ["torch", "auto", "onnx"])
def test_damage_is_refused_in_every_backend(folder: Path, backend: str, read: Counter[str]) -> None:
    flip(folder / "model" / "model.safetensors")
    with pytest.raises(ModelError, match=r"model/model\.safetensors in .* is not as the run left it"):
        rankwright.load(folder, backend)
    assert read["model.safetensors"] == 1


def test_a_model_that_is_saved_in_the_place_of_a_run_s_opens(folder: Path) -> None:
    (folder / "model" / "model-00001-of-00002.safetensors").write_bytes(b"of an earlier model, which saving takes away")
    write_manifest(folder, model_files(folder))
    model = moved(folder)
    before = set(json.loads((folder / MANIFEST).read_text()))
    model.save(folder / "model")
    assert damaged_files(folder) == []
    listed = set(json.loads((folder / MANIFEST).read_text()))
    assert before - listed == {"model/model-00001-of-00002.safetensors"}
    assert listed == set(model_files(folder))  # what saving has added, too, and not the card
    assert rankwright.load(folder).rerank(*ASKED).scores == model.rerank(*ASKED).scores
    flip(folder / "model" / "model.safetensors")
    with pytest.raises(ModelError, match="is not as the run left it"):
        rankwright.load(folder)


def test_saving_hides_no_damage_of_what_it_does_not_write(folder: Path) -> None:
    model = moved(folder)
    flip(folder / "model" / "notes.json")
    model.save(folder / "model")
    assert damaged_files(folder) == ["model/notes.json"]


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "3",
        '{"name": "app", "icons": ["x.png"]}',
        '{"model/config.json": "v1"}',
        '{"model/config.json": {"bytes": 1}}',
        '{"other/a.bin": {"bytes": 1, "sha256": "0"}}',
    ],
)
def test_the_manifest_of_another_tool_says_nothing_of_a_model(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    flip(folder / "model" / "notes.json")
    model = moved(folder)
    model.save(folder / "model")
    assert (folder / MANIFEST).read_text() == text
    assert rankwright.load(folder).rerank(*ASKED).scores == model.rerank(*ASKED).scores


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_a_manifest_that_cannot_be_read_is_named(folder: Path, text: str) -> None:
    model = moved(folder)
    (folder / MANIFEST).write_text(text)
    model.save(folder / "model")
    assert (folder / MANIFEST).read_text() == text
    with pytest.raises(ModelError, match=r"manifest\.json in .* is not as the run left it"):
        rankwright.load(folder)


def test_a_model_that_lies_in_no_run_is_saved_where_nothing_is(folder: Path, tmp_path: Path) -> None:
    moved(folder).save(tmp_path / "new" / "model")
    assert not (tmp_path / "new" / MANIFEST).exists()
    assert damaged_files(folder) == []
