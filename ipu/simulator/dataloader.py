"""The data loader: batches of the size that one call of a model takes, loaded here or ahead in another process.

One call takes a *combined batch* of `batch_size * device_iterations * (replication_factor // input_group_size) *
gradient_accumulation` samples.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any, Dict, Iterable, Iterator, List, Optional

import torch
import torch.utils.data
from torch import Tensor

from ipu.simulator._logging import logger
from ipu.simulator.arguments import flatten_output, rebuild_output
from ipu.simulator.enums import DataLoaderMode, SharingStrategy
from ipu.simulator.loading import Ahead
from ipu.simulator.options import Options
from ipu.simulator.poptorch_core import python_error
from ipu.simulator.ring import Loading


class ProcessShare(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """The block of a map-style dataset that one of several processes reads.

    Args:
        dataset: the whole.
        process, processes: whose block, and of how many.
        step: combined batch size. All processes have to take equally many steps, or the last ones would wait for ever.
        drop_last: blocks are whole steps, and a few samples lie in none; otherwise blocks are about equally long.
        seed: of the order of the whole dataset, the same one in every process; `None` keeps the dataset's own.

    Raises:
        Error: there are too few samples for a step of every process.
    """

    def __init__(
        self, dataset: Any, process: int, processes: int, step: int, drop_last: bool, seed: Optional[int] = None
    ) -> None:
        items = len(dataset)
        if drop_last and items < step * processes:
            raise python_error(
                f"{items} samples are too few for {processes} processes that take {step} a step; make the batch smaller"
            )
        if drop_last:
            lengths = [step * (items // (step * processes))] * processes
        else:
            lengths = [items // processes + (one < items % processes) for one in range(processes)]
        self._dataset = dataset
        self._length = lengths[process]
        self._first, self._left_over = sum(lengths[:process]), items - sum(lengths)
        # Workers that live on from epoch to epoch see the new order through shared memory.
        self._start = torch.tensor(self._first).share_memory_()
        self._order = torch.arange(items).share_memory_()
        self._generator_state = None if seed is None else torch.Generator().manual_seed(seed).get_state()

    def begin_epoch(self) -> None:
        """Draw a new order. The block moves by the samples left over, and back the next time: each has its turn."""
        if self._generator_state is None:
            return
        generator = torch.Generator()
        generator.set_state(self._generator_state)
        self._order.copy_(torch.randperm(len(self._order), generator=generator))
        self._generator_state = generator.get_state()
        self._start.fill_(self._first + (self._left_over if self._start == self._first else 0))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        return self._dataset[int(self._order[self._start + index])]


class DataLoader(torch.utils.data.DataLoader):  # type: ignore[type-arg]
    """torch's DataLoader with batches for one call of a model.

    Args:
        options: the model's; they are frozen, since they decide the size of a batch.
        dataset: where samples come from.
        batch_size: samples in a micro batch; `None` for a dataset that makes its batches itself.
        shuffle: draw the samples in another order every time; `None` is no.
        num_workers: processes that read samples.
        drop_last: leave out the samples that do not fill a batch at the end.
        persistent_workers: keep them for the next epoch; `None` keeps them.
        auto_distributed_partitioning: with several processes, each reads its own part of the dataset.
        mode: see `DataLoaderMode`.
        async_options: keyword arguments for the `AsynchronousDataAccessor` of an asynchronous mode.
        rebatched_worker_size: samples that a worker reads at a time in `AsyncRebatched`; `None` reads a combined batch.
        batch_sampler: lists the samples of each micro batch, in place of `batch_size` and `shuffle`.
        **torch_kwargs: further arguments of torch's DataLoader.

    Raises:
        AssertionError: options of another type; several processes and an iterable dataset, no seed to shuffle with, or
            no batch size; a `rebatched_worker_size` above the combined batch size, or a `rebatched_size` beside it.
        Error: `batch_sampler` beside what it stands for; see `AsynchronousDataAccessor` for the rest.
    """

    _accessor: Optional[AsynchronousDataAccessor] = None

    def __init__(
        self,
        options: Options,
        dataset: Any,
        batch_size: Optional[int] = 1,
        shuffle: Optional[bool] = None,
        num_workers: int = 0,
        drop_last: bool = True,
        persistent_workers: Optional[bool] = None,
        auto_distributed_partitioning: bool = True,
        mode: DataLoaderMode = DataLoaderMode.Sync,
        async_options: Optional[Dict[str, Any]] = None,
        rebatched_worker_size: Optional[int] = None,
        batch_sampler: Optional[Any] = None,
        **torch_kwargs: Any,
    ) -> None:
        assert isinstance(options, Options), f"options must be poptorch.Options, not {type(options).__name__}"
        options._freeze()
        if batch_size is not None:
            self._options = options
        shuffle = bool(shuffle)
        processes = options.Distributed.numProcesses if auto_distributed_partitioning else 1
        self._is_iterable = isinstance(dataset, torch.utils.data.IterableDataset)
        self._has_batch_sampler = batch_sampler is not None
        self._batches_per_step = _batches_per_step(options)
        if batch_sampler is not None:
            _check_batch_sampler(batch_size, shuffle, processes)
            batch_size = getattr(batch_sampler, "batch_size", None)
        self._combined_batch_size = None if batch_size is None else batch_size * self._batches_per_step
        if self._is_iterable:
            _check_iterable(processes, num_workers, torch_kwargs)
        elif not drop_last and batch_sampler is None:
            _warn_of_short_batch(len(dataset), self._combined_batch_size, options.Distributed.numProcesses)
        if processes > 1:
            dataset = self._share(dataset, options, shuffle, drop_last)
            shuffle = False

        self._drops_last = drop_last
        self._rebatched_size = self._size_to_rebatch(mode, drop_last, async_options or {})
        worker_batch_size = self._combined_batch_size
        if mode == DataLoaderMode.AsyncRebatched and rebatched_worker_size is not None:
            assert worker_batch_size is not None and rebatched_worker_size <= worker_batch_size, (
                f"rebatched_worker_size={rebatched_worker_size} must be at most the combined batch size "
                f"({worker_batch_size})"
            )
            worker_batch_size = rebatched_worker_size
        if batch_sampler is not None:
            torch_kwargs["batch_sampler"] = batch_sampler
        else:
            torch_kwargs["batch_size"] = worker_batch_size
            # Rows that fill no batch of a worker's may fill one of the accessor's.
            torch_kwargs["drop_last"] = drop_last and worker_batch_size is not None and self._rebatched_size is None
            torch_kwargs["shuffle"] = shuffle
        if persistent_workers is None:
            persistent_workers = num_workers > 0
        super().__init__(dataset, num_workers=num_workers, persistent_workers=persistent_workers, **torch_kwargs)

        if mode != DataLoaderMode.Sync:
            accessor_options = {"rebatched_size": self._rebatched_size, **(async_options or {})}
            self._rebatched_size = accessor_options["rebatched_size"]
            self._accessor = AsynchronousDataAccessor(self, **accessor_options)
            # Without a circle of references, deleting the loader ends the process at once.
            self._accessor._dataset = weakref.proxy(self)

    def _share(self, dataset: Any, options: Options, shuffle: bool, drop_last: bool) -> ProcessShare:
        assert not shuffle or options.exists("random_seed"), (
            "several processes shuffle alike only from the same seed: set poptorch.Options.randomSeed(...), or "
            "auto_distributed_partitioning=False"
        )
        assert self._combined_batch_size is not None, (
            "batch_size=None leaves open how many samples a process gets; give a batch_size, or "
            "auto_distributed_partitioning=False"
        )
        return ProcessShare(
            dataset,
            options.Distributed.processId,
            options.Distributed.numProcesses,
            self._combined_batch_size,
            drop_last,
            options.random_seed if shuffle else None,
        )

    def _size_to_rebatch(self, mode: DataLoaderMode, drop_last: bool, async_options: Dict[str, Any]) -> Optional[int]:
        """The size of the batches that the accessor puts together; `None` if it takes them as they come."""
        size = self._combined_batch_size
        if size is None and self._has_batch_sampler and (mode == DataLoaderMode.AsyncRebatched or not drop_last):
            raise python_error(
                "batches are put together anew, but how large the batch_sampler's are is not known: give it an "
                "attribute batch_size, or use DataLoaderMode.Async with drop_last=True"
            )
        # A short batch at the end does not have the shape of the others: only putting rows together can deliver it.
        short_batch = mode == DataLoaderMode.Async and not drop_last and size is not None and size > 1
        if mode != DataLoaderMode.AsyncRebatched and not short_batch:
            return None
        assert "rebatched_size" not in async_options, (
            f"async_options gives rebatched_size={async_options['rebatched_size']}, but mode and drop_last ask for "
            f"batches of {size}; leave it out"
        )
        return size

    def __len__(self) -> int:
        if self._rebatched_size is None:
            return super().__len__()
        if self._has_batch_sampler:
            batches: Any = self.batch_sampler
            return _number_of_batches(len(batches), self._batches_per_step, self._drops_last)
        items: Any = self.dataset if self._is_iterable else self.sampler
        return _number_of_batches(len(items), self._rebatched_size, self._drops_last)

    @property
    def combinedBatchSize(self) -> Optional[int]:
        """Samples that one call of the model takes; `None` for batches that the dataset makes itself."""
        return self._combined_batch_size

    @property
    def options(self) -> Options:
        """The options that the loader was made with."""
        return self._options

    def terminate(self) -> None:
        """End the process of an asynchronous mode."""
        if self._accessor is not None:
            self._accessor.terminate()

    def __del__(self) -> None:
        self.terminate()

    def __getstate__(self) -> Dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_accessor"}

    def __iter__(self) -> Any:
        if self._accessor is not None:
            return iter(self._accessor)
        if isinstance(self.dataset, ProcessShare):
            self.dataset.begin_epoch()
        batches = super().__iter__()
        if self._has_batch_sampler and self._rebatched_size is None and self._batches_per_step > 1:
            return _combined(batches, self._batches_per_step, self._drops_last)
        return batches


def _batches_per_step(options: Options) -> int:
    groups: int = options.replication_factor // options.input_group_size
    return groups * options.device_iterations * options.Training.gradient_accumulation


def _number_of_batches(items: int, size: int, drop_last: bool) -> int:
    return items // size if drop_last else -(-items // size)


def _check_batch_sampler(batch_size: Optional[int], shuffle: bool, processes: int) -> None:
    beside = {
        f"batch_size={batch_size}": batch_size != 1,
        "shuffle=True": shuffle,
        "auto_distributed_partitioning with several processes": processes > 1,
    }
    found = ", ".join(what for what, present in beside.items() if present)
    if found:
        raise python_error(f"batch_sampler decides which samples make a batch, and so does {found}; leave one out")


def _check_iterable(processes: int, num_workers: int, torch_kwargs: Dict[str, Any]) -> None:
    assert processes == 1, (
        "auto_distributed_partitioning cannot cut an IterableDataset into parts; let the dataset yield the part of its "
        "own process and pass auto_distributed_partitioning=False"
    )
    if num_workers > 1 and torch_kwargs.get("worker_init_fn") is None:
        logger.warning(
            "IterableDataset with num_workers=%d and no worker_init_fn: every worker reads all of it, so that each "
            "element comes %d times. Give each worker a part of its own, in worker_init_fn.",
            num_workers,
            num_workers,
        )


def _warn_of_short_batch(items: int, combined: Optional[int], processes: int) -> None:
    step = (combined or 1) * processes
    if items % step:
        logger.warning(
            "%d samples are no multiple of the %d that a step takes, and drop_last=False: the last batch has %d, which "
            "a compiled model refuses. drop_last=True leaves them out.",
            items,
            step,
            items % step,
        )


def _combined(batches: Iterable[Any], count: int, drop_last: bool) -> Iterator[Any]:
    """Every `count` batches as one: their tensors one after the other along the first dimension."""
    iterator = iter(batches)
    while True:
        some = list(itertools.islice(iterator, count))
        if not some or (drop_last and len(some) < count):
            return
        columns: List[List[Tensor]] = [list(column) for column in zip(*(flatten_output(batch) for batch in some))]
        yield rebuild_output(some[0], [torch.cat(column) for column in columns])


class AsynchronousDataAccessor:
    """Iterates over a dataset that another process loads ahead, into a ring of buffers in shared memory.

    What it yields lies in the ring and is overwritten later: clone what is needed beyond the next step.

    Args:
        dataset: any iterable of tensors, or of tuples, lists and dictionaries of tensors, all of the same shapes.
        buffer_size: elements in the ring.
        miss_sleep_time_in_ms: accepted for compatibility; both processes are woken up and never look in vain.
        load_indefinitely: go on loading for the next epoch when one is over, before it is asked for.
        early_preload: begin to load now, before the first epoch is asked for.
        sharing_strategy: how the process is started and given the dataset.
        rebatched_size: rows of the batches to put together from the dataset's; `None` takes them as they are.

    Raises:
        AssertionError: a `rebatched_size` below 2; a DataLoader without `drop_last` and without `rebatched_size`.
        Error: the dataset has an accessor already; a ring without a buffer; the process did not start.
    """

    _ahead: Optional[Ahead] = None

    def __init__(
        self,
        dataset: Iterable[Any],
        buffer_size: int = 3,
        miss_sleep_time_in_ms: float = 0.1,
        load_indefinitely: bool = True,
        early_preload: bool = False,
        sharing_strategy: SharingStrategy = SharingStrategy.ForkServer,
        rebatched_size: Optional[int] = None,
    ) -> None:
        drops_last = True
        if isinstance(dataset, DataLoader):
            drops_last = dataset._drops_last
            if dataset._accessor is not None:
                raise python_error(
                    "the DataLoader has an AsynchronousDataAccessor already; iterate over the loader, or make it with "
                    "mode=DataLoaderMode.Sync"
                )
            assert drops_last or rebatched_size is not None or dataset.combinedBatchSize in (None, 1), (
                "the short batch of a DataLoader with drop_last=False needs a rebatched_size"
            )
        assert rebatched_size is None or rebatched_size > 1, f"rebatched_size={rebatched_size} must be greater than 1"
        if buffer_size < 1:
            raise python_error(f"buffer_size={buffer_size} must be at least 1")
        self.rebatched_size = rebatched_size
        self._dataset: Any = dataset
        self._drops_last = drops_last
        how = Loading(buffer_size, load_indefinitely, early_preload, rebatched_size, drops_last)
        self._ahead = Ahead(dataset, how, sharing_strategy)

    def terminate(self) -> None:
        """End the process."""
        if self._ahead is not None:
            self._ahead.stop()
            self._ahead = None

    def __del__(self) -> None:
        self.terminate()

    def __len__(self) -> int:
        """Of the dataset; of batches put together anew, how many there are."""
        if self.rebatched_size is None or isinstance(self._dataset, weakref.ProxyType):
            return len(self._dataset)
        if isinstance(self._dataset, DataLoader) and not self._drops_last:
            items = len(self._dataset.dataset)  # type: ignore[arg-type]
        else:
            items = len(self._dataset) * self._running().layout.rows
        return _number_of_batches(items, self.rebatched_size, self._drops_last)

    def __iter__(self) -> AsynchronousDataAccessor:
        self._running().begin()
        return self

    def __next__(self) -> Any:
        return self._running().take()

    def _running(self) -> Ahead:
        if self._ahead is None:
            raise python_error("the AsynchronousDataAccessor was terminated; make a new one")
        return self._ahead
