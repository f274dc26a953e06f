"""`python -m benchmarks.ranking_language run rearank --seed 0` measures one row of analysis.md, `page` writes
results/ranking_language.md. Resumable: what was measured is kept in results/kept/ranking_language/ and not run again; a
warm-up is made once a seed and form."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.kept import WORK
from rankwright.algorithms.config import TrainConfig
from rankwright.algorithms.generating import GRPOConfig

HERE = Path(__file__).parent
PAGE = HERE.parent / "results" / "ranking_language.md"
KEPT_AT = WORK / "ranking_language"
DECIDING = tuple(HERE / name for name in ("language.py", "decoder.py"))
SECONDS = 240
"""Of a run."""
SEEDS = (0, 1, 2)
METRIC = "nDCG@10"


@dataclass(frozen=True)
class Row:
    """One row of analysis.md."""

    name: str
    reward: str = ""
    """Empty for runs of SFT alone."""
    kind: str = "listwise"
    warm: bool = True
    """Whether it starts from the warm-up."""
    seeds: tuple[int, ...] = (0,)
    grpo: GRPOConfig = field(
        default_factory=lambda: GRPOConfig(rollouts=8, max_completion_length=24, beta=0.001, completions_per_pass=128)
    )
    loop: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            batch_size=16,
            learning_rate=3e-4,
            eval_steps=30,
            trainer={"max_steps": 120, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5},
        )
    )


WARM_UP = TrainConfig(
    batch_size=64,
    learning_rate=1e-3,
    eval_steps=100_000,
    trainer={"max_steps": 600, "lr_scheduler_type": "cosine", "warmup_steps": 30, "weight_decay": 0.01},
)
BASE = Row("rearank", "rearank", seeds=SEEDS)
ROWS = {
    row.name: row
    for row in (
        BASE,
        replace(BASE, name="rank-r1", reward="rank-r1", kind="setwise"),
        replace(BASE, name="reader", reward="f1"),
        replace(BASE, name="reasonrank", reward="reasonrank", seeds=(0,)),
        replace(BASE, name="rl-only", warm=False, seeds=(0,)),
        replace(BASE, name="sft-only", reward="", seeds=(0,)),
        replace(BASE, name="ndcg", reward="ndcg", seeds=(0,)),
        replace(BASE, name="difference", reward="difference", seeds=(0,)),
        replace(
            BASE,
            name="group-4",
            seeds=(0,),
            grpo=replace(BASE.grpo, rollouts=4),
            loop=replace(BASE.loop, batch_size=32),
        ),
        replace(
            BASE,
            name="group-16",
            seeds=(0,),
            grpo=replace(BASE.grpo, rollouts=16),
            loop=replace(BASE.loop, batch_size=8),
        ),
    )
}
