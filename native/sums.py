"""Sums by compiled kernels."""

from __future__ import annotations

from typing import Tuple

import torch
from torch import Tensor

from native.library import run


def rows_of(t: Tensor) -> Tuple[int, int]:
    """R and D of a tensor (..., D)."""
    return t.numel() // max(t.shape[-1], 1), t.shape[-1]


def sum_over_rows(t: Tensor) -> Tensor:
    """The sum over rows of a tensor (..., D), in single precision: (D,)."""
    total = torch.empty(t.shape[-1])
    run("sum_over_rows", t.dtype, t, total, *rows_of(t))
    return total


def sum_of_squares(t: Tensor) -> float:
    """The sum of the squares of all values."""
    total = torch.empty((), dtype=torch.float64)
    run("sum_of_squares", t.dtype, t, total, t.numel())
    return float(total)
