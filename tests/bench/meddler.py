"""A contestant that takes more threads than it is given."""

from __future__ import annotations

from typing import Any

import torch

from bench.worker import Repetition


def prepare(**_: Any) -> Repetition:
    torch.set_num_threads(3)
    return lambda: {}
