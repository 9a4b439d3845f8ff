"""Which of the instances that PopRun started this one is, read from the environment that PopRun sets for each."""

from __future__ import annotations

import os
from typing import Optional

TOTAL_REPLICAS = "POPDIST_NUM_TOTAL_REPLICAS"
LOCAL_REPLICAS = "POPDIST_NUM_LOCAL_REPLICAS"
IPUS_PER_REPLICA = "POPDIST_NUM_IPUS_PER_REPLICA"
REPLICA_OFFSET = "POPDIST_REPLICA_INDEX_OFFSET"
LOCAL_INSTANCE = "POPDIST_LOCAL_INSTANCE_INDEX"
INSTANCES = "OMPI_COMM_WORLD_SIZE"
INSTANCE = "OMPI_COMM_WORLD_RANK"
INSTANCES_ON_HOST = "OMPI_COMM_WORLD_LOCAL_SIZE"
_DEFAULT_PORT = 29511


def is_set() -> bool:
    """Whether PopRun started this process."""
    return TOTAL_REPLICAS in os.environ


def total_replicas() -> int:
    """Replicas of all instances together."""
    return _number(TOTAL_REPLICAS) or 1


def number() -> int:
    """How many instances there are."""
    given, local = _number(INSTANCES), _number(LOCAL_REPLICAS)
    if given is not None:
        return given
    return total_replicas() // local if local else 1


def local_replicas() -> int:
    """Replicas of this instance."""
    return _number(LOCAL_REPLICAS) or max(1, total_replicas() // number())


def index() -> int:
    """Which instance this is, counted from 0."""
    given = _number(INSTANCE)
    return (_number(REPLICA_OFFSET) or 0) // local_replicas() if given is None else given


def local_index() -> int:
    """Which one it is of those on its host, counted from 0."""
    return _number(LOCAL_INSTANCE) or 0


def ipus_per_replica() -> int:
    """IPUs that one replica runs on."""
    return _number(IPUS_PER_REPLICA) or 1


def replica_offset() -> int:
    """The number of this instance's first replica among all."""
    given = _number(REPLICA_OFFSET)
    return index() * local_replicas() if given is None else given


def _number(variable: str) -> Optional[int]:
    value = os.environ.get(variable)
    if value is None:
        return None
    if not value.isdigit():
        raise RuntimeError(f"{variable}={value} must be a whole number; poprun sets it, so leave it alone")
    return int(value)


def join() -> None:
    """Let the instances reach each other, through torch.distributed; waits until all have come.

    Raises:
        RuntimeError: they are on several hosts, and none of them is named.
    """
    import torch.distributed as distributed

    if number() == 1 or distributed.is_initialized():
        return
    on_host = _number(INSTANCES_ON_HOST)
    address = os.environ.get("MASTER_ADDR")
    if address is None and on_host not in (None, number()):
        raise RuntimeError(
            f"{number()} instances, {on_host} of them on this host: set MASTER_ADDR to the address of the host of the "
            "first instance, and MASTER_PORT to a free port there"
        )
    port = os.environ.get("MASTER_PORT", _DEFAULT_PORT)
    distributed.init_process_group(
        "gloo", init_method=f"tcp://{address or '127.0.0.1'}:{port}", rank=index(), world_size=number()
    )
