"""What an installation brings: the requirements of pyproject.toml and theirs, as far as they apply here."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirements_of(extra: str) -> list[Requirement]:
    """Of `pip install "rankwright[EXTRA]"`, itself left out."""
    found = project()["project"]
    lines, extras = list(found["dependencies"]), [extra]
    while extras:
        for line in found["optional-dependencies"][extras.pop()]:
            requirement = Requirement(line)
            if requirement.name == "rankwright":
                extras += requirement.extras
            else:
                lines.append(line)
    return [Requirement(line) for line in lines]


def brought_by(requirements: Iterable[Requirement]) -> set[str]:
    """Names of everything that is installed with them."""
    seen: set[tuple[str, str]] = set()
    todo = list(requirements)
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                further = distribution(name).requires or []
            except PackageNotFoundError:
                continue  # still among them
            parsed = [Requirement(line) for line in further]
            todo += [r for r in parsed if r.marker is None or r.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}
