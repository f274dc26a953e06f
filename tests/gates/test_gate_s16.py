"""Gates S16 and S17: without a key nothing is answered but /live, /ready and the page's files; keys can be rotated; and
a server that others reach does not start without one."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from rankwright.server import page
from rankwright.server.app import create_app
from rankwright.server.settings import ServerSettings
from tests.gates.mutants import Mutant
from tests.server_kit import client, posted, rerank, started

pytestmark = [pytest.mark.gates, pytest.mark.timeout(300)]

THIS = "tests/gates/test_gate_s16.py"
GUARD = "rankwright/server/guard.py"
COMPARED = "test_keys_are_compared_in_constant_time"
FOREIGN = "test_foreign_hosts_and_origins_are_refused_and_no_other_site_is_let_in"
APP, SETTINGS = "rankwright/server/app.py", "rankwright/server/settings.py"
OPENED = 'OPEN_PATHS = ("/live", "/ready")'
NO_KEY = "if not self.keys and not is_loopback(self.host):"
HOST = 'if scope["path"] not in self._probes and not self._settings.is_host_allowed(headers.get("host", "")):'
MUTANTS = [
    Mutant("S16", f"{THIS}::test_every_route_needs_the_key", APP, OPENED, OPENED[:-1] + ', "/metrics")'),
    Mutant("S16", f"{THIS}::{COMPARED}", GUARD, "secrets.compare_digest(sent, key)", "(sent == key)"),
    Mutant("S16", f"{THIS}::test_others_are_not_served_without_a_key", SETTINGS, NO_KEY, "if False:"),
    Mutant("S17", f"{THIS}::{FOREIGN}", GUARD, HOST, "if False:"),
]
OPEN = {"/live", "/ready", *page.FILES}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def app_with(*keys: str) -> FastAPI:
    with started() as engine:
        return create_app(engine, ServerSettings(keys=keys))


def test_every_route_needs_the_key() -> None:
    """Every path of the router's table, in every method, and some that are not there."""
    app = app_with("one", "two")
    others = ("/docs", "/nowhere", "/live/", "/Live")
    paths = [*sorted({getattr(route, "path", "") for route in app.routes}), *others]
    assert {"/rerank", "/v1/rerank", "/v2/rerank", "/score", "/info", "/metrics", "/openapi.json"} <= set(paths)
    at = TestClient(app, base_url="http://localhost")
    for path in paths:
        for method in METHODS:
            codes = [
                at.request(method, path, headers={"Authorization": sent}).status_code for sent in ("", "Bearer no")
            ]
            assert (codes == [401, 401]) == (path not in OPEN), (method, path, codes)
            for key in ("one", "two"):
                assert at.request(method, path, headers={"Authorization": f"Bearer {key}"}).status_code != 401


def test_keys_are_compared_in_constant_time() -> None:
    """No other comparison of what was sent: every place in the package that reads the header uses compare_digest."""
    tree = ast.parse(Path(page.__file__).with_name("guard.py").read_text("utf-8"))
    (has_key,) = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "_has_key")
    called = [
        node.func.attr
        for node in ast.walk(has_key)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    assert "compare_digest" in called
    comparisons = [node for node in ast.walk(has_key) if isinstance(node, ast.Compare)]
    compared = [part for node in comparisons for part in (node.left, *node.comparators)]
    assert not {part.id for part in compared if isinstance(part, ast.Name)} & {"sent", "given", "key"}


def serve(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = "from rankwright.cli import main; main()"
    plain = {name: value for name, value in os.environ.items() if name != "RANKWRIGHT_API_KEY"}
    command = [sys.executable, "-c", code, "serve", "reference", "--port", "0", *options]
    return subprocess.run(command, env=plain | environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.invalid"])
def test_others_are_not_served_without_a_key(host: str) -> None:
    refused = serve("--host", host)
    assert refused.returncode == 2
    assert "RANKWRIGHT_API_KEY" in refused.stderr


def test_the_default_is_this_machine() -> None:
    assert ServerSettings().host == "127.0.0.1"


def test_foreign_hosts_and_origins_are_refused_and_no_other_site_is_let_in() -> None:
    with client() as at:
        for path in ("/info", "/", "/health"):
            assert at.get(path, headers={"Host": "evil.example"}).status_code == 421
        assert posted(at, *rerank(), Origin="http://evil.example").status_code == 403
        asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
        answer = at.options("/v1/rerank", headers=asked)
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]
