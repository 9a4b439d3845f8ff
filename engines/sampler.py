"""The order of samples: a seeded permutation an epoch that a resumed run can enter anywhere."""

from __future__ import annotations

import itertools
import logging
import math
from typing import Iterator, List, Optional, Tuple

import torch
from torch.utils.data import Sampler

_log = logging.getLogger(__name__)


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
    ) -> None:
        """Order `length` samples.

        Args:
            length: samples of the dataset.
            global_batch: samples of one optimizer step.
            seed: of the permutations.
            start: samples that an earlier run has consumed.
            epochs: how many epochs there are in all, `start` included; `None`: endless.
            shuffle: permute; otherwise in order.
        """
        if length < 1 or global_batch < 1:
            raise ValueError(f"{length} samples, global batch {global_batch}: each must be at least 1; give more data")
        self.length = length
        self.seed = seed
        self.start = start
        self.epochs = epochs
        self.shuffle = shuffle
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
        first, consumed = divmod(self.start, self.samples_per_epoch)
        for epoch in itertools.count(first) if self.epochs is None else range(first, self.epochs):
            yield from itertools.islice(self._epoch(epoch), consumed, self.samples_per_epoch)
            consumed = 0

    def _epoch(self, epoch: int) -> Iterator[Tuple[int, int]]:
        for number in range(epoch * self._passes, (epoch + 1) * self._passes):
            for index in self._order(number):
                yield number, index

    def _order(self, number: int) -> List[int]:
        if not self.shuffle:
            return list(range(self.length))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        order: List[int] = torch.randperm(self.length, generator=generator).tolist()
        return order
