"""Comparing what a model returns on the host and on IPUs."""

from __future__ import annotations

from typing import Any

import torch


def allclose(ref: Any, other: Any) -> bool:
    """Whether `other` has the structure of `ref` (tuples and lists of tensors, nested) and nearly equal tensors.

    Tensors are compared by `torch.allclose`, with its tolerances; other values have to be equal.
    """
    if isinstance(ref, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.allclose(other, ref)
    for kind in (tuple, list):
        if isinstance(ref, kind):
            same = isinstance(other, kind) and len(ref) == len(other)
            return same and all(allclose(mine, theirs) for mine, theirs in zip(ref, other))
    return bool(ref == other)
