"""Gate F5 for the server: keys, bad keys, and the texts of requests are in nothing that it logs, answers, counts or
leaves behind, at debug logging, while it works, refuses and crashes."""

from __future__ import annotations

import base64
import os
import signal
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.gates.mutants import Mutant
from tests.load_kit import body_of, process_of, stub_server
from tests.served import Served

pytestmark = [pytest.mark.gates, pytest.mark.timeout(300)]

THIS = "tests/gates/test_gate_f5_server.py"
GUARD, APP, BODY = "rankwright/server/guard.py", "rankwright/server/app.py", "rankwright/server/body.py"
FAILED = '        except ScorerError:\n            raise Problem(500, "The model failed on this request.") from None'
TOLD = "        except ScorerError as failure:\n            raise Problem(500, str(failure.__cause__)) from None"
LINE = 'log.log(level, "%s %s'
MUTANTS = [
    Mutant("F5", THIS, GUARD, LINE, 'log.log(level, str(scope["headers"]) + "%s %s'),
    Mutant("F5", THIS, GUARD, 'else "other"', 'else scope["path"]'),
    Mutant("F5", THIS, APP, FAILED, TOLD),
    Mutant("F5", THIS, BODY, '"a name stands twice in one object"', "what"),
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
    found = [
        (name, place)
        for place, content in told.items()
        for name, secret in SECRETS.items()
        for form in (secret.encode(), base64.b64encode(secret.encode()).rstrip(b"="))
        # The operator's log holds the traceback of a model that failed; nothing that leaves the machine does.
        if form in content and (name, place) != ("secret in the model's error", "log")
    ]
    assert found == []
