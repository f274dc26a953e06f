"""Formats in and out: every loader gives Examples, and names file and line where a row is bad.

Reading order: `loading` (the door and the table of formats), one module per format family, `rows` and `intake` (what
they share), `fields` and `files` (JSON values and bytes), `validation`.
"""

from rankwright.data.intake import Dataset
from rankwright.data.jsonl import write_jsonl
from rankwright.data.loading import FORMATS, load_examples
from rankwright.data.problems import Problem, RowError
from rankwright.data.trec import read_trec_run, trec_run_lines, write_trec_run
from rankwright.data.validation import Lengths, ValidationReport, describe, validate

__all__ = [
    "FORMATS",
    "Dataset",
    "Lengths",
    "Problem",
    "RowError",
    "ValidationReport",
    "describe",
    "load_examples",
    "read_trec_run",
    "trec_run_lines",
    "validate",
    "write_jsonl",
    "write_trec_run",
]
