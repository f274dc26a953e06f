"""Gate D3: cut off or with a flipped bit, files of cache, checkpoints and runs are set aside, passed over, made again
or refused by a typed error, and never taken for what they are not."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rankwright.algorithms import RRPO, RRPOConfig
from rankwright.algorithms.config import TrainConfig
from rankwright.checkpoints import sorted_checkpoints
from rankwright.cli.app import run
from rankwright.cli.hub import model_folder
from rankwright.cli.manage import written_report
from rankwright.cli.run import run_id_of, without_speed
from rankwright.errors import DataError, ModelError, RankwrightError, ResumeError
from rankwright.llms.cache import LedgerEntry, LedgerTotals, ReadStore
from rankwright.manifests import damaged_files
from rankwright.rerankers import load
from rankwright.rewards import answer_reward
from rankwright.training import train
from tests.cli_kit import make_model, rows, write_rows
from tests.gates.mutants import Mutant
from tests.gates.sizes import tries
from tests.test_cli_costs import command, endpoint
from tests.toy import ToyPolicy, ToyReader, examples

pytestmark = [pytest.mark.gates, pytest.mark.timeout(1800)]

CUTS = tries(full=500, quick=60)
FLIPS = tries(full=500, quick=60)
SHARE = tries(full=100, quick=10) / 100
"""Of the bytes of the cache's pages that are flipped one after the other."""

GATE = "tests/gates/test_gate_d3.py"
MUTANTS = [
    Mutant(
        "D3", f"{GATE}::test_cache", "rankwright/llms/cache.py", "if checksum == _checksum(key, value):", "if checksum:"
    ),
    Mutant(
        "D3",
        f"{GATE}::test_cache",
        "rankwright/llms/cache.py",
        "    return row[-1] == _digits(row[:-1])",
        "    return True",
    ),
    Mutant(
        "D3",
        f"{GATE}::test_cache",
        "rankwright/llms/cache.py",
        '            if found != "ok":',
        "            if not found:",
    ),
    Mutant(
        "D3",
        f"{GATE}::test_cache",
        "rankwright/llms/cache.py",
        "except (sqlite3.DatabaseError, UnicodeDecodeError) as error:",
        "except sqlite3.DatabaseError as error:",
    ),
    Mutant("D3", f"{GATE}::test_cache", "rankwright/llms/cache.py", "if _was_emptied(self.path):", "if False:"),
    Mutant(
        "D3",
        f"{GATE}::test_checkpoints_and_log",
        "rankwright/manifests.py",
        "return digest(path) == entry",
        "return path.exists()",
    ),
    Mutant(
        "D3",
        f"{GATE}::test_records_of_a_finished_run",
        "rankwright/cli/run.py",
        "return damaged_files(folder) if (folder / MANIFEST).exists() else []",
        "return []",
    ),
    Mutant(
        "D3",
        f"{GATE}::test_records_of_a_finished_run",
        "rankwright/cli/run.py",
        "write_manifest(folder, (*RECORDS, *model_files(folder)))",
        "write_manifest(folder, RECORDS)",
    ),
    Mutant(
        "D3",
        f"{GATE}::test_records_of_a_finished_run",
        "rankwright/llms/endpoint.py",
        "        check_model(Path(model_place(name)))\n",
        "        pass\n",
    ),
    Mutant(
        "D3",
        f"{GATE}::test_settings_of_a_run_to_resume",
        "rankwright/cli/run.py",
        "if damaged := {MANIFEST, *BEGUN_WITH}.intersection(damaged_records(config.parent)):",
        "if damaged := {MANIFEST}.intersection(()):",
    ),
]

Told = Callable[[str], None]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """Prints a line of figures past pytest."""

    def tell(line: str) -> None:
        with capsys.disabled():
            print(f"\nD3: {line}")

    return tell


def damages(draw: random.Random, files: Sequence[Path]) -> list[tuple[Path, bytes, bytes]]:
    """Of each damage the file, what stood in it and what stands in it now; headers and ends are hit more often."""
    wholes = {path: path.read_bytes() for path in files if path.stat().st_size}
    made = []
    for number in range(CUTS + FLIPS):
        path = draw.choice(list(wholes))
        whole = wholes[path]
        place = draw.choice([draw.randrange(len(whole)), draw.randrange(min(100, len(whole))), len(whole) - 1])
        if number < CUTS:
            made.append((path, whole, whole[:place]))
        else:
            raw = bytearray(whole)
            raw[place] ^= 1 << draw.randrange(8)
            made.append((path, whole, bytes(raw)))
    return made


# --- cache


PAGE, HEADER = 4096, 8
"""Bytes of a page of SQLite and of its header; the first page has the table definitions."""


def flipped_pages(draw: random.Random, whole: bytes) -> Iterator[bytes]:
    """The file with one bit flipped in bytes of its first page and of the ledger's: the highest one, which leaves no
    UTF-8, and any."""
    ledger = whole.index(b"ledger-run") // PAGE * PAGE
    for place in (*range(PAGE), *range(ledger, ledger + PAGE)):
        tried = place % PAGE < HEADER or (whole[place] and draw.random() < SHARE)
        for bit in {7, draw.randrange(8)} if tried else ():
            raw = bytearray(whole)
            raw[place] ^= 1 << bit
            yield bytes(raw)


def calls_of(store: ReadStore) -> dict[str | None, LedgerTotals]:
    """What the ledger says of each run and of all."""
    return {run: store.ledger.totals(run) for run in (*store.ledger.runs(), None)}


@pytest.mark.filterwarnings("ignore")
def test_cache(tmp_path: Path, told: Told, caplog: pytest.LogCaptureFixture) -> None:
    """No wrong answer, and no other sum of calls and prices without a word; and the store takes new ones at once."""
    wanted = {f"key{number}": {"text": f"answer {number} " * 20} for number in range(40)}
    whole = tmp_path / "whole.sqlite"
    with ReadStore(whole) as store:
        runs = [f"ledger-run-{number % 3}" for number in range(24)]
        store.put_many(wanted, [LedgerEntry(run, "m", "ok", 1, 10, 2, 0.5) for run in runs])
        calls = calls_of(store)
    draw, found = random.Random(4), Counter[str]()
    anywhere = [damaged for _, _, damaged in damages(draw, [whole])]
    for number, damaged in enumerate((b"", *anywhere, *flipped_pages(draw, whole.read_bytes()))):
        path = tmp_path / f"{number}" / "reads.sqlite"
        path.parent.mkdir()
        path.write_bytes(damaged)
        if not damaged:  # nothing in it tells it from a new one, but that it is there, and was before
            os.utime(path, (0, 0))
        with ReadStore(path) as store:
            got, counted = store.get_many(wanted), calls_of(store)
            assert got.items() <= wanted.items() if not got else all(wanted[key] == got[key] for key in got)
            store.put_many({"new": {"text": "y"}})
            assert store.get_many(["new"]) == {"new": {"text": "y"}}
            aside = list(path.parent.glob("*.damaged-*"))
            if not damaged:
                assert (got, counted[None].calls, aside) == ({}, 0, [])
                assert f"Read cache '{path}' is there and holds nothing (0 bytes)" in caplog.text
                found["emptied and told"] += 1
            elif not aside and counted != calls:
                assert counted[None].damaged == calls[None].calls - counted[None].calls > 0
                found["calls missed and told"] += 1
            else:
                found["set aside" if aside else "rows missed" if got != wanted else "no row hit"] += 1
            for old in aside:
                assert old.suffix.startswith(".damaged-") or old.name.endswith("-journal")
        shutil.rmtree(path.parent)
    assert min(found["set aside"], found["rows missed"], found["calls missed and told"]) > 0
    told(f"cache: {dict(found)}, 0 wrong answers, 0 wrong sums")


# --- checkpoints and the log of a run


def scored(module: nn.Module) -> dict[str, float]:
    """Dev likes the weights early on best, so that those that are kept are not those of the newest checkpoint."""
    return {"reward": -abs(float(module.get_parameter("scores")[7].detach()) - 0.7)}


def trained(folder: Path) -> dict[str, Any]:
    """Trains or goes on, in this folder; what came out of it."""
    policy, seen = ToyPolicy(), ToyReader()
    result = train(
        policy,
        copy.deepcopy(policy),
        RRPO(RRPOConfig(beta=0.0, samples=4), seen, answer_reward("f1"), seed=1),
        examples(20),
        TrainConfig(epochs=2, batch_size=4, learning_rate=0.3, eval_steps=2, patience=0),
        folder,
        seed=1,
        score_dev=scored,
        resume=True,
    )
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    alarms = [(alarm.name, alarm.step) for alarm in result.alarms]
    weights = policy.scores.detach().tolist()
    return {
        "weights": weights,
        "log": log,
        "alarms": alarms,
        "ends": (result.steps, result.best_step, result.dev_best, result.reader_calls),
    }


@pytest.mark.filterwarnings("ignore")
def test_checkpoints_and_log(tmp_path: Path, told: Told, caplog: pytest.LogCaptureFixture) -> None:
    """A finished run is taken up again: it comes to the same or is refused, and damage to what it reads is noticed:
    told of, or written anew. Of checkpoints it reads the newest and the best one."""
    torch.set_num_threads(1)
    whole = tmp_path / "whole"
    true = trained(whole)
    newest, best = sorted_checkpoints(whole)[-1], true["ends"][1]
    assert 0 < best < int(newest.name.split("-")[1])
    assert len(sorted_checkpoints(whole)) >= 2
    files = sorted(path for path in whole.rglob("*") if path.is_file())
    found = Counter[str]()
    for path, _, damaged in damages(random.Random(5), files):
        copied = tmp_path / "copy"
        shutil.copytree(whole, copied)
        name = path.relative_to(whole)
        (copied / name).write_bytes(damaged)
        caplog.clear()
        try:
            assert trained(copied) == true, f"{name} is wrong"
            warned = any(name.parts[0] in record.getMessage() for record in caplog.records)
            written = not (copied / name).exists() or (copied / name).read_bytes() != damaged
            if warned or written:
                found["made again"] += 1
            else:
                read = ("metrics.jsonl", newest.name, f"checkpoint-{best}")
                assert name.parts[0] not in read, f"damage to {name} was not noticed"
                found["not read"] += 1
        except ResumeError:
            assert f"checkpoint-{best}" == name.parts[0], f"{name} need not stop the run"
            found["refused"] += 1
        shutil.rmtree(copied)
    assert min(found["refused"], found["made again"]) > 0
    told(f"{len(files)} files of checkpoints and log: {dict(found)}, 0 wrong results")


# --- records of a run


def expanding(address: str, *more: str) -> list[str]:
    """A run whose questions are expanded by its reader's model."""
    return command(address, "--expand-with", "reader", *more, **{"data.retriever": "bm25"})


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that the command line made. Its questions name their answers, which sets an alarm off."""
    monkeypatch.chdir(tmp_path)
    leaking = [{**row, "question": f"{row['question']} Is it {row['answers'][0]}?"} for row in rows()]
    write_rows(tmp_path / "q.jsonl", leaking)
    make_model(tmp_path / "tiny")
    with endpoint() as (address, _):
        assert run(expanding(address)) in (0, 8)
    return tmp_path / "runs" / "a"


def outcome_of(work: Callable[[], object], refusals: type[RankwrightError]) -> str:
    """ "refused" where a typed error came that says what to do."""
    try:
        work()
    except refusals:
        return "refused"
    return "taken"


RECORDS = {
    *("config.json", "environment.json", "expansions.jsonl"),
    *("metrics.jsonl", "alarms.jsonl", "evaluation.json", "result.json"),
}
UNGUARDED = {"manifest.json", "report.html", "model/README.md"}
"""The list itself, what is made of the rest, and the card, which people may change."""


@pytest.mark.filterwarnings("ignore")
def test_records_of_a_finished_run(finished: Path, tmp_path: Path, told: Told) -> None:
    """The report is made of what the run left, or not at all; a model with a damaged file is neither opened nor
    pushed."""
    listed = set(json.loads((finished / "manifest.json").read_text("utf-8")))
    there = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert {name for name in there if not name.startswith("checkpoint-")} == listed | UNGUARDED
    assert listed > {*RECORDS, "model/config.json", "model/model.safetensors", "model/tokenizer.json"}
    found = Counter[str]()
    page = tmp_path / "page.html"
    written_report(finished, page)
    page.unlink()
    files = [finished / name for name in sorted([*listed, "manifest.json"])]
    for path, whole, damaged in damages(random.Random(6), files):
        path.write_bytes(damaged)
        found[outcome_of(lambda: written_report(finished, page), DataError)] += 1
        assert not page.exists(), f"{path.name}: {damaged!r}"
        if path.parent.name == "model":
            for place in (finished, finished / "model"):
                found[f"model {outcome_of(lambda place=place: load(place), ModelError)}"] += 1
                found[f"push {outcome_of(lambda place=place: model_folder(place), ModelError)}"] += 1
        path.write_bytes(whole)
    assert found["refused"] == CUTS + FLIPS
    assert found["model refused"] == found["push refused"] > CUTS
    assert found.keys() == {"refused", "model refused", "push refused"}
    assert load(finished).name == str(finished / "model")
    told(f"records and model of a finished run: {dict(found)}")


@pytest.mark.filterwarnings("ignore")
def test_settings_of_a_run_to_resume(finished: Path, capsys: pytest.CaptureFixture[str], told: Told) -> None:
    """A run does not go on under other settings or another id than it began with. What a damaged manifest says of
    records that the end of a run makes anew is no reason to stop."""
    config, manifest = finished / "config.json", finished / "manifest.json"
    begun = json.loads(config.read_text("utf-8"))
    run_id, settings = begun.pop("run_id"), without_speed(begun)
    found = Counter[str]()
    for path, whole, damaged in damages(random.Random(7), [config, manifest]):
        path.write_bytes(damaged)
        try:
            assert (path, run_id_of(finished, resume=True, overwrite=False)) == (manifest, (run_id, settings))
            assert not {"manifest.json", "config.json", "environment.json"}.intersection(damaged_files(finished))
            found["went on as it began"] += 1
        except ResumeError as error:
            found["refused" if "is damaged (it is not as the run left it)" in str(error) else str(error)] += 1
        path.write_bytes(whole)
    assert found.keys() == {"refused", "went on as it began"}
    assert found["refused"] > CUTS
    # By the command, with the server that is gone: its answers are in the cache.
    given = expanding(begun["reader"]["reader"], "--resume")
    assert run(given) in (0, 8)
    config.write_bytes(config.read_bytes().replace(run_id.encode(), run_id[:-1].encode()))
    capsys.readouterr()
    assert run(given) == ResumeError.exit_code
    assert "is damaged (it is not as the run left it)" in " ".join(capsys.readouterr().err.split())
    told(f"settings of a run to resume: {dict(found)}")
