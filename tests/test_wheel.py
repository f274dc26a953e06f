"""The built wheel: what is in it, what its metadata asks for, and that it works in an environment of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import rankwright

ROOT = Path(__file__).resolve().parent.parent
VERBS = ["demo", "diagnose", "train", "eval", "rerank", "retrieve", "validate", "report", "push", "cache", "doctor"]


def _run(*command: str | Path, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"NO_COLOR": "1", "COLUMNS": "120"}
    run = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{command}\n{run.stdout}\n{run.stderr}"
    return run.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scripts folder of a clean environment that holds the wheel and sees the dependencies of this one."""
    folder = tmp_path_factory.mktemp("clean")
    venv.EnvBuilder(symlinks=True).create(folder)
    python = folder / "bin" / "python"
    _run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    packages = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # Paths from a .pth file come after the environment's own packages, and .pth files in them (such as the one of this
    # checkout's editable installation) are not read: rankwright itself can only come from the wheel.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return folder / "bin"


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path, names: set[str]) -> Message:
    (name,) = (n for n in names if n.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(wheel) as archive:
        return Parser().parsestr(archive.read(name).decode())


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(names: set[str]) -> None:
    package = (p for p in (ROOT / "rankwright").rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    expected = {p.relative_to(ROOT).as_posix() for p in package}
    assert {n for n in names if ".dist-info/" not in n} == expected


def test_the_wheel_holds_data_files_types_marker_and_licence(names: set[str]) -> None:
    assert "rankwright/py.typed" in names
    assert any(n.startswith("rankwright/prompts/") for n in names)
    assert any(n.startswith("rankwright/assets/") and n.endswith(".safetensors") for n in names)
    assert any(n.endswith(".dist-info/licenses/LICENSE") for n in names)


TRAINED_ON = {
    "nq_open": ("NQ-open", "CC BY-SA 3.0"),
    "xquad_en": ("XQuAD", "CC BY-SA 4.0"),
    "hotpotqa": ("HotpotQA", "CC BY-SA 4.0"),
    "musique": ("MuSiQue", "CC BY 4.0"),
    "scifact": ("SciFact", "CC BY 4.0, ODC-By"),
    "prose": ("prose about an invented land", "Apache-2.0"),
}
"""A set of benchmarks/embedded -> its name on the cards, and its licence."""


@pytest.mark.parametrize("kind", ["reader", "reference"])
def test_the_card_of_a_shipped_adapter_names_what_it_learned_from_with_licences(kind: str) -> None:
    folder = ROOT / "benchmarks" / "embedded"
    keys = json.loads((folder / "split.json").read_text("utf-8"))[kind]
    program = (folder / f"train_{kind}.py").read_text("utf-8")
    sets = {re.split("[:/]", key)[0] for key in keys} | {name for name in ("scifact", "prose") if name in program}
    card = " ".join((ROOT / "rankwright" / "assets" / f"{kind}.md").read_text("utf-8").split())
    source = card.partition("**Trained on**")[2].partition("- **")[0]
    named = {name for name, words in TRAINED_ON.items() if re.search(r"{}[^()]*\([^()]*{}".format(*words), source)}
    assert named == sets
    assert re.search(r"all-MiniLM-L6-v2 \(Apache-2\.0", card), "the backbone"


def test_the_shipped_adapters_are_small() -> None:
    adapters = {path.name: path.stat().st_size for path in (ROOT / "rankwright" / "assets").glob("*.safetensors")}
    assert set(adapters) == {"reader.safetensors", "reference.safetensors"}
    assert sum(adapters.values()) <= 8_500_000


def test_the_metadata_carry_the_version_and_lower_bounds_only(metadata: Message) -> None:
    assert metadata["Version"] == rankwright.__version__
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    assert requirements
    operators = {(r.name, s.operator) for r in requirements for s in r.specifier}
    assert {(name, operator) for name, operator in operators if operator != ">="} == set()


def test_the_package_imports_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    program = "import rankwright, rankwright.types; print(rankwright.__file__); print(rankwright.__version__)"
    where, version = _run(installed / "python", "-c", program, cwd=tmp_path).split()
    assert Path(where).is_relative_to(installed.parent)
    assert version == rankwright.__version__


def test_the_console_script_lists_every_verb(installed: Path, tmp_path: Path) -> None:
    words = _run(installed / "rankwright", "--help", cwd=tmp_path).split()
    assert [verb for verb in VERBS if verb not in words] == []


def test_the_console_script_gives_help_where_torch_is_not_installed(installed: Path, tmp_path: Path) -> None:
    hide_torch = "import sys; sys.modules['torch'] = None; sys.argv = ['rankwright', '--help']"
    program = f"{hide_torch}; from rankwright.cli import main; main()"
    assert "train" in _run(installed / "python", "-c", program, cwd=tmp_path)
