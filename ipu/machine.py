"""The machines: what one IPU can hold and do, and how many of them a Pod has.

Numbers of the GC200 and of the Bow IPU, both second generation: same tiles and memory, different clocks. Sources: the
data sheets of the Bow-2000, Bow Pod16, Pod64 and Pod256 and the memory guide (docs.graphcore.ai); what is derived or
from third parties says so.
"""

from __future__ import annotations

import dataclasses
from typing import Dict

from options import OptionError

MB = 10**6  # all sizes are told in these: an IPU has 940.6 of them, which is 897 MiB


@dataclasses.dataclass(frozen=True)
class Ipu:
    """One IPU.

    Attributes:
        name: as its maker calls it.
        clock: cycles per second.
        tiles: cores, each with memory of its own.
        tile_memory: bytes of a tile. One tile over its limit fails the compilation.
        half_products: multiply-adds of a tile in a cycle, all in half precision (derived from the peak).
        exchange: bytes that a tile receives in a cycle (8 TB/s between all tiles of a GC200, third party).
        neighbour_link: bytes per second from an IPU to the next one of its pipeline (two IPU-Links, third party).
        machine_link: bytes per second of an IPU's share of the 512 Gbit/s that leave its machine of four.
    """

    name: str
    clock: float
    tiles: int = 1472
    tile_memory: int = 624 * 1024
    half_products: int = 64
    exchange: float = 4.0
    neighbour_link: float = 64e9
    machine_link: float = 512e9 / 8 / 4

    @property
    def memory(self) -> int:
        """In-Processor Memory of all tiles in bytes."""
        return self.tiles * self.tile_memory

    @property
    def peak(self) -> float:
        """Operations per second in half precision, two for a multiply-add."""
        return 2 * self.half_products * self.tiles * self.clock


GC200 = Ipu("GC200", clock=1.35e9)
BOW = Ipu("Bow", clock=1.85e9)
IPUS: Dict[str, Ipu] = {"GC200": GC200, "Bow": BOW}
PODS = (4, 16, 64, 128, 256)
IPUS_OF_A_MACHINE = 4
IPUS_OF_A_HOST = 16  # a Pod16 has one host, a Pod64 up to four


@dataclasses.dataclass(frozen=True)
class Machine:
    """A Pod: IPUs of one kind with the hosts that feed them."""

    ipu: Ipu
    ipus: int

    @property
    def name(self) -> str:
        """Such as "Bow Pod16"."""
        return f"{self.ipu.name} Pod{self.ipus}"

    @property
    def hosts(self) -> int:
        """Servers of a Pod that has all it can have."""
        return max(self.ipus // IPUS_OF_A_HOST, 1)

    def check_room(self, ipus_per_replica: int, replication_factor: int) -> None:
        """Raise an OptionError if that many replicas need more IPUs than there are."""
        if ipus_per_replica * replication_factor > self.ipus:
            raise OptionError(
                f"ipus_per_replica={ipus_per_replica} x replication_factor={replication_factor} are "
                f"{ipus_per_replica * replication_factor} IPUs, and a {self.name} has {self.ipus}; take a larger "
                "machine, or lower replication_factor"
            )


def machine_named(kind: str, ipus: int) -> Machine:
    """The smallest Pod of `kind` with at least so many IPUs.

    Raises:
        OptionError: there is no such kind, or no Pod of that size.
    """
    if kind not in IPUS:
        raise OptionError(f"{kind!r} is no IPU that is known here; take one of {', '.join(IPUS)}")
    for size in PODS:
        if ipus <= size:
            return Machine(IPUS[kind], size)
    raise OptionError(
        f"ipus_per_replica x replication_factor = {ipus} IPUs, and the largest Pod has {PODS[-1]}; lower either"
    )
