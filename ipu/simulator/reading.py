"""The reader's side of loading ahead: a process of its own that fills the ring (see `ring`)."""

from __future__ import annotations

import itertools
import multiprocessing
import multiprocessing.connection
import os
import pickle
import random
import signal
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from ipu.simulator._logging import logger
from ipu.simulator.arguments import (
    ICustomArgParser,
    constants,
    flatten_output,
    rebuild_output,
    registerCustomArgParser,
)
from ipu.simulator.poptorch_core import python_error
from ipu.simulator.ring import MESSAGE, Command, Event, Layout, Loading


class Parts(NamedTuple):
    """What the reader is given."""

    source: Any
    """The dataset, or the file that holds it."""
    how: Loading
    seed: Optional[int]
    """A new process draws from generators of its own: they start from here, so that the consumer's seed decides."""
    parsers: Dict[type, ICustomArgParser]
    others_ends: Sequence[Connection]
    """The consumer's ends of the pipes: a fork has them too, and no pipe breaks while anybody holds its end."""


class _Stopped(Exception):
    """The consumer said so, or is gone."""


class _Abandoned(Exception):
    """The consumer has broken off the session."""


def read(parts: Parts, events: Connection, commands: Connection) -> None:
    """Load elements until the consumer ends it: what the process runs.

    Args:
        parts: the dataset and how it is loaded.
        events, commands: to the consumer, from the consumer.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt at the terminal reaches everybody; the consumer decides
    signal.signal(signal.SIGTERM, _leave)
    multiprocessing.current_process().daemon = (
        False  # daemons may have no processes, and a DataLoader's workers are some
    )
    for end in parts.others_ends:
        end.close()
    torch.set_num_threads(1)  # as in a DataLoader's worker: the program needs the cores, and forks cannot use the pool
    if parts.seed is not None:
        torch.manual_seed(parts.seed)
        random.seed(parts.seed)
    for known, parser in parts.parsers.items():
        registerCustomArgParser(known, parser)
    reader = _Reader(parts.how, events, commands)
    try:
        reader.run(parts.source)
    except (_Stopped, BrokenPipeError):
        logger.debug("AsynchronousDataAccessor: process %d ends", os.getpid())
    except Exception:
        reader.fail(traceback.format_exc())


def _leave(number: int, frame: Optional[FrameType]) -> None:
    raise SystemExit(0)


class _Reader:
    """Fills the ring."""

    def __init__(self, how: Loading, events: Connection, commands: Connection) -> None:
        self._how, self._events, self._commands = how, events, commands
        parent = multiprocessing.parent_process()
        self._watched: List[Any] = [commands] if parent is None else [commands, parent.sentinel]
        self._announced = False
        self._session, self._asked, self._begun = 0, 0, 0
        self._free = how.buffer_size
        self._next_slot, self._filled = 0, 0
        self._delivered = how.early_preload

    def run(self, source: Any) -> None:
        """Load epoch after epoch.

        Args:
            source: the dataset, or the file that holds it.
        """
        dataset = source
        if isinstance(source, Path):
            with source.open("rb") as file:
                dataset = pickle.load(file)
        elements: Optional[Iterator[Any]] = self._announce(iter(dataset))
        while True:
            self._await_turn()
            try:
                self._epoch(iter(dataset) if elements is None else elements)
            except _Abandoned:
                logger.debug("AsynchronousDataAccessor: session %d", self._session)
            elements = None

    def fail(self, why: str) -> None:
        """Tell the consumer why this is the end."""
        try:
            if self._announced:
                self._events.send_bytes(MESSAGE.pack(Event.FAILED, self._session, 0) + why.encode())
            else:
                self._events.send(why)
        except OSError:
            logger.error("%s", why)  # nobody listens any more

    def _announce(self, elements: Iterator[Any]) -> Iterator[Any]:
        """Make the ring for elements like the first one, and give all of them back."""
        try:
            first = next(elements)
        except StopIteration:
            raise python_error("the dataset is empty") from None
        leaves = _leaves(first)
        size = self._how.rebatched_size
        shapes = [leaf.shape if size is None else torch.Size([size, *leaf.shape[1:]]) for leaf in leaves]
        rows = leaves[0].shape[0] if leaves[0].dim() else 1
        structure = rebuild_output(first, [torch.empty(0, dtype=leaf.dtype) for leaf in leaves])
        self._layout = Layout(structure, shapes, [leaf.dtype for leaf in leaves], rows)
        memory = self._layout.allocate(self._how.buffer_size)
        self._slots = self._layout.slots(memory, self._how.buffer_size)
        self._events.send((self._layout, memory))
        self._announced = True
        return itertools.chain(iter([first]), elements)

    def _await_turn(self) -> None:
        """Return when the next epoch may begin."""
        self._listen()
        # An epoch that brought nothing would come again and again: wait for the consumer to ask for it.
        unasked = self._delivered and (self._how.load_indefinitely or self._begun == 0)
        while self._asked <= self._begun and not unasked:
            self._hear()
        self._begun += 1
        self._delivered = False

    def _epoch(self, elements: Iterator[Any]) -> None:
        self._filled = 0
        for element in elements:
            leaves = _leaves(element)
            self._check(leaves)
            if self._how.rebatched_size is None:
                for target, leaf in zip(self._await_slot(), leaves):
                    target.copy_(leaf)
                self._publish(self._layout.rows)
            else:
                self._put_together(leaves, self._how.rebatched_size)
        if self._filled and not self._how.drop_last:
            self._publish(self._filled)
        self._tell(Event.END)

    def _put_together(self, leaves: List[Tensor], size: int) -> None:
        """Copy a batch's rows into the batch that is being filled, and on into the next ones."""
        rows, start = leaves[0].shape[0], 0
        while start < rows:
            slot = self._await_slot()
            count = min(rows - start, size - self._filled)
            for target, leaf in zip(slot, leaves):
                target.narrow(0, self._filled, count).copy_(leaf.narrow(0, start, count))
            self._filled += count
            start += count
            if self._filled == size:
                self._publish(size)

    def _check(self, leaves: List[Tensor]) -> None:
        """Raise unless an element has the layout of the first one."""
        skipped = 0 if self._how.rebatched_size is None else 1
        expected = [(dtype, shape[skipped:]) for dtype, shape in zip(self._layout.dtypes, self._layout.shapes)]
        got = [(leaf.dtype, leaf.shape[skipped:]) for leaf in leaves]
        if got != expected:
            raise python_error(f"an element is {got}, the first one was {expected}; all have to be alike")
        if skipped and len({len(leaf) for leaf in leaves}) > 1:
            raise python_error(f"the tensors of an element have {[len(leaf) for leaf in leaves]} rows; make them equal")

    def _publish(self, rows: int) -> None:
        self._tell(Event.READY, rows)
        self._free -= 1
        self._next_slot = (self._next_slot + 1) % len(self._slots)
        self._filled = 0
        self._delivered = True

    def _tell(self, event: Event, rows: int = 0) -> None:
        self._events.send_bytes(MESSAGE.pack(event, self._session, rows))

    def _await_slot(self) -> List[Tensor]:
        """The tensors of the next slot, once it is free.

        Raises:
            _Abandoned, _Stopped: what the consumer said in the meantime.
        """
        session = self._session
        self._listen()
        while self._free == 0 and self._session == session:
            self._hear()
        if self._session != session:
            raise _Abandoned
        return self._slots[self._next_slot]

    def _listen(self) -> None:
        """Take what the consumer has said already."""
        while self._commands.poll():
            self._obey()

    def _hear(self) -> None:
        """Wait for the consumer to speak."""
        if self._commands not in multiprocessing.connection.wait(self._watched):
            raise _Stopped
        self._obey()

    def _obey(self) -> None:
        try:
            command, session, _ = MESSAGE.unpack(self._commands.recv_bytes())
        except (EOFError, OSError):
            raise _Stopped from None
        if command == Command.RELEASE:
            self._free += 1
        elif command == Command.BEGIN:
            self._asked += 1
        elif command == Command.RESTART:
            self._session, self._asked, self._begun = session, 1, 0
        else:
            raise _Stopped


def _leaves(element: Any) -> List[Tensor]:
    """The tensors of an element, which must consist of nothing else."""
    leaves = flatten_output(element)
    strangers = [type(one).__name__ for one in constants(element)]
    if strangers or not leaves:
        raise python_error(
            f"an element holds {', '.join(strangers) or 'nothing'}; the AsynchronousDataAccessor takes tensors, and "
            "tuples, lists and dictionaries of tensors: let the dataset or its collate_fn make tensors of them"
        )
    return leaves
