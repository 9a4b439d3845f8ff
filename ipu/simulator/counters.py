"""PopTorch's performance counters: estimates, since a simulator's inputs do not travel.

The time of a call is real; the moments within are spread evenly over it, micro batch after micro batch.
"""

from __future__ import annotations

from typing import Callable, Dict, List, Sequence, Tuple

from ipu.simulator.batching import Batching
from ipu.simulator.enums import OutputMode

_TRAVEL_SHARE = 0.01  # of a micro batch's time, each way: an assumption


class Counters:
    """The moments of the last call, in seconds from its beginning."""

    def __init__(self) -> None:
        self._moments: Dict[str, List[List[float]]] = {
            name: [[]] for name in ("input", "input_complete", "output", "output_complete")
        }

    def note(self, batching: Batching, inputs: int, outputs: int, seconds: float, synthetic: bool) -> None:
        """Take down a call.

        Args:
            batching: its factors.
            inputs, outputs: tensors that went in and came back.
            seconds: that it took.
            synthetic: no data moved.
        """
        count = batching.device_iterations * batching.gradient_accumulation * batching.replicas
        part = seconds / count
        travel = part * _TRAVEL_SHARE
        begins = [index * part for index in range(count)]
        ends = _kept(begins, batching)
        entries = {
            "input": (inputs, begins),
            "input_complete": (inputs, [begin + travel for begin in begins]),
            "output": (outputs, [end + part - travel for end in ends]),
            "output_complete": (outputs, [end + part for end in ends]),
        }
        self._moments = {name: [[] if synthetic else list(m) for _ in range(n)] for name, (n, m) in entries.items()}

    def counters(self) -> Dict[str, List[List[float]]]:
        """Per tensor the moments of each micro batch."""
        return {name: [list(moments) for moments in tensors] for name, tensors in self._moments.items()}

    def latency(self, begin: str, end: str) -> Tuple[float, float, float]:
        """(least, most, mean) seconds between two moments of a micro batch; zeros without any."""
        begins, ends = self._per_batch(begin, min), self._per_batch(end, max)
        spans = [last - first for first, last in zip(begins[len(begins) - len(ends) :], ends)]
        return (min(spans), max(spans), sum(spans) / len(spans)) if spans else (0.0, 0.0, 0.0)

    def _per_batch(self, name: str, choose: Callable[[Sequence[float]], float]) -> List[float]:
        return [choose(moments) for moments in zip(*self._moments[name])]


def _kept(begins: List[float], batching: Batching) -> List[float]:
    """The micro batches whose results come back."""
    steps = batching.gradient_accumulation * batching.replicas
    if batching.mode == OutputMode.All:
        return begins
    if batching.mode == OutputMode.EveryN:
        return [begin for i, begin in enumerate(begins) if (i // steps + 1) % batching.period == 0]
    return begins[len(begins) - batching.replicas :]
