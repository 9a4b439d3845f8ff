"""A plan of training on IPUs, before anything is built: what each holds, how long each works, what comes out of it.

`make_plan` puts together `placement` (where) and what the files of `planning/` know: `workload` (what is computed),
`arithmetic` and `costs` (how long), `schedule` (when), `memory` (with what).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import List, Optional, Tuple

from ipu.machine import Machine, machine_named
from ipu.placement import PlanOptions, Stage, place
from ipu.planning.costs import FITTED, Constants, StageCost, host_time, stage_costs, stage_times, update_time
from ipu.planning.memory import IpuMemory, memory_of
from ipu.planning.schedule import StageTime, busy, cycle_time, pipeline_time
from ipu.planning.workload import Workload


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a configuration needs and does. All times are seconds, all sizes bytes.

    Attributes:
        workload, options, machine: what was planned.
        stages: of one pipeline.
        times: of each stage, for one micro batch.
        memory: of each IPU of a replica.
        costs: of each stage, of which the times were made.
        update: from the last backward pass of a step to the next step.
        host: handing a step's data to the IPUs.
    """

    workload: Workload
    options: PlanOptions
    machine: Machine
    stages: Tuple[Stage, ...]
    times: Tuple[StageTime, ...]
    memory: Tuple[IpuMemory, ...]
    costs: Tuple[StageCost, ...]
    update: float
    host: float

    @property
    def pipeline(self) -> float:
        """Time of a step's micro batches in the pipeline."""
        return pipeline_time(self.times, self.options.gradient_accumulation)

    @property
    def step(self) -> float:
        """Time of an optimizer step."""
        return self.pipeline + self.update + self.host

    @property
    def throughput(self) -> float:
        """Samples per second, over all replicas."""
        return self.options.global_batch / self.step

    @property
    def bubble(self) -> float:
        """Share of the pipeline's time in which it fills and drains."""
        return 1 - self.options.gradient_accumulation * cycle_time(self.times) / self.pipeline

    @property
    def busy(self) -> List[float]:
        """Seconds of a cycle in which each IPU has work."""
        return busy(self.times)

    @property
    def balance(self) -> float:
        """Mean work of the IPUs in units of that of the busiest one."""
        return sum(self.busy) / self.options.ipus_per_replica / cycle_time(self.times)

    @property
    def fits(self) -> bool:
        """Whether every IPU can hold what it has to."""
        return all(memory.total <= self.machine.ipu.memory for memory in self.memory)

    def refusal(self) -> str:
        """Why it does not fit and what would help; empty where it fits."""
        from ipu.planning.report import refusal

        return refusal(self)

    def with_constants(self, constants: Constants) -> Plan:
        """The same plan with other constants of the costs."""
        return dataclasses.replace(
            self,
            times=tuple(stage_times(self.costs, constants, self.machine.ipu)),
            update=update_time(self.stages, self.options, constants, self.machine),
            host=host_time(self.workload, self.options, constants),
        )

    def table(self) -> str:
        """The plan as text; its last line is the predicted throughput."""
        from ipu.planning.report import table

        return table(self)

    def draw(self, path: Path) -> None:
        """The plan as a picture, see `planning/chart.py`."""
        from ipu.planning.chart import draw

        draw(self, path)


def make_plan(
    workload: Workload,
    options: PlanOptions,
    machine: Optional[Machine] = None,
    constants: Constants = FITTED,
) -> Plan:
    """Plan a workload.

    Args:
        workload: counted for `options.batch_size`.
        options: where it runs and how.
        machine: None: the smallest Pod of Bow IPUs that has enough of them.
        constants: of the costs.

    Raises:
        OptionError: the options contradict each other, or ask for more IPUs than the machine has.
    """
    assert workload.batch_size == options.batch_size, "a workload is counted for its micro batch"
    machine = machine or machine_named("Bow", options.ipus)
    machine.check_room(options.ipus_per_replica, options.replication_factor)
    stages = place(workload, options)
    costs: Tuple[StageCost, ...] = stage_costs(stages, options, machine.ipu)
    return Plan(
        workload=workload,
        options=options,
        machine=machine,
        stages=stages,
        times=tuple(stage_times(costs, constants, machine.ipu)),
        memory=memory_of(workload, stages, costs, options, machine.ipu),
        costs=costs,
        update=update_time(stages, options, constants, machine),
        host=host_time(workload, options, constants),
    )
