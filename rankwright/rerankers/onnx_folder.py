"""What a folder of `rankwright export` holds, and the look at it before anything in it is opened.

A folder is data that may come from anyone. Its manifest lists every file with its sha256; a graph is walked, byte by
byte of its protobuf form, before ONNX Runtime sees it: weights may stand only in files that the manifest lists, and
operators only come from ONNX and from ONNX Runtime itself. No library of operators is ever loaded.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rankwright.errors import ConfigurationError, ModelError
from rankwright.prompts.passage import checked_template

MANIFEST = "rankwright_onnx.json"
TOKENIZER = "tokenizer.json"
GRAPHS: Mapping[str, str] = {"fp32": "onnx/model.onnx", "int8": "onnx/model_int8.onnx"}
"""Form -> its file, under the names that other tools look for."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
DOMAINS = ("", "ai.onnx", "com.microsoft")
"""Where operators may come from: the standard, and what ONNX Runtime has built in."""
AGAIN = "Export the model again with rankwright export."
_LARGEST_JSON = 1 << 20


@dataclass(frozen=True)
class Manifest:
    """What a graph and a tokenizer alone do not say."""

    template: str
    """Joins title and text of a passage."""
    max_length: int
    """Tokens that pairs are cut to, the longer text first."""
    truncation_side: str = "right"
    kind: str = "cross_encoder"
    activation: str = "none: scores are raw logits"
    temperature: float = 1.0
    """What scores are divided by before the sigmoid of the APIs (`rankwright calibrate`)."""
    threshold: float | None = None
    """The least value on that scale that counts as relevant; None where none was fitted."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Name below the folder -> sha256, of the tokenizer and of every graph and its weights."""
    parity: Mapping[str, Any] = field(default_factory=dict)
    """Form -> how its scores differed from those of the model it was made from."""
    source: str = ""
    """What was exported."""
    version: str = ""
    """Of the rankwright that wrote it."""
    format: int = 1

    def write(self, folder: Path) -> None:
        """Writes the manifest; the files that it lists stand in the folder already."""
        (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @property
    def forms(self) -> list[str]:
        """The forms whose graph is listed."""
        return [form for form, name in GRAPHS.items() if name in self.files]


def is_export(path: str | Path) -> bool:
    """Whether a folder holds a manifest."""
    return (Path(path) / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        ModelError: it cannot be read, or says what no export says.
    """
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        found = json.loads(path.read_bytes())
        manifest = Manifest(**{name: found[name] for name in (f.name for f in fields(Manifest)) if name in found})
        wrong = _wrong_entry(manifest)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"Manifest {path} is damaged ({error}); wanted the one of an export. {AGAIN}") from error
    if wrong:
        raise ModelError(f"Manifest {path} has {wrong}. {AGAIN}")
    return manifest


def _wrong_entry(manifest: Manifest) -> str:
    """The first entry that no export would have, and what was wanted; empty where all is well."""
    try:
        checked_template(manifest.template)
    except (ConfigurationError, TypeError):
        return f"template {manifest.template!r}; wanted {{text}} and perhaps {{title}}"
    listed = manifest.files.items() if isinstance(manifest.files, dict) else [(None, None)]
    threshold = 0.5 if manifest.threshold is None else manifest.threshold
    checks = {
        f"format {manifest.format!r}; wanted 1, the only one of this version": manifest.format == 1,
        f"kind {manifest.kind!r}; wanted 'cross_encoder'": manifest.kind == "cross_encoder",
        f"max_length {manifest.max_length!r}; wanted a whole number above 3": _whole(manifest.max_length, 4),
        f"truncation_side {manifest.truncation_side!r}; wanted 'right' or 'left'": manifest.truncation_side
        in ("right", "left"),
        f"temperature {manifest.temperature!r}; wanted a positive number": _number(manifest.temperature)
        and manifest.temperature > 0,
        f"threshold {manifest.threshold!r}; wanted a number from 0 to 1, or null": _number(threshold)
        and 0 <= threshold <= 1,
        f"files {manifest.files!r}; wanted names inside the folder with their sha256": all(
            isinstance(name, str) and _inside(name) and isinstance(digest, str) for name, digest in listed
        ),
    }
    return next((text for text, holds in checks.items() if not holds), "")


def _whole(value: object, least: int) -> bool:
    return type(value) is int and least <= value < 1 << 31


def _number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # pyright: ignore[reportArgumentType]


def _inside(name: str) -> bool:
    """Whether a name leads to a file of the folder: forward slashes only, and no way up or out."""
    return (
        bool(name) and "\\" not in name and ":" not in name and all(p not in ("", ".", "..") for p in name.split("/"))
    )


def checked_file(folder: Path, name: str, manifest: Manifest) -> Path:
    """The path of a listed file whose bytes are those that were exported.

    Raises:
        ModelError: the file is not listed, missing or changed.
    """
    path = folder / name
    if name not in manifest.files:
        raise ModelError(f"Model folder {folder} has no {name} in its manifest; wanted it there. {AGAIN}")
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"File {path} cannot be read ({error.strerror}); wanted what was exported. {AGAIN}") from error
    if found != manifest.files[name]:
        raise ModelError(f"File {path} has sha256 {found}; wanted {manifest.files[name]}, as exported. {AGAIN}")
    return path


def checked_graph(folder: Path, form: str, manifest: Manifest) -> Path:
    """The path of a form's graph, if it and the weights that it names are what was exported and nothing else is used.

    Raises:
        ConfigurationError: the folder has no such form.
        ModelError: a file is missing or changed, weights stand elsewhere, or an operator comes from elsewhere.
    """
    if form not in manifest.forms:
        raise ConfigurationError(
            f"Model folder {folder} has the forms {', '.join(manifest.forms) or 'none'}; wanted {form}. {AGAIN}"
        )
    path = checked_file(folder, GRAPHS[form], manifest)
    try:
        used = list(_used(path))
    except (ValueError, UnicodeDecodeError) as error:
        raise ModelError(f"Graph {path} is damaged ({error}); wanted an ONNX file. {AGAIN}") from error
    for what, name in used:
        if what == "operator" and name not in DOMAINS:
            raise ModelError(
                f"Graph {path} uses operators of '{name[:80]}'; wanted those of ONNX and ONNX Runtime only, because "
                f"others are code. {AGAIN}"
            )
        if what == "weights":
            beside = f"{path.parent.relative_to(folder).as_posix()}/{name}"
            if not _inside(name) or beside not in manifest.files:
                raise ModelError(
                    f"Graph {path} has weights in '{name[:80]}'; wanted a file that the manifest lists. {AGAIN}"
                )
            checked_file(folder, beside, manifest)
    return path


# --- the protobuf form of a graph --------------------------------------------------------------------------------

# onnx.proto: field of a message -> the message in it. Only what can hold weights or operators is walked.
_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _FUNCTION, _ENTRY = range(8)
_WALK: Mapping[int, Mapping[int, int]] = {
    _MODEL: {7: _GRAPH, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _TENSOR: {13: _ENTRY},
}
_DOMAIN_OF_NODE = 7
_DEEPEST = 50


def _used(path: Path) -> Iterator[tuple[str, str]]:
    """("operator", domain) and ("weights", file) of a graph."""
    with path.open("rb") as stream:
        if not path.stat().st_size:
            raise ValueError("it is empty")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield from _walk(data, 0, len(data), _MODEL, 0)


def _walk(data: mmap.mmap, start: int, end: int, message: int, depth: int) -> Iterator[tuple[str, str]]:
    if depth > _DEEPEST:
        raise ValueError(f"more than {_DEEPEST} levels deep")
    inside = _WALK.get(message, {})
    domain, entry = "", {}
    for number, first, last in _fields(data, start, end):
        if message == _NODE and number == _DOMAIN_OF_NODE:
            domain = data[first:last].decode()
        elif message == _ENTRY and number in (1, 2):
            entry[number] = data[first:last].decode()
        elif number in inside:
            yield from _walk(data, first, last, inside[number], depth + 1)
    if message == _NODE:
        yield "operator", domain
    if message == _ENTRY and entry.get(1) == "location":
        yield "weights", entry.get(2, "")


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, first byte, last byte + 1) of every field with a length; numbers are stepped over."""
    at = start
    while at < end:
        key, at = _varint(data, at, end)
        kind = key & 7
        if kind == 2:
            length, at = _varint(data, at, end)
            if length > end - at:
                raise ValueError(f"{length:,} bytes promised at {at:,}, {end - at:,} are there")
            yield key >> 3, at, at + length
            at += length
        elif kind == 0:
            _, at = _varint(data, at, end)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"no protobuf at byte {at:,}")


def _varint(data: Sequence[int] | mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError(f"no protobuf at byte {at:,}")
