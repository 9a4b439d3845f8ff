"""The machine: what it is, and the arithmetic and memory rates that it reaches at best."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch

from bench.worker import Repetition

PACKAGES = ("torch", "torchvision", "dalle-pytorch", "taming-transformers-rom1504", "pillow", "einops")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(device: str, threads: int) -> Dict[str, Any]:
    """What has to be known to judge a figure: processor, memory, versions."""
    described = {
        "processor": _processor(),
        "cores": cores(),
        "threads": threads,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_at_start": round(os.getloadavg()[0], 2),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES for version in [_version(name)] if version},
    }
    if device == "cuda":
        described["gpu"] = torch.cuda.get_device_name()
        described["cuda"] = torch.version.cuda
    return described


def matrix_product(device: str, precision: str, side: int, **_: Any) -> Repetition:
    """The product of two square matrices."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(side, side).to(device, dtype) for _ in range(2))
    result = torch.empty_like(left)
    return lambda: {"first": float(torch.mm(left, right, out=result)[0, 0])}


def copying(device: str, size: int, **_: Any) -> Repetition:
    """A copy of `size` bytes, which moves twice as many."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return lambda: {"first": float(target.copy_(source)[0])}


def reading(device: str, size: int, **_: Any) -> Repetition:
    """A pass over `size` bytes of weights, as drawing a token makes: the product of a matrix and a vector."""
    columns = 1024
    weights, vector = torch.ones(size // 4 // columns, columns, device=device), torch.ones(columns, device=device)
    return lambda: {"first": float(torch.mv(weights, vector)[0])}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines: List[str] = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _version(name: str) -> Optional[str]:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
