"""What the package promises by its surface: names, light imports, docstrings, no unsafe loading, no machine paths."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rankwright

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "rankwright").rglob("*.py"))
SOURCE_NAMES = [str(path.relative_to(ROOT)) for path in SOURCES]

LIGHT_MODULES = [
    "rankwright.errors",
    "rankwright.types",
    "rankwright.scale",
    "rankwright.metrics",
    "rankwright.metrics.answer",
    "rankwright.metrics.ranking",
    "rankwright.metrics.significance",
    "rankwright.data",
    "rankwright.retrieval",
    "rankwright.expansion",
    "rankwright.prompts",
    "rankwright.llms",
    "rankwright.llms.http",
    "rankwright.llms.cache",
    "rankwright.rerankers.generating",
    "rankwright.rerankers.onnx",
    "rankwright.rerankers.onnx_folder",
    "rankwright.calibration",
    "rankwright.rerankers.ranking",
    "rankwright.rewards",
    "rankwright.algorithms.config",
    "rankwright.algorithms.arguments",
    "rankwright.algorithms.generating",
    "rankwright.checkpoints",
    "rankwright.manifests",
    "rankwright.diagnosis",
    "rankwright.comparison",
    "rankwright.budget",
    "rankwright.alarms",
    "rankwright.batch",
    "rankwright.bulk",
    "rankwright.evaluation",
    "rankwright.strategies",
    "rankwright.teaching",
    "rankwright.reading",
    "rankwright.reporting",
    "rankwright.engine",
    "rankwright.server.app",
    "rankwright.server.run",
    "rankwright.server.answers",
    "rankwright.cli.serve",
    "rankwright.integrations.opened",
    "rankwright.integrations.langchain",
    "rankwright.integrations.llama_index",
    "rankwright.integrations.pyterrier",
]


# --- names and imports -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", rankwright.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(rankwright, name) is not None


def test_type_checkers_see_every_public_name() -> None:
    """What `__getattr__` gives is Any to them."""
    tree = ast.parse(Path(rankwright.__file__).read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {a.asname: (n.module, a.name) for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    names = {name: (module, rankwright._ALIASES.get(name, name)) for name, module in rankwright._WHERE.items()}
    assert seen == names


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no_such_name.*load_examples"):
        _ = rankwright.no_such_name


def _first_loader(heavy: str, modules: list[str]) -> str:
    """Import the modules one after the other in a fresh interpreter; say which one first brought in `heavy`."""
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[2:]:\n"
        "    importlib.import_module(name)\n"
        "    if sys.argv[1] in sys.modules:\n"
        "        sys.exit(print(name))\n"
    )
    command = [sys.executable, "-c", program, heavy, *modules]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.parametrize("heavy", ["torch", "transformers"])
def test_light_modules_leave_deep_learning_libraries_alone(heavy: str) -> None:
    assert _first_loader(heavy, LIGHT_MODULES) == ""


@pytest.mark.parametrize("heavy", ["numpy", "pydantic", "torch", "rankwright.types"])
def test_importing_the_package_loads_nothing_else(heavy: str) -> None:
    assert _first_loader(heavy, ["rankwright"]) == ""


def test_the_import_probe_sees_a_heavy_import() -> None:
    assert _first_loader("rankwright.errors", ["json", "rankwright.types"]) == "rankwright.types"


# --- docstrings --------------------------------------------------------------------------------------------------

# Named and described by torch (modules) and transformers (callbacks); our class says what is particular about it.
OUTSIDE_METHODS = {"forward", "on_train_begin", "on_train_end", "on_step_end", "on_log", "on_evaluate", "on_save"}

Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _public(body: list[ast.stmt]) -> Iterator[Documented]:
    for node in body:
        if isinstance(node, Documented) and not node.name.startswith("_"):
            yield node


def _plug_point_methods() -> set[str]:
    """Methods described once, in types.py: a class that implements a plug point need not repeat the description."""
    tree = ast.parse((ROOT / "rankwright" / "types.py").read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return {m.name for c in classes for m in _public(c.body) if ast.get_docstring(m)}


def _is_overload(node: ast.AST) -> bool:
    """A signature for type checkers, whose docstring stands at the function itself."""
    return any(isinstance(d, ast.Name) and d.id == "overload" for d in getattr(node, "decorator_list", []))


def _undocumented(tree: ast.Module, described_elsewhere: set[str]) -> list[str]:
    missing = [] if ast.get_docstring(tree) or not tree.body else ["the module"]
    for node in _public(tree.body):
        if not ast.get_docstring(node) and not _is_overload(node):
            missing.append(node.name)
        if isinstance(node, ast.ClassDef):
            methods = [m for m in _public(node.body) if m.name not in described_elsewhere]
            missing += [f"{node.name}.{m.name}" for m in methods if not ast.get_docstring(m)]
    return missing


@pytest.mark.parametrize("path", SOURCES, ids=SOURCE_NAMES)
def test_everything_public_has_a_docstring(path: Path) -> None:
    missing = _undocumented(ast.parse(path.read_text(encoding="utf-8")), _plug_point_methods() | OUTSIDE_METHODS)
    assert missing == []


def test_the_docstring_check_finds_what_is_missing() -> None:
    functions = '"""M."""\ndef f(): ...\ndef _g(): ...\n'
    methods = 'class C:\n    """C."""\n    def m(self): ...\n    def answer(self): ...\n'
    source = functions + methods
    assert _undocumented(ast.parse(source), {"answer"}) == ["f", "C.m"]


# --- unsafe loading ----------------------------------------------------------------------------------------------

UNSAFE_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
UNSAFE_CALLS = {"eval", "exec", "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load"}
MUST_BE_FALSE = {"trust_remote_code", "allow_pickle"}


def _is(node: ast.expr | None, constant: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is constant


def _unsafe_call(node: ast.Call) -> Iterator[str]:
    called = ast.unparse(node.func)
    if called in UNSAFE_CALLS:
        yield called
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    if called == "torch.load" and not _is(keywords.get("weights_only"), True):
        yield "torch.load without weights_only=True"
    for name in MUST_BE_FALSE & keywords.keys():
        if not _is(keywords[name], False):
            yield f"{name} other than False"


def _unsafe(tree: ast.AST) -> list[str]:
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [n for n in names if n in UNSAFE_CALLS | {"torch.load"} or n.partition(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.Call):
            found += _unsafe_call(node)
        elif isinstance(node, ast.Dict):
            keys = ((k.value, v) for k, v in zip(node.keys, node.values, strict=True) if isinstance(k, ast.Constant))
            found += [f"{k} other than False" for k, v in keys if k in MUST_BE_FALSE and not _is(v, False)]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=SOURCE_NAMES)
def test_no_module_can_run_code_from_a_file(path: Path) -> None:
    assert _unsafe(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", ["pickle"]),
        ("from shelve import open", ["shelve.open"]),
        ("from torch import load", ["torch.load"]),
        ("eval(text)", ["eval"]),
        ("model.eval()", []),
        ("yaml.load(stream)", ["yaml.load"]),
        ("yaml.safe_load(stream)", []),
        ("torch.load(path)", ["torch.load without weights_only=True"]),
        ("torch.load(path, weights_only=flag)", ["torch.load without weights_only=True"]),
        ("torch.load(path, weights_only=True)", []),
        ("build(name, trust_remote_code=True)", ["trust_remote_code other than False"]),
        ("build(name, trust_remote_code=settings.trust)", ["trust_remote_code other than False"]),
        ("build(name, trust_remote_code=False)", []),
        ("build(**{'trust_remote_code': True})", ["trust_remote_code other than False"]),
        ("numpy.load(path, allow_pickle=True)", ["allow_pickle other than False"]),
    ],
)
def test_the_unsafe_loading_check_finds_what_it_should(source: str, found: list[str]) -> None:
    assert _unsafe(ast.parse(source)) == found


# --- machine paths and package hosts -----------------------------------------------------------------------------

# Absolute folders of one machine, and hosts of package registries: both belong into settings of the user, not in here.
ELSEWHERE = re.compile(
    r"(?<![\w.~}])/(?:work|root|opt|home|Users)/\w"
    r"|(?:pypi[.](?:org|python)|pythonhosted[.]org|download[.]pytorch|registry[.]npmjs|conda[.]anaconda)"
)


def _project_files() -> list[Path]:
    """Files of the project, known to git or about to be; in a tree without git, everything outside hidden folders."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    if (ROOT / ".git").exists():
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]
    paths = (p for p in ROOT.rglob("*") if not any(part.startswith(".") for part in p.relative_to(ROOT).parts))
    return [path for path in paths if path.is_file()]


def test_no_file_names_a_machine_path_or_a_package_host() -> None:
    found: list[str] = []
    for path in _project_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # binary: weights, pictures
        for number, line in enumerate(text.splitlines(), start=1):
            if match := ELSEWHERE.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match.group()}")
    assert found == []


@pytest.mark.parametrize(
    ("line", "hit"),
    [
        ("see /ro" + "ot/notes", True),
        ("file:///op" + "t/wheels", True),
        ("https://pypi" + ".org/simple", True),
        ("benchmarks/work/a", False),
        ("~/work/a", False),
        ("../work/a", False),
    ],
)
def test_the_path_check_tells_machine_paths_from_others(line: str, hit: bool) -> None:
    assert bool(ELSEWHERE.search(line)) is hit
