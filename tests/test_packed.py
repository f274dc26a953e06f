"""The pass without padding: equal scores, batches that change nothing, other builds that keep transformers' pass; the
choice of a backend; long passages in windows."""

from __future__ import annotations

import doctest
import itertools
import json
import math
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

import rankwright
from rankwright import batching
from rankwright.errors import ConfigurationError, MissingDependencyError
from rankwright.rerankers import BACKENDS, choice
from rankwright.rerankers import packed as packed_module
from rankwright.rerankers.cross_encoder import CrossEncoderReranker
from rankwright.rerankers.packed import DTYPES, PackedReranker, Precision, packed
from rankwright.rerankers.ranking import Scorer, render
from rankwright.rerankers.tokens import Pair, TokenScorer
from rankwright.rerankers.windows import WindowedScorer, shortened, tells_spans
from rankwright.types import Document, Query, RerankRequest, Scored
from tests.cli_kit import ROOT
from tests.tiny_bert import (
    SMALL,
    save_classifier,
    save_cross_encoder,
    save_decoder_cross_encoder,
    save_offset_cross_encoder,
    tiny_tokenizer,
)

MAX_LENGTH = 64
QUERY = Query("q", "where does the rain go?")
LETTERS = "rain river moon go it is in the sea. "
DOCUMENTS = tuple(
    Document(f"d{n}", (LETTERS[n % 30 :] + LETTERS * 4)[:n], "Rain" if n % 3 else "") for n in (0, 1, 7, 9, 16, 24, 99)
)
UNTOLD = "instruction sets: not told by the system"
NONE = "none of the instruction sets that it has fast kernels for"
TOLERANCES = {"packed": 1e-5, "bf16": 0.05}
"""Of a score alone and among others, in standard deviations of the scores (S18, P3 of the map of reliability)."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cross_encoder(tmp_path_factory.mktemp("bert"), max_length=MAX_LENGTH)


@pytest.fixture(scope="module")
def backends(folder: Path) -> dict[str, Scorer]:
    return {name: rankwright.load(folder, backend=name) for name in BACKENDS}


def scores_of(scorer: Scorer, documents: Sequence[Document] = DOCUMENTS, query: Query = QUERY) -> list[float]:
    return list(scorer.score_batch([RerankRequest(query, tuple(documents))])[0].scores)


# --- equal scores


@pytest.mark.parametrize("backend", ["packed", "onnx"])
def test_tokens_made_in_parts_score_as_the_texts_do(folder: Path, backend: str) -> None:
    scorer = rankwright.load(folder, backend=backend)
    assert isinstance(scorer, TokenScorer)
    again = tuple(replace(document, doc_id=f"{document.doc_id}-again") for document in DOCUMENTS[:2])
    request = RerankRequest(QUERY, (*DOCUMENTS, *again))
    (wanted,) = scorer.score_batch([request])
    parts = [scorer.tokenise([replace(request, documents=request.documents[at : at + 4])]) for at in (0, 4, 8)]
    pairs = [pair for part in parts for pair in part]
    assert tuple(scorer.score_pairs(pairs)) == wanted.scores
    assert wanted.scores[-2:] == wanted.scores[:2]  # exactly: equal tokens are scored once
    assert tuple(len(pair.ids_T) for pair in pairs) == wanted.tokens
    assert tuple(pair.cut for pair in pairs) == wanted.cut
    assert scorer.tokenise([]) == []


def test_a_packed_model_cuts_as_before_after_its_source_was_used(folder: Path) -> None:
    source = CrossEncoderReranker.from_pretrained(str(folder))
    scorer = packed(source, "fp32")
    assert scorer is not None
    long = RerankRequest(QUERY, (Document("long", LETTERS * 20),))
    (wanted,) = scorer.score_batch([long])
    assert (wanted.tokens, wanted.cut) == ((MAX_LENGTH,), (True,))
    source.score_batch([long])  # which counts the tokens of what it has cut
    assert scorer.score_batch([long]) == [wanted]


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "camembert", "electra"])
def test_a_packed_model_scores_as_transformers_does(family: str, tmp_path: Path) -> None:
    if family == "electra":
        tiny_tokenizer(MAX_LENGTH).save_pretrained(tmp_path)
        save_classifier(tmp_path, AutoConfig.for_model("electra", **SMALL, embedding_size=16))
    elif family == "bert":
        save_cross_encoder(tmp_path, max_length=MAX_LENGTH)
    else:
        save_offset_cross_encoder(tmp_path, family, MAX_LENGTH + 2)
    wanted = rankwright.load(tmp_path).score_batch([RerankRequest(QUERY, DOCUMENTS)])[0]
    scorer = rankwright.load(tmp_path, backend="packed")
    assert isinstance(scorer, PackedReranker)
    found = scorer.score_batch([RerankRequest(QUERY, DOCUMENTS)])[0]
    assert found.scores == pytest.approx(wanted.scores, rel=1e-5, abs=1e-5)
    assert (found.tokens, found.cut) == (wanted.tokens, wanted.cut)
    assert any(wanted.cut)
    assert scorer.name == f"{tmp_path}|packed-fp32"


def test_bf16_is_near_and_its_name_says_so(backends: dict[str, Scorer]) -> None:
    wanted = scores_of(backends["torch"])
    found = scores_of(backends["bf16"])
    deviation = statistics.pstdev(wanted)
    assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) < 0.1 * deviation
    assert found != wanted
    bf16 = backends["bf16"]
    assert isinstance(bf16, PackedReranker)
    assert bf16.name.endswith("|packed-bf16")


@pytest.mark.parametrize("family", ["mpnet", "decoder"])
@pytest.mark.parametrize("backend", ["packed", "bf16"])
def test_a_model_of_another_build_keeps_its_own_pass(family: str, backend: str, tmp_path: Path) -> None:
    if family == "decoder":
        save_decoder_cross_encoder(tmp_path)
    else:
        save_offset_cross_encoder(tmp_path, family, MAX_LENGTH + 2)
    wanted = scores_of(rankwright.load(tmp_path))
    scorer = rankwright.load(tmp_path, backend=backend)
    assert isinstance(scorer, CrossEncoderReranker)
    assert scorer.name == str(tmp_path) + ("|bf16" if backend == "bf16" else "")
    deviation = statistics.pstdev(wanted)
    assert scores_of(scorer) == pytest.approx(wanted, abs=(0.2 if backend == "bf16" else 1e-5) * deviation)


def test_a_model_whose_packed_scores_differ_is_not_packed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that changes a part of its layers without changing its type."""
    source = CrossEncoderReranker.from_pretrained(str(folder))
    assert packed(source, "fp32") is not None
    plain = source.model.bert.encoder.layer[0].forward
    source.model.bert.encoder.layer[0].forward = lambda *inputs, **named: plain(*inputs, **named) * 1.01
    assert packed(source, "fp32") is None


@pytest.mark.parametrize("precision", DTYPES)
def test_a_model_whose_packed_scores_are_no_numbers_is_not_packed(
    precision: Precision, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it be one score among others."""
    plain = PackedReranker.score_tokens

    def spoiled(self: PackedReranker, pairs: Sequence[Pair]) -> list[float]:
        scores = plain(self, pairs)
        return [*scores[:-1], math.nan] if self.name.endswith(precision) else scores

    monkeypatch.setattr(PackedReranker, "score_tokens", spoiled)
    assert packed(CrossEncoderReranker.from_pretrained(str(folder)), precision) is None


def test_the_names_of_onednn_are_there(backends: dict[str, Scorer]) -> None:
    """Without them all would be computed plainly, and slowly."""
    bf16 = backends["bf16"]
    assert isinstance(bf16, PackedReranker)
    assert all(block.states.prepacked for block in bf16._encoder._blocks)


# --- batches


@pytest.mark.parametrize("backend", sorted(TOLERANCES))
def test_no_passage_moves_the_score_of_another(backend: str, backends: dict[str, Scorer]) -> None:
    """Alone, among all others, beside hostile ones, and in batches of any size."""
    scorer = backends[backend]
    assert isinstance(scorer, PackedReranker)
    alone = [scores_of(scorer, [document])[0] for document in DOCUMENTS]
    allowed = TOLERANCES[backend] * statistics.pstdev(alone)
    hostile = [Document("h0", "moon " * 500), Document("h1", "\x00" * 50), Document("h2", "0" * 60)]
    try:
        for max_tokens in (1, 100, 1024):
            scorer.max_tokens = max_tokens
            for among in (DOCUMENTS[::-1], [*DOCUMENTS, *hostile], [*hostile, *DOCUMENTS[3:], *DOCUMENTS[:3]]):
                found = dict(zip([d.doc_id for d in among], scores_of(scorer, among), strict=True))
                assert [found[d.doc_id] for d in DOCUMENTS] == pytest.approx(alone, abs=allowed)
    finally:
        scorer.max_tokens = packed_module.TOKENS_AT_ONCE


@settings(deadline=None, max_examples=25, derandomize=True, database=None)
@given(st.lists(st.text(max_size=80), min_size=1, max_size=6), st.sampled_from(sorted(TOLERANCES)))
def test_any_text_scores_alone_as_in_a_batch(backends: dict[str, Scorer], texts: list[str], backend: str) -> None:
    scorer = backends[backend]
    documents = [Document(str(i), text) for i, text in enumerate(texts)]
    together = scores_of(scorer, documents)
    alone = [scores_of(scorer, [document])[0] for document in documents]
    allowed = TOLERANCES[backend] * statistics.pstdev(scores_of(scorer))
    assert together == pytest.approx(alone, abs=allowed)
    assert all(math.isfinite(score) for score in together)


def test_requests_keep_their_order_and_equal_texts_their_score(backends: dict[str, Scorer]) -> None:
    scorer = backends["bf16"]
    requests = [RerankRequest(QUERY, DOCUMENTS), RerankRequest(QUERY, ()), RerankRequest(QUERY, DOCUMENTS[::-1])]
    first, none, last = scorer.score_batch(requests)
    assert none == Scored((), (), ())
    assert (last.scores, last.tokens, last.cut) == (first.scores[::-1], first.tokens[::-1], first.cut[::-1])
    assert scorer.score_batch([]) == []
    scorer.rerank_batch(requests)
    assert scorer.pairs_seen == 2 * len(DOCUMENTS)


def test_threads_compute_batches_side_by_side(folder: Path, backends: dict[str, Scorer]) -> None:
    """With the scores of one thread; what PyTorch computes elsewhere keeps its threads."""
    documents = [replace(d, doc_id=f"{d.doc_id}-{n}", text=f"{d.text} {n}") for d in DOCUMENTS for n in range(6)]
    wanted = scores_of(backends["packed"], documents)
    used: set[str] = set()
    try:
        torch.set_num_threads(2)
        scorer = rankwright.load(folder, backend="packed")
        assert isinstance(scorer, PackedReranker)
        assert torch.get_num_threads() == 2
        inner = scorer._encoder

        def watched(*inputs: Any) -> list[float]:
            used.add(f"{threading.current_thread().name} {torch.get_num_threads()}")
            return inner(*inputs)

        scorer._encoder = watched  # pyright: ignore[reportAttributeAccessIssue]
        assert scores_of(scorer, documents) == pytest.approx(wanted, abs=1e-5)
        assert used
        assert all(name.startswith("rankwright-packed") and name.endswith(" 1") for name in used)
        scorer._encoder = lambda *inputs: [][1]  # pyright: ignore[reportAttributeAccessIssue]
        with pytest.raises(IndexError):
            scores_of(scorer, documents)
    finally:
        torch.set_num_threads(1)


FORK = """
import os, signal, sys
import torch
import rankwright
torch.set_num_threads(2)
scorer = rankwright.load(sys.argv[1], backend="packed")
lists = [["rain"], [f"{'rain ' * 40} {number}" for number in range(60)]]  # one batch, and several
wanted = [scorer.rerank("rain", texts).doc_ids for texts in lists]
child = os.fork()
if child == 0:
    signal.alarm(20)  # which ends it
    os._exit(wanted != [scorer.rerank("rain", texts).doc_ids for texts in lists])
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_a_forked_process_has_threads_of_its_own(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FORK, str(folder)], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_batches_are_shared_out_evenly_among_threads() -> None:
    for tokens in range(1, 9000, 77):
        for threads in (1, 2, 7):
            share = batching.share_of(tokens, 1024, threads)
            assert 0 < share <= 1024
            batches = -(-tokens // share)
            assert threads == 1 or tokens < 128 * threads or batches % threads == 0 or tokens % share


def test_row_batches_hold_everything_once_and_stay_within_their_tokens() -> None:
    lengths = [n * 37 % 101 for n in range(200)]
    groups = list(batching.row_batches(lengths, 250))
    assert sorted(row for group in groups for row in group) == list(range(200))
    assert all(sum(lengths[row] for row in group) <= 250 for group in groups)
    assert [lengths[row] for group in groups for row in group] == sorted(lengths, reverse=True)
    assert doctest.testmod(batching).failed == 0


# --- auto


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(choice.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


class Altered(Scorer):
    """Another scorer, slower or with other scores."""

    def __init__(self, inner: Scorer, alter: Callable[[float], float], times: int) -> None:
        self.inner, self.alter, self.times = inner, alter, times

    @property
    def name(self) -> str:
        return "altered"

    @property
    def max_length(self) -> int:
        return self.inner.max_length

    def score_batch(self, requests: Sequence[RerankRequest]) -> list[Scored]:
        found: list[Scored] = []
        for _ in range(self.times):
            found = self.inner.score_batch(requests)
        return [replace(scored, scores=tuple(map(self.alter, scored.scores))) for scored in found]


def test_auto_takes_the_fastest_that_agrees_and_remembers_it(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, quick = rankwright.load(folder), rankwright.load(folder, backend="packed")
    places = itertools.count()  # the first score is one
    offered = {
        "torch": Altered(plain, float, 20),
        "right": Altered(quick, float, 1),
        "slow": Altered(quick, float, 40),
        "wrong": Altered(quick, lambda score: -score, 1),
        "nan": Altered(quick, lambda score: math.nan, 1),
        "some nan": Altered(quick, lambda score: math.nan if next(places) % 2 else score, 1),
    }
    monkeypatch.setattr(choice, "_key", lambda plain, backends: "key")
    opened: list[str] = []
    said: list[str] = []

    def open_as(name: str) -> Scorer:
        opened.append(name)
        if name == "absent":
            raise MissingDependencyError("It needs another package.")
        return offered[name]

    names = [*offered, "absent"]
    assert choice.fastest(open_as, names, say=said.append) is offered["right"]
    assert sorted(opened) == sorted([*names, "right"])
    kept = json.loads((cache / "backend-key.json").read_text())
    assert set(kept["seconds"]) == {"torch", "right", "slow"}
    assert set(kept["left out"]) == {"wrong", "nan", "some nan", "absent"}
    assert "backend right" in said[0]
    assert "It needs another package." in said[0]
    opened.clear()
    assert choice.fastest(open_as, names, say=said.append) is offered["right"]
    assert opened == ["torch", "right"]  # nothing was measured again
    assert said[0] == said[1]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"backend": "right"}', '{"backend": 1, "seconds": {}, "left out": 0}']
)
def test_a_damaged_memory_is_measured_anew(
    text: str, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "_key", lambda plain, backends: "key")
    cache.mkdir()
    (cache / "backend-key.json").write_text(text)
    plain = rankwright.load(folder)
    assert choice.fastest(lambda name: plain, ["torch"], say=lambda line: None) is plain
    assert json.loads((cache / "backend-key.json").read_text())["backend"] == "torch"


def test_auto_opens_a_folder_and_tells_the_instruction_sets(
    folder: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scorer = rankwright.load(folder, backend="auto")
    assert scorer.pairs_seen == 0  # the probes are nobody's pairs
    told = capsys.readouterr().err
    kept = json.loads(next(cache.iterdir()).read_text())
    assert f"{folder}: backend {kept['backend']}, " in told
    there = choice.instruction_sets()
    relied = choice.relied_on(kept["backend"], there)
    assert f"(relies on {', '.join(relied)}" in told
    assert all(name in told for name in there)
    wanted = scores_of(rankwright.load(folder))
    assert scores_of(scorer) == pytest.approx(wanted, abs=choice.TOLERANCE * statistics.pstdev(wanted))
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    ("backend", "flags", "relied"),
    [
        ("torch", "avx2 fma avx512f avx512_bf16", "avx2, fma"),
        ("packed", "avx2 fma avx512f avx512_bf16", "avx512f"),
        ("packed", "sse avx2 fma", "avx2, fma"),
        ("bf16", "avx2 fma avx512f", "avx512f"),
        ("bf16", "avx2 fma avx512f avx512_bf16", "avx512_bf16"),
        ("bf16", "avx2 fma avx512f avx512_bf16 amx_bf16", "amx_bf16"),
        ("onnx", "asimd asimddp", "asimd"),
        ("onnx-int8", "avx2 fma avx512f avx512_vnni", "avx512_vnni"),
        ("onnx-int8", "avx2 fma avx_vnni", "avx_vnni"),
        ("onnx-int8", "avx2 fma", "avx2"),
        ("onnx-int8", "asimd asimddp", "asimddp"),
        ("packed", "altivec", ""),
        ("torch", "sse avx2", ""),
        ("packed", "", ""),
    ],
)
def test_a_backend_relies_on_the_best_sets_that_it_has_kernels_for(
    backend: str, flags: str, relied: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = [name for name in choice.SETS if name in flags.split()]
    monkeypatch.setattr(choice, "_flags", lambda: set(flags.split()))
    monkeypatch.setattr(choice, "processor", lambda: "a processor")
    seconds = {"torch": 3.0, backend: 3.0 if backend == "torch" else 1.5}
    told = choice._told(rankwright.load(folder), {"backend": backend, "seconds": seconds, "left out": {}}, "torch")
    gain = "the only one tried" if backend == "torch" else "2.0 times torch"
    others = ", ".join(name for name in there if name not in relied.split(", "))
    sets = f"relies on {relied}" + (f"; the processor has {others} too" if others else "")
    none = NONE + (f"; the processor has {others}" if others else "") if flags else UNTOLD
    assert told == f"{folder}: backend {backend}, {gain} on a processor ({sets if relied else none})"


def test_mkl_has_avx512_for_processors_of_its_maker(monkeypatch: pytest.MonkeyPatch) -> None:
    there = ["avx2", "fma", "avx512f"]
    for name, relied in (("Intel(R) Xeon(R) 6972P", ("avx512f",)), ("AMD EPYC 9B14", ("avx2", "fma"))):
        monkeypatch.setattr(choice, "processor", lambda name=name: name)
        assert choice.relied_on("torch", there) == relied
        assert choice.relied_on("packed", there) == choice.relied_on("onnx", there) == ("avx512f",)


def test_what_is_remembered_hangs_on_weights_length_and_threads(tmp_path: Path) -> None:
    keys = set()
    for seed, length in ((0, 64), (0, 32), (1, 64)):
        folder = save_cross_encoder(tmp_path / f"{seed}-{length}", max_length=length, seed=seed)
        keys.add(choice._key(rankwright.load(folder), ["torch"]))
        assert choice._key(rankwright.load(folder), ["torch"]) in keys
    keys.add(choice._key(rankwright.load(folder), ["torch", "bf16"]))
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    keys.add(choice._key(rankwright.load(folder), ["torch"]))
    torch.set_num_threads(threads)
    assert len(keys) == 5


def test_a_cache_that_cannot_be_written_hinders_nobody(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(choice.CACHE, str(tmp_path / "file" / "folder"))
    plain = rankwright.load(folder)
    assert choice.fastest(lambda name: plain, ["torch"], say=lambda line: None) is plain


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(
        ConfigurationError, match="Backend is 'bf8'; wanted one of torch, packed, bf16, onnx, onnx-int8, auto"
    ):
        rankwright.load("reference", backend="bf8")


def test_bf16_without_avx512_is_refused_with_the_next_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(ConfigurationError, match="avx512 only, and this processor has none; wanted 'packed'"):
        rankwright.load(folder, backend="bf16")
    assert rankwright.load(folder, backend="packed").name.endswith("packed-fp32")


# --- windows


@pytest.mark.parametrize("backend", ["torch", "packed"])
@pytest.mark.parametrize("how", ["max", "mean"])
def test_a_long_passage_is_read_whole_in_windows(backend: str, how: str, folder: Path) -> None:
    scorer = rankwright.load(folder, backend=backend, windows=how)  # pyright: ignore[reportArgumentType]
    assert isinstance(scorer, WindowedScorer)
    seen: list[Document] = []
    inner = scorer.inner.score_batch

    def watched(requests: Sequence[RerankRequest]) -> list[Scored]:
        seen.extend(document for request in requests for document in request.documents)
        return inner(requests)

    scorer.inner.score_batch = watched  # pyright: ignore[reportAttributeAccessIssue]
    long = Document("long", " ".join(f"{n:02d}" for n in range(60)), "Moon")
    short = Document("short", "rain", "Moon")
    (scored,) = scorer.score_batch([RerankRequest(Query("q", "go"), (long, short))])
    windows = [document for document in seen if document.doc_id.startswith("long\x00")]
    assert len(windows) > 2
    assert all(window.title == "Moon" and window.text in long.text for window in windows)
    pieces = {piece for window in windows for piece in window.text.split()}
    assert {f"{n:02d}" for n in range(60)} <= pieces
    own = inner([RerankRequest(Query("q", "go"), (*windows, short))])[0]
    assert not any(own.cut)
    join = max if how == "max" else statistics.mean
    assert scored.scores == pytest.approx((join(own.scores[:-1]), own.scores[-1]), abs=1e-5)
    assert scored.tokens == (sum(own.tokens[:-1]), own.tokens[-1])
    assert scored.cut == (False, False)
    assert scorer.name.endswith(f"|windows-{how}")
    assert scorer.rerank("go", [long, short]).scores == tuple(sorted(scored.scores, reverse=True))
    assert scorer.share_cut == 0


def test_without_windows_the_same_passage_is_cut_and_counted(folder: Path) -> None:
    for backend in ("torch", "packed"):
        scorer = rankwright.load(folder, backend=backend)
        scorer.rerank("go", ["0 " * 60, "rain"])
        assert scorer.share_cut == 0.5
        assert "with passage '0' for question '0'" in scorer.first_cut


def test_what_is_cut_is_told_with_what_helps(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    long, windows = "0 " * 60, rankwright.load(folder, windows="mean")
    for backend in ("torch", "packed"):
        caplog.clear()
        scorer = rankwright.load(folder, backend=backend)
        scorer.rerank("go", [long, "rain"])
        (message,) = caplog.messages
        assert message.startswith(f"50.0 % of the pairs that '{scorer.name}' has scored are longer than its 64 tokens")
        assert message.endswith(Scorer.against_cuts)
    caplog.clear()
    windows.rerank("go", [long, "rain"])
    assert caplog.messages == []
    windows.rerank("rain " * 80, [long])
    assert caplog.messages[0].endswith("Shorten questions and titles: they leave no room for a window.")


@pytest.mark.parametrize("backend", ["torch", "packed"])
def test_documents_are_shortened_before_they_come_into_windows(backend: str, folder: Path) -> None:
    """As a server asked for max_tokens_per_doc does."""
    scorer = rankwright.load(folder, backend=backend, windows="max")
    assert isinstance(scorer, WindowedScorer)
    assert tells_spans(scorer)
    assert (scorer.reach, scorer.inner.reach) == (math.inf, MAX_LENGTH)
    long = Document("long", " ".join(f"{n:02d}" for n in range(60)), "Moon")
    (cut,) = shortened(scorer, [long], MAX_LENGTH + 20)
    tokens = len(scorer.spans([render(scorer.template, cut)])[0])
    assert long.text.startswith(cut.text)
    assert tokens == MAX_LENGTH + 20


def test_a_question_that_leaves_no_room_is_still_cut(folder: Path) -> None:
    scorer = rankwright.load(folder, windows="max")
    (scored,) = scorer.score_batch([RerankRequest(Query("q", "rain " * 80), (Document("d", "moon " * 80),))])
    assert scored.cut == (True,)


def test_nan_in_a_window_stays_visible(folder: Path) -> None:
    scorer = rankwright.load(folder, windows="max")
    assert isinstance(scorer, WindowedScorer)
    scored = Scored((1.0, math.nan, 2.0), (1, 1, 1), (False, True, False))
    joined = scorer._joined(scored, [3])
    assert math.isnan(joined.scores[0])
    assert (joined.tokens, joined.cut) == ((3,), (True,))


def test_windows_need_a_word_that_is_known_and_a_tokenizer_that_tells(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="Windows are 'sum'; wanted max or mean"):
        rankwright.load(folder, windows="sum")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigurationError, match="'altered' does not tell where its tokens stand"):
        WindowedScorer(Altered(rankwright.load(folder), float, 1), "max")
