"""A real language model on this machine, and the same model behind a real server process."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_lm import END, WORDS, make_chain_model, make_random_model

from rankwright.errors import ConfigurationError, ModelError, ReaderError, ResourceNotFoundError
from rankwright.llms.cache import CachedLLM, ReadStore
from rankwright.llms.calls import Call
from rankwright.llms.http import HTTPLLM
from rankwright.llms.local import LocalLLM
from rankwright.readers.llm import LLMReader
from rankwright.tuning import positions_of
from rankwright.types import Answer, Completion, CompletionFailed, Context, Document, LLMRequest, Query
from tests.served import START_SECONDS, Served, transformers_serve


def ask(text: str, **sampling: float | int | str) -> LLMRequest:
    return LLMRequest((("user", text),), tuple(sorted(sampling.items())) or (("max_tokens", 8), ("temperature", 0.0)))


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chain_model(tmp_path_factory.mktemp("models") / "chain", ["answer", "is", "paris", END])


@pytest.fixture(scope="module")
def llm(chain: Path) -> LocalLLM:
    return LocalLLM(chain, device="cpu", dtype="float32")


def test_it_writes_until_its_end_token(llm: LocalLLM) -> None:
    # <user> capital of it <assistant> are 5 tokens in, three words and the end are 4 out
    assert llm.complete([ask("capital of it")]) == [Completion("answer is paris", 5, 4)]


def test_a_text_that_does_not_end_in_time_is_a_failure(llm: LocalLLM) -> None:
    assert llm.complete([ask("it", max_tokens=3), ask("it", max_tokens=4)]) == [
        CompletionFailed("length"),
        Completion("answer is paris", 3, 4),
    ]


def test_the_models_own_limit_caps_every_request(chain: Path) -> None:
    assert LocalLLM(chain, device="cpu", max_new_tokens=2).complete([ask("it", max_tokens=64)]) == [
        CompletionFailed("length")
    ]


def test_a_stop_word_ends_the_text_before_it(llm: LocalLLM) -> None:
    assert llm.complete([ask("it", stop="is", max_tokens=8)]) == [Completion("answer", 3, 2)]


def test_silence_is_a_failure(tmp_path: Path) -> None:
    assert LocalLLM(make_chain_model(tmp_path, [END]), device="cpu").complete([ask("it")]) == [
        CompletionFailed("empty text")
    ]


def test_a_prompt_that_leaves_no_room_is_a_failure_and_the_rest_is_answered(llm: LocalLLM) -> None:
    results = llm.complete([ask("it " * 300), ask("it")])
    assert results == [CompletionFailed("prompt too long", paid=False), Completion("answer is paris", 3, 4)]
    assert isinstance(results[0], CompletionFailed)
    assert re.fullmatch(r"3\d\d tokens and 8 of an answer, where \d+ fit", results[0].detail)


def test_a_model_without_a_chat_template_gets_the_bare_texts(tmp_path: Path) -> None:
    plain = LocalLLM(make_chain_model(tmp_path, ["rome", END], template=None), device="cpu")
    request = LLMRequest((("system", "question"), ("user", "capital <assistant>")))
    assert plain.complete([request]) == [Completion("rome", 3, 2)]


def test_batches_padded_on_the_left_give_what_each_prompt_gives_alone(tmp_path: Path) -> None:
    model = LocalLLM(make_random_model(tmp_path, seed=4), device="cpu", dtype="float32", batch_size=5)
    rng = random.Random(1)
    requests = [ask(" ".join(rng.choices(WORDS, k=rng.randint(1, 30))), max_tokens=12) for _ in range(24)]
    together = model.complete(requests)
    assert together == [model.complete([request])[0] for request in requests]
    assert len({result.text for result in together if isinstance(result, Completion)}) > 10  # the prompts do matter


def test_calls_are_reported_batch_by_batch_at_a_known_price_of_zero(chain: Path) -> None:
    model = LocalLLM(chain, device="cpu", batch_size=2)
    reports: list[list[Call]] = []
    model.complete_each([ask("it"), ask("it is a"), ask("a b c d e")], lambda calls: reports.append(list(calls)))
    assert [[call.index for call in calls] for calls in reports] == [[2, 1], [0]]  # longest first
    assert {call.price for calls in reports for call in calls} == {0.0}


def test_without_a_size_a_batch_is_as_large_as_its_tokens_allow(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of prompts sorted by length: 2 + 6 tokens (its template writes 2) and 8 of an answer, then shorter ones."""
    model = LocalLLM(chain, device="cpu", max_new_tokens=8)
    lengths = [6, 1, 1, 6, 1, 1, 1]
    requests = [ask("it " * length) for length in lengths]

    def batches() -> list[list[int]]:
        seen: list[list[int]] = []
        model.complete_each(requests, lambda calls: seen.append([lengths[call.index] for call in calls]))
        return seen

    assert batches() == [[6, 6, 1, 1, 1, 1, 1]]
    monkeypatch.setattr("rankwright.llms.local.BATCH_TOKENS", 3 * (1 + 2 + 8))
    assert batches() == [[6, 6], [1, 1, 1], [1, 1]]
    monkeypatch.setattr("rankwright.llms.local.MOST_AT_ONCE", 2)
    assert batches() == [[6, 6], [1, 1], [1, 1], [1]]
    monkeypatch.setattr("rankwright.llms.local.BATCH_TOKENS", 1)
    assert batches() == [[length] for length in sorted(lengths, reverse=True)]


def test_the_name_changes_with_the_weights_and_not_with_the_folder(tmp_path: Path, chain: Path, llm: LocalLLM) -> None:
    same = LocalLLM(make_chain_model(tmp_path / "chain", ["answer", "is", "paris", END]), device="cpu")
    other = LocalLLM(make_chain_model(tmp_path / "other" / "chain", ["oslo", END]), device="cpu")
    assert same.name == llm.name
    assert other.name != llm.name
    assert llm.name.startswith("chain@sha256:")


@pytest.mark.parametrize("sampling", [{"temperature": 0.7}, {"top_p": 0.9}, {"n": 2}])
def test_sampling_it_does_not_do_is_refused(llm: LocalLLM, sampling: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="greedily"):
        llm.complete([ask("it", **sampling)])


@pytest.mark.parametrize("setting", ["max_new_tokens", "batch_size"])
def test_a_setting_below_one_is_refused(chain: Path, setting: str) -> None:
    settings: dict[str, Any] = {setting: 0}
    with pytest.raises(ConfigurationError, match=setting):
        LocalLLM(chain, **settings)


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResourceNotFoundError, match=r"has no 'nothing-here'.*Check the path"):
        LocalLLM(tmp_path / "nothing-here")


def test_weights_in_pickle_are_not_loaded(tmp_path: Path) -> None:
    folder = make_chain_model(tmp_path, [END])
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ResourceNotFoundError, match="safetensors"):
        LocalLLM(folder)


def test_a_model_that_brings_code_is_refused(tmp_path: Path) -> None:
    folder = make_chain_model(tmp_path, [END])
    canary = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass C: pass\n")
    (folder / "config.json").write_text('{"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}')
    with pytest.raises(ModelError, match="without running code"):
        LocalLLM(folder)
    assert not canary.exists()


@pytest.mark.parametrize("what", ["kernel", "adapter"])
def test_kernels_and_adapters_are_refused(tmp_path: Path, what: str) -> None:
    """Kernels are code out of another repository; an adapter's weights may be a pickle."""
    folder = make_chain_model(tmp_path, [END])
    config = json.loads((folder / "config.json").read_text())
    if what == "kernel":
        (folder / "config.json").write_text(json.dumps(config | {"attn_implementation": "evil/kernel"}))
    else:
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "some/one"}')
    wanted = "asks in config.json for attn_implementation" if what == "kernel" else "holds an adapter"
    for open_it in (LocalLLM, lambda place: positions_of(str(place))):
        with pytest.raises(ModelError, match=wanted):
            open_it(folder)


def test_it_reads_through_a_cache(llm: LocalLLM, tmp_path: Path) -> None:
    context = Context(Query("q", "capital of it"), (Document("d", "paris is it"),))
    with ReadStore(tmp_path / "reads.sqlite") as store:
        reader = LLMReader(CachedLLM(llm, store, run="r"))
        assert reader.answer([context]) == [Answer("paris")]
        assert reader.answer([context]) == [Answer("paris", paid=False)]
        assert (store.ledger.totals("r").calls, store.ledger.totals("r").price) == (1, 0.0)


# --- the same model behind `transformers serve` -------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Served(transformers_serve(chain), tmp_path_factory.mktemp("served"), "/health") as server:
        yield server.url


@pytest.mark.timeout(START_SECONDS + 60)
def test_a_served_model_answers_through_http_as_it_does_locally(
    served: str, chain: Path, llm: LocalLLM, tmp_path: Path
) -> None:
    contexts = [
        Context(Query("q1", "capital of it"), (Document("d1", "paris is it", "a"), Document("d2", "rome"))),
        Context(Query("q2", "question"), ()),
    ]
    with ReadStore(tmp_path / "reads.sqlite") as store:
        over_http = LLMReader(CachedLLM(HTTPLLM(str(chain), served), store, run="served"))
        assert over_http.answer(contexts) == LLMReader(llm).answer(contexts) == [Answer("paris"), Answer("paris")]
        assert over_http.answer(contexts) == [Answer("paris", paid=False)] * 2
        totals = store.ledger.totals("served")
    assert (totals.calls, totals.failed, totals.price_text) == (2, 0, "unknown")
    assert totals.output_tokens == 2 * 4
    assert totals.input_tokens > 2 * 50  # the prompts, counted by the server


@pytest.mark.timeout(START_SECONDS + 60)
def test_a_served_model_cut_short_is_a_failed_read(served: str, chain: Path) -> None:
    results = HTTPLLM(str(chain), served).complete([ask("it", max_tokens=2, temperature=0.0)])
    assert results == [CompletionFailed("length")]


@pytest.mark.timeout(START_SECONDS + 60)
def test_a_served_model_drops_log_probabilities_and_is_named(served: str, chain: Path) -> None:
    """transformers serve takes the fields and ignores them."""
    llm = HTTPLLM(str(chain), served)
    with pytest.raises(
        ReaderError, match=r"chain@http.* was asked .*\(logprobs True, top_logprobs 5\) and left them out"
    ):
        llm.complete([ask("it", max_tokens=1, temperature=0.0, logprobs=True, top_logprobs=5)])


@pytest.mark.timeout(START_SECONDS + 60)
def test_a_model_the_server_does_not_know_stops_the_run(served: str) -> None:
    llm = HTTPLLM("other-model", served, stop_after=5, concurrency=1)
    with pytest.raises(ReaderError, match=r"first 5 calls .*http 400.*other-model"):
        llm.complete([ask(word) for word in WORDS])
