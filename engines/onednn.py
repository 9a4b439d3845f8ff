"""Products of the linear layers by oneDNN, on CPUs where that is the faster library for single precision.

PyTorch multiplies float32 matrices with MKL, which takes instructions of 512 bits on Intel's processors alone. On an
EPYC that has them oneDNN reached 101 to 105 GFLOP/s a core where MKL reached 88 to 99 (forward), 101 to 103 where it
reached 92 to 98 (gradients of inputs) and 91 to 98 where it reached 89 to 93 (gradients of weights), at L16's shapes.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, FrozenSet, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import native
from models.products import onednn_linear


def is_faster(flags: FrozenSet[str]) -> bool:
    """Whether a CPU of these flags multiplies float32 matrices faster with oneDNN than with MKL.

    A rule and no measurement at the start, so that every run on a machine computes the same bits.
    """
    return "AuthenticAMD" in flags and "avx512f" in flags and onednn_linear() is not None


def lay_out(model: nn.Module) -> None:
    """Keep the weights (N, K) of layers that widen, N > K, as the rows of (K, N); names, shapes and values stay.

    oneDNN wants the first factor of a product row by row. Of the gradient of such weights, (N, R) (R, K), that would be
    a copy of the wide one, which takes half as long as the product; transposed, it is one of the narrow one.
    """
    for module in model.modules():
        if type(module) is nn.Linear and module.out_features > module.in_features:
            module.weight.data = module.weight.data.t().contiguous().t()


def can_be_compiled() -> bool:
    """Whether PyTorch's compiler takes these products: from 2.4 on, as an operator of our own."""
    return _compiled_product is not None


class OneDnnLinear(TorchFunctionMode):
    """Within, `torch.nn.functional.linear` of float32 tensors on a CPU is computed by oneDNN, gradients included."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        """Called by PyTorch in place of every function."""
        if func is F.linear and not kwargs and _is_ours(args[0]):
            return _Linear.apply(*args, *[None] * (3 - len(args)))
        return func(*args, **(kwargs or {}))


class _Linear(torch.autograd.Function):
    """x (..., K), weight (N, K) and bias (N,) or None to (..., N)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Optional[Tensor], Optional[Tensor], Optional[Tensor]]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        of_x = _multiply(rows, weight.t()).view(x.shape) if wanted[0] else None
        of_weight = _gradient_of_weight(x.reshape(-1, x.shape[-1]), weight, rows) if wanted[1] else None
        return of_x, of_weight, _sum(rows) if ctx.has_bias and wanted[2] else None


def _gradient_of_weight(x: Tensor, weight: Tensor, gradient: Tensor) -> Tensor:
    """Of inputs (R, K) and the gradient of outputs (R, N): (N, K), laid out as the weight is."""
    if weight.is_contiguous():
        return _multiply(gradient.t(), x.t())
    return _multiply(x.t(), gradient.t()).t()


def _multiply(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """x (..., K), weight (N, K) and bias (N,) or None to (..., N)."""
    if _compiled_product is not None and torch.compiler.is_compiling():
        return _compiled_product(x, weight, bias)
    return _product(x, weight, bias)


def _sum(rows: Tensor) -> Tensor:
    """(R, N) to (N,)."""
    if can_be_compiled() and torch.compiler.is_compiling() or not native.is_for(rows):
        return rows.sum(dim=0)
    return native.sum_over_rows(rows.contiguous())


def _product(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    product = onednn_linear()
    assert product is not None, "is_faster asks for it"
    return product(x, weight, bias)


def _make_compiled_product() -> Optional[Callable[..., Tensor]]:
    """The product as an operator of our own, which PyTorch's compiler calls as it is; oneDNN's it would rewrite."""
    if not hasattr(torch.library, "custom_op"):
        return None
    product = torch.library.custom_op("dalle::onednn_product", _product, mutates_args=())
    product.register_fake(lambda x, weight, bias: x.new_empty(*x.shape[:-1], len(weight)))
    return product


_compiled_product = _make_compiled_product()


def _is_ours(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu"
