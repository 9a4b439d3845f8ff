"""Stand-in for PopART. Applications of PopTorch take the numbers of its enumerations from here."""

from __future__ import annotations

import enum
from typing import Any


class SyntheticDataMode(enum.IntEnum):
    """What the IPU makes up in place of inputs; for PopTorch's `enableSyntheticData`."""

    Off = 0
    Zeros = 1
    RandomNormal = 2
    RandomUniform = 3


def __getattr__(name: str) -> Any:
    raise AttributeError(f"the simulator's stand-in for popart has no {name}; it has SyntheticDataMode only")
