"""Readers: who answers a question from passages. Names load on first use, so that an LLM reader needs no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankwright.readers.cached import CachedReader
    from rankwright.readers.extractive import EmbeddedReader
    from rankwright.readers.llm import LLMReader

_WHERE = {"CachedReader": "cached", "EmbeddedReader": "extractive", "LLMReader": "llm"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'rankwright.readers' has no attribute '{name}'")
    return getattr(importlib.import_module(f"rankwright.readers.{_WHERE[name]}"), name)


__all__ = ["CachedReader", "EmbeddedReader", "LLMReader"]
