"""Options that several verbs take alike: who is asked, within which limits, at what price, and what is kept."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

STRATEGIES = ("sliding", "heapsort", "bubblesort", "pointwise", "groupwise", "single-token", "topk")
"""Names of cli/llm.py, which the help shows without loading what is behind them."""

ExpandWith = Annotated[
    str | None,
    typer.Option(
        help="Query2Doc: who writes a passage for each question, with which BM25 searches too: an endpoint's base URL, "
        "a local causal LM, or reader for the language model that reads. Default none."
    ),
]
ExpandModel = Annotated[
    str | None,
    typer.Option(
        help="Model name at the endpoint of --expand-with; without it the reader's, at the reader's endpoint."
    ),
]
ReaderModel = Annotated[str | None, typer.Option(help="Model name at the endpoint.")]
RequestsPerMinute = Annotated[float | None, typer.Option(help="Limit on requests to the endpoint.")]
TokensPerMinute = Annotated[float | None, typer.Option(help="Limit on tokens to the endpoint.")]
PriceInput = Annotated[float | None, typer.Option(help="Price of a million input tokens, for the ledger.")]
PriceOutput = Annotated[float | None, typer.Option(help="Price of a million output tokens.")]
ApiKeyEnv = Annotated[
    str | None, typer.Option(help="Environment variable that holds the endpoint's key. Default OPENAI_API_KEY.")
]
Cache = Annotated[str | None, typer.Option(help="SQLite file of all answers. Default runs/reads.sqlite.")]


class WindowsKind(StrEnum):
    """--windows."""

    max = "max"
    mean = "mean"


Backend = Annotated[
    str,
    typer.Option(
        help="How a model that scores is computed: torch, packed, bf16, onnx, onnx-int8, or auto, the fastest that "
        "agrees with fp32 on this machine."
    ),
]
Windows = Annotated[
    WindowsKind | None,
    typer.Option(
        help="Read passages that are longer than the model in overlapping windows, of which the best or the mean score "
        "counts. Without it they are cut."
    ),
]
