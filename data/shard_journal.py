"""A shard in the making: its batches in the order they were encoded, in a file that any interruption leaves usable.

Each entry begins with its length and its checksum. What a killed process, or a machine that lost its power, left of the
last one is cut off when the file is opened again, and encoding goes on behind the entries that are whole.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, Iterator, List, NamedTuple, Tuple

import torch
from safetensors.torch import load, save
from torch import Tensor

from data.encoded_format import EncodedRows, join_rows

_HEADER = struct.Struct("<QI")  # bytes of an entry, and their checksum


class Entry(NamedTuple):
    """A batch."""

    rows: EncodedRows
    seen: int
    """samples of this part of the dataset that are done with it, unusable ones included"""
    ended: bool
    """whether these are all"""


class ShardJournal:
    """The batches of one shard.

    Args:
        path: of the file; created when it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: List[Entry] = []
        self._file = open(path, "a+b")  # noqa: SIM115  # open as long as the shard is in the making
        self._file.seek(0)
        whole = 0
        for entry, end in _read_entries(self._file):
            self.entries.append(entry)
            whole = end
        self._file.truncate(whole)

    @property
    def seen(self) -> int:
        """Samples that are done, unusable ones included."""
        return self.entries[-1].seen if self.entries else 0

    @property
    def ended(self) -> bool:
        """Whether all are."""
        return bool(self.entries) and self.entries[-1].ended

    def append(self, entry: Entry) -> None:
        """Add a batch."""
        state = torch.tensor([entry.seen, entry.ended])
        content = save({**entry.rows._asdict(), "state": state})
        self._file.write(_HEADER.pack(len(content), zlib.crc32(content)) + content)
        self._file.flush()  # from here on it outlives this process
        self.entries.append(entry)

    def rows(self) -> EncodedRows:
        """All pictures, in order."""
        return join_rows([entry.rows for entry in self.entries])

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def remove(self) -> None:
        """Remove the file, once the shard is there."""
        self.close()
        os.unlink(self.path)


def _read_entries(file: BinaryIO) -> Iterator[Tuple[Entry, int]]:
    """The whole entries of a file, each with where it ends."""
    while True:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            return
        length, checksum = _HEADER.unpack(header)
        content = file.read(length)
        if not length or len(content) < length or zlib.crc32(content) != checksum:
            return
        tensors = load(content)
        state: Tensor = tensors.pop("state")
        yield Entry(EncodedRows(**tensors), int(state[0]), bool(state[1])), file.tell()
