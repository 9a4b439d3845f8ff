"""Functions that are called before and after a model is compiled."""

from __future__ import annotations

import collections
from typing import Callable, Dict, List

from torch.utils.hooks import RemovableHandle

Hook = Callable[[], None]
before_compile: Dict[int, Hook] = collections.OrderedDict()
after_compile: Dict[int, Hook] = collections.OrderedDict()


def registerPreCompileHook(hook: Hook) -> RemovableHandle:
    """Call a function before every model is traced; the handle removes it.

    Raises:
        RuntimeError: it cannot be called.
    """
    return _register(hook, before_compile)


def registerPostCompileHook(hook: Hook) -> RemovableHandle:
    """Call a function after every model is traced, if that fails, too; the handle removes it.

    Raises:
        RuntimeError: it cannot be called.
    """
    return _register(hook, after_compile)


def run(hooks: Dict[int, Hook]) -> None:
    """Call all of them."""
    called: List[Hook] = list(hooks.values())
    for hook in called:
        hook()


def _register(hook: Hook, hooks: Dict[int, Hook]) -> RemovableHandle:
    if not callable(hook):
        raise RuntimeError(
            f"a compile hook must be callable, a function without arguments, and not a {type(hook).__name__}"
        )
    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    return handle
