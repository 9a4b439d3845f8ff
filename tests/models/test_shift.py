"""Token shift against its definition, channel by channel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.cache import Place
from models.patterns import Layout
from models.shift import TokenShift


def shifted(x: Tensor, layout: Layout) -> Tensor:
    """Every channel looked up where it comes from."""
    out, width = torch.zeros_like(x), x.shape[-1]
    quarter, half = -(-width // 4), -(-width // 2)
    for position in range(x.shape[1]):
        row, column = divmod(position - layout.text_len, layout.columns)
        for channel in range(width):
            source = position
            if position < layout.text_len:
                source = position - 1 if channel < half else position
            elif channel < quarter:
                source = position - layout.columns if row else -1
            elif channel < 2 * quarter:
                source = position - 1 if column else -1
            if source >= 0:
                out[:, position, channel] = x[:, source, channel]
    return out


@pytest.mark.parametrize("width", [4, 7, 8])
@pytest.mark.parametrize("missing", [0, 1, 2, 9, 12])
def test_channels_come_from_the_neighbours(layout: Layout, width: int, missing: int) -> None:
    x = torch.randn(2, max(layout.sequence_len - missing, 1), width)
    assert torch.equal(TokenShift(width, layout)(x), shifted(x, layout))


@pytest.mark.parametrize("width", [4, 7, 8])
@pytest.mark.parametrize("together", [1, 2, 3, 5])
def test_positions_one_by_one_equal_the_whole_sequence(layout: Layout, width: int, together: int) -> None:
    shift, x = TokenShift(width, layout), torch.randn(2, layout.sequence_len, width)
    earlier = shift.new_neighbours(2, x.device, x.dtype)
    parts = list(shift(x[:, :together], earlier).unbind(1))
    for position in range(together, layout.sequence_len):
        step = shift.shift_text if position < layout.text_len else shift.shift_pixel
        parts.append(step(x[:, position], earlier, Place(torch.tensor([position]))))
    assert torch.equal(torch.stack(parts, dim=1), shift(x))
