"""Loading for the host engine: from samples to micro batches on the device.

What costs beside the samples themselves is each message from a process that loads to the one that trains, and each
first touch of its memory. So a message holds several micro batches, and pictures keep the type and the order of bytes
that they were made with. Batches for a GPU are copied from pinned memory while the one before is computed.
"""

from __future__ import annotations

import os
from typing import Any, Iterable, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from engines.base import Inputs, as_inputs

_SAMPLES_AT_ONCE = 64  # of a message, at least: then it costs little beside a picture, or 64 rows of tokens


class MicroBatches:
    """The samples of a dataset in micro batches, every time it is gone through.

    Processes that load stay from one time to the next.

    Args:
        dataset: the samples.
        batch_size: samples of a micro batch.
        workers: processes that load (0: the one that trains).
        device: where micro batches are wanted.
        seed: of what a loader draws, so that it does not take from the random numbers that training uses.
        sampler: the order of the samples; None: that of the dataset.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        workers: int,
        device: torch.device,
        seed: int,
        sampler: Optional[Iterable[Any]] = None,
    ) -> None:
        self.dataset, self.batch_size, self.device = dataset, batch_size, device
        self._messages: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=batch_size * (-(-_SAMPLES_AT_ONCE // batch_size) if workers else 1),
            sampler=sampler,  # type: ignore[arg-type]
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=collate,
            pin_memory=device.type == "cuda",
            generator=torch.Generator().manual_seed(seed),
            worker_init_fn=_leave_process_group,
        )

    def __iter__(self) -> Iterator[Inputs]:
        """Go through the samples once."""
        parts = (zip(*(tensor.split(self.batch_size) for tensor in message)) for message in self._messages)
        micro_batches = (micro_batch for part in parts for micro_batch in part)
        return _copied_ahead(micro_batches, self.device) if self.device.type == "cuda" else micro_batches


def collate(samples: Sequence[Any]) -> Inputs:
    """A batch of samples; where the channels of a picture's pixels lie side by side, they still do."""
    return tuple(_stack(tensors) for tensors in zip(*map(as_inputs, samples)))


def _stack(tensors: Tuple[Tensor, ...]) -> Tensor:
    """Tensors (...) as one (B, ...)."""
    if tensors[0].dim() == 3 and tensors[0].stride(0) == 1:
        return default_collate([picture.permute(1, 2, 0) for picture in tensors]).permute(0, 3, 1, 2)
    return default_collate(list(tensors))


def _copied_ahead(micro_batches: Iterable[Inputs], device: torch.device) -> Iterator[Inputs]:
    """Micro batches on a GPU; each is being copied, on a stream of its own, while the one before is computed."""
    stream = torch.cuda.Stream(device)
    waiting: List[Tuple[Inputs, torch.cuda.Event]] = []
    for micro_batch in micro_batches:
        with torch.cuda.stream(stream):
            copied = tuple(tensor.to(device, non_blocking=True) for tensor in micro_batch)
            waiting.append((copied, stream.record_event()))
        if len(waiting) > 1:
            yield _arrived(*waiting.pop(0), device)
    for copied, done in waiting:
        yield _arrived(copied, done, device)


def _arrived(copied: Inputs, done: torch.cuda.Event, device: torch.device) -> Inputs:
    """Let the GPU, not the host, wait for a copy before it goes on."""
    current = torch.cuda.current_stream(device)
    current.wait_event(done)
    for tensor in copied:
        tensor.record_stream(current)
    return copied


def _leave_process_group(worker: int) -> None:
    """Keep signals to a whole process group, such as Ctrl-C and those of `timeout`, from ending a loader process.

    The training process gets them too, and still needs its loaders to finish the step; they end after it.
    """
    os.setpgid(0, 0)
