"""The library of the fused operators for this CPU: the code that IPUs compile, built against headers of our own."""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from options import UserError

Library = ctypes.CDLL
ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / "custom_ops" / "build" / "libhost_custom_ops.so"
OTHER_LIBRARY = "HOST_CUSTOM_OPS"
"""Environment variable: a library to load in place of the one that is built."""
REPORTED_LINES = 20  # of a compiler that fails


def missing_tool() -> Optional[str]:
    """What is missing to build the library, as a phrase; None where nothing is, or another library is named."""
    if os.environ.get(OTHER_LIBRARY):
        return None
    for what, program in (("make", "make"), ("C++ compiler", shlex.split(os.environ.get("CXX") or "g++")[0])):
        if shutil.which(program) is None:
            return f"no {what} here ({program})"
    return None


@functools.lru_cache(maxsize=None)
def open_library() -> Library:
    """The library, built if need be. There is one in a process: a second one would replace the operators of the first.

    Raises:
        UserError: it cannot be built or loaded.
    """
    other = os.environ.get(OTHER_LIBRARY)
    if other:
        return load(Path(other), f"{OTHER_LIBRARY}={other}")
    build()
    return load(BUILT)


def load(path: Path, named: Optional[str] = None) -> Library:
    """A library with the operators in it.

    Args:
        path: of the file.
        named: how to speak of it; None: by its path.

    Raises:
        UserError: it cannot be loaded.
    """
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise UserError(f"{named or path} cannot be loaded ({error}); build it anew with `make host-ops`") from None
    _declare(library)
    return library


def build(target: str = "host-ops") -> None:
    """Let make build a target; processes that want the same wait for one another.

    Raises:
        UserError: it fails.
    """
    import fcntl  # not on every system that could do without this library

    BUILT.parent.mkdir(parents=True, exist_ok=True)
    with (BUILT.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = subprocess.run(["make", "-s", target], cwd=ROOT, capture_output=True, text=True)
    if made.returncode:
        lines = (made.stdout + made.stderr).splitlines()[-REPORTED_LINES:]
        what = f"`make {target}`, which builds the fused operators for this CPU, failed:"
        raise UserError("\n".join((what, *lines)))


def _declare(library: Library) -> None:
    """Say the types of the library's functions."""
    handle, number, text, array = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p
    shape = ctypes.POINTER(ctypes.c_int64)
    out = ctypes.POINTER(ctypes.c_int)
    functions: Dict[str, Tuple[Any, List[Any]]] = {
        "last_error": (text, []),
        "operator_new": (handle, [text, text, number]),
        "operator_attribute_int": (number, [handle, text, ctypes.c_int64]),
        "operator_attribute_ints": (number, [handle, text, shape, number]),
        "operator_attribute_float": (number, [handle, text, ctypes.c_float]),
        "operator_attribute_string": (number, [handle, text, text]),
        "operator_input": (number, [handle, number, number, shape]),
        "operator_compile": (number, [handle]),
        "operator_saturate": (number, [handle, number]),
        "operator_output_count": (number, [handle]),
        "operator_output": (number, [handle, number, out, out, shape]),
        "operator_has_gradient": (number, [handle, number]),
        "operator_forward": (number, [handle, array, array]),
        "operator_backward": (number, [handle, array, array, array, array]),
        "operator_delete": (None, [handle]),
    }
    for name, (result, arguments) in functions.items():
        function = getattr(library, f"host_{name}")
        function.restype, function.argtypes = result, arguments
