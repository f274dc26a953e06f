"""`python -m benchmarks.ranking_language run` measures every row of analysis.md, each run in a process of its own;
`run rearank --seed 0` one run; `page` writes results/ranking-language.md. Resumable: what was measured is kept in
results/kept/ranking_language/ and not run again; weights lie in work/ranking_language/."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.kept import run_each
from benchmarks.ranking_language.page import page
from benchmarks.ranking_language.rows import LESSONS, LONG, ROWS, SEEDS
from benchmarks.ranking_language.running import mean, record, run, weights

PAGE = Path(__file__).parents[1] / "results" / "ranking-language.md"
THIS = "benchmarks.ranking_language"


def in_turn() -> list[tuple[str, int]]:
    """Every run, those of the first seed first; a warm-up stands before what starts from it."""
    return [(name, seed) for seed in SEEDS for name, row in ({LONG: LESSONS[LONG]} | ROWS).items() if seed in row.seeds]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "page"))
    parser.add_argument("row", nargs="?", choices=(LONG, *ROWS), help="all in turn by default")
    parser.add_argument("--seed", type=int, choices=SEEDS, default=0)
    given = parser.parse_args()
    if given.what == "page":
        PAGE.write_text(page(), encoding="utf-8")
    elif given.row is None:
        run_each([(THIS, "run", name, "--seed", str(seed)) for name, seed in in_turn()])
    else:
        _one(given.row, given.seed)


def _one(name: str, seed: int) -> None:
    if name == LONG:
        weights(LONG, seed)
        row = LESSONS[LONG]
    else:
        row = ROWS[name]
        run(row, seed)
    found = record(row, seed) or {"before": {row.metric: {}}, "after": {row.metric: {}}}
    before, after = (mean(found[when][row.metric]) for when in ("before", "after"))
    print(f"{name} {seed}: {before:.3f} -> {after:.3f}", flush=True)


if __name__ == "__main__":
    main()
