"""The ring of buffers that a dataset is loaded ahead into, and the few bytes that both sides say about it.

The reader copies every element into the next free slot and says so through a pipe; whoever consumes takes the tensors
from where they lie, and gives the slot back in the same way. Nothing is pickled on the way and nobody polls: both sides
sleep until the other one speaks or dies.

An *epoch* is one pass over the dataset, from an iterator's start to its end. A *session* is a row of epochs: when the
consumer breaks one off, a new session begins, and what was loaded for the old one is passed over.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import math
import struct
from typing import Any, List, NamedTuple, Optional

import torch
from torch import Tensor

MESSAGE = struct.Struct("<bqq")
"""An event, its session and the rows of its element; or a command, its session and nothing."""
_ALIGNMENT = 64  # bytes: a cache line


class Event(enum.IntEnum):
    """What the reader says: the next slot is full, the epoch is over, or (a text follows) it cannot go on."""

    READY = 0
    END = 1
    FAILED = 2


class Command(enum.IntEnum):
    """What the consumer says: a slot is free again, begin another epoch, begin a new session, end."""

    RELEASE = 0
    BEGIN = 1
    RESTART = 2
    STOP = 3


@dataclasses.dataclass(frozen=True)
class Loading:
    """How a dataset is loaded ahead.

    Args:
        buffer_size: slots in the ring.
        load_indefinitely: begin the next epoch without being asked.
        early_preload: begin the first one without being asked.
        rebatched_size: rows of the batches to put together from the dataset's; `None` leaves them as they are.
        drop_last: leave out the rows at the end of an epoch that do not fill a batch.
    """

    buffer_size: int
    load_indefinitely: bool
    early_preload: bool
    rebatched_size: Optional[int]
    drop_last: bool


class Layout(NamedTuple):
    """What one element looks like: its structure around empty tensors, and each tensor's shape and type."""

    structure: Any
    shapes: List[torch.Size]
    dtypes: List[torch.dtype]
    rows: int
    """Of the dataset's first batch."""

    def allocate(self, buffer_size: int) -> Tensor:
        """Memory that two processes share: the bytes of all slots, one slot after the other."""
        return torch.empty(max(1, self._offsets()[-1] * buffer_size), dtype=torch.uint8).share_memory_()

    def slots(self, memory: Tensor, buffer_size: int) -> List[List[Tensor]]:
        """The tensors of every slot, as views of the memory."""
        *offsets, size = self._offsets()
        return [
            [self._view(memory, slot * size + offset, one) for one, offset in enumerate(offsets)]
            for slot in range(buffer_size)
        ]

    def _offsets(self) -> List[int]:
        """Where each tensor begins in a slot, in bytes; the last one is the slot's size."""
        sizes = [math.prod(shape) * _bytes_of(dtype) for shape, dtype in zip(self.shapes, self.dtypes)]
        return list(itertools.accumulate([0] + [math.ceil(size / _ALIGNMENT) * _ALIGNMENT for size in sizes]))

    def _view(self, memory: Tensor, offset: int, one: int) -> Tensor:
        shape, dtype = self.shapes[one], self.dtypes[one]
        return memory.narrow(0, offset, math.prod(shape) * _bytes_of(dtype)).view(dtype).view(shape)


def _bytes_of(dtype: torch.dtype) -> int:
    return torch.empty(0, dtype=dtype).element_size()
