"""All that knows PopTorch. This file alone decides which PopTorch is meant: the SDK's, or the simulator."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

PopTorch = Any
"""A module with PopTorch's names: the SDK's `poptorch`, or `ipu.simulator`."""


def open_poptorch(engine: str) -> PopTorch:
    """The PopTorch of an engine.

    Args:
        engine: "ipu" for the SDK's, "ipu-sim" for the simulator.

    Raises:
        OptionError: the SDK is not there.
    """
    if engine == "ipu-sim":
        return importlib.import_module("ipu.simulator")
    if not has_sdk():
        # here, since programs of others run on the simulator, and may have a module of that name, too
        from options import OptionError

        raise OptionError(
            "engine=ipu needs Graphcore's SDK, and `import poptorch` fails here; enable the SDK and install its "
            "PopTorch wheel (docs/ipu.md), or take engine=ipu-sim, which needs neither"
        )
    return importlib.import_module("poptorch")


def has_sdk() -> bool:
    """Whether the SDK's PopTorch can be imported; the simulator under its name does not count."""
    try:
        return importlib.util.find_spec("poptorch") is not None and not _is_simulator(
            importlib.import_module("poptorch")
        )
    except (ImportError, ValueError, AssertionError):  # a wheel of another torch refuses to be imported
        return False


def answers() -> bool:
    """Whether IPUs can be reached from here."""
    return has_sdk() and bool(importlib.import_module("poptorch").ipuHardwareIsAvailable())


def _is_simulator(module: ModuleType) -> bool:
    return hasattr(module, "register_custom_op")
