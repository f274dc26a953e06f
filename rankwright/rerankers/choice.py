"""`backend="auto"`: the fastest backend on this machine whose scores agree with fp32, measured once and remembered."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from rankwright.errors import ConfigurationError, MissingDependencyError, ModelError
from rankwright.rerankers.onnx import OnnxReranker
from rankwright.rerankers.ranking import Scorer
from rankwright.types import Document, Query, RerankRequest

Opener = Callable[[str], Scorer]
"""The name of a backend -> the model in it."""

TOLERANCE = 0.1
"""How far scores may be from fp32, in standard deviations of the probes' fp32 scores; what bf16 takes of it, and what
that does to nDCG@10, stands in docs/speed.md."""
ROUNDS = 3
SETS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "bf16",
)
"""What fast kernels ask of a processor, as Linux names it."""
OF_FP32 = (("avx512f",), ("avx2", "fma"), ("asimd",))
RELIED: Mapping[str, Sequence[tuple[str, ...]]] = {
    "bf16": (("amx_bf16",), ("avx512_bf16",), ("avx512f",), ("bf16",)),
    "onnx-int8": (("amx_int8",), ("avx512_vnni",), ("avx_vnni",), ("avx512f",), ("avx2",), ("asimddp",), ("asimd",)),
}
"""Backend -> the instruction sets for which oneDNN and ONNX Runtime have kernels of its products, the first choice
first; OF_FP32 for all others. Seen at work: those of an AMD EPYC with avx512_bf16 and avx512_vnni."""
PACKAGES = ("rankwright", "torch", "transformers", "onnxruntime")
CACHE = "RANKWRIGHT_CACHE"
"""Names the folder of what is remembered; by default that of the user's caches."""

_SENTENCE = "The river that rises in the hills behind the old town was measured again in the spring of the year. "


def probes() -> list[RerankRequest]:
    """Pairs of many lengths, from a few words to the limit of most models."""
    lengths = [*range(12, 1000, 40), 1500, 2200]
    documents = tuple(
        Document(str(n), (_SENTENCE[n % 90 :] + _SENTENCE * 23)[:length]) for n, length in enumerate(lengths)
    )
    return [RerankRequest(Query("probe", "when was the river behind the town measured?"), documents)]


def instruction_sets() -> list[str]:
    """Those of SETS that this processor has; none where the system does not tell."""
    flags = _flags()
    return [name for name in SETS if name in flags]


def _flags() -> set[str]:
    """All that the system tells of the processor; empty where it does not."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return set()
    return set(re.findall(r"\w+", next(iter(re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)), "")))


def relied_on(backend: str, there: Sequence[str]) -> tuple[str, ...]:
    """Of the instruction sets that are there, those in which a backend computes its products; none where nobody knows
    by which it does."""
    sets = RELIED.get(backend, OF_FP32)
    if backend == "torch" and "intel" not in processor().lower():
        sets = sets[1:]  # its products are MKL's, which has avx512 for Intel's processors alone
    return next((names for names in sets if set(names) <= set(there)), ())


def processor() -> str:
    """Its name as the system gives it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def cache_folder() -> Path:
    """Where this user's measurements are kept."""
    own = os.environ.get(CACHE)
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rankwright"


def fastest(open_as: Opener, backends: Sequence[str], *, say: Callable[[str], None] | None = None) -> Scorer:
    """The model in the fastest backend that agrees with fp32 on this machine.

    The first time each backend scores `probes` a few times, a second or so for a small model; what was found is kept
    under the model's digest, the versions of libraries, the processor and the threads.

    Args:
        open_as: opens the model in a backend.
        backends: the names to try; the first is what the others are compared with, and the fallback.
        say: is told what was chosen and which instruction sets it relies on; by default standard error.
    """
    say = say or (lambda line: print(line, file=sys.stderr))
    first = backends[0]
    plain = open_as(first)
    file = cache_folder() / f"backend-{_key(plain, backends)}.json"
    known = _read(file, first)
    if known is None:
        with plain.uncounted():
            known = _measured(plain, open_as, backends)
        _write(file, known)
    name = known["backend"]
    say(_told(plain, known, first))
    if name == first:
        return plain
    del plain
    return open_as(name)


def _measured(plain: Scorer, open_as: Opener, backends: Sequence[str]) -> dict[str, Any]:
    """Seconds of each backend that agrees with the first, and why others were left out."""
    requests = probes()
    (wanted,) = plain.score_batch(requests)
    allowed = TOLERANCE * _deviation(wanted.scores)
    sound, left_out = {backends[0]: plain}, {}
    for name in backends[1:]:
        try:
            scorer = open_as(name)
            (found,) = scorer.score_batch(requests)
        except (MissingDependencyError, ConfigurationError, ModelError, RuntimeError) as error:
            left_out[name] = str(error).split("\n")[0][:200]
            continue
        worst = float(np.abs(np.subtract(found.scores, wanted.scores)).max())  # max of Python may pass over a NaN
        if worst <= allowed:  # NaN is not
            sound[name] = scorer
        else:
            left_out[name] = f"its scores differ by up to {worst:.3g}, allowed {allowed:.3g}"
    seconds = {name: float("inf") for name in sound}
    for _ in range(ROUNDS):  # in turns, so that what else the machine does touches all alike
        for name, scorer in sound.items():
            began = time.perf_counter()
            scorer.score_batch(requests)
            seconds[name] = min(seconds[name], time.perf_counter() - began)
    return {"backend": min(seconds, key=lambda name: seconds[name]), "seconds": seconds, "left out": left_out}


def _told(plain: Scorer, known: Mapping[str, Any], first: str) -> str:
    seconds, name = known["seconds"], known["backend"]
    model = plain.name.removesuffix(f"|{first}")
    alone = len(seconds) + len(known["left out"]) == 1
    best = "the only one tried" if alone else "the fastest that agrees"
    gain = best if name == first else f"{seconds[first] / seconds[name]:.1f} times {first}"
    left = "".join(f"; {other} was left out: {why}" for other, why in known["left out"].items())
    return f"{model}: backend {name}, {gain} on {_machine(plain, name)}{left}"


def _machine(plain: Scorer, backend: str) -> str:
    """The processor, and what of it the backend relies on; the device where it is another."""
    device = _device(plain)
    if device != "cpu":
        return device
    there = instruction_sets()
    relied = relied_on(backend, there)
    if not _flags():
        return f"{processor()} (instruction sets: not told by the system)"
    others = ", ".join(name for name in there if name not in relied)
    if not relied:
        has = f"; the processor has {others}" if others else ""
        return f"{processor()} (none of the instruction sets that it has fast kernels for{has})"
    also = f"; the processor has {others} too" if others else ""
    return f"{processor()} (relies on {', '.join(relied)}{also})"


def _deviation(scores: Sequence[float]) -> float:
    mean = sum(scores) / len(scores)
    return (sum((score - mean) ** 2 for score in scores) / len(scores)) ** 0.5


def _key(plain: Scorer, backends: Sequence[str]) -> str:
    """Digest of all that the choice depends on."""
    digest = hashlib.sha256()
    for part in _content(plain):
        digest.update(part)
    machine = [_threads(plain), _device(plain), processor(), instruction_sets()]
    around = [plain.max_length, *machine, list(backends), [_version(name) for name in PACKAGES]]
    digest.update(json.dumps(around).encode())
    return digest.hexdigest()[:32]


def _content(plain: Any) -> Iterator[Any]:
    """What scores are made of, as bytes: the digests of an export's files, or names and weights."""
    if isinstance(plain, OnnxReranker):
        yield json.dumps(dict(plain.manifest.files), sort_keys=True).encode()
        return
    import torch

    for name, tensor in sorted(plain.model.state_dict().items()):
        yield name.encode()
        yield tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data


def _threads(plain: Scorer) -> int:
    if isinstance(plain, OnnxReranker):
        return plain.threads
    import torch

    return torch.get_num_threads()


def _device(plain: Scorer) -> str:
    return str(getattr(plain, "device", "cpu"))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _read(file: Path, first: str) -> dict[str, Any] | None:
    """What is kept; None for nothing, and for what is damaged."""
    try:
        known = json.loads(file.read_text("utf-8"))
        sound = isinstance(known["left out"], dict) and {first, known["backend"]} <= known["seconds"].keys()
        return known if sound and all(value > 0 for value in known["seconds"].values()) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write(file: Path, known: Mapping[str, Any]) -> None:
    """Keeps it, whole or not at all; a folder that cannot be written costs the next start a second."""
    part = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(known, indent=2) + "\n", "utf-8")
        part.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
