"""How a batch is cut into micro batches, and what comes back of their results.

Letters as in PopTorch's documents: D device iterations, G gradient accumulation, R replicas, g replicas of an input
group. A full input lies as [D][G][R / g][rows of a micro batch]: the replica is the fastest.
"""

from __future__ import annotations

import dataclasses
from typing import List, Optional, Sequence

import torch
from torch import Tensor

from ipu.simulator.enums import CommGroupType, OutputMode
from ipu.simulator.poptorch_core import python_error


@dataclasses.dataclass(frozen=True)
class Batching:
    """The factors of a batch.

    Args:
        device_iterations, gradient_accumulation, replicas: D, G, R.
        group_size: g, replicas that get the same input.
        group_type: which replicas form a group.
        mode: which micro batches' results come back.
        period: of `OutputMode.EveryN`.
    """

    device_iterations: int
    gradient_accumulation: int
    replicas: int
    group_size: int = 1
    group_type: CommGroupType = CommGroupType.Consecutive
    mode: OutputMode = OutputMode.All
    period: int = 1

    @property
    def groups(self) -> int:
        """Groups of replicas: R / g."""
        return self.replicas // self.group_size

    @property
    def parts(self) -> int:
        """Micro batches that a full input is cut into."""
        return self.device_iterations * self.gradient_accumulation * self.groups

    def check(self, tensors: Sequence[Tensor]) -> None:
        """Refuse inputs that cannot be cut.

        Raises:
            Error: a tensor without elements.
            AssertionError: a batch that is no multiple of the parts.
        """
        for tensor in tensors:
            if tensor.numel() == 0:
                raise python_error(f"Zero-sized tensors are unsupported (Got shape {list(tensor.shape)})")
            rows = tensor.shape[0] if tensor.dim() else 1
            assert rows % self.parts == 0, (
                f"Invalid batch dimension: a tensor of shape {tuple(tensor.shape)} has {rows} rows, not a multiple of "
                f"{self.parts}: deviceIterations ({self.device_iterations}) x replicationFactor ({self.replicas}) / "
                f"input group size ({self.group_size}) x gradientAccumulation ({self.gradient_accumulation})"
            )

    def micro_batch(self, tensor: Tensor, iteration: int, step: int, replica: int) -> Tensor:
        """The rows that a replica gets in one accumulation step of one device iteration; a view."""
        if not tensor.dim():
            return tensor
        crosswise = self.group_type == CommGroupType.Orthogonal
        group = replica % self.groups if crosswise else replica // self.group_size
        rows = tensor.shape[0] // self.parts
        part = (iteration * self.gradient_accumulation + step) * self.groups + group
        return tensor.narrow(0, part * rows, rows)

    def first(self, tensor: Tensor) -> Tensor:
        """The micro batch that a model is traced with."""
        return self.micro_batch(tensor, 0, 0, 0)


class Results:
    """Collects one output of all micro batches.

    Args:
        batching: says which come back.
    """

    def __init__(self, batching: Batching) -> None:
        self.batching = batching
        self._copies: List[Optional[Tensor]] = [None] * self._count()

    def add(self, result: Tensor, iteration: int, step: int, replica: int) -> None:
        """Take the result of one micro batch."""
        slot = self._slot(iteration, step, replica)
        if slot is None:
            return
        before = self._copies[slot] if self.batching.mode == OutputMode.Sum else None
        self._copies[slot] = result.clone() if before is None else before + result

    def value(self, dtype: torch.dtype) -> Tensor:
        """What comes back, in the type of the host."""
        copies = [copy for copy in self._copies if copy is not None]
        if copies[0].dim() == 0:
            whole = copies[0] if len(copies) == 1 else torch.stack(copies)
        else:
            whole = copies[0] if len(copies) == 1 else torch.cat(copies)
        return whole.to(torch.int32 if dtype == torch.int64 else dtype)

    def _count(self) -> int:
        batching = self.batching
        calls = batching.device_iterations * batching.gradient_accumulation
        per_replica = {
            OutputMode.All: calls,
            OutputMode.EveryN: calls // batching.period,
            OutputMode.Final: 1,
            OutputMode.Sum: 1,
        }[batching.mode]
        return per_replica * batching.replicas

    def _slot(self, iteration: int, step: int, replica: int) -> Optional[int]:
        batching = self.batching
        last = batching.device_iterations - 1, batching.gradient_accumulation - 1
        if batching.mode == OutputMode.Sum:
            return replica
        if batching.mode == OutputMode.Final:
            return replica if (iteration, step) == last else None
        if batching.mode == OutputMode.EveryN:
            if (iteration + 1) % batching.period:
                return None
            iteration = (iteration + 1) // batching.period - 1
        return (iteration * batching.gradient_accumulation + step) * batching.replicas + replica
