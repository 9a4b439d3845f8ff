"""What every IPU holds while it trains, in bytes over all its tiles.

An estimate of what PopART and Poplar allocate: exact for what is counted (weights, optimizer state, accumulators,
stashes), an assumption for what only the compiler knows (code, workspace), and always as if tiles were filled evenly.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import FrozenSet, Sequence, Tuple

from ipu.machine import Ipu
from ipu.placement import PlanOptions, Stage
from ipu.planning.arithmetic import Cost
from ipu.planning.costs import StageCost, optimizer_bytes, parameters_of
from ipu.planning.schedule import stashes
from ipu.planning.workload import EMBEDDING, HEAD, FusedAttention, Layer, Operation, Product, Workload

CODE_OF_TILE = 24 * 1024  # bytes of the runtime, the optimizer and the exchange between IPUs
CODE_OF_PROGRAM = 512  # bytes of a tile for one program: vertices, their state, exchange code. Equal ones share it
BUFFERED = 2  # micro batches of input: one in work, one coming
NAMES = ("weights", "optimizer", "gradients", "stashed", "layer", "logits", "products", "input", "code")


@dataclasses.dataclass(frozen=True)
class IpuMemory:
    """Bytes on one IPU.

    Attributes:
        weights: of all layers, the image tokenizer's encoder among them.
        optimizer: both moments, or this replica's share of them.
        gradients: accumulated over micro batches.
        stashed: inputs of layers, kept for their backward pass while other micro batches are under way; without
            recomputation, their activations as well.
        layer: the activations of one layer and their gradients, or what the image tokenizer works on.
        logits: the same of embeddings and logits; shares its place with `layer`.
        products: workspace of the largest matrix product.
        input: what has come from the host.
        code: programs.
    """

    weights: float
    optimizer: float
    gradients: float
    stashed: float
    layer: float
    logits: float
    products: float
    input: float
    code: float

    @property
    def total(self) -> float:
        """Bytes at the fullest moment."""
        return sum(dataclasses.astuple(self)) - min(self.layer, self.logits)


def memory_of(
    workload: Workload, stages: Sequence[Stage], costs: Sequence[StageCost], options: PlanOptions, ipu: Ipu
) -> Tuple[IpuMemory, ...]:
    """What every IPU of a replica holds."""
    return tuple(
        _memory_of_one(index, workload, stages, costs, options, ipu) for index in range(options.ipus_per_replica)
    )


def _memory_of_one(
    index: int,
    workload: Workload,
    stages: Sequence[Stage],
    costs: Sequence[StageCost],
    options: PlanOptions,
    ipu: Ipu,
) -> IpuMemory:
    size, learning = options.numbers(index).size, parameters_of(stages, index)
    layers = [layer for stage in stages if stage.ipu == index for layer in stage.layers]
    recomputation = options.recomputation
    at_work = [(layer.role, _at_work(layer, size, recomputation)) for layer in layers]
    total: Cost = sum((cost.forward + cost.backward for cost in costs if cost.ipu == index), Cost())
    return IpuMemory(
        weights=size * (learning + parameters_of(stages, index, learns=False)),
        optimizer=_optimizer(learning, options),
        gradients=size * learning if options.gradient_accumulation > 1 else 0.0,
        stashed=_stashed(index, stages, size, recomputation),
        layer=max((held for role, held in at_work if role not in (EMBEDDING, HEAD)), default=0.0),
        logits=max((held for role, held in at_work if role in (EMBEDDING, HEAD)), default=0.0),
        products=total.workspace,
        input=BUFFERED * workload.batch_size * workload.sample_bytes if index == stages[0].ipu else 0.0,
        code=ipu.tiles * (CODE_OF_TILE + CODE_OF_PROGRAM * _programs(layers)),
    )


def _optimizer(parameters: int, options: PlanOptions) -> float:
    if options.optimizer_state_offchip:
        return 0.0
    owned = parameters / (options.replication_factor if options.enable_rts else 1)
    return optimizer_bytes(options) * owned


def _stashed(index: int, stages: Sequence[Stage], size: int, recomputation: bool) -> float:
    kept = 0.0
    for number, stage in enumerate(stages):
        if stage.ipu == index:
            learning = [layer for layer in stage.layers if layer.learns]
            numbers = sum(layer.inputs + (0 if recomputation else layer.activations) for layer in learning)
            kept += size * stashes(number, len(stages)) * numbers
    return kept


def _at_work(layer: Layer, size: int, recomputation: bool) -> float:
    if not layer.learns:  # nothing is kept: what comes in, what goes out, and one in between
        return 3.0 * size * layer.largest
    activations = layer.activations if recomputation else 0  # else they are among what is stashed
    # the largest gradient and what it is computed from, unless an operator has both for itself
    return size * activations + max(2.0 * size * layer.largest, layer.scratch)


def _programs(layers: Sequence[Layer]) -> int:
    """Different programs on an IPU."""
    return len(frozenset().union(*(_programs_of(layer) for layer in layers)))


@functools.lru_cache(maxsize=1024)
def _programs_of(layer: Layer) -> FrozenSet[Tuple[Operation, int]]:
    """One program an operation, and for those that learn two more of a product and one of the others.

    The chunks of fused attention share theirs.
    """
    found = set()
    for operation in layer.operations:
        if isinstance(operation, FusedAttention):
            count = len({*operation.forward}) + len({*operation.backward})
        else:
            count = 1 + ((2 if isinstance(operation, Product) else 1) if layer.learns else 0)
        found |= {(operation, number) for number in range(count)}
    return frozenset(found)
