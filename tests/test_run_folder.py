"""A run folder belongs to one process at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from rankwright.checkpoints import LOCK, alone_in
from rankwright.data.files import take_lock
from rankwright.errors import StorageError
from tests.cli_kit import ROOT

HOLDER = """
import sys
from pathlib import Path
from rankwright.checkpoints import alone_in

with alone_in(Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.read()
"""

FORKING = """
import os
import sys
from pathlib import Path
from rankwright.checkpoints import alone_in

folder = Path(sys.argv[1])
with alone_in(folder):
    if os.fork() == 0:
        try:
            with alone_in(folder):
                print("the child's")
        except OSError:
            print("mine", flush=True)
            sys.stdin.read()
            sys.exit()
    sys.stdin.read()
"""


@contextmanager
def holding(folder: Path, script: str = HOLDER) -> Iterator[subprocess.Popen[str]]:
    """Another process, which has the folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "mine\n"
        yield holder


def test_another_process_is_kept_out_and_told_who_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with holding(folder) as holder:
        message = rf"run is being written by process {holder.pid} on .+; wanted one at a time\. Wait .* another --name"
        with pytest.raises(StorageError, match=message), alone_in(folder):
            pytest.fail("two have it")
        assert (folder / LOCK).exists()
        holder.kill()
    with alone_in(folder):  # what a kill left holds nobody up
        assert f"process {os.getpid()} on " in (folder / LOCK).read_text()
    assert list(folder.iterdir()) == []


def test_a_forked_child_has_nothing_of_its_parents_and_holds_nobody_up(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with holding(folder, FORKING) as parent:
        with pytest.raises(StorageError, match=f"by process {parent.pid} on "), alone_in(folder):
            pytest.fail("two have it")
        parent.kill()
        parent.wait()
        with alone_in(folder):
            assert parent.stdin is not None
            parent.stdin.close()
            assert parent.stdout is not None
            assert parent.stdout.read() == ""  # it is closed when the child has ended
            assert (folder / LOCK).exists()


def test_who_has_a_folder_may_ask_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with alone_in(folder):
        with alone_in(folder):
            (folder / "kept").touch()
        assert (folder / LOCK).exists()
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_a_process_of_the_same_number_is_kept_out_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in containers of one host name, whose first process is 1 in each."""
    with holding(tmp_path / "run") as holder:
        monkeypatch.setattr(os, "getpid", lambda: holder.pid)
        with pytest.raises(StorageError, match=f"by process {holder.pid} on "), alone_in(tmp_path / "run"):
            pytest.fail("two have it")
        holder.kill()


def test_who_asks_again_by_another_name_leaves_the_lock(tmp_path: Path) -> None:
    folder, link = tmp_path / "run", tmp_path / "link"
    link.symlink_to(folder)
    with alone_in(folder):
        with alone_in(link):
            assert (folder / LOCK).exists()
        assert (folder / LOCK).exists()


def test_another_thread_is_kept_out(tmp_path: Path) -> None:
    def ask() -> None:
        with alone_in(tmp_path / "run"):
            pytest.fail("two have it")

    with alone_in(tmp_path / "run"), ThreadPoolExecutor() as pool, pytest.raises(StorageError, match="one at a time"):
        pool.submit(ask).result()


def test_a_lock_that_was_removed_and_made_anew_is_the_next_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it goes while somebody opens it, or with the whole folder while a run is being made."""

    def too_late(stream: IO[str]) -> bool:
        """Its holder leaves after it was opened, and the next one comes."""
        (tmp_path / LOCK).unlink()
        (tmp_path / LOCK).touch()
        return take_lock(stream)

    with monkeypatch.context() as patched:
        patched.setattr("rankwright.checkpoints.take_lock", too_late)
        with pytest.raises(StorageError, match="by another process"), alone_in(tmp_path):
            pytest.fail("two have it")
    with alone_in(tmp_path):
        (tmp_path / LOCK).unlink()
        (tmp_path / LOCK).touch()
    assert (tmp_path / LOCK).exists()


def test_a_folder_into_which_nothing_was_put_goes_again(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="refused"), alone_in(tmp_path / "runs" / "a"):
        raise ValueError("refused")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with pytest.raises(StorageError, match=r"cannot be written \(Is a directory\)"), alone_in(tmp_path):
        pytest.fail("it was taken")
