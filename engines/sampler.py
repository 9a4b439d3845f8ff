"""The order of samples: a seeded permutation an epoch that a resumed run can enter anywhere.

A dataset may bring an order of its own (`Ordered`), or give its samples in their order only (`Streamed`).
"""

from __future__ import annotations

import itertools
import logging
import math
from typing import Any, Callable, Iterable, Iterator, List, Optional, Protocol, Tuple, runtime_checkable

import torch
from torch.utils.data import Dataset, IterableDataset, Sampler

_log = logging.getLogger(__name__)


Span = Tuple[int, int, int]  # number of a pass, and from which of its samples to which


@runtime_checkable
class Ordered(Protocol):
    """A dataset whose samples are to be taken in its own order."""

    def order(self, number: int) -> Iterable[int]:
        """The indices of pass `number`, at least as many as the dataset's length."""


@runtime_checkable
class Streamed(Protocol):
    """A dataset whose samples cannot be taken at any index."""

    def stream(self, spans: Callable[[], Iterator[Span]], threads: int) -> IterableDataset[Any]:
        """The samples of spans of passes, one after the other, prepared by `threads` (0: by the caller)."""


def steps_per_epoch(length: int, global_batch: int) -> int:
    """Optimizer steps of one epoch over `length` samples: whole global batches only, and at least one."""
    return max(length // global_batch, 1)


class EpochSampler(Sampler):  # type: ignore[type-arg]
    """Yields `(epoch, index)` keys, as many each epoch as make whole global batches.

    A dataset smaller than one global batch is gone through several times an epoch; each pass then has its own
    permutation and its own number in the place of the epoch, so that repeated samples are cropped anew.
    """

    def __init__(
        self,
        length: int,
        global_batch: int,
        seed: int = 0,
        start: int = 0,
        epochs: Optional[int] = None,
        shuffle: bool = True,
        order: Optional[Callable[[int], Iterable[int]]] = None,
    ) -> None:
        """Order `length` samples.

        Args:
            length: samples of the dataset.
            global_batch: samples of one optimizer step.
            seed: of the permutations.
            start: samples that an earlier run has consumed.
            epochs: how many epochs there are in all, `start` included; `None`: endless.
            shuffle: permute; otherwise in order.
            order: gives the indices of a pass in place of a permutation, `length` or more.
        """
        if length < 1 or global_batch < 1:
            raise ValueError(f"{length} samples, global batch {global_batch}: each must be at least 1; give more data")
        self.length = length
        self.global_batch = global_batch
        self.seed = seed
        self.start = start
        self.epochs = epochs
        self.shuffle = shuffle
        self.order = order
        self.steps_per_epoch = steps_per_epoch(length, global_batch)
        self.samples_per_epoch = self.steps_per_epoch * global_batch
        self._passes = math.ceil(self.samples_per_epoch / length)  # 1, unless the dataset is smaller than a batch
        if self._passes > 1:
            _log.warning("the dataset's %d samples repeat within each global batch of %d", length, global_batch)

    def __len__(self) -> int:
        """Samples still to come; with endless epochs, samples of one epoch."""
        if self.epochs is None:
            return self.samples_per_epoch
        return max(self.epochs * self.samples_per_epoch - self.start, 0)

    def __iter__(self) -> Iterator[Tuple[int, int]]:
        """Go from `start` to the end."""
        for number, begin, end in self.spans():
            for index in itertools.islice(self._order(number), begin, end):
                yield number, index

    @property
    def updates(self) -> Optional[int]:
        """Optimizer steps still to come; None: endless."""
        return None if self.epochs is None else len(self) // self.global_batch

    def calls(self, device_iterations: int) -> Iterator[int]:
        """A number for each call of so many optimizer steps that is still to come."""
        updates = itertools.count() if self.updates is None else range(self.updates)
        return itertools.islice(updates, 0, None, device_iterations)

    def spans(self) -> Iterator[Span]:
        """The passes from `start` to the end: the number of each, and which of its samples are taken."""
        first, consumed = divmod(self.start, self.samples_per_epoch)
        for epoch in itertools.count(first) if self.epochs is None else range(first, self.epochs):
            for part in range(self._passes):
                before = part * self.length
                end = min(self.length, self.samples_per_epoch - before)
                if consumed < before + end:
                    yield epoch * self._passes + part, max(consumed - before, 0), end
            consumed = 0

    def _order(self, number: int) -> Iterable[int]:
        if self.order is not None:
            return self.order(number)
        if not self.shuffle:
            return list(range(self.length))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        order: List[int] = torch.randperm(self.length, generator=generator).tolist()
        return order


def training_sampler(
    dataset: Dataset[Any], global_batch: int, seed: int, start: int, epochs: Optional[int]
) -> EpochSampler:
    """The order in which a dataset is trained on, its own one if it brings one; arguments as of `EpochSampler`."""
    order = dataset.order if isinstance(dataset, Ordered) else None
    return EpochSampler(len(dataset), global_batch, seed, start, epochs, order=order)  # type: ignore[arg-type]
