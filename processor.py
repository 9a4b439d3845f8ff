"""What this machine's processors can do."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import FrozenSet

_CPUINFO = Path("/proc/cpuinfo")
_BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")


def cpu_flags(cpuinfo: Path = _CPUINFO) -> FrozenSet[str]:
    """What the system says of its processors, word by word; empty where it does not."""
    return frozenset(cpuinfo.read_text(encoding="ascii", errors="replace").split()) if cpuinfo.exists() else frozenset()


def has_bf16_instructions() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; without that it is slower than float32."""
    return platform.machine() in ("x86_64", "AMD64") and not cpu_flags().isdisjoint(_BF16_INSTRUCTIONS)
