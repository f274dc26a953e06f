"""A run folder belongs to one process at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rankwright.checkpoints import LOCK, alone_in
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


def test_another_process_is_kept_out_and_told_who_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "mine\n"
        message = rf"run is being written by process {holder.pid} on .+; wanted one at a time\. Wait .* another --name"
        with pytest.raises(StorageError, match=message), alone_in(folder):
            pytest.fail("two have it")
        assert (folder / LOCK).exists()
        holder.kill()
    with alone_in(folder):  # what a kill left holds nobody up
        assert f"process {os.getpid()} on " in (folder / LOCK).read_text()
    assert list(folder.iterdir()) == []


def test_who_has_a_folder_may_ask_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with alone_in(folder):
        with alone_in(folder):
            (folder / "kept").touch()
        assert (folder / LOCK).exists()
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_a_folder_into_which_nothing_was_put_goes_again(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="refused"), alone_in(tmp_path / "runs" / "a"):
        raise ValueError("refused")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with pytest.raises(StorageError, match=r"cannot be written \(Is a directory\)"), alone_in(tmp_path):
        pytest.fail("it was taken")
