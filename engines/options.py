"""The options of training: the step, its precision, its optimizer, and what only IPUs know."""

from __future__ import annotations

import dataclasses
from typing import Optional, Tuple

from options import LARGEST_SEED, OptionError, Options, option

OPTIMIZERS = ("Adam", "AdamW")
IPU_ENGINES = ("ipu", "ipu-sim")
ENGINES = ("auto", "host", *IPU_ENGINES)
DEVICE_BATCHES = ("batch_size", "auto")
SCHEDULES = ("multi_step", "constant", "ReduceLROnPlateau", "cosine")


@dataclasses.dataclass(frozen=True)
class TrainingOptions(Options):
    """The training step. A global batch is batch_size x gradient_accumulation x replication_factor samples."""

    engine: str = option(
        "auto",
        "what runs the step: host (one CPU or one GPU), ipu, ipu-sim (the IPU's program, simulated on a CPU), or auto: "
        "IPUs if there are any",
        choices=ENGINES,
    )
    device: str = option("auto", "device of the host engine: cpu, cuda, or auto", choices=("auto", "cpu", "cuda"))
    batch_size: int = option(1, "samples of one forward pass (the micro batch)", minimum=1)
    gradient_accumulation: int = option(1, "micro batches of one optimizer step", minimum=1, aliases=("ga_steps",))
    replication_factor: int = option(1, "copies of the model that share a global batch", minimum=1)
    device_iterations: int = option(1, "optimizer steps of one call of the engine", minimum=1)
    epochs: int = option(1, "passes through the dataset", minimum=1)
    max_steps: Optional[int] = option(None, "optimizer steps, in place of epochs", minimum=1)
    random_seed: int = option(
        42, "seed of weights, order and choices", minimum=0, maximum=LARGEST_SEED, aliases=("seed",)
    )
    optimizer: str = option("Adam", "Adam or AdamW", choices=OPTIMIZERS)
    learning_rate: float = option(3e-4, "the schedule's highest learning rate", minimum=0)
    lr_scheduler: str = option("ReduceLROnPlateau", ", ".join(SCHEDULES), choices=SCHEDULES)
    warmup_steps: Optional[int] = option(
        None,
        "steps of linear warm-up (none: 20 % of training for multi_step and constant, 5 % for cosine, else 0)",
        minimum=0,
    )
    weight_decay: float = option(0.0, "weight decay of everything with more than one dimension", minimum=0)
    adam_beta2: float = option(0.999, "decay of Adam's second moment", minimum=0, maximum=0.999999)
    clip_grad_norm: float = option(0.0, "largest norm of the gradient (0: any)", minimum=0)
    ema_decay: float = option(
        0.0,
        "decay of the moving average of the weights that validation and drawing use (0: none)",
        minimum=0,
        maximum=0.999999,
    )
    fp16: bool = option(False, "compute in half precision")
    bf16: bool = option(False, "compute in bfloat16, with weights and updates in float32")
    loss_scaling: float = option(
        1.0, "factor of the loss under fp16 (where the GPU engine's scaling starts)", minimum=0
    )
    enable_als: bool = option(False, "adapt the loss scaling to the gradients")
    device_batch: str = option(
        "batch_size",
        "samples of one forward pass of the host engine: a number that divides the global batch, batch_size, or auto "
        "(as many as the device's memory holds); the global batch stays what it is",
    )
    compile: bool = option(
        False, "compile the transformer's layers (host engine), meant for GPUs: a minute at the start"
    )
    checkpoint_activations: bool = option(
        False, "keep only what lies between layers for the backward pass, and compute the rest again (host engine)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_device_batch()
        if self.fp16 and self.bf16:
            raise OptionError("fp16=true and bf16=true exclude each other; switch one off")
        if not self.loss_scaling:
            raise OptionError("loss_scaling=0 takes every gradient away; give a number above 0, 1 for none")
        if self.max_steps and self.max_steps % self.device_iterations:
            raise OptionError(
                f"max_steps={self.max_steps} is not a multiple of device_iterations={self.device_iterations}, the "
                f"steps of one call; take {-(-self.max_steps // self.device_iterations) * self.device_iterations}"
            )

    def _check_device_batch(self) -> None:
        given = self.device_batch
        if given in DEVICE_BATCHES:
            return
        if not given.isdecimal() or not int(given):
            raise OptionError(
                f"device_batch={given} is neither a number nor one of {', '.join(DEVICE_BATCHES)}; give one"
            )
        if self.global_batch % int(given):
            raise OptionError(
                f"device_batch={given} does not divide the global batch of {self.global_batch} samples (batch_size x "
                "gradient_accumulation x replication_factor); take a number that does, or auto"
            )

    @property
    def samples_at_once(self) -> int:
        """What `device_batch` says, unless that is `auto`."""
        return self.batch_size if self.device_batch in DEVICE_BATCHES else int(self.device_batch)

    @property
    def micro_batches(self) -> int:
        """Micro batches of one optimizer step, over all replicas."""
        return self.gradient_accumulation * self.replication_factor

    @property
    def global_batch(self) -> int:
        """Samples of one optimizer step."""
        return self.batch_size * self.micro_batches


@dataclasses.dataclass(frozen=True)
class IpuOptions(Options):
    """Placement and numerics on IPUs. Other engines run the same entries and name those without effect on them."""

    ipus_per_replica: int = option(1, "IPUs of one pipeline", minimum=1)
    layers_per_ipu: Tuple[int, ...] = option((0, 0, 8, 8), "layers on each IPU of the pipeline", minimum=0)
    embedding_ipu_id: int = option(0, "IPU of the embeddings", minimum=0)
    cls_ipu_id: Optional[int] = option(None, "IPU of the output projection (none: the last layer's)", minimum=0)
    embedding_serialization_factor: int = option(1, "splits of text embedding and output projection", minimum=1)
    matmul_proportion: Tuple[float, ...] = option(
        (0.6,), "share of memory for matrix products: one value or one an IPU", minimum=0, maximum=1
    )
    fused_attention: bool = option(
        False, "attention as one operator of our own, which keeps nothing of the scores (docs/ipu.md)"
    )
    attention_chunks: Optional[int] = option(
        None,
        "parts of the queries that fused_attention computes one after the other; a divisor of the positions (none: the "
        "largest up to 4)",
        minimum=1,
    )
    fused_embedding: bool = option(False, "looking tokens up and adding positions as one operator of our own")
    stochastic_rounding: bool = option(False, "round half precision values at random")
    enable_half_partials: bool = option(False, "accumulate matrix products in half precision")
    enable_rts: bool = option(False, "shard the optimizer state over the replicas")
    optimizer_state_offchip: bool = option(False, "keep the optimizer state in the host's memory")
    enable_half_first_order_momentum: bool = option(False, "keep Adam's first moment in half precision")
    recomputation: bool = option(
        True, "keep only what lies between the layers for the backward pass, and compute the rest again"
    )
    async_dataloader: bool = option(True, "assemble batches in a process of their own")
    synthetic_data: bool = option(False, "random data made on the device")
    compile_only: bool = option(False, "compile and stop")
    executable_cache_dir: Optional[str] = option(None, "folder of compiled programs")
    profile_dir: Optional[str] = option(None, "folder of profiles")
    plan: bool = option(False, "say what the run holds and costs on each IPU, and leave")
    solve: bool = option(False, "with plan: propose a better layers_per_ipu")
    plan_check: bool = option(True, "refuse a run that the plan finds too large for its IPUs")
    machine: str = option("bow", "what the plan is made for: bow (Bow-2000) or gc200 (M2000)", choices=("bow", "gc200"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(self.matmul_proportion):
            raise OptionError(
                f"matmul_proportion={list(self.matmul_proportion)} leaves products no memory; give shares above 0"
            )
        if self.attention_chunks is not None and not self.fused_attention:
            raise OptionError(
                f"attention_chunks={self.attention_chunks} is for fused attention; add --fused-attention, or leave "
                "attention_chunks out"
            )
        if self.solve and not self.plan:
            raise OptionError("solve=true is a part of the plan; add --plan, or leave solve out")
