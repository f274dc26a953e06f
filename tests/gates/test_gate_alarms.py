"""Gate: ten kinds of failure, planted in a small world, are named within 100 steps; twenty healthy runs set no alarm
off; without the rules that name a kind the gate fails (`make gates-alarms`)."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest

from rankwright.alarms import RULES, Watch
from tests.planted import NOISY, PLANTED, healthy

pytestmark = [pytest.mark.gates, pytest.mark.timeout(1800)]  # thirty runs stand before the first test

STEPS = 100
SEEDS = range(3)
WANTED = 8
"""Of ten kinds."""
HEALTHY = 20


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """The run folders of every kind, one for each seed."""
    folders: dict[str, list[Path]] = {}
    for kind, (world, _) in PLANTED.items():
        for seed in SEEDS:
            folder = tmp_path_factory.mktemp(f"planted{seed}")
            replace(world, seed=seed, steps=STEPS).alarms(folder)
            folders.setdefault(kind, []).append(folder)
    return folders


Steps = dict[str, list[int | None]]


def first_alarm(folder: Path, names: set[str], without: Collection[str]) -> int | None:
    """The step at which one of these alarms goes off on the log of a run, with some rules taken out."""
    watch = Watch(rule for rule in RULES if rule.name not in without)
    for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines():
        watch.see(json.loads(line))
    return min((alarm.step for alarm in watch.alarms if alarm.name in names), default=None)


def steps_until(planted: dict[str, list[Path]], without: Collection[str] = ()) -> Steps:
    """Of every kind and seed the step of the alarm that names it; None where it is missed."""
    return {kind: [first_alarm(folder, PLANTED[kind][1], without) for folder in planted[kind]] for kind in planted}


def kinds_named(steps: Steps) -> list[str]:
    """Those that no seed hides."""
    return [kind for kind, found in steps.items() if all(step is not None and step <= STEPS for step in found)]


def test_eight_of_ten_kinds_are_named_within_a_hundred_steps(
    planted: dict[str, list[Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    steps = steps_until(planted)
    named = kinds_named(steps)
    with capsys.disabled():
        print(f"\n{len(named)} of {len(PLANTED)} kinds named with each of {len(SEEDS)} seeds; steps until the alarm:")
        for kind, found in steps.items():
            print(f"  {kind:22}", *("missed" if step is None else step for step in found))
    assert len(PLANTED) == 10
    assert len(named) >= WANTED


@pytest.mark.parametrize("number", range(HEALTHY))
def test_a_healthy_run_sets_nothing_off(tmp_path: Path, number: int) -> None:
    assert replace(healthy(number), steps=STEPS).alarms(tmp_path) == {}


@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_run_with_its_kl_does_not_drift(tmp_path: Path, seed: int) -> None:
    """Or the alarm of the planted one would say nothing about the KL."""
    assert "drift" not in replace(NOISY, seed=seed, steps=STEPS).alarms(tmp_path)


@pytest.mark.parametrize("kind", PLANTED)
def test_without_its_rules_a_kind_is_missed(planted: dict[str, list[Path]], kind: str) -> None:
    """Mutant proof of the rules that the gate needs."""
    assert any(step is not None for step in steps_until(planted)[kind])
    assert steps_until(planted, without=PLANTED[kind][1])[kind] == [None] * len(SEEDS)


def test_without_the_rules_of_three_kinds_the_gate_fails(planted: dict[str, list[Path]]) -> None:
    """Mutant proof of the gate itself."""
    rules = {name for kind in ("constant reward", "stale cache", "position-only policy") for name in PLANTED[kind][1]}
    assert len(kinds_named(steps_until(planted, without=rules))) < WANTED
