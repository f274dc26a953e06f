"""Divides all questions into reader, reference, rrpo, dev and test, once: `python -m benchmarks.embedded.split`.

Two questions that share a gold passage or the title of one are never on two sides (XQuAD titles are articles), so the
unit that is dealt out is a connected component. hotpotqa/dev is test; scifact test, nfcorpus and trec_dl19 are for
evaluation only and are not listed. The result, split.json, holds ids only and is kept in the project.

`--shown` writes shown.json: test questions with a gold passage that reader or reference saw in training, as a passage
of another question. (Found after both were trained: ids are hashes, and the same article is printed differently in two
sets. Such questions are left out of every test; the split itself stays as it was trained with.)
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path

from benchmarks.embedded.sets import Question, Shown, load_sets, passages_for

SIDES = ("test", "rrpo", "dev", "reader", "reference")
# Questions wanted on each side, by set.
WANTED = {
    "nq_open": {"test": 850, "rrpo": 450, "dev": 150, "reference": 230, "reader": 975},
    "xquad_en": {"test": 370, "rrpo": 150, "dev": 75, "reference": 130, "reader": 465},
    "hotpotqa/train": {"dev": 40, "reference": 80, "reader": 180},
    "musique": {"reference": 30, "reader": 70},
    "hotpotqa/dev": {"test": 10_000},
    "2wikimultihopqa": {"test": 10_000},
}
FOLDER = Path(__file__).parent


def components(questions: list[Question]) -> list[list[Question]]:
    """Groups of questions tied by a gold passage's text or title."""
    parent = list(range(len(questions)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    owner: dict[str, int] = {}
    for i, question in enumerate(questions):
        for document in question.gold:
            for key in (document.title.lower().strip(), document.text.strip()):
                if key:
                    parent[root(i)] = root(owner.setdefault(key, i))
    groups: dict[int, list[Question]] = defaultdict(list)
    for i, question in enumerate(questions):
        groups[root(i)].append(question)
    return list(groups.values())


def deal(groups: list[list[Question]], seed: int = 0) -> dict[str, str]:
    """key -> side. A group of several sets goes by its largest set; test-only sets pull their group to test."""
    taken: dict[tuple[str, str], int] = defaultdict(int)
    sides: dict[str, str] = {}
    random.Random(seed).shuffle(groups)
    groups.sort(key=len, reverse=True)  # large components first, so that no side overshoots by one of them
    for group in groups:
        sets = [question.set_name for question in group]
        fixed = [name for name in sets if list(WANTED[name]) == ["test"]]
        name = fixed[0] if fixed else max(set(sets), key=sets.count)
        wanted = WANTED[name]
        room = {side: wanted[side] - taken[name, side] for side in wanted}
        open_sides = [side for side in wanted if room[side] >= len(group)] or [max(room, key=lambda side: room[side])]
        side = max(open_sides, key=lambda s: room[s] / wanted[s])
        for question in group:
            sides[question.key] = side
            taken[question.set_name, side] += 1
    return sides


def shown(name: str) -> list[str]:
    """Keys of one side's questions with a gold passage that training of reader or reference showed."""
    from benchmarks.embedded.train_reader import TRAIN_SETS

    seen = Shown(d for part in ("reader", "reference") for d in passages_for(part, TRAIN_SETS))
    keys = set(json.loads((FOLDER / "split.json").read_text(encoding="utf-8"))[name])
    return sorted(q.key for q in load_sets(WANTED) if q.key in keys and any(d in seen for d in q.gold))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shown", action="store_true", help="write shown.json instead")
    if parser.parse_args().shown:
        (FOLDER / "shown.json").write_text(json.dumps(shown("test"), indent=0) + "\n", encoding="utf-8")
        return
    questions = load_sets(WANTED)
    sides = deal(components(questions))
    table: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(SIDES, 0))
    for question in questions:
        table[question.set_name][sides[question.key]] += 1
    for name, counts in table.items():
        print(name, counts)
    by_side = {side: sorted(key for key, s in sides.items() if s == side) for side in SIDES}
    (FOLDER / "split.json").write_text(json.dumps(by_side, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
