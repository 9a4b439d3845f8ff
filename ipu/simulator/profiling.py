"""Marks for Graphcore's PopVision System Analyser, written through `libpvti` where that library is installed."""

from __future__ import annotations

import contextlib
import os
from typing import Any, ContextManager, Dict, Optional, TypeVar

from ipu.simulator._logging import logger

Instrumented = TypeVar("Instrumented")


class Channel:
    """A named row of marks. Without `PVTI_OPTIONS` in the environment, or without `libpvti`, it does nothing.

    Args:
        name: what the analyser calls the row.
    """

    _channels: Dict[str, Any] = {}

    def __init__(self, name: str) -> None:
        self._name = name
        self._library = _library()
        if self._library is not None and name not in self._channels:
            self._channels[name] = self._library.createTraceChannel(name)

    def instrument(self, obj: Instrumented, *methods: str) -> Instrumented:
        """Mark every call of these methods of `obj`, and give `obj` back."""
        if self._library is not None:
            self._library.instrument(obj, methods, self._channels[self._name])
        return obj

    def tracepoint(self, name: str) -> ContextManager[Any]:
        """A context whose duration is marked under `name`."""
        if self._library is None:
            return contextlib.nullcontext()
        return self._library.Tracepoint(self._channels[self._name], f"{self._name}.{name}")


def _library() -> Optional[Any]:
    if os.environ.get("PVTI_OPTIONS") is None:
        return None
    try:
        import libpvti
    except ImportError as error:
        logger.info("No marks for the profiler: libpvti cannot be imported (%s)", error)
        return None
    return libpvti
