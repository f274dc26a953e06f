"""Strategies that read log probabilities, against the OpenAI-compatible server of llama-cpp-python, which runs
llama.cpp: `make gates-llama`. What they should come to is computed by transformers from the same weights."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rankwright.cli.app import run
from rankwright.data import load_examples
from rankwright.llms.completions import Api, bare_text
from rankwright.llms.http import HTTPLLM
from rankwright.prompts.ranking import load_ranking_prompt
from rankwright.types import Completion, Document, LLMRequest, Query
from tests import tiny_gguf
from tests.cli_kit import ROOT, one_line, write_rows
from tests.served import START_SECONDS, Served
from tests.tiny_lm import PASSAGE_WORDS

QUERIES, DOCUMENTS = 3, 8
CLOSE = 0.01
"""Between log probabilities of llama.cpp, which keeps keys and values in float16, and of transformers in float32."""
LLAMA_PYTHON = Path(os.environ.get("LLAMA_PYTHON") or ROOT / ".venv-llama" / "bin" / "python")
"""An interpreter whose environment has llama-cpp-python[server] and gguf."""
APIS: tuple[Api, ...] = ("chat", "completions")

pytestmark = [pytest.mark.gates, pytest.mark.timeout(START_SECONDS + 120)]

LogProbabilities = Callable[[str], Mapping[str, float]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    assert LLAMA_PYTHON.exists(), f"{LLAMA_PYTHON} is not there; run make gates-llama, or name one in LLAMA_PYTHON"
    folder = tmp_path_factory.mktemp("llama")
    arrays: Any = tiny_gguf.weights()
    np.savez(folder / "weights.npz", **arrays)
    model = folder / "tiny.gguf"
    writing = [LLAMA_PYTHON, ROOT / "tests" / "tiny_gguf.py", folder / "weights.npz", model]
    subprocess.run(writing, check=True, env=os.environ | {"PYTHONPATH": ""})
    command = [str(LLAMA_PYTHON), "-m", "llama_cpp.server", "--model", str(model), "--n_ctx", str(tiny_gguf.POSITIONS)]
    command += ["--n_threads", "1", "--logits_all", "true", "--model_alias", "tiny", "--host", "127.0.0.1"]
    with Served(lambda port: [*command, "--port", str(port)], folder, "/v1/models", {"PYTHONPATH": ""}) as server:
        yield server


@pytest.fixture(scope="module")
def expected(served: Served) -> LogProbabilities:
    """What transformers says of the token behind a text, which the server takes apart."""
    config = LlamaConfig(
        vocab_size=len(tiny_gguf.VOCABULARY),
        hidden_size=tiny_gguf.SIZE,
        intermediate_size=tiny_gguf.INNER,
        num_hidden_layers=tiny_gguf.LAYERS,
        num_attention_heads=tiny_gguf.HEADS,
        max_position_embeddings=tiny_gguf.POSITIONS,
        rms_norm_eps=tiny_gguf.EPSILON,
    )
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict({name: torch.from_numpy(values) for name, values in tiny_gguf.weights().items()})

    def behind(text: str) -> Mapping[str, float]:
        body = json.dumps({"model": "tiny", "input": text}).encode()
        request = urllib.request.Request(
            f"{served.url}/extras/tokenize", body, {"content-type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            tokens = json.load(reply)["tokens"]
        with torch.inference_mode():
            logprobs = model(torch.tensor([tokens])).logits[0, -1].double().log_softmax(-1)
        return dict(zip(tiny_gguf.VOCABULARY, logprobs.tolist(), strict=True))

    return behind


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = random.Random(7)
    rows = [
        {
            "query": {"text": f"where is the {PASSAGE_WORDS[number]}", "qid": f"q{number}"},
            "candidates": [
                {
                    "docid": f"{number}-{i}",
                    "score": 9.0 - i,
                    "doc": {"contents": " ".join(rng.sample(PASSAGE_WORDS, 5))},
                }
                for i in range(DOCUMENTS)
            ],
        }
        for number in range(QUERIES)
    ]
    return write_rows(tmp_path / "candidates.jsonl", rows)


def told(served: Served, data: Path, strategy: str, api: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    command = ["rerank", "--llm", served.url, "--llm-model", "tiny", "--strategy", strategy, "--data", str(data)]
    command += ["--format", "rank_llm", "--output", "json", "--set", f"reader.api={api}"]
    assert run([*command, "--cache", str(data.with_name("reads.sqlite"))]) == 0
    return one_line(capsys.readouterr().out)


def questions(data: Path) -> list[tuple[Query, tuple[Document, ...]]]:
    return [(example.query, example.candidates) for example in load_examples(data, "rank_llm").examples]


@pytest.mark.parametrize("api", APIS)
def test_log_probabilities_are_those_of_transformers(served: Served, expected: LogProbabilities, api: Api) -> None:
    texts = ["moon", "Is it rain or snow?\n\nyes", "A > B [C] yes or no, 17: (ä)"]
    sampling = (("logprobs", True), ("max_tokens", 1), ("temperature", 0.0), ("top_logprobs", 10))
    llm = HTTPLLM("tiny", served.url, api=api)
    found = llm.complete([LLMRequest((("system", "Sort."), ("user", text)), sampling) for text in texts])
    for text, result in zip(texts, found, strict=True):
        wanted = expected(f"Sort.\n\n{text}")
        assert isinstance(result, Completion)
        (top,) = result.top_logprobs
        assert next(iter(top)) == result.text == max(wanted, key=lambda token: wanted[token])
        assert set(top) == set(sorted(wanted, key=lambda token: -wanted[token])[:10])
        assert top == pytest.approx({token: wanted[token] for token in top}, abs=CLOSE)


@pytest.mark.parametrize("api", APIS)
def test_pointwise_scores_are_the_probability_of_yes(
    served: Served, expected: LogProbabilities, data: Path, api: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(served, data, "pointwise", api, capsys)
    prompt = load_ranking_prompt("pointwise-yes-no-1")
    for row, (query, documents) in zip(found["rankings"], questions(data), strict=True):
        wanted = {}
        for document in documents:
            top = expected(bare_text(prompt.rendered(query, [document]).messages))
            wanted[document.doc_id] = 1 / (1 + math.exp(top["no"] - top["yes"]))
        assert dict(zip(row["doc_ids"], row["scores"], strict=True)) == pytest.approx(wanted, abs=CLOSE)
        assert row["scores"] == sorted(row["scores"], reverse=True)
        assert len(set(wanted.values())) == DOCUMENTS
    assert (found["calls"], found["outcomes"]["ok"]) == (QUERIES * DOCUMENTS, QUERIES * DOCUMENTS)


@pytest.mark.parametrize("api", APIS)
def test_single_token_ranks_by_the_letters_of_the_first_token(
    served: Served, expected: LogProbabilities, data: Path, api: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(served, data, "single-token", api, capsys)
    prompt = load_ranking_prompt("listwise-letters-1")
    orders = set()
    for row, (query, documents) in zip(found["rankings"], questions(data), strict=True):
        top = expected(bare_text(prompt.rendered(query, documents).messages))
        places = sorted(range(DOCUMENTS), key=lambda place: -top[tiny_gguf.LETTERS[place]])
        assert row["doc_ids"] == [documents[place].doc_id for place in places]
        orders.add(tuple(places))
    assert len(orders) > 1  # the prompts do matter
    assert found["tokens"]["output"] == QUERIES  # one token is decoded for a list
    # Where the likeliest token is no document's letter, the order of the letters is a repair.
    assert (found["calls"], found["outcomes"]["malformed"]) == (QUERIES, 0)
