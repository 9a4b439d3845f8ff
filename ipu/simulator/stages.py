"""Which stage and IPU an operation runs on, and whether what it needs can get there.

Every IPU has its own memory: a tensor lies where its block ran, a use on another IPU is a transfer, and a pipeline
passes tensors forward only.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Callable, List, Optional, Tuple

from ipu.simulator.poptorch_core import python_error

Placer = Callable[[str, Optional[int]], Tuple[int, int]]
_log = logging.getLogger("poptorch::python")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an operation runs."""

    stage: int
    ipu: int


@dataclasses.dataclass(frozen=True)
class Transfer:
    """A tensor that travels between the memories of two IPUs."""

    value: int
    source: int
    target: int
    size: int
    """In bytes, of one micro batch."""


class Stages:
    """Follows the blocks of a model while it is traced.

    Args:
        placer: from a block's two ids to stage number and IPU.
        pipelined: whether stages work at the same time, on different micro batches.
        phased: whether the placer's first numbers are phases, not stages.
    """

    def __init__(self, placer: Placer, pipelined: bool, phased: bool = False) -> None:
        self.pipelined, self.phased = pipelined, phased
        self._placer = placer
        self._here: Optional[Place] = Place(0, 0)
        self._begun: List[Tuple[str, Place]] = []

    def begin(self, user_id: str, ipu_id: Optional[int]) -> None:
        """A block begins."""
        self._here = Place(*self._placer(user_id, ipu_id))
        self._begun.append((user_id, self._here))

    def report(self) -> None:
        """Say at DEBUG which blocks began, where."""
        for user_id, place in self._begun:
            stage, phase = (-1, place.stage) if self.phased else (place.stage, -1)
            _log.debug("Starting block id=%s stage=%d phase=%d ipu=%d", user_id, stage, phase, place.ipu)

    def end(self) -> None:
        """A block ends, and none is active afterwards."""
        self._here = None

    def here(self) -> Place:
        """Where an operation runs now.

        Raises:
            Error: outside of every block, after one has ended.
        """
        if self._here is None:
            raise python_error("No active Block, all the ops must belong to a Block; put this one into a block, too")
        return self._here

    @property
    def forward_stages(self) -> int:
        """F: how often the IPU changes from block to block, and one."""
        last, switches = 0, 0
        for _, place in self._begun:
            switches += place.ipu != last
            last = place.ipu
        return switches + 1

    @property
    def training_stages(self) -> int:
        """T: the last stage's forward and backward pass are one."""
        return 2 * self.forward_stages - 1

    @property
    def ipus(self) -> int:
        """IPUs of one replica; lower ones that no block uses are reserved, too."""
        used = {place.ipu for _, place in self._begun}
        return max(len(used), max(used) + 1) if used else 1

    def check_depth(self, gradient_accumulation: int, device_iterations: int, training: bool) -> None:
        """Refuse a pipeline that is never full.

        Raises:
            Error: fewer micro batches than stages.
        """
        needed = self.training_stages if training else self.forward_stages
        if training and self.pipelined and gradient_accumulation < needed:
            raise python_error(
                f"poptorch.Options().Training.gradientAccumulation is {gradient_accumulation} and must be at least "
                f"{needed}, the stages of the pipeline: {self.forward_stages} forward and "
                f"{needed - self.forward_stages} additional ones for the backward pass"
            )
        if not training and self.pipelined and device_iterations < needed:
            raise python_error(
                "poptorch.Options().deviceIterations must be greater than or equal to the number of pipeline stages, "
                f"{needed}; it is {device_iterations}"
            )


def check_flow(name: str, source: Place, target: Place) -> None:
    """Refuse a tensor that would have to go back in a pipeline.

    Raises:
        Error: the use lies in an earlier stage than the tensor.
    """
    if target.stage < source.stage:
        raise python_error(
            f"{name} is made in pipeline stage {source.stage} (IPU {source.ipu}) and used in stage {target.stage} (IPU "
            f"{target.ipu}); a pipeline passes tensors forward only: move the block of one of them"
        )
