"""The routes: four dialects of one request, the contract of errors, keys, hosts, limits."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.testclient import TestClient

from rankwright.engine import Engine, EngineSettings
from rankwright.errors import ConfigurationError
from rankwright.server import page
from rankwright.server.answers import ServedReader
from rankwright.server.app import create_app
from rankwright.server.dialects import MOST_NAMED, relevance
from rankwright.server.schemas import MAX_TOP
from rankwright.server.settings import ServerSettings, keys_of
from rankwright.types import Answer, ReadFailed
from tests.hostile_bodies import HOSTILE
from tests.server_kit import KEY, client, posted, rerank, started, until
from tests.stub_scorer import StubHalves, StubScorer, score_of

RAW = [score_of("red door", text) for text in ("red door", "a wall", "door")]
ORDER = [0, 2, 1]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def is_contract(response: Any, status: int) -> bool:
    """Whether a refusal has the contract's status and form."""
    error = response.json()["error"]
    return (
        response.status_code == status
        and sorted(error) == ["message", "param", "request_id", "type"]
        and error["request_id"] == response.headers["x-request-id"]
        and bool(error["message"])
    )


# --- dialects --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
def test_jina_and_vllm_get_results_with_documents_and_usage(path: str) -> None:
    with client() as at:
        answer = posted(at, *rerank(path)).json()
    assert [r["index"] for r in answer["results"]] == ORDER
    assert [r["relevance_score"] for r in answer["results"]] == pytest.approx([sigmoid(RAW[i]) for i in ORDER])
    assert [r["score_raw"] for r in answer["results"]] == [RAW[i] for i in ORDER]
    assert [r["document"] for r in answer["results"]] == [{"text": t} for t in ("red door", "door", "a wall")]
    tokens = (2 + 2) + (2 + 2) + (2 + 1)
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert answer["model"] == "stub"


def test_cohere_gets_results_without_documents_and_meta() -> None:
    with client() as at:
        answer = posted(at, *rerank("/v2/rerank", top_n=2, model="rerank-v3.5")).json()
    assert [r["index"] for r in answer["results"]] == ORDER[:2]
    assert all("document" not in r for r in answer["results"])
    assert answer["meta"]["api_version"] == {"version": "2"}
    assert answer["meta"]["tokens"]["input_tokens"] == answer["usage"]["total_tokens"] == 11


def test_tei_gets_a_list() -> None:
    with client() as at:
        asked = {"query": "red door", "texts": ["red door", "a wall", "door"]}
        plain = posted(at, "/rerank", asked)
        full = posted(at, "/rerank", {**asked, "raw_scores": True, "return_text": True}).json()
    assert [r["index"] for r in plain.json()] == ORDER
    assert [r["score"] for r in plain.json()] == pytest.approx([sigmoid(RAW[i]) for i in ORDER])
    assert plain.headers["x-compute-tokens"] == "11"
    assert [r["score"] for r in full] == [RAW[i] for i in ORDER]
    assert [r["text"] for r in full] == ["red door", "door", "a wall"]


def test_tei_is_told_errors_in_its_own_form() -> None:
    with client() as at:
        refused = posted(at, "/rerank", {"query": "red door", "texts": []})
    assert refused.status_code == 422
    assert refused.json() == {
        "error": "texts is empty; wanted 1 to 1000 documents.",
        "error_type": "Validation",
    }


@pytest.mark.parametrize(
    "names", [("queries", "documents"), ("text_1", "text_2"), ("data_1", "data_2"), ("queries", "items")]
)
def test_score_takes_one_text_against_many_and_as_many_against_as_many(names: tuple[str, str]) -> None:
    left, right = names
    with client() as at:
        one = posted(at, "/score", {left: "red door", right: ["a wall", "red door"]}).json()
        many = posted(at, "/score", {left: ["red", "a"], right: ["a wall", "a wall"], "raw_scores": True}).json()
        single = posted(at, "/score", {left: "red", right: "red"}).json()
        uneven = posted(at, "/score", {left: ["red", "a"], right: ["a", "b", "c"]})
    assert [(d["index"], d["score"]) for d in one["data"]] == [
        (i, pytest.approx(sigmoid(score_of("red door", text)))) for i, text in enumerate(("a wall", "red door"))
    ]
    assert [d["score"] for d in many["data"]] == [score_of("red", "a wall"), score_of("a", "a wall")]
    assert len(single["data"]) == 1
    assert is_contract(uneven, 422)


def test_names_of_all_dialects_mean_the_same_everywhere() -> None:
    with client() as at:
        plain = posted(at, *rerank(top_n=1, return_documents=False)).json()["results"]
        other = posted(at, "/v1/rerank", {"query": "red door", "texts": rerank()[1]["documents"], "top_k": 1}).json()
        objects = posted(at, *rerank(documents=[{"text": t} for t in rerank()[1]["documents"]], top_n=3.0)).json()
    assert [r["index"] for r in plain] == [r["index"] for r in other["results"]] == [0]
    assert [r["score_raw"] for r in objects["results"]] == [RAW[i] for i in ORDER]
    assert "document" not in plain[0]


def test_documents_without_text_are_scored_like_others() -> None:
    with client() as at:
        answer = posted(at, *rerank(documents=["", " ", {"text": "", "title": "Red"}, "red"])).json()
    assert [r["index"] for r in answer["results"]] == [3, 0, 1, 2]
    assert [r["score_raw"] for r in answer["results"]] == [score_of("red door", text) for text in ("red", "", "", "")]


def test_ids_titles_cuts_and_warnings_come_back() -> None:
    long = "red " * 100
    with client() as at:
        documents = [{"text": "door", "title": "Red"}, long]
        answer = posted(at, *rerank(documents=documents, ids=["a", "b"], instruction="no", priority=1)).json()
        cohere = posted(at, *rerank("/v2/rerank", instruction="no", chat_template_kwargs={})).json()
    by_id = {r["id"]: r for r in answer["results"]}
    assert by_id["a"]["document"] == {"text": "door", "title": "Red"}
    assert (by_id["a"]["truncated"], by_id["b"]["truncated"]) == (False, True)
    assert by_id["b"]["tokens"] == 64
    assert answer["warnings"] == cohere["meta"]["warnings"] == ["instruction is not applied."]


def test_fields_that_nobody_knows_are_named() -> None:
    odd = {"topn": 1, "rank_fields": ["text"], "nothing": None, "priority": 1, "user": "u", "request_id": "r"}
    with client() as at:
        answer = posted(at, *rerank(**odd)).json()
        cohere = posted(at, *rerank("/v2/rerank", **odd)).json()
        tei = posted(at, "/rerank", {"query": "red door", "texts": ["red"], "topn": 1})
        long = {f"{i}{'x' * 1000}": i for i in range(5 + MOST_NAMED)}
        many = posted(at, *rerank("/v1/rerank", **long)).json()["warnings"]
    told = [f"{name} is not known here and was left out." for name in ("topn", "rank_fields")]
    assert answer["warnings"] == cohere["meta"]["warnings"] == told
    assert (tei.status_code, len(tei.json())) == (200, 1)
    assert many[-1] == "5 more fields are not known here and were left out."
    assert [line.split()[0] for line in many[:-1]] == [f"{i}{'x' * 63}" for i in range(MOST_NAMED)]


class Spanning(StubScorer):
    """Tells where its words stand."""

    template = "{title} {text}"

    def spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        return [[word.span() for word in re.finditer(r"\S+", text)] for text in texts]


def test_documents_are_cut_to_max_tokens_per_doc() -> None:
    documents = ["red door in a wall", "a wall", {"text": "door wall", "title": "Red"}, {"text": "", "title": "a b c"}]
    with client(Spanning()) as at:
        answer = posted(at, *rerank("/v2/rerank", documents=documents, max_tokens_per_doc=2)).json()
        whole = [
            posted(at, *rerank(documents=documents, max_tokens_per_doc=n)).json() for n in (0, None, 9, 64, MAX_TOP)
        ]
        refused = posted(at, *rerank(max_tokens_per_doc=-1))
    with client() as at:
        untold = posted(at, *rerank(documents=documents, max_tokens_per_doc=2)).json()
    found = {r["index"]: (r["score_raw"], r["truncated"]) for r in answer["results"]}
    read = {0: "red door", 1: "a wall", 2: "door", 3: ""}
    assert found == {i: (score_of("red door", text), i in (0, 2)) for i, text in read.items()}
    assert "warnings" not in answer["meta"]
    assert all(not r["truncated"] for one in [*whole, untold] for r in one["results"])
    assert all("warnings" not in one for one in whole)
    assert whole[0]["results"][0]["document"] == {"text": documents[0]}
    assert "max_tokens_per_doc is not applied" in untold["warnings"][0]
    assert is_contract(refused, 422)


@pytest.mark.parametrize(("kind", "read"), [(StubScorer, [["red door", "a wall"], [""]]), (StubHalves, [])])
@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/v1/rerank", ("query", "documents")),
        ("/v2/rerank", ("query", "documents")),
        ("/rerank", ("query", "documents")),
        ("/rerank", ("query", "texts")),
        ("/score", ("text_1", "text_2")),
    ],
)
def test_a_question_of_more_tokens_than_the_model_reads_is_refused_first(
    path: str, names: tuple[str, str], kind: type[StubScorer | StubHalves], read: list[list[str]]
) -> None:
    """With tokens that are known before, nothing is scored for it; else what shares its first batch."""
    scored: list[list[str]] = []
    with client(kind(note=lambda texts: scored.append(list(texts)))) as at:
        scored.clear()
        refused = posted(at, path, {names[0]: "red " * 65, names[1]: ["red door", "a wall"]})
        assert scored == read
        fits = posted(at, path, {names[0]: "red " * 64, names[1]: ["red door", "a wall"]})
    told = refused.json()
    if "texts" in names:
        assert (refused.status_code, told["error_type"]) == (422, "Validation")
    else:
        assert is_contract(refused, 422)
        assert told["error"]["param"] == names[0]
    assert "64 tokens" in str(told["error"])
    assert fits.status_code == 200
    found = fits.json()
    assert all(one["truncated"] for one in (found if "texts" in names else found.get("results") or found["data"]))


@pytest.mark.parametrize("asked", [{"truncate": False}, {"truncation": False}, {"truncation_direction": "Left"}])
def test_who_wants_nothing_cut_is_told_what_is_too_long(asked: dict[str, Any]) -> None:
    with client() as at:
        refused = posted(at, "/rerank", {"query": "red", "documents": ["door", "red " * 64], **asked})
        fits = posted(at, "/rerank", {"query": "red", "texts": ["door", "red " * 63], **asked})
        plain = {"truncate": True, "truncation": True, "truncation_direction": "Right"}
        cut = posted(at, "/rerank", {"query": "red", "texts": ["door", "red " * 64], **plain})
    assert is_contract(refused, 422)
    assert refused.json()["error"]["param"] == "documents.1"
    assert (fits.status_code, cut.status_code) == (200, 200)
    assert [r["truncated"] for r in cut.json()] == [True, False]


def test_vllm_asks_for_logits_by_use_activation() -> None:
    with client() as at:
        wishes: list[dict[str, Any]] = [{"use_activation": False}, {"use_activation": True, "raw_scores": True}]
        for asked in wishes:
            ranked = posted(at, *rerank(**asked)).json()["results"]
            scored = posted(at, "/score", {"queries": "red door", "documents": ["red door"], **asked}).json()["data"]
            assert (ranked[0]["relevance_score"], scored[0]["score"]) == (RAW[0], RAW[0])
        scaled = posted(at, *rerank(use_activation=True)).json()["results"]
    assert scaled[0]["relevance_score"] == pytest.approx(sigmoid(RAW[0]))


def test_equal_scores_keep_the_order_given_and_high_scores_their_order() -> None:
    class Steep(StubScorer):
        def _scored(self, request: Any, what: str, how: str) -> Any:
            found = super()._scored(request, what, how)
            return type(found)(tuple(50 * score for score in found.scores), found.tokens, found.cut)

    with client(Steep()) as at:
        answer = posted(at, *rerank(query="a b c", documents=["a b", "a b c", "a b", "x", "x"])).json()
    assert [r["index"] for r in answer["results"]] == [1, 0, 2, 3, 4]
    assert answer["results"][0]["relevance_score"] == answer["results"][1]["relevance_score"] == 1.0


@pytest.mark.parametrize("score", [-800.0, -1.0, 0.0, 1.0, 800.0])
def test_relevance_is_the_sigmoid_at_a_temperature(score: float) -> None:
    assert relevance([score], 2.0)[0] == pytest.approx(sigmoid(score / 2) if score > -800 else 0.0)
    assert 0 <= relevance([score])[0] <= 1


def test_a_model_with_a_temperature_is_scaled_by_it() -> None:
    scorer = StubScorer()
    scorer.temperature, scorer.threshold = 4.0, 0.25
    with client(scorer) as at:
        answer = posted(at, *rerank()).json()
        (told,) = at.get("/info").json()["models"]
    assert (told["temperature"], told["threshold"]) == (4.0, 0.25)
    assert answer["results"][0]["relevance_score"] == pytest.approx(sigmoid(RAW[0] / 4))
    assert answer["results"][0]["score_raw"] == RAW[0]


# --- the contract of errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bodies_are_refused_by_the_contract(shared: Any, name: str) -> None:
    status, body = HOSTILE[name]
    refused = posted(shared, "/v1/rerank", body)
    assert is_contract(refused, status), refused.text
    assert len(refused.text) < 1000


@pytest.fixture(scope="module")
def shared() -> Any:
    with client() as at:
        yield at


def test_there_are_sixty_hostile_bodies() -> None:
    assert len(HOSTILE) >= 60


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip"])
def test_compressed_bodies_are_refused(shared: Any, encoding: str) -> None:
    path, body = rerank()
    assert is_contract(posted(shared, path, body, **{"Content-Encoding": encoding}), 415)


def test_a_body_is_refused_by_what_it_says_of_its_length(shared: Any) -> None:
    refused = shared.post("/v1/rerank", content=b"{}", headers={"Content-Length": str(10**9)})
    assert is_contract(refused, 413)
    assert str(4 * 2**20) in refused.json()["error"]["message"]


def test_chunks_are_counted_as_they_come(shared: Any) -> None:
    def chunks() -> Any:
        for _ in range(100):
            yield b" " * 2**16

    assert is_contract(shared.post("/v1/rerank", content=chunks()), 413)


def test_unknown_addresses_and_methods(shared: Any) -> None:
    assert is_contract(shared.get("/nowhere"), 404)
    refused = shared.get("/v1/rerank")
    assert is_contract(refused, 405)
    assert refused.headers["allow"] == "POST"
    assert refused.json()["error"]["message"] == "This address takes POST; send that."


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/rerank", {"documents": ["a"]}, "Field query is missing; wanted a string."),
        ("/v1/rerank", {"query": 3, "documents": ["a"]}, "Field query has another form; wanted a valid string."),
        ("/v1/rerank", {"query": "q"}, "Field documents (or texts) is missing; wanted a list of texts."),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "texts": ["a"]}, "Fields documents and texts say the same;"),
        ("/rerank", {"query": "q", "documents": "a"}, "Field documents has another form; wanted a list of strings or"),
        ("/rerank", {"query": "q", "texts": [{"title": "x"}]}, "Field texts.0 has another form; wanted a string or an"),
        ("/score", {"queries": "q", "documents": 3}, "Field documents has another form; wanted a string or a list of"),
        ("/score", {"documents": "d"}, "Field queries (or text_1, data_1) is missing; wanted"),
    ],
)
def test_what_is_wrong_with_a_field_is_said(shared: Any, path: str, body: dict[str, Any], words: str) -> None:
    refused = posted(shared, path, body)
    answer = refused.json()["error"]
    assert refused.status_code == 400
    assert (answer if isinstance(answer, str) else answer["message"]).startswith(words)


def test_a_document_with_an_empty_text_is_scored(shared: Any) -> None:
    assert len(posted(shared, "/v1/rerank", {"query": "red", "documents": ["", {"text": ""}]}).json()["results"]) == 2


def test_any_model_name_is_taken_unless_the_server_is_strict() -> None:
    with client() as at:
        assert posted(at, *rerank(model="anything")).json()["model"] == "stub"
    with client(strict_model=True) as at:
        assert posted(at, *rerank(model="stub")).status_code == 200
        assert posted(at, *rerank()).status_code == 200
        assert is_contract(posted(at, *rerank(model="anything")), 404)


@pytest.mark.parametrize("mode", ["raise", "nan"])
def test_a_fault_of_the_model_is_a_500_that_says_nothing(mode: str) -> None:
    secret = "red secret-passage"
    modes = iter(["well"] * 2 + [mode])  # the warm-up is well, and so is the probe after it
    with client(StubScorer(mode=lambda: next(modes, "well"))) as at:
        refused = posted(at, *rerank(documents=[secret]))
        until(lambda: at.get("/ready").status_code == 200)  # the probe comes first
        again = posted(at, *rerank())
    assert is_contract(refused, 500)
    assert "secret" not in refused.text
    assert "stub was told" not in refused.text
    assert again.status_code == 200


def test_a_document_on_which_memory_runs_out_is_named_and_the_others_are_scored() -> None:
    documents = [f"red {i}" for i in range(99)] + ["poison red"]
    with client(StubScorer(mode=lambda: "memory on poison")) as at:
        answer = posted(at, *rerank(documents=documents)).json()
        tei = posted(at, "/rerank", {"query": "red", "texts": documents})
        score = posted(at, "/score", {"queries": "red", "documents": documents})
        cohere = posted(at, *rerank("/v2/rerank", documents=documents)).json()
    assert answer["failed"] == [{"index": 99, "reason": "out of memory"}]
    assert {r["index"]: r["score_raw"] for r in answer["results"]} == {
        i: score_of("red door", text) for i, text in enumerate(documents[:99])
    }
    assert tei.status_code == score.status_code == 500
    assert "Document 99 has no score" in cohere["meta"]["warnings"][0]


def test_before_the_model_is_there_requests_are_told_to_wait() -> None:
    engine = Engine(lambda: {"stub": StubScorer()})
    at = TestClient(create_app(engine, ServerSettings()), base_url="http://localhost")
    assert at.get("/live").status_code == 200
    assert is_contract(at.get("/ready"), 503)
    assert is_contract(at.get("/health"), 503)
    refused = posted(at, *rerank())
    assert is_contract(refused, 503)
    assert int(refused.headers["retry-after"]) >= 1


def test_a_full_queue_refuses_whole_requests_and_says_when() -> None:
    with client(StubScorer(0.05), EngineSettings(max_waiting=4)) as at:
        refused = posted(at, *rerank(documents=[f"d{i}" for i in range(5)]))
        taken = posted(at, *rerank())
    assert is_contract(refused, 429)
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert taken.status_code == 200


def test_a_deadline_is_a_504() -> None:
    with client(StubScorer(0.05), timeout=0.2) as at:
        assert is_contract(posted(at, *rerank(documents=[f"d{i}" for i in range(20)])), 504)


# --- keys, hosts, origins --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", ["", "Bearer", "Bearer ", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x"])
def test_without_a_key_nothing_is_told(shared: Any, sent: str) -> None:
    for path in ("/info", "/health", "/metrics", "/openapi.json", "/nowhere"):
        refused = shared.get(path, headers={"Authorization": sent})
        assert is_contract(refused, 401)
        assert refused.headers["www-authenticate"] == "Bearer"
    assert is_contract(posted(shared, *rerank(), Authorization=sent), 401)


def test_keys_can_be_rotated() -> None:
    with client(keys=keys_of("old, new")) as at:
        statuses = [at.get("/info", headers={"Authorization": f"bearer {k}"}).status_code for k in ("old", "new", "ol")]
    assert statuses == [200, 200, 401]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("LOCALHOST", 200),
        ("reranker.example", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("", 421),
    ],
)
def test_only_own_names_are_answered(host: str, status: int) -> None:
    with client(allowed_hosts=("reranker.example",)) as at:
        for path in ("/info", "/"):
            assert at.get(path, headers={"Host": host}).status_code == status


@pytest.mark.parametrize("path", ["/live", "/ready"])
def test_a_load_balancer_may_ask_by_address(path: str) -> None:
    with client(host="0.0.0.0", allowed_hosts=("reranker.example",)) as at:
        assert at.get(path, headers={"Host": "10.0.0.7:8000", "Authorization": ""}).status_code == 200
        assert at.get("/info", headers={"Host": "10.0.0.7:8000"}).status_code == 421


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8000", 200),
        ("http://evil.example", 403),
        ("null", 403),
        ("http://localhost:9000", 403),
        ("http://[", 403),
    ],
)
def test_pages_of_other_sites_are_refused(shared: Any, origin: str, status: int) -> None:
    answer = posted(shared, *rerank(), Origin=origin)
    assert answer.status_code == status
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_server_for_others_needs_a_key() -> None:
    with pytest.raises(ConfigurationError, match="RANKWRIGHT_API_KEY"):
        ServerSettings(host="0.0.0.0")
    settings = ServerSettings(host="0.0.0.0", keys=("secret-4711",))
    assert "secret-4711" not in repr(settings)
    assert settings.is_host_allowed("any.example")
    with pytest.raises(ConfigurationError) as refused:
        ServerSettings(keys=("ключ-4711",))
    assert "4711" not in str(refused.value)


# --- what is told of the server --------------------------------------------------------------------------------------


def test_info_names_models_and_limits(shared: Any) -> None:
    info = shared.get("/info").json()
    assert info["models"] == [
        {"name": "stub", "backend": "stub", "max_length": 64, "temperature": 1.0, "threshold": None}
    ]
    assert info["limits"]["documents"] == 1000
    assert info["reader"] is None


def test_health_is_ready_by_another_name(shared: Any) -> None:
    answers = [shared.get(path) for path in ("/health", "/ready")]
    assert [(answer.status_code, answer.json()) for answer in answers] == [(200, {"ready": True})] * 2


def test_metrics_count_what_was_answered() -> None:
    with client() as at:
        for _ in range(3):
            posted(at, *rerank())
        posted(at, *rerank(query=""))
        at.get("/wp-login.php")
        text = at.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['rankwright_requests_total{code="200",route="/v1/rerank"}']) == 3
    assert float(values['rankwright_requests_total{code="422",route="/v1/rerank"}']) == 1
    assert float(values['rankwright_requests_total{code="404",route="other"}']) == 1
    assert float(values["rankwright_pairs_total"]) == 9
    assert float(values["rankwright_queue_documents"]) == 0
    assert float(values["rankwright_ready"]) == 1
    assert "wp-login" not in text


def test_a_request_id_comes_back_if_it_is_harmless(shared: Any) -> None:
    assert shared.get("/live", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert shared.get("/live", headers={"X-Request-ID": "a b\t"}).headers["x-request-id"] != "a b"


def test_the_description_is_json_with_all_routes(shared: Any) -> None:
    paths = json.loads(shared.get("/openapi.json").text)["paths"]
    assert {
        "/rerank",
        "/v1/rerank",
        "/v2/rerank",
        "/score",
        "/live",
        "/ready",
        "/health",
        "/info",
        "/metrics",
        "/v1/models",
    } <= set(paths)


# --- the page and its reader -----------------------------------------------------------------------------------------


class Parrot:
    """Answers with the first passage; fails on a word."""

    name = "parrot"

    def answer(self, contexts: Any) -> list[Any]:
        first = contexts[0].documents[0].text
        return [ReadFailed("timeout") if first == "fail" else Answer("" if first == "nothing" else first)]


def test_a_reader_answers_from_documents_in_their_order() -> None:
    with started() as engine:
        app = create_app(engine, ServerSettings(), reader=ServedReader(Parrot(), 2))
        at = TestClient(app, base_url="http://localhost")
        asked = {"query": "which?", "documents": ["red door", {"text": "wall"}]}
        assert at.get("/info").json()["reader"] == {"name": "parrot", "top_k": 2}
        assert posted(at, "/answer", asked).json() == {"answer": "red door", "reader": "parrot"}
        assert posted(at, "/answer", {**asked, "documents": ["nothing"]}).json()["answer"] == ""
        failed = posted(at, "/answer", {**asked, "documents": ["fail"]})
        assert is_contract(failed, 502)
        assert "timeout" in failed.json()["error"]["message"]
        assert is_contract(posted(at, "/answer", {"query": "which?"}), 400)
        assert is_contract(posted(at, "/answer", {"query": "which?", "documents": []}), 422)


def test_without_a_reader_there_is_no_answer(shared: Any) -> None:
    assert is_contract(posted(shared, "/answer", {"query": "which?", "documents": ["red door"]}), 404)
    assert "/answer" not in shared.get("/openapi.json").json()["paths"]


@pytest.mark.parametrize("path", sorted(page.FILES))
def test_the_page_needs_no_key_and_lets_nothing_else_run(shared: Any, path: str) -> None:
    for method in ("GET", "HEAD"):
        answer = shared.request(method, path, headers={"Authorization": ""})
        assert answer.status_code == 200
        assert "unsafe-inline" not in answer.headers["content-security-policy"]
        assert answer.headers["content-type"] == page.FILES[path].media_type
    assert shared.get(path).content == page.FILES[path].body
