"""The gated GELU for training on a CPU; where kernels are compiled, in one pass over memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import native


def gated_gelu(inner: Tensor) -> Tensor:
    """As `models.transformer.gate`: (B, n, 2 D) to (B, n, D)."""
    return (_NativeGatedGelu if native.is_for(inner) else _GatedGelu).apply(inner)


class _NativeGatedGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inner: Tensor) -> Tensor:
        inner = inner.contiguous()
        ctx.save_for_backward(inner)
        out = inner.new_empty(*inner.shape[:-1], inner.shape[-1] // 2)
        native.run("gated_gelu", inner.dtype, inner, out, *native.rows_of(out))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (inner,) = ctx.saved_tensors
        gradient, of_inner = gradient.contiguous(), torch.empty_like(inner)
        native.run("gated_gelu_gradient", inner.dtype, inner, gradient, of_inner, *native.rows_of(gradient))
        return of_inner


class _GatedGelu(torch.autograd.Function):
    """Both halves of the gradient are written where they belong, by hand."""

    @staticmethod
    def forward(ctx: Any, inner: Tensor) -> Tensor:
        values, gates = inner.chunk(2, dim=-1)
        activated = F.gelu(gates)
        ctx.save_for_backward(inner, activated)
        return values * activated

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        inner, activated = ctx.saved_tensors
        values, gates = inner.chunk(2, dim=-1)
        of_inner = torch.empty_like(inner)
        of_values, of_gates = of_inner.chunk(2, dim=-1)
        torch.mul(gradient, activated, out=of_values)
        torch.ops.aten.gelu_backward.grad_input(gradient * values, gates, grad_input=of_gates)
        return of_inner
