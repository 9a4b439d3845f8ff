"""What programs ask of PopTorch's inner workings, and what importing PopTorch does to their process."""

from __future__ import annotations

import faulthandler
import io
import os
import signal
import sys

from ipu.simulator._logging import excepthook


def isDispatchTracing() -> bool:
    """Whether tensors live on the device "ipu" just now: never, so that models ask for their inputs' own device."""
    return False


def prepare_process() -> None:
    """Do to a process what `import poptorch` does; for processes in which the simulator goes by that name.

    Exceptions that nobody catches are logged, crashes and SIGTERM print where Python was, and forks are safe for RDMA.
    """
    os.environ.setdefault("RDMAV_FORK_SAFE", "1")
    sys.excepthook = excepthook
    if faulthandler.is_enabled():  # somebody, like a test runner, has arranged for crashes
        return
    try:
        faulthandler.enable()
        faulthandler.register(signal.SIGTERM, chain=True)
    except (io.UnsupportedOperation, ValueError, RuntimeError):  # standard error is no file
        return
