"""The fused operators on this CPU, called through their library.

An operator is compiled once for its attributes and the types and shapes of its inputs. Halves travel as the float32
numbers that they are.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from custom_ops.host_library import Library

Attribute = Union[int, float, str, Sequence[int]]
TypeAndShape = Tuple[torch.dtype, Tuple[int, ...]]
LARGEST_RANK = 8
KEPT_OPERATORS = 128

_TYPES = (torch.float32, torch.float16, torch.int32)  # by the numbers that the library has for them


class HostOperatorError(RuntimeError):
    """What the code of an operator refuses, or a check of it finds."""


def run(
    library: Library,
    domain: str,
    name: str,
    version: int,
    attributes: Dict[str, Attribute],
    tensors: Sequence[Tensor],
) -> List[Tensor]:
    """Compute an operator; gradients go through its own backward pass.

    Args:
        library: of `open_library`.
        domain, name, version: of the operator.
        attributes: by name.
        tensors: its inputs, float32, float16 or int32.

    Raises:
        HostOperatorError: the operator, an attribute, a shape or a type is refused.
    """
    hashable = tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in attributes.items())
    inputs = tuple((tensor.dtype, tuple(tensor.shape)) for tensor in tensors)
    operator = _compiled(library, domain, name, version, hashable, inputs)
    # in a model that is being traced tensors want no gradients, and functions of one's own are refused
    wanted = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    if wanted and any(tensor.requires_grad for tensor in tensors):
        return list(_WithGradient.apply(operator, *tensors))
    return operator.forward(tensors)


class _WithGradient(torch.autograd.Function):
    """An operator as PyTorch's autograd sees it."""

    @staticmethod
    def forward(ctx: Any, operator: HostOperator, *tensors: Tensor) -> Tuple[Tensor, ...]:
        """Compute the outputs."""
        outputs = operator.forward(tensors)
        ctx.operator = operator
        ctx.save_for_backward(*tensors, *outputs)
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *out_gradients: Optional[Tensor]) -> Tuple[Optional[Tensor], ...]:
        """Compute the gradients of the inputs; of the operator itself there is none."""
        count = len(ctx.operator.inputs)
        tensors, outputs = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        return (None, *ctx.operator.backward(tensors, outputs, out_gradients))


class HostOperator:
    """An operator and its gradient, compiled for certain inputs.

    Args:
        library: of `open_library`.
        domain, name, version: of the operator.
        attributes: by name.
        inputs: type and shape of each.
        saturates: whether what is too large for a half becomes the largest one, as on IPUs, in place of an error.

    Raises:
        HostOperatorError: the operator, an attribute or a shape is refused.
    """

    def __init__(
        self,
        library: Library,
        domain: str,
        name: str,
        version: int,
        attributes: Dict[str, Attribute],
        inputs: Sequence[TypeAndShape],
        saturates: bool = False,
    ) -> None:
        self._library = library
        self._handle = library.host_operator_new(domain.encode(), name.encode(), version)
        if not self._handle:
            self._refuse()
        for key, value in attributes.items():
            self._set_attribute(key.encode(), value)
        for dtype, shape in inputs:
            if dtype not in _TYPES:
                raise HostOperatorError(f"{domain}.{name}: no input is of type {dtype}; bring it to one of {_TYPES}")
            self._check(library.host_operator_input(self._handle, _TYPES.index(dtype), len(shape), _integers(shape)))
        self._check(library.host_operator_compile(self._handle))
        self._check(library.host_operator_saturate(self._handle, int(saturates)))
        self.inputs = tuple(inputs)
        count = library.host_operator_output_count(self._handle)
        self.outputs = tuple(self._output(index) for index in range(count))
        self.has_gradient = [bool(library.host_operator_has_gradient(self._handle, i)) for i in range(len(inputs))]

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.host_operator_delete(self._handle)

    def forward(self, tensors: Sequence[Tensor]) -> List[Tensor]:
        """The outputs; tensors are of the types and shapes that the operator was compiled for."""
        given, outputs = _carried(tensors), _empty(self.outputs)
        self._check(self._library.host_operator_forward(self._handle, _pointers(given), _pointers(outputs)))
        return [output.to(dtype) for output, (dtype, _) in zip(outputs, self.outputs)]

    def backward(
        self, tensors: Sequence[Tensor], outputs: Sequence[Tensor], out_gradients: Sequence[Optional[Tensor]]
    ) -> List[Optional[Tensor]]:
        """The gradients of the inputs, None for those that have none; None for a gradient that the operator ignores."""
        made = [empty if has else None for empty, has in zip(_empty(self.inputs), self.has_gradient)]
        groups = [_carried(tensors), _carried(outputs), _carried(out_gradients), made]
        self._check(self._library.host_operator_backward(self._handle, *(_pointers(group) for group in groups)))
        return [None if gradient is None else gradient.to(dtype) for gradient, (dtype, _) in zip(made, self.inputs)]

    def _set_attribute(self, key: bytes, value: Attribute) -> None:
        library, handle = self._library, self._handle
        if isinstance(value, str):
            self._check(library.host_operator_attribute_string(handle, key, value.encode()))
        elif isinstance(value, float):
            self._check(library.host_operator_attribute_float(handle, key, value))
        elif isinstance(value, int):
            self._check(library.host_operator_attribute_int(handle, key, value))
        else:
            self._check(library.host_operator_attribute_ints(handle, key, _integers(value), len(value)))

    def _output(self, index: int) -> TypeAndShape:
        kind, rank, shape = ctypes.c_int(), ctypes.c_int(), _integers([0] * LARGEST_RANK)
        where = (ctypes.byref(kind), ctypes.byref(rank), shape)
        self._check(self._library.host_operator_output(self._handle, index, *where))
        return _TYPES[kind.value], tuple(shape[: rank.value])

    def _check(self, code: int) -> None:
        if code:
            self._refuse()

    def _refuse(self) -> None:
        raise HostOperatorError(self._library.host_last_error().decode(errors="replace"))


@functools.lru_cache(maxsize=KEPT_OPERATORS)
def _compiled(
    library: Library,
    domain: str,
    name: str,
    version: int,
    attributes: Tuple[Tuple[str, Attribute], ...],
    inputs: Tuple[TypeAndShape, ...],
) -> HostOperator:
    return HostOperator(library, domain, name, version, dict(attributes), inputs, saturates=True)


def _carried(tensors: Iterable[Optional[Tensor]]) -> List[Optional[Tensor]]:
    """Tensors as they travel: in one piece, halves as float32."""
    return [
        None if tensor is None else (tensor.float() if tensor.dtype == torch.half else tensor).detach().contiguous()
        for tensor in tensors
    ]


def _empty(outputs: Sequence[TypeAndShape]) -> List[Tensor]:
    """Room for outputs as they travel."""
    return [torch.empty(shape, dtype=torch.float32 if dtype == torch.half else dtype) for dtype, shape in outputs]


def _pointers(tensors: Sequence[Optional[Tensor]]) -> Any:
    """An array of addresses. Whoever takes them keeps the tensors until he is done."""
    return (ctypes.c_void_p * len(tensors))(*(None if tensor is None else tensor.data_ptr() for tensor in tensors))


def _integers(values: Sequence[int]) -> Any:
    return (ctypes.c_int64 * len(values))(*values)
