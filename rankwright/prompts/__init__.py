"""Prompt texts with versions and the parsers of what models write back."""

from rankwright.prompts.query2doc import ask_for_passage, parse_passage
from rankwright.prompts.reader import NO_ANSWER, Prompt, load_prompt, parse_answer, render

__all__ = ["NO_ANSWER", "Prompt", "ask_for_passage", "load_prompt", "parse_answer", "parse_passage", "render"]
