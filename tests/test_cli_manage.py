"""`rankwright report`, `push`, `cache` and `doctor`."""

from __future__ import annotations

import json
import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from rankwright.checkpoints import write_manifest
from rankwright.cli import examination
from rankwright.cli.app import run
from rankwright.errors import DataError
from rankwright.evaluation import FirstStage, GoldFirst, evaluate
from rankwright.llms.cache import LedgerEntry, ReadStore
from rankwright.types import Document, Example, Query
from tests.cli_kit import MAIN, ROOT, make_model, one_line, run_process
from tests.fake_hub import REVISION, TOKEN, FakeHub

# --- report ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """What a finished run leaves behind, as far as the report reads it."""
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    documents = (Document("a", "Nothing."), Document("b", "It is here."))
    examples = [Example(Query(f"q{i}", "Where?"), documents, ("here",), {"b": 1}) for i in range(3)]
    rankers = {"first-stage": FirstStage(), "gold-first": GoldFirst(examples)}
    evaluate(rankers, examples, set_name="places").save(folder / "evaluation.json")
    (folder / "config.json").write_text('{"run_id": "first-1", "top_k": 3}', "utf-8")
    (folder / "environment.json").write_text('{"command": "rankwright train --name first"}', "utf-8")
    (folder / "result.json").write_text('{"verdict": "better", "reader_calls": 4711}', "utf-8")
    (folder / "metrics.jsonl").write_text('{"step": 1, "reward": 0.25}\n{"step": 2, "reward": 0.75}\n', "utf-8")
    return folder


def test_a_report_is_made_again_from_a_run_folder(run_folder: Path) -> None:
    assert run(["report", str(run_folder)]) == 0
    page = (run_folder / "report.html").read_text("utf-8")
    for part in ("Run first", "rankwright train --name first", "4711", "reward", "gold-first"):
        assert part in page


def test_a_report_is_refused_where_a_file_is_not_as_the_run_left_it(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A digit of a score may change without a trace in the JSON; without a manifest nothing can be said."""
    result = run_folder / "result.json"
    write_manifest(run_folder, ["evaluation.json", "result.json"])
    assert run(["report", str(run_folder)]) == 0
    result.write_text(result.read_text("utf-8").replace("4711", "4710"), "utf-8")
    assert run(["report", str(run_folder)]) == DataError.exit_code
    assert f"result.json in {run_folder} is not as the run left it" in capsys.readouterr().err
    (run_folder / "manifest.json").unlink()
    assert run(["report", str(run_folder)]) == 0


def test_a_run_folder_may_lack_all_but_the_evaluation(run_folder: Path) -> None:
    for name in ("config.json", "environment.json", "result.json", "metrics.jsonl"):
        (run_folder / name).unlink()
    assert run(["report", str(run_folder), "--out", str(run_folder / "sub" / "page.html")]) == 0
    assert "gold-first" in (run_folder / "sub" / "page.html").read_text("utf-8")


def test_a_report_of_an_evaluation_file_lies_beside_it(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = (run_folder / "evaluation.json").rename(run_folder / "mine.json")
    assert run(["report", str(saved), "--output", "json"]) == 0
    made = {"source": str(saved), "report": str(saved.with_suffix(".html"))}
    assert one_line(capsys.readouterr().out) == made
    assert "Comparison on places" in (run_folder / "mine.html").read_text("utf-8")


def with_wrong_values(path: Path, mean: object = 0.5, grade: object = 1) -> dict[str, Any]:
    """An evaluation file with another mean and another grade."""
    packed = json.loads(path.read_text("utf-8"))
    for scores in packed["scores"].values():
        scores["F1" if "F1" in scores else next(iter(scores))][0] = mean
    packed["examples"][0]["relevance"] = {"d1": grade}
    return packed


def test_a_run_that_is_not_there_is_told_with_those_that_are(
    run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run_folder.parent)
    assert run(["report", "second"]) == 4
    assert capsys.readouterr().err.endswith("eval --save. Finished runs beside it: first.\n")


@pytest.mark.parametrize(
    ("name", "content", "code", "message"),
    [
        ("evaluation.json", None, 4, "holds no evaluation.json"),
        ("evaluation.json", "{", 5, "is not an evaluation or is damaged"),
        ("evaluation.json", {"mean": "abc"}, 5, "is not an evaluation or is damaged"),
        ("evaluation.json", {"grade": "x"}, 5, "is not an evaluation or is damaged"),
        ("result.json", "{", 5, "result.json is damaged"),
        ("config.json", "[1]", 5, "config.json holds a list"),
        ("metrics.jsonl", '{"step": 1}\n{"st', 5, "metrics.jsonl, line 2: broken JSON"),
    ],
)
def test_a_damaged_run_folder_is_named(
    run_folder: Path,
    name: str,
    content: str | dict[str, str] | None,
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is None:
        (run_folder / name).unlink()
    elif isinstance(content, dict):
        (run_folder / name).write_text(json.dumps(with_wrong_values(run_folder / name, **content)), "utf-8")
    else:
        (run_folder / name).write_text(content, "utf-8")
    assert run(["report", str(run_folder)]) == code
    assert message in capsys.readouterr().err


# --- push --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model/` of a run, with a card."""
    folder = make_model(tmp_path_factory.mktemp("run") / "model")
    (folder / "README.md").write_text("---\nlibrary_name: sentence-transformers\n---\n# A card\n", "utf-8")
    (folder / ".secret").write_text("not for others", "utf-8")
    return folder


def test_a_dry_run_lists_the_files_of_the_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["push", str(model.parent), "owner/name", "--dry-run", "--output", "json"]) == 0
    found = one_line(capsys.readouterr().out)
    assert (found["repo_id"], found["folder"], found["url"]) == ("owner/name", str(model), None)
    names = [file["name"] for file in found["files"]]
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(names)
    assert ".secret" not in names
    assert {f["name"]: f["bytes"] for f in found["files"]} == {name: (model / name).stat().st_size for name in names}
    assert run(["push", str(model), "owner/name", "--dry-run"]) == 0
    assert "Nothing was uploaded" in capsys.readouterr().out


def test_a_model_that_is_worse_or_has_no_card_is_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "model" / name).write_text("{}", "utf-8")
    (tmp_path / "result.json").write_text('{"verdict": "worse"}', "utf-8")
    assert run(["push", str(tmp_path), "owner/name", "--dry-run"]) == 0
    message = capsys.readouterr().err
    assert "WORSE than its reference" in message
    assert "no README.md" in message


@pytest.mark.parametrize(
    ("repo_id", "code", "message"),
    [
        ("own er/name", 2, "Repository is 'own er/name'"),
        ("a/b/c", 2, "wanted OWNER/NAME"),
        ("name", 2, "Repository is 'name' (it has no owner); wanted OWNER/NAME"),
        ("a/b", 2, "no Hugging Face token"),
    ],
)
def test_push_refuses_what_cannot_work(
    model: Path,
    repo_id: str,
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert run(["push", str(model), repo_id]) == code
    assert message in capsys.readouterr().err


def test_a_run_is_finished_by_the_command_that_began_it(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_folder / "evaluation.json").write_text("{}", "utf-8")
    write_manifest(run_folder, ["evaluation.json"])
    (run_folder / "evaluation.json").write_text("{ }", "utf-8")
    for command in (["report"], ["compare", "other.json"]):
        assert run([command[0], str(run_folder), *command[1:]]) == 5
        assert "them again with the command that began it, with --resume, or" in " ".join(
            capsys.readouterr().err.split()
        )
    (run_folder / "evaluation.json").unlink()
    assert run(["report", str(run_folder)]) == 4
    assert "Finish it with the command that began it, with --resume." in " ".join(capsys.readouterr().err.split())


def test_push_wants_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["push", str(tmp_path), "a/b"]) == 5
    assert run(["push", str(tmp_path / "no"), "a/b"]) == 4
    assert "holds no model" in capsys.readouterr().err


PUSH_AND_USE = """
import sys
from rankwright.cli.app import run
model, name = sys.argv[1:]
print(run(["push", model, name, "--private", "--output", "json"]))
print(run(["push", model, name]))
for path in (name, model):
    print(run(["rerank", "What is the key?", "The wall.", "The key is word10.", "--model", path, "--output", "json"]))
"""


def hub_environment(address: str, home: Path, token: str = TOKEN) -> dict[str, str]:
    names = {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_TOKEN": token, "HF_HUB_OFFLINE": "0"}
    return names | {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


def test_a_pushed_model_scores_alike_when_fetched_by_name(model: Path, tmp_path: Path) -> None:
    hub, name = FakeHub(), "owner/doors"
    with hub.running() as address:
        environment = hub_environment(address, tmp_path / "home")
        done = run_process(str(model.parent), name, cwd=tmp_path, code=PUSH_AND_USE, **environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    pushed, fetched, local = json.loads(lines[0]), json.loads(lines[-4]), json.loads(lines[-2])
    assert [line for line in lines if line.isdigit()] == ["0"] * 4
    assert pushed["url"] == f"{address}/{name}"
    assert hub.private == {name: True}
    assert hub.files[name] == {file["name"]: (model / file["name"]).read_bytes() for file in pushed["files"]}
    assert fetched["results"] == local["results"]
    assert f"GET /{name}/resolve/{REVISION}/model.safetensors" in hub.requests


PUSH_TWICE = """
import os, sys
from rankwright.cli.app import run
model, name = sys.argv[1:]
print(run(["push", model, name, "--private"]))
os.environ["HF_TOKEN"] = "hf_wrong"
print(run(["push", model, name]))
"""


def test_the_refusals_of_a_hub_are_named(model: Path, tmp_path: Path) -> None:
    hub, name = FakeHub(), "owner/doors"
    hub.files[name], hub.private[name] = {}, False
    with hub.running() as address:
        environment = hub_environment(address, tmp_path)
        refused = run_process(str(model), name, cwd=tmp_path, code=PUSH_TWICE, **environment)
    unreachable = run_process("push", str(model), name, cwd=tmp_path, **environment)
    assert refused.stdout.split() == ["2", "6"]
    assert hub.files[name] == {}
    assert "exists and is public; wanted a private one" in refused.stderr
    assert "status 401" in refused.stderr
    assert "hf_wrong" not in refused.stderr
    assert unreachable.returncode == 6
    assert "cannot be reached" in unreachable.stderr


# --- cache -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    path = tmp_path / "reads.sqlite"
    with ReadStore(path) as store:
        known = LedgerEntry("first", "m", "ok", 1, 100, 20, 0.25)
        unknown = LedgerEntry("second", "m", "timeout", 3)
        store.put_many({"k1": {"text": "a"}, "k2": {"text": "b"}}, [known, known, unknown])
    return path


def test_info_sums_up_and_says_unknown(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "info", "--cache", str(cache), "--output", "json"]) == 0
    found = one_line(capsys.readouterr().out)
    assert found == {
        "path": str(cache),
        "bytes": cache.stat().st_size,
        "answers": 2,
        "calls": 3,
        "attempts": 5,
        "failed": 1,
        "input_tokens": 200,
        "output_tokens": 40,
        "uncounted_calls": 1,
        "price": None,
        "known_price": 0.5,
        "unpriced_calls": 1,
    }
    assert run(["cache", "info", "--cache", str(cache)]) == 0
    told = capsys.readouterr().out
    assert "The tokens of 1 calls are unknown" in told
    assert "0.5000 + unknown price of 1 calls" in told


def test_runs_are_listed_apart(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "runs", "--cache", str(cache), "--output", "json"]) == 0
    runs = one_line(capsys.readouterr().out)["runs"]
    assert [(row["run"], row["calls"], row["price"], row["unpriced_calls"]) for row in runs] == [
        ("first", 2, 0.5, 0),
        ("second", 1, None, 1),
    ]
    assert run(["cache", "runs", "--cache", str(cache)]) == 0
    told = capsys.readouterr().out
    assert "0.5000" in told
    assert "unknown" in told


@pytest.mark.parametrize(("flags", "calls"), [([], 3), (["--ledger"], 0)])
def test_clear_forgets_answers_and_on_demand_the_ledger(
    cache: Path, flags: list[str], calls: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cache", "clear", "--cache", str(cache), "--yes", *flags, "--output", "json"]) == 0
    told = {"answers_forgotten": 2, "ledger_forgotten": bool(flags)}
    assert one_line(capsys.readouterr().out) == {"path": str(cache), "bytes": cache.stat().st_size, **told}
    with ReadStore(cache) as store:
        assert (len(store), store.ledger.totals().calls) == (0, calls)


def test_clear_asks_first(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run_process("cache", "clear", "--cache", str(cache), cwd=cache.parent)  # standard input is at its end
    assert done.returncode != 0
    with ReadStore(cache) as store:
        assert len(store) == 2


def test_looking_at_a_cache_that_is_not_there_makes_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "no.sqlite"
    for verb in ("info", "runs", "clear"):
        assert run(["cache", verb, "--cache", str(path)]) == 4
    assert not path.exists()
    assert f"There is no read cache {path}" in capsys.readouterr().err


# --- doctor ------------------------------------------------------------------------------------------------------


def examined(
    capsys: pytest.CaptureFixture[str], cache: Path
) -> tuple[int, dict[str, dict[str, object]], dict[str, object]]:
    """Exit code, checks by name, and the whole record."""
    code = run(["doctor", "--cache", str(cache), "--output", "json"])
    record = one_line(capsys.readouterr().out)
    return code, {check["name"]: check for check in record["checks"]}, record


def test_doctor_looks_at_everything_and_its_exit_code_follows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, checks, record = examined(capsys, tmp_path / "new" / "reads.sqlite")
    assert (code, record["ok"]) == (0, True), [check for check in checks.values() if not check["ok"]]
    for name in (
        "Python",
        "torch (train)",
        "bm25s",
        "torch devices",
        "torch threads",
        "embedded reader",
        "Hugging Face hub",
    ):
        assert name in checks
    assert str(checks["SQLite"]["found"]).endswith(", journal mode delete")
    assert "can be made" in str(checks[f"read cache {tmp_path / 'new' / 'reads.sqlite'}"]["found"])
    assert list(tmp_path.iterdir()) == []
    assert str(checks["backbone sentence-transformers/all-MiniLM-L6-v2"]["found"]).endswith("as expected")
    for name in ("hosted endpoints", "Ollama", "llama.cpp", "vLLM", "GPUs", "TEI", "real Hugging Face hub"):
        assert any(name in line for line in record["untested"])  # pyright: ignore[reportGeneralTypeIssues]


def test_doctor_and_readme_name_the_same_as_run_and_as_not_run() -> None:
    section = (ROOT / "README.md").read_text("utf-8").partition("## What was run, and what was not\n")[2]
    table = re.findall(r"^\| (.+?) \| (.+) \|$", section.partition("\n## ")[0], re.MULTILINE)
    rows = [(what.replace("`", ""), state) for what, state in table if what != "what"]
    run_here = [what for what, state in rows if state != "untested here"]
    not_run = [name for what, state in rows if state == "untested here" for name in re.split(r", (?![^(]*\))", what)]
    assert [line.partition(": ")[0] for line in examination.TESTED] == run_here != []
    assert list(examination.UNTESTED) == not_run != []


def test_what_is_missing_comes_with_the_command_that_installs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = metadata.version
    missing = {"peft", "accelerate"}

    def version(name: str) -> str:
        if name in missing:
            raise metadata.PackageNotFoundError(name)
        return "1.9" if name == "torch" else installed(name)

    monkeypatch.setattr(examination.metadata, "version", version)
    code, checks, _ = examined(capsys, tmp_path / "reads.sqlite")
    assert code == 3
    assert [checks["peft (train)"][key] for key in ("ok", "required", "next_step")] == [
        False,
        False,
        'pip install "rankwright[train]"',
    ]
    assert checks["accelerate (train)"]["required"] is True
    assert checks["torch (train)"]["found"] == "1.9, wanted 2.6 or later"
    assert checks["torch (train)"]["next_step"] == 'pip install "torch>=2.6"'
    assert run(["doctor", "--cache", str(tmp_path / "reads.sqlite")]) == 3
    text = capsys.readouterr().out
    assert re.search(r"optional\W+peft", text)
    assert re.search(r"MISSING\W+accelerate", text)
    assert 'train --lora-rank needs peft; run pip install "rankwright[train]".' in text
    assert text.splitlines()[-1] == "Missing: torch (train), accelerate (train)."


def test_a_verb_that_lacks_its_packages_is_named_with_what_installs_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed, missing = metadata.version, {"uvicorn", "fastapi", "onnxruntime", "onnx"}

    def version(name: str) -> str:
        if name in missing:
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(examination.metadata, "version", version)
    assert run(["doctor", "--cache", str(tmp_path / "reads.sqlite")]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert 'serve needs fastapi, uvicorn; run pip install "rankwright[serve]".' in lines
    assert 'export needs onnx; run pip install "rankwright[export]".' in lines
    assert 'an export, or --backend onnx, needs onnxruntime; run pip install "rankwright[onnx]".' in lines
    assert lines[-1] == "Everything that demo, train, eval and rerank need by default is here."


def test_a_package_with_an_extra_is_judged_by_its_own_version_and_by_what_the_extra_brings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = examination.Package("web[serving]", "5.3", "serve", required=False, seen_by="rest")
    there: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in there:
            raise metadata.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(examination.metadata, "version", version)

    def seen(**versions: str) -> tuple[bool, str]:
        there.clear()
        there.update(versions)
        check = examination._package(package)
        return check.ok, check.found

    assert seen(web="5.4", rest="0.1") == (True, "5.4, rest 0.1")
    assert seen(web="5.2", rest="9") == (False, "5.2, rest 9, wanted 5.3 or later")
    assert seen(web="5.4") == (False, "rest is not installed")
    assert seen(rest="9") == (False, "web is not installed")


def test_doctor_tells_a_cache_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    code, checks, _ = examined(capsys, tmp_path / "file" / "reads.sqlite")
    assert code == 3
    assert "cannot be written" in str(checks[f"read cache {tmp_path / 'file' / 'reads.sqlite'}"]["found"])


@pytest.mark.parametrize(("missing", "torch"), [("torch", False), ("safetensors", True), ("huggingface_hub", True)])
def test_doctor_works_without(tmp_path: Path, missing: str, torch: bool) -> None:
    hidden = f"import sys; sys.modules['{missing}'] = None; {MAIN}"
    done = run_process("doctor", "--output", "json", cwd=tmp_path, code=hidden)
    record = one_line(done.stdout)
    assert done.returncode == 0, done.stderr
    names = [check["name"] for check in record["checks"]]
    assert "bm25s" in names
    assert ("torch devices" in names) is torch
    assert "embedded reader" not in names


def test_the_packages_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    listed = [("", line) for line in project["dependencies"]]
    extras = project["optional-dependencies"].items()
    listed += [(extra, line) for extra, lines in extras for line in lines if not line.startswith("rankwright[")]
    wanted = {(extra, *line.split(">=")) for extra, line in listed}
    versions = {name: version for _, name, version in wanted}
    # A package seen by another one is looked for without a version.
    assert {(p.extra, p.name, p.at_least or versions[p.name]) for p in examination.PACKAGES} == wanted
