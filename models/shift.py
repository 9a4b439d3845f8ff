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

from models.cache import Neighbours, Place
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

    def forward(self, x: Tensor, earlier: Optional[Neighbours] = None) -> Tensor:
        """Shift the first positions of a sequence: (B, n, D) to the same.

        Args:
            x: the positions.
            earlier: is given what later positions will look back to.
        """
        if earlier is not None:
            earlier.fill(x)
        return torch.cat((self._shift_text(x[:, : self.layout.text_len]), self._shift_image(x)), dim=1)

    def new_neighbours(self, rows: int, device: torch.device, dtype: torch.dtype) -> Neighbours:
        """Room for all that later positions will look back to."""
        return Neighbours(self.layout, rows, max(self.text_width, 2 * self.image_width), device, dtype)

    def shift_text(self, x: Tensor, earlier: Neighbours, place: Place) -> Tensor:
        """Shift one text token, (B, D) to the same."""
        earlier.store(x, place)
        return torch.cat((earlier.before(place)[:, : self.text_width], x[:, self.text_width :]), dim=-1)

    def shift_pixel(self, x: Tensor, earlier: Neighbours, place: Place) -> Tensor:
        """Shift one pixel, (B, D) to the same."""
        earlier.store(x, place)
        above, left = earlier.above_and_left(place)
        above, left = above[:, : self.image_width], left[:, self.image_width : 2 * self.image_width]
        return torch.cat((above, left, x[:, 2 * self.image_width :]), dim=-1)

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
