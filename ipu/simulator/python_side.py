"""What a traced model calls of PyTorch's Python side: functions that make tensors, ask for devices, compute losses, and
those that would carry values out of the graph.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ipu.simulator.poptorch_core import python_error

if TYPE_CHECKING:
    from ipu.simulator.tracing import Tracer

_log = logging.getLogger("poptorch::python")
DEVICE = torch.device("ipu", 0)
"""Where a traced model sees its tensors."""
_HOST = torch.device("cpu")
_DEVICE_OF = Tensor.device.__get__  # type: ignore[attr-defined]
_DATA_OF = Tensor.data.__get__  # type: ignore[attr-defined]
_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]


def _functions(module: Any, names: str) -> Tuple[Any, ...]:
    return tuple(getattr(module, name) for name in names.split())


# functions that create a tensor; the first ones are those that PopTorch moves to the device with a warning
_MOVED = frozenset(
    _functions(
        torch,
        "arange empty full full_like linspace logspace ones rand randint randn randperm range tensor zeros zeros_like "
        "normal",
    )
)
_FACTORIES = _MOVED | frozenset(
    _functions(
        torch,
        "bartlett_window blackman_window empty_like eye hamming_window hann_window ones_like rand_like randint_like "
        "randn_like scalar_tensor tril_indices triu_indices",
    )
)
LOSS_FUNCTIONS = frozenset(
    getattr(F, name)
    for name in dir(F)
    if name.endswith("_loss")
    or name in ("cross_entropy", "binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div")
)
_VALUES = frozenset(_functions(Tensor, "numpy tolist __array__"))
_TEXTS = frozenset(_functions(Tensor, "__repr__ __format__"))
_GRADIENTS = frozenset((torch.autograd.grad, torch.autograd.backward, Tensor.backward))


class PythonSide(TorchFunctionMode):
    """Follows what a model calls above PyTorch's operators.

    Args:
        tracer: that the model runs under.
    """

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        """Called by PyTorch in place of every function of its Python side."""
        kwargs = dict(kwargs or {})
        if self.tracer.on_host:
            return func(*args, **kwargs)
        if func == _DEVICE_OF:
            return DEVICE if self.tracer.knows(args[0]) else func(*args)
        if func in _FACTORIES:
            return self._create(func, args, kwargs)
        if func in LOSS_FUNCTIONS:
            return self.tracer.as_loss(lambda: func(*args, **kwargs))
        if func in _TEXTS and self.tracer.knows(args[0]):
            return f"tensor([...], device='{DEVICE}', size={tuple(args[0].shape)}, dtype={args[0].dtype})"
        if func == _DATA_OF:
            return args[0].detach()
        self._check(func)
        if kwargs.get("device") is not None:
            kwargs["device"] = _HOST
        if func is Tensor.to:
            args = tuple(_HOST if isinstance(arg, (str, torch.device)) else arg for arg in args)
        return func(*args, **kwargs)

    def _check(self, func: Any) -> None:
        """Refuse what a graph cannot hold.

        Raises:
            Error: it asks for values, computes gradients, or puts other memory into a tensor.
        """
        if func in _VALUES:
            raise python_error(
                f"Tensor.{func.__name__}() asks for the values of a tensor on the IPU while the graph is made; return "
                f"the tensor from forward and read it there [{self.tracer.user_line()}]"
            )
        if func in _GRADIENTS:
            raise python_error(
                "gradients cannot be asked for within forward: the device computes them after it; leave the backward "
                f"pass to poptorch.trainingModel [{self.tracer.user_line()}]"
            )
        if func == _SET_DATA:
            raise python_error(
                "tensor.data = ... cannot be traced; change the tensor in place: copy_(...) "
                f"[{self.tracer.user_line()}]"
            )

    def _create(self, func: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Tensor:
        device = kwargs.pop("device", None)
        if device is not None and not _is_ipu(device):
            with self.tracer.paused():
                return func(*args, **kwargs, device=device)
        if func in _MOVED and device is None and not any(isinstance(arg, Tensor) for arg in args):
            _log.warning("%s without device=: it is created on the IPU [%s]", func.__name__, self.tracer.user_line())
        return self.tracer.created(func, args, kwargs)


def _is_ipu(device: Any) -> bool:
    return str(device).split(":")[0] in ("ipu", "xla")
