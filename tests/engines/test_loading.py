"""Loading for the host engine: the same micro batches, however they travel."""

from __future__ import annotations

from typing import Any, Iterator, List

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from engines.loading import MicroBatches, collate

CPU = torch.device("cpu")


class Numbers(Dataset):  # type: ignore[type-arg]
    """Each sample is its index, its square, and the number of the process that made it."""

    def __len__(self) -> int:
        return 75

    def __getitem__(self, index: int) -> Any:
        worker = get_worker_info()
        return torch.tensor(index), torch.tensor([index**2]), torch.tensor(worker.seed if worker else 0)


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Tensor]:
        return map(torch.tensor, range(75))


def indices(loaded: MicroBatches) -> List[List[int]]:
    return [micro_batch[0].tolist() for micro_batch in loaded]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("batch_size", [1, 4, 40])
def test_micro_batches_are_those_of_the_order_with_any_number_of_loaders(batch_size: int, workers: int) -> None:
    order = torch.randperm(75, generator=torch.Generator().manual_seed(0)).tolist()
    expected = [order[start : start + batch_size] for start in range(0, 75, batch_size)]
    assert indices(MicroBatches(Numbers(), batch_size, workers, CPU, seed=0, sampler=order)) == expected


def test_a_stream_comes_in_its_own_order() -> None:
    assert indices(MicroBatches(Stream(), 10, 1, CPU, seed=0)) == [
        list(range(n, min(n + 10, 75))) for n in range(0, 75, 10)
    ]


def test_loading_again_keeps_the_processes_and_takes_no_random_number_from_training() -> None:
    loaded = MicroBatches(Numbers(), 10, 2, CPU, seed=3)
    before = torch.get_rng_state()
    first, second = ({int(seed) for _, _, seeds in loaded for seed in seeds} for _ in range(2))
    assert first == second and len(first) == 2
    assert torch.equal(torch.get_rng_state(), before)


def test_without_loader_processes_no_sample_is_loaded_before_its_micro_batch_is_asked_for() -> None:
    fetched: List[int] = []

    class Watched(Numbers):
        def __getitem__(self, index: int) -> Any:
            fetched.append(index)
            return super().__getitem__(index)

    micro_batches = iter(MicroBatches(Watched(), 4, 0, CPU, seed=0))
    next(micro_batches)
    assert fetched == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_pictures_keep_the_order_of_their_bytes(dtype: torch.dtype) -> None:
    side_by_side = [torch.arange(60).add(n).to(dtype).view(4, 5, 3).permute(2, 0, 1) for n in range(6)]
    apart = [picture.contiguous() for picture in side_by_side]
    (first,), (second,) = collate(side_by_side), collate(apart)
    assert first.is_contiguous(memory_format=torch.channels_last) and second.is_contiguous()
    assert first.dtype == dtype and torch.equal(first, torch.stack(apart)) and torch.equal(first, second)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_arrive_on_a_gpu_unchanged_and_without_waiting(workers: int) -> None:
    device = torch.device("cuda")
    loaded = iter(MicroBatches(Numbers(), 4, workers, device, seed=0))
    found = [next(loaded)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        found += loaded
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(tensor.is_cuda for micro_batch in found for tensor in micro_batch)
    assert torch.cat([micro_batch[0] for micro_batch in found]).tolist() == list(range(75))
