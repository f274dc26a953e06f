"""The test frame, the Makefile and the pinned versions do what they promise."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.gates.mutants import Mutant
from tests.gates.test_mutants import MUTANTS
from tests.needs import brought_by, project

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINT_LINES = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
PINS = {canonicalize_name(name): version for name, version in (line.split("==") for line in CONSTRAINT_LINES)}


# --- the proofs of the gates -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_fault_of_a_gate_can_still_be_planted(mutant: Mutant) -> None:
    """That the gate fails on it, `make gates-mutants` shows, in an hour; a line that has changed shows here."""
    assert (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1


# --- network and skips -------------------------------------------------------------------------------------------


def _run_tests(folder: Path, source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the source as a test module under this project's conftest, in a folder of its own."""
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    (folder / "allowed-skips.txt").write_text("# a comment\n\nno such engine here\n", encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (folder / "test_inner.py").write_text(source, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:langsmith_plugin", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def _skipping(reason: str, how: str = "pytest.skip({!r})") -> str:
    return f"import pytest\ndef test_passes(): pass\ndef test_skips(): {how.format(reason)}\n"


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_listed_skip_is_printed_and_passes(tmp_path: Path, workers: str) -> None:
    run = _run_tests(tmp_path, _skipping("no such engine here"), "-n", workers)
    assert run.returncode == 0, run.stdout
    assert "listed: test_inner.py::test_skips: no such engine here" in run.stdout


@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_unlisted_skip_fails_the_run(tmp_path: Path, workers: str) -> None:
    run = _run_tests(tmp_path, _skipping("no such engine here, really"), "-n", workers)
    assert run.returncode == 1, run.stdout
    assert "NOT LISTED: test_inner.py::test_skips: no such engine here, really" in run.stdout
    assert "1 skipped with a reason that tests/allowed-skips.txt does not list" in run.stdout


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_module_skipped_as_a_whole_fails_the_run(tmp_path: Path, workers: str) -> None:
    (tmp_path / "test_other.py").write_text("def test_passes(): pass\n", encoding="utf-8")
    run = _run_tests(tmp_path, "import pytest\npytest.skip('gone', allow_module_level=True)\n", "-n", workers)
    assert run.returncode == 1, run.stdout
    assert "NOT LISTED: test_inner.py: gone" in run.stdout


def test_an_expected_failure_is_not_a_skip(tmp_path: Path) -> None:
    source = "import pytest\n@pytest.mark.xfail(reason='known')\ndef test_fails(): assert False\n"
    assert _run_tests(tmp_path, source).returncode == 0


@pytest.mark.parametrize(
    "attempt",
    [
        "socket.create_connection(('192.0.2.1', 80), timeout=1)",
        "socket.getaddrinfo('example.invalid', 80)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 80))",
    ],
)
def test_leaving_the_machine_fails_a_test_even_if_the_error_is_swallowed(tmp_path: Path, attempt: str) -> None:
    source = f"import socket\ndef test_calls_out():\n    try: {attempt}\n    except BaseException: pass\n"
    run = _run_tests(tmp_path, source)
    assert run.returncode == 1, run.stdout
    assert "tests may only use loopback" in run.stdout


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_is_open(host: str) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection((host, server.getsockname()[1]), timeout=5) as client,
    ):
        assert client.getpeername()[0] == "127.0.0.1"


# --- Makefile and continuous integration -------------------------------------------------------------------------


def _of_its_own() -> dict[str, str]:
    """The environment without what a `make test` around this test would pass on to another make."""
    return {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "PIP_ARGS")}


@pytest.mark.parametrize("given", ["on the command line", "in the environment"])
def test_pip_args_reach_every_pip_command(tmp_path: Path, given: str) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    targets = re.findall(r"^([a-z0-9-]+):.* ## ", (tmp_path / "Makefile").read_text("utf-8"), re.MULTILINE)
    command, environment = ["make", "--dry-run", *targets], _of_its_own()
    if given == "in the environment":
        environment["PIP_ARGS"] = "--probe one"
    else:
        command.append("PIP_ARGS=--probe one")
    planned = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    lines = [line for line in planned.replace("\\\n", " ").splitlines() if re.search(r"\bpip\b.* install\b", line)]
    assert [line for line in lines if " --probe one " not in line] == []
    # pip itself, all extras, the demo's extras, llama.cpp, sentence-transformers 5.1, the newest cohere
    assert len(lines) == 6
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(
    ("failing", "called", "code"), [("", ["check", "browser", "test"], 0), ("check", ["check"], 7)]
)
def test_continuous_integration_runs_checks_then_a_browser_then_tests(
    tmp_path: Path, failing: str, called: list[str], code: int
) -> None:
    """With a make that notes where and with what it was called. What fails ends it."""
    make = tmp_path / "make"
    noting = 'pwd >> "$NOTES"; echo "$@" "$PIP_ARGS" "$RANKWRIGHT_CI" >> "$NOTES"; test "$1" != "$FAILING" || exit 7'
    make.write_text(f"#!/bin/sh\n{noting}\n")
    make.chmod(0o755)
    notes = tmp_path / "notes"
    ours = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NOTES": str(notes), "FAILING": failing, "PIP_ARGS": "--probe"}
    run = subprocess.run([ROOT / ".ci" / "run"], cwd=tmp_path, env=os.environ | ours, capture_output=True, check=False)
    assert run.returncode == code, run.stderr
    assert notes.read_text("utf-8").splitlines() == [
        line for target in called for line in (str(ROOT), f"{target} --probe 1")
    ]


@pytest.mark.parametrize(
    ("there", "user", "called"),
    [
        (["chromium"], "0", []),
        (["apt-get"], "0", ["update -q", "install -q -y --no-install-recommends chromium"]),
        (["apt-get", "sudo"], "1000", ["update -q", "install -q -y --no-install-recommends chromium"]),
        (["apt-get"], "1000", "Only root may install chromium, and there is no sudo here"),
        ([], "0", "There is no apt-get here; wanted chromium"),
    ],
)
def test_make_browser_installs_debians_chromium(
    tmp_path: Path, there: list[str], user: str, called: list[str] | str
) -> None:
    """On a path that has only what it needs, and commands that note how they were called."""
    notes, sudo_notes = tmp_path / "apt-get.notes", tmp_path / "sudo.notes"
    for name in ("sh", "env"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    (tmp_path / "id").write_text(f"#!/bin/sh\necho {user}\n")
    for name in ("chromium", "apt-get"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "$@" >> {notes}\n')
    (tmp_path / "sudo").write_text(f'#!/bin/sh\necho "$@" >> {sudo_notes}\n"$@"\n')
    for name in ("id", "chromium", "apt-get", "sudo"):
        (tmp_path / name).chmod(0o755 if name == "id" or name in there else 0o644)
    environment = {**_of_its_own(), "PATH": str(tmp_path)}
    make = str(shutil.which("make"))
    run = subprocess.run(
        [make, "browser", "SHELL=/bin/sh"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if isinstance(called, str):
        assert run.returncode == 2
        assert called in run.stderr
        return
    assert run.returncode == 0, run.stderr
    assert (notes.read_text("utf-8").splitlines() if notes.exists() else []) == called
    assert sudo_notes.exists() == ("sudo" in there)


# --- pinned versions ---------------------------------------------------------------------------------------------


def _project_requirements() -> list[Requirement]:
    found = project()
    extras = found["project"]["optional-dependencies"].values()
    groups = [found["project"]["dependencies"], found["dependency-groups"]["dev"], *extras]
    requirements = [Requirement(line) for group in groups for line in group]
    return [r for r in requirements if r.name != "rankwright"]


def _needed() -> set[str]:
    """Names of everything that `make install` brings."""
    # PyTorch's CUDA build pins the libraries it ships with by itself.
    return {name for name in brought_by(_project_requirements()) if not name.startswith(("nvidia-", "cuda-", "triton"))}


def test_constraints_are_sorted_exact_versions_without_paths_or_local_builds() -> None:
    assert sorted(CONSTRAINT_LINES, key=str.lower) == CONSTRAINT_LINES
    assert [line for line in CONSTRAINT_LINES if not re.fullmatch(r"[\w.-]+==[0-9][\w.]*", line)] == []


def test_every_requirement_has_a_pinned_version_that_satisfies_it() -> None:
    unmet = [r for r in _project_requirements() if not r.specifier.contains(PINS.get(canonicalize_name(r.name), "0"))]
    assert unmet == []


def test_every_package_that_an_installation_brings_is_pinned() -> None:
    assert _needed() - PINS.keys() == set()
