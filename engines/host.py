"""The host engine: one CPU or one GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
from typing import Any, Callable, ContextManager, Dict, Iterable, Iterator, List, Optional

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import native
from engines.base import Batch, Inputs, as_inputs
from engines.bfloat16 import Bfloat16Copies
from engines.kernels import use_kernels
from engines.layers import checkpoint_layers, compile_layers
from engines.loading import MicroBatches
from engines.memory import estimate_memory, fitting_batch, measure_activations
from engines.onednn import OneDnnLinear, can_be_compiled, is_faster, lay_out
from engines.options import IpuOptions, TrainingOptions
from engines.sampler import Streamed, training_sampler
from engines.updates import OnePassUpdate
from large_pages import use_large_pages
from optim import (
    WeightAverage,
    clip_gradients,
    in_memory_order,
    load_named_optimizer_state,
    make_optimizer,
    named_optimizer_state,
    trainable_parameters,
)
from options import OptionError
from processor import cpu_flags, has_bf16_instructions

_log = logging.getLogger(__name__)
_ONLY_ON_IPU = ("synthetic_data", "compile_only", "executable_cache_dir", "profile_dir")


class HostEngine:
    """Training steps on one CPU or one GPU; see `engines.base.Engine`.

    Args:
        model: its forward returns a tuple of scalars, the loss to minimise first.
        training: the options of the step.
        ipu: what asks for an IPU is refused; what only places or rounds on one is named as without effect.
        workers: processes that load samples.
    """

    is_main = True
    compile_only = False

    def __init__(self, model: nn.Module, training: TrainingOptions, ipu: IpuOptions, workers: int) -> None:
        _refuse_ipu_only(ipu)
        self.options, self.workers = training, workers
        self.device = _choose_device(training.device)
        self.dtype = _choose_dtype(training, self.device)
        # convolutions are several times faster when a pixel's channels lie side by side
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.device.type == "cpu":
            use_large_pages()
        single = self.device.type == "cpu" and self.dtype == torch.float32
        uses_onednn = single and is_faster(cpu_flags()) and (can_be_compiled() or not training.compile)
        if uses_onednn:
            lay_out(self.model)
        self._products: Callable[[], ContextManager[Any]] = OneDnnLinear if uses_onednn else contextlib.nullcontext
        if training.checkpoint_activations:
            checkpoint_layers(self.model, self._products)
        layers_have_kernels = use_kernels(
            self.model, self.device, self.dtype, training.compile, training.checkpoint_activations
        )
        if training.compile:
            compile_layers(self.model)
        is_native = native.is_for(*(parameter for _, parameter in trainable_parameters(self.model)))
        takes_copies = is_native and layers_have_kernels and self.dtype == torch.bfloat16
        self._copies = Bfloat16Copies(self.model) if takes_copies else None
        # decided when the memory that a sample takes is known
        self.device_batch = None if training.device_batch == "auto" else training.samples_at_once
        self._validation: Optional[MicroBatches] = None
        self.optimizer = make_optimizer(self.model, training)
        self._one_pass = OnePassUpdate(self.optimizer, self._copies) if is_native else None
        self.average = WeightAverage(self.model, training.ema_decay) if training.ema_decay else None
        self.scaler = torch.cuda.amp.GradScaler(
            init_scale=training.loss_scaling, enabled=self.dtype == torch.float16,
            # without automatic loss scaling only an overflow changes the factor
            growth_interval=2000 if training.enable_als else 2**31 - 1,
        ) if self.device.type == "cuda" else None  # fmt: skip

    def describe(self) -> str:
        """See `Engine.describe`."""
        return ""

    def compile(self, example: Inputs) -> str:
        """See `Engine.compile`; runs one forward pass, which leaves no trace."""
        self.model.eval()
        example = self._to_device(example)
        with self._autocast():
            activations = measure_activations(self.model, example)
        samples = len(example[0])
        if self.device_batch is None:
            self.device_batch = fitting_batch(self.model, activations / samples, self.options.global_batch, self.device)
            _log.info("device_batch=auto: %d samples at once", self.device_batch)
        activations = activations * self.device_batch // samples
        return estimate_memory(self.model, activations, averaged=self.average is not None)

    def loader(self, dataset: Dataset[Any], start: int, epochs: Optional[int]) -> Iterator[Batch]:
        """See `Engine.loader`; micro batches come one by one, so that a global batch never lies in memory whole."""
        options = self.options
        sampler = training_sampler(dataset, options.global_batch, options.random_seed, start, epochs)
        if isinstance(dataset, Streamed):
            loaded = self._micro_batches(dataset.stream(sampler.spans, self.workers), min(self.workers, 1))
        else:
            loaded = self._micro_batches(dataset, self.workers, sampler)
        micro_batches = iter(loaded)
        for _ in sampler.calls(options.device_iterations):
            yield itertools.islice(micro_batches, self._passes * options.device_iterations)

    def validation_loader(self, dataset: Dataset[Any]) -> Iterable[Inputs]:
        """See `Engine.validation_loader`."""
        if self._validation is None or self._validation.dataset is not dataset:
            self._validation = self._micro_batches(dataset, self.workers)
        return self._validation

    def step(self, batch: Batch) -> Tensor:
        """See `Engine.step`."""
        self.model.train()
        micro_batches = iter(batch)
        updates: List[Tensor] = []
        while True:
            update = list(itertools.islice(micro_batches, 1))
            if not update:
                return torch.stack(updates).mean(dim=0)
            rest = itertools.islice(micro_batches, self._passes - 1)
            updates.append(self._update(itertools.chain(update, rest)))

    def evaluate(self, inputs: Inputs) -> Tensor:
        """See `Engine.evaluate`."""
        self.model.eval()
        with torch.no_grad(), self._autocast():
            return torch.stack(self.model(*self._to_device(inputs))).float()

    @contextlib.contextmanager
    def inference(self) -> Iterator[nn.Module]:
        """See `Engine.inference`."""
        self.model.eval()
        if self.average:
            self.average.swap(self.model)
        try:
            with torch.no_grad(), self._autocast():
                yield self.model
        finally:
            if self.average:
                self.average.swap(self.model)

    def set_learning_rate(self, rate: float) -> None:
        """See `Engine.set_learning_rate`."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def state_dict(self) -> Dict[str, Any]:
        """See `Engine.state_dict`."""
        random = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state()
        return {
            "weights": self.model.state_dict(),
            "optimizer": named_optimizer_state(self.optimizer, self.model),
            "average": self.average.state_dict() if self.average else None,
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "random": random,
        }

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """See `Engine.load_state_dict`."""
        self.model.load_state_dict(state["weights"])
        if state["optimizer"] is None:  # weights alone, from another program
            self.average = WeightAverage(self.model, self.options.ema_decay) if self.average else None
            return
        load_named_optimizer_state(self.optimizer, self.model, state["optimizer"])
        if self.average and state["average"]:
            self.average.load_state_dict(state["average"])
        if self.scaler and "scale" in (state["scaler"] or {}):  # an IPU's is another kind
            self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"]["cpu"])
        if self.device.type == "cuda" and "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"])

    def close(self) -> None:
        """See `Engine.close`; lets the processes go that load samples for validation."""
        self._validation = None

    def _update(self, micro_batches: Iterable[Inputs]) -> Tensor:
        """One optimizer step over the micro batches of a global batch; the mean scalars, (n,)."""
        total: Optional[Tensor] = None
        for inputs in micro_batches:
            with self._autocast(), self._products():
                scalars = self.model(*self._to_device(inputs))
            self._backward(scalars[0] / self._passes)
            if self._copies and self._passes > 1:
                self._copies.hand_over_gradients()
            summed = torch.stack([scalar.detach().float() for scalar in scalars])
            total = summed if total is None else total + summed
        assert total is not None, "an update needs at least one micro batch"
        self._apply_gradients()
        if self.average:
            self.average.update(self.model)
        return total / self._passes

    def _backward(self, loss: Tensor) -> None:
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def _apply_gradients(self) -> None:
        if self._one_pass:
            self._one_pass.step(self.options.clip_grad_norm)
            return
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        clip_gradients((p for _, p in trainable_parameters(self.model)), self.options.clip_grad_norm)
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            with in_memory_order(self.optimizer):
                self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def _passes(self) -> int:
        """Forward passes of one optimizer step."""
        assert self.device_batch is not None, "auto is decided by compile"
        return self.options.global_batch // self.device_batch

    def _autocast(self) -> torch.autocast:
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype if enabled else torch.bfloat16, enabled=enabled)

    def _to_device(self, inputs: Inputs) -> Inputs:
        return tuple(tensor.to(self.device, non_blocking=True) for tensor in as_inputs(inputs))

    def _micro_batches(
        self, dataset: Dataset[Any], workers: int, sampler: Optional[Iterable[Any]] = None
    ) -> MicroBatches:
        samples = self.device_batch or self.options.batch_size
        return MicroBatches(dataset, samples, workers, self.device, self.options.random_seed, sampler)


def _choose_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise OptionError("device=cuda, and torch sees no GPU here; use --device cpu, or install torch for CUDA")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def _choose_dtype(training: TrainingOptions, device: torch.device) -> torch.dtype:
    """The type that products are computed in: on a CPU without instructions for the one asked for, float32."""
    if device.type == "cuda":
        return torch.float16 if training.fp16 else torch.bfloat16 if training.bf16 else torch.float32
    if training.bf16 and has_bf16_instructions():
        return torch.bfloat16
    if training.fp16 or training.bf16:
        asked = "fp16" if training.fp16 else "bf16"
        _log.warning("%s=true: this CPU has no fast instructions for it; computing in float32", asked)
    return torch.float32


def _refuse_ipu_only(ipu: IpuOptions) -> None:
    changed = [f.name for f in dataclasses.fields(ipu) if getattr(ipu, f.name) != f.default]
    for name in _ONLY_ON_IPU:
        if getattr(ipu, name):
            raise OptionError(f"{name}={getattr(ipu, name)} is for IPUs, and engine is host; leave {name} out")
    if changed:
        _log.info("for IPUs only, without effect on the host engine: %s", ", ".join(changed))
