"""With different data in every sample: which sample goes where, and what comes back in which order.

The contract in a formula: row j of device iteration d, accumulation step a and input group r is sample
((d * G + a) * (R / g) + r) * b + j.
"""

from __future__ import annotations

import itertools
from typing import Any, List, Optional, Tuple

import pytest
import torch
from torch import Tensor, nn

from ipu.simulator import OutputMode, inferenceModel, trainingModel
from ipu.simulator.enums import CommGroupType
from ipu.simulator.options import Options

ROWS = 2
MODES: List[Tuple[Optional[OutputMode], int]] = [
    (None, 1),
    (OutputMode.All, 1),
    (OutputMode.Final, 1),
    (OutputMode.Sum, 1),
    (OutputMode.EveryN, 1),
    (OutputMode.EveryN, 2),
]
GROUPS = [(1, CommGroupType.NoGrouping), (2, CommGroupType.Consecutive), (2, CommGroupType.Orthogonal)]
RETURNED = [(iterations, *mode) for iterations in (1, 2, 4) for mode in MODES if iterations % mode[1] == 0]
REPLICAS = [(replicas, *group) for replicas in (1, 2, 4) for group in GROUPS if group[0] <= replicas]


class Echo(nn.Module):
    """Returns its rows, their sum, and both scaled by a replica-independent weight as the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Any:
        total = x.sum()
        return x, total, nn.functional.l1_loss(total * self.weight, torch.zeros_like(total))


def micro_batches(iterations: int, steps: int, replicas: int, size: int, kind: CommGroupType) -> Any:
    """(d, a, replica) -> its samples."""
    groups = replicas // size

    def samples(d: int, a: int, replica: int) -> List[float]:
        group = replica % groups if kind == CommGroupType.Orthogonal else replica // size
        first = ((d * steps + a) * groups + group) * ROWS
        return [float(first + j) for j in range(ROWS)]

    return samples


def expected(
    samples: Any, iterations: int, steps: int, replicas: int, mode: OutputMode, period: int
) -> List[List[float]]:
    """The rows of every micro batch that comes back, in order."""
    every = list(itertools.product(range(iterations), range(steps), range(replicas)))
    if mode == OutputMode.Sum:
        return [
            [sum(samples(d, a, replica)[j] for d in range(iterations) for a in range(steps)) for j in range(ROWS)]
            for replica in range(replicas)
        ]
    if mode == OutputMode.Final:
        every = [(d, a, r) for d, a, r in every if d == iterations - 1 and a == steps - 1]
    if mode == OutputMode.EveryN:
        every = [(d, a, r) for d, a, r in every if d % period == period - 1]
    return [samples(*one) for one in every]


def options_of(iterations: int, replicas: int, size: int, kind: CommGroupType, mode: Any, period: int) -> Options:
    options = Options().deviceIterations(iterations).replicationFactor(replicas)
    if size > 1:
        options.inputReplicaGrouping(size, kind)
    if mode is not None:
        options.outputMode(mode, period if mode == OutputMode.EveryN else None)
    return options


def check(found: Any, wanted: List[List[float]]) -> None:
    rows, total = found[:2]
    assert rows.tolist() == [value for micro_batch in wanted for value in micro_batch]
    totals = [sum(micro_batch) for micro_batch in wanted]
    assert total.tolist() == (totals if len(totals) > 1 else totals[0])


@pytest.mark.parametrize(("replicas", "size", "kind"), REPLICAS)
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize(("iterations", "mode", "period"), RETURNED)
def test_training_returns_the_samples_in_the_contracts_order(
    iterations: int, steps: int, replicas: int, size: int, kind: CommGroupType, mode: Any, period: int
) -> None:
    options = options_of(iterations, replicas, size, kind, mode, period)
    options.Training.gradientAccumulation(steps)
    samples = micro_batches(iterations, steps, replicas, size, kind)
    count = iterations * steps * (replicas // size) * ROWS
    found = trainingModel(Echo(), options)(torch.arange(float(count)))
    mode = OutputMode.Final if mode is None else mode
    check(found, expected(samples, iterations, steps, replicas, mode, period))


@pytest.mark.parametrize(("replicas", "size", "kind"), REPLICAS)
@pytest.mark.parametrize(("iterations", "mode", "period"), RETURNED)
def test_inference_returns_the_samples_in_the_contracts_order(
    iterations: int, replicas: int, size: int, kind: CommGroupType, mode: Any, period: int
) -> None:
    options = options_of(iterations, replicas, size, kind, mode, period)
    samples = micro_batches(iterations, 1, replicas, size, kind)
    found = inferenceModel(Echo(), options)(torch.arange(float(iterations * (replicas // size) * ROWS)))
    mode = OutputMode.All if mode is None else mode
    check(found, expected(samples, iterations, 1, replicas, mode, period))


def test_several_inputs_and_nested_outputs_keep_their_pairs() -> None:
    class Pair(nn.Module):
        def forward(self, first: Tensor, others: Any) -> Any:
            second, third = others
            return {"b": (first + second, [third]), "a": first - second}

    options = Options().deviceIterations(3).replicationFactor(2)
    x, y, z = torch.arange(12.0), torch.arange(12.0) * 100, torch.arange(6)
    found = inferenceModel(Pair(), options)(x, (y, z))
    assert list(found) == ["b", "a"]
    assert torch.equal(found["b"][0], x + y) and torch.equal(found["a"], x - y)
    assert isinstance(found["b"][1], list) and torch.equal(found["b"][1][0], z.int())


def test_each_device_iteration_sees_the_weights_of_the_one_before() -> None:
    """Four updates in one call, over the samples in their order: what plain PyTorch gets step by step."""
    torch.manual_seed(0)
    model = Regression()
    reference = Regression()
    reference.load_state_dict(model.state_dict())
    x, y = torch.randn(4 * 3 * 2 * ROWS, 3), torch.randn(4 * 3 * 2 * ROWS, 1)
    options = Options().deviceIterations(4).replicationFactor(2).outputMode(OutputMode.All)
    options.Training.gradientAccumulation(3)
    losses = trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.1))(x, y)
    plain, optimizer = [], torch.optim.SGD(reference.parameters(), lr=0.1)
    for xs, ys in zip(x.chunk(4), y.chunk(4)):
        optimizer.zero_grad()
        for x_, y_ in zip(xs.split(ROWS), ys.split(ROWS)):
            loss = reference(x_, y_)
            (loss / 6).backward()
            plain.append(loss.item())
        optimizer.step()
    assert losses.tolist() == pytest.approx(plain, abs=1e-6)
    for one, other in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.mse_loss(self.lin(x), y)
