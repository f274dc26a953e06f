"""What result pages have in common."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median


def spread(values: Sequence[float], form: str = ",.0f", unit: str = "") -> str:
    """Median (smallest to largest)."""
    if not values:
        return "missing"
    return f"{median(values):{form}}{unit} ({min(values):{form}}-{max(values):{form}})"


def of_one_table(
    title: str, command: str, about: str, heads: Sequence[str], lines: Sequence[str], note: str = ""
) -> str:
    """A page: what was run, how, the table, what it says."""
    table = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *lines]
    return "\n".join([f"# {title}", "", "```", command, "```", "", about, "", *table, "", note, ""])
