"""Exports in ONNX Runtime: equal scores, nobody moves another's score, no PyTorch, bad folders named."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import re
import shutil
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException
from packaging.utils import canonicalize_name

import rankwright
from rankwright.cli.app import run
from rankwright.errors import (
    ConfigurationError,
    DataError,
    MissingDependencyError,
    ModelError,
    RankwrightError,
    ResourceNotFoundError,
)
from rankwright.rerankers import choice, load
from rankwright.rerankers import onnx_folder as folders
from rankwright.rerankers.cross_encoder import CrossEncoderReranker
from rankwright.rerankers.exporting import BOUNDS, DEMO_QUESTIONS, Bound, Parity, cached_export, export
from rankwright.rerankers.onnx import TOKENS_AT_ONCE, OnnxReranker, even_batches
from rankwright.rerankers.ranking import render
from rankwright.rerankers.tokens import Pair
from rankwright.rerankers.windows import shortened
from rankwright.types import Document, Example, Query, RerankRequest
from tests.cli_kit import MAIN, ROOT, one_line, run_process
from tests.load_kit import process_of
from tests.needs import brought_by, requirements_of
from tests.served import READY_SECONDS, Served
from tests.server_kit import started
from tests.tiny_bert import save_cross_encoder

TOLERANCE = 1e-5
"""How far a score may move where nothing of its own pair moved: in both forms, because every pair is computed alone."""
FP32 = 1e-5
"""How far fp32 in ONNX Runtime may be from fp32 in PyTorch on the models here."""
WORDS = ("rain", "moon", "river", "the", "of", "key", "door", "x1", "(y)", "z!")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cross_encoder(tmp_path_factory.mktemp("onnx") / "tiny")


@pytest.fixture(scope="module")
def exported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both forms of the tiny model, made once."""
    folder = tmp_path_factory.mktemp("onnx") / "exported"
    reranker: Any = load(source)
    reranker.temperature, reranker.threshold = 2.0, 0.25
    # Weights far from trained ones: rounding costs more than a trained model would bear.
    export(reranker, folder, examples(), bounds={"fp32": BOUNDS["fp32"], "int8": Bound(2.0, 1.0)})
    return folder


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    """An export that a test may damage."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def text(chance: random.Random, most: int = 8) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(chance.randint(1, most)))


def request(chance: random.Random, documents: int, most: int = 8) -> RerankRequest:
    found = tuple(Document(str(i), text(chance, most), chance.choice(("", "Moon {text}"))) for i in range(documents))
    return RerankRequest(Query("q", text(chance)), found)


def examples() -> list[Example]:
    chance = random.Random(1)
    return [Example(Query(f"q{i}", text(chance)), request(chance, 5).documents, (), {str(i % 5): 1}) for i in range(6)]


def scores(scorer: Any, requests: Sequence[RerankRequest]) -> list[float]:
    return [score for scored in scorer.score_batch(requests) for score in scored.scores]


class Cramped:
    """A session that has room for one pair at a time."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def run(self, names: None, batch: dict[str, np.ndarray]) -> Any:
        if len(batch["input_ids"]) > 1:
            raise RuntimeException("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 64")
        return self.session.run(names, batch)


def test_memory_that_runs_out_halves_a_servers_batch(exported: Path) -> None:
    scorer: Any = load(exported)
    asked = RerankRequest(Query("q", "moon"), tuple(Document(str(i), word) for i, word in enumerate(WORDS[:6])))
    wanted = scorer.score_batch([asked])[0].scores
    with started(scorer) as engine:
        scorer._session = Cramped(scorer._session)
        reply = engine.submit("stub", [asked]).result(20)
        assert engine.counts["splits"] > 0
    assert (reply.scored[0].scores, reply.failed) == (pytest.approx(wanted, abs=TOLERANCE), {})


def test_memory_that_runs_out_is_told_in_words(exported: Path) -> None:
    """As every command tells it, and as a backend that `auto` leaves out."""
    scorer: Any = load(exported)
    scorer._session = Cramped(scorer._session)
    asked = tuple(Document(str(i), word) for i, word in enumerate(WORDS))
    with pytest.raises(ModelError, match=r"^Memory ran out in model .*; wanted room for \d+ pairs of \d+ tokens\."):
        scorer.score_batch([RerankRequest(Query("q", "moon"), asked)])


# --- equal to the model ----------------------------------------------------------------------------------------------


def test_fp32_scores_tokens_and_cuts_are_those_of_pytorch(source: Path, exported: Path) -> None:
    """Long texts among them: query or passage is the one that is cut."""
    torch_model, onnx_model = load(source), load(exported)
    chance = random.Random(0)
    requests = [request(chance, n, most) for n, most in ((7, 8), (0, 8), (3, 60), (1, 1))]
    requests.append(RerankRequest(Query("long", "river " * 80), (Document("a", "rain"), Document("b", "moon " * 80))))
    requests.append(RerankRequest(Query("", ""), (Document("a", ""),)))
    for wanted, found in zip(torch_model.score_batch(requests), onnx_model.score_batch(requests), strict=True):
        assert found.scores == pytest.approx(wanted.scores, abs=FP32)
        assert (found.tokens, found.cut) == (wanted.tokens, wanted.cut)
    assert any(cut for scored in onnx_model.score_batch(requests) for cut in scored.cut)
    assert max(n for scored in onnx_model.score_batch(requests) for n in scored.tokens) == torch_model.max_length


def test_the_exported_reranker_says_what_the_model_says(source: Path, exported: Path) -> None:
    model, found = load(source), load(exported)
    assert (found.max_length, found.temperature, found.threshold) == (model.max_length, 2.0, 0.25)
    assert (found.name, load(exported, "onnx-int8").name) == (f"{exported}|onnx", f"{exported}|onnx-int8")
    documents = ["rain", "moon moon", "river " * 70]
    assert found.rerank("moon", documents).doc_ids == model.rerank("moon", documents).doc_ids
    assert (found.pairs_seen, found.pairs_cut) == (3, 1)
    assert "'2'" in found.first_cut
    assert load(exported, max_length=16).max_length == 16
    assert load(exported, max_length=9999).max_length == model.max_length


def test_int8_is_another_graph_with_nearly_the_same_scores(source: Path, exported: Path) -> None:
    requests = [request(random.Random(seed), 20) for seed in range(5)]
    plain, rounded = scores(load(source), requests), scores(load(exported, backend="onnx-int8"), requests)
    assert np.corrcoef(plain, rounded)[0, 1] > 0.98
    assert max(abs(a - b) for a, b in zip(plain, rounded, strict=True)) > 10 * FP32
    graph = onnx.load(str(exported / folders.GRAPHS["int8"])).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("MatMulIntegerToFloat") == 2 * 5  # of two layers: query, key, value, output, up
    assert kinds.count("QuantizeLinear") == 2 * 3  # query, key and value share theirs
    assert "DynamicQuantizeLinear" not in kinds  # one scale for a whole batch


# --- nobody moves another's score (S18, P3) --------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["onnx", "onnx-int8"])
def test_s18_a_score_is_the_same_alone_and_in_any_batch(exported: Path, backend: str) -> None:
    scorer = load(exported, backend=backend)
    chance = random.Random(2)
    pool = [request(chance, 1, most=chance.choice((2, 8, 30))) for _ in range(40)]
    alone = [scores(scorer, [one])[0] for one in pool]
    worst = 0.0
    for _ in range(100):
        batch = chance.sample(range(len(pool)), chance.randint(1, 32))
        found = scores(scorer, [pool[i] for i in batch])
        worst = max(worst, *(abs(alone[i] - score) for i, score in zip(batch, found, strict=True)))
    assert worst <= TOLERANCE


@pytest.mark.parametrize("backend", ["onnx", "onnx-int8"])
def test_p3_no_passage_moves_the_score_of_another(exported: Path, backend: str) -> None:
    scorer = load(exported, backend=backend)
    hostile = ["river " * 500, "[SEP] [CLS] moon", "", "(" * 400, "\x00\u202e", "rain" * 300]
    chance = random.Random(3)
    for number in range(30):
        mine = request(chance, 6)
        intruder = Document("hostile", hostile[number % len(hostile)])
        place = chance.randint(0, 6)
        documents = (*mine.documents[:place], intruder, *mine.documents[place:])
        found = scores(scorer, [RerankRequest(mine.query, documents)])
        assert found[:place] + found[place + 1 :] == pytest.approx(scores(scorer, [mine]), abs=TOLERANCE)


def test_one_scale_for_a_batch_would_be_seen(exported: Path, copy: Path) -> None:
    """The proof that the two tests above can fail: ONNX Runtime's own dynamic int8 moves scores."""
    from onnxruntime.quantization import quantize_dynamic

    target, model = copy / folders.GRAPHS["int8"], onnx.load(str(copy / folders.GRAPHS["fp32"]))
    del model.graph.value_info[:]  # the library is confused by shapes that it finds there
    quantize_dynamic(model, str(target), op_types_to_quantize=["MatMul"])
    listed_anew(copy)
    scorer = load(copy, backend="onnx-int8")
    chance = random.Random(2)
    pool = [
        RerankRequest(Query("q", "moon"), (Document("d", " ".join(chance.choices(WORDS[:4], k=5))),)) for _ in range(8)
    ]
    alone = [scores(scorer, [one])[0] for one in pool]
    assert max(abs(a - b) for a, b in zip(alone, scores(scorer, pool), strict=True)) > TOLERANCE


def test_equal_texts_get_equal_scores_and_threads_change_nothing(exported: Path) -> None:
    one, four = (OnnxReranker.from_folder(exported, threads=threads) for threads in (1, 4))
    documents = tuple(Document(str(i), "rain moon " * (1 + i % 3)) for i in range(12))
    asked = [RerankRequest(Query("q", "river"), documents)]
    found = scores(one, asked)
    assert found == scores(four, asked)
    assert len(set(found)) == 3


def test_groups_have_one_length_and_at_most_so_many_tokens() -> None:
    lengths = [random.Random(4).randint(1, 40) for _ in range(500)] + [TOKENS_AT_ONCE * 2]
    groups = even_batches(lengths, TOKENS_AT_ONCE)
    assert sorted(position for group in groups for position in group) == list(range(len(lengths)))
    for group in groups:
        assert len({lengths[position] for position in group}) == 1
        assert len(group) == 1 or len(group) * lengths[group[0]] <= TOKENS_AT_ONCE


@pytest.mark.parametrize("backend", ["torch", "onnx"])
@pytest.mark.parametrize("most", [1, 3, 8, 500])
def test_documents_are_shortened_to_so_many_tokens(source: Path, exported: Path, backend: str, most: int) -> None:
    scorer: Any = load(source if backend == "torch" else exported)
    documents = request(random.Random(7), 30, most=30).documents

    def tokens(text: str) -> int:
        return len(scorer.spans([text])[0])

    found = shortened(scorer, documents, most)
    assert any(new is not old for old, new in zip(documents, found, strict=True)) == (most < 500)
    for old, new in zip(documents, found, strict=True):
        title = tokens(render(scorer.template, dataclasses.replace(old, text="")))
        if tokens(render(scorer.template, old)) <= most:
            assert new is old
        else:
            assert old.text.startswith(new.text)
            assert tokens(new.text) == max(0, most - title)
    assert shortened(scorer, [], most) == []


# --- without PyTorch -------------------------------------------------------------------------------------------------

LEAN = """
import json, sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "onnx"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Nothing())
import rankwright
ranking = rankwright.load(sys.argv[1], backend=sys.argv[2]).rerank("moon", ["rain", "moon moon"])
heavy = [name for name in ("torch", "transformers", "onnx", "scipy", "openai") if name in sys.modules]
print(json.dumps([ranking.doc_ids, ranking.scores, heavy]))
"""


@pytest.mark.parametrize("backend", ["onnx", "onnx-int8", "auto"])
def test_an_export_loads_and_scores_where_pytorch_is_not_installed(
    exported: Path, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANKWRIGHT_CACHE", str(tmp_path))
    done = run_process(str(exported), backend, cwd=tmp_path, code=LEAN)
    assert done.returncode == 0, done.stderr
    doc_ids, found, heavy = json.loads(done.stdout)
    wanted = load(exported, backend=backend).rerank("moon", ["rain", "moon moon"])
    assert (tuple(doc_ids), tuple(found), heavy) == (wanted.doc_ids, wanted.scores, [])
    assert len(list(tmp_path.glob("backend-*.json"))) == (backend == "auto")  # one measurement for both


WITHOUT = (
    LEAN.partition("import rankwright")[0]
    + """
import rankwright
for path, backend in (("reference", "torch"), (sys.argv[1], "auto"), (sys.argv[1], "onnx")):
    try:
        rankwright.load(path, backend)
    except rankwright.errors.MissingDependencyError as error:
        print(error)
"""
)


def test_a_model_of_pytorch_says_what_to_install_where_there_is_none(source: Path, tmp_path: Path) -> None:
    done = run_process(str(source), cwd=tmp_path, code=WITHOUT)
    assert done.returncode == 0, done.stderr
    extras = ("train,embedded", "train", "train")
    assert done.stdout.splitlines() == [
        f"Model '{path}' needs torch, which is not installed; run pip install \"rankwright[{extra}]\". A folder of "
        'rankwright export needs pip install "rankwright[onnx]" alone.'
        for path, extra in zip(("reference", source, source), extras, strict=True)
    ]


COMMAND_WITHOUT = LEAN.partition("import rankwright")[0] + MAIN


def test_the_command_line_reranks_with_an_export_without_pytorch(exported: Path, tmp_path: Path) -> None:
    arguments = ["rerank", "moon", "rain", "moon moon", "--model", str(exported), "--output", "json"]
    done = run_process(*arguments, cwd=tmp_path, code=COMMAND_WITHOUT)
    assert done.returncode == 0, done.stderr
    assert sorted(row["doc_id"] for row in json.loads(done.stdout)["results"]) == ["0", "1"]


def with_the_extra_alone() -> str:
    """Code after which nothing can be imported but what `pip install "rankwright[onnx]"` brings."""
    brought = brought_by(requirements_of("onnx"))
    found = packages_distributions().items()
    hidden = {name for name, of in found if brought.isdisjoint(map(canonicalize_name, of))} - {"rankwright"}
    assert {"torch", "transformers", "onnx"} <= hidden
    return LEAN.partition("import rankwright")[0].replace('("torch", "transformers", "onnx")', repr(hidden))


BY_THE_VERB = (
    LEAN.partition("import rankwright")[0] + "import rankwright; rankwright.serve(sys.argv[2], port=int(sys.argv[4]))"
)


@pytest.mark.parametrize("how", ["command", "verb"])
def test_an_export_is_served_without_pytorch_until_a_signal_ends_it(exported: Path, how: str, tmp_path: Path) -> None:
    """The command by what the extra onnx brings, and by nothing else that is installed here."""
    code = BY_THE_VERB if how == "verb" else with_the_extra_alone() + MAIN

    def command(port: int) -> list[str]:
        return [sys.executable, "-c", code, "serve", str(exported), "--port", str(port)]

    documents = ["rain", "moon moon"]
    with Served(command, tmp_path, "/ready", {"PYTHONPATH": str(ROOT), "RANKWRIGHT_API_KEY": ""}) as server:
        body = json.dumps({"query": "moon", "documents": documents}).encode()
        with urllib.request.urlopen(f"{server.url}/v1/rerank", body, timeout=30) as answer:
            results = json.loads(answer.read())["results"]
        with urllib.request.urlopen(f"{server.url}/info", timeout=30) as answer:
            (info,) = json.loads(answer.read())["models"]
        process_of(server).send_signal(signal.SIGTERM)
        assert process_of(server).wait(30) == 0
    assert server.took <= READY_SECONDS
    wanted = load(exported).rerank("moon", documents)
    assert tuple(str(result["index"]) for result in results) == wanted.doc_ids
    assert tuple(result["score_raw"] for result in results) == wanted.scores
    assert (info["name"], info["backend"]) == (exported.name, "onnx")


@pytest.mark.parametrize("package", ["onnxruntime", "tokenizers"])
def test_a_missing_package_is_answered_with_its_extra(
    exported: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=re.escape(f'need {package}; run pip install "rankwright[onnx]"')):
        load(exported)


# --- auto ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(choice.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def slow_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = OnnxReranker.score_tokens

    def slowly(self: OnnxReranker, pairs: Sequence[Pair]) -> list[float]:
        time.sleep(0.1 if self.form == "fp32" else 0.0)
        return plain(self, pairs)

    monkeypatch.setattr(OnnxReranker, "score_tokens", slowly)


@pytest.mark.usefixtures("slow_fp32")
def test_auto_takes_the_faster_form_of_an_export_and_remembers_it(
    exported: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(choice, "TOLERANCE", 10.0)  # weights far from trained ones, as above
    first = load(exported, backend="auto")
    kept = json.loads(next(cache.iterdir()).read_text())
    assert (first.name, kept["backend"]) == (f"{exported}|onnx-int8", "onnx-int8")
    assert (set(kept["seconds"]), kept["left out"]) == ({"onnx", "onnx-int8"}, {})
    gain = kept["seconds"]["onnx"] / kept["seconds"]["onnx-int8"]
    told = capsys.readouterr().err
    assert told.startswith(f"{exported}: backend onnx-int8, {gain:.1f} times onnx on {choice.processor()}")
    relied = choice.relied_on("onnx-int8", choice.instruction_sets())
    assert f"(relies on {', '.join(relied)}" in told
    monkeypatch.setattr(choice, "_measured", None)  # a second measurement would fail
    again = load(exported, backend="auto", windows="max")
    assert again.name == f"{exported}|onnx-int8|windows-max"
    assert capsys.readouterr().err == told


@pytest.mark.usefixtures("slow_fp32", "cache")
def test_auto_leaves_a_form_out_whose_scores_differ(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(choice, "TOLERANCE", 1e-6)
    found, wanted = load(exported, backend="auto"), load(exported)
    assert found.rerank("moon", ["rain", "moon"]) == wanted.rerank("moon", ["rain", "moon"])
    told = capsys.readouterr().err
    assert f"{exported}: backend onnx, the fastest that agrees on " in told
    assert "; onnx-int8 was left out: its scores differ by up to" in told


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("missing", "backend"), [("int8", "onnx"), ("fp32", "onnx-int8")])
def test_auto_opens_an_export_of_one_form(
    copy: Path, missing: str, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = dict(folders.read_manifest(copy).files)
    del files[folders.GRAPHS[missing]]
    entry(copy, files=files)
    assert load(copy, backend="auto").name == f"{copy}|{backend}"
    told = capsys.readouterr().err
    assert f"{copy}: backend {backend}, the " in told
    left = f"; onnx-int8 was left out: Model folder {copy} has the forms fp32; wanted int8" in told
    assert left == (missing == "int8")


def test_what_is_remembered_of_an_export_hangs_on_its_files_and_on_threads(exported: Path, copy: Path) -> None:
    rewritten(copy, lambda model: setattr(model, "doc_string", "another"))
    found = [OnnxReranker.from_folder(path, threads=n) for path in (exported, copy) for n in (1, 2)]
    assert len({choice._key(scorer, ["onnx"]) for scorer in found}) == 4
    again = OnnxReranker.from_folder(exported, threads=1)
    assert choice._key(again, ["onnx"]) == choice._key(found[0], ["onnx"]) != choice._key(again, ["onnx", "onnx-int8"])


# --- the export itself -----------------------------------------------------------------------------------------------


def test_the_record_of_an_export_is_true(source: Path, exported: Path) -> None:
    manifest = folders.read_manifest(exported)
    assert manifest.forms == ["fp32", "int8"]
    for name, digest in manifest.files.items():
        assert hashlib.sha256((exported / name).read_bytes()).hexdigest() == digest
    requests = [RerankRequest(example.query, example.candidates) for example in examples()]
    for form, backend in (("fp32", "onnx"), ("int8", "onnx-int8")):
        before, after = scores(load(source), requests), scores(load(exported, backend=backend), requests)
        parity = Parity(**manifest.parity[form])
        assert parity.pairs == len(before) == 30
        assert parity.largest_error == pytest.approx(
            max(abs(a - b) for a, b in zip(before, after, strict=True)), abs=1e-6
        )
        assert parity.spread == pytest.approx(np.std(before), rel=1e-4)
    assert manifest.parity["fp32"]["rank_correlation"] == pytest.approx(1)


def test_a_form_beyond_its_bound_leaves_nothing_behind(
    source: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copied(reranker: Any, inputs: Any, path: Path) -> None:  # the slow part has been done for this file
        shutil.copy(exported / folders.GRAPHS["fp32"], path)

    monkeypatch.setattr("rankwright.rerankers.exporting._write_graph", copied)
    reranker: Any = load(source)
    with pytest.raises(ModelError, match=r"int8 form of .* differs by .* wanted at most .*--form fp32"):
        export(reranker, tmp_path / "out", examples(), bounds={"fp32": BOUNDS["fp32"], "int8": Bound(1e-6, 1.0)})
    assert list(tmp_path.iterdir()) == []


def test_bounds_hold_scores_and_ranking() -> None:
    good = Parity(10, 2, 0.01, 1.0, 1.0, 0.8, 0.8)
    bound = Bound(0.1, 0.01)
    assert good.beyond(bound) == ""
    assert "differs by 0.2" in dataclasses.replace(good, largest_error=0.2).beyond(bound)
    assert "differs by nan" in dataclasses.replace(good, largest_error=float("nan")).beyond(bound)
    assert "nDCG@10 of 0.7800" in dataclasses.replace(good, ndcg_after=0.78).beyond(bound)
    assert dataclasses.replace(good, ndcg_after=0.9).beyond(bound) == ""
    assert dataclasses.replace(good, ndcg_before=None, ndcg_after=None).beyond(bound) == ""


def test_what_cannot_be_exported_is_named(source: Path, exported: Path, tmp_path: Path) -> None:
    reranker: Any = load(source)
    with pytest.raises(ConfigurationError, match="holds something"):
        export(reranker, exported, examples())
    with pytest.raises(ConfigurationError, match="Forms are int4"):
        export(reranker, tmp_path / "out", examples(), forms=["int4"])
    with pytest.raises(ConfigurationError, match="is a OnnxReranker; wanted a cross-encoder"):
        export(load(exported), tmp_path / "out", examples())  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match="fewer than 2 candidates"):
        export(reranker, tmp_path / "out", [Example(Query("q", "x"))])
    assert not (tmp_path / "out").exists()


def test_load_exports_once_into_the_cache(
    source: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[str] = []

    def fake(reranker: CrossEncoderReranker, folder: Path, *, forms: Sequence[str]) -> None:
        made.append(forms[0])
        shutil.copytree(exported, folder)

    monkeypatch.setenv("RANKWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("rankwright.rerankers.exporting.export", fake)
    first = load(source, backend="onnx")
    assert first.name == f"{source}|onnx"
    assert "Exporting" in caplog.text
    assert load(source, backend="onnx").rerank("moon", ["rain"]).scores == first.rerank("moon", ["rain"]).scores
    assert made == ["fp32"]
    load(source, backend="onnx-int8")
    load(source, backend="onnx", max_length=32)
    assert made == ["fp32", "int8", "fp32"]
    changed = Path(shutil.copytree(source, tmp_path / "changed"))
    (changed / "config.json").write_text((changed / "config.json").read_text() + "\n")
    assert cached_export(str(changed), "fp32") != cached_export(str(source), "fp32")
    with pytest.raises(ResourceNotFoundError, match="rankwright export owner/name --to DIR"):
        load("owner/name", backend="onnx")


def test_what_does_not_fit_onnx_runtime_is_refused(source: Path, exported: Path) -> None:
    with pytest.raises(ConfigurationError, match="device 'cuda' and ONNX Runtime"):
        load(exported, device="cuda")
    with pytest.raises(ConfigurationError, match="kind 'yes-no'"):
        load(exported, kind="yes-no")
    with pytest.raises(ConfigurationError, match="Backend is 'tensorrt'; wanted one of"):
        load(source, backend="tensorrt")


def test_the_command_writes_both_forms_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: Path, capsys: pytest.CaptureFixture[str], source: Path
) -> None:
    """The export itself is replaced: it is made once for this file."""

    def fake(reranker: Any, folder: Path, rows: Any, *, forms: Sequence[str], tell: Callable[[str], None]) -> Any:
        assert (reranker.max_length, rows, list(forms)) == (32, None, ["fp32", "int8"])
        tell("told")
        shutil.copytree(exported, folder)
        return folders.read_manifest(folder)

    monkeypatch.setattr("rankwright.rerankers.exporting.export", fake)
    target = tmp_path / "out"
    command = ["export", str(source), "--to", str(target), "--for", "cpu", "--max-length", "32"]
    assert run([*command, "--output", "json"]) == 0
    printed = capsys.readouterr()
    record = one_line(printed.out)
    assert "told" in printed.err
    assert record["files"] == {name: (target / name).stat().st_size for name in record["files"]}
    assert set(record["files"]) == {*folders.read_manifest(target).files, folders.MANIFEST, "config.json"}
    assert record["parity"] == folders.read_manifest(exported).parity
    shutil.rmtree(target)
    assert run(command) == 0
    printed = capsys.readouterr().out
    assert "onnx/model_int8.onnx" in printed
    parity = record["parity"]["int8"]
    share = parity["largest_error"] / parity["spread"]
    assert f"int8: largest error {share:.2g} standard deviations of the scores (allowed 0.3), rank" in printed
    assert run(["export", str(source), "--to", str(tmp_path / "gpu"), "--for", "gpu"]) == 2
    assert "--for is 'gpu'; wanted cpu" in capsys.readouterr().err
    assert run(["export", str(target), "--to", str(tmp_path / "again")]) == 2
    assert run(["train", "--data", "x.jsonl", "--model", str(target)]) != 0


def test_the_command_exports_a_model(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is replaced here: the graph is made, compared on the bundled questions, and written."""
    target = tmp_path / "out"
    command = ["export", str(source), "--to", str(target), "--for", "cpu", "--form", "fp32", "--max-length", "32"]
    assert run([*command, "--output", "json"]) == 0
    record = one_line(capsys.readouterr().out)
    assert record["files"] == {path: (target / path).stat().st_size for path in record["files"]}
    parity = record["parity"]["fp32"]
    assert parity["largest_error"] <= BOUNDS["fp32"].error * parity["spread"]
    assert (list(record["parity"]), parity["questions"]) == (["fp32"], DEMO_QUESTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # the draft has become it
    requests = [request(random.Random(8), 9, most=30)]
    found, wanted = load(target), load(source, max_length=32)
    assert scores(found, requests) == pytest.approx(scores(wanted, requests), abs=FP32)
    assert (found.max_length, load(target, "onnx").name) == (32, f"{target}|onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_an_export_without_its_extra_is_answered_with_it(
    source: Path, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANKWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, package, None)
    words = 'Export needs onnx and onnxscript; run pip install "rankwright[export]".'
    assert run(["export", str(source), "--to", str(tmp_path / "out"), "--for", "cpu"]) == 3
    assert capsys.readouterr().err.endswith(f"rankwright: {words}\n")
    with pytest.raises(MissingDependencyError, match=re.escape(words)):
        load(source, backend="onnx")
    assert list(tmp_path.iterdir()) == []


# --- bad folders (F1) ------------------------------------------------------------------------------------------------


def listed_anew(folder: Path) -> None:
    """The manifest of whoever changed the files and knows how to write one."""
    manifest = folders.read_manifest(folder)
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in manifest.files}
    dataclasses.replace(manifest, files=files).write(folder)


def rewritten(folder: Path, change: Callable[[Any], None]) -> None:
    """Changes the fp32 graph, and lists it anew."""
    path = folder / folders.GRAPHS["fp32"]
    model = onnx.load(str(path))
    change(model)
    path.write_bytes(model.SerializeToString())
    listed_anew(folder)


def entry(folder: Path, **changes: Any) -> None:
    path = folder / folders.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def external(location: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return change


def hidden_operator(model: Any) -> None:
    """In a branch that is never taken."""
    inner = onnx.helper.make_graph([onnx.helper.make_node("Run", [], ["y"], domain="evil")], "g", [], [])
    model.graph.node.append(onnx.helper.make_node("If", ["logits"], ["z"], then_branch=inner, else_branch=inner))


def two_outputs(model: Any) -> None:
    model.graph.output.append(onnx.helper.make_tensor_value_info(model.graph.node[-2].output[0], 1, None))


def other_input(model: Any) -> None:
    model.graph.input.append(onnx.helper.make_tensor_value_info("pixels", 1, ["a"]))


def truncated(folder: Path, name: str, keep: float = 0.5) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "graph changed": (lambda f: truncated(f, "onnx/model.onnx"), "has sha256"),
    "graph cut, listed anew": (
        lambda f: (truncated(f, "onnx/model.onnx"), listed_anew(f)),
        "is damaged|cannot be opened",
    ),
    "graph empty": (lambda f: (truncated(f, "onnx/model.onnx", 0), listed_anew(f)), "it is empty"),
    "graph missing": (lambda f: (f / "onnx/model.onnx").unlink(), "cannot be read"),
    "graph is noise": (
        lambda f: ((f / "onnx/model.onnx").write_bytes(bytes(range(256)) * 9), listed_anew(f)),
        "is damaged|cannot be opened",
    ),
    "tokenizer missing": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json cannot be read"),
    "tokenizer not listed": (
        lambda f: entry(f, files={"onnx/model.onnx": folders.read_manifest(f).files["onnx/model.onnx"]}),
        "no tokenizer.json in its manifest",
    ),
    "tokenizer damaged": (lambda f: (truncated(f, "tokenizer.json"), listed_anew(f)), "Tokenizer .* is damaged"),
    "two outputs": (lambda f: rewritten(f, two_outputs), "has the outputs"),
    "other input": (lambda f: rewritten(f, other_input), "has the inputs .*pixels"),
    "weights above": (lambda f: rewritten(f, external("../../secret")), "has weights in '../../secret'"),
    "weights absolute": (lambda f: rewritten(f, external("/etc/hostname")), "has weights in '/etc/hostname'"),
    "weights unlisted": (lambda f: rewritten(f, external("more.data")), "has weights in 'more.data'"),
    "weights backwards": (lambda f: rewritten(f, external("..\\secret")), "has weights in"),
    "operator of others": (lambda f: rewritten(f, hidden_operator), "operators of 'evil'"),
    "manifest not JSON": (lambda f: (f / folders.MANIFEST).write_text("{"), "Manifest .* is damaged"),
    "manifest a list": (lambda f: (f / folders.MANIFEST).write_text("[]"), "Manifest .* is damaged"),
    "manifest deep": (lambda f: (f / folders.MANIFEST).write_text("[" * 10**5), "Manifest .* is damaged"),
    "manifest huge": (lambda f: (f / folders.MANIFEST).write_text(" " * 2_000_000), "Manifest .* is damaged"),
    "manifest empty object": (lambda f: (f / folders.MANIFEST).write_text("{}"), "Manifest .* is damaged"),
    "later format": (lambda f: entry(f, format=2), "format 2; wanted 1"),
    "other kind": (lambda f: entry(f, kind="causal"), "kind 'causal'"),
    "template": (lambda f: entry(f, template="{title}"), "template"),
    "template no text": (lambda f: entry(f, template=3), "template 3"),
    "length": (lambda f: entry(f, max_length=10**12), "max_length 1000000000000"),
    "length true": (lambda f: entry(f, max_length=True), "max_length True"),
    "side": (lambda f: entry(f, truncation_side="up"), "truncation_side 'up'"),
    "temperature": (lambda f: entry(f, temperature=0), "temperature 0; wanted a positive number"),
    "temperature NaN": (lambda f: entry(f, temperature=float("nan")), "temperature nan"),
    "threshold": (lambda f: entry(f, threshold=2), "threshold 2"),
    "files a list": (lambda f: entry(f, files=["x"]), "files"),
    "file above": (lambda f: entry(f, files={"../x": "0"}), "names inside the folder"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_folder_is_named_and_nothing_in_it_runs(copy: Path, name: str) -> None:
    damage, message = BAD[name]
    damage(copy)
    with pytest.raises(RankwrightError, match=message) as caught:
        load(copy)
    assert isinstance(caught.value, ModelError)
    assert caught.value.args[0].endswith("Export the model again with rankwright export.")


def test_a_form_that_was_not_exported_is_named(copy: Path) -> None:
    files = dict(folders.read_manifest(copy).files)
    del files[folders.GRAPHS["int8"]]
    entry(copy, files=files)
    assert load(copy).rerank("moon", ["rain"]).doc_ids == ("0",)
    with pytest.raises(ConfigurationError, match="has the forms fp32; wanted int8"):
        load(copy, backend="onnx-int8")


def test_the_walk_over_a_graph_finds_what_onnx_finds(exported: Path) -> None:
    for name in folders.GRAPHS.values():
        model = onnx.load(str(exported / name))
        found = [what for what in folders._used(exported / name) if what[0] == "operator"]
        assert found == [("operator", node.domain) for node in model.graph.node]


def test_weights_in_a_listed_file_are_read(copy: Path) -> None:
    """What exports of more than 2 GB look like."""
    wanted = load(copy).rerank("moon", ["rain", "river"]).scores
    path = copy / folders.GRAPHS["fp32"]
    model = onnx.load(str(path))
    onnx.save(model, str(path), save_as_external_data=True, location="model.onnx.data", size_threshold=1000)
    manifest = folders.read_manifest(copy)
    dataclasses.replace(manifest, files={**manifest.files, "onnx/model.onnx.data": ""}).write(copy)
    listed_anew(copy)
    assert load(copy).rerank("moon", ["rain", "river"]).scores == pytest.approx(wanted, abs=FP32)
    (copy / "onnx/model.onnx.data").write_bytes(b"other")
    with pytest.raises(ModelError, match="has sha256"):
        load(copy)


def test_scores_that_are_no_numbers_are_named(copy: Path) -> None:
    def poison(model: Any) -> None:
        name = next(t.name for t in model.graph.initializer if list(t.dims) == [1])
        tensor = next(t for t in model.graph.initializer if t.name == name)
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([np.nan], np.float32), name))

    rewritten(copy, poison)
    with pytest.raises(ModelError, match="scored document '0' of query '0' nan"):
        rankwright.load(copy).rerank("moon", ["rain"])
