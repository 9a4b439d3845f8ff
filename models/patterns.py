"""Attention patterns: which earlier positions a position may look at.

A pattern is data: one predicate over two image positions, below. Everything else is derived from it and tested against
it: the dense mask, the keys that one decoding step reads, and the structured forms in `attention.py`.

Positions of a sequence: 0 is <bos>, then `text_seq_len` text tokens, then the picture row by row. Text is attended to
by everything after it; the patterns only say which pixels a pixel sees. Patterns as in Ramesh et al. 2021, "Zero-Shot
Text-to-Image Generation", section 2.2.
"""

from __future__ import annotations

import dataclasses
from typing import Callable, Dict, Tuple

import torch
from torch import Tensor

Places = Tuple[Tensor, Tensor]  # row and column of pixels


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where text and picture lie in a sequence.

    Args:
        text_len: positions of <bos> and text.
        rows, columns: the grid of image tokens.
    """

    text_len: int
    rows: int
    columns: int

    @property
    def image_len(self) -> int:
        """Image tokens of a picture."""
        return self.rows * self.columns

    @property
    def sequence_len(self) -> int:
        """Positions the transformer sees: the last image token is predicted and never fed."""
        return self.text_len + self.image_len - 1


@dataclasses.dataclass(frozen=True)
class Pattern:
    """One kind of attention over one layout.

    Args:
        kind: a key of `PATTERNS`.
        layout: where text and picture lie.
        kernel_size, dilation, window: the neighbourhood of `conv_like`. The window ends at the pixel ("causal", as
            DALLE-pytorch 1.6.6) or is centered on it and cut there ("centered", as Graphcore and older DALLE-pytorch).
    """

    kind: str
    layout: Layout
    kernel_size: int = 5
    dilation: int = 1
    window: str = "causal"

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether position `query` may look at position `key`; integer tensors that broadcast, to booleans."""
        text_len, columns = self.layout.text_len, self.layout.columns
        pixels = (query >= text_len) & (key >= text_len)
        place, other = query - text_len, key - text_len
        near = PATTERNS[self.kind](
            self,
            (place.div(columns, rounding_mode="floor"), place % columns),
            (other.div(columns, rounding_mode="floor"), other % columns),
        )
        return (key <= query) & (near | ~pixels)

    def mask(self, length: int) -> Tensor:
        """The dense mask of the first `length` positions, (query, key)."""
        positions = torch.arange(length)
        return self.allowed(positions[:, None], positions[None, :])

    def keys(self, position: int) -> Tensor:
        """The positions that `position` looks at, ascending."""
        return self.allowed(torch.tensor(position), torch.arange(position + 1)).nonzero().squeeze(1)


def _full(pattern: Pattern, query: Places, key: Places) -> Tensor:
    return torch.ones_like(query[0] == key[0])


def _axial_row(pattern: Pattern, query: Places, key: Places) -> Tensor:
    return query[0] == key[0]


def _axial_col(pattern: Pattern, query: Places, key: Places) -> Tensor:
    return query[1] == key[1]


def _conv_like(pattern: Pattern, query: Places, key: Places) -> Tensor:
    down, right = query[0] - key[0], query[1] - key[1]
    reach = (pattern.kernel_size - 1) * pattern.dilation
    first, last = (0, reach) if pattern.window == "causal" else (-(reach // 2), reach // 2)
    inside = (down >= first) & (down <= last) & (right >= first) & (right <= last)
    return inside & ((down - first) % pattern.dilation == 0) & ((right - first) % pattern.dilation == 0)


PATTERNS: Dict[str, Callable[[Pattern, Places, Places], Tensor]] = {
    "full": _full,
    "axial_row": _axial_row,
    "axial_col": _axial_col,
    "conv_like": _conv_like,
}
