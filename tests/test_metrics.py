"""Means over batches."""

from __future__ import annotations

import pytest
import torch

from metrics import Mean


def test_batches_count_by_their_size() -> None:
    mean = Mean()
    mean.add(torch.tensor([1.0, 10.0]), weight=4)
    mean.add(torch.tensor([4.0, 40.0]), weight=2)
    assert mean.value().tolist() == [2.0, 20.0]


def test_many_small_values_keep_their_digits() -> None:
    mean = Mean()
    mean.add(torch.tensor([2.0**24]))
    for _ in range(3):
        mean.add(torch.tensor([1.0]))
    assert mean.value().item() == (2**24 + 3) / 4


@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_resumed_mean_goes_on_exactly(before: int) -> None:
    values, whole, first, resumed = torch.rand(5, 2), Mean(), Mean(), Mean()
    for value in values:
        whole.add(value)
    for value in values[:before]:
        first.add(value)
    resumed.load_state_dict(first.state_dict())
    for value in values[before:]:
        resumed.add(value)
    assert torch.equal(resumed.value(), whole.value())


def test_the_mean_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="the mean of nothing; add values first"):
        Mean().value()
