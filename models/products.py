"""Products of a few rows with a matrix of weights, which take as long as reading the weights does.

On a CPU the call and the layout of the weights decide how near to the memory's rate that is. Measured on two cores of
an EPYC with 512-bit instructions, ms for one position's products in 16 layers of 512 channels (336 MB in float32):

| | 1 row | 2 rows | 4 rows | 8 rows | 16 rows | 32 rows |
| --- | --- | --- | --- | --- | --- | --- |
| float32, PyTorch's linear | 28 | 48 | 44 | 39 | 47 | 62 |
| float32, oneDNN on weights in its own order | 14.7 | 15.4 | 13.2 | **14.2** | **18.4** | **29.8** |
| float32, ours (`native/decoding.cpp`) | **10.1** | **9.9** | **10.7** | **14.2** | 20.1 | 31.5 |
| bfloat16, PyTorch's linear | 11.2 | 10.8 | 12.3 | 13.9 | 17.2 | 22.5 |
| bfloat16, oneDNN on weights in its own order | 8.1 | 7.6 | 6.5 | **7.7** | **10.0** | **15.9** |
| bfloat16, ours | **5.5** | **4.7** | **6.0** | 11.8 | 18.9 | 32.7 |

The rule below is made of this. It measures nothing by itself, so that a machine computes the same bits every time.

Legend: R rows, M width of the input, N of the output, P panels.
"""

from __future__ import annotations

import functools
from typing import Callable, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

import native

_PANEL = 16  # outputs, as `native/decoding.cpp` has it
_MOST_ROWS = {torch.float32: 32, torch.bfloat16: 4}  # that our kernels are the fastest for


def product(weight: Tensor, bias: Optional[Tensor], dtype: torch.dtype, rows: int) -> Callable[[Tensor], Tensor]:
    """The fastest product of R rows with a matrix of weights, for as long as its tensors stay as they are.

    Args:
        weight, bias: (N, M) and (N,).
        dtype: that the weights are brought to.
        rows: R.

    Returns:
        What makes (R, N) of (R, M).
    """
    if _are_for_panels(weight, dtype, rows):
        return _PanelProduct("multiply", weight, bias, dtype, rows)
    return _linear(weight, bias, dtype, rows)


def gated_product(weight: Tensor, bias: Tensor, dtype: torch.dtype, rows: int) -> Callable[[Tensor], Tensor]:
    """As `product`; one half of what it gives times the GELU of the other: (R, M) to (R, N / 2)."""
    if _are_for_panels(weight, dtype, rows):
        return _PanelProduct("multiply_gated", weight, bias, dtype, rows, parts=2)
    multiply = _linear(weight, bias, dtype, rows)

    def gated(x: Tensor) -> Tensor:
        values, gates = multiply(x).chunk(2, dim=-1)
        return values * F.gelu(gates)

    return gated


def added_product(
    weight: Tensor, bias: Tensor, dtype: torch.dtype, rows: int
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """As `product`; takes a scale (N,), what it adds the scaled product to, (R, N), and what it multiplies, (R, M)."""
    if _are_for_panels(weight, dtype, rows):
        return _PanelProduct("multiply_added", weight, bias, dtype, rows)
    multiply = _linear(weight, bias, dtype, rows)
    return lambda scale, before, x: torch.addcmul(before, scale, multiply(x))


def _are_for_panels(weight: Tensor, dtype: torch.dtype, rows: int) -> bool:
    is_few = dtype in _MOST_ROWS and rows <= _MOST_ROWS[dtype]
    return is_few and weight.dtype == torch.float32 and native.is_for(weight)


class _PanelProduct:
    """A product by a compiled kernel, in single precision whatever type the weights are brought to.

    Args:
        kernel: its name.
        weight, bias, dtype, rows: see `product`.
        parts: of the outputs, between which the kernel computes.
    """

    def __init__(
        self, kernel: str, weight: Tensor, bias: Optional[Tensor], dtype: torch.dtype, rows: int, parts: int = 1
    ) -> None:
        self._size = rows, len(weight) // parts
        self._panels = _in_panels(weight.detach().to(dtype), parts)
        self._bias = None if bias is None else bias.detach().float().contiguous()
        sizes = rows, weight.shape[1], len(weight) // parts
        self._kernel = native.prepare(kernel, dtype, self._panels, self._bias, *sizes)

    def __call__(self, *operands: Tensor) -> Tensor:
        out = torch.empty(self._size)
        self._kernel(*(operand.float().contiguous() for operand in operands), out)
        return out


def _in_panels(weight: Tensor, parts: int) -> Tensor:
    """Weights (N, M) as a copy (parts, P, M, 16)."""
    weight = weight.unflatten(0, (parts, -1))
    missing = -weight.shape[1] % _PANEL
    if missing:  # padding copies, even by nothing
        weight = F.pad(weight, (0, 0, 0, missing))
    return weight.unflatten(1, (-1, _PANEL)).transpose(2, 3).contiguous()


def _linear(weight: Tensor, bias: Optional[Tensor], dtype: torch.dtype, rows: int) -> Callable[[Tensor], Tensor]:
    """By oneDNN, where PyTorch has its calls, on weights in its own order."""
    weight, bias = weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype)
    multiply, reorder = onednn_linear(), onednn_reorder()
    if weight.device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16) or multiply is None:
        return lambda x: F.linear(x.to(dtype), weight, bias)
    ordered = weight if reorder is None else reorder(weight, rows)
    return lambda x: multiply(x.to(dtype), ordered, bias)


def onednn_reorder() -> Optional[Callable[..., Tensor]]:
    """A copy of a weight in the order that so many rows are multiplied with fastest, by a call as `onednn_linear`."""
    return getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)


@functools.lru_cache(maxsize=None)
def onednn_linear() -> Optional[Callable[[Tensor, Tensor, Optional[Tensor]], Tensor]]:
    """A call of oneDNN, of x, weight and bias, that PyTorch keeps for its own compiler.

    None where this build has none; the one of PyTorch 2.0 knows no product without more to it.
    """
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)

    def product(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
        return linear(x, weight, bias, "none", [], "")

    try:
        product(torch.zeros(1, 1), torch.zeros(1, 1), None)
    except (RuntimeError, TypeError):
        return None
    return product
