"""Gate F5 for the server: keys, bad keys, and the texts of requests are in nothing that it logs, answers, counts or
leaves behind, at debug logging, while it works, refuses and crashes: a stub's server with every library at debug, and
`rankwright serve` itself over a folder, a hub name and a reader behind HTTP."""

from __future__ import annotations

import base64
import itertools
import json
import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from rankwright.cli.app import run
from tests.cli_kit import MAIN, ROOT, make_model, reply, serving
from tests.cli_kit import body_of as received
from tests.fake_hub import TOKEN, FakeHub
from tests.gates.mutants import Mutant
from tests.gates.test_gate_f5 import HOOK, found
from tests.load_kit import body_of, process_of, stub_server
from tests.served import Served

pytestmark = [pytest.mark.gates, pytest.mark.timeout(300)]

THIS = "tests/gates/test_gate_f5_server.py"
GUARD, APP, BODY = "rankwright/server/guard.py", "rankwright/server/app.py", "rankwright/server/body.py"
SERVE, ENDPOINT = "rankwright/cli/serve.py", "rankwright/llms/endpoint.py"
COMMAND = f"{THIS}::test_the_command_leaves_no_secret_behind"
MISPLACED = f"{THIS}::test_a_secret_in_the_wrong_place_is_refused_and_not_repeated"
FAILED = '        except ScorerError:\n            raise Problem(500, "The model failed on this request.") from None'
TOLD = "        except ScorerError as failure:\n            raise Problem(500, str(failure.__cause__)) from None"
LINE = 'log.log(level, "%s %s'
MUTANTS = [
    Mutant("F5", THIS, GUARD, LINE, 'log.log(level, str(scope["headers"]) + "%s %s'),
    Mutant("F5", THIS, GUARD, 'else "other"', 'else scope["path"]'),
    Mutant("F5", THIS, APP, FAILED, TOLD),
    Mutant("F5", THIS, BODY, '"a name stands twice in one object"', "what"),
    Mutant("F5", COMMAND, SERVE, 'f"{len(settings.keys)} key', 'f"{settings.keys} key'),
    Mutant("F5", COMMAND, SERVE, '"keys": len(settings.keys)', '"keys": settings.keys'),
    Mutant("F5", COMMAND, SERVE, 'basicConfig(level="WARNING"', 'basicConfig(level="DEBUG"'),
    Mutant("F5", COMMAND, "rankwright/llms/http.py", 'text = text.replace(self._key, "***")', "text = str(text)"),
    Mutant("F5", MISPLACED, ENDPOINT, "parts.username is not None or parts.password is not None or", ""),
    Mutant("F5", MISPLACED, ENDPOINT, " or _PASSWORD.match(bare_place(place)) is not None", ""),
]
SECRETS = {
    "key": "key-one-4711",
    "second key": "key-two-4712",
    "wrong key": "key-wrong-4713",
    "password in the address": "query-string-4714",
    "secret in a path": "path-4715",
    "text of a document": "passage-4716",
    "name in a body": "member-4717",
    "other header": "cookie-4718",
    "secret in the model's error": "told to fail",
}
DEBUG = "import logging; logging.basicConfig(level=logging.DEBUG)\n"


def ask(server: Served, path: str, body: bytes | None, key: str, **headers: str) -> bytes:
    """Whatever is answered, headers and all."""
    request = urllib.request.Request(server.url + path, body, {"Authorization": f"Bearer {key}", **headers})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return str(answer.headers).encode() + answer.read()
    except urllib.error.HTTPError as refused:
        with refused:
            return str(refused.headers).encode() + refused.read()


def test_secrets_are_nowhere(tmp_path: Path) -> None:
    good, other, wrong = SECRETS["key"], SECRETS["second key"], SECRETS["wrong key"]
    texts = f'{{"query": "why?", "documents": ["{SECRETS["text of a document"]}"]}}'.encode()
    twice = f'{{"{SECRETS["name in a body"]}": 1, "{SECRETS["name in a body"]}": 2}}'.encode()
    (tmp_path / "sitecustomize.py").write_text(DEBUG)
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path.cwd()}", "PYTHONASYNCIODEBUG": "1"}
    with stub_server(tmp_path / "stub", key=f"{good},{other}", **environment) as server:
        said = [
            ask(server, "/info", None, good),
            ask(server, "/info", None, wrong),
            ask(server, f"/{SECRETS['secret in a path']}?key={SECRETS['password in the address']}", None, good),
            ask(server, "/v1/rerank", texts + b"x", good, Cookie=SECRETS["other header"]),
            ask(server, "/v1/rerank", twice, other),
            ask(server, "/v1/rerank", body_of("question", 3), good),
            ask(server, "/", None, wrong),
            ask(server, "/openapi.json", None, good),
        ]
        (tmp_path / "stub" / "mode").write_text("raise on passage-4716")
        said.append(ask(server, "/v2/rerank", texts, good))
        said.append(ask(server, "/metrics", None, good))
        process_of(server).send_signal(signal.SIGTERM)
        process_of(server).wait(30)
        (tmp_path / "log").write_bytes(server.logs[-1].read_bytes())
    log = (tmp_path / "log").read_text()
    assert "DEBUG" in log
    assert "POST /v1/rerank 400" in log
    assert b"scorer_error" in said[-2]
    told = {"answers": b"\n".join(said), "log": log.encode()}
    places = [
        (name, place)
        for place, content in told.items()
        for name, secret in SECRETS.items()
        for form in (secret.encode(), base64.b64encode(secret.encode()).rstrip(b"="))
        # The operator's log holds the traceback of a model that failed; nothing that leaves the machine does.
        if form in content and (name, place) != ("secret in the model's error", "log")
    ]
    assert places == []


# --- the command itself -----------------------------------------------------------------------------------------------

PLANTED = {
    "key": "serve-key-4721",
    "second key": "serve-key-4722",
    "wrong key": "serve-key-4723",
    "key of the reader": "sk-proj-reader-4724",  # sent, and said again by the reader, in a message and in a header
    "key of another service": "sk-proj-other-4725",
    "hub": TOKEN,
    "password in an address": "url-password-4726",
    "text of a document": "passage-4727",
}
CRASH = """
import os
from rankwright.server.run import Server
tick = Server.on_tick
async def on_tick(self, counter):
    if os.path.exists("crash"):
        raise RuntimeError("crashed while it served")
    return await tick(self, counter)
Server.on_tick = on_tick
"""


def read_aloud(request: BaseHTTPRequestHandler, numbers: Iterator[int]) -> None:
    """A reader that answers, refuses the question, refuses the key, and repeats each time the key that it was sent."""
    received(request)
    sent, number = request.headers.get("authorization", ""), next(numbers)
    choice = {"index": 0, "message": {"role": "assistant", "content": "It is red."}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
    refused = {"error": {"message": f"I do not like {sent}", "type": "invalid_request_error", "code": None}}
    answered = {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}
    reply(request, refused if number else answered, (200, 400, 401)[number], X_Echo=sent)


@contextmanager
def command(folder: Path) -> Iterator[Served]:
    """`rankwright serve` over a folder and a hub name, with a reader and every secret about; it works in the folder
    `work`."""
    work, hub, numbers = folder / "work", FakeHub(), itertools.count()
    work.mkdir()
    make_model(work / "tiny")
    hub.files["someone/tiny"] = {path.name: path.read_bytes() for path in make_model(folder / "other").iterdir()}
    hub.private["someone/tiny"] = True
    with hub.running() as hub_address, serving(lambda request: read_aloud(request, numbers)) as reader:
        environment = {
            "RANKWRIGHT_API_KEY": f"{PLANTED['key']},{PLANTED['second key']}",
            "READER_KEY": PLANTED["key of the reader"],
            "OPENAI_API_KEY": PLANTED["key of another service"],
            "HF_TOKEN": PLANTED["hub"],
            "HF_ENDPOINT": hub_address,
            "HF_HOME": str(work / "hub"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "PYTHONASYNCIODEBUG": "1",
            "PYTHONPATH": str(ROOT),
            "CHILDREN": str(work / "children.txt"),
        }
        options = ["--reader", f"{reader}/v1", "--reader-model", "stub", "--api-key-env", "READER_KEY"]
        options += ["--log-level", "debug", "--output", "json", "--port"]
        started = [sys.executable, "-c", HOOK + CRASH + MAIN, "serve", "tiny", "someone/tiny", *options]
        with Served(lambda port: [*started, str(port)], work, "/ready", environment, work) as server:
            yield server
    assert any("/resolve/" in asked for asked in hub.requests)


def test_the_command_leaves_no_secret_behind(tmp_path: Path) -> None:
    good, text = PLANTED["key"], PLANTED["text of a document"]
    asked = {"query": "which door?", "documents": [f"{text} is red.", "A wall."]}
    body, other = json.dumps(asked).encode(), json.dumps({**asked, "model": "someone/tiny"}).encode()
    with command(tmp_path) as server:
        said = [
            ask(server, "/info", None, good),
            ask(server, "/info", None, PLANTED["wrong key"]),
            ask(server, "/nowhere", body, good),
            ask(server, "/", None, ""),
            ask(server, "/openapi.json", None, PLANTED["second key"]),
            ask(server, "/v1/rerank", other.replace(b"}", b', "return_documents": false}'), good),
            ask(server, "/score", json.dumps({"queries": "why?", "documents": [text]}).encode(), good),
            *(ask(server, "/answer", body, good) for _ in range(3)),
            ask(server, "/metrics", None, good),
        ]
        (tmp_path / "work" / "crash").touch()
        assert process_of(server).wait(60) == 6
        log = server.logs[-1].read_text()
    (tmp_path / "work" / "said.txt").write_bytes(b"\n".join(said))
    assert [b"It is red." in said[7], b"reader_failed" in said[8], b"reader_failed" in said[9]] == [True] * 3
    assert "GET /info 200" in log  # which only --log-level debug tells
    assert "I do not like Bearer ***" in log
    assert "the reader cannot be used" in log
    assert "RuntimeError: crashed while it served" in log
    assert found(tmp_path / "work", PLANTED) == []


URL = f"http://me:{PLANTED['password in an address']}@127.0.0.1:1/v1"
MISTAKES = (
    ["--reader", URL],
    ["--reader", URL, "--reader-model", "stub"],
    ["--reader", URL.removeprefix("http://"), "--reader-model", "stub"],
    ["--reader", f"http://127.0.0.1:1/v1?key={PLANTED['password in an address']}", "--reader-model", "stub"],
    ["--reader", "http://127.0.0.1:1/v1", "--reader-model", "stub", "--api-key-env", PLANTED["key of the reader"]],
)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: " ".join(mistake)[:70])
def test_a_secret_in_the_wrong_place_is_refused_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], mistake: Sequence[str]
) -> None:
    monkeypatch.setattr("rankwright.server.run.run", lambda *given: None)  # what would be served if it were not refused
    code = run(["serve", "reference", "--port", "0", "--log-level", "debug", *mistake])
    said = capfd.readouterr()
    (tmp_path / "said.txt").write_text(said.out + said.err, encoding="utf-8")
    assert found(tmp_path, PLANTED) == [], said.err
    assert code == 2, said.err
    assert said.err.startswith("rankwright: ")
