"""What every test gets: fixed seeds, few threads, no network but loopback, real data where it is, listed skips only."""

from __future__ import annotations

import ipaddress
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Read when a library is first imported, so set before any test module is.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, and one thread gives bit-equal sums
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

ROOT = Path(__file__).resolve().parent.parent
ALLOWED_SKIPS = Path(__file__).with_name("allowed-skips.txt")
DATA_ABSENT = "real data sets are absent; set RANKWRIGHT_DATA to their folder"
SEED = 0


SLOWEST = (
    "test_demo_teaches.py",
    "test_training.py",
    "test_demo_run.py",
    "test_processes.py",
    "test_budget.py",
    "test_wheel.py",
    "test_cli_costs.py",
    "test_alarms.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first, or one worker would sit through them alone at the end."""
    items.sort(key=lambda item: SLOWEST.index(item.path.name) if item.path.name in SLOWEST else len(SLOWEST))


# --- network -----------------------------------------------------------------------------------------------------


class NetworkBlockedError(RuntimeError):
    """A test tried to reach another machine. Not an OSError, so that no retry loop takes it for a network failure."""


_blocked: list[str] = []


def _is_local(host: object) -> bool:
    if host in (None, "", b"", "localhost", b"localhost"):
        return True
    name = host.decode() if isinstance(host, bytes) else str(host)
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False  # a host name: resolving it would already leave the machine
    return address.is_loopback or address.is_unspecified


def _refuse_network(event: str, args: tuple[object, ...]) -> None:
    if event == "socket.getaddrinfo":
        host = args[0]
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg") and isinstance(args[1], tuple):
        host = args[1][0]  # other address shapes (unix sockets, connected datagrams) stay on this machine
    else:
        return
    if not _is_local(host):
        message = f"{event} to {host!r} in a test; tests may only use loopback. Start a server on 127.0.0.1 instead."
        _blocked.append(message)
        raise NetworkBlockedError(message)


# An audit hook also sees connections made from threads, event loops and libraries that kept their own socket functions.
sys.addaudithook(_refuse_network)


@pytest.fixture(autouse=True)
def _no_network() -> Iterator[None]:
    """Fail a test that tried to leave the machine even where the code under test swallowed the error."""
    _blocked.clear()
    yield
    if _blocked:
        pytest.fail(_blocked[0], pytrace=False)


# --- determinism -------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Give every test the same random state, whatever ran before it. Libraries nobody imported stay unimported."""
    random.seed(SEED)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(SEED)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(SEED)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """What bit-equality is promised on."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- data --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of the real data sets: RANKWRIGHT_DATA, else ../shared/data beside the repository; skips without it."""
    root = Path(os.environ.get("RANKWRIGHT_DATA") or ROOT.parent / "shared" / "data")
    if not root.is_dir():
        pytest.skip(DATA_ABSENT)
    return root


# --- skips -------------------------------------------------------------------------------------------------------

_skips: dict[str, str] = {}  # node id -> reason; the controlling process sees the reports of all workers


def _note_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _skips[report.nodeid] = reason.removeprefix("Skipped: ")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note a skipped test."""
    _note_skip(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Note a module skipped as a whole."""
    _note_skip(report)


def _allowed_reasons() -> set[str]:
    lines = (line.strip() for line in ALLOWED_SKIPS.read_text(encoding="utf-8").splitlines())
    return {line for line in lines if line and not line.startswith("#")}


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A green run with an unlisted skip is not green."""
    if exitstatus == pytest.ExitCode.OK and set(_skips.values()) - _allowed_reasons():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print every skipped test with its reason, and say what is wrong with those that are not listed."""
    if not _skips:
        return
    terminalreporter.section("skipped tests")
    allowed = _allowed_reasons()
    for nodeid, reason in sorted(_skips.items()):
        terminalreporter.line(f"{'listed' if reason in allowed else 'NOT LISTED'}: {nodeid}: {reason}")
    unlisted = sum(reason not in allowed for reason in _skips.values())
    if unlisted:
        terminalreporter.line(
            f"{unlisted} skipped with a reason that tests/{ALLOWED_SKIPS.name} does not list, so the run fails. "
            "Make the tests run, or add the reason to that file with a comment that says why.",
            red=True,
        )
