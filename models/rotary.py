"""Rotary position embedding of text and picture (Su et al. 2021, "RoFormer"), as DALLE-pytorch lays it out.

A third of a head's channels turns with the position in the text, a third with the pixel's row, a third with its column.
A pixel's place in the text is one far behind it, a text token's place in the picture one far outside it. Queries, keys
and, as in DALLE-pytorch, values are turned.

Legend: S positions, K head width, R channels that turn.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.patterns import Layout

TEXT_PLACE_OF_PIXELS = 8192.0
PIXEL_PLACE_OF_TEXT = -10.0  # pixels lie in -1..1
SLOWEST_WAVELENGTH = 10000.0
FASTEST_PIXEL_TURNS = 5.0  # half turns over the half picture


def rotary_angles(layout: Layout, dim_head: int) -> Tensor:
    """The angles that each position, the last pixel's too, turns its channels by, (S + 1, R); neighbours are a pair."""
    pairs = dim_head // 3 // 2
    text_rates = 1.0 / SLOWEST_WAVELENGTH ** (torch.arange(pairs) * 2 / (dim_head // 3))
    pixel_rates = torch.linspace(1.0, FASTEST_PIXEL_TURNS, pairs) * math.pi
    text = torch.cat((torch.arange(layout.text_len).float(), torch.full((layout.image_len,), TEXT_PLACE_OF_PIXELS)))
    outside = torch.full((layout.text_len,), PIXEL_PLACE_OF_TEXT)
    rows = torch.linspace(-1, 1, layout.rows).repeat_interleave(layout.columns)
    columns = torch.linspace(-1, 1, layout.columns).repeat(layout.rows)
    parts = (
        text[:, None] * text_rates,
        torch.cat((outside, rows))[:, None] * pixel_rates,
        torch.cat((outside, columns))[:, None] * pixel_rates,
    )
    return torch.cat(parts, dim=1).repeat_interleave(2, dim=1)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn the first R channels of x (..., n, K), pair by pair, by angles (n, R), or (n, ..., R); the others stay."""
    turning, still = x.split((cosines.shape[-1], x.shape[-1] - cosines.shape[-1]), dim=-1)
    even, odd = turning.unflatten(-1, (-1, 2)).unbind(-1)
    across = torch.stack((-odd, even), dim=-1).flatten(-2)
    return torch.cat(((turning * cosines + across * sines).to(x.dtype), still), dim=-1)
