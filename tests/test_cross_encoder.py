"""The cross-encoder: equal scores here, in sentence-transformers and in transformers; refusals; LoRA; the hub."""

from __future__ import annotations

import doctest
import json
import math
import os
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertModel,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

import rankwright
from rankwright.errors import ConfigurationError, DataError, ModelError, ResourceNotFoundError, StorageError
from rankwright.llms.folders import fetched
from rankwright.rerankers import cross_encoder
from rankwright.rerankers import ranking as ranking_module
from rankwright.rerankers.cross_encoder import CrossEncoderReranker, render
from rankwright.rerankers.scoring import ScoringReranker
from rankwright.training import interpolate
from rankwright.types import Document, Query, RerankRequest, Scored
from tests.fake_hub import FakeHub
from tests.tiny_bert import (
    VOCABULARY,
    save_cross_encoder,
    save_decoder_cross_encoder,
    save_offset_cross_encoder,
    spread,
    tiny_config,
    tiny_tokenizer,
)

MAX_LENGTH = 64
QUERY = "where does the rain go?"
DOCUMENTS = (
    Document("a", "It goes into the river.", "Rain"),
    Document("b", "The moon has no rain."),
    Document("c", "A river is long, and so is this passage: " + "river moon rain " * 60, "River"),
    Document("d", "{text} in {braces} {0} {title}", "{title} {x"),
    Document("e", ""),
    Document("f", "rain", "Moon"),
)


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cross_encoder(tmp_path_factory.mktemp("plain"), max_length=MAX_LENGTH)


@pytest.fixture
def reranker(plain_folder: Path) -> CrossEncoderReranker:
    return CrossEncoderReranker.from_pretrained(str(plain_folder))


@pytest.fixture(scope="module")
def saved_folder(plain_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    CrossEncoderReranker.from_pretrained(str(plain_folder)).save(folder)
    return folder


@cache
def opened(folder: Path) -> CrossEncoderReranker:
    """For property tests, which take no fixture that is made anew for each test."""
    return CrossEncoderReranker.from_pretrained(str(folder))


def scores_of(reranker: ScoringReranker, documents: tuple[Document, ...] = DOCUMENTS) -> list[float]:
    """Scores in the order of the documents."""
    ranking = reranker.rerank_batch([RerankRequest(Query("q", QUERY), documents)])[0]
    by_id = dict(zip(ranking.doc_ids, ranking.scores, strict=True))
    return [by_id[document.doc_id] for document in documents]


def pairs_of(template: str = cross_encoder.DEFAULT_TEMPLATE) -> list[tuple[str, str]]:
    return [(QUERY, render(template, document)) for document in DOCUMENTS]


def transformers_scores(
    folder: Path, *, batch_size: int = len(DOCUMENTS), max_length: int | None = None
) -> list[float]:
    """Scores of the documents by transformers alone, cut to the length that the folder says."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found: list[float] = []
    for start in range(0, len(DOCUMENTS), batch_size):
        queries, texts = zip(*pairs_of()[start : start + batch_size], strict=True)
        batch = tokenizer(
            list(queries),
            list(texts),
            padding=batch_size > 1,
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        )
        with torch.no_grad():
            found += model(**batch).logits[:, 0].tolist()
    return found


def sentence_transformers_scores(folder: Path) -> list[float]:
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(folder), device="cpu").predict(pairs_of(), show_progress_bar=False).tolist()


# --- equal scores


def test_scores_are_spread_enough_to_tell_models_apart(reranker: CrossEncoderReranker) -> None:
    scores = scores_of(reranker)
    assert max(scores) - min(scores) > 0.1
    assert len({round(score, 4) for score in scores}) == len(scores)


def test_saved_folder_gives_equal_scores_in_transformers_and_here(
    reranker: CrossEncoderReranker, saved_folder: Path
) -> None:
    scores = scores_of(reranker)
    assert scores_of(rankwright.load(saved_folder)) == pytest.approx(scores, abs=1e-5)
    assert transformers_scores(saved_folder) == pytest.approx(scores, abs=1e-5)


def test_saved_folder_gives_equal_raw_scores_in_sentence_transformers(
    reranker: CrossEncoderReranker, saved_folder: Path
) -> None:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(saved_folder), device="cpu")
    found = model.predict(pairs_of(), show_progress_bar=False).tolist()
    assert found == pytest.approx(scores_of(reranker), abs=1e-5)
    assert type(model.activation_fn) is torch.nn.Identity


def test_folder_names_the_activation_for_both_generations_and_one_label(saved_folder: Path) -> None:
    config = json.loads((saved_folder / "config.json").read_text())
    own = json.loads((saved_folder / "config_sentence_transformers.json").read_text())
    assert config["sentence_transformers"]["activation_fn"] == own["activation_fn"] == cross_encoder.IDENTITY
    assert config["id2label"] == {"0": "LABEL_0"}
    assert (saved_folder / "model.safetensors").is_file()
    assert not list(saved_folder.glob("*.bin"))
    assert len({path.stat().st_mode for path in saved_folder.iterdir()}) == 1  # who may read one may read all


def test_what_was_scored_before_does_not_show_in_what_is_saved(plain_folder: Path, tmp_path: Path) -> None:
    """A tokenizer remembers the truncation of its last call."""
    used, unused = (CrossEncoderReranker.from_pretrained(str(plain_folder)) for _ in range(2))
    used.rerank("q", ["a", "b " * 600])
    used.save(tmp_path / "used")
    unused.save(tmp_path / "unused")
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("used", "unused")]
    assert files[0] == files[1]
    assert len(rankwright.load(str(tmp_path / "used")).rerank("q", ["b " * 600, "a"]).doc_ids) == 2


def test_the_length_that_pairs_were_cut_to_is_saved(plain_folder: Path, tmp_path: Path) -> None:
    short = rankwright.load(plain_folder, max_length=20)
    short.save(tmp_path)
    again = rankwright.load(tmp_path)
    assert again.max_length == 20
    assert scores_of(again) == pytest.approx(scores_of(short), abs=1e-6)
    assert scores_of(short) != pytest.approx(scores_of(rankwright.load(plain_folder)), abs=1e-3)


def test_length_never_exceeds_the_positions(tmp_path: Path) -> None:
    folder = save_cross_encoder(tmp_path, max_length=10**6)
    assert rankwright.load(folder).max_length == tiny_config().max_position_embeddings
    assert rankwright.load(folder, max_length=4000).max_length == tiny_config().max_position_embeddings


# --- other families


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "camembert", "longformer", "mpnet"])
def test_every_position_behind_the_offset_can_be_filled(family: str, tmp_path: Path) -> None:
    """RoBERTa and its kin number positions from padding_idx + 1 on: 66 rows are 64 positions."""
    folder = save_offset_cross_encoder(tmp_path / "plain", family, MAX_LENGTH + 2)
    reranker = rankwright.load(folder)
    assert reranker.max_length == MAX_LENGTH
    assert rankwright.load(folder, max_length=MAX_LENGTH + 1).max_length == MAX_LENGTH
    assert rankwright.load(folder, max_length=20).max_length == 20
    scores = scores_of(reranker)
    assert reranker.share_cut == 1 / len(DOCUMENTS)
    assert len({round(score, 4) for score in scores}) == len(scores)
    assert scores == pytest.approx(transformers_scores(folder, batch_size=1, max_length=MAX_LENGTH), abs=1e-5)
    reranker.save(tmp_path / "saved")
    assert transformers_scores(tmp_path / "saved") == pytest.approx(scores, abs=1e-5)
    assert sentence_transformers_scores(tmp_path / "saved") == pytest.approx(scores, abs=1e-5)


def test_a_pad_token_of_its_own_does_not_move_the_positions_of_a_roberta(tmp_path: Path) -> None:
    folder = save_offset_cross_encoder(tmp_path / "plain", "roberta", MAX_LENGTH + 2)
    tiny_tokenizer().save_pretrained(folder)  # [PAD] is 0 here, 1 in the model
    scores = scores_of(rankwright.load(folder))
    assert scores == pytest.approx(transformers_scores(folder, batch_size=1), abs=1e-5)
    rankwright.load(folder).save(tmp_path / "saved")
    assert scores_of(rankwright.load(tmp_path / "saved")) == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("appends_eos", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_decoder_without_pad_token_scores_a_batch_as_single_pairs(
    family: str, appends_eos: bool, side: str, tmp_path: Path
) -> None:
    """A single pair is scored at its last token. With eos as pad token, an eos that the tokenizer appends would not
    count as one."""
    folder = save_decoder_cross_encoder(tmp_path / "plain", family, appends_eos=appends_eos, side=side)
    reranker = rankwright.load(folder)
    assert reranker.tokenizer.pad_token == ("[UNK]" if appends_eos else "[SEP]")
    assert reranker.tokenizer.padding_side == side
    scores = scores_of(reranker)
    assert len({round(score, 4) for score in scores}) == len(scores)
    assert scores == pytest.approx(transformers_scores(folder, batch_size=1, max_length=MAX_LENGTH), abs=1e-5)
    reranker.save(tmp_path / "saved")
    assert scores_of(rankwright.load(tmp_path / "saved")) == pytest.approx(scores, abs=1e-5)
    assert transformers_scores(tmp_path / "saved") == pytest.approx(scores, abs=1e-5)
    assert sentence_transformers_scores(tmp_path / "saved") == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_passage_that_ends_in_the_pad_token_scores_alike_alone_and_in_a_batch(side: str, tmp_path: Path) -> None:
    reranker = rankwright.load(save_decoder_cross_encoder(tmp_path, side=side))
    documents = (*DOCUMENTS, Document("eos", "rain [SEP]"), Document("eos twice", "moon [SEP] [SEP]"))
    alone = [scores_of(reranker, (document,))[0] for document in documents]
    assert scores_of(reranker, documents) == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize(
    ("pad", "pad_of_model", "wanted"),
    [(True, None, "[PAD]"), (True, 7, "[PAD]"), (False, 0, "[PAD]"), (False, 7, "[SEP]")],
)
def test_a_pad_token_of_tokenizer_or_model_is_kept(
    pad: bool, pad_of_model: int | None, wanted: str, tmp_path: Path
) -> None:
    """Token 7 is a letter: as a pad token it would be missed at the end of passages."""
    folder = save_decoder_cross_encoder(tmp_path, pad=pad, pad_of_model=pad_of_model)
    reranker = rankwright.load(folder)
    assert reranker.tokenizer.pad_token == wanted
    assert reranker.model.config.pad_token_id == VOCABULARY[wanted]
    assert scores_of(reranker) == pytest.approx(
        transformers_scores(folder, batch_size=1, max_length=MAX_LENGTH), abs=1e-5
    )


def test_a_decoder_with_nothing_to_pad_with_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no token to pad with; wanted a pad token, or an eos token"):
        rankwright.load(save_decoder_cross_encoder(tmp_path, eos=False))


# --- text


def test_doctests() -> None:
    result = doctest.testmod(ranking_module)
    assert result.attempted >= 2
    assert result.failed == 0


def test_braces_in_passages_are_text() -> None:
    document = Document("1", "{title} {0} {x", "{text}}")
    assert render("{title}: {text}", document) == "{text}}: {title} {0} {x"
    assert render("{{{text}}} \\1 {title}{title}", Document("1", "a\\g<0>", "T")) == "{{a\\g<0>}} \\1 TT"


def test_template_is_saved_and_loaded(reranker: CrossEncoderReranker, tmp_path: Path) -> None:
    reranker.template = "{text} ({title})"
    before = scores_of(reranker)
    reranker.save(tmp_path)
    again = rankwright.load(tmp_path)
    assert again.template == "{text} ({title})"
    assert scores_of(again) == pytest.approx(before, abs=1e-6)


def test_a_template_without_text_is_refused(reranker: CrossEncoderReranker) -> None:
    with pytest.raises(ConfigurationError, match=r"Template is '\{title\}', which lacks \{text\}"):
        CrossEncoderReranker(reranker.model, reranker.tokenizer, template="{title}")


@pytest.mark.parametrize("template", ["{title}", "{text} {body}", "{text} {}", "{ text }", ""])
def test_a_template_set_later_is_checked_too(reranker: CrossEncoderReranker, template: str) -> None:
    before = reranker.template
    with pytest.raises(ConfigurationError, match="Template is"):
        reranker.template = template
    assert reranker.template == before


def test_a_model_folder_that_cannot_be_written_is_named(reranker: CrossEncoderReranker, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("", "utf-8")
    with pytest.raises(StorageError, match=r"Model folder .* cannot be written"):
        reranker.save(blocked / "model")


def test_documents_longer_than_the_model_are_counted(reranker: CrossEncoderReranker) -> None:
    """One token a letter; [CLS] question [SEP] document [SEP] leaves 64 - 3 - 1 for the document of question "q"."""
    exact, longer = Document("x", "z" * 60), Document("y", "z" * 61)
    assert reranker.share_cut == 0
    reranker.rerank("q", [exact])
    assert reranker.share_cut == 0
    reranker.rerank("q", [longer, exact, Document("s", "z")])
    assert reranker.share_cut == 1 / 4
    assert reranker.first_cut == "65 tokens with passage 'y' for question '0'"


def test_scored_documents_come_with_their_tokens_and_cuts(reranker: CrossEncoderReranker) -> None:
    """Of texts that stand twice too, and around a request without documents."""
    letters = (3, 70, 60, 3)
    request = RerankRequest(Query("0", "q"), tuple(Document(str(i), "z" * n) for i, n in enumerate(letters)))
    empty = RerankRequest(Query("1", "q"), ())
    first, none, again = reranker.score_batch([request, empty, replace(request, documents=request.documents[1:])])
    wanted = [min(n + 4, MAX_LENGTH) for n in letters]
    assert first.tokens == tuple(wanted)
    assert first.cut == tuple(n + 4 > MAX_LENGTH for n in letters)
    assert none == Scored((), (), ())
    assert (again.tokens, again.cut, again.scores) == (first.tokens[1:], first.cut[1:], first.scores[1:])
    assert first.scores[0] == first.scores[3]


# --- rankings


def test_strings_get_their_position_as_id_and_top_k_keeps_the_best(reranker: CrossEncoderReranker) -> None:
    texts = ["moon", "rain rain", "river, 7", "x"]
    ranking = reranker.rerank(QUERY, texts)
    assert ranking.query_id == "0"
    assert sorted(ranking.doc_ids) == ["0", "1", "2", "3"]
    assert list(ranking.scores) == sorted(ranking.scores, reverse=True)
    best = reranker.rerank(QUERY, texts, top_k=2)
    assert (best.doc_ids, best.scores) == (ranking.doc_ids[:2], ranking.scores[:2])
    assert reranker.rerank(QUERY, texts, top_k=99) == ranking


def test_equal_scores_keep_input_order(reranker: CrossEncoderReranker) -> None:
    documents = [Document(name, "the same text") for name in "zyxwvutsrqponm"]
    ranking = reranker.rerank(QUERY, documents)
    assert ranking.doc_ids == tuple("zyxwvutsrqponm")
    assert len(set(ranking.scores)) == 1  # the rows of one batch differ in the last bits on some processors


def test_empty_lists(reranker: CrossEncoderReranker) -> None:
    assert reranker.rerank_batch([]) == []
    assert reranker.rerank(QUERY, []).doc_ids == ()
    query = Query("q", QUERY)
    none, two = reranker.rerank_batch([RerankRequest(query, ()), RerankRequest(query, DOCUMENTS[:2])])
    assert none.doc_ids == ()
    assert sorted(two.doc_ids) == ["a", "b"]


TEXTS = st.one_of(
    st.text(max_size=30), st.sampled_from(["", " ", "rain", "the same text", "\u0000", "río 🌧 雨", "z" * 200])
)


@settings(deadline=None, max_examples=60)
@given(TEXTS, st.lists(TEXTS, max_size=8))
def test_a_ranking_is_a_permutation_with_falling_finite_scores(
    plain_folder: Path, query: str, texts: list[str]
) -> None:
    documents = [Document(f"d{len(texts) - i}", text) for i, text in enumerate(texts)]
    ranking = opened(plain_folder).rerank(query, documents)
    places = [len(texts) - int(doc_id[1:]) for doc_id in ranking.doc_ids]
    assert sorted(places) == list(range(len(texts)))
    assert all(math.isfinite(score) for score in ranking.scores)
    # Scores fall, and where two are equal the earlier document comes first.
    order = list(zip([-score for score in ranking.scores], places, strict=True))
    assert order == sorted(order)


@pytest.mark.parametrize("count", [1, 2, 60])
def test_ids_that_stand_twice_are_refused(count: int, reranker: CrossEncoderReranker) -> None:
    documents = [Document("x", "rain"), Document("y", "moon"), *[Document("x", "river")] * count]
    with pytest.raises(
        DataError, match=f"doc_id 'x' stands {count + 1} times among the documents of query '0'; wanted"
    ):
        reranker.rerank(QUERY, documents)
    with pytest.raises(DataError, match="doc_id '0' stands 2 times"):
        reranker.rerank(QUERY, ["rain", Document("0", "moon")])


def test_one_text_is_no_list(reranker: CrossEncoderReranker, plain_folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="Documents are one str; wanted a list of strings or Documents"):
        reranker.rerank(QUERY, "rain")
    with pytest.raises(ConfigurationError, match="Documents are one str"):
        rankwright.rerank(QUERY, "rain", model=str(plain_folder))


def test_scores_do_not_depend_on_the_batch(reranker: CrossEncoderReranker) -> None:
    alone = [scores_of(reranker, (document,))[0] for document in DOCUMENTS]
    requests = [RerankRequest(Query(str(n), QUERY), DOCUMENTS[n:] + DOCUMENTS[:n]) for n in range(len(DOCUMENTS))]
    for max_tokens in (1, 150, 8192):
        reranker.max_tokens = max_tokens
        for ranking in reranker.rerank_batch(requests):
            by_id = dict(zip(ranking.doc_ids, ranking.scores, strict=True))
            assert [by_id[d.doc_id] for d in DOCUMENTS] == pytest.approx(alone, abs=1e-5)


def test_forward_pads_with_minus_infinity_and_carries_gradient(reranker: CrossEncoderReranker) -> None:
    query = Query("q", QUERY)
    scores_QD = reranker([RerankRequest(query, DOCUMENTS[:1]), RerankRequest(query, DOCUMENTS)])
    assert scores_QD.shape == (2, len(DOCUMENTS))
    assert torch.isneginf(scores_QD[0, 1:]).all()
    assert torch.isfinite(scores_QD[1]).all()
    scores_QD[1].sum().backward()
    assert reranker.model.classifier.weight.grad.abs().sum() > 0


def test_nan_weights_are_a_model_error(reranker: CrossEncoderReranker) -> None:
    with torch.no_grad():
        reranker.model.classifier.bias.fill_(torch.nan)
    with pytest.raises(ModelError, match="scored document 'a' of query 'q' nan; wanted a finite number"):
        scores_of(reranker)


# --- LoRA


def trained_by_lora(reranker: CrossEncoderReranker, seed: int = 0) -> CrossEncoderReranker:
    reranker.add_lora(rank=4, alpha=8, seed=seed)
    optimizer = torch.optim.SGD([p for p in reranker.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        scores = reranker([RerankRequest(Query("q", QUERY), DOCUMENTS)])
        (scores - torch.arange(len(DOCUMENTS))).square().mean().backward()
        optimizer.step()
    return reranker.eval()


def small_xlm_roberta() -> CrossEncoderReranker:
    """A head of two layers, as in the bge rerankers."""
    config = XLMRobertaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=MAX_LENGTH + 2,
        type_vocab_size=2,
        pad_token_id=0,
    )
    config.num_labels = 1
    model = XLMRobertaForSequenceClassification(config).eval()
    spread(model)
    return CrossEncoderReranker(model, tiny_tokenizer(MAX_LENGTH))


@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_lora_trains_low_rank_and_head_only_and_saves_a_plain_model(
    family: str, reranker: CrossEncoderReranker, tmp_path: Path
) -> None:
    policy = reranker if family == "bert" else small_xlm_roberta()
    frozen = {name: weight.clone() for name, weight in policy.model.state_dict().items()}
    before = scores_of(policy)
    trained = trained_by_lora(policy)
    learning = {name for name, weight in trained.model.named_parameters() if weight.requires_grad}
    assert all("lora_" in name or "classifier" in name for name in learning)
    assert any("lora_" in name for name in learning)
    assert not any("lora_" in name and "classifier" in name for name in learning)
    assert sum("classifier" in name for name in learning) == sum(name.startswith("classifier.") for name in frozen)
    after = scores_of(trained)
    assert after != pytest.approx(before, abs=0.1)
    trained.save(tmp_path)
    # The head of two layers scores in the thousands here, where a last bit of fp32 is larger than 1e-5.
    assert scores_of(rankwright.load(tmp_path)) == pytest.approx(after, rel=1e-6, abs=1e-5)
    assert not list(tmp_path.glob("adapter*"))
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).state_dict()
    assert plain.keys() == frozen.keys()
    assert torch.equal(plain[name := next(n for n in frozen if "word_embeddings" in n)], frozen[name])


def test_lora_begins_alike_for_one_seed(tmp_path: Path) -> None:
    save_cross_encoder(tmp_path)

    def halves(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(int.from_bytes(os.urandom(4), "big"))
        policy = CrossEncoderReranker.from_pretrained(str(tmp_path))
        policy.add_lora(2, 4, seed=seed)
        return [weight for name, weight in policy.named_parameters() if "lora_A" in name]

    assert all(map(torch.equal, halves(1), halves(1)))
    assert not any(map(torch.equal, halves(1), halves(2)))


def test_part_of_the_way_of_lora_is_part_of_its_update(tmp_path: Path) -> None:
    """Of the product of its halves, that is, and not of each half."""
    save_cross_encoder(tmp_path)
    start = load_file(tmp_path / "model.safetensors")
    merged = []
    for share in (1.0, 0.25):
        policy = trained_by_lora(CrossEncoderReranker.from_pretrained(str(tmp_path)), seed=3)
        before = CrossEncoderReranker.from_pretrained(str(tmp_path))
        before.add_lora(4, 8, seed=4)
        interpolate(policy, before.state_dict(), share)
        policy.merge_lora()
        merged.append(policy.model.state_dict())
    whole, part = merged
    assert not torch.equal(whole["classifier.weight"], start["classifier.weight"])
    for name, weight in start.items():
        assert torch.allclose(part[name], weight + 0.25 * (whole[name] - weight), atol=1e-6), name


# --- refusals


@pytest.mark.parametrize("own", ["v2", {"template": 7}, {"template": "{body}"}])
def test_a_foreign_entry_in_the_config_is_named(tmp_path: Path, own: Any) -> None:
    save_cross_encoder(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rankwright": own}))
    with pytest.raises(ModelError, match=r"under 'rankwright' in config\.json; wanted a template"):
        rankwright.load(tmp_path)


def test_two_labels_are_refused(tmp_path: Path) -> None:
    save_cross_encoder(tmp_path, labels=2)
    with pytest.raises(ModelError, match="has 2 labels; wanted 1"):
        rankwright.load(tmp_path)


@pytest.mark.parametrize("name", ["no-such-folder", "someone/absent"])
def test_what_does_not_exist_is_named(name: str) -> None:
    with pytest.raises(ResourceNotFoundError, match=f"Model '{name}' is neither a model folder nor a hub name"):
        rankwright.load(name)


@pytest.mark.parametrize("name", ["runs/demo/model", "./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_path_that_does_not_exist_is_not_sought_at_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ResourceNotFoundError, match=f"Model folder '{name}' does not exist .*Check the path"):
        rankwright.load(name)


def test_a_misspelt_path_is_told_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    with pytest.raises(ResourceNotFoundError, match=f"has no 'frist'.*Did you mean '{tmp_path}/first'"):
        rankwright.load(tmp_path / "frist" / "model")


@pytest.mark.parametrize("name", ["localhost:8000", "localhost:8000/v1"])
def test_an_address_without_its_scheme_is_no_model(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"looks like a server's address.*http://localhost:8000/v1\."):
        rankwright.load(name)


@pytest.mark.parametrize("labels", [2, 1])
def test_an_embedding_model_is_refused(tmp_path: Path, labels: int) -> None:
    """With one label in its config, transformers would silently score with a random head."""
    BertModel(tiny_config(labels)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    if labels == 1:
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "id2label": {"0": "LABEL_0"}}))
    wanted = "has 2 labels; wanted 1" if labels == 2 else "has no weights for classifier.bias, classifier.weight"
    with pytest.raises(ModelError, match=wanted):
        rankwright.load(tmp_path)


@pytest.fixture
def copy(plain_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain_folder, tmp_path / "copy"))


def test_pickled_weights_are_never_read(copy: Path, reranker: CrossEncoderReranker) -> None:
    (copy / "model.safetensors").unlink()
    torch.save(reranker.model.state_dict(), copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"cannot be opened as a cross-encoder \(.*safetensors"):
        rankwright.load(copy)


@pytest.mark.parametrize("whole", [True, False])
def test_an_adapter_is_refused_before_what_it_names_is_sought(copy: Path, whole: bool, tmp_path: Path) -> None:
    """transformers would take the weights of `base_model_name_or_path`, and open adapter_model.bin, a pickle."""
    (copy / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "some/one"}))
    (copy / "adapter_model.bin").write_bytes(b"\x80\x04.")
    if not whole:
        (copy / "config.json").unlink()
    with pytest.raises(ModelError, match=r"holds an adapter .*wanted the whole model in safetensors. Merge"):
        rankwright.load(copy)


def test_code_in_the_folder_is_never_run(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    code = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"
    (copy / "own.py").write_text(code + "from transformers import BertConfig as Own, BertModel as OwnModel\n")
    auto_map = {"AutoConfig": "own.Own", "AutoModelForSequenceClassification": "own.OwnModel"}
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": auto_map}))
    with pytest.raises(ModelError, match="cannot be opened as a cross-encoder"):
        rankwright.load(copy)
    assert not list(copy.rglob("ran"))


HOSTILE_CONFIGS: dict[str, Any] = {
    "kernel": {"attn_implementation": "evil/kernel"},
    "kernel inside": {"_attn_implementation_internal": "evil/kernel"},
    "kernel by part": {"attn_implementation": {"": "evil/kernel"}},
    "kernel of experts": {"text_config": {"_experts_implementation_internal": "evil/kernel"}},
    "absent attention": {"attn_implementation": "flash_attention_2"},
    "quantized": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    "words for numbers": {"hidden_size": "x"},
    "no heads": {"num_attention_heads": 0},
    "a million layers": {"num_hidden_layers": 10**6},
    "a million columns": {"hidden_size": 10**6},
    "vocabulary below 0": {"vocab_size": -5},
    "labels a list": {"id2label": []},
    "labels a word": {"num_labels": "1"},
    "type a number": {"model_type": 7},
    "another type": {"model_type": "t5"},
    "dtype": {"dtype": "evil"},
    "activation": {"hidden_act": "evil"},
    "pad token": {"pad_token_id": 10**9},
    "probability": {"hidden_dropout_prob": 2},
    "a list": [],
    "a word": "x",
    "deep": "deep",
    "scale": {"rankwright": {"temperature": 0}},
    "own entry": {"rankwright": 5},
}
HOSTILE_TOKENIZERS: dict[str, Any] = {
    "length a word": {"model_max_length": "x"},
    "length below 0": {"model_max_length": -4},
    "length 0": {"model_max_length": 0},
    "no inputs": {"model_input_names": "x"},
    "side": {"truncation_side": "up"},
    "pad token": {"pad_token": 5},
}


@pytest.mark.parametrize("name", [*HOSTILE_CONFIGS, *(f"tokenizer: {name}" for name in HOSTILE_TOKENIZERS)])
def test_hostile_configs_are_model_errors(copy: Path, name: str) -> None:
    """Whatever transformers makes of them, and none has code fetched that it names (kernels of attention)."""
    of_tokenizer = name.startswith("tokenizer: ")
    file = copy / ("tokenizer_config.json" if of_tokenizer else "config.json")
    change = HOSTILE_TOKENIZERS[name.removeprefix("tokenizer: ")] if of_tokenizer else HOSTILE_CONFIGS[name]
    changed = {**json.loads(file.read_text()), **change} if isinstance(change, dict) else change
    file.write_text('{"a":' * 10**5 + "1" + "}" * 10**5 if change == "deep" else json.dumps(changed))
    with pytest.raises(ModelError) as refused:
        rankwright.load(copy)
    assert str(copy) in str(refused.value)
    assert "wanted" in str(refused.value)
    assert ("asks in config.json for" in str(refused.value)) == ("kernel" in name or name == "quantized")


def test_a_config_that_changes_the_form_of_results_changes_no_score(copy: Path) -> None:
    wanted = rankwright.load(copy).rerank("rain", ["moon", "a river of rain"])
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "return_dict": False}))
    assert rankwright.load(copy).rerank("rain", ["moon", "a river of rain"]).scores == wanted.scores


@pytest.mark.parametrize("fault", ["torn weights", "broken json", "other shape"])
def test_a_damaged_folder_is_a_model_error(copy: Path, fault: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    if fault == "torn weights":
        data = (copy / "model.safetensors").read_bytes()
        (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    elif fault == "broken json":
        (copy / "config.json").write_text("{")
    else:
        (copy / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    with pytest.raises(ModelError, match=f"Model '{copy}' cannot be opened as a cross-encoder"):
        rankwright.load(copy)


def test_a_folder_without_tokenizer_is_refused(copy: Path) -> None:
    """Transformers would make one that maps every word to [UNK]."""
    for path in [*copy.glob("tokenizer*"), *copy.glob("vocab*")]:
        path.unlink()
    with pytest.raises(ModelError, match="has a tokenizer that knows no word; wanted tokenizer"):
        rankwright.load(copy)


# --- the hub, on loopback


REPOSITORY = "someone/tiny-reranker"
SCRIPT = """
import json, sys
import rankwright
from rankwright.errors import ResourceNotFoundError
from rankwright.types import Document
reranker = rankwright.load("someone/tiny-reranker")
ranking = reranker.rerank(sys.argv[1], [Document(*row) for row in json.loads(sys.argv[2])])
try:
    rankwright.load("someone/absent")
except ResourceNotFoundError as error:
    print(json.dumps([reranker.name, dict(zip(ranking.doc_ids, ranking.scores)), str(error)]))
"""


def test_a_hub_name_is_fetched(plain_folder: Path, reranker: CrossEncoderReranker, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    environment |= {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
    rows = json.dumps([[d.doc_id, d.text, d.title] for d in DOCUMENTS])
    hub = FakeHub()
    hub.files[REPOSITORY] = {path.name: path.read_bytes() for path in plain_folder.iterdir()}
    hub.private[REPOSITORY] = False
    with hub.running() as address:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, QUERY, rows],
            env={**environment, "HF_ENDPOINT": address},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    name, scores, message = json.loads(done.stdout)
    assert name == REPOSITORY
    assert [scores[d.doc_id] for d in DOCUMENTS] == pytest.approx(scores_of(reranker), abs=1e-5)
    assert message.startswith("Model 'someone/absent' is neither a model folder nor a hub name")


def test_a_hub_without_an_address_is_given_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub asks again and again for every file of a model, each time after a longer pause."""
    asked: list[Any] = []

    def nowhere(host: Any, *more: Any, **others: Any) -> Any:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    for name in [n for n in os.environ if "proxy" in n.lower()]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example")
    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    with pytest.raises(ResourceNotFoundError, match="Model 'someone/absent' is neither a model folder nor a hub name"):
        rankwright.load("someone/absent")
    assert set(asked) == {"hub.example"}
    assert len(asked) <= 2  # once for each part that asks the hub, never for a file
    assert constants.HF_HUB_OFFLINE is False


def test_the_hub_is_asked_where_it_has_an_address_and_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if "proxy" in n.lower()]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with fetched("someone/absent"):
        assert constants.HF_HUB_OFFLINE is False
    monkeypatch.setattr(constants, "ENDPOINT", "http://" + "x" * 70)  # no name of a host is as long
    with fetched("someone/absent"), ExitStack() as other:
        assert constants.HF_HUB_OFFLINE is True
        other.enter_context(fetched("someone/other"))  # as in another thread, which ends first
        other.close()
        assert constants.HF_HUB_OFFLINE is True
    assert constants.HF_HUB_OFFLINE is False
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with fetched("someone/absent"):
        assert constants.HF_HUB_OFFLINE is False
