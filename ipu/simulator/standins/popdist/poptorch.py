"""Stand-in for PopDist's part for PopTorch: `Options` as PopRun's command line has them."""

from __future__ import annotations

from typing import Any, NoReturn, Optional

from ipu.simulator import options
from ipu.simulator.standins import instances, popdist


def _refuse(name: str) -> NoReturn:
    raise RuntimeError(f"Cannot call {name}: PopRun's command line decides this")


class _DistributedOptions(options._DistributedOptions):
    """The instance and their number, as PopRun set them."""

    def disable(self) -> NoReturn:
        """Not for the program to decide."""
        _refuse("Distributed.disable")

    def setEnvVarNames(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not for the program to decide."""
        _refuse("Distributed.setEnvVarNames")

    def configureProcessId(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not for the program to decide."""
        _refuse("Distributed.configureProcessId")


class Options(options.Options):
    """PopTorch's Options with this instance's replicas, and its place among the instances.

    Args:
        ipus_per_replica: what the program needs; `None` takes what PopRun was told.

    Raises:
        RuntimeError: PopRun was told of another number of IPUs per replica.
    """

    def __init__(self, ipus_per_replica: Optional[int] = None) -> None:
        if ipus_per_replica is not None and instances.is_set():
            popdist.checkNumIpusPerReplica(ipus_per_replica)
        super().__init__()
        super().replicationFactor(instances.local_replicas())
        super().useIpuId(popdist.getDeviceId())
        self.Distributed.configureProcessId(instances.index(), instances.number())
        self.Distributed.__class__ = _DistributedOptions

    def useIpuId(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not for the program to decide."""
        _refuse("useIpuId")

    def replicationFactor(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not for the program to decide."""
        _refuse("replicationFactor")
