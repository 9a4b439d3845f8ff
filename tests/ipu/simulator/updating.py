"""What the tests of updates share: a few weights, gradients for them, and one call that makes an update of these."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence

import torch
from torch import Tensor, nn

from ipu.simulator.enums import MeanReductionStrategy, ReductionType
from ipu.simulator.half import Rounding, round_half
from ipu.simulator.updates import Updater, read_attributes

SHAPES = {"lin.weight": (3, 5), "lin.bias": (3,), "scale": ()}
Gradients = Dict[str, Tensor]


def make_parameters(seed: int = 0) -> Dict[str, nn.Parameter]:
    """A matrix, a vector and a number."""
    generator = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}


def make_gradients(count: int, seed: int = 1, size: float = 1.0) -> List[Gradients]:
    """For `count` micro batches."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {name: torch.randn(shape, generator=generator) * size for name, shape in SHAPES.items()} for _ in range(count)
    ]


def copies(tensors: Dict[str, Any]) -> Dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def make_updater(
    optimizer: torch.optim.Optimizer,
    parameters: Dict[str, nn.Parameter],
    dtype: torch.dtype = torch.float32,
    gradient_accumulation: int = 1,
    replication_factor: int = 1,
    reduction: ReductionType = ReductionType.Mean,
    strategy: Optional[MeanReductionStrategy] = None,
    rounding: Rounding = round_half,
    automatic_loss_scaling: bool = False,
) -> Updater:
    """An updater of all parameters, with the strategy that the optimizer asks for unless another is given."""
    attributes = read_attributes(optimizer, automatic_loss_scaling)
    if strategy is None:
        running = attributes.needs_running_mean
        strategy = MeanReductionStrategy.Running if running else MeanReductionStrategy.Post
    return Updater(
        attributes,
        parameters,
        dict.fromkeys(parameters, dtype),
        gradient_accumulation,
        replication_factor,
        reduction,
        strategy,
        rounding,
        automatic_loss_scaling,
    )


def update(updater: Updater, weights: Dict[str, Tensor], micro_batches: Sequence[Gradients], replicas: int = 1) -> None:
    """One update; the micro batches are those of the first replica, then the second's. Applies the loss scale."""
    each = len(micro_batches) // replicas
    for replica in range(replicas):
        updater.begin_replica()
        for gradients in micro_batches[replica * each : (replica + 1) * each]:
            updater.accumulate({name: gradient * updater.seed for name, gradient in gradients.items()})
        updater.end_replica()
    updater.apply(weights)


def assert_equal(found: Dict[str, Tensor], expected: Dict[str, Any], tolerance: float = 1e-6) -> None:
    assert set(found) == set(expected)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name].detach(), rtol=tolerance, atol=tolerance, msg=name)
