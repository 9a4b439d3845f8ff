"""The consumer's side of loading ahead: starts the process that reads, takes elements from the ring (see `ring`)."""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.connection
import multiprocessing.util  # noqa: F401  its hook at exit waits for processes: ours has to run before, so register later
import os
import pickle
import signal
import tempfile
import weakref
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List

import torch
from torch import Tensor

from ipu.simulator._logging import logger
from ipu.simulator.arguments import ICustomArgParser, rebuild_output, registered_parsers
from ipu.simulator.enums import SharingStrategy
from ipu.simulator.poptorch_core import Error, python_error
from ipu.simulator.reading import Parts, read
from ipu.simulator.ring import MESSAGE, Command, Event, Layout, Loading

_PATIENCE = 5.0  # seconds between two looks at a process that should speak or die
_TIME_TO_END = 2.0  # seconds that a process gets before it is ended in a harder way
_NOT_PICKLABLE = (pickle.PicklingError, AttributeError, TypeError, RuntimeError)
_START_METHODS = {
    SharingStrategy.SharedMemory: "spawn",
    SharingStrategy.FileSystem: "spawn",
    SharingStrategy.Fork: "fork",
    SharingStrategy.ForkServer: "forkserver",
}


class Ahead:
    """A dataset that another process loads ahead. Waits until its first element has arrived.

    Args:
        dataset: anything that can be iterated over, and, unless it is forked, pickled.
        how: see `Loading`.
        sharing_strategy: how the process is started and given the dataset.

    Raises:
        Error: the process did not start, or the dataset is empty or not made of tensors.
    """

    def __init__(self, dataset: Iterable[Any], how: Loading, sharing_strategy: SharingStrategy) -> None:
        self._how = how
        self._owner = os.getpid()
        self._session, self._begun, self._used, self._ended = 0, False, False, False
        self._next_slot, self._holds = 0, False
        self._process: Any = None
        context: Any = multiprocessing.get_context(_START_METHODS[sharing_strategy])
        if sharing_strategy == SharingStrategy.ForkServer:
            context.set_forkserver_preload(["torch", __name__])  # the server imports once, its processes start at once
        self._events, events = context.Pipe(duplex=False)
        commands, self._commands = context.Pipe(duplex=False)
        with tempfile.TemporaryDirectory() as folder:
            try:
                parts = self._parts(_source(dataset, sharing_strategy, Path(folder)), sharing_strategy)
                # Daemons end with this process even when it never gets to stop them.
                self._process = context.Process(target=read, args=(parts, events, commands), daemon=True)
                self._process.start()
            except _NOT_PICKLABLE as error:
                raise self._failed_to_start(
                    f"{error}. What is passed to the process has to be picklable; "
                    "sharing_strategy=SharingStrategy.Fork passes it without"
                ) from error
            events.close()
            commands.close()
            logger.debug("AsynchronousDataAccessor: process %d loads for %d", self._process.pid, self._owner)
            _living.add(self)
            self.layout = self._first_words()

    def _parts(self, source: Any, strategy: SharingStrategy) -> Parts:
        if strategy == SharingStrategy.Fork:  # a fork has all of this process
            return Parts(source, self._how, None, {}, (self._events, self._commands))
        return Parts(source, self._how, torch.initial_seed(), _parsers_to_send(), ())

    def _first_words(self) -> Layout:
        try:
            told = self._wait_for(self._events.recv)
        except Error as error:
            raise self._failed_to_start(error.message) from None
        if isinstance(told, str):
            raise self._failed_to_start(told)
        layout, memory = told
        self._slots = layout.slots(memory, self._how.buffer_size)
        return layout

    def _failed_to_start(self, why: str) -> Error:
        self.stop()
        return python_error(f"AsynchronousDataAccessor worker thread failed to start: {why}")

    def begin(self) -> None:
        """Begin an epoch. As long as nothing was taken from the last one, that is still it."""
        if self._begun and not self._used and not self._ended:
            return
        if self._begun and not self._ended:
            self._session += 1
            self._say(Command.RESTART)
        else:
            self._say(Command.BEGIN)
        self._begun, self._used, self._ended = True, False, False

    def take(self) -> Any:
        """The epoch's next element. Its tensors lie in the ring: they stay as they are until the next call.

        Raises:
            StopIteration: the epoch is over, or none has begun.
            Error: the process failed or died; says why.
        """
        self._release()
        while self._begun and not self._ended:
            message = self._wait_for(self._events.recv_bytes)
            event, session, rows = MESSAGE.unpack_from(message)
            if event == Event.FAILED:
                why = message[MESSAGE.size :].decode("utf-8", "replace")
                raise python_error(f"the worker of the AsynchronousDataAccessor failed:\n{why}")
            slot = self._slots[self._next_slot]
            if event == Event.READY:
                self._holds, self._next_slot = True, (self._next_slot + 1) % len(self._slots)
            if session != self._session:
                self._release()
            elif event == Event.READY:
                self._used = True
                return rebuild_output(self.layout.structure, self._rows(slot, rows))
            else:
                self._ended = True
        raise StopIteration

    def _rows(self, slot: List[Tensor], rows: int) -> List[Tensor]:
        # New tensor objects over the same memory: what is done to the objects does not come back with the slot.
        if self._how.rebatched_size is None:
            return [tensor.detach() for tensor in slot]
        return [tensor.narrow(0, 0, rows) for tensor in slot]

    def _release(self) -> None:
        if self._holds:
            self._holds = False
            self._say(Command.RELEASE)

    def _say(self, command: Command) -> None:
        try:
            self._commands.send_bytes(MESSAGE.pack(command, self._session, 0))
        except OSError as error:
            # The reader is gone. Why, comes with the next event.
            logger.debug("AsynchronousDataAccessor: its process does not listen: %s", error)

    def _wait_for(self, receive: Callable[[], Any]) -> Any:
        while True:
            # The sentinel of a forked process is silent while one that it forked itself lives on: look now and then.
            ready = multiprocessing.connection.wait([self._events, self._process.sentinel], timeout=_PATIENCE)
            if self._events in ready:
                try:
                    return receive()
                except (EOFError, OSError):
                    self._process.join(timeout=_PATIENCE)
                    raise self._died() from None
            if self._process.exitcode is not None and not self._events.poll():
                raise self._died()

    def _died(self) -> Error:
        code = self._process.exitcode
        hint = "its own output says more"
        if code == -signal.SIGBUS:
            hint = "shared memory is full: give /dev/shm more room, or take a smaller buffer_size or batch"
        return python_error(f"the worker of the AsynchronousDataAccessor died (exit code {code}); {hint}")

    def stop(self) -> None:
        """End the process. Only the one that started it can; in copies of that after a fork this does nothing."""
        process, self._process = self._process, None
        if os.getpid() != self._owner or process is None or process.pid is None:
            return
        self._say(Command.STOP)
        process.join(timeout=_TIME_TO_END)
        for end_it in (process.terminate, process.kill):  # it may be busy with an element, or stuck in one
            if process.exitcode is None:
                end_it()
                process.join(timeout=_TIME_TO_END)
        self._events.close()
        self._commands.close()


_living: weakref.WeakSet[Ahead] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    for ahead in list(_living):
        ahead.stop()


def _parsers_to_send() -> Dict[type, ICustomArgParser]:
    """The registered parsers, but for those that no other process can know."""
    return {known: parser for known, parser in registered_parsers().items() if _is_picklable((known, parser))}


def _is_picklable(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except _NOT_PICKLABLE:
        return False
    return True


def _source(dataset: Iterable[Any], strategy: SharingStrategy, folder: Path) -> Any:
    """The dataset, or for `FileSystem` a file that holds it: it may be too large for shared memory."""
    if strategy != SharingStrategy.FileSystem:
        return dataset
    path = folder / "dataset.pkl"
    with path.open("wb") as file:
        pickle.dump(dataset, file, protocol=4)
    return path
