"""What a traced model finds in place of its parameters and buffers: copies, so that a trace changes nothing."""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Dict, Iterator, List, NamedTuple

import torch
from torch import Tensor, nn

from ipu.simulator.poptorch_core import python_error

_DEVICE_TYPES = {torch.float64: torch.float32, torch.bfloat16: torch.float32}
_KINDS = {"_parameters": "parameter", "_buffers": "buffer"}


def device_type(dtype: torch.dtype) -> torch.dtype:
    """The type that a tensor of this one has on an IPU; 64 bit whole numbers, held in 32 there, keep theirs here."""
    return _DEVICE_TYPES.get(dtype, dtype)


class Slot(NamedTuple):
    """A parameter or buffer of a module, and what stands in for it."""

    module: nn.Module
    kind: str
    name: str
    path: str
    tensor: Tensor
    placeholder: Tensor


@contextlib.contextmanager
def placeholders(model: nn.Module) -> Iterator[List[Slot]]:
    """Put placeholders into the slots of a model's own modules; one tensor of several slots has one placeholder.

    Raises:
        Error: afterwards, when the model removed one of them, or put another tensor into its place.
    """
    slots = _slots(model)
    for slot in slots:
        vars(slot.module)[slot.kind][slot.name] = slot.placeholder
    try:
        try:
            yield slots
        finally:  # another tensor in a slot is why others do not fit: say that in the first place
            for slot in slots:
                _check(slot)
    finally:
        for slot in slots:
            vars(slot.module)[slot.kind][slot.name] = slot.tensor


def _slots(model: nn.Module) -> List[Slot]:
    made: Dict[int, Tensor] = {}
    slots: List[Slot] = []
    for path, module in model.named_modules():
        for kind in _KINDS:
            for name, tensor in vars(module)[kind].items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    made[id(tensor)] = _placeholder(tensor, kind)
                full = f"{path}.{name}" if path else name
                slots.append(Slot(module, kind, name, full, tensor, made[id(tensor)]))
    return slots


@torch.no_grad()
def _placeholder(tensor: Tensor, kind: str) -> Tensor:
    copy = tensor.detach().as_subclass(Tensor).to(device_type(tensor.dtype)).clone()
    parameter: Callable[..., Any] = nn.Parameter
    return parameter(copy, requires_grad=tensor.requires_grad) if kind == "_parameters" else copy


def _check(slot: Slot) -> None:
    what = f"the {_KINDS[slot.kind]} {slot.path}"
    found = vars(slot.module)[slot.kind].get(slot.name)
    if found is None:
        raise python_error(f"{what} is removed from the model by its forward; keep it")
    if found is not slot.placeholder and not isinstance(slot.module, nn.modules.batchnorm._NormBase):
        raise python_error(
            f"{what} is reassigned within the model by its forward; change it in place: {slot.name}.copy_(...)"
        )
