"""The library of compiled kernels: how it is made, and how a kernel is called."""

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
from typing import Any, Callable, List, Optional, Union

import torch
from torch import Tensor

from processor import cpu_flags

Argument = Union[Tensor, int, float, None]
_FOLDER = Path(__file__).parent
_SOURCES = [_FOLDER / "training.cpp", _FOLDER / "decoding.cpp"]
_HEADERS = [_FOLDER / "numbers.h"]
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
        _log.info(
            "no compiled kernels, so steps and drawing on this CPU take longer; %s: %s", shlex.join(compiler), said[-1]
        )
        return None


def cache_folder() -> Path:
    """Where compiled kernels lie."""
    return Path.home() / ".cache" / "dalle"


def is_for(*tensors: Tensor) -> bool:
    """Whether there are kernels for these tensors: by their types, and by what this machine has."""
    suitable = all(tensor.dtype in _TYPES and tensor.device.type == "cpu" for tensor in tensors)
    return suitable and open_native() is not None


def run(name: str, dtype: torch.dtype, *args: Argument) -> None:
    """Run a kernel.

    Args:
        name, dtype: of the kernel, float32 or bfloat16; `is_for` has been asked.
        args: its arguments in order: tensors, gone through as they lie in memory; whole numbers for sizes; other
            numbers; None for a tensor that there is none of.
    """
    prepare(name, dtype)(*args)


def prepare(name: str, dtype: torch.dtype, *first: Argument) -> Callable[..., None]:
    """A kernel whose first arguments are these at every call; see `run`. Whoever calls it keeps the tensors."""
    kernel, given = getattr(open_native(), f"{name}_{_TYPES[dtype]}"), tuple(map(_as_c, first))
    return lambda *args: kernel(*given, *map(_as_c, args))


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
    objects, library = [str(folder / f"{source.stem}.o") for source in _SOURCES], folder / "native.so"
    compiling = [[*_flags(), "-c", str(source), "-o", made] for source, made in zip(_SOURCES, objects)]
    for arguments in (*compiling, ["-shared", *objects, "-o", str(library)]):
        subprocess.run([*compiler, *arguments], check=True, capture_output=True, text=True)
    return library


def _flags() -> List[str]:
    return [*_FLAGS, *([_WIDE_VECTORS] if "avx512f" in cpu_flags() else [])]


def _digest(compiler: List[str]) -> str:
    """Of all that the library depends on."""
    texts = [path.read_text(encoding="utf-8") for path in (*_SOURCES, *_HEADERS)]
    parts = [*texts, *compiler, *_flags(), platform.machine(), *sorted(cpu_flags())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
