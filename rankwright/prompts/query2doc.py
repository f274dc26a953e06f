"""The prompt of Query2Doc: a question in, a passage that might answer it out."""

from __future__ import annotations

import re

from rankwright.prompts.reader import THINKING, Prompt, quoted

_LABEL = re.compile(r"\A[\s*_#]*passage[\s*_]*:[\s*_]*", re.IGNORECASE)
_NEXT_EXAMPLE = re.compile(r"^[\s*_#]*question[\s*_]*:.*\Z", re.IGNORECASE | re.MULTILINE | re.DOTALL)


def ask_for_passage(prompt: Prompt, question: str) -> str:
    """The message for one question."""
    return prompt.text.replace("{question}", quoted(question)).rstrip()


def parse_passage(text: str) -> str | None:
    """The passage in what a model wrote, as one line; None where nothing is left.

    Leaves out everything up to the last </think>, "Passage:" in front, and further examples that a model without
    instructions goes on to write. Characters that could act in a terminal or prompt are replaced as in questions.

    >>> parse_passage("Passage: Kelp grows in\\ncold water.\\n\\nQuestion: and crabs?")
    'Kelp grows in cold water.'
    """
    return quoted(_LABEL.sub("", _NEXT_EXAMPLE.sub("", THINKING.sub("", text)))) or None
