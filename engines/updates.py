"""The update of weights on a CPU in one pass over them: clipping, Adam's step, and copies in bfloat16."""

from __future__ import annotations

import math
from typing import Any, Dict, List, Optional

import torch
from torch import Tensor, nn

import native
from engines.bfloat16 import Bfloat16Copies
from optim import CLIP_EPSILON


class OnePassUpdate:
    """Takes the place of clipping and `optimizer.step()`.

    Args:
        optimizer: Adam or AdamW over float32 weights; its state is kept as PyTorch's fused one keeps it.
        copies: of weights.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, copies: Optional[Bfloat16Copies] = None) -> None:
        self.optimizer, self.copies = optimizer, copies
        self.is_decoupled = isinstance(optimizer, torch.optim.AdamW)

    @torch.no_grad()
    def step(self, largest_norm: float) -> None:
        """Update all weights, by gradients scaled down to a norm of at most `largest_norm` (0: any); none is kept."""
        parameters = [(group, p) for group in self.optimizer.param_groups for p in group["params"]]
        gradients = [self._take_gradient(parameter) for _, parameter in parameters]
        factor = _clip_factor([g for g in gradients if g is not None], largest_norm) if largest_norm else 1.0
        for (group, parameter), gradient in zip(parameters, gradients):
            if gradient is not None:
                self._update(group, parameter, gradient, factor)

    def _take_gradient(self, parameter: nn.Parameter) -> Optional[Tensor]:
        """The gradient of a weight or of its copy, as the weight lies in memory."""
        copy = self.copies.find(parameter) if self.copies else None
        gradient = parameter.grad
        if copy is not None and copy.grad is not None:
            gradient = copy.grad if gradient is None else gradient.add_(copy.grad)
            copy.grad = None
        parameter.grad = None
        if gradient is None or gradient.stride() == parameter.stride():
            return gradient
        return torch.empty_like(parameter, dtype=gradient.dtype).copy_(gradient)

    def _update(self, group: Dict[str, Any], parameter: nn.Parameter, gradient: Tensor, factor: float) -> None:
        state = self._state(parameter)
        state["step"] += 1
        step, rate, decay, (beta1, beta2) = float(state["step"]), group["lr"], group["weight_decay"], group["betas"]
        tensors = (parameter, gradient, state["exp_avg"], state["exp_avg_sq"])
        decays = (0.0, 1 - rate * decay) if self.is_decoupled else (float(decay), 1.0)
        corrected = (rate / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step))
        copy = self.copies.find(parameter) if self.copies else None
        numbers = (factor, *decays, beta1, beta2, *corrected, group["eps"])
        native.run("adam", gradient.dtype, *tensors, copy, parameter.numel(), *numbers)

    def _state(self, parameter: nn.Parameter) -> Dict[str, Tensor]:
        state: Dict[str, Tensor] = self.optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return state


def _clip_factor(gradients: List[Tensor], largest_norm: float) -> float:
    """As of `torch.nn.utils.clip_grad_norm_`."""
    norm = math.sqrt(sum(map(native.sum_of_squares, gradients)))
    return min(largest_norm / (norm + CLIP_EPSILON), 1.0)
