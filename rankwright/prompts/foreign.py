"""Templates of published checkpoints, read from the files in which their authors keep them, word for word.

Two forms are known: YAML of rank_llm (RankZephyr, FirstMistral, ReasonRank and others: `method`, `prefix`, `body`,
`suffix`, or the same by turns), and TOML of Rank-R1 (`prompt_system`, `prompt_user`). They become a file in our form,
which `rankwright prompts show FILE` prints. What these files do not say, how much of a passage is shown and how it is
numbered in Rank-R1, is what their authors' programs do.
"""

from __future__ import annotations

import re
import string
import tomllib
from collections.abc import Mapping
from typing import Any

import yaml

from rankwright.errors import ConfigurationError

_RANK_LLM = {
    "singleturn_listwise": ("prefix", "body", "suffix"),
    "multiturn_listwise": ("prefix_user", "body_user", "suffix_user"),
}
"""Method -> where query and count, each passage, and the request stand."""
_FIELDS = {"query": "query", "num": "count", "rank": "identifier", "candidate": "passage", "docs": "passages"}
"""Their fields -> ours."""
_WORDS = 300
"""Of a passage, in rank_llm."""


def translated(source: str, where: str) -> str | None:
    """A template of rank_llm or Rank-R1 as a prompt file of ours; None where the text is neither.

    Raises:
        ConfigurationError: it is one of a method that is not read, lacks a part, or has a field that we do not know.
    """
    read = _read(source, where)
    if "prompt_user" in read:
        made = _rank_r1(_Template(where, read))
    elif "method" in read and "messages" not in read:
        made = _rank_llm(_Template(where, read))
    else:
        return None
    return yaml.safe_dump(made, sort_keys=False, allow_unicode=True, width=120)


def _read(source: str, where: str) -> Mapping[Any, Any]:
    """What stands in it; nothing where that is another reader's business."""
    try:
        read = tomllib.loads(source) if where.endswith(".toml") else yaml.safe_load(source)
    except (tomllib.TOMLDecodeError, yaml.YAMLError, ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


class _Template:
    """A foreign template, with errors that say where."""

    def __init__(self, where: str, values: Mapping[Any, Any]) -> None:
        self.where = where
        self.values = values

    def text(self, name: str) -> str:
        """A part in our fields; empty where there is none."""
        value = self.values.get(name, "")
        if not isinstance(value, str):
            raise self.wrong(name, "text")
        try:
            pieces = list(string.Formatter().parse(value))
        except ValueError:
            raise self.wrong(name, "fields in braces, each opened and closed") from None
        unknown = next((field for _, field, _, _ in pieces if field is not None and field not in _FIELDS), None)
        if unknown is not None:
            raise self.wrong(name, f"no field but {', '.join(_FIELDS)}, and not '{unknown}'")
        return "".join(words + (f"{{{_FIELDS[field]}}}" if field else "") for words, field, _, _ in pieces)

    def needed(self, name: str) -> str:
        """A part that must be there."""
        if name not in self.values:
            raise self.wrong(name, "it")
        return self.text(name)

    def wrong(self, name: str, wanted: str) -> ConfigurationError:
        found = f"is {str(self.values[name])[:80]!r}" if name in self.values else "is missing"
        return ConfigurationError(
            f"Part '{name}' of template '{self.where}' {found}; wanted {wanted}. Correct it, or write a file of your "
            "own (docs/prompts.md)."
        )


def _rank_llm(template: _Template) -> dict[str, Any]:
    method = template.values["method"]
    if method not in _RANK_LLM:
        raise template.wrong("method", f"{' or '.join(_RANK_LLM)}, the others are not read")
    before, each, after = _RANK_LLM[method]
    letters = "A-Z" in str([template.values.get(name) for name in ("output_extraction_regex", "output_patterns")])
    body, suffix = template.needed(each), template.text(after)
    made: dict[str, Any] = {
        "about": "All passages in order (a template of rank_llm)",
        "kind": "listwise",
        # Those who name passages by letters are read at the letter behind the bracket, which they write first.
        "parser": "first-token" if letters else "permutation",
        "identifiers": "letters" if letters else "numbers",
        **_tags(template),
        "passages": {"limit": _WORDS, "unit": "words"},
    }
    if letters:
        made["options"] = {"token": 2}
    messages = _system(template, "system_message")
    if method == "multiturn_listwise":
        answers = [template.text(name) for name in ("prefix_assistant", "body_assistant")]
        messages += _turns(("user", template.text(before)), ("assistant", answers[0]))
        if answers[1]:
            messages.append({"each": _turns(("user", body), ("assistant", answers[1]))})
            return made | {"messages": messages + _turns(("user", suffix))}
        before = ""
    made["passages"] |= {"line": body, "separator": ""}
    shown = (template.text(before) if before else "") + "{passages}" + suffix
    return made | {"messages": messages + _turns(("user", shown))}


def _rank_r1(template: _Template) -> dict[str, Any]:
    return {
        "about": "The best passage of a set (a template of Rank-R1)",
        "kind": "setwise",
        "parser": "label",
        "max_documents": 20,
        **_tags(template),
        "passages": {"limit": 350, "unit": "words", "line": "[{identifier}]: {passage}"},
        "messages": _system(template, "prompt_system") + _turns(("user", template.needed("prompt_user"))),
    }


def _system(template: _Template, name: str) -> list[dict[str, Any]]:
    return _turns(("system", template.text(name)))


def _turns(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "text": text} for role, text in turns if text]


def _tags(template: _Template) -> dict[str, str]:
    """The tags that the template's words ask for."""
    words = " ".join(str(value) for value in template.values.values())
    return {name: tag for name, tag in (("thinking", "think"), ("answer", "answer")) if re.search(rf"<{tag}>", words)}
