"""The IPU's half precision, carried in float32: values of the IEEE 754 binary16 grid, rounded as the machine rounds.

A tensor that the device holds in half precision is a float32 tensor here whose values all lie on the binary16 grid, so
that a host computes with it at full speed. Two functions bring float32 values onto the grid: to the nearest value, or
stochastically, which leaves the expected value where it was.
"""

from __future__ import annotations

from typing import Any, Callable, Optional, Tuple

import torch
from torch import Tensor

from ipu.simulator.poptorch_core import Error

LARGEST = 65504.0
SMALLEST_NORMAL = 2.0**-14
QUANTUM = 2.0**-24
"""The distance of neighbours below `SMALLEST_NORMAL`, and the smallest value above zero."""

Rounding = Callable[[Tensor], Tensor]

_DROPPED_BITS = 13  # of float32's 23 bits of mantissa binary16 keeps 10
_CHUNK = 1 << 16  # values that stay in a core's cache through all passes


@torch.no_grad()
def round_half(x: Tensor, saturate: bool = True) -> Tensor:
    """The values of the binary16 grid nearest to `x`, ties to even.

    Args:
        x: float32, any shape.
        saturate: what has no half, infinities included, becomes +-65504; otherwise NaN.

    Returns:
        A new float32 tensor.
    """
    rounded = x.half().float()
    return rounded.clamp_(-LARGEST, LARGEST) if saturate else _infinite_to_nan(rounded)


@torch.no_grad()
def round_half_stochastic(x: Tensor, generator: Optional[torch.Generator] = None, saturate: bool = True) -> Tensor:
    """One of the two neighbours of `x` on the binary16 grid, the nearer one the likelier: unbiased.

    The probabilities have 13 bits. For normal halves these are all that float32 has below the grid, and the
    expected value is `x` itself; below `SMALLEST_NORMAL` it is `x` to within `QUANTUM / 2**14`.

    Args:
        x: float32, any shape.
        generator: where the random bits come from, on the device of `x`; the default generator when not given.
        saturate: what has no half, infinities included, becomes +-65504; otherwise NaN.

    Returns:
        A new float32 tensor.
    """
    if x.numel() <= _CHUNK:
        return _round_stochastically(x, generator, saturate)
    flat = x.reshape(-1)
    rounded = torch.empty_like(flat)
    for source, target in zip(flat.split(_CHUNK), rounded.split(_CHUNK)):
        target.copy_(_round_stochastically(source, generator, saturate))
    return rounded.view(x.shape)


class RoundHalf(torch.autograd.Function):
    """Rounding as an operator: a half tensor's gradient is a half tensor too, so it is rounded the same way.

    `RoundHalf.apply(x, rounding)`, where `rounding` is one of this file's functions with its arguments bound.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounding: Rounding) -> Tensor:
        """Round `x`."""
        ctx.rounding = rounding
        return rounding(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Tensor, None]:
        """Round the gradient."""
        return ctx.rounding(gradient), None


class Rounder:
    """How one device rounds.

    Args:
        stochastic: with random bits instead of to the nearest.
        exceptions: a result that half precision does not have stops the run; otherwise overflow saturates.
        seed: of the random bits.
    """

    def __init__(self, stochastic: bool = False, exceptions: bool = False, seed: int = 0) -> None:
        self.stochastic, self.exceptions = stochastic, exceptions
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, x: Tensor) -> Tensor:
        """The values of `x` (float32) on the binary16 grid, as a new tensor.

        Raises:
            Error: a value overflows or is none, and exceptions are on.
        """
        saturate = not self.exceptions
        rounded = round_half_stochastic(x, self._generator, saturate) if self.stochastic else round_half(x, saturate)
        if self.exceptions:
            _stop_at_nan(rounded)
        return rounded

    def differentiable(self, x: Tensor) -> Tensor:
        """As a call, with a gradient that is rounded the same way."""
        return RoundHalf.apply(x, self)

    def state(self) -> Tensor:
        """The state of the random bits, as a tensor of bytes."""
        return self._generator.get_state()

    def set_state(self, state: Tensor) -> None:
        """Put back what `state` returned."""
        self._generator.set_state(state)


def _stop_at_nan(rounded: Tensor) -> None:
    # The extremes are NaN if any value is; they take a tenth of the time of asking every value.
    if rounded.numel() and bool(torch.aminmax(rounded).max.isnan()):
        raise Error(
            "poplar_runtime_error",
            f"floating point exception: a value left the range of half precision (+-{LARGEST:.0f}) or is not a number; "
            "lower the loss scaling or the learning rate, or compute this part in float32",
        )


def _round_stochastically(x: Tensor, generator: Optional[torch.Generator], saturate: bool) -> Tensor:
    """Add a random share of the distance to the next value of the grid, then cut off what lies between.

    On the pattern of a float32 that distance is 2**13 whatever the exponent. Halves below `SMALLEST_NORMAL` have one
    distance for all exponents; moved up by `SMALLEST_NORMAL` they fall among floats of which the same is true.
    """
    offset = x.abs().lt_(SMALLEST_NORMAL).mul_(SMALLEST_NORMAL).copysign_(x)
    moved = x + offset
    pattern = moved.view(torch.int32)
    pattern.add_(_noise(x, generator)).bitwise_and_(-(1 << _DROPPED_BITS))
    moved.sub_(offset)
    return moved.clamp_(-LARGEST, LARGEST) if saturate else _infinite_to_nan(moved.half().float())


def _noise(x: Tensor, generator: Optional[torch.Generator]) -> Tensor:
    """Uniform whole numbers of 13 bits in the shape of `x`. Four at a draw: the draws are what takes the time."""
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device).random_(generator=generator)
    # A draw has 63 bits: of its four numbers of 16 the last lacks the topmost, which is not among the 13.
    numbers = draws.view(torch.int16)[: x.numel()].bitwise_and_((1 << _DROPPED_BITS) - 1)
    return numbers.view(x.shape)


def _infinite_to_nan(x: Tensor) -> Tensor:
    """NaN for the infinities of `x`, in place; the sign of zeros stays."""
    return x.mul_(x.mul(0).add_(1))
