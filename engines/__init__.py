"""How a training step runs on each kind of machine."""

from __future__ import annotations

from torch import nn

from engines.base import Engine
from engines.options import IpuOptions, TrainingOptions


def open_engine(model: nn.Module, training: TrainingOptions, ipu: IpuOptions, workers: int) -> Engine:
    """The engine that `training.engine` names, around `model`.

    Args:
        model: its forward returns a tuple of scalars, the loss to minimise first.
        training, ipu: the options of the step.
        workers: processes that load samples.

    Raises:
        OptionError: the engine cannot run these options.
    """
    from engines.host import HostEngine

    return HostEngine(model, training, ipu, workers)
