"""`rankwright serve` as a process, and what it says where it cannot serve."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import rankwright
from rankwright.cli.app import run
from rankwright.cli.common import OutputKind
from rankwright.cli.serve import listen, served_names
from rankwright.engine import Engine
from rankwright.errors import ConfigurationError
from rankwright.rerankers.packed import PackedReranker
from rankwright.rerankers.ranking import Scorer
from rankwright.server.run import bound_socket
from rankwright.server.settings import ServerSettings
from rankwright.types import Document, Query, RerankRequest
from tests.cli_kit import MAIN, ROOT, key_reader, make_model
from tests.load_kit import process_of
from tests.served import READY_SECONDS, Served
from tests.server_kit import client, posted, rerank
from tests.tiny_causal import save_causal

KEY = "key-of-serve"
QUERY = "What is the key of door 10?"
PASSAGES = ["Door 10 stands in a wall.", "The key of door 10 is word10.", "Door 10 is painted."]


def serve(folder: Path, *arguments: str) -> Served:
    """The command, with a key."""
    command = [sys.executable, "-c", MAIN, "serve", *arguments]
    environment = {"PYTHONPATH": str(ROOT), "RANKWRIGHT_API_KEY": f"other,{KEY}"}
    return Served(lambda port: [*command, "--port", str(port)], folder, "/ready", environment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("serve")
    make_model(root / "one" / "model")
    make_model(root / "two", seed=1)
    return root


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    with (
        key_reader() as reader,
        serve(
            folder,
            str(folder / "one"),  # a run's folder
            str(folder / "two"),
            *("--reader", reader, "--reader-model", "stub", "--output", "json"),
        ) as at,
    ):
        yield at


def ask(server: Served, path: str, body: Mapping[str, Any] | None = None) -> Any:
    raw = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, raw, {"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def test_it_is_ready_within_a_minute(server: Served) -> None:
    assert 0 < server.took <= READY_SECONDS


@pytest.mark.parametrize(("name", "path"), [("one", "one/model"), ("two", "two")])
def test_served_scores_are_those_of_load(server: Served, folder: Path, name: str, path: str) -> None:
    answer = ask(server, "/v1/rerank", {"model": name, "query": QUERY, "documents": PASSAGES})
    ranking = rankwright.load(folder / path).rerank(QUERY, PASSAGES)
    assert answer["model"] == name
    assert [str(r["index"]) for r in answer["results"]] == list(ranking.doc_ids)
    assert [r["score_raw"] for r in answer["results"]] == pytest.approx(list(ranking.scores), abs=1e-5)


def test_titles_go_through_the_models_template(server: Served, folder: Path) -> None:
    body = {"query": QUERY, "documents": [{"text": "is red", "title": "Door 10"}, "Door 10: is red"]}
    first, second = ask(server, "/v1/rerank", body)["results"]
    assert first["score_raw"] == pytest.approx(second["score_raw"], abs=1e-6)


def test_info_and_the_page_know_models_and_reader(server: Served) -> None:
    info = ask(server, "/info")
    assert [model["name"] for model in info["models"]] == ["one", "two"]
    assert info["reader"]["top_k"] == 3
    answer = ask(server, "/answer", {"query": QUERY, "documents": PASSAGES})
    assert answer["answer"] == "word10"


def test_one_line_tells_a_program_where_it_is(server: Served) -> None:
    (line,) = [line for line in server.logs[-1].read_text().splitlines() if line.startswith("{")]
    assert json.loads(line) == {"url": server.url, "models": ["one", "two"], "keys": 2}


def test_people_are_told_when_it_is_ready_and_not_before(server: Served, folder: Path) -> None:
    log = server.logs[-1].read_text()
    loading = f"Loading {folder / 'one'}, {folder / 'two'} for {server.url} (2 keys)"
    assert 0 <= log.find(loading) < log.find(f"Ready on {server.url}\n")


def test_without_the_key_nothing_is_answered(server: Served) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{server.url}/info", timeout=30)
    assert refused.value.code == 401
    refused.value.close()


def test_in_the_end_a_signal_ends_it_well_and_the_log_has_no_key_and_no_text(server: Served) -> None:
    process_of(server).send_signal(signal.SIGTERM)
    assert process_of(server).wait(60) == 0
    log = server.logs[-1].read_text()
    assert "POST /v1/rerank 200" in log
    assert KEY not in log
    assert "word10" not in log


# --- how models are computed -----------------------------------------------------------------------------------------


@pytest.fixture
def opened_by(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Scorer]:
    """The one model that a command opens; the place of the socket's loop is taken by a look at the engine."""
    monkeypatch.setenv("RANKWRIGHT_CACHE", str(tmp_path))
    found: list[Scorer] = []

    def looked(app: object, engine: Engine, settings: object, listener: object, on_ready: Callable[[], None]) -> None:
        engine.start()
        assert engine.opened(60)
        (scorer,) = engine.scorers.values()
        (reply,) = engine.submit(next(iter(engine.scorers)), [asked()]).result(60).scored
        assert reply.scores == pytest.approx(scorer.score_batch([asked()])[0].scores, abs=1e-5)
        found.append(scorer)
        engine.close(5)

    monkeypatch.setattr("rankwright.server.run.run", looked)

    def opened(*arguments: str) -> Scorer:
        assert run(["serve", *arguments, "--port", "0"]) == 0
        return found.pop()

    return opened


def asked() -> RerankRequest:
    long = " ".join([*PASSAGES * 5, "word10"])
    return RerankRequest(Query("q", QUERY), tuple(Document(str(i), text) for i, text in enumerate((*PASSAGES, long))))


def test_a_backend_is_served(folder: Path, opened_by: Callable[..., Scorer]) -> None:
    path = folder / "two"
    scorer = opened_by(str(path), "--backend", "packed")
    assert isinstance(scorer, PackedReranker)
    wanted = rankwright.load(path).score_batch([asked()])[0].scores
    assert scorer.score_batch([asked()])[0].scores == pytest.approx(wanted, abs=1e-5)


def test_the_fastest_backend_is_served(
    folder: Path, opened_by: Callable[..., Scorer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "two"
    scorer = opened_by(str(path), "--backend", "auto")
    (file,) = tmp_path.iterdir()
    chosen = json.loads(file.read_text())["backend"]
    assert f"{path}: backend {chosen}, " in capsys.readouterr().err
    assert scorer.name == rankwright.load(path, backend=chosen).name


def test_long_passages_are_served_in_windows(folder: Path, opened_by: Callable[..., Scorer]) -> None:
    scorer = opened_by(str(folder / "two"), "--windows", "mean", "--backend", "packed")
    wanted = rankwright.load(folder / "two", windows="mean").score_batch([asked()])[0]
    assert (scorer.name, wanted.cut) == (f"{folder / 'two'}|packed-fp32|windows-mean", (False,) * 4)
    assert scorer.score_batch([asked()])[0].scores == pytest.approx(wanted.scores, abs=1e-5)


def test_a_limit_of_documents_holds_above_what_one_window_reads(folder: Path) -> None:
    long = "door " * 100
    with client(rankwright.load(folder / "two", windows="max")) as http:
        (model,) = http.get("/info").json()["models"]
        assert (model["backend"], model["max_length"]) == ("torch|windows-max", 48)
        (whole,) = posted(http, *rerank(documents=[long])).json()["results"]
        (cut,) = posted(http, *rerank(documents=[long], max_tokens_per_doc=60)).json()["results"]
    assert (whole["truncated"], cut["truncated"]) == (False, True)
    assert 48 < cut["tokens"] < 100 < whole["tokens"]


def test_requests_have_so_long_to_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[float] = []
    monkeypatch.setattr("rankwright.server.run.run", lambda app, engine, settings, *_: found.append(settings.drain))
    for more in ((), ("--drain", "20")):
        assert run(["serve", str(folder / "two"), "--port", "0", *more]) == 0
    assert found == [ServerSettings().drain, 20]


def test_a_program_is_told_before_the_reader_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []
    monkeypatch.setattr("rankwright.server.run.run", lambda *_: None)
    reader: Callable[[], None] = lambda: told.append(capsys.readouterr().out)  # noqa: E731
    listen(["reference"], Engine(dict), ServerSettings(port=0), reader, OutputKind.json)
    assert json.loads(told[0])["models"] == ["reference"]


def test_an_image_serves_models_and_exports() -> None:
    (extras,) = re.findall(
        r"^RUN pip install .*\.\[([a-z,]+)\]", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE
    )
    assert {"serve", "train", "onnx"} <= set(extras.split(","))


# --- what cannot be served -------------------------------------------------------------------------------------------


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"Port {port} of 127.0.0.1 is in use.*--port"):
            bound_socket("127.0.0.1", port)
    bound_socket("127.0.0.1", port).close()


def test_a_host_of_another_machine_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"192\.0\.2\.1.*address of this machine"):
        bound_socket("192.0.2.1", 0)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code of the command in this process, and what it wrote for people."""
    code = run(["serve", *arguments])
    return code, capsys.readouterr().err


def test_two_servers_cannot_share_a_port(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        code, words = said(capsys, str(folder / "two"), "--port", str(other.getsockname()[1]))
    assert code == 2
    assert "is in use" in words


def not_a_model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "readme.txt").write_text("nothing here")
    return folder


def without_weights(folder: Path) -> Path:
    (make_model(folder) / "model.safetensors").unlink()
    return folder


def damaged(folder: Path) -> Path:
    weights = make_model(folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return folder


def with_code(folder: Path) -> Path:
    """Asks for code of its own, which would leave a file behind."""
    config = make_model(folder) / "config.json"
    settings = json.loads(config.read_text())
    settings["auto_map"] = {"AutoModelForSequenceClassification": "evil.Model", "AutoConfig": "evil.Config"}
    settings["model_type"] = "evil"
    config.write_text(json.dumps(settings))
    (folder / "evil.py").write_text(f"open({str(folder / 'owned')!r}, 'w')\n")
    return folder


@pytest.mark.parametrize("make", [not_a_model, without_weights, damaged, with_code], ids=lambda make: make.__name__)
def test_a_folder_that_is_no_reranker_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any) -> None:
    model = make(tmp_path / "model")
    code, words = said(capsys, str(model), "--port", "0")
    assert code in (4, 5)
    assert str(model) in words
    assert "Traceback" not in words
    assert "Ready" not in words
    assert "ERROR" not in words  # the last line says it, and why
    assert not (model / "owned").exists()


def test_a_model_without_scores_is_named_and_not_given_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    save_file({name: float("nan") * w for name, w in weights.items()}, model / "model.safetensors", {"format": "pt"})
    code, words = said(capsys, str(model), "--port", "0")
    assert code == 6
    assert "scores that are not finite" in words
    assert "given up" not in words


def test_a_model_that_reads_a_list_in_one_prompt_is_not_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scorer: Any = rankwright.load(save_causal(tmp_path / "plain"), kind="single-token")
    scorer.save(tmp_path / "letters")
    code, words = said(capsys, str(tmp_path / "letters"), "--port", "0")
    assert code == 2
    assert "Model 'letters' reads all documents of a list in one prompt" in words


def test_a_path_that_is_not_there_is_named_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    code, words = said(capsys, "runs/nothing/model", "--port", "0")
    assert code == 4
    assert "does not exist" in words


def test_help_tells_the_readers_key_from_the_servers() -> None:
    page = (ROOT / "docs" / "cli.md").read_text("utf-8").split("## rankwright serve")[1]  # what --help says
    (option,) = re.findall(r"^\| `--api-key-env .*$", page.split("\n## ")[0], re.MULTILINE)
    assert "the key of the reader's endpoint." in option
    assert "The server's own key comes from RANKWRIGHT_API_KEY." in option


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "httptools", "prometheus_client"])
def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    code, words = said(capsys, "reference", "--port", "0")
    assert code == 3
    assert f'Package {package} is not installed; run pip install "rankwright[serve]"' in words
    assert "Extra onnx" in words


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "RANKWRIGHT_API_KEY"),
        (["--backend", "quantum"], "quantum"),
        (["--windows", "sum"], "--windows"),
        (["--log-level", "loud"], "loud"),
        (["--reader-model", "x"], "--reader"),
        (["--device", "quantum"], "Device is 'quantum'"),
        (["--reader", "embedded", "--device", "quantum"], "Device is 'quantum'"),
        (["--reader", "embedded", "--top-k", "31"], "--top-k is 31; wanted at most 30"),
        (["--reader", "localhost:1/v1"], "looks like a server's address"),
        (["--reader", "me:password-4711@127.0.0.1:1/v1"], "user name or password"),
    ],
)
def test_wrong_options_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    monkeypatch.delenv("RANKWRIGHT_API_KEY", raising=False)
    code, told = said(capsys, "reference", "--port", "0", *options)
    assert code == 2
    assert words in told
    assert "4711" not in told
    assert "http://127.0.0.1" not in told  # nobody is told an address that nobody will answer at
    assert "Traceback" not in told


def test_models_have_short_names(tmp_path: Path) -> None:
    for name in ("first/model", "second/model", "plain"):
        (tmp_path / name).mkdir(parents=True)
    given = [
        str(tmp_path / "first/model"),
        str(tmp_path / "second"),
        str(tmp_path / "plain"),
        "reference",
        "owner/name",
    ]
    assert served_names(given) == ["first", "second", "plain", "reference", "owner/name"]
    with pytest.raises(ConfigurationError, match="different names"):
        served_names([str(tmp_path / "plain"), str(tmp_path / "plain")])


def test_a_model_folder_at_the_root_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_dir", lambda path: True)
    assert served_names(["/model", "/mine/model"]) == ["model", "mine"]  # the first is that of the image
