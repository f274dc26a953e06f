"""Log probabilities of tokens: sent, read, kept, computed here, and missed by name where a server drops them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_lm import END, VOCABULARY, WORDS, make_chain_model, make_random_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from rankwright.errors import ConfigurationError, ModelError, ReaderError
from rankwright.llms.cache import CachedLLM, ReadStore, request_key
from rankwright.llms.local import LocalLLM
from rankwright.llms.logprobs import LEAST, read_logprobs
from rankwright.llms.replies import read_completion
from rankwright.types import Completion, CompletionFailed, CompletionResult, LLMRequest
from tests.chaos_client import MAX_RETRIES, calls_of, client
from tests.chaos_reader import BAD_LOGPROBS, DROPPED_LOGPROBS, ChaosReader, completion, said

YES: Mapping[str, float] = {"yes": -0.1, "no": -2.3, "maybe": -5.0}


def ask(text: str, max_tokens: int = 1, top: int = 2) -> LLMRequest:
    """A request for log probabilities."""
    sampling = {"max_tokens": max_tokens, "temperature": 0.0, "logprobs": True, "top_logprobs": top}
    return LLMRequest((("user", text),), tuple(sorted(sampling.items())))


def plain(text: str, max_tokens: int = 1) -> LLMRequest:
    return LLMRequest((("user", text),), (("max_tokens", max_tokens), ("temperature", 0.0)))


# --- through HTTP ----------------------------------------------------------------------------------------------------


def test_they_are_asked_for_and_read() -> None:
    with ChaosReader(tokens=lambda question: [YES]) as server:
        (result,) = client(server).complete([ask("q")])
        (seen,) = server.ledger
    assert (seen.body["logprobs"], seen.body["top_logprobs"], seen.body["max_tokens"]) == (True, 2, 1)
    assert result == Completion("yes", 10, 3, True, ({"yes": -0.1, "no": -2.3},))


def test_the_token_written_comes_first_and_is_there_though_not_among_the_likeliest() -> None:
    written: Mapping[str, float] = {"maybe": -5.0, "yes": -0.1, "no": -2.3}
    with ChaosReader(tokens=lambda question: [written, YES]) as server:
        (result,) = client(server).complete([ask("q", max_tokens=8)])
    assert isinstance(result, Completion)
    assert [list(tokens) for tokens in result.top_logprobs] == [["maybe", "yes", "no"], ["yes", "no"]]
    assert result.text == "maybeyes"


def test_one_token_or_two_need_no_end_but_a_longer_text_does() -> None:
    with ChaosReader(tokens=lambda question: [YES, YES, YES, YES]) as server:
        requests = [ask("q"), ask("q", max_tokens=2), ask("q", max_tokens=3), plain("q")]
        one, two, three, plain_one = client(server).complete(requests)
    assert isinstance(one, Completion)
    assert isinstance(two, Completion)  # the second is read where a model writes the bracket first
    assert len(two.top_logprobs) == 2
    assert three == CompletionFailed("length")
    assert plain_one == Completion("answer to q", 10, 3)  # nothing was asked for, nothing is read


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_an_empty_text_is_an_answer_where_its_token_is_told_of(content: str | None) -> None:
    body = completion("q", content=content, logprobs={"content": [said({" ": -0.5, "yes": -1.0}, 2)]})
    raw = json.dumps(body).encode()
    assert read_completion(raw, ask("q")).result == Completion(content or "", 10, 3, True, ({" ": -0.5, "yes": -1.0},))
    assert read_completion(raw, plain("q")).result == CompletionFailed("empty text")


@pytest.mark.parametrize("change", [{"refusal": "no"}, {"finish_reason": "content_filter"}])
def test_a_refusal_is_no_answer_whatever_its_tokens(change: dict[str, str]) -> None:
    body = completion("q", logprobs={"content": [said(YES, 2)]}, **change)
    reason = "refusal" if "refusal" in change else "content filter"
    assert read_completion(json.dumps(body).encode(), ask("q")).result == CompletionFailed(reason)


def test_malformed_ones_fail_the_call_after_retries() -> None:
    with ChaosReader({name: [name] * 9 for name in BAD_LOGPROBS}, tokens=lambda question: [YES]) as server:
        calls = calls_of(client(server), [ask(name) for name in BAD_LOGPROBS])
    assert {call.result for call in calls} == {CompletionFailed("bad logprobs")}
    assert {call.attempts for call in calls} == {1 + MAX_RETRIES}


def test_malformed_ones_that_pass_are_retried_and_mean_nothing_to_who_did_not_ask() -> None:
    script = {name: [name] for name in BAD_LOGPROBS}
    with ChaosReader(script, tokens=lambda question: [YES]) as server:
        results = client(server).complete([ask(name) for name in BAD_LOGPROBS])
        assert {result.text for result in results if isinstance(result, Completion)} == {"yes"}
        server.script(script)
        results = client(server).complete([plain(name) for name in BAD_LOGPROBS])
        assert results == [Completion(f"answer to {name}", 10, 3) for name in BAD_LOGPROBS]


@pytest.mark.parametrize("name", ["ok", *DROPPED_LOGPROBS])
def test_a_server_that_drops_them_is_named_with_what_still_works(name: str) -> None:
    with ChaosReader({"q": [name]}) as server, pytest.raises(ReaderError) as raised:
        client(server).complete([ask("q", top=20)])
    message = str(raised.value)
    assert message.startswith(f"m@{server.base_url} was asked for log probabilities of tokens (logprobs True, top_")
    assert "top_logprobs 20) and left them out of its answer; wanted a server that gives them." in message
    works, _, lacks = message.partition("those that do not")
    assert all(name in works for name in ("sliding", "heapsort", "bubblesort", "groupwise", "topk"))
    assert all(name in lacks for name in ("pointwise by logit", "single-token"))
    assert len(server.ledger) == 1


def test_a_server_that_refuses_them_is_named_with_its_words() -> None:
    with ChaosReader({"q": ["logprobs-refused"], "r": ["400"]}) as server:
        with pytest.raises(ReaderError, match=r"refused \(http 400: logprobs are not supported\); wanted .*sliding"):
            client(server).complete([ask("q")])
        assert client(server).complete([ask("r")]) == [CompletionFailed("http 400")]  # of something else
        assert client(server).complete([plain("r")]) == [Completion("answer to r", 10, 3)]


def test_one_answer_without_them_is_a_failed_call_where_others_have_them() -> None:
    with ChaosReader({"q1": ["logprobs-null"]}, tokens=lambda question: [YES]) as server:
        llm = client(server, concurrency=1)
        results = llm.complete([ask("q0"), ask("q1"), ask("q2")])
    assert [isinstance(result, Completion) for result in results] == [True, False, True]
    assert results[1] == CompletionFailed("no logprobs")


def test_a_model_that_wrote_nothing_says_nothing_about_its_server() -> None:
    body = completion("q", content="", logprobs={"content": []})
    assert read_completion(json.dumps(body).encode(), ask("q", 8)).result == CompletionFailed("empty text")


def test_numbers_are_clamped_and_twins_counted_once() -> None:
    entry = {"token": "a", "logprob": -math.inf, "top_logprobs": []}
    entry["top_logprobs"] = [
        {"token": t, "logprob": v} for t, v in (("b", 1e-9), ("c", -3), ("c", -2.0), ("d", -1e300))
    ]
    (tokens,) = read_logprobs({"content": [entry]}, 9) or ({},)
    assert tokens == {"a": LEAST, "b": 0.0, "c": -2.0, "d": LEAST}
    assert list(tokens) == ["a", "b", "c", "d"]


def test_never_more_alternatives_than_were_asked_for() -> None:
    content = [{**said(YES, 0), "top_logprobs": [{"token": str(n), "logprob": -float(n)} for n in range(50_000)]}] * 3
    found = read_logprobs({"content": content}, 2)
    assert found == ({"yes": -0.1, "0": 0.0, "1": -1.0},) * 3


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["content", "token", "logprob", "top_logprobs"]) | st.text(max_size=2), inner)
    ),
    max_leaves=12,
)


@given(JSON, st.integers(0, 3))
def test_anything_is_read_without_raising_as_numbers_or_a_reason(found: Any, top: int) -> None:
    read = read_logprobs(found, top)
    if isinstance(read, str):
        assert read in ("no logprobs", "bad logprobs")
    else:
        assert all(LEAST <= value <= 0 for tokens in read for value in tokens.values())
        assert all(1 <= len(tokens) <= top + 1 for tokens in read)


@given(JSON)
def test_any_body_becomes_a_reply(found: Any) -> None:
    body = json.dumps(completion("q", logprobs=found)).encode()
    result = read_completion(body, ask("q")).result
    assert isinstance(result, CompletionFailed) or result.top_logprobs


# --- through the cache -----------------------------------------------------------------------------------------------


class Teller:
    """An LLM with log probabilities, or without; counts its requests."""

    name = "teller"

    def __init__(self, tells: bool = True, text: str = "") -> None:
        self.tells, self.text, self.asked = tells, text, 0

    def complete(self, requests: Sequence[LLMRequest]) -> list[CompletionResult]:
        self.asked += len(requests)
        tokens = ({"no": -2.0, "yes": -0.1}, {"</s>": -0.0})
        return [Completion(self.text, 5, 1, True, tokens if self.tells else ()) for _ in requests]


def test_the_cache_gives_them_back_as_they_came(tmp_path: Path) -> None:
    llm = Teller()
    with ReadStore(tmp_path / "reads.sqlite") as store:
        (first,) = CachedLLM(llm, store).complete([ask("q")])
        (again,) = CachedLLM(llm, store).complete([ask("q")])
    assert llm.asked == 1
    assert isinstance(first, Completion)
    assert again == Completion("", 5, 1, False, ({"no": -2.0, "yes": -0.1}, {"</s>": -0.0}))
    assert isinstance(again, Completion)
    assert [list(tokens) for tokens in again.top_logprobs] == [["no", "yes"], ["</s>"]]  # the one written first


def test_a_row_without_them_answers_only_who_does_not_ask(tmp_path: Path) -> None:
    row = {"text": "yes", "input_tokens": 1, "output_tokens": 1}  # as stored before there were any
    llm = Teller()
    with ReadStore(tmp_path / "reads.sqlite") as store:
        store.put_many({request_key(llm.name, request): row for request in (ask("q"), plain("q"))})
        results = CachedLLM(llm, store).complete([plain("q"), ask("q")])
    assert results[0] == Completion("yes", 1, 1, paid=False)
    assert isinstance(results[1], Completion)
    assert results[1].paid
    assert results[1].top_logprobs
    assert llm.asked == 1


def test_keys_and_rows_of_other_requests_are_what_they_were(tmp_path: Path) -> None:
    assert request_key("m", plain("q")) == "70366ea66d4fc027924d2ccca1b53dee1d891efc73b8ff4d3bc1b4df964c791e"
    with ReadStore(tmp_path / "reads.sqlite") as store:
        CachedLLM(Teller(tells=False, text="yes"), store).complete([plain("q")])
        ((value,),) = store.read("SELECT value FROM answers")
    assert value == '{"input_tokens": 5, "output_tokens": 1, "text": "yes"}'


def test_an_llm_that_gives_none_fails_the_call_and_nothing_is_stored(tmp_path: Path) -> None:
    with ReadStore(tmp_path / "reads.sqlite") as store:
        cached = CachedLLM(Teller(tells=False, text="yes"), store)
        assert cached.complete([ask("q"), plain("q")]) == [CompletionFailed("no logprobs"), Completion("yes", 5, 1)]
        assert (len(store), cached.failed) == (1, 1)


def test_a_dropping_server_stops_the_run_through_the_cache_and_leaves_no_row(tmp_path: Path) -> None:
    with ChaosReader() as server, ReadStore(tmp_path / "reads.sqlite") as store:
        with pytest.raises(ReaderError, match="left them out"):
            CachedLLM(client(server), store, run="r").complete([ask("q")])
        assert len(store) == 0
        assert store.ledger.totals("r").failed == 1  # it was sent, and perhaps billed


# --- computed here ---------------------------------------------------------------------------------------------------


def by_hand(folder: Path, prompt: str, steps: int) -> list[torch.Tensor]:
    """Log probabilities of each step of a greedy text, by transformers alone and without a cache of keys."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(f"<user> {prompt} <assistant>", add_special_tokens=False, return_tensors="pt")["input_ids"]
    found: list[torch.Tensor] = []
    for _ in range(steps):
        with torch.no_grad():
            found.append(model(ids).logits[0, -1].float().log_softmax(-1))
        ids = torch.cat([ids, found[-1].argmax().view(1, 1)], dim=1)
    return found


def test_a_local_model_tells_the_logits_of_its_own_softmax(tmp_path: Path) -> None:
    folder = make_random_model(tmp_path, seed=4)
    llm = LocalLLM(folder, device="cpu", dtype="float32")
    words, steps_seen = list(VOCABULARY), 0
    for prompt in WORDS[:8]:
        (result,) = llm.complete([ask(prompt, max_tokens=12, top=3)])
        if not isinstance(result, Completion):
            continue
        steps = by_hand(folder, prompt, len(result.top_logprobs))
        assert result.output_tokens == len(steps)
        for tokens, logprobs in zip(result.top_logprobs, steps, strict=True):
            best = logprobs.topk(3)
            wanted = {words[i]: value for i, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)}
            assert tokens == pytest.approx(wanted, abs=1e-4)
            assert next(iter(tokens)) == words[int(logprobs.argmax())]
        steps_seen = max(steps_seen, len(steps))
    assert steps_seen > 3


def test_of_one_token_a_local_model_needs_no_end_and_no_text(tmp_path: Path) -> None:
    chain = LocalLLM(make_chain_model(tmp_path / "chain", ["answer", END]), device="cpu", dtype="float32")
    one, two, three, untold = chain.complete([ask("it"), ask("it", 2), ask("it is", 1, 0), plain("it")])
    # The logit of the next word of the chain is 1 times the norm of its embedding, all others are 0.
    size = len(VOCABULARY)
    weight = math.sqrt(size + size % 2)
    probability = math.exp(weight) / (math.exp(weight) + size - 1)
    assert isinstance(one, Completion)
    assert (one.text, one.output_tokens) == ("answer", 1)
    assert one.top_logprobs[0]["answer"] == pytest.approx(math.log(probability), abs=1e-5)
    assert isinstance(two, Completion)
    assert [next(iter(tokens)) for tokens in two.top_logprobs] == ["answer", END]
    assert isinstance(three, Completion)
    assert [list(tokens) for tokens in three.top_logprobs] == [["answer"]]
    assert untold == CompletionFailed("length")
    silent = LocalLLM(make_chain_model(tmp_path / "silent", [END]), device="cpu")
    (nothing,) = silent.complete([ask("it")])
    assert isinstance(nothing, Completion)
    assert (nothing.text, next(iter(nothing.top_logprobs[0]))) == ("", END)


def test_logits_that_are_no_numbers_are_an_error_and_no_answer(tmp_path: Path) -> None:
    broken = LocalLLM(make_chain_model(tmp_path / "chain", ["answer", END]), device="cpu", dtype="float32")
    for weights in broken._model.parameters():
        weights.data.fill_(math.nan)
    with pytest.raises(ModelError, match=r"chain@\S+ gave log probabilities that are no numbers"):
        broken.complete([ask("it")])


def test_a_longer_local_text_without_end_is_still_a_failure(tmp_path: Path) -> None:
    chain = LocalLLM(make_chain_model(tmp_path, ["answer", "is", "paris", END]), device="cpu")
    assert chain.complete([ask("it", 3)]) == [CompletionFailed("length")]
    capped = LocalLLM(tmp_path, device="cpu", max_new_tokens=1)  # the request was for more
    assert capped.complete([ask("it", 3)]) == [CompletionFailed("length")]


def test_they_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    folder = make_random_model(tmp_path, seed=4)
    rng = random.Random(1)
    requests = [ask(" ".join(rng.choices(WORDS, k=rng.randint(1, 30))), rng.choice([1, 8]), 20) for _ in range(24)]
    together, alone = (
        LocalLLM(folder, device="cpu", dtype="float32", batch_size=size).complete(requests) for size in (7, 1)
    )
    told = 0
    for one, other in zip(together, alone, strict=True):
        if not isinstance(one, Completion) or not isinstance(other, Completion):
            assert one == other
            continue
        assert (one.text, one.output_tokens) == (other.text, other.output_tokens)
        for tokens, wanted in zip(one.top_logprobs, other.top_logprobs, strict=True):
            assert len(tokens) >= 20
            assert {t: tokens[t] for t in tokens.keys() & wanted.keys()} == pytest.approx(
                {t: wanted[t] for t in tokens.keys() & wanted.keys()}, abs=1e-4
            )
            told += 1
    assert told > 30


def test_more_alternatives_than_words_are_all_words(tmp_path: Path) -> None:
    (result,) = LocalLLM(make_chain_model(tmp_path, [END]), device="cpu").complete([ask("it", top=10_000)])
    assert isinstance(result, Completion)
    assert sum(map(math.exp, result.top_logprobs[0].values())) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("top", [-1, 2.5, "many"])
def test_a_number_of_alternatives_that_is_none_is_refused(tmp_path: Path, top: Any) -> None:
    llm = LocalLLM(make_chain_model(tmp_path, [END]), device="cpu")
    with pytest.raises(ConfigurationError, match="Sampling parameter top_logprobs is"):
        llm.complete([ask("it", top=top)])
    with pytest.raises(ConfigurationError, match=r"top_logprobs is 3; wanted .* beside logprobs true"):
        llm.complete([LLMRequest((("user", "it"),), (("top_logprobs", 3),))])


def test_who_does_not_ask_gets_what_there_was_before(tmp_path: Path) -> None:
    llm = LocalLLM(make_chain_model(tmp_path, ["answer", END]), device="cpu")
    assert llm.complete([plain("it", 8)]) == [Completion("answer", 3, 2)]
    assert not llm._model._forward_hooks
