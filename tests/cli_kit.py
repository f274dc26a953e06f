"""What the tests of the command line share: ways to run it, small models, a reader behind HTTP, questions."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAIN = "from rankwright.cli import main; main()"
QUESTIONS = 12
"""Enough that a difference that every question shows is significant: 2 / 2 ** 12 < 0.05."""
DOORS = tuple(range(10, 10 + QUESTIONS))
"""Two digits, because BM25 passes over words of one character."""


def run_process(*arguments: str, cwd: Path, code: str = MAIN, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, without standard input."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def feed(monkeypatch: pytest.MonkeyPatch, *lines: object) -> None:
    """Gives standard input these lines; anything but bytes is written as JSON."""
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n".join(raw) + b"\n")))


def one_line(text: str) -> dict[str, Any]:
    """The object in an output that must be exactly one JSON line."""
    assert text.endswith("\n")
    assert text.count("\n") == 1
    return json.loads(text)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A JSON-lines file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows() -> list[dict[str, Any]]:
    """Questions with three candidates each, of which the last one, labelled, holds the answer."""
    return [
        {
            "query_id": f"q{door}",
            "question": f"What is the key of door {door}?",
            "answers": [f"word{door}"],
            "candidates": [
                {"doc_id": f"wall-{door}", "text": f"Door {door} stands in a wall."},
                {"doc_id": f"paint-{door}", "text": f"Door {door} is painted.", "title": "Paint"},
                {"doc_id": f"key-{door}", "text": f"The key of door {door} is word{door}."},
            ],
            "relevance": {f"key-{door}": 1},
        }
        for door in DOORS
    ]


def make_model(folder: Path, *, flat: bool = False, seed: int = 0) -> Path:
    """A cross-encoder with a few thousand random weights; a flat one scores everything alike."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    from rankwright.rerankers.cross_encoder import CrossEncoderReranker

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *("Door", "door", "stands", "in", "a", "wall", "is", "painted", "The", "the", "key", "of", "What", "Paint"),
    ]
    words += [f"word{door}" for door in DOORS] + [str(door) for door in DOORS] + list("?.:")
    core = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    core.post_processor = TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    tokenizer.model_max_length = 48
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=48,
        initializer_range=0.5,
    )
    config.num_labels = 1
    model = BertForSequenceClassification(config).eval()
    if flat:
        torch.nn.init.zeros_(model.classifier.weight)
    CrossEncoderReranker(model, tokenizer, name="tiny").save(folder)
    return folder


Handle = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def serving(handle: Handle) -> Iterator[str]:
    """A server on loopback that gives every request to `handle`; its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

        def handled(self) -> None:
            handle(self)

        do_GET = do_HEAD = do_POST = handled

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def body_of(request: BaseHTTPRequestHandler) -> bytes:
    """The body of a request."""
    return request.rfile.read(int(request.headers.get("content-length", 0)))


def reply(request: BaseHTTPRequestHandler, body: bytes | Mapping[str, Any], status: int = 200, **headers: str) -> None:
    """Sends a whole response; mappings as JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    request.send_response(status)
    for name, value in {"content-type": "application/json", "content-length": str(len(raw)), **headers}.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(raw)


class Server(ThreadingHTTPServer):
    """As many may wait for it as ask at once."""

    request_queue_size = 64


@contextmanager
def key_reader(status: int = 200) -> Iterator[str]:
    """Base URL of a chat endpoint that finds the key in the passages it is sent, if it stands there."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        prompt = json.loads(body_of(request))["messages"][-1]["content"]
        found = re.search(r"The key of door \d+ is (\w+)", prompt)
        message = {"role": "assistant", "content": found[1] if found else "NO ANSWER"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
        reply(request, {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}, status)

    with serving(answer) as address:
        yield f"{address}/v1"
