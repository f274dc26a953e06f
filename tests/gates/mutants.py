"""Faults that a gate must notice, each one changed line of the package. A gate that stays green on one proves nothing.

A file of this folder adds its own to a list named MUTANTS; test_mutants.py collects and tries them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One fault."""

    gate: str
    """The gate's id, for example "C1"."""
    tests: str
    """What pytest runs: a file of this folder, with ::test or without."""
    file: str
    """The changed file, from the repository's root."""
    old: str
    """Text that stands there once."""
    new: str
    """What takes its place."""

    @property
    def name(self) -> str:
        """For pytest."""
        lines = self.new.strip().splitlines() or ["without " + self.old.strip().splitlines()[0]]
        return f"{self.gate}: {lines[0][:60]}"
