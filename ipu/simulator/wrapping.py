"""The user's model while it is trained on a device: reading its weights brings newer ones back first.

A wrapped model, its parameters and buffers stay the same objects and change class; pickles and copies of them have the
plain classes again.
"""

from __future__ import annotations

import copyreg
import weakref
from typing import Any, Dict, Iterator, Tuple

import torch
from torch import Tensor, nn

from ipu.simulator.poptorch_core import python_error

_READING = frozenset(
    "forward state_dict parameters named_parameters buffers named_buffers _parameters _buffers".split()
)
_METADATA = frozenset(
    "shape dtype device requires_grad is_leaf layout ndim size dim numel stride element_size is_floating_point "
    "requires_grad_ __class__ __dict__ grad_fn is_sparse is_cuda is_quantized is_meta names _backward_hooks "
    "__deepcopy__ __reduce_ex__ __hash__ replicaGrouping data_ptr is_contiguous storage_offset".split()
)
_EXECUTOR = "_poptorch_executor"


def wrap(model: nn.Module, executor: Any) -> None:
    """Let a model read its weights from a device.

    Raises:
        Error: a buffer is no plain tensor.
    """
    for tensor in tensors_of(model):
        if not isinstance(tensor, nn.Parameter) and type(tensor) not in (Tensor, PoptorchBuffer):
            raise python_error(f"a buffer is a {type(tensor).__name__}, and has to be a torch.Tensor")
    reference = weakref.ref(executor)
    for tensor in tensors_of(model):
        wrapped: type = PoptorchParameter if isinstance(tensor, nn.Parameter) else PoptorchBuffer
        tensor.__class__ = wrapped
        object.__setattr__(tensor, _EXECUTOR, reference)
    object.__setattr__(model, _EXECUTOR, reference)
    if not isinstance(model, _WrappedModel):  # it is one when its last executor was dropped without destroy()
        model.__class__ = _wrapped_class(type(model))


def unwrap(model: nn.Module) -> None:
    """Give a model its own class back."""
    model.__class__ = type(model).__mro__[2]
    object.__delattr__(model, _EXECUTOR)
    for tensor in tensors_of(model):
        tensor.__class__ = nn.Parameter if isinstance(tensor, nn.Parameter) else Tensor  # type: ignore[assignment]
        object.__delattr__(tensor, _EXECUTOR)


def executor_of(model: Any) -> Any:
    """The executor that trains a model, if one does and lives."""
    reference = object.__getattribute__(model, "__dict__").get(_EXECUTOR)
    return reference() if reference is not None else None


def tensors_of(model: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers of a model, each once; reading them triggers nothing."""
    seen = set()
    for module in nn.Module.modules(model):
        slots = object.__getattribute__(module, "__dict__")
        for tensor in (*slots["_parameters"].values(), *slots["_buffers"].values()):
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


def named_slots(model: nn.Module) -> Dict[str, Tensor]:
    """Parameters and buffers of a model under every name they have."""
    found = {}
    for path, module in nn.Module.named_modules(model):
        slots = object.__getattribute__(module, "__dict__")
        for kind in ("_parameters", "_buffers"):
            for name, tensor in slots[kind].items():
                if tensor is not None:
                    found[f"{path}.{name}" if path else name] = tensor
    return found


def _pull(wrapped: Any) -> None:
    executor = executor_of(wrapped)
    if executor is not None:
        executor._copy_weights_if_newer()


class _Wrapped:
    """What wrapped parameters and buffers have in common."""

    def __getattribute__(self, name: str) -> Any:
        if name not in _METADATA:
            _pull(self)
        return super().__getattribute__(name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by PyTorch for every function of a wrapped tensor."""
        getter = getattr(getattr(func, "__self__", None), "__name__", func.__name__)
        if getter not in _METADATA:
            for argument in args:
                for tensor in argument if isinstance(argument, (list, tuple)) else (argument,):
                    if isinstance(tensor, _Wrapped):
                        _pull(tensor)
        with torch._C.DisableTorchFunction():
            return func(*args, **(kwargs or {}))

    def _plain(self) -> Tensor:
        _pull(self)
        with torch._C.DisableTorchFunction():
            return Tensor.detach(self)  # type: ignore[arg-type]


class PoptorchParameter(_Wrapped, nn.Parameter):
    """A parameter of a model that is trained on a device."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return nn.Parameter(self._plain(), self.requires_grad).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Dict[int, Any]) -> nn.Parameter:
        if id(self) not in memo:
            memo[id(self)] = nn.Parameter(self._plain().clone(), self.requires_grad)
        return memo[id(self)]

    def __repr__(self) -> str:  # type: ignore[override]
        return repr(nn.Parameter(self._plain(), self.requires_grad))

    def replicaGrouping(self, comm_group_type: Any, shards: int, variable_retrieval_mode: Any) -> None:
        """Let groups of replicas have values of their own; not simulated.

        Raises:
            Error: always, but where all replicas are one group.
        """
        if int(comm_group_type) != 0:
            raise python_error("replicaGrouping is not simulated; all replicas have the same weights")


class PoptorchBuffer(_Wrapped, Tensor):
    """A buffer of a model that is trained on a device."""

    def __repr__(self) -> str:  # type: ignore[override]
        return repr(self._plain())

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._plain().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            memo[id(self)] = self._plain().clone()
        return memo[id(self)]


class _WrappedModel:
    """What the generated class of a wrapped model adds."""

    def __getattribute__(self, name: str) -> Any:
        slots = object.__getattribute__(self, "__dict__")
        if name in _READING or name in slots.get("_parameters", ()) or name in slots.get("_buffers", ()):
            _pull(self)
        return super().__getattribute__(name)

    def copyWeightsToHostIfNeeded(self) -> bool:
        """Bring newer weights back from the device; whether there were any."""
        executor = executor_of(self)
        return executor is not None and executor._copy_weights_if_newer()

    def destroy(self) -> None:
        """Let go of the device."""
        executor = executor_of(self)
        if executor is not None:
            executor.destroy()

    def __reduce_ex__(self, protocol: Any) -> Tuple[Any, ...]:
        _pull(self)
        state = {key: value for key, value in self.__dict__.items() if key != _EXECUTOR}
        return copyreg._reconstructor, (type(self).__mro__[2], object, None), state  # type: ignore[attr-defined]


def _wrapped_class(plain: type) -> type:
    return type(f"Poptorch{plain.__name__}", (_WrappedModel, plain), {"__module__": plain.__module__})
