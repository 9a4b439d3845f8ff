"""The pipeline in time: which stage works when, how long each cycle takes, how much of it is spent waiting.

A pipeline of F forward stages moves by cycles. In cycle c, stage s computes forward of micro batch c - s and backward
of micro batch c - (2 F - 2 - s), as far as there are such; the last stage does both for the same one. An IPU that has
two stages does them one after the other, and all IPUs wait for the slowest: G micro batches take G + 2 F - 2 cycles.
This is the 1F1B order of Narayanan et al. 2019, "PipeDream", drained before every update, as PopART runs it.
"""

from __future__ import annotations

import dataclasses
from typing import List, Sequence, Tuple


@dataclasses.dataclass(frozen=True)
class StageTime:
    """Seconds of one stage for one micro batch.

    Attributes:
        ipu: where it runs.
        forward: its forward pass, with what its input takes over the link.
        backward: its backward pass, with the forward pass that is computed once more.
    """

    ipu: int
    forward: float
    backward: float


@dataclasses.dataclass(frozen=True)
class Work:
    """One rectangle of the chart: what an IPU does in a cycle. `end` and `start` are seconds."""

    ipu: int
    kind: str
    micro_batch: int
    start: float
    end: float


def stashes(stage: int, stages: int) -> int:
    """Micro batches whose inputs a stage keeps at once, the one in work included."""
    return 2 * (stages - stage) - 1


def cycle_time(times: Sequence[StageTime]) -> float:
    """Seconds of a cycle in which every stage has work."""
    return max(busy(times))


def busy(times: Sequence[StageTime]) -> List[float]:
    """Seconds of work of every IPU in such a cycle."""
    seconds = [0.0] * (1 + max(time.ipu for time in times))
    for time in times:
        seconds[time.ipu] += time.forward + time.backward
    return seconds


def pipeline_time(times: Sequence[StageTime], micro_batches: int) -> float:
    """Seconds from the first micro batch's entry to the last one's last backward pass."""
    ramp = 2 * len(times) - 2
    if micro_batches <= ramp:
        return sum(_length(times, cycle, micro_batches) for cycle in range(micro_batches + ramp))
    steady = (micro_batches - ramp) * cycle_time(times)
    ends = (*range(ramp), *range(micro_batches, micro_batches + ramp))
    return steady + sum(_length(times, cycle, micro_batches) for cycle in ends)


def timeline(times: Sequence[StageTime], micro_batches: int, cycles: int) -> List[Work]:
    """What happens in the first cycles."""
    work, start = [], 0.0
    for cycle in range(min(cycles, micro_batches + 2 * len(times) - 2)):
        ends = [start] * (1 + max(time.ipu for time in times))
        for stage, kind, micro_batch in _active(len(times), cycle, micro_batches):
            time = times[stage]
            seconds = time.forward if kind == "forward" else time.backward
            if seconds:
                work.append(Work(time.ipu, kind, micro_batch, ends[time.ipu], ends[time.ipu] + seconds))
            ends[time.ipu] += seconds
        start = max(ends)
    return work


def _length(times: Sequence[StageTime], cycle: int, micro_batches: int) -> float:
    seconds = [0.0] * (1 + max(time.ipu for time in times))
    for stage, kind, _ in _active(len(times), cycle, micro_batches):
        seconds[times[stage].ipu] += times[stage].forward if kind == "forward" else times[stage].backward
    return max(seconds)


def _active(stages: int, cycle: int, micro_batches: int) -> List[Tuple[int, str, int]]:
    """(stage, forward or backward, micro batch) of everything that happens in a cycle."""
    found = []
    for stage in range(stages):
        for kind, micro_batch in (("forward", cycle - stage), ("backward", cycle - (2 * stages - 2 - stage))):
            if 0 <= micro_batch < micro_batches:
                found.append((stage, kind, micro_batch))
    return found
