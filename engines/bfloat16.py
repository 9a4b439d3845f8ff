"""Products in bfloat16 on a CPU without what autocast converts at every step."""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import native
from models.precision import autocast_dtype
from models.products import onednn_linear
from models.transformer import ReversibleLayer


class Bfloat16Copies:
    """Copies of the weights of linear layers, which the layers multiply with in place of those that autocast makes.

    Autocast converts every weight at every step, and every gradient of a copy. These copies are made by the update, and
    it takes their gradients as they are.

    Args:
        model: its linear layers are given the copies; reversible layers are left alone, which want the gradients of
            parameters at once.
    """

    def __init__(self, model: nn.Module) -> None:
        self._copies: Dict[Tensor, Tensor] = {}
        self._versions: Dict[Tensor, int] = {}
        if any(isinstance(module, ReversibleLayer) for module in model.modules()):
            return
        for module in model.modules():
            if type(module) is nn.Linear and module.weight.requires_grad:
                copy = torch.empty_like(module.weight, dtype=torch.bfloat16).requires_grad_()
                self._copies[module.weight] = copy
                module.forward = _forward(module, self)  # type: ignore[method-assign, assignment]

    def of(self, weight: Tensor) -> Tensor:
        """The copy of a weight, made anew where something else than an update has changed the weight."""
        copy = self._copies[weight]
        if self._versions.get(weight) != weight._version:
            with torch.no_grad():
                copy.copy_(weight)
            self._versions[weight] = weight._version
        return copy

    def find(self, weight: Tensor) -> Optional[Tensor]:
        """The copy that an update has to renew, if there is one."""
        return self._copies.get(weight)

    def hand_over_gradients(self) -> None:
        """Add the gradients of the copies to those of the weights, in their precision."""
        for weight, copy in self._copies.items():
            if copy.grad is not None:
                weight.grad = copy.grad.to(weight.dtype) if weight.grad is None else weight.grad.add_(copy.grad)
                copy.grad = None


def _forward(module: nn.Linear, copies: Bfloat16Copies) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        if autocast_dtype("cpu") != torch.bfloat16:
            return F.linear(x, module.weight, module.bias)
        return _Linear.apply(x, copies.of(module.weight), module.bias)

    return forward


class _Linear(torch.autograd.Function):
    """x (..., K), weight (N, K) in bfloat16 and bias (N,) or None to (..., N)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
        x = x.to(weight.dtype)
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _product(x, weight, None if bias is None else bias.to(weight.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Optional[Tensor], Optional[Tensor], Optional[Tensor]]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1]).contiguous()
        return (
            (rows @ weight).view(x.shape) if of_x else None,
            rows.t() @ x.reshape(-1, x.shape[-1]) if of_weight else None,
            native.sum_over_rows(rows) if ctx.has_bias and of_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    """By oneDNN if it can be called: PyTorch's own call of it adds a bias in a pass of its own."""
    product = onednn_linear()
    return F.linear(x, weight, bias) if product is None else product(x, weight, bias)
