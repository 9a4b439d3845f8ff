"""What the training loop knows of an engine: one optimizer step is the finest it can ask for.

PopTorch runs forward, backward, accumulation, reduction and update in one call; an interface any finer could not be
kept on IPUs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Dict, Iterable, Iterator, Optional, Protocol, Tuple

from torch import Tensor, nn
from torch.utils.data import Dataset

Inputs = Tuple[Tensor, ...]
"""One micro batch, as the model's forward takes it."""
Batch = Iterable[Inputs]
"""The micro batches of one call of the engine, to be gone through once."""


def as_inputs(sample: Any) -> Inputs:
    """What a data loader gives, one tensor or several, as a micro batch."""
    return tuple(sample) if isinstance(sample, (tuple, list)) else (sample,)


class Engine(Protocol):
    """Runs training steps of one model."""

    is_main: bool
    """Whether this process logs and saves."""
    compile_only: bool
    """Whether the run ends once the program is compiled."""

    def describe(self) -> str:
        """Where the parts of the model will run; empty where there is one place only."""

    def compile(self, example: Inputs) -> str:
        """Prepare for inputs shaped as `example` (one micro batch); returns what the run will hold in memory."""

    def loader(self, dataset: Dataset[Any], start: int, epochs: Optional[int]) -> Iterator[Batch]:
        """The training batches of a dataset, from sample number `start` on, to the end of `epochs` (none: endless)."""

    def validation_loader(self, dataset: Dataset[Any]) -> Iterable[Inputs]:
        """The samples of a dataset once, in order."""

    def step(self, batch: Batch) -> Tensor:
        """`device_iterations` optimizer steps; returns the mean of each scalar of the model's forward, (n,)."""

    def evaluate(self, inputs: Inputs) -> Tensor:
        """The scalars of the model's forward without training, (n,)."""

    def inference(self) -> AbstractContextManager[nn.Module]:
        """The model to draw and validate with: evaluation mode, averaged weights if there are any."""

    def set_learning_rate(self, rate: float) -> None:
        """Use this rate from the next step on."""

    def state_dict(self) -> Dict[str, Any]:
        """Weights and optimizer in the plain model's names, and random states."""

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Put back what any engine's `state_dict` returned."""

    def close(self) -> None:
        """Let go of the device."""
