"""A function as a model, run on the simulated IPU."""

from __future__ import annotations

from typing import Any, Callable

from torch import Tensor, nn

from ipu.simulator import inferenceModel


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors)


def on_ipu(function: Callable[..., Any], *tensors: Tensor) -> Any:
    return inferenceModel(Function(function))(*tensors)
