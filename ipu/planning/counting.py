"""Counts the operations of a model by running it without computing.

A function runs on torch's meta device, which knows shapes and holds no numbers, and every operator that comes by is
noted. So whatever the options of a model are, its plan knows them.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ipu.planning.workload import Operation, Product, Sweep

# Passes over memory of one operator, forward: how often its elements are read and written. Operators that only look at
# memory differently are free; those that are neither here nor free count as one pass.
PASSES: Dict[str, float] = {
    "native_layer_norm": 4,
    "native_group_norm": 4,
    "_softmax": 4,
    "_log_softmax": 4,
    "gelu": 3,
    "silu": 2,
    "tanh": 2,
    "bernoulli": 1,
}
FREE = {
    "empty", "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "slice", "select", "unsqueeze",
    "squeeze", "split", "split_with_sizes", "chunk", "unbind", "detach", "alias", "lift_fresh", "as_strided", "unfold",
    "zeros", "ones", "arange", "_to_copy", "new_zeros", "new_empty", "full", "scalar_tensor",
    "clone",  # of an operand that torch's product wants in one piece: on IPUs the product's own exchange brings it
}  # fmt: skip


class _Counter(TorchDispatchMode):
    """Notes the operations that come by."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: List[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += _operations_of(func._schema.name.split("::")[1].rstrip("_"), args, result)
        return result


def count(function: Callable[..., Any], *inputs: Any) -> Tuple[Operation, ...]:
    """The operations of `function(*inputs)`, whose tensors are on the meta device."""
    with torch.no_grad(), _Counter() as counter:
        function(*inputs)
    return tuple(counter.operations)


def _operations_of(name: str, args: Any, result: Any) -> List[Operation]:
    out = result[0] if isinstance(result, (tuple, list)) else result
    tensors = [value for value in args if isinstance(value, Tensor)]
    if name in FREE or not isinstance(out, Tensor):
        return []
    if not any(t.is_floating_point() for t in (*tensors, out)):
        return []  # indices and masks
    product = _product_of(name, tensors, args, out)
    if product is None:
        read = [out] if name == "embedding" else [out, *tensors]  # of a table, only the rows that come out
        return [Sweep(max(tensor.numel() for tensor in read), PASSES.get(name, 1))]
    has_bias = name in ("addmm", "baddbmm") or (name == "convolution" and len(tensors) == 3)
    return [product, Sweep(out.numel(), 1)] if has_bias else [product]


def _product_of(name: str, tensors: List[Tensor], args: Any, out: Tensor) -> Optional[Product]:
    if name in ("mm", "addmm", "bmm", "baddbmm"):
        left, right = tensors[-2:]
        return Product(left.shape[0] if left.dim() == 3 else 1, left.shape[-2], left.shape[-1], right.shape[-1])
    if name == "convolution":
        weight, stride = tensors[1], args[3]
        kernel = weight.shape[2] * weight.shape[3]
        return Product(1, out.numel() // out.shape[1], weight.shape[1], out.shape[1], kernel, stride[0])
    if name in ("_euclidean_dist", "_cdist_forward"):
        return Product(1, tensors[0].shape[-2], tensors[0].shape[-1], tensors[1].shape[-2])
    return None
