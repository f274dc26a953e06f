"""Folders made to do harm (F1): whoever opens one gets a named error or the scores of the model, within a second and
64 MiB; no code of the folder runs, and no file outside of it is read.

All are opened in one process under an audit hook, which is never taken off again.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rankwright
from rankwright.errors import ModelError
from rankwright.llms.folders import FOLLOW
from tests.cli_kit import ROOT
from tests.tiny_bert import save_cross_encoder

SECONDS, MEBIBYTES = 1.0, 64
OPENER = """
import json, os, pickle, resource, subprocess, sys, time
import rankwright
from rankwright.errors import ModelError

here, outside, proof, plain, *folders = sys.argv[1:]
seen = []

def inside(path, folder):
    return isinstance(path, (str, bytes)) and os.path.realpath(os.fsdecode(path)).startswith(folder + os.sep)

def hook(event, arguments):
    never = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn")
    never += ("pickle.find_class", "socket.connect", "socket.getaddrinfo")
    first = arguments[0] if arguments else None
    code = arguments[1] if event == "compile" else getattr(first, "co_filename", first)
    if event in never or (event in ("exec", "compile", "ctypes.dlopen") and inside(code, here)):
        seen.append(f"{event} {str(arguments)[:200]}")
    if event == "open" and inside(first, outside):
        seen.append(f"open {first}")

def opened(folder):
    seen.clear()
    begun = time.process_time()
    try:
        said = rankwright.load(folder).rerank("rain", ["moon", "a river of rain"]).scores
    except ModelError as error:
        said = str(error)
    return [said, time.process_time() - begun, list(seen)]

opened(plain)
sys.addaudithook(hook)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = {folder: opened(folder) for folder in [plain, *folders]}
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

# The hook sees what it is there for.
seen.clear()
exec(compile("1", os.path.join(here, "evil.py"), "exec"))
pickle.loads(pickle.dumps(json.JSONDecoder))
subprocess.run([sys.executable, "-c", ""])
open(proof).close()
print(json.dumps([found, grown, [what.partition(" ")[0] for what in seen]]))
"""


class Runs:
    """What a pickle makes of itself when it is read: a file that says so."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@dataclass(frozen=True)
class Place:
    """A copy of a good model's folder, and what lies beside it."""

    folder: Path
    outside: Path
    """Files of somebody else: the good model's own, so that a folder that reads them would score."""
    mark: Path
    """Is there once code of the folder has run."""

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"


Change = Callable[[Place], object]
Header = dict[str, Any]


def parts(place: Place) -> tuple[Header, bytes]:
    """Header and bytes of the weights."""
    raw = place.weights.read_bytes()
    end = 8 + struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8:end]), raw[end:]


def raw_header(header: bytes, length: int | None = None, size: int = 0) -> Change:
    """Weights with such a header, which claim that it has such a length, in a file of at least such a size."""

    def change(place: Place) -> None:
        _, data = parts(place)
        place.weights.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
        os.truncate(place.weights, max(size, place.weights.stat().st_size))  # a hole, which takes no room on the disk

    return change


def header(change: Callable[[Header, int], object], behind: bytes = b"") -> Change:
    """Weights whose header, of whose tensors the bytes are so many in all, was changed."""

    def changed(place: Place) -> None:
        found, data = parts(place)
        change(found, len(data))
        text = json.dumps(found).encode()
        place.weights.write_bytes(struct.pack("<Q", len(text)) + text + data + behind)

    return changed


def entries(found: Header) -> list[dict[str, Any]]:
    """The tensors, in the order of their bytes."""
    tensors = [entry for name, entry in found.items() if name != "__metadata__"]
    return sorted(tensors, key=lambda entry: entry["data_offsets"])


def first(**entry: Any) -> Change:
    """Another entry for the first tensor."""
    return header(lambda found, size: entries(found)[0].update(entry))


def overlap(found: Header, size: int) -> None:
    """The second tensor begins where the first does."""
    one, two = entries(found)[:2]
    begin, length = one["data_offsets"][0], two["data_offsets"][1] - two["data_offsets"][0]
    two["data_offsets"] = [begin, begin + length]


def twice(place: Place) -> None:
    """The first tensor's name stands twice, the second time with the bytes of the second."""
    found, data = parts(place)
    name = next(name for name, entry in found.items() if entry is entries(found)[0])
    text = json.dumps(found)[:-1] + "," + json.dumps({name: entries(found)[1]})[1:]
    place.weights.write_bytes(struct.pack("<Q", len(text)) + text.encode() + data)


def linked(name: str, to: str = "") -> Change:
    """A link out of the folder in the place of a file, or beside them."""

    def change(place: Place) -> None:
        (place.folder / name).unlink(missing_ok=True)
        (place.folder / name).parent.mkdir(exist_ok=True)
        (place.folder / name).symlink_to(place.outside / (to or name))

    return change


def piped(name: str) -> Change:
    """A pipe, which whoever opens it waits at for ever."""

    def change(place: Place) -> None:
        (place.folder / name).unlink(missing_ok=True)
        os.mkfifo(place.folder / name)

    return change


def blobs_of_others(place: Place) -> None:
    """A folder that says it is the hub's, and whose blobs are somebody else's files."""
    repository = place.folder.parent / f"models--false--{place.folder.name}"
    snapshot = repository / "snapshots" / "main"
    snapshot.parent.mkdir(parents=True)
    place.folder.rename(snapshot)
    (repository / "blobs").symlink_to(place.outside)
    for file in sorted(snapshot.iterdir()):
        file.unlink()
        file.symlink_to(Path("..", "..", "blobs", file.name))
    place.folder.symlink_to(snapshot)


def indexed(place: Place) -> None:
    """Weights in several files, one of which is somebody else's."""
    found, _ = parts(place)
    place.weights.unlink()
    names = {name: f"../{place.outside.name}/model.safetensors" for name in found if name != "__metadata__"}
    (place.folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def looped(place: Place) -> None:
    (place.folder / "vocab.txt").symlink_to("vocab.txt")


def pickled_alone(place: Place) -> None:
    place.weights.unlink()
    pickles(place)


LIES: Mapping[str, Change] = {
    "100 MB of header in a small file": raw_header(b"{}", 100_000_000),
    "100 MB of header that are there": raw_header(b"{}", 99_999_999, 100_000_100),
    "more header than the library takes": raw_header(b"{}", 100_000_001, 100_000_200),
    "a header longer than numbers go": raw_header(b"{}", 2**64 - 1),
    "a header of no byte": raw_header(b"", 0),
    "no tensor": raw_header(b"{}"),
    "a header that is no text": raw_header(b"\xff\xfe\x00\x01"),
    "a header that is no JSON": raw_header(b'{"a": '),
    "a header that is a list": raw_header(b"[]"),
    "a deep header": raw_header(b'{"a":' * 100_000),
    "an entry that is a number": header(lambda found, size: found.update({"classifier.bias": 1})),
    "offsets behind the end": header(lambda found, size: entries(found)[-1].update(data_offsets=[size, 2 * size])),
    "offsets that overlap": header(overlap),
    "offsets from end to begin": first(data_offsets=[128, 0]),
    "offsets below 0": first(data_offsets=[-4, 0]),
    "offsets of a fraction": first(data_offsets=[0.5, 4]),
    "offsets beyond all numbers": first(data_offsets=[0, 2**64]),
    "bytes of no tensor": header(lambda found, size: None, b"0" * 64),
    "a shape of more bytes": first(shape=[10**6, 10**6]),
    "a shape beyond all numbers": first(shape=[2**40, 2**40]),
    "a dtype that nobody has": first(dtype="PICKLE"),
    "a name that stands twice": twice,
    "notes that are no texts": header(lambda found, size: found.update(__metadata__={"format": ["pt"]})),
    "an empty file": lambda place: place.weights.write_bytes(b""),
    "seven bytes": lambda place: place.weights.write_bytes(b"\x07" * 7),
    "half of the file": lambda place: os.truncate(place.weights, place.weights.stat().st_size // 2),
    "a pickle by the name of weights": lambda place: place.weights.write_bytes(pickle.dumps(Runs(place.mark))),
    "a folder by the name of weights": lambda place: (place.weights.unlink(), place.weights.mkdir()),
    "pickles in the place of weights": pickled_alone,
}
OTHERS: Mapping[str, Change] = {
    **{f"link: {name}": linked(name) for name in ("config.json", "tokenizer.json", "model.safetensors")},
    "link: a vocabulary more": linked("vocab.txt", "tokenizer.json"),
    "link: a folder": linked("additional_chat_templates", "."),
    "link: in a folder": linked("onnx/model.onnx", "model.safetensors"),
    "link: to nothing": linked("vocab.txt", "nothing"),
    "link: to itself": looped,
    "link: blobs of others": blobs_of_others,
    "link: an export's manifest": linked("rankwright_onnx.json", "config.json"),
    "pipe: config.json": piped("config.json"),
    "pipe: model.safetensors": piped("model.safetensors"),
    "pipe: beside": piped("vocab.txt"),
    "an index of others' weights": indexed,
}


def pickles(place: Place) -> None:
    """Every name under which some library would unpickle."""
    code = pickle.dumps(Runs(place.mark))
    for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin", "model.pkl", "model.joblib", "scaler.sav"):
        (place.folder / name).write_bytes(code)
    np.save(place.folder / "weights.npy", np.array([Runs(place.mark)], dtype=object), allow_pickle=True)


def programs(place: Place) -> None:
    """Names that some library would import, and settings that ask for them."""
    code = f"import os; os.mkdir({str(place.mark)!r})\nclass Own: pass\n"
    for name in ("__init__", "own", "handler", "modeling_bert", "tokenization_bert", "sitecustomize", "conftest"):
        (place.folder / f"{name}.py").write_text(code)
    foreign = [{"idx": 0, "name": "0", "path": "", "type": "own.Own"}]
    (place.folder / "modules.json").write_text(json.dumps(foreign))
    entry(place, "config.json", custom_pipelines={"rank": {"impl": "own.Own"}}, sentence_transformers={"x": "own.Own"})
    entry(place, "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", "own.Own"]})
    entry(place, "tokenizer_config.json", chat_template="{{ ''.__class__.__mro__[1].__subclasses__() }}")


def entry(place: Place, name: str, **entries: Any) -> None:
    file = place.folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def own_links(place: Place) -> None:
    (place.folder / "parts").mkdir()
    place.weights.rename(place.folder / "parts" / "first.safetensors")
    place.weights.symlink_to(Path("parts") / "first.safetensors")


def of_the_hub(place: Place) -> None:
    """As the hub's cache keeps a model: every file is a link to one that is called by its digest."""
    blobs = place.folder.parent / f"models--{place.folder.name}" / "blobs"
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(place.folder.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(blobs / str(number))


def of_a_moved_hub(place: Place) -> None:
    """The same where the folder of the repository is a link to another disk, under another name."""
    moved, shown = place.folder.parent / f"moved {place.folder.name}", place.folder.parent / f"hub {place.folder.name}"
    blobs, snapshot = moved / "blobs", moved / "snapshots" / "main"
    blobs.mkdir(parents=True)
    snapshot.parent.mkdir()
    place.folder.rename(snapshot)
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(Path("..", "..", "blobs", str(number)))
    shown.mkdir()
    (shown / "models--a--b").symlink_to(moved)
    place.folder.symlink_to(shown / "models--a--b" / "snapshots" / "main")


HARMLESS: Mapping[str, Change] = {
    "pickles beside the weights": pickles,
    "programs beside the weights": programs,
    "links inside the folder": own_links,
    "links into the hub's cache": of_the_hub,
    "links into a cache elsewhere": of_a_moved_hub,
}
CASES = {**LIES, **OTHERS, **HARMLESS}


@dataclass(frozen=True)
class Opened:
    """What opening the folders came to."""

    said: Mapping[str, Any]
    """Scores, or the words of a ModelError."""
    seconds: Mapping[str, float]
    """Of the processor."""
    seen: Mapping[str, list[str]]
    """What the hook saw of each that may not be."""
    plain: list[float]
    grown: float
    """Mebibytes."""
    proof: list[str]
    folders: Mapping[str, Path]
    ran: list[str]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    root = tmp_path_factory.mktemp("folders").resolve()
    here, outside = root / "here", root / "outside"
    plain = save_cross_encoder(here / "plain")
    shutil.copytree(plain, outside)
    (outside / "proof").touch()
    places = {name: Place(here / str(n), outside, root / f"ran {n}") for n, name in enumerate(CASES)}
    for name, place in places.items():
        shutil.copytree(plain, place.folder)
        CASES[name](place)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
    folders = {name: place.folder for name, place in places.items()}
    done = subprocess.run(
        [sys.executable, "-c", OPENER, *map(str, (here, outside, outside / "proof", plain, *folders.values()))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, grown, proof = json.loads(done.stdout.splitlines()[-1])
    said, seconds, seen = ({n: found[str(f)][i] for n, f in folders.items()} for i in range(3))
    ran = [name for name, place in places.items() if place.mark.exists()]
    return Opened(said, seconds, seen, found[str(plain)][0], grown, proof, folders, ran)


@pytest.mark.parametrize("name", [*LIES, *OTHERS])
def test_a_folder_that_lies_or_reaches_out_is_named(opened: Opened, name: str) -> None:
    said = opened.said[name]
    assert isinstance(said, str), f"it was opened, and scored {said}"
    assert str(opened.folders[name]) in said
    assert "wanted" in said
    assert ("files of its own" in said or "files in the folder" in said) == (name in OTHERS)


@pytest.mark.parametrize("name", ["link: to nothing", "link: to itself"])
def test_a_link_that_leads_nowhere_is_told_as_such(opened: Opened, name: str) -> None:
    assert "holds vocab.txt, which is a link that leads to nothing; wanted" in opened.said[name]


def test_a_tree_of_links_opens_where_they_are_to_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As DVC, git-annex and Nix lay out what they keep; what is no file, and a link to nothing, stay refused."""
    store, folder = save_cross_encoder(tmp_path / "store"), tmp_path / "model"
    folder.mkdir()
    for file in store.iterdir():
        (folder / file.name).symlink_to(file)
    with pytest.raises(ModelError, match=f"leads out of the folder; .* set {FOLLOW}=1"):
        rankwright.load(folder)
    monkeypatch.setenv(FOLLOW, "0")
    with pytest.raises(ModelError, match="leads out of the folder"):
        rankwright.load(folder)
    monkeypatch.setenv(FOLLOW, "1")
    asked = ("rain", ["moon", "a river of rain"])
    assert rankwright.load(folder).rerank(*asked).scores == rankwright.load(store).rerank(*asked).scores
    os.mkfifo(tmp_path / "pipe")
    for target, said in (("pipe", "is no file"), ("gone", "is a link that leads to nothing")):
        (folder / "vocab.txt").unlink(missing_ok=True)
        (folder / "vocab.txt").symlink_to(tmp_path / target)
        with pytest.raises(ModelError, match=f"vocab.txt, which {said}"):
            rankwright.load(folder)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_lies_beside_a_model_changes_nothing(opened: Opened, name: str) -> None:
    assert opened.said[name] == opened.plain


def test_no_code_runs_and_no_file_of_others_is_read(opened: Opened) -> None:
    assert {name: seen for name, seen in opened.seen.items() if seen} == {}
    assert opened.ran == []


def test_it_takes_a_second_and_little_memory(opened: Opened) -> None:
    assert {name: spent for name, spent in opened.seconds.items() if spent > SECONDS} == {}
    assert opened.grown <= MEBIBYTES


def test_the_hook_sees_what_it_is_there_for(opened: Opened) -> None:
    assert set(opened.proof) == {"exec", "compile", "pickle.find_class", "subprocess.Popen", "open"} | (
        set(opened.proof) & {"os.fork", "os.posix_spawn"}
    )
