"""The command line: where concrete parts meet. `rankwright --help` lists the verbs.

Standard output carries results only, everything else goes to standard error. Exit codes: 0 done (better, or no
difference shown), 2 wrong arguments, 3 something to install, 4 something not found, 5 bad data or model, 6 reader or
runtime failed, 7 done in part, 8 a model is worse than its reference or baseline, 9 stopped before a limit that was set
(`--max-reader-calls`, `--max-cost`, `--max-hours`), 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import warnings

LIBRARIES = r"(transformers|trl|peft|accelerate|datasets|torch)\b"
"""Packages whose warnings about their own future say nothing to who runs a command."""


def main() -> None:
    """Entry point of the `rankwright` command."""
    # Read by huggingface libraries when they are first imported.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.warnoptions:  # python -W and PYTHONWARNINGS have the last word
        warnings.filterwarnings("ignore", category=FutureWarning, module=LIBRARIES)
    try:
        from rankwright.cli.app import run

        code = run()
    except KeyboardInterrupt:  # before a verb has begun
        print("rankwright: Interrupted.", file=sys.stderr)
        code = 130
    sys.exit(code)
