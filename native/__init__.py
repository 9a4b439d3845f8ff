"""Kernels in C++ for CPUs, compiled for the machine when they are first wanted, with the C++ compiler that it has.

They need no headers but the language's, so that two seconds are enough, and take their threads from PyTorch's own
OpenMP. Where there is no compiler, or none that makes what can be loaded, PyTorch's operators compute the same.
"""

from __future__ import annotations

from native.library import is_for, prepare, run
from native.sums import rows_of, sum_of_squares, sum_over_rows

__all__ = ["is_for", "prepare", "rows_of", "run", "sum_of_squares", "sum_over_rows"]
