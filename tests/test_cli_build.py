"""Settings become objects; what does not fit together is named before anything is paid for."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from rankwright.cli.app import run
from rankwright.cli.build import build_reader, open_store
from rankwright.cli.settings import ReaderSettings
from rankwright.errors import ConfigurationError
from rankwright.types import Context, Document, Query
from tests.cli_kit import body_of, reply, serving

CONTEXT = Context(Query("q", "Where is the Louvre?"), (Document("d", "The Louvre is in Paris."),))


def test_train_names_a_device_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = run(["train", "--name", "a", "--data", "questions.jsonl", "--device", "abacus"])
    assert (code, "Device is 'abacus'" in capsys.readouterr().err) == (2, True)
    assert not (tmp_path / "runs").exists()


def test_a_price_for_one_direction_is_refused(tmp_path: Path) -> None:
    settings = ReaderSettings(reader="http://127.0.0.1:9/v1", model="m", price_input=1.0)
    with open_store(str(tmp_path / "reads.sqlite")) as store, pytest.raises(ConfigurationError, match="Only the input"):
        build_reader(settings, store, "run")


def test_sampling_parameters_reach_the_endpoint(tmp_path: Path) -> None:
    bodies = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        bodies.append(json.loads(body_of(request)))
        choice = {"index": 0, "message": {"role": "assistant", "content": "Paris"}, "finish_reason": "stop"}
        reply(request, {"id": "x", "object": "chat.completion", "choices": [choice]})

    with serving(answer) as address, open_store(str(tmp_path / "reads.sqlite")) as store:
        settings = ReaderSettings(reader=f"{address}/v1", model="m", sampling={"max_completion_tokens": 2000})
        reader = build_reader(settings, store, "run")
        assert reader is not None
        assert len(reader.answer([CONTEXT])) == 1
    assert bodies[0]["max_completion_tokens"] == 2000
    assert not {"max_tokens", "temperature"} & bodies[0].keys()
