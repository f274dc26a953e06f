"""What result pages have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
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


def write(page: Path, text: str, *, measured: bool) -> None:
    """Writes a page. Where nothing of it is measured, a page that is there stays: it has figures, and says of which
    code they are."""
    if measured or not page.exists():
        page.write_text(text, encoding="utf-8")
    else:
        print(f"{page.name} stays as it is: none of its measurements is kept")
