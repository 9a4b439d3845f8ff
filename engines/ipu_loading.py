"""Batches for IPUs: a call takes the samples of all its micro batches at once, through PopTorch's loader."""

from __future__ import annotations

from typing import Any, Dict, Iterator, Optional

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from engines.base import Batch, Inputs, as_inputs
from engines.launcher import Launcher
from engines.options import TrainingOptions
from engines.sampler import EpochSampler, Streamed, training_sampler
from ipu import PopTorch
from options import OptionError

_REBATCHED_SHARE = 4  # a loader process prepares this part of a replica's micro batches at once, as Graphcore's did


class BatchLoader:
    """Loads the training batches of this process.

    Args:
        poptorch: whose loader is used.
        options: PopTorch's, of the training model; they say how many samples a call takes.
        training: order and size of the batches.
        asynchronous: assemble them in a process of their own.
        workers: processes that load samples.
        launcher: of the processes of this run, which share every global batch.
    """

    def __init__(
        self,
        poptorch: PopTorch,
        options: Any,
        training: TrainingOptions,
        asynchronous: bool,
        workers: int,
        launcher: Launcher,
    ) -> None:
        self.poptorch, self.options, self.training = poptorch, options, training
        self.asynchronous, self.workers, self.launcher = asynchronous, workers, launcher

    def batches(self, dataset: Dataset[Any], start: int, epochs: Optional[int]) -> Iterator[Batch]:
        """See `Engine.loader`.

        Raises:
            OptionError: the last call would lack samples, or the dataset cannot be shared out among processes.
        """
        training = self.training
        sampler = training_sampler(dataset, training.global_batch, training.random_seed, start, epochs)
        self._check_calls(sampler.updates or 0)
        loader = self._loader(dataset, sampler)
        try:
            with torch.random.fork_rng([]):  # beginning takes a number, which a resumed run would take once more
                iterator = iter(loader)
            for _, batch in zip(sampler.calls(training.device_iterations), iterator):
                yield [as_inputs(batch)]
        finally:
            if hasattr(loader, "terminate"):
                loader.terminate()

    def _check_calls(self, updates: int) -> None:
        iterations = self.training.device_iterations
        if updates % iterations and not self.training.max_steps:
            raise OptionError(
                f"epochs={self.training.epochs} leave {updates} optimizer steps, and a call takes device_iterations="
                f"{iterations} of them; set --max-steps {updates // iterations * iterations}, or device_iterations to 1"
            )

    def _loader(self, dataset: Dataset[Any], sampler: EpochSampler) -> Any:
        if not isinstance(dataset, Streamed):
            share = self.training.global_batch // self.launcher.instances
            own = ShareSampler(sampler, self.launcher.instance, self.launcher.instances, share)
            return self._poptorch_loader(AsLoaded(dataset, self.training.fp16), self.workers, sampler=own)
        if self.launcher.instances > 1:
            raise OptionError(
                "shards that are not local cannot be shared out among several processes; copy them, or start one"
            )
        return self._poptorch_loader(dataset.stream(sampler.spans, self.workers), min(self.workers, 1))

    def _poptorch_loader(self, dataset: Any, workers: int, **options: Any) -> Any:
        a_call = self.training.batch_size * self.training.micro_batches * self.training.device_iterations
        if self.asynchronous and workers and a_call > self.launcher.instances:  # PopTorch puts together 2 and more
            rebatched = max(self.training.gradient_accumulation // _REBATCHED_SHARE, 1) * self.training.batch_size
            settings: Dict[str, Any] = {"early_preload": True, "load_indefinitely": False}
            options.update(
                mode=self.poptorch.DataLoaderMode.AsyncRebatched,
                rebatched_worker_size=rebatched,
                async_options=settings,
            )
        return self.poptorch.DataLoader(
            self.options,
            dataset,
            batch_size=self.training.batch_size,
            num_workers=workers,
            drop_last=True,
            auto_distributed_partitioning=False,
            **options,
        )


class ShareSampler(Sampler):  # type: ignore[type-arg]
    """One process' share of each global batch: a part of it without gaps.

    Args:
        sampler: of the global batches.
        instance, instances: this process' number, of how many.
        share: samples of a global batch that each takes.
    """

    def __init__(self, sampler: EpochSampler, instance: int, instances: int, share: int) -> None:
        self.sampler, self.instance, self.instances, self.share = sampler, instance, instances, share

    def __len__(self) -> int:
        """Samples still to come."""
        return len(self.sampler) // self.instances

    def __iter__(self) -> Iterator[Any]:
        """The share of each global batch, in order."""
        for number, key in enumerate(self.sampler):
            if number // self.share % self.instances == self.instance:
                yield key


class AsLoaded(Dataset):  # type: ignore[type-arg]
    """Samples in the types that travel to the device, made by the processes that load them."""

    def __init__(self, dataset: Dataset[Any], fp16: bool) -> None:
        self.dataset, self.fp16 = dataset, fp16

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: Any) -> Inputs:
        return tuple(as_loaded(tensor, self.fp16) for tensor in as_inputs(self.dataset[key]))


def as_loaded(tensor: Tensor, fp16: bool) -> Tensor:
    """Whole numbers of 64 bits travel as 32, and pictures as half precision where that is computed in."""
    if tensor.dtype == torch.int64:
        return tensor.int()
    return tensor.half() if fp16 and tensor.is_floating_point() else tensor
