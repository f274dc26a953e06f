"""vLLM's offline engine: what it is asked and how its answers are read, held to its documented interface by a stand-in.

vLLM itself was never run: that this is its interface is read, not shown.
"""

from __future__ import annotations

import builtins
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
from tiny_lm import END, make_chain_model
from transformers import AutoConfig, AutoTokenizer

from rankwright.cli.app import run
from rankwright.errors import ConfigurationError, MissingDependencyError, ModelError, ResourceNotFoundError
from rankwright.llms.endpoint import model_place
from rankwright.llms.local import LocalLLM
from rankwright.llms.offline import VLLMOffline
from rankwright.types import Completion, CompletionFailed, LLMRequest
from tests.cli_kit import write_rows


def ask(text: str, **sampling: Any) -> LLMRequest:
    return LLMRequest((("user", text),), tuple(sorted(({"max_tokens": 8, "temperature": 0.0} | sampling).items())))


@dataclass
class Listed:
    """vLLM's Logprob."""

    logprob: float


class Engine:
    """Stands for vllm.LLM: says `answer is paris` and an end, or what it is told."""

    made: ClassVar[list[dict[str, Any]]]
    asked: ClassVar[list[tuple[list[Any], dict[str, Any]]]]
    end = "stop"
    listed: ClassVar[dict[str, float]] = {"is": -0.5, "paris": -2.0}

    def __init__(self, **arguments: Any) -> None:
        self.made.append(arguments)
        self.tokenizer = AutoTokenizer.from_pretrained(arguments["model"])
        config = AutoConfig.from_pretrained(arguments["model"])
        model_config = SimpleNamespace(max_model_len=config.max_position_embeddings, hf_config=config)
        self.llm_engine = SimpleNamespace(model_config=model_config)

    def get_tokenizer(self) -> Any:
        return self.tokenizer

    def generate(self, prompts: Sequence[Any], params: SimpleNamespace, *, use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        self.asked.append((list(prompts), vars(params)))
        ids = self.tokenizer.convert_tokens_to_ids(["answer", "is", "paris", END])[: params.max_tokens]
        top = {self.tokenizer.convert_tokens_to_ids(word): Listed(value) for word, value in self.listed.items()}
        logprobs = None if params.logprobs is None else [{**top, token: Listed(-0.25)} for token in ids]
        one = SimpleNamespace(text=" answer is paris", token_ids=ids, finish_reason=self.end, logprobs=logprobs)
        return [SimpleNamespace(outputs=[one]) for _ in prompts]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[Engine]:
    class Fresh(Engine):
        made: ClassVar[list[dict[str, Any]]] = []
        asked: ClassVar[list[tuple[list[Any], dict[str, Any]]]] = []

    module = ModuleType("vllm")
    module.LLM = Fresh  # pyright: ignore[reportAttributeAccessIssue]
    module.SamplingParams = SimpleNamespace  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "vllm", module)
    return Fresh


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chain_model(tmp_path_factory.mktemp("models") / "chain", ["answer", "is", "paris", END])


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "vllm":
            raise ModuleNotFoundError("No module named 'vllm'", name="vllm")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)


def test_prompts_name_and_answers_are_those_of_the_same_model_without_it(engine: type[Engine], chain: Path) -> None:
    llm, local = VLLMOffline(chain), LocalLLM(chain, device="cpu")
    request = ask("capital of it")
    assert llm.complete([request]) == local.complete([request]) == [Completion("answer is paris", 5, 4)]
    assert llm.name == f"vllm:{local.name}"
    assert llm.input_tokens(request) == local.input_tokens(request) == 5
    assert engine.made == [
        {"model": str(chain), "trust_remote_code": False, "load_format": "safetensors", "max_logprobs": 20}
    ]
    ((prompts, params),) = engine.asked
    assert [sorted(prompt) for prompt in prompts] == [["prompt_token_ids"]]
    assert params == {"temperature": 0.0, "max_tokens": 8, "logprobs": None}


def test_requests_of_equal_sampling_are_handed_over_together_and_come_back_in_order(
    engine: type[Engine], chain: Path
) -> None:
    requests = [ask("it"), ask("it", temperature=0.3, top_p=0.8, seed=7, stop="x"), ask("capital of it")]
    results = VLLMOffline(chain).complete(requests)
    assert [result.input_tokens for result in results if isinstance(result, Completion)] == [3, 3, 5]
    assert sorted(len(prompts) for prompts, _ in engine.asked) == [1, 2]
    sampled = next(params for _, params in engine.asked if params["temperature"])
    assert {name: sampled[name] for name in ("temperature", "top_p", "seed", "stop")} == {
        "temperature": 0.3,
        "top_p": 0.8,
        "seed": 7,
        "stop": "x",
    }


def test_log_probabilities_begin_with_the_token_written(engine: type[Engine], chain: Path) -> None:
    (result,) = VLLMOffline(chain).complete([ask("it", logprobs=True, top_logprobs=2, max_tokens=1)])
    assert isinstance(result, Completion)
    assert [list(top.items()) for top in result.top_logprobs] == [[("answer", -0.25), ("is", -0.5), ("paris", -2.0)]]
    assert engine.asked[0][1]["logprobs"] == 2
    engine.listed = {"is": math.nan}
    with pytest.raises(ModelError, match="log probabilities that are no numbers"):
        VLLMOffline(chain).complete([ask("it", logprobs=True, top_logprobs=2)])


def test_a_text_without_an_end_and_a_prompt_without_room_are_failures(engine: type[Engine], chain: Path) -> None:
    engine.end = "length"
    room = AutoConfig.from_pretrained(chain).max_position_embeddings
    results = VLLMOffline(chain).complete([ask("it"), ask("it", max_tokens=room)])
    failed = [result.reason for result in results if isinstance(result, CompletionFailed)]
    assert failed == ["length", "prompt too long"]
    assert [len(prompts) for prompts, _ in engine.asked] == [1]
    (first,) = VLLMOffline(chain).complete([ask("it", logprobs=True, max_tokens=1)])  # its log probabilities are there
    assert isinstance(first, Completion)


@pytest.mark.parametrize(
    ("sampling", "words"),
    [({"best_of": 3}, "parameter best_of was given"), ({"logprobs": True, "top_logprobs": 21}, "top_logprobs is 21")],
)
def test_what_it_cannot_do_is_refused(engine: type[Engine], chain: Path, sampling: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        VLLMOffline(chain).complete([ask("it", **sampling)])
    assert engine.asked == []


@pytest.mark.usefixtures("missing")
def test_without_vllm_the_next_step_is_named(chain: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r'needs vllm, which is not installed.*"rankwright\[vllm\]"'):
        VLLMOffline(chain)
    with pytest.raises(ResourceNotFoundError, match="Model folder"):
        VLLMOffline(tmp_path / "not-here")


def test_a_run_folder_means_its_model_here_too(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert model_place(f"vllm:{tmp_path}") == f"vllm:{tmp_path}"
    (tmp_path / "model" / "config.json").write_text("{}")
    assert model_place(f"vllm:{tmp_path}") == f"vllm:{tmp_path / 'model'}"
    assert model_place(str(tmp_path)) == str(tmp_path / "model")


def test_rerank_by_it(
    engine: type[Engine],
    chain: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    hits = [{"docid": f"d{i}", "qid": "q", "content": "words", "score": 3.0 - i, "rank": i + 1} for i in range(3)]
    row = {"query": "which?", "hits": hits}
    data = str(write_rows(tmp_path / "data.jsonl", [row]))
    command = ["rerank", "--llm", f"vllm:{chain}", "--strategy", "sliding", "--data", data, "--format", "rank_llm"]
    assert run([*command, "--max-failed", "1", "--set", "sampling.max_tokens=8", "--output", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [len(prompts) for prompts, _ in engine.asked] == [1]
    assert (found["calls"], found["outcomes"]["malformed"]) == (1, 1)  # it speaks of Paris
    assert found["rankings"][0]["doc_ids"] == ["d0", "d1", "d2"]
    assert found["reranker"].startswith(f"vllm:{chain.name}@sha256:")


@pytest.mark.usefixtures("missing")
def test_the_command_line_says_how_to_install_it(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["rerank", "which?", "this", "that", "--llm", f"vllm:{chain}"]) == 3
    assert 'pip install "rankwright[vllm]"' in " ".join(capsys.readouterr().err.split())
