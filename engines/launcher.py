"""The processes of a run: one alone, or those that PopRun started."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any, Optional

from torch import Tensor

from engines.options import IPU_ENGINES, TrainingOptions
from ipu import answers, open_poptorch
from options import OptionError


@dataclasses.dataclass(frozen=True)
class Launcher:
    """Which process this is.

    Args:
        instance, instances: its number, of how many.
        replicas: of the model in all processes together; None: as the options say.
    """

    instance: int = 0
    instances: int = 1
    replicas: Optional[int] = None

    @property
    def is_main(self) -> bool:
        """Whether this process logs and saves."""
        return self.instance == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean of each value over all processes."""
        if self.instances == 1:
            return values
        return _horovod().allreduce(values)


def find_launcher(ipus_per_replica: int) -> Launcher:
    """The launcher of this process; joins PopRun's group under it.

    Raises:
        OptionError: PopRun was told another number of IPUs for each replica.
    """
    if importlib.util.find_spec("popdist") is None:
        return Launcher()
    import popdist

    if not popdist.isPopdistEnvSet():
        return Launcher()
    popdist.init()
    if popdist.getNumIpusPerReplica() != ipus_per_replica:
        raise OptionError(
            f"ipus_per_replica={ipus_per_replica}, and poprun was started with --ipus-per-replica "
            f"{popdist.getNumIpusPerReplica()}; let the two agree"
        )
    if popdist.getNumInstances() > 1:
        _horovod().init()
    return Launcher(popdist.getInstanceIndex(), popdist.getNumInstances(), popdist.getNumTotalReplicas())


def resolve(training: TrainingOptions, launcher: Launcher) -> TrainingOptions:
    """The options with `engine=auto` decided, and the replicas that the launcher has in place of `replication_factor`.

    Raises:
        OptionError: the engine's PopTorch is not there, or replicas cannot be shared out among the processes.
    """
    engine = ("ipu" if answers() else "host") if training.engine == "auto" else training.engine
    if engine in IPU_ENGINES:
        open_poptorch(engine)  # before anything else is looked for
    replicas = training.replication_factor if launcher.replicas is None else launcher.replicas
    if replicas % launcher.instances:
        raise OptionError(
            f"{replicas} replicas cannot be shared out evenly among {launcher.instances} processes; start poprun with "
            "a number of instances that divides its replicas"
        )
    return dataclasses.replace(training, engine=engine, replication_factor=replicas)


def _horovod() -> Any:
    try:
        import horovod.torch
    except ImportError:
        raise OptionError(
            "several processes need horovod, which the SDK brings as a wheel; install it beside poptorch's"
        ) from None
    return horovod.torch
