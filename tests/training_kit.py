"""For tests of the training loop: runs that break off at a planned step, and comparisons down to the last bit."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import BertForSequenceClassification, TrainerCallback

from rankwright.checkpoints import LOCK, sorted_checkpoints
from rankwright.rerankers.cross_encoder import CrossEncoderReranker
from tests.tiny_bert import tiny_config, tiny_tokenizer


class StoppedError(Exception):
    pass


def stop_at(step: int) -> TrainerCallback:
    """Breaks a run off after so many steps, whatever was saved by then; after the last one, when all else is done."""

    class StopAt(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs) -> None:
            if state.global_step == step:
                raise StoppedError

        def on_train_end(self, args, state, control, **kwargs) -> None:
            self.on_step_begin(args, state, control)

    return StopAt()


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[None]:
    """As if another process made a run in this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as stream:
        stream.write("process 7 on moon")
        stream.flush()
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same(one: Any, two: Any) -> bool:
    """Equal to the last bit, at any depth. The text of a tensor leaves out most of its numbers."""
    if type(one) is not type(two):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, numpy.ndarray):
        return numpy.array_equal(one, two)
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


def assert_same_run(whole: Path, broken: Path) -> None:
    """Metrics and the last checkpoint of two runs are equal."""
    assert (broken / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    assert_same_checkpoint(whole, broken)


def assert_same_checkpoint(whole: Path, broken: Path) -> None:
    """The last checkpoint of two runs is equal."""
    one, two = (sorted_checkpoints(folder)[-1] for folder in (whole, broken))
    assert one.name == two.name
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        assert same(*(torch.load(folder / name, weights_only=False) for folder in (one, two))), name
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    states = [json.loads((folder / "algorithm.json").read_text()) for folder in (one, two)]
    assert states[0]["algorithm"] == states[1]["algorithm"]
    assert states[0]["logged"] == states[1]["logged"]


def wide_cross_encoder() -> CrossEncoderReranker:
    """One layer as wide as small real models: sums over 384 numbers differ in the last bits from batch to batch, those
    of the tiny model hardly ever."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(tiny_config(hidden=384, layers=1, heads=12, inner=384))
    return CrossEncoderReranker(model, tiny_tokenizer()).eval()
