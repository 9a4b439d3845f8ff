"""Rotary embedding: what turns, by how much, and that products depend on distances alone."""

from __future__ import annotations

import math

import pytest
import torch

from models.patterns import Layout
from models.rotary import rotary_angles, rotate


def test_each_third_turns_by_its_own_coordinate() -> None:
    layout = Layout(3, 3, 2)
    found = rotary_angles(layout, 13)  # thirds of 4: two pairs each
    assert found.shape == (9, 12)
    rates, pixel_rates = [1.0, 0.01], [math.pi, 5 * math.pi]
    for position in range(9):
        row, column = divmod(position - 3, 2)
        places = (float(position), -10.0, -10.0) if position < 3 else (8192.0, row - 1.0, 2.0 * column - 1)
        angles = [place * rate for place, which in zip(places, (rates, pixel_rates, pixel_rates)) for rate in which]
        for pair, angle in enumerate(angles):
            for channel in (2 * pair, 2 * pair + 1):
                assert float(found[position, channel]) == pytest.approx(angle, rel=1e-6, abs=1e-6)


def test_pairs_turn_and_the_rest_stays() -> None:
    cosines, sines = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    assert rotate(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]), cosines, sines).tolist() == [[-2.0, 1.0, 3.0, 4.0, 5.0]]


def test_products_of_text_positions_depend_on_their_distance_alone() -> None:
    angles = rotary_angles(Layout(40, 2, 2), 48)[:40].double()
    q, k = torch.randn(2, 48, dtype=torch.float64)
    turned_q, turned_k = (rotate(t.expand(40, -1), angles.cos(), angles.sin()) for t in (q, k))
    products = turned_q @ turned_k.T
    for distance in (0, 3, 11):
        along = products.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=0, atol=1e-4)


def test_half_precision_stays_half_precision() -> None:
    angles = rotary_angles(Layout(3, 2, 2), 12)
    assert rotate(torch.randn(2, 7, 12).bfloat16(), angles.cos(), angles.sin()).dtype == torch.bfloat16
