"""How a batch is cut, and what is refused."""

from __future__ import annotations

import pytest
import torch

from ipu.simulator.batching import Batching, Results
from ipu.simulator.enums import CommGroupType
from ipu.simulator.poptorch_core import Error


def test_the_replica_is_the_fastest_then_accumulation_then_the_device_iteration() -> None:
    batching, rows = Batching(2, 3, 2), torch.arange(2 * 3 * 2 * 4)
    for iteration, step, replica in ((0, 0, 0), (0, 0, 1), (0, 2, 1), (1, 0, 0), (1, 2, 1)):
        first = ((iteration * 3 + step) * 2 + replica) * 4
        assert batching.micro_batch(rows, iteration, step, replica).tolist() == list(range(first, first + 4))


@pytest.mark.parametrize(
    ("group_type", "groups"), [(CommGroupType.Consecutive, [0, 0, 1, 1]), (CommGroupType.Orthogonal, [0, 1, 0, 1])]
)
def test_replicas_of_a_group_get_the_same_rows(group_type: CommGroupType, groups: list) -> None:  # type: ignore[type-arg]
    batching = Batching(1, 1, 4, group_size=2, group_type=group_type)
    assert [int(batching.micro_batch(torch.arange(2), 0, 0, replica)) for replica in range(4)] == groups


def test_a_batch_that_is_no_multiple_is_refused_with_all_its_factors() -> None:
    with pytest.raises(AssertionError, match="Invalid batch dimension") as caught:
        Batching(5, 3, 4, group_size=2).check([torch.zeros(31, 2)])
    for part in (
        "(31, 2)",
        "30",
        "deviceIterations (5)",
        "replicationFactor (4)",
        "size (2)",
        "gradientAccumulation (3)",
    ):
        assert part in str(caught.value)


def test_a_number_counts_as_one_row() -> None:
    Batching(1, 1, 1).check([torch.tensor(3.0)])
    assert Batching(1, 1, 1).first(torch.tensor(3.0)).shape == ()
    with pytest.raises(AssertionError, match="Invalid batch dimension"):
        Batching(2, 1, 1).check([torch.tensor(3.0)])


def test_a_tensor_without_elements_is_refused() -> None:
    with pytest.raises(Error, match=r"Zero-sized tensors are unsupported \(Got shape \[0, 2\]\)"):
        Batching(1, 1, 1).check([torch.zeros(0, 2)])


def test_results_do_not_share_memory_with_what_they_were_made_of() -> None:
    results, tensor = Results(Batching(1, 1, 1)), torch.ones(2)
    results.add(tensor, 0, 0, 0)
    tensor.zero_()
    assert results.value(torch.float32).tolist() == [1, 1]
