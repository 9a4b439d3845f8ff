"""Token shift: some channels of a position come from its neighbours, as DALLE-pytorch has it.

A text token takes the first half of its channels from the token before it; a pixel takes the first quarter from the
pixel above and the second from the pixel to the left; beyond an edge there are zeros.

Legend: B batch, S positions, D width, T text positions with <bos>, X columns of the image grid.
"""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.cache import PositionBuffer
from models.patterns import Layout


class TokenShift(nn.Module):
    """Shifts channels between neighbours.

    Args:
        hidden_size: D.
        layout: where text and picture lie.
    """

    is_first_column: Tensor

    def __init__(self, hidden_size: int, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.text_width, self.image_width = -(-hidden_size // 2), -(-hidden_size // 4)  # of what moves one way
        first = torch.arange(layout.image_len) % layout.columns == 0
        self.register_buffer("is_first_column", first[:, None], persistent=False)

    def forward(self, x: Tensor, earlier: Optional[PositionBuffer] = None, position: int = 0) -> Tensor:
        """Shift the positions from `position` on: (B, n, D) to the same.

        Args:
            x: the first positions of a sequence; or, with `position` above 0, that one alone.
            earlier: keeps what later positions will look back to.
            position: the first position of x.
        """
        if earlier is not None:
            earlier.write(position, x[..., : max(self.text_width, 2 * self.image_width)])
        if not position:
            return torch.cat((self._shift_text(x[:, : self.layout.text_len]), self._shift_image(x)), dim=1)
        assert earlier is not None, "a position alone needs the earlier ones"
        return self._shift_one(x, earlier, position)

    def _shift_text(self, x: Tensor) -> Tensor:
        before = F.pad(x[..., : self.text_width], (0, 0, 1, -1))
        return torch.cat((before, x[..., self.text_width :]), dim=-1)

    def _shift_image(self, x: Tensor) -> Tensor:
        x = x[:, self.layout.text_len :]
        length = x.shape[1]
        above, left = x[..., : self.image_width], x[..., self.image_width : 2 * self.image_width]
        above = F.pad(above, (0, 0, self.layout.columns, 0))[:, :length]
        left = F.pad(left, (0, 0, 1, 0))[:, :length].masked_fill(self.is_first_column[:length], 0)
        return torch.cat((above, left, x[..., 2 * self.image_width :]), dim=-1)

    def _shift_one(self, x: Tensor, earlier: PositionBuffer, position: int) -> Tensor:
        if position < self.layout.text_len:
            return torch.cat((earlier.at(position - 1)[..., : self.text_width], x[..., self.text_width :]), dim=-1)
        row, column = divmod(position - self.layout.text_len, self.layout.columns)
        above, left = torch.zeros_like(x[..., : self.image_width]), torch.zeros_like(x[..., : self.image_width])
        if row:
            above = earlier.at(position - self.layout.columns)[..., : self.image_width]
        if column:
            left = earlier.at(position - 1)[..., self.image_width : 2 * self.image_width]
        return torch.cat((above, left, x[..., 2 * self.image_width :]), dim=-1)
