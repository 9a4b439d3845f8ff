"""Attention patterns: which earlier positions a position may look at.

A pattern is data: one predicate over two image positions, below. Everything else is derived from it and tested against
it: the dense mask, the keys that one decoding step reads, and the structured forms in `attention.py`.

Positions of a sequence: 0 is <bos>, then `text_seq_len` text tokens, then the picture row by row. Text is attended to
by everything after it; the patterns only say which pixels a pixel sees. Patterns as in Ramesh et al. 2021, "Zero-Shot
Text-to-Image Generation", section 2.2; `sparse` as DeepSpeed's variable sparsity, which DALLE-pytorch uses.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from typing import Callable, Dict, List, Optional, Tuple

import torch
from torch import Tensor

LOCAL_BLOCKS = 4  # blocks of a local window of `sparse`


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
        block_size, random_blocks, seed: of `sparse`: positions of a block, blocks drawn at random for every block of
            queries (none: a quarter of all blocks), and what they are drawn from.
    """

    kind: str
    layout: Layout
    kernel_size: int = 5
    dilation: int = 1
    window: str = "causal"
    block_size: int = 16
    random_blocks: Optional[int] = None
    seed: int = 0

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether position `query` may look at position `key`; integer tensors that broadcast, to booleans."""
        pixels = (query >= self.layout.text_len) & (key >= self.layout.text_len)
        return (key <= query) & (PATTERNS[self.kind](self, query, key) | ~pixels)

    def mask(self, length: int) -> Tensor:
        """The dense mask of the first `length` positions, (query, key)."""
        positions = torch.arange(length)
        return self.allowed(positions[:, None], positions[None, :])

    def keys(self) -> List[Tensor]:
        """For each position those that it looks at, ascending."""
        return [allowed.nonzero().squeeze(1) for allowed in self.mask(self.layout.sequence_len)]

    def row(self, position: Tensor) -> Tensor:
        """The row of the pixel at `position`."""
        return (position - self.layout.text_len).div(self.layout.columns, rounding_mode="floor")

    def column(self, position: Tensor) -> Tensor:
        """The column of the pixel at `position`."""
        return (position - self.layout.text_len) % self.layout.columns


def _full(pattern: Pattern, query: Tensor, key: Tensor) -> Tensor:
    return torch.ones_like(query == key)


def _axial_row(pattern: Pattern, query: Tensor, key: Tensor) -> Tensor:
    return pattern.row(query) == pattern.row(key)


def _axial_col(pattern: Pattern, query: Tensor, key: Tensor) -> Tensor:
    return pattern.column(query) == pattern.column(key)


def _conv_like(pattern: Pattern, query: Tensor, key: Tensor) -> Tensor:
    down, right = pattern.row(query) - pattern.row(key), pattern.column(query) - pattern.column(key)
    reach = (pattern.kernel_size - 1) * pattern.dilation
    first, last = (0, reach) if pattern.window == "causal" else (-(reach // 2), reach // 2)
    inside = (down >= first) & (down <= last) & (right >= first) & (right <= last)
    return inside & ((down - first) % pattern.dilation == 0) & ((right - first) % pattern.dilation == 0)


def _sparse(pattern: Pattern, query: Tensor, key: Tensor) -> Tensor:
    block, other = query // pattern.block_size, key // pattern.block_size
    local = block // LOCAL_BLOCKS == other // LOCAL_BLOCKS
    text = other * pattern.block_size < pattern.layout.text_len
    return local | text | torch.tensor(drawn_blocks(pattern), device=query.device)[block, other]


@functools.lru_cache(maxsize=64)
def drawn_blocks(pattern: Pattern) -> Tuple[Tuple[bool, ...], ...]:
    """Of a pattern of kind `sparse`, which blocks of keys were drawn for each block of queries: (blocks, blocks)."""
    blocks = -(-pattern.layout.sequence_len // pattern.block_size)
    count = blocks // 4 if pattern.random_blocks is None else pattern.random_blocks
    rng = random.Random(pattern.seed)
    chosen = [set(rng.sample(range(blocks), min(count, blocks))) for _ in range(blocks)]
    return tuple(tuple(block in row for block in range(blocks)) for row in chosen)


PATTERNS: Dict[str, Callable[[Pattern, Tensor, Tensor], Tensor]] = {
    "full": _full,
    "axial_row": _axial_row,
    "axial_col": _axial_col,
    "conv_like": _conv_like,
    "sparse": _sparse,
}
