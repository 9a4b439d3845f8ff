"""The order of samples."""

from __future__ import annotations

import itertools
import logging
from typing import List, Tuple

import pytest

from engines.sampler import EpochSampler


def first(sampler: EpochSampler, count: int) -> List[Tuple[int, int]]:
    return list(itertools.islice(sampler, count))


def test_every_epoch_is_another_permutation_without_the_incomplete_batch() -> None:
    keys = list(EpochSampler(10, 4, epochs=3))
    assert [epoch for epoch, _ in keys] == [0] * 8 + [1] * 8 + [2] * 8
    orders = [[index for epoch, index in keys if epoch == number] for number in range(3)]
    assert all(len(set(order)) == 8 and set(order) <= set(range(10)) for order in orders)
    assert orders[0] != orders[1] != orders[2]


def test_the_order_depends_on_the_seed_alone() -> None:
    assert first(EpochSampler(50, 5, seed=1), 100) == first(EpochSampler(50, 5, seed=1), 100)
    assert first(EpochSampler(50, 5, seed=1), 50) != first(EpochSampler(50, 5, seed=2), 50)


@pytest.mark.parametrize("length", [3, 10, 12])
@pytest.mark.parametrize("start", [0, 4, 8, 12, 20])
def test_resuming_gives_exactly_the_rest(length: int, start: int) -> None:
    whole = list(EpochSampler(length, 4, epochs=3))
    rest = EpochSampler(length, 4, epochs=3, start=start)
    assert list(rest) == whole[start:]
    assert len(rest) == len(whole[start:])
    assert first(EpochSampler(length, 4, start=start), 5) == first(EpochSampler(length, 4), start + 5)[start:]


def test_a_dataset_smaller_than_a_batch_repeats_from_new_permutations_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        sampler = EpochSampler(3, 8, epochs=2)
    assert len(caplog.records) == 1 and "repeat" in caplog.text
    keys = list(sampler)
    assert len(keys) == len(sampler) == 16
    assert len(set(keys)) == 16
    assert sorted(keys[:3]) == [(0, 0), (0, 1), (0, 2)]


def test_a_dataset_of_a_batch_or_more_gives_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    EpochSampler(8, 8)
    assert not caplog.records


def test_without_shuffling_samples_come_in_order() -> None:
    assert list(EpochSampler(5, 2, epochs=1, shuffle=False)) == [(0, 0), (0, 1), (0, 2), (0, 3)]


def test_no_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 samples"):
        EpochSampler(0, 4)
