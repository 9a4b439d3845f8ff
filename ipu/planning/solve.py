"""Looks for the `layers_per_ipu` that gives the most samples per second and fits (`--plan --solve`)."""

from __future__ import annotations

import dataclasses
from typing import Callable, Iterator, List, Optional, Sequence, Set, Tuple

from ipu.machine import MB, Machine
from ipu.placement import PlanOptions, Stage
from ipu.plan import Plan, make_plan
from ipu.planning.costs import FITTED, Constants, stage_costs, stage_times
from ipu.planning.workload import EMBEDDING, HEAD, TOKENIZER, Workload
from options import OptionError

_CLOSEST = 32  # splits of about the shortest cycle that are planned in full
_MOST = 5000  # splits looked at
_STEP, _LARGEST = 1.1, 4.0  # how much longer than the shortest a cycle may be, in steps, when none fits

Split = Tuple[int, ...]
"""A `layers_per_ipu`."""
Accepts = Callable[[Split], bool]


@dataclasses.dataclass(frozen=True)
class Proposal:
    """What `solve` found.

    Attributes:
        current: the configuration as it is.
        split: the best `layers_per_ipu` for the same data; None: none fits.
        encoded: the best one for tokens that were encoded beforehand; None: none fits, or they are already.
    """

    current: Plan
    split: Optional[Plan]
    encoded: Optional[Plan]

    @property
    def best(self) -> Plan:
        """The fastest that fits; the current one where nothing else does."""
        found = [plan for plan in (self.split, self.encoded) if plan is not None]
        return max(found, key=lambda plan: plan.throughput) if found else self.current

    def text(self) -> str:
        """The proposal in lines; the last one is the best plan's predicted throughput."""
        lines = [f"as configured: {_describe(self.current)}{'' if self.current.fits else ', which does not fit'}"]
        for name, plan in (("best split", self.split), ("best split of encoded tokens", self.encoded)):
            if plan is not None:
                lines.append(f"{name}: {_describe(plan)}, {plan.throughput / self.current.throughput - 1:+.1%}")
        if self.split is None and self.encoded is None:
            lines.append("no split fits; more IPUs (ipus_per_replica) or a smaller batch_size would help")
        elif self.encoded is not None and self.best is self.encoded:
            lines.append("encode the pictures beforehand: the encoder's IPU can then hold layers as well")
        return "\n".join([*lines, f"predicted throughput: {self.best.throughput:,.0f} samples/s"])


def solve(
    workload: Workload,
    options: PlanOptions,
    machine: Optional[Machine] = None,
    encoded: Optional[Workload] = None,
    constants: Constants = FITTED,
    accepts: Accepts = lambda split: True,
) -> Proposal:
    """Look for better splits.

    Args:
        workload, options, machine, constants: as for `make_plan`.
        encoded: the same with tokens in place of pictures; None: they are already.
        accepts: whether the model can be split so; layers that share weights have to stay together.
    """
    current = make_plan(workload, options, machine, constants)
    return Proposal(
        current=current,
        split=_best(workload, options, current.machine, constants, accepts),
        encoded=None if encoded is None else _best(encoded, options, current.machine, constants, accepts),
    )


def _best(
    workload: Workload, options: PlanOptions, machine: Machine, constants: Constants, accepts: Accepts
) -> Optional[Plan]:
    loads = _Loads(workload, options, machine, constants, accepts)
    shortest, slack = loads.shortest(), 1.0
    tried: Set[Split] = set()
    while slack <= _LARGEST:
        slack *= _STEP
        splits = sorted((loads.longest(split), split) for split in loads.splits(shortest * slack))
        untried = [split for _, split in splits if split not in tried][:_CLOSEST]
        tried.update(untried)
        found: List[Plan] = []
        for split in untried:
            found += _planned(workload, dataclasses.replace(options, layers_per_ipu=split), machine, constants)
        if found:
            return max(found, key=lambda plan: plan.throughput)
    return None


def _planned(workload: Workload, options: PlanOptions, machine: Machine, constants: Constants) -> List[Plan]:
    """The plan if it fits."""
    try:
        plan = make_plan(workload, options, machine, constants)
    except OptionError:  # a pipeline too deep for the micro batches of a step
        return []
    return [plan] if plan.fits else []


class _Loads:
    """Seconds of every layer on every IPU, and the splits that keep all IPUs below a limit."""

    def __init__(
        self, workload: Workload, options: PlanOptions, machine: Machine, constants: Constants, accepts: Accepts
    ) -> None:
        self.options, self.ipus, self.accepts = options, options.ipus_per_replica, accepts

        def load(ipu: int, position: int) -> float:
            costs = stage_costs([Stage(ipu, (workload.layers[position],))], options, machine.ipu)
            time = stage_times(costs, constants, machine.ipu)[0]
            return time.forward + time.backward

        roles = [layer.role for layer in workload.layers]
        positions = [at for at, role in enumerate(roles) if role not in (TOKENIZER, EMBEDDING, HEAD)]
        self.layers = [[load(ipu, at) for at in positions] for ipu in range(self.ipus)]
        self.fixed = [0.0] * self.ipus
        for at, role in enumerate(roles):
            home = {TOKENIZER: 0, EMBEDDING: options.embedding_ipu_id, HEAD: options.cls_ipu_id}.get(role)
            if home is not None:
                self.fixed[home] += load(home, at)
        self.head = [load(ipu, len(roles) - 1) if options.cls_ipu_id is None else 0.0 for ipu in range(self.ipus)]

    def longest(self, split: Sequence[int]) -> float:
        """Seconds of the busiest IPU."""
        times, start = list(self.fixed), 0
        for ipu, count in enumerate(split):
            times[ipu] += sum(self.layers[ipu][start : start + count])
            start += count
        last = max(ipu for ipu, count in enumerate(split) if count)
        times[last] += self.head[last]
        return max(times)

    def shortest(self) -> float:
        """A length of the cycle, close to the least, that some split keeps to."""
        low, high = 0.0, sum(self.fixed) + sum(self.layers[0]) + self.head[0]
        while high - low > high / 500:
            middle = (low + high) / 2
            possible = next(self.splits(middle), None)
            low, high = (low, middle) if possible else (middle, high)
        return high

    def splits(self, limit: float) -> Iterator[Split]:
        """Splits in which no IPU works longer; at most `_MOST` of them."""
        for number, split in enumerate(self._splits((), 0, limit)):
            if number == _MOST:
                return
            if self.accepts(split):
                yield split

    def _splits(self, before: Tuple[int, ...], start: int, limit: float) -> Iterator[Tuple[int, ...]]:
        ipu, total = len(before), len(self.layers[0])
        if ipu == self.ipus:
            if start == total and self.longest(before) <= limit:
                yield before
            return
        room = sum(limit - fixed for fixed in self.fixed[ipu:] if fixed < limit)
        if sum(min(on_each) for on_each in list(zip(*self.layers))[start:]) > room:
            return
        most, time = 0, self.fixed[ipu]
        while start + most < total and time + self.layers[ipu][start + most] <= limit:
            time += self.layers[ipu][start + most]
            most += 1
        for count in range(most, -1, -1):
            yield from self._splits((*before, count), start + count, limit)


def _describe(plan: Plan) -> str:
    fullest = max(plan.memory, key=lambda memory: memory.total).total
    return (
        f"layers_per_ipu {list(plan.options.layers_per_ipu)}, {plan.throughput:,.0f} samples/s, balance "
        f"{plan.balance:.0%}, fullest IPU {fullest / MB:,.1f} of {plan.machine.ipu.memory / MB:,.1f} MB"
    )
