"""What stands around a residual branch, for training on a CPU: the norm before it, and the scaled sum after it."""

from __future__ import annotations

from typing import Any, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

import native
from models import transformer
from models.precision import autocast_dtype


def layer_norm(x: Tensor, shape: Sequence[int], weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """As `models.transformer.NormKernel`; under autocast in the type of the product that comes next."""
    dtype = autocast_dtype("cpu") or x.dtype
    if x.dtype != torch.float32 or not native.is_for(x, weight, x.new_empty(0, dtype=dtype)):
        return F.layer_norm(x, shape, weight, bias, eps)
    return _LayerNorm.apply(x, weight, bias, eps, dtype)


def add_scaled(x: Tensor, branch: Tensor, scale: Tensor) -> Tensor:
    """As `models.transformer.add_scaled`."""
    if x.dtype != torch.float32 or not native.is_for(x, branch, scale):
        return transformer.add_scaled(x, branch, scale)
    return _AddScaled.apply(x, branch, scale)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x = x.contiguous()
        sizes = native.rows_of(x)
        out, moments = torch.empty_like(x, dtype=dtype), x.new_empty(sizes[0], 2)
        native.run("layer_norm", dtype, x, weight, bias, out, moments, *sizes, eps)
        ctx.save_for_backward(x, weight, moments)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, moments = ctx.saved_tensors
        of_x, of_weight, of_bias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        given, results = (gradient.contiguous(), x, weight, moments), (of_x, of_weight, of_bias)
        native.run("layer_norm_gradient", gradient.dtype, *given, *results, *native.rows_of(x))
        return of_x, of_weight, of_bias, None, None


class _AddScaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, scale: Tensor) -> Tensor:
        x, branch = x.contiguous(), branch.contiguous()
        out = torch.empty_like(x)
        native.run("add_scaled", branch.dtype, x, branch, scale, out, *native.rows_of(x))
        ctx.save_for_backward(branch, scale)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        branch, scale = ctx.saved_tensors
        of_branch, of_scale = torch.empty_like(branch), torch.empty_like(scale)
        given, results = (gradient.contiguous(), branch, scale), (of_branch, of_scale)
        native.run("add_scaled_gradient", branch.dtype, *given, *results, *native.rows_of(branch))
        return gradient, of_branch, of_scale
