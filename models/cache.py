"""What decoding keeps of earlier positions, so that a new one costs one position's work.

Room for all positions is made once, at the first write, in the type that the layer computes in: compiled devices want
fixed shapes. Legend: B batch, S positions.
"""

from __future__ import annotations

from typing import Optional

from torch import Tensor


class PositionBuffer:
    """One tensor (..., S, width), written position by position.

    Args:
        length: S.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self._content: Optional[Tensor] = None

    def write(self, start: int, content: Tensor) -> None:
        """Store (..., n, width) at positions `start` and after."""
        if self._content is None:
            self._content = content.new_zeros(*content.shape[:-2], self.length, content.shape[-1])
        self._content[..., start : start + content.shape[-2], :] = content

    def at(self, position: int) -> Tensor:
        """The content of one position, (..., 1, width)."""
        return self._written().narrow(-2, position, 1)

    def read(self, positions: Tensor) -> Tensor:
        """The content of `positions`, n ascending numbers, all written before: (..., n, width)."""
        content = self._written()
        first, count = int(positions[0]), len(positions)
        if int(positions[-1]) - first + 1 == count:  # a run of positions needs no copy
            return content.narrow(-2, first, count)
        return content.index_select(-2, positions.to(content.device))

    def _written(self) -> Tensor:
        assert self._content is not None, "nothing was written yet"
        return self._content


class LayerCache:
    """All that one layer keeps: keys and values, and what token shift looks back to.

    Args:
        length: positions of a sequence.
    """

    def __init__(self, length: int) -> None:
        self.keys, self.values = PositionBuffer(length), PositionBuffer(length)  # (B, H, S, K)
        self.attention_inputs, self.feed_forward_inputs = PositionBuffer(length), PositionBuffer(length)  # (B, S, W)
