"""Mutant proofs: in a copy of the repository with one fault, the gate that guards it fails (`make gates-mutants`)."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gates.mutants import Mutant

pytestmark = [pytest.mark.mutants, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
GATES = sorted(path.stem for path in Path(__file__).parent.glob("test_gate_*.py"))
MUTANTS: list[Mutant] = [
    mutant for gate in GATES for mutant in getattr(importlib.import_module(f"tests.gates.{gate}"), "MUTANTS", [])
]


def run_in_copy(folder: Path, mutant: Mutant, new: str) -> subprocess.CompletedProcess[str]:
    """The gate's tests in a copy of the repository in which `new` stands for the mutant's old text."""
    for part in ("rankwright", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    changed = folder / mutant.file
    text = changed.read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1, f"{mutant.file} has the text of this mutant {text.count(mutant.old)} times"
    changed.write_text(text.replace(mutant.old, new), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-m", "gates", "-p", "no:cacheprovider", mutant.tests]
    settings = {**os.environ, "GATES": "quick", "PYTHONPATH": str(folder)}
    settings.setdefault("RANKWRIGHT_DATA", str(ROOT.parent / "shared" / "data"))
    return subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_gate_fails_on_the_mutant(tmp_path: Path, mutant: Mutant) -> None:
    result = run_in_copy(tmp_path, mutant, mutant.new)
    # 1 is "tests failed"; 2 to 5 are an interrupted run, an internal error, wrong usage and no tests at all.
    assert result.returncode == 1, result.stdout[-3000:] + result.stderr[-1000:]
    assert " failed" in result.stdout, result.stdout[-3000:]
    assert "ImportError" not in result.stdout, result.stdout[-3000:]


def test_every_gate_has_a_mutant() -> None:
    """The alarms' gate carries its proof in its own file, by taking rules out."""
    with_mutants = {mutant.tests.split("::")[0].removeprefix("tests/gates/").removesuffix(".py") for mutant in MUTANTS}
    assert with_mutants == {gate for gate in GATES if gate != "test_gate_alarms"}
