"""Rounding to half precision: nearest and stochastic."""

from __future__ import annotations

import functools
import math
import struct
from typing import List

import pytest
import torch
from torch import Tensor

from ipu.simulator.half import LARGEST, QUANTUM, SMALLEST_NORMAL, Rounder, RoundHalf, round_half, round_half_stochastic
from ipu.simulator.poptorch_core import Error

DRAWS = 200_000


def grid() -> Tensor:
    """All finite halves, ascending, with one zero."""
    patterns = torch.arange(0x7C00, dtype=torch.int16)
    positive = patterns.view(torch.float16).float()
    return torch.cat([-positive[1:].flip(0), positive])


def by_the_letter(value: float) -> float:
    """Python's own conversion to binary16, which rounds ties to even."""
    return struct.unpack("e", struct.pack("e", value))[0]


def any_floats(count: int) -> Tensor:
    """Floats of all magnitudes that have a half."""
    generator = torch.Generator().manual_seed(1)
    exponents = torch.rand(count, generator=generator) * 42 - 27
    signs = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
    return (2**exponents * signs).clamp(-LARGEST, LARGEST)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal in every bit: signs of zeros, too."""
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


def test_every_half_rounds_to_itself() -> None:
    assert same(round_half(grid()), grid())
    assert torch.equal(round_half_stochastic(grid(), generator()), grid())


def test_nearest_rounding_is_that_of_ieee_754() -> None:
    halves = grid()
    values = torch.cat([any_floats(20_000), (halves[1:] + halves[:-1]) / 2])  # the latter are exact ties
    expected = torch.tensor([by_the_letter(value) for value in values.tolist()])
    assert same(round_half(values), expected)


@pytest.mark.parametrize("value", [65505.0, 65520.0, 1e6, math.inf])
def test_overflow_saturates_or_becomes_nan(value: float) -> None:
    values = torch.tensor([value, -value])
    assert round_half(values).tolist() == [LARGEST, -LARGEST]
    fits = value < 65520  # what is nearer to the largest half than to the next power of two
    assert bool(round_half(values, saturate=False).isnan().all()) is not fits


@pytest.mark.parametrize("value", [65536.0, 1e6, math.inf])
def test_stochastic_overflow_saturates_or_becomes_nan(value: float) -> None:
    values = torch.tensor([value, -value])
    assert round_half_stochastic(values, generator()).tolist() == [LARGEST, -LARGEST]
    assert round_half_stochastic(values, generator(), saturate=False).isnan().all()


@pytest.mark.parametrize("saturate", [True, False])
def test_nan_stays_nan_and_the_rest_is_unharmed(saturate: bool) -> None:
    values = torch.tensor([math.nan, -0.0, 1.0])
    for rounded in (round_half(values, saturate), round_half_stochastic(values, generator(), saturate)):
        assert rounded.isnan().tolist() == [True, False, False]
        assert rounded[2] == 1
    assert math.copysign(1, round_half(values, saturate)[1].item()) == -1


def test_stochastic_rounding_gives_one_of_the_two_neighbours() -> None:
    halves, values = grid(), any_floats(200_000)
    below = halves[torch.searchsorted(halves, values, right=True) - 1]
    above = halves[torch.searchsorted(halves, values).clamp(max=len(halves) - 1)]
    rounded = round_half_stochastic(values, generator())
    assert bool(((rounded == below) | (rounded == above)).all())
    assert bool((rounded == below).any()) and bool((rounded == above).any())


@pytest.mark.parametrize(
    "value",
    [
        *[1.0001, -1.0001, 1.9999, 0.1, 3.14159, 60000.5, 2047.7],
        *[SMALLEST_NORMAL * 1.0003, SMALLEST_NORMAL * 0.9998, -SMALLEST_NORMAL * 0.3],
        *[QUANTUM * 0.25, -QUANTUM * 0.9, QUANTUM * 17.6, QUANTUM * 1023.5],
    ],
)
def test_stochastic_rounding_keeps_the_expected_value(value: float) -> None:
    values = torch.full((DRAWS,), value)
    rounded = round_half_stochastic(values, generator(7)).double()
    # Two outcomes at most one step apart: the mean deviates by half a step over the root of the draws.
    step = max(2.0 ** (math.floor(math.log2(abs(value))) - 10), QUANTUM)
    assert abs(rounded.mean().item() - float(values[0])) < 5 * step / 2 / math.sqrt(DRAWS)


def test_random_bits_of_neighbouring_elements_are_independent() -> None:
    up = (round_half_stochastic(torch.full((4 * DRAWS,), QUANTUM / 2), generator(3)) > 0).double().view(-1, 4)
    correlations = torch.corrcoef(torch.cat([up[1:], up[:-1]], dim=1).t()) - torch.eye(8)
    assert correlations.abs().max() < 5 / math.sqrt(DRAWS)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (5, 7), (300, 400)])
def test_rounding_keeps_the_shape_and_leaves_its_input(shape: List[int]) -> None:
    values = torch.rand(shape, generator=generator())
    before = values.clone()
    for rounded in (round_half(values), round_half_stochastic(values, generator())):
        assert rounded.shape == values.shape
        assert rounded.dtype == torch.float32
        assert torch.allclose(rounded, values, rtol=2**-10)
    assert torch.equal(values, before)


def test_tensors_that_are_not_contiguous_round_alike() -> None:
    values = torch.rand(300, 400, generator=generator())
    assert torch.equal(round_half(values.t()), round_half(values).t())
    rounded = round_half_stochastic(values.t(), generator())
    assert torch.allclose(rounded, values.t(), rtol=2**-10)


def test_one_seed_gives_one_result() -> None:
    values = torch.rand(1000, generator=generator())
    first, again, other = (round_half_stochastic(values, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_gradient_of_rounding_is_the_rounded_gradient() -> None:
    x = torch.tensor([0.1, 1e6], requires_grad=True)
    rounded = RoundHalf.apply(x, functools.partial(round_half, saturate=True))
    rounded.backward(torch.tensor([0.3, 1e5]))
    assert rounded.tolist() == [by_the_letter(0.1), LARGEST]
    assert x.grad is not None
    assert x.grad.tolist() == [by_the_letter(0.3), LARGEST]


def test_a_rounder_rounds_to_the_nearest_unless_told_otherwise() -> None:
    values = torch.full((1000,), 1.0001)
    assert Rounder()(values).unique().tolist() == [1.0]
    assert len(Rounder(stochastic=True)(values).unique()) == 2


def test_a_rounders_gradient_is_rounded_its_way() -> None:
    x = torch.ones(1000, requires_grad=True)
    Rounder(stochastic=True).differentiable(x).backward(torch.full((1000,), 1.0001))
    assert x.grad is not None
    assert len(x.grad.unique()) == 2


def test_a_rounder_goes_on_from_its_state() -> None:
    values, rounder = torch.rand(100, generator=generator()), Rounder(stochastic=True, seed=5)
    rounder(values)
    state = rounder.state()
    expected = rounder(values)
    other = Rounder(stochastic=True, seed=6)
    other.set_state(state)
    assert torch.equal(other(values), expected)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("value", [1e6, -math.inf, math.nan])
def test_floating_point_exceptions_stop_the_run(stochastic: bool, value: float) -> None:
    values = torch.tensor([1.0, value])
    with pytest.raises(Error, match="floating point exception"):
        Rounder(stochastic, exceptions=True)(values)
    Rounder(stochastic)(values)
    Rounder(stochastic, exceptions=True)(torch.tensor([1.0, 65504.0]))
