"""What the two training scripts share: AdamW with fast new heads, linear warm-up and decay."""

from __future__ import annotations

import torch
from torch import nn


def optimizer_of(
    model: nn.Module, heads: tuple[str, ...], learning_rate: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Heads start from random weights and learn ten times as fast as the body; a tenth of the steps is warm-up.

    Args:
        heads: beginnings of the names of the head's parameters.
        learning_rate: peak, of the body.
        steps: of the whole training.
    """
    head = [p for name, p in model.named_parameters() if name.startswith(heads)]
    body = [p for name, p in model.named_parameters() if not name.startswith(heads) and p.requires_grad]
    groups = [{"params": body, "lr": learning_rate}, {"params": head, "lr": learning_rate * 10}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.1 * steps), (steps - step) / (0.9 * steps))
    )
    return optimizer, schedule
