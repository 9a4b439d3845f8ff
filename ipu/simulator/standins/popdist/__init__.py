"""Stand-in for PopDist: what an instance that PopRun started asks about itself and the others."""

from __future__ import annotations

from typing import Any, Callable, Iterable

from ipu.simulator.standins import instances


def isPopdistEnvSet() -> bool:
    """Whether PopRun started this process."""
    return instances.is_set()


def init() -> None:
    """Join the other instances."""
    instances.join()


def getNumTotalReplicas() -> int:
    """Replicas of all instances together."""
    return instances.total_replicas()


def getNumLocalReplicas() -> int:
    """Replicas of this instance."""
    return instances.local_replicas()


def getNumInstances() -> int:
    """How many instances there are."""
    return instances.number()


def getInstanceIndex() -> int:
    """Which instance this is, counted from 0."""
    return instances.index()


def getLocalInstanceIndex() -> int:
    """Which one it is of those on its host, counted from 0."""
    return instances.local_index()


def getReplicaIndexOffset() -> int:
    """The number of this instance's first replica among all."""
    return instances.replica_offset()


def getNumIpusPerReplica() -> int:
    """IPUs that one replica runs on."""
    return instances.ipus_per_replica()


def checkNumIpusPerReplica(ipus_per_replica: int) -> None:
    """Make sure that PopRun was told of as many IPUs per replica as the program needs.

    Raises:
        RuntimeError: it was not.
    """
    told = instances.ipus_per_replica()
    if told != ipus_per_replica:
        raise RuntimeError(
            f"the program needs {ipus_per_replica} IPUs per replica, PopRun was told {told}: start it with "
            f"--ipus-per-replica {ipus_per_replica}"
        )


def getDeviceId(ipus_per_replica: int = 1) -> int:
    """The device that this instance runs on. The simulator has one for every instance of a host."""
    return instances.local_index()


def execute_on_instances(on: Iterable[int], function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function on the instances with these numbers only; `None` on the others."""
    return function(*args, **kwargs) if instances.index() in set(on) else None


def __getattr__(name: str) -> Any:
    raise AttributeError(f"the simulator's stand-in for popdist has no {name}")
