"""Gate F5: secrets that are planted wherever one may stand are in nothing that training, its dry run, query expansion,
evaluation, diagnosis, upload and crashes leave behind at debug logging: logs, configs, checkpoints, cache, HTML,
tracebacks, arguments of children.

Keys come from variables (of the reader, another reader, the expansion, the hub). In an argument, a config file or a URL
a secret is refused, so no command runs with one there; what the refusal leaves behind is searched, too.
"""

from __future__ import annotations

import base64
import logging
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from rankwright.cli.app import run
from tests.cli_kit import body_of, make_model, reply, rows, run_process, serving, write_rows
from tests.fake_hub import TOKEN, FakeHub
from tests.gates.mutants import Mutant

pytestmark = [pytest.mark.gates, pytest.mark.timeout(600)]

SECRETS = {
    "environment": "sk-proj-environment-4711",  # OPENAI_API_KEY
    "header": "sk-proj-header-4712",  # of another variable; sent, and said again by the server
    "expansion": "sk-proj-expansion-4717",  # of a third variable, which the expansion alone uses
    "command line": "sk-proj-commandline-4713",
    "config file": "sk-proj-configfile-4714",
    "URL": "url-password-4715",
    "number": "471647164716",  # a key of digits alone, which is no text where it is read as YAML
    "hub": TOKEN,
}

THIS = "tests/gates/test_gate_f5.py"
MISPLACED = f"{THIS}::test_a_secret_in_the_wrong_place_is_refused_and_not_repeated"
MUTANTS = [
    Mutant("F5", THIS, "rankwright/llms/http.py", 'text = text.replace(self._key, "***")', "text = str(text)"),
    Mutant("F5", MISPLACED, "rankwright/cli/settings.py", "    if hidden and not isinst", "    if 0 and isinst"),
    Mutant("F5", MISPLACED, "rankwright/llms/endpoint.py", 'or (not good and "@" in base_url)', "or False"),
]

HOOK = """
import os, sys
ARGUMENTS = {"subprocess.Popen": 1, "os.posix_spawn": 1, "os.exec": 1, "os.system": 0}
children = open(os.environ["CHILDREN"], "a")
def hook(event, arguments):
    if event in ARGUMENTS:
        children.write(f"{arguments[ARGUMENTS[event]]}\\n")
    if event == "subprocess.Popen":  # the variables that a child gets beside those of its parent
        given = arguments[3] or {}
        children.write(f"{[(name, given[name]) for name in given if os.environ.get(name) != given[name]]}\\n")
sys.addaudithook(hook)
"""
"""What each process does first: the arguments of all children are written down."""
DEBUG = "import logging; logging.basicConfig(level=logging.DEBUG)\n" + HOOK
MAIN = "from rankwright.cli import main; main()"
CRASH_IN_THE_CLIENT = """
import rankwright.llms.replies
def crash(*arguments):
    raise RuntimeError("crashed while the server's refusal was read")
rankwright.llms.replies.refused = crash
"""
CRASH_IN_TRAINING = """
import rankwright.algorithms
def crash(*arguments, **named):
    raise RuntimeError("crashed in the middle of a step")
rankwright.algorithms.RRPO.loss = crash
"""


def answer(request: BaseHTTPRequestHandler, headers: list[str]) -> None:
    """A chat endpoint that answers; every third request it refuses, and repeats the header that it was sent."""
    body_of(request)
    headers.append(request.headers.get("authorization", ""))
    if len(headers) % 3 == 0:
        said = f"I do not like {headers[-1]}"
        reply(request, {"error": {"message": said, "type": "invalid_request_error", "code": None}}, 400)
        return
    choice = {"index": 0, "message": {"role": "assistant", "content": "word11"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
    reply(request, {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage})


def found(folder: Path, secrets: Mapping[str, str] = SECRETS) -> list[tuple[str, str]]:
    """(secret, file) wherever one stands in the bytes of a file or in its name, as it is or in base64."""
    return [
        (name, path.relative_to(folder).as_posix())
        for path in sorted(folder.rglob("*"))
        for name, secret in secrets.items()
        for form in (secret.encode(), base64.b64encode(secret.encode()).rstrip(b"="))
        if form in str(path).encode() or (path.is_file() and form in path.read_bytes())
    ]


class Desk:
    """Runs commands in a folder and keeps all that they say in it."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder, self.environment, self.done = folder, environment, 0

    def run(self, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
        """One command, at debug logging."""
        result = run_process(*arguments, cwd=self.folder, code=DEBUG + before + MAIN, **self.environment)
        self.done += 1
        (self.folder / f"said-{self.done}.txt").write_text(result.stdout + result.stderr, encoding="utf-8")
        return result


@contextmanager
def desk(folder: Path, headers: list[str]) -> Iterator[tuple[Desk, str]]:
    """A place to work with all secrets about, and the address of the reader, which notes what it is sent."""
    hub = FakeHub()
    with hub.running() as hub_address, serving(lambda request: answer(request, headers)) as address:
        environment = {
            "OPENAI_API_KEY": SECRETS["environment"],
            "SECOND_KEY": SECRETS["header"],
            "THIRD_KEY": SECRETS["expansion"],
            "HF_TOKEN": SECRETS["hub"],
            "HF_ENDPOINT": hub_address,
            "HF_HOME": str(folder / "hub"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "OPENAI_LOG": "debug",
            "PYTHONASYNCIODEBUG": "1",
            "CHILDREN": str(folder / "children.txt"),
        }
        write_rows(folder / "q.jsonl", rows())
        make_model(folder / "tiny")
        yield Desk(folder, environment), f"{address}/v1"


def expanding(url: str) -> list[str]:
    """Query expansion, with a key of its own."""
    settings = ["--set", "expansion.api_key_env=THIRD_KEY", "--set", "expansion.max_failed=1"]
    return ["--retriever", "bm25", "--expand-with", url, "--expand-model", "writer", *settings]


def training(name: str, url: str, *more: str) -> list[str]:
    """A short training from the reader's answers; the candidates are given unless `more` has an expansion."""
    more = more if "--retriever" in more else ("--retriever", "given", *more)
    settings = {
        "data.dev_share": "0.25",
        "data.test_share": "0.25",
        "loop.batch_size": "2",
        "loop.eval_steps": "1",
        "rrpo.max_failed_reads": "1",
        "max_failed_reads": "1",
    }
    named = [text for setting, value in settings.items() for text in ("--set", f"{setting}={value}")]
    reader = ["--reader", url, "--reader-model", "stub"]
    return ["train", "--name", name, "--data", "q.jsonl", "--model", "tiny", "--epochs", "1", *reader, *named, *more]


def test_what_commands_leave_behind_holds_no_secret(tmp_path: Path) -> None:
    headers: list[str] = []
    with desk(tmp_path, headers) as (at, url):
        reader = ["--reader", url, "--reader-model", "stub", "--max-failed-reads", "1", "--api-key-env", "SECOND_KEY"]
        evaluation = ["eval", "first-stage", "tiny", "--data", "q.jsonl", "--retriever", "given", *reader]
        diagnosis = ["diagnose", "--data", "q.jsonl", "--model", "tiny", *reader, *expanding(url)]
        ended = [
            at.run(*training("first", url, *expanding(url))),
            at.run(*evaluation, "--cache", "other.sqlite", "--save", "e.json", "--report", "e.html"),
            at.run("report", "runs/first"),
            at.run("push", "runs/first", "owner/doors", "--private"),
            at.run(*training("dry", url, *expanding(url), "--cache", "fourth.sqlite", "--dry-run")),
            at.run(*diagnosis, "--cache", "fifth.sqlite"),
            at.run(*training("crash", url), before=CRASH_IN_TRAINING),
            at.run(*evaluation, "--cache", "third.sqlite", before=CRASH_IN_THE_CLIENT),
            at.run(*diagnosis, "--cache", "sixth.sqlite", before=CRASH_IN_THE_CLIENT),
        ]
    said = [result.stdout + result.stderr for result in ended]
    assert [result.returncode for result in ended] == [0] * 6 + [6] * 3
    assert all("Traceback" in text and "RuntimeError: crashed" in text for text in said[6:])
    assert all("DEBUG:" in said[i] for i in (0, 1, 5, 7, 8))
    assert all("I do not like Bearer ***" in said[i] for i in (0, 5))
    assert (tmp_path / "runs/first/expansions.jsonl").exists()
    assert set(headers) == {f"Bearer {SECRETS[name]}" for name in ("environment", "header", "expansion")}
    assert found(tmp_path) == []


URL = f"http://me:{SECRETS['URL']}@127.0.0.1:1/v1"
MISTAKES = (
    ["--api-key-env", SECRETS["command line"]],
    ["--set", f"reader.api_key_env={SECRETS['number']}"],
    ["--set", f"expansion.api_key_env={SECRETS['number']}"],
    ["--set", f"reader.api_key={SECRETS['command line']}"],
    ["--set", f"reader.headers.authorization={SECRETS['command line']}"],
    ["--set", f"reader.sampling={{max_tokens: 8, api_key: {SECRETS['command line']}}}"],
    ["--set", f"expansion.api_key_env={SECRETS['command line']}"],
    ["--config", "../inputs/key.yaml"],
    ["--config", "../inputs/sampling.yaml"],
    ["--reader", URL],
    ["--reader", URL, "--reader-model", ""],
    ["--reader", URL, "--price-input", "1"],
    ["--reader", f"http://me:{SECRETS['URL']}@127.0.0.1:99999/v1"],
    ["--reader", f"me:{SECRETS['URL']}@127.0.0.1:1/v1"],
    ["--reader", f"http://127.0.0.1:1/v1?key={SECRETS['URL']}"],
    ["--reader", f"http://127.0.0.1:1/v1?key={SECRETS['URL']}", "--reader-model", ""],
    ["--retriever", "bm25", "--expand-with", URL, "--expand-model", "stub"],
    ["--retriever", "bm25", "--expand-with", URL],
)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: " ".join(mistake)[:70])
@pytest.mark.parametrize("verb", ["train", "eval"])
def test_a_secret_in_the_wrong_place_is_refused_and_not_repeated(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    verb: str,
    mistake: list[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    (tmp_path / "inputs").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    write_rows(tmp_path / "inputs" / "q.jsonl", rows())
    key = SECRETS["config file"]
    (tmp_path / "inputs" / "key.yaml").write_text(f"reader:\n  api_key: {key}\n")
    (tmp_path / "inputs" / "sampling.yaml").write_text(f"reader:\n  sampling: {{max_tokens: 8, api_key: {key}}}\n")
    models = ["first-stage"] if verb == "eval" else ["--name", "mistaken"]
    reader = ["--reader", "http://127.0.0.1:1/v1", "--reader-model", "stub"]
    code = run([verb, *models, "--data", "../inputs/q.jsonl", "--retriever", "given", *reader, *mistake])
    said = capfd.readouterr()
    (tmp_path / "work" / "said.txt").write_text(said.out + said.err + caplog.text, encoding="utf-8")
    assert found(tmp_path / "work") == [], said.err
    assert code == 2, said.err
    assert said.err.startswith("rankwright: ")
