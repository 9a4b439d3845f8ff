"""Products of a few rows with a matrix of weights, which take as long as reading the weights does.

On a CPU the call and the layout of the weights decide how near to the memory's rate that is. Measured on two cores of
an EPYC with 512-bit instructions, float32, GB/s of weights (PyTorch's linear / oneDNN / oneDNN on weights in its own
order / a product of transposed parts):

| weights (out x in) | 1 row | 2 rows | 4 rows | 8 rows |
| --- | --- | --- | --- | --- |
| 3072 x 512 | 10 / 22 / 22 / **33** | 6 / 16 / 20 / **25** | 7 / 14 / **22** / 16 | 7 / 12 / **19** / 14 |
| 512 x 2048 | 16 / **29** / **30** / 16 | 10 / **20** / **19** / 13 | 10 / 19 / **24** / 17 | 9 / 16 / **18** / 15 |
| 1536 x 256 | 8 / 15 / 15 / **24** | 6 / 11 / 17 / **20** | 6 / 10 / **21** / 15 | 5 / 9 / **16** / 13 |
| 256 x 1024 | 13 / 15 / 15 / 11 | 9 / **15** / **14** / 11 | 8 / 13 / **17** / 17 | 10 / 12 / **16** / 15 |

In bfloat16 oneDNN on weights in its own order takes 0.5 to 0.7 of the time of the best of these for any number of rows,
and all other ways more. The rule below is made of this. It measures nothing by itself, so that a machine computes the
same bits every time.

Legend: R rows, M width of the input, N of the output, P parts.
"""

from __future__ import annotations

import functools
from typing import Callable, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

RowProduct = Callable[[Tensor], Tensor]
"""Multiplies rows (R, M) with a matrix of weights: (R, N)."""
_MOST_ROWS_OF_PARTS = 2
_LEAST_PART = 512  # outputs: shorter runs of memory are read no faster than whole rows of weights


def row_product(weight: Tensor, bias: Optional[Tensor], rows: int) -> RowProduct:
    """The fastest product of `rows` rows with weights (N, M) and bias (N,), for as long as these stay as they are."""
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    if weight.device.type == "cpu":
        parts = torch.get_num_threads()
        if rows <= _MOST_ROWS_OF_PARTS and weight.dtype != torch.bfloat16 and _can_be_parted(weight, parts):
            return _product_of_parts(weight, bias, parts)
        if weight.dtype in (torch.float32, torch.bfloat16) and onednn_linear() is not None:
            return _onednn_product(weight, bias, rows)
    return functools.partial(F.linear, weight=weight, bias=bias)


def _can_be_parted(weight: Tensor, parts: int) -> bool:
    outputs, inputs = weight.shape
    return outputs > inputs and outputs % parts == 0 and outputs // parts >= _LEAST_PART


def _product_of_parts(weight: Tensor, bias: Optional[Tensor], parts: int) -> RowProduct:
    """One product a thread: of the rows with a transposed part of the weights, a copy of which is kept."""
    outputs = len(weight)
    transposed = weight.unflatten(0, (parts, -1)).transpose(1, 2).contiguous()  # (P, M, N / P)
    added = None if bias is None else bias.view(parts, 1, -1)  # (P, 1, N / P)

    def multiply(x: Tensor) -> Tensor:
        x = x.expand(parts, *x.shape)
        out = torch.bmm(x, transposed) if added is None else torch.baddbmm(added, x, transposed)  # (P, R, N / P)
        return out.transpose(0, 1).reshape(-1, outputs)

    return multiply


def _onednn_product(weight: Tensor, bias: Optional[Tensor], rows: int) -> RowProduct:
    """By oneDNN; a copy of the weights in its own order is kept where that pays."""
    reorder, multiply = onednn_reorder(), onednn_linear()
    assert multiply is not None, "the caller asks for it"
    if (rows > 1 or weight.dtype == torch.bfloat16) and reorder is not None:
        weight = reorder(weight, rows)
    return lambda x: multiply(x, weight, bias)


def onednn_reorder() -> Optional[Callable[..., Tensor]]:
    """Another such call: a copy of a weight in the order that so many rows are multiplied with fastest."""
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
