"""The data loader: how large its batches are, which samples come, in which order, and to which process."""

from __future__ import annotations

import logging
from typing import Any, Dict, Iterator, List, Optional

import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset, IterableDataset, TensorDataset, get_worker_info

from ipu.simulator.dataloader import AsynchronousDataAccessor, DataLoader
from ipu.simulator.enums import CommGroupType, DataLoaderMode, SharingStrategy
from ipu.simulator.options import Options
from ipu.simulator.poptorch_core import Error

SYNC, ASYNC, REBATCHED = DataLoaderMode.Sync, DataLoaderMode.Async, DataLoaderMode.AsyncRebatched
FORKED = {"sharing_strategy": SharingStrategy.Fork}


class Numbers(Dataset):  # type: ignore[type-arg]
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(index)


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Numbers from 0 on; every worker gives an equal part of them."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        part, parts = (worker.id, worker.num_workers) if worker else (0, 1)
        yield from (torch.tensor(number) for number in range(part, self.count, parts))


class SizedStream(Stream):
    def __len__(self) -> int:
        return self.count


class Batches(BatchSampler):
    """torch's, by its arguments alone."""

    def __init__(self, count: int, size: int) -> None:
        super().__init__(range(count), size, drop_last=True)  # type: ignore[arg-type]


def options(process: int = 0, processes: int = 1, seed: Optional[int] = None) -> Options:
    made = Options()
    made.deviceIterations(2)
    made.Distributed.configureProcessId(process, processes)
    if seed is not None:
        made.randomSeed(seed)
    return made


def load(dataset: Any, batch_size: Optional[int] = 2, made: Optional[Options] = None, **arguments: Any) -> DataLoader:
    if arguments.get("mode", SYNC) != SYNC:
        arguments["async_options"] = {**FORKED, **arguments.get("async_options", {})}
    return DataLoader(made or options(), dataset, batch_size, **arguments)


def epoch(loader: Any) -> List[List[int]]:
    return [batch.tolist() for batch in loader]


def test_a_batch_is_what_one_call_takes() -> None:
    made = Options()
    made.deviceIterations(2).replicationFactor(4).inputReplicaGrouping(2, CommGroupType.Consecutive)
    made.Training.gradientAccumulation(3)
    loader = DataLoader(made, TensorDataset(torch.zeros(100, 5), torch.zeros(100)), batch_size=3)
    assert loader.combinedBatchSize == 3 * 2 * (4 // 2) * 3 == 36
    assert [[tuple(part.shape) for part in batch] for batch in loader] == [[(36, 5), (36,)]] * 2
    assert loader.options is made


def test_options_are_frozen_by_the_loader() -> None:
    made = options()
    load(Numbers(8), made=made)
    with pytest.raises(AttributeError, match="frozen Options"):
        made.deviceIterations(3)


def test_other_options_are_an_assertion_error() -> None:
    with pytest.raises(AssertionError, match="dict"):
        DataLoader({}, Numbers(8))  # type: ignore[arg-type]


def test_no_batch_size_leaves_samples_as_they_are_and_the_options_out() -> None:
    loader = load(Numbers(3), None)
    assert epoch(loader) == [0, 1, 2]
    assert loader.combinedBatchSize is None
    with pytest.raises(AttributeError):
        _ = loader.options


@pytest.mark.parametrize("mode", [SYNC, ASYNC, REBATCHED])
@pytest.mark.parametrize("dataset", [Numbers(10), SizedStream(10)])
@pytest.mark.parametrize("drop_last", [True, False])
def test_incomplete_batches_are_dropped_or_come_short_in_every_mode(mode: Any, dataset: Any, drop_last: bool) -> None:
    loader = load(dataset, mode=mode, drop_last=drop_last)
    expected = [[0, 1, 2, 3], [4, 5, 6, 7]] + ([] if drop_last else [[8, 9]])
    for _ in range(2):
        assert epoch(loader) == expected
    assert len(loader) == len(expected)


def test_a_short_last_batch_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "poptorch::python"):
        load(Numbers(8), drop_last=False)
        assert caplog.messages == []
        load(Numbers(10), drop_last=False)
    assert "the last batch has 2" in caplog.text


@pytest.mark.parametrize("mode", [SYNC, ASYNC, REBATCHED])
def test_an_endless_dataset_has_no_length(mode: Any) -> None:
    with pytest.raises(TypeError, match=r"has no len\(\)"):
        len(load(Stream(10), mode=mode))


def test_rebatching_loses_fewer_samples_of_an_iterable_dataset_than_its_workers_do() -> None:
    # Every worker reads 7 of 14 samples and drops 3 of them, unless the accessor puts the rest together.
    lossy = load(Stream(14), mode=ASYNC, num_workers=2, worker_init_fn=id)
    whole = load(Stream(14), mode=REBATCHED, num_workers=2, worker_init_fn=id, rebatched_worker_size=1)
    assert len(epoch(lossy)) == 2
    batches = epoch(whole)
    assert [len(batch) for batch in batches] == [4, 4, 4]
    assert len({sample for batch in batches for sample in batch}) == 12


@pytest.mark.parametrize("size", [1, 3, 4])
def test_workers_read_batches_of_the_size_asked_for(size: int) -> None:
    loader = load(Numbers(8), mode=REBATCHED, rebatched_worker_size=size, num_workers=2)
    assert loader.batch_size == size
    assert epoch(loader) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("mode", [SYNC, ASYNC])
def test_other_modes_ignore_the_workers_batch_size(mode: Any) -> None:
    assert load(Numbers(8), mode=mode, rebatched_worker_size=1).batch_size == 4


def test_a_workers_batch_above_the_combined_one_is_an_assertion_error() -> None:
    with pytest.raises(AssertionError, match="rebatched_worker_size=5 must be at most the combined batch size .4"):
        load(Numbers(8), mode=REBATCHED, rebatched_worker_size=5)


@pytest.mark.parametrize("mode, drop_last", [(REBATCHED, True), (ASYNC, False)])
def test_a_size_to_rebatch_beside_that_of_the_mode_is_an_assertion_error(mode: Any, drop_last: bool) -> None:
    with pytest.raises(AssertionError, match="rebatched_size=8"):
        load(Numbers(8), mode=mode, drop_last=drop_last, async_options={"rebatched_size": 8})


def test_a_plain_asynchronous_loader_takes_a_size_to_rebatch() -> None:
    loader = load(Numbers(12), mode=ASYNC, async_options={"rebatched_size": 6})
    assert epoch(loader) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert len(loader) == 2


def test_early_preload_and_waiting_for_the_next_epoch_reach_the_accessor() -> None:
    loader = load(Numbers(8), mode=ASYNC, async_options={"early_preload": True, "load_indefinitely": False})
    for _ in range(3):
        assert epoch(loader) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_termination_and_deletion_end_the_process() -> None:
    loaders = [load(Numbers(8), mode=ASYNC) for _ in range(2)]
    processes = [loader._accessor._ahead._process for loader in loaders]  # type: ignore[union-attr]
    loaders[0].terminate()
    assert not processes[0].is_alive()
    assert processes[1].is_alive()
    del loaders[1]
    assert not processes[1].is_alive()
    load(Numbers(8)).terminate()  # a synchronous one has none


def test_an_asynchronous_order_follows_the_programs_seed_with_every_strategy() -> None:
    def orders(seed: int, **arguments: Any) -> List[List[List[int]]]:
        torch.manual_seed(seed)
        loader = load(TensorDataset(torch.arange(64)), 8, shuffle=True, mode=ASYNC, async_options=arguments)
        return [[batch[0].tolist() for batch in loader] for _ in range(2)]

    first = orders(1, sharing_strategy=SharingStrategy.ForkServer)
    assert first == orders(1, sharing_strategy=SharingStrategy.ForkServer) != orders(2)
    assert first[0] != first[1]
    assert orders(1) == orders(1)


# Several processes


@pytest.mark.parametrize("mode", [SYNC, ASYNC])
def test_processes_get_equally_many_whole_steps_of_samples_in_a_row(mode: Any) -> None:
    shares = [epoch(load(Numbers(30), made=options(process, 3), mode=mode)) for process in range(3)]
    assert shares == [[[start + 4 * step + row for row in range(4)] for step in range(2)] for start in (0, 8, 16)]


def test_without_dropping_processes_get_blocks_of_about_equal_length() -> None:
    shares = [epoch(load(Numbers(10), made=options(process, 4), drop_last=False)) for process in range(4)]
    samples = [[sample for batch in share for sample in batch] for share in shares]
    assert samples == [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9]]


@pytest.mark.parametrize("workers", [0, 1])
def test_shuffled_processes_share_every_order_and_move_over_what_is_left_over(workers: int) -> None:
    # 19 samples: two processes of two steps of 4 leave 3 out, the first ones of an order and the last ones in turn.
    loaders = [load(Numbers(19), made=options(one, 2, seed=5), shuffle=True, num_workers=workers) for one in range(2)]
    generator = torch.Generator().manual_seed(5)
    for start in (3, 0, 3):
        order = torch.randperm(19, generator=generator).tolist()
        got = [sample for loader in loaders for batch in epoch(loader) for sample in batch]
        assert got == order[start : start + 16]


def test_an_asynchronous_process_sees_the_same_orders() -> None:
    alike = [
        load(
            Numbers(19), made=options(1, 2, seed=5), shuffle=True, mode=mode, async_options={"load_indefinitely": False}
        )
        for mode in (SYNC, ASYNC)
    ]
    for _ in range(3):
        first, second = (epoch(loader) for loader in alike)
        assert first == second


@pytest.mark.parametrize(
    "arguments, message",
    [({"shuffle": True}, "randomSeed"), ({"batch_size": None}, "batch_size=None")],
)
def test_what_several_processes_cannot_share_is_an_assertion_error(arguments: Dict[str, Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        load(Numbers(64), made=options(0, 2), **arguments)


def test_too_few_samples_for_every_process_are_an_error() -> None:
    with pytest.raises(Error, match="7 samples are too few for 2 processes that take 4"):
        load(Numbers(7), made=options(0, 2))


def test_an_iterable_dataset_is_not_cut_into_parts() -> None:
    with pytest.raises(AssertionError, match="IterableDataset"):
        load(Stream(64), made=options(0, 2))
    assert len(epoch(load(Stream(8), made=options(0, 2), auto_distributed_partitioning=False))) == 2


def test_without_automatic_partitioning_every_process_reads_all() -> None:
    loader = load(Numbers(8), made=options(1, 2), auto_distributed_partitioning=False)
    assert epoch(loader) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_workers_that_all_read_the_same_stream_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "poptorch::python"):
        load(Stream(8), num_workers=2, worker_init_fn=id)
        load(Stream(8), num_workers=1)
        assert caplog.messages == []
        load(Stream(8), num_workers=2)
    assert "comes 2 times" in caplog.text


# Batch samplers


@pytest.mark.parametrize("mode", [SYNC, ASYNC, REBATCHED])
@pytest.mark.parametrize("drop_last", [True, False])
def test_batches_of_a_sampler_are_joined_to_what_one_call_takes(mode: Any, drop_last: bool) -> None:
    loader = load(Numbers(9), 1, batch_sampler=Batches(9, 3), mode=mode, drop_last=drop_last)
    assert loader.combinedBatchSize == 6
    expected = [[0, 1, 2, 3, 4, 5]] + ([] if drop_last else [[6, 7, 8]])
    assert epoch(loader) == epoch(loader) == expected


def test_the_length_with_a_batch_sampler_is_the_samplers_own() -> None:
    assert len(load(Numbers(12), 1, batch_sampler=Batches(12, 3))) == 4
    assert len(load(Numbers(12), 1, batch_sampler=Batches(12, 3), mode=REBATCHED)) == 2


def test_batches_of_a_sampler_are_joined_tensor_by_tensor() -> None:
    dataset = TensorDataset(torch.arange(4), torch.arange(8).reshape(4, 2))
    (batch,) = load(dataset, 1, batch_sampler=Batches(4, 2))
    assert batch[0].tolist() == [0, 1, 2, 3]
    assert batch[1].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize(
    "arguments, message",
    [({"batch_size": 2}, "batch_size=2"), ({"shuffle": True}, "shuffle"), ({"made": 2}, "auto_distributed")],
)
def test_a_batch_sampler_beside_what_it_stands_for_is_an_error(arguments: Dict[str, Any], message: str) -> None:
    made = options(0, arguments.pop("made", 1))
    with pytest.raises(Error, match=message):
        load(Numbers(8), **{"batch_size": 1, **arguments}, made=made, batch_sampler=Batches(8, 2))


def test_batches_of_unknown_size_cannot_be_put_together_anew() -> None:
    sampler = [[0, 1], [2, 3]]
    assert epoch(load(Numbers(8), 1, batch_sampler=sampler)) == [[0, 1, 2, 3]]
    with pytest.raises(Error, match="attribute batch_size"):
        load(Numbers(8), 1, batch_sampler=sampler, mode=REBATCHED)


# The accessor over a loader


def test_a_loader_has_at_most_one_accessor() -> None:
    with pytest.raises(Error, match="already"):
        AsynchronousDataAccessor(load(Numbers(8), mode=ASYNC), **FORKED)


@pytest.mark.parametrize("size", [0, 1])
def test_a_size_to_rebatch_that_joins_nothing_is_an_assertion_error(size: int) -> None:
    with pytest.raises(AssertionError, match="greater than 1"):
        AsynchronousDataAccessor(Numbers(8), rebatched_size=size, **FORKED)


def test_a_loader_with_a_short_batch_needs_a_size_to_rebatch() -> None:
    with pytest.raises(AssertionError, match="rebatched_size"):
        AsynchronousDataAccessor(load(Numbers(10), drop_last=False), **FORKED)
    accessor = AsynchronousDataAccessor(load(Numbers(10), drop_last=False), rebatched_size=3, **FORKED)
    assert epoch(accessor) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert len(accessor) == 4


def test_a_ring_without_a_buffer_is_refused() -> None:
    with pytest.raises(Error, match="buffer_size=0"):
        AsynchronousDataAccessor(Numbers(8), buffer_size=0, **FORKED)
