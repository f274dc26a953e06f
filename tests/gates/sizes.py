"""How much a gate tries: full numbers with GATES=full (`make gates-full`), else what fits a few minutes."""

from __future__ import annotations

import os

FULL = os.environ.get("GATES") == "full"


def tries(full: int, quick: int) -> int:
    """So many tries in this run."""
    return full if FULL else quick
