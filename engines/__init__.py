"""How a training step runs on each kind of machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

from engines.options import IPU_ENGINES, IpuOptions, TrainingOptions

if TYPE_CHECKING:  # options are read without torch
    from torch import nn

    from engines.base import Engine
    from engines.launcher import Launcher


def open_engine(
    model: nn.Module,
    training: TrainingOptions,
    ipu: IpuOptions,
    workers: int,
    launcher: Optional[Launcher] = None,
    loads_codes: bool = False,
) -> Engine:
    """The engine that `training.engine` names, around `model`.

    Args:
        model: its forward returns a tuple of scalars, the loss to minimise first.
        training: the options of the step, resolved by `engines.launcher.resolve`.
        ipu: what only IPUs know.
        workers: processes that load samples.
        launcher: of the processes of this run; None: it is the only one.
        loads_codes: whether pictures come as their codes.

    Raises:
        OptionError: the engine cannot run these options.
    """
    if training.engine in IPU_ENGINES:
        from engines.ipu import IpuEngine
        from engines.launcher import Launcher

        return IpuEngine(model, training, ipu, workers, launcher or Launcher(), loads_codes)
    from engines.host import HostEngine

    return HostEngine(model, training, ipu, workers)
