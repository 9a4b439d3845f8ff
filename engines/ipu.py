"""The IPU engine: the transformer as a pipeline of IPUs through PopTorch, or through the simulator of it.

What runs is a copy of the plain model, cut into blocks (`ipu/layers.py`). The plain model is what checkpoints hold: its
weights are fetched when somebody asks for them, and only then.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from engines.base import Batch, Inputs, as_inputs
from engines.ipu_loading import BatchLoader, as_loaded
from engines.launcher import Launcher
from engines.options import IpuOptions, TrainingOptions
from engines.placement import place, plan_options
from ipu import open_poptorch
from ipu.drawing import DeviceDalle, fill_rows
from ipu.fused import FusedOptions, chunks_of
from ipu.layers import IpuLogits, IpuModel, LayerOptions, ipu_state, plain_state
from ipu.options import RunOptions, inference_options, training_options
from models.image_tokenizer import TextToImage
from optim import EPSILON, FIRST_MOMENT_DECAY, parameter_groups
from options import OptionError, UserError

_log = logging.getLogger(__name__)
# PopART's names of Adam's state, and torch's
_STATE_NAMES = {"Accl1": "exp_avg", "Accl2": "exp_avg_sq", "Step": "step"}


class IpuEngine:
    """Training steps on IPUs; see `engines.base.Engine`.

    Args:
        model: a transformer with its image tokenizer.
        training, ipu: the options of the step.
        workers: processes that load samples.
        launcher: of the processes of this run.
        loads_codes: whether pictures come as their codes, so that IPU 0 need not make them.

    Raises:
        OptionError: IPUs cannot run these options, or this model.
    """

    def __init__(
        self,
        model: nn.Module,
        training: TrainingOptions,
        ipu: IpuOptions,
        workers: int,
        launcher: Launcher,
        loads_codes: bool = False,
    ) -> None:
        if not isinstance(model, TextToImage):
            raise OptionError(
                f"engine={training.engine} trains the transformer (train.py); train this model with --engine host"
            )
        _refuse_host_only(training, ipu)
        if launcher.instances > 1 and training.engine == "ipu-sim":
            raise OptionError(
                f"engine=ipu-sim does not exchange gradients among processes, and poprun started {launcher.instances}; "
                "start one with all replicas"
            )
        self.training, self.ipu, self.workers, self.launcher = training, ipu, workers, launcher
        self.is_main, self.compile_only = launcher.is_main, ipu.compile_only
        self.poptorch = open_poptorch(training.engine)
        self.model = model
        self.placement = place(model.dalle.options, ipu, training, tokenizes_images=not loads_codes)
        self.device_model = IpuModel(model, self._layer_options(), self.poptorch).train()
        self.optimizer = self._make_optimizer()
        self._run = self._run_options()
        options = training_options(self.poptorch, self._run)
        self.executor = self.poptorch.trainingModel(self.device_model, options, self.optimizer)
        self._logits_model = IpuLogits(self.device_model)
        self._inference: Dict[str, Any] = {}
        self._rate: Optional[float] = None
        self._loaded_random: Optional[List[int]] = None
        self._fetched = True  # whether the plain model has the device's weights

    def describe(self) -> str:
        """See `Engine.describe`: the placement."""
        return self.placement.table()

    def compile(self, example: Inputs) -> str:
        """See `Engine.compile`; what the IPUs hold is the plan's to say."""
        example = self._to_device_types(as_inputs(example))
        repeats = self.training.gradient_accumulation * self._local_replicas * self.training.device_iterations
        self.executor.compile(*(tensor.repeat(repeats, *[1] * (tensor.dim() - 1)) for tensor in example))
        self._load_random_state()
        return f"{len(self.placement.stages)} stages, {self.training.replication_factor} replicas"

    def loader(self, dataset: Dataset[Any], start: int, epochs: Optional[int]) -> Iterator[Batch]:
        """See `Engine.loader`; each batch is one whole input of a call."""
        asynchronous = self.ipu.async_dataloader
        loader = BatchLoader(
            self.poptorch, self.executor.options, self.training, asynchronous, self.workers, self.launcher
        )
        return loader.batches(dataset, start, epochs)

    def validation_loader(self, dataset: Dataset[Any]) -> Iterable[Inputs]:
        """See `Engine.validation_loader`; of several processes each goes through all."""
        return torch.utils.data.DataLoader(
            dataset,
            batch_size=self._inference_batch,
            num_workers=self.workers,
            # its own generator: else it takes from the host's random numbers
            generator=torch.Generator().manual_seed(self.training.random_seed),
        )

    def step(self, batch: Batch) -> Tensor:
        """See `Engine.step`."""
        inputs = next(iter(batch))
        scalars = self.executor(*self._to_device_types(inputs))
        self._fetched = False
        # a replica's sums over its micro batches, in float32
        micro_batches = self.training.gradient_accumulation * self.training.device_iterations
        means = torch.stack([scalar.float().mean() / micro_batches for scalar in scalars])
        return self.launcher.mean(means)

    def evaluate(self, inputs: Inputs) -> Tensor:
        """See `Engine.evaluate`; sample by sample, so that a batch of any length is right."""
        executor = self._inference_executor("losses", self.device_model)
        inputs = self._to_device_types(as_inputs(inputs))
        sums, count = torch.zeros(3), len(inputs[0])
        for start in range(0, count, self._inference_batch):
            rows = [tensor[start : start + self._inference_batch] for tensor in inputs]
            scalars = executor(*(fill_rows(tensor, self._inference_batch) for tensor in rows))
            sums += torch.stack([scalar.float().reshape(-1)[: len(rows[0])].sum() for scalar in scalars])
        return sums / count

    @contextlib.contextmanager
    def inference(self) -> Iterator[nn.Module]:
        """See `Engine.inference`: a model whose transformer runs on the IPUs, pass after pass, in place of training."""
        self._fetch_weights()
        attached = self.executor.isCompiled() and self.executor.isAttachedToDevice()
        if attached:
            self.executor.detachFromDevice()
        self.device_model.eval()
        self.model.eval()
        try:
            with torch.no_grad():
                yield _with_dalle(self.model, DeviceDalle(self.model.dalle, self._logits, self._inference_batch))
        finally:
            self.device_model.train()
            for executor in self._inference.values():
                if executor.isCompiled() and executor.isAttachedToDevice():
                    executor.detachFromDevice()
            if attached:
                self.executor.attachToDevice()

    def set_learning_rate(self, rate: float) -> None:
        """See `Engine.set_learning_rate`; only `setOptimizer` brings a rate to the device."""
        if rate == self._rate:
            return
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.executor.setOptimizer(self.optimizer)
        self._rate = rate

    def state_dict(self) -> Dict[str, Any]:
        """See `Engine.state_dict`."""
        self._fetch_weights()
        random: Dict[str, Any] = {"cpu": torch.get_rng_state()}
        if self.executor.isCompiled():
            random["ipu"] = list(self.executor.rng_state)
        return {
            "weights": self.model.state_dict(),
            "optimizer": self._optimizer_state(),
            "average": None,
            "scaler": self._scaler_state(),
            "random": random,
        }

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """See `Engine.load_state_dict`."""
        self.model.load_state_dict(state["weights"])
        shapes = {name: tensor.shape for name, tensor in self.device_model.state_dict().items()}
        self.executor.load_state_dict(ipu_state(self.model.state_dict(), shapes))
        self._fetched = True
        if state["optimizer"] is None:  # weights alone, from another program
            return
        self._load_optimizer_state(state["optimizer"], state["scaler"])
        torch.set_rng_state(state["random"]["cpu"])
        self._loaded_random = state["random"].get("ipu")
        if self.executor.isCompiled():
            self._load_random_state()

    def close(self) -> None:
        """See `Engine.close`."""
        for executor in (*self._inference.values(), self.executor):
            executor.destroy()

    # --------------------------------------------------------------------------------------------------------- assembly

    def _layer_options(self) -> LayerOptions:
        layers = [(part.name, part.first_layer) for part in self.placement.parts if part.layers]
        return LayerOptions(
            embedding="embedding",
            image_tokenizer="image_tokenizer",
            layers=layers,
            head="head",
            serialization_factor=self.ipu.embedding_serialization_factor,
            recomputation=self.ipu.recomputation,
            fp16=self.training.fp16,
            fused=self._fused_options(),
        )

    def _fused_options(self) -> FusedOptions:
        ipu, positions, parts = self.ipu, self.model.dalle.layout.sequence_len, self.placement.parts
        chunks = chunks_of(positions, ipu.attention_chunks) if ipu.fused_attention else None
        shares = {part.ipu: plan_options(self.training, ipu).numbers(part.ipu).share for part in parts}
        embedding = self.placement.part("embedding")
        assert embedding is not None, "every model has one"
        return FusedOptions(
            attention_chunks=chunks,
            embedding=ipu.fused_embedding,
            layer_memory=[shares[part.ipu] for part in parts for _ in range(part.layers)],
            embedding_memory=shares[embedding.ipu],
            partials_type="half" if ipu.enable_half_partials else "float",
        )

    def _run_options(self) -> RunOptions:
        training, ipu = self.training, self.ipu
        return RunOptions(
            stages=[(parts[0].ipu, [part.name for part in parts]) for parts in self.placement.stages],
            replication_factor=self._local_replicas,
            gradient_accumulation=training.gradient_accumulation,
            device_iterations=training.device_iterations,
            random_seed=training.random_seed,
            ipus_per_replica=ipu.ipus_per_replica,
            matmul_proportion=ipu.matmul_proportion,
            stochastic_rounding=ipu.stochastic_rounding,
            enable_half_partials=ipu.enable_half_partials,
            enable_rts=ipu.enable_rts,
            optimizer_state_offchip=ipu.optimizer_state_offchip,
            enable_als=training.enable_als,
            recomputation=ipu.recomputation,
            synthetic_data=ipu.synthetic_data,
            compile_only=ipu.compile_only,
            executable_cache_dir=ipu.executable_cache_dir,
            profile_dir=ipu.profile_dir,
            by_poprun=self.launcher.replicas is not None and training.engine == "ipu",
        )

    def _make_optimizer(self) -> Any:
        training, half = self.training, torch.float16
        moments = half if self.ipu.enable_half_first_order_momentum else torch.float32
        kind = getattr(self.poptorch.optim, training.optimizer)
        optimizer = kind(
            parameter_groups(self.device_model, training),
            lr=training.learning_rate,
            betas=(FIRST_MOMENT_DECAY, training.adam_beta2),
            eps=EPSILON,
            loss_scaling=training.loss_scaling,
            accum_type=half if training.fp16 else torch.float32,
            first_order_momentum_accum_type=moments,
            second_order_momentum_accum_type=torch.float32,
            **({"max_grad_norm": training.clip_grad_norm} if training.clip_grad_norm else {}),
        )
        optimizer.variable_attrs.markAsConstant("weight_decay")
        return optimizer

    @property
    def _local_replicas(self) -> int:
        return self.training.replication_factor // self.launcher.instances

    @property
    def _inference_batch(self) -> int:
        """Samples of one call for inference: one for each stage of each replica."""
        return len(self.placement.stages) * self._local_replicas

    def _to_device_types(self, inputs: Inputs) -> Inputs:
        return tuple(as_loaded(tensor, self.training.fp16) for tensor in inputs)

    # -------------------------------------------------------------------------------------------------------- inference

    def _logits(self, text: Tensor, codes: Tensor) -> Tuple[Tensor, Tensor]:
        return self._inference_executor("logits", self._logits_model)(text, codes)

    def _inference_executor(self, name: str, model: nn.Module) -> Any:
        """The inference program of this name; it alone is on the device then."""
        for other, executor in self._inference.items():
            if other != name and executor.isCompiled() and executor.isAttachedToDevice():
                executor.detachFromDevice()
        if name not in self._inference:
            with torch.random.fork_rng([]):  # PopTorch's randomSeed seeds the host's, too
                options = inference_options(self.poptorch, self._run)
            self._inference[name] = self.poptorch.inferenceModel(model, options)
        return self._inference[name]

    # ------------------------------------------------------------------------------------------------------------ state

    def _fetch_weights(self) -> None:
        """Bring the device's weights into the plain model, if they have changed."""
        if self._fetched:
            return
        state = plain_state(self.device_model.state_dict())
        learned = {name: tensor for name, tensor in state.items() if name.startswith("dalle.")}
        self.model.load_state_dict(learned, strict=False)  # the image tokenizer keeps its own precision
        self._fetched = True

    def _load_random_state(self) -> None:
        if self._loaded_random is None or self.compile_only:
            return
        if len(self._loaded_random) == len(self.executor.rng_state):
            self.executor.rng_state = self._loaded_random
        else:  # which PopART refuses
            _log.info("the checkpoint's random numbers are those of other IPUs or replicas; drawing new ones")

    def _optimizer_state(self) -> Dict[str, Dict[str, Tensor]]:
        state = self.optimizer.state_dict().get("ipu_state") or {}
        kinds: Dict[str, Dict[str, Tensor]] = {}
        for name, tensor in state.items():
            kind, _, parameter = name.partition("___")
            if kind in _STATE_NAMES:
                kinds.setdefault(kind, {})[parameter] = tensor.float() if kind != "Step" else tensor.float().reshape(())
        named: Dict[str, Dict[str, Tensor]] = {}
        for kind, tensors in kinds.items():
            ordered = {name: tensors[name] for name, _ in self.device_model.named_parameters() if name in tensors}
            for name, tensor in plain_state(ordered).items():
                named.setdefault(name, {})[_STATE_NAMES[kind]] = tensor
        return named

    def _load_optimizer_state(self, named: Dict[str, Dict[str, Tensor]], scaler: Optional[Dict[str, Any]]) -> None:
        shapes = {name: p.shape for name, p in self.device_model.named_parameters() if p.requires_grad}
        known = set(plain_state({name: torch.empty(0) for name in shapes}))
        if not set(named) <= known:
            strange = sorted(set(named) - known)[0]
            raise UserError(
                f"the optimizer's state and the model differ in {strange!r}; resume with the run's own options"
            )
        state = {}
        for popart, ours in _STATE_NAMES.items():
            plain = {name: values[ours] for name, values in named.items() if ours in values}
            for name, tensor in ipu_state(plain, shapes).items():
                state[f"{popart}___{name}"] = self._as_on_device(popart, tensor)
        if scaler and "loss_scale_update_factor" in scaler:
            state["lossScaleUpdateFactor"] = torch.tensor(scaler["loss_scale_update_factor"])
        loaded = {**self.optimizer.state_dict(), "ipu_state": state, "ipu_param": {}}
        self.optimizer.load_state_dict(loaded)

    def _as_on_device(self, popart: str, tensor: Tensor) -> Tensor:
        """A tensor of Adam's state as it lies there: PopTorch copies bytes, and looks at neither type nor strides."""
        half = popart == "Accl1" and self.ipu.enable_half_first_order_momentum
        return tensor.to(torch.float16 if half else torch.float32).contiguous()

    def _scaler_state(self) -> Optional[Dict[str, Any]]:
        """What automatic loss scaling has come to."""
        factor = (self.optimizer.state_dict().get("ipu_state") or {}).get("lossScaleUpdateFactor")
        return None if factor is None else {"loss_scale_update_factor": float(factor)}


def _with_dalle(model: TextToImage, dalle: nn.Module) -> TextToImage:
    """The model with another transformer in its place, sharing all else."""
    other = TextToImage.__new__(TextToImage)
    nn.Module.__init__(other)
    other.image_tokenizer, other.dalle = model.image_tokenizer, dalle  # type: ignore[assignment]
    return other.eval()


def _refuse_host_only(training: TrainingOptions, ipu: IpuOptions) -> None:
    """Refuse what IPUs do not have.

    Raises:
        OptionError: it is asked for.
    """
    if training.bf16:
        raise OptionError(f"bf16=true, and IPUs have no bfloat16 (engine={training.engine}); use --fp16")
    if training.ema_decay:
        raise OptionError(
            f"ema_decay={training.ema_decay} would bring all weights to the host at every step, so engine="
            f"{training.engine} does not keep an average; leave ema_decay out"
        )
    for name in ("device_batch", "compile", "checkpoint_activations"):
        given, otherwise = getattr(training, name), TrainingOptions.__dataclass_fields__[name].default
        if given != otherwise:
            raise OptionError(f"{name}={given} is for the host engine, and engine={training.engine}; leave {name} out")
    if training.device == "cuda":
        raise OptionError(f"device=cuda is for the host engine, and engine={training.engine}; leave device out")
    if training.enable_als and not training.fp16:
        raise OptionError(
            f"enable_als=true looks at gradients in half precision, and fp16 is off (engine={training.engine}); leave "
            "enable_als out, or use --fp16"
        )
    if ipu.compile_only and training.engine == "ipu-sim" and ipu.executable_cache_dir is None:
        _log.info("compile_only=true without executable_cache_dir: the program is not kept")
