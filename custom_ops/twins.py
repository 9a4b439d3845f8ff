"""What the fused operators compute, in PyTorch: where no IPU runs them, and what they are tested against.

Legend: B batch, H heads, n positions of a sequence's beginning, K head width, V vocabulary, D width.
"""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from models.patterns import Pattern


def attention(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
    """Dense attention under the mask of a pattern: q, k, v (B, H, n, K) to (B, H, n, K) of their type.

    As in the operator, products are summed and the softmax is computed in single precision, and of halves the weights
    are rounded to halves before the values are weighed.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    positions = torch.arange(q.shape[2], device=q.device)
    mask = pattern.allowed(positions[:, None], positions[None, :])
    scores = q.to(wide) @ k.to(wide).transpose(-1, -2) * q.shape[-1] ** -0.5  # (B, H, n, n)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1).to(v.dtype)
    return (weights.to(wide) @ v.to(wide)).to(v.dtype)


def embedding(
    table: Tensor, ids: Tensor, position: Optional[Tensor] = None, padding_idx: Optional[int] = None
) -> Tensor:
    """Rows of a table (V, D) for ids (B, n), each with the vector of its position (n, D) added: (B, n, D)."""
    rows = F.embedding(ids, table, padding_idx)
    return rows if position is None else rows + position
