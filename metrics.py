"""Means over many batches."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor


class Mean:
    """A weighted mean of vectors of scalars, kept where they are: adding never waits for the device."""

    def __init__(self) -> None:
        self.total: Optional[Tensor] = None
        self.weight = 0.0

    def add(self, values: Tensor, weight: float = 1.0) -> None:
        """Take in `values` (n,)."""
        weighted = values.double() * weight
        self.total = weighted if self.total is None else self.total + weighted
        self.weight += weight

    def value(self) -> Tensor:
        """The mean so far, (n,); of nothing, an error."""
        if self.total is None:
            raise ValueError("the mean of nothing; add values first")
        return self.total / self.weight

    def state_dict(self) -> dict[str, object]:
        """What a resumed run needs."""
        return {"total": None if self.total is None else self.total.tolist(), "weight": self.weight}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Put back what `state_dict` returned."""
        total = state["total"]
        self.total = None if total is None else torch.tensor(total, dtype=torch.float64)
        self.weight = float(state["weight"])  # type: ignore[arg-type]
