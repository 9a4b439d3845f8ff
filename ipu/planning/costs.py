"""From operations to seconds: the fitted constants, and the time of a stage, an update and a step.

The constants are those that `python -m ipu.planning.calibration` finds on published rows of BERT and ViT; no row of
mini DALL-E takes part.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Iterable, List, Sequence, Tuple

from ipu.machine import IPUS_OF_A_MACHINE, Ipu, Machine
from ipu.placement import PlanOptions, Stage
from ipu.planning.arithmetic import Cost, Numbers, backward_cost, forward_cost
from ipu.planning.schedule import StageTime
from ipu.planning.workload import Layer, Sweep, Workload

UPDATE_PASSES = 12  # over the optimizer's numbers, in units of half precision


@dataclasses.dataclass(frozen=True)
class Constants:
    """What is fitted.

    Attributes:
        products: cycles of matrix products, in units of what `arithmetic` estimates.
        passing: cycles in which a tile passes over one half precision number.
        launch: cycles until all tiles have agreed, exchanged and started a program.
        host_rate: bytes per second that a host hands to its IPUs, while these wait.
    """

    products: float
    passing: float
    launch: float
    host_rate: float


FITTED = Constants(products=0.57, passing=3.6, launch=4720, host_rate=8.57e9)


@dataclasses.dataclass(frozen=True)
class StageCost:
    """Cost of one stage for one micro batch, and bytes that come over the link in each direction."""

    ipu: int
    forward: Cost
    backward: Cost
    linked: int


def stage_costs(stages: Sequence[Stage], options: PlanOptions, ipu: Ipu) -> Tuple[StageCost, ...]:
    """The stages' costs, before the constants."""
    costs: List[StageCost] = []
    for index, stage in enumerate(stages):
        numbers = options.numbers(stage.ipu)
        forward, backward = Cost(), Cost()
        for layer in stage.layers:
            ahead, back = _layer_costs(layer, ipu, numbers, options.recomputation)
            forward, backward = forward + ahead, backward + back
        linked = stage.layers[0].inputs * numbers.size if index else 0
        costs.append(StageCost(stage.ipu, forward, backward, linked))
    return tuple(costs)


@functools.lru_cache(maxsize=1024)
def _layer_costs(layer: Layer, ipu: Ipu, numbers: Numbers, recomputation: bool) -> Tuple[Cost, Cost]:
    """Forward, and backward with what is computed once more."""
    forward, backward = forward_cost(layer.operations, ipu, numbers), Cost()
    if layer.learns:
        backward += backward_cost(layer.operations, ipu, numbers)
        backward += forward if layer.repeats and recomputation else Cost()
        backward += forward_cost([Sweep(layer.parameters, 2)], ipu, numbers)  # added to what is accumulated
    return forward, backward


def seconds(cost: Cost, constants: Constants, ipu: Ipu) -> float:
    """Time of a cost."""
    cycles = constants.products * cost.products + constants.passing * cost.passed + constants.launch * cost.launches
    return cycles / ipu.clock


def stage_times(costs: Iterable[StageCost], constants: Constants, ipu: Ipu) -> List[StageTime]:
    """Time of every stage; what comes over the link counts as work."""
    times = []
    for cost in costs:
        link = cost.linked / ipu.neighbour_link
        back = link if cost.backward.launches else 0.0
        times.append(
            StageTime(
                cost.ipu, seconds(cost.forward, constants, ipu) + link, seconds(cost.backward, constants, ipu) + back
            )
        )
    return times


def update_time(stages: Sequence[Stage], options: PlanOptions, constants: Constants, machine: Machine) -> float:
    """Seconds between the last backward pass and the next forward pass: reducing gradients, updating weights."""
    ipu, replicas = machine.ipu, options.replication_factor
    link = ipu.neighbour_link if options.ipus <= IPUS_OF_A_MACHINE else ipu.machine_link
    longest = 0.0
    for index in range(options.ipus_per_replica):
        parameters = parameters_of(stages, index)
        owned = parameters / (replicas if options.enable_rts else 1)
        reducing = 2 * (replicas - 1) / replicas * parameters * options.numbers(index).size / link
        updating = forward_cost([Sweep(int(owned), UPDATE_PASSES)], ipu, options.numbers(index))
        moved = 2 * owned * optimizer_bytes(options) / constants.host_rate if options.optimizer_state_offchip else 0.0
        longest = max(longest, reducing + seconds(updating, constants, ipu) + moved)
    return longest


def parameters_of(stages: Sequence[Stage], ipu: int, learns: bool = True) -> int:
    """Numbers on an IPU that learn, or that do not."""
    layers = (layer for stage in stages if stage.ipu == ipu for layer in stage.layers)
    return sum(layer.parameters for layer in layers if layer.learns == learns)


def optimizer_bytes(options: PlanOptions) -> int:
    """Bytes of Adam's two moments of one parameter."""
    return (2 if options.enable_half_first_order_momentum else 4) + 4


def host_time(workload: Workload, options: PlanOptions, constants: Constants) -> float:
    """Seconds in which a step's data is handed to the IPUs and they wait."""
    samples = options.global_batch / options.instances
    return samples * workload.sample_bytes / constants.host_rate
