"""Which IPU has which layer, and the stages that follow from it."""

from __future__ import annotations

import dataclasses
from typing import List, Optional, Sequence, Tuple

from ipu.planning.arithmetic import Numbers
from ipu.planning.workload import EMBEDDING, HEAD, LAYER, TOKENIZER, Layer, Workload
from options import OptionError


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """What a plan needs of the options of training and of IPUs; names and meanings are theirs.

    `instances` is the number of processes that PopRun starts, each with a share of the data of its own.
    """

    batch_size: int = 1
    gradient_accumulation: int = 1
    replication_factor: int = 1
    device_iterations: int = 1
    ipus_per_replica: int = 1
    layers_per_ipu: Tuple[int, ...] = (1,)
    embedding_ipu_id: int = 0
    cls_ipu_id: Optional[int] = None
    embedding_serialization_factor: int = 1
    matmul_proportion: Tuple[float, ...] = (0.6,)
    enable_half_partials: bool = False
    enable_rts: bool = False
    optimizer_state_offchip: bool = False
    recomputation: bool = True
    enable_half_first_order_momentum: bool = False
    fp16: bool = False
    instances: int = 1

    @property
    def global_batch(self) -> int:
        """Samples of one optimizer step."""
        return self.batch_size * self.gradient_accumulation * self.replication_factor

    @property
    def ipus(self) -> int:
        """IPUs of all replicas."""
        return self.ipus_per_replica * self.replication_factor

    def numbers(self, ipu: int) -> Numbers:
        """How numbers are held on an IPU."""
        share = self.matmul_proportion[ipu if len(self.matmul_proportion) > 1 else 0]
        return Numbers(self.fp16, self.enable_half_partials, share)


@dataclasses.dataclass(frozen=True)
class Stage:
    """Consecutive layers on one IPU."""

    ipu: int
    layers: Tuple[Layer, ...]


def place(workload: Workload, options: PlanOptions) -> Tuple[Stage, ...]:
    """The stages of a workload, in order.

    Raises:
        OptionError: see `homes`; or there are fewer micro batches in a step than the pipeline has stages.
    """
    stages: List[Stage] = []
    for layer, ipu in zip(workload.layers, homes([layer.role for layer in workload.layers], options)):
        before = stages.pop().layers if stages and stages[-1].ipu == ipu else ()
        stages.append(Stage(ipu, (*before, layer)))
    check_depth(len(stages), options.gradient_accumulation)
    return tuple(stages)


def homes(roles: Sequence[str], options: PlanOptions) -> List[int]:
    """The IPU of each layer of a model, in order: the rule that `layers_per_ipu` and its companions stand for.

    Raises:
        OptionError: the options do not place every layer on an IPU that there is.
    """
    _check(sum(role == LAYER for role in roles), options)
    of_layers = iter([ipu for ipu, layers in enumerate(options.layers_per_ipu) for _ in range(layers)])
    found = []
    ipu = 0
    for role in roles:
        if role == TOKENIZER:
            ipu = 0
        elif role == EMBEDDING:
            ipu = options.embedding_ipu_id
        elif role == HEAD:
            ipu = ipu if options.cls_ipu_id is None else options.cls_ipu_id
        else:
            ipu = next(of_layers)
        found.append(ipu)
    return found


def check_depth(stages: int, gradient_accumulation: int) -> None:
    """Refuse a pipeline that is never full.

    Raises:
        OptionError: a step has fewer micro batches than there are stages, forward and back.
    """
    needed = 2 * stages - 1
    if gradient_accumulation < needed:
        raise OptionError(
            f"gradient_accumulation={gradient_accumulation} cannot fill a pipeline of {stages} stages forward and "
            f"{needed - stages} backward; give {needed} or more"
        )


def _check(layers: int, options: PlanOptions) -> None:
    placed = list(options.layers_per_ipu)
    if sum(placed) != layers:
        raise OptionError(
            f"layers_per_ipu={placed} places {sum(placed)} layers, num_hidden_layers is {layers}; make the two agree"
        )
    if len(placed) != options.ipus_per_replica:
        raise OptionError(
            f"layers_per_ipu={placed} names {len(placed)} IPUs, ipus_per_replica is {options.ipus_per_replica}; make "
            "the two agree"
        )
    if len(options.matmul_proportion) not in (1, options.ipus_per_replica):
        raise OptionError(
            f"matmul_proportion={list(options.matmul_proportion)} has {len(options.matmul_proportion)} values; give "
            f"one, or one for each of the {options.ipus_per_replica} IPUs"
        )
    for name, ipu in (("embedding_ipu_id", options.embedding_ipu_id), ("cls_ipu_id", options.cls_ipu_id or 0)):
        if ipu >= options.ipus_per_replica:
            raise OptionError(
                f"{name}={ipu}, and the pipeline has the IPUs 0 to {options.ipus_per_replica - 1} "
                f"(ipus_per_replica={options.ipus_per_replica}); take one of them"
            )
