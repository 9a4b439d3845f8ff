"""The kernels in C++ for CPUs, compiled for the machine when they are first wanted, with the C++ compiler that it has.

They need no headers but the language's, so that a second is enough, and take their threads from PyTorch's own OpenMP.
Where there is no compiler, or none that makes what can be loaded, engines do without them.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any, List, Optional, Tuple, Union

import torch
from torch import Tensor

from engines.processor import cpu_flags

Argument = Union[Tensor, int, float, None]
_SOURCE = Path(__file__).with_name("native.cpp")
_FLAGS = ("-std=c++14", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")
_WIDE_VECTORS = "-mprefer-vector-width=512"
_TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_log = logging.getLogger(__name__)


@functools.lru_cache(maxsize=None)
def open_native() -> Optional[ctypes.CDLL]:
    """The library of compiled kernels, compiled if need be; None, and a line in the log, where there can be none."""
    compiler = shlex.split(os.environ.get("CXX") or "g++")
    try:
        return _load(compiler, cache_folder() / f"kernels-{_digest(compiler)}.so")
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: a user without a home
        said = ((getattr(error, "stderr", None) or "").strip() or str(error)).splitlines()
        _log.info("no compiled kernels, so steps on this CPU take longer; %s: %s", shlex.join(compiler), said[-1])
        return None


def cache_folder() -> Path:
    """Where compiled kernels lie."""
    return Path.home() / ".cache" / "dalle"


def is_for(*tensors: Tensor) -> bool:
    """Whether there are kernels for these tensors: by their types, and by what this machine has."""
    suitable = all(tensor.dtype in _TYPES and tensor.device.type == "cpu" for tensor in tensors)
    return suitable and open_native() is not None


def run(name: str, dtype: torch.dtype, *args: Argument) -> None:
    """Run a kernel of `native.cpp`.

    Args:
        name, dtype: of the kernel, float32 or bfloat16; `is_for` has been asked.
        args: its arguments in order: tensors, gone through as they lie in memory; whole numbers for sizes; other
            numbers; None for a tensor that there is none of.
    """
    getattr(open_native(), f"{name}_{_TYPES[dtype]}")(*map(_as_c, args))


def rows_of(t: Tensor) -> Tuple[int, int]:
    """R and D of a tensor (..., D)."""
    return t.numel() // max(t.shape[-1], 1), t.shape[-1]


def sum_over_rows(t: Tensor) -> Tensor:
    """The sum over rows of a tensor (..., D), in single precision: (D,)."""
    total = torch.empty(t.shape[-1])
    run("sum_over_rows", t.dtype, t, total, *rows_of(t))
    return total


def sum_of_squares(t: Tensor) -> float:
    """The sum of the squares of all values."""
    total = torch.empty((), dtype=torch.float64)
    run("sum_of_squares", t.dtype, t, total, t.numel())
    return float(total)


def _as_c(value: Argument) -> Any:
    if value is None or isinstance(value, Tensor):
        return ctypes.c_void_p(None if value is None else value.data_ptr())
    return ctypes.c_long(value) if isinstance(value, int) else ctypes.c_float(value)


def _load(compiler: List[str], kept: Path) -> ctypes.CDLL:
    """The library that was kept, or a new one; what cannot be loaded is not kept."""
    with contextlib.suppress(OSError):
        return ctypes.CDLL(str(kept))
    keeps = _is_writable(kept.parent)
    with tempfile.TemporaryDirectory(dir=str(kept.parent) if keeps else None) as folder:
        compiled = _compile(compiler, Path(folder))
        library = ctypes.CDLL(str(compiled))
        if keeps:
            os.replace(str(compiled), str(kept))
    return library


def _is_writable(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return folder.is_dir() and os.access(str(folder), os.W_OK)


def _compile(compiler: List[str], folder: Path) -> Path:
    """Compile, and link without OpenMP: a second one beside PyTorch's would have threads of its own."""
    compiled, library = str(folder / "native.o"), folder / "native.so"
    for arguments in ([*_flags(), "-c", str(_SOURCE), "-o", compiled], ["-shared", compiled, "-o", str(library)]):
        subprocess.run([*compiler, *arguments], check=True, capture_output=True, text=True)
    return library


def _flags() -> List[str]:
    return [*_FLAGS, *([_WIDE_VECTORS] if "avx512f" in cpu_flags() else [])]


def _digest(compiler: List[str]) -> str:
    """Of all that the library depends on."""
    parts = [_SOURCE.read_text(encoding="utf-8"), *compiler, *_flags(), platform.machine(), *sorted(cpu_flags())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
