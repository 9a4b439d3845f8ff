"""Blocks: which part of a model runs on which IPU."""

from __future__ import annotations

import functools
from typing import Any, Callable, Optional, TypeVar

from torch import nn

from ipu.simulator.poptorch_core import python_error
from ipu.simulator.tracing import active_tracer

Callable_ = TypeVar("Callable_", bound=Callable[..., Any])


class _AutomaticIds:
    """Numbers blocks without a name, over all models."""

    next = 0

    @classmethod
    def take(cls) -> str:
        cls.next += 1
        return str(cls.next - 1)


class Block(nn.Module):
    """A context manager: what is called within runs in this block; afterwards no block is active.

    Outside of tracing it does nothing.

    Args:
        user_id: the block's name; None: a number.
        ipu_id: the IPU it runs on, where the execution strategy leaves that open.
    """

    def __init__(self, user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> None:
        super().__init__()
        self._user_id, self._ipu_id = user_id, ipu_id

    def __enter__(self) -> None:
        _begin(self)

    def __exit__(self, *exception: Any) -> None:
        tracer = active_tracer()
        if tracer is not None:
            tracer.graph.stages.end()

    @staticmethod
    def start(user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> None:
        """Begin a block that lasts until another begins."""
        _begin(Block(user_id, ipu_id))

    @staticmethod
    def useAutoId() -> None:
        """Number the blocks without a name from 0 again."""
        _AutomaticIds.next = 0


class _BlockHook:
    """Begins a block before a module runs."""

    def __init__(self, user_id: Optional[str], ipu_id: Optional[int]) -> None:
        self._user_id, self._ipu_id = user_id, ipu_id

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        _begin(self)

    def __repr__(self) -> str:
        return f"BeginBlock(user_id={self._user_id}, ipu_id={self._ipu_id})"


class _BlockedCallable(nn.Module):
    """A function that begins a block when it is called."""

    def __init__(self, function: Callable[..., Any], user_id: Optional[str], ipu_id: Optional[int]) -> None:
        super().__init__()
        self._function, self._user_id, self._ipu_id = function, user_id, ipu_id

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _begin(self)
        return self._function(*args, **kwargs)


def BeginBlock(layer: Any, user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> Any:
    """Begin a block whenever a module, or a function, is called; it lasts until another begins.

    The hook sees calls of the module only: another of its methods does not begin the block.

    Returns:
        The module itself; a function is wrapped.

    Raises:
        Error: the module has a block already, or it is neither a module nor callable.
    """
    if isinstance(layer, nn.Module):
        if block_hook(layer) is not None:
            raise python_error(
                "this module has already been assigned to a block; removeBlocks takes it out of that one"
            )
        layer.register_forward_pre_hook(_BlockHook(user_id, ipu_id))
        return layer
    if not callable(layer):
        raise python_error(f"a block begins at a module or a callable, not at a {type(layer).__name__}")
    return _BlockedCallable(layer, user_id, ipu_id)


def BlockFunction(user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> Callable[[Callable_], Callable_]:
    """A decorator: the body of the function is a block."""

    def decorate(function: Callable_) -> Callable_:
        @functools.wraps(function)
        def blocked(*args: Any, **kwargs: Any) -> Any:
            with Block(user_id, ipu_id):
                return function(*args, **kwargs)

        return blocked  # type: ignore[return-value]

    return decorate


def removeBlocks(module: nn.Module) -> None:
    """Take the blocks from a module and all within it.

    Raises:
        AssertionError: it is no module.
    """
    assert isinstance(module, nn.Module), "removeBlocks takes a torch.nn.Module"
    for inner in module.modules():
        hooks = inner._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if isinstance(hook, _BlockHook)]:
            del hooks[key]


def block_hook(module: nn.Module) -> Optional[_BlockHook]:
    """The hook that BeginBlock registered on a module, if any."""
    hooks = vars(module).get("_forward_pre_hooks", {}).values()
    return next((hook for hook in hooks if isinstance(hook, _BlockHook)), None)


def module_repr(module: nn.Module) -> str:
    """The tree of a module as text, with the block that begins at each module before its class."""
    lines = []
    for name, child in module.named_children():
        text = module_repr(child).replace("\n", "\n  ")
        lines.append(f"  ({name}): {text}")
    own = module.extra_repr()
    body = "\n" + "\n".join(lines) + "\n" if lines else ""
    hook = block_hook(module)
    prefix = f"{hook!r} " if hook else ""
    return f"{prefix}{module._get_name()}({own}{body})"


def print_module(module: nn.Module) -> None:
    """Print the tree of a module with its blocks."""
    print(module_repr(module))


def _begin(block: Any) -> None:
    tracer = active_tracer()
    if tracer is None:
        return
    if block._user_id is None:
        block._user_id = _AutomaticIds.take()
    tracer.graph.stages.begin(str(block._user_id), block._ipu_id)
