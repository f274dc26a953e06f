"""Ranking and policy-gradient maths: pure functions of tensors. Axes: Q queries, S samples, D documents, K steps."""

from __future__ import annotations

import inspect

from torch import Tensor


def check_shapes(**expected: str) -> None:
    """Checks that local tensors of the caller have the named axes, and that equal names have equal sizes.

    Args:
        expected: variable name -> axes separated by blanks, for example `scores_QD="Q D"`.

    Raises:
        ValueError: a tensor has another rank, or one axis has two sizes.
    """
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    values, sizes = frame.f_back.f_locals, {}
    for name, axes in expected.items():
        tensor: Tensor = values[name]
        if tensor.ndim != len(axes.split()):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; wanted axes ({axes}).")
        for axis, size in zip(axes.split(), tensor.shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                raise ValueError(f"{name} has {size} on axis {axis}; wanted {sizes[axis]} as in the other arguments.")
