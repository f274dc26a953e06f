"""Recipes by name: the settings of a paper's training, each with its source.

A recipe is a YAML file with `paper`, the default `method`, `settings` that all its stages share, and `stages` with the
settings of one method each. Every setting is {value, source, where}: source is paper, code (the authors' repository or
model card) or ours, where neither says; `where` is the place, or why there is none.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rankwright.errors import ConfigurationError

FOLDER = Path(__file__).parents[1] / "recipes"
SOURCES = ("paper", "code", "ours")
USER = "user"
"""Source of a value that a config file, flag or --set put in the recipe's place."""


class Sourced(NamedTuple):
    """A setting of a recipe."""

    value: Any
    source: str
    where: str


@dataclass(frozen=True)
class Recipe:
    """One stage of a paper's training."""

    name: str
    paper: str
    method: str
    """grpo or sft: the stage."""
    settings: Mapping[str, Sourced]
    """Dotted name -> value with its source."""

    def values(self) -> dict[str, Any]:
        """Dotted name -> value."""
        return {name: setting.value for name, setting in self.settings.items()}

    def without(self, prefix: str) -> Recipe:
        """The recipe less the settings whose name begins so."""
        return replace(self, settings={n: setting for n, setting in self.settings.items() if not n.startswith(prefix)})


def recipe_names() -> tuple[str, ...]:
    """Names of the shipped recipes."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml") if "\nstages:" in path.read_text("utf-8")))


def load_recipe(name: str, method: str | None = None) -> Recipe:
    """A shipped recipe.

    Args:
        name: one of `recipe_names()`.
        method: the stage; None takes the one that the paper is known for.

    Raises:
        ConfigurationError: no such recipe or stage.
    """
    names = recipe_names()
    if name not in names:
        close = difflib.get_close_matches(name.lower().replace("_", "-"), names, n=1)
        meant = f" Did you mean {close[0]}?" if close else ""
        raise ConfigurationError(f"Recipe '{name}' is unknown; wanted one of {', '.join(names)}.{meant}")
    tree = yaml.safe_load((FOLDER / f"{name}.yaml").read_text("utf-8"))
    chosen, stages = method or tree["method"], tree["stages"]
    if chosen not in stages:
        raise ConfigurationError(
            f"Recipe {name} has no stage for --method {chosen}; wanted {' or '.join(stages)}. Leave --method out to "
            f"take {tree['method']}."
        )
    given: dict[str, Any] = {**tree["settings"], **stages[chosen]}
    settings = {key: Sourced(**setting) for key, setting in given.items()}
    return Recipe(name, tree["paper"], chosen, {"method": Sourced(chosen, "paper", "a stage of its own")} | settings)
